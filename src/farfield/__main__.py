"""``python -m farfield``: the command line, as launchers of several processes call it."""

import sys

from farfield.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
