"""`python -m rehydrator`."""

import sys

from rehydrator.cli import main

if __name__ == "__main__":
    sys.exit(main())
