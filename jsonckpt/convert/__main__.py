"""``python -m jsonckpt.convert``."""

from __future__ import annotations

import sys

from jsonckpt.convert.command import main

if __name__ == "__main__":
    sys.exit(main())
