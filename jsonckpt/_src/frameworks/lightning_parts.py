"""What is needed of Lightning, from ``lightning`` or from ``pytorch_lightning``."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

#: The same classes have two homes, and a trainer knows only those of its own.
_OLD = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules


def part(module: str) -> Any:
    """A module of ``lightning.pytorch``, or of ``pytorch_lightning`` if the program uses that.

    Args:
        module: its name below; ``""`` for the package itself.
    """
    for package in ("pytorch_lightning", "lightning.pytorch")[:: 1 if _OLD else -1]:
        try:
            return import_module(f"{package}.{module}".rstrip("."))
        except ModuleNotFoundError as error:
            if not package.startswith(str(error.name)):
                raise
            missing = error
    raise missing


#: Bases of the classes here. Typed as ``Any``, so that types are checked without Lightning, too.
CheckpointIO: Any = part("plugins.io").CheckpointIO
Callback: Any = part("callbacks").Callback
LightningModule: Any = part("").LightningModule
LightningDataModule: Any = part("").LightningDataModule
