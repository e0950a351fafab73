"""Converting checkpoints: ``.pt``, safetensors, jsonckpt, and the JSON that other programs write.

From Python :func:`convert`, from the command line ``python -m jsonckpt.convert``. A conversion goes
one way, and each step is one module with a function of its name::

    api:  read  ->  select  ->  write  ->  compare

``read`` finds out what the input is and has it read: ``torch_files``, ``safetensors_files``, or
``foreign_json``, which goes the same way inside::

    lift            takes the long arrays and strings out of the text
    dialects        says which object is a tensor
    tensor_values   makes the tensor

``write`` has it written by the package itself, ``torch.save``, ``safetensors_files`` or
``number_list_json``.
"""

from __future__ import annotations

import sys

from jsonckpt._src.cli.convert import main
from jsonckpt._src.convert.api import ConvertResult, convert
from jsonckpt._src.convert.options import ConvertOptions

__all__ = ["ConvertOptions", "ConvertResult", "convert"]

if __name__ == "__main__":
    sys.exit(main())
