"""The command ``jsonckpt``."""

from jsonckpt._src.cli.main import main

__all__ = ["main"]
