"""`python -m pysocksify` is the command `pysocksify`."""

import sys

from pysocksify.cli import main

if __name__ == "__main__":
    sys.exit(main())
