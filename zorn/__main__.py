"""`python -m zorn`, the same as the command `zorn`."""

import sys

from zorn.cli import main

if __name__ == "__main__":
    sys.exit(main())
