"""``python -m tools.reliability`` lists the tools and how to run them."""

from tools import reliability

print(reliability.__doc__)
