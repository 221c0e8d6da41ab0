"""Run the `bya` command with `python -m bya_core`."""

import sys


def run() -> int:
    """Run the command; an interruption while Python loads the packages is quiet, too."""
    try:
        from bya_core.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
