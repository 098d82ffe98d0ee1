"""`python -m crishim`: the same as the `crishim` command."""

import sys

from crishim.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
