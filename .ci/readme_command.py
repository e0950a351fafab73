"""Print a shell block of the README, so that CI runs the very commands that a reader copies.

A block is named by the comment before it: ``<!-- ci: NAME -->``. Several blocks of one name are
joined.
"""

import re
import sys
from pathlib import Path

text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
marker = rf"<!-- ci: {re.escape(sys.argv[1])} -->"
blocks = re.findall(rf"{marker}\n+```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
if not blocks:
    sys.exit(f"README.md has no block named {sys.argv[1]}")
print("\n".join(blocks))
