"""``python -m tools.reliability`` prints what there is and how to run it."""

from tools import reliability

print(reliability.__doc__)
