"""Converts checkpoints: ``.pt``, safetensors, NumPy, jsonckpt, and JSON of other programs.

Call :func:`convert` in Python, or ``python -m jsonckpt.convert`` on the command line. ``api`` runs
the steps in this order. Each step is a module with a function of the same name::

    read  ->  select  ->  write  ->  compare

``read`` looks the content of the input up in the table of ``kinds`` and calls ``torch_files``,
``safetensors_files``, ``numpy_files``, ``tensorflowjs``, the loader of this package, or
``foreign.read_json``. The last one reads in three steps::

    lift            moves long arrays and strings from the text to a file
    dialects        recognises the objects that are tensors
    tensor_values   makes the tensors

``write`` calls the saver of this package, ``torch.save``, ``safetensors_files`` or
``number_list_json``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from jsonckpt._src.commands.convert import main
from jsonckpt._src.convert.api import ConvertResult, convert
from jsonckpt._src.convert.options import ConvertOptions

__all__ = ["ConvertOptions", "ConvertResult", "convert"]


class _CallableModule(ModuleType):
    """``jsonckpt.convert(...)`` is ``jsonckpt.convert.convert(...)``: both names are natural."""

    def __call__(self, *args: Any, **kwargs: Any) -> ConvertResult:
        return convert(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
