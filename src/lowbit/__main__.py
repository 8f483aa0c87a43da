"""`python -m lowbit`: the same as the command `lowbit`."""

import sys

from lowbit.cli import main

if __name__ == "__main__":  # processes spawned for --devices import this module again
    sys.exit(main())
