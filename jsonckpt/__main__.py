"""``python -m jsonckpt``."""

import sys

from jsonckpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
