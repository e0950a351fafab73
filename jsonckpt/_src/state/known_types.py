"""Types of other libraries that need no registration. Pure: nothing is imported here."""

from __future__ import annotations

from typing import Final, NamedTuple


class KnownType(NamedTuple):
    """A class of another library.

    Attributes:
        package: what a program imports to have it.
        module, name: of the class.
    """

    package: str
    module: str
    name: str


#: By tag. The library is never imported because a file asks for it.
KNOWN_TYPES: Final = {
    f"$torchao.{name}": KnownType("torchao.optim", f"torchao.optim.{module}", name)
    for module, name in (
        ("subclass_8bit", "OptimState8bit"),
        ("subclass_4bit", "OptimState4bit"),
        ("subclass_fp8", "OptimStateFp8"),
    )
}
