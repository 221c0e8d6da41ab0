"""python -m bya_core"""

import sys

from bya_core.cli import main

sys.exit(main())
