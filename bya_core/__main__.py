"""Run the `bya` command with `python -m bya_core`."""

import sys

from bya_core.cli.main import main

sys.exit(main())
