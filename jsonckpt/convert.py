"""Converting checkpoints: ``.pt``, safetensors, jsonckpt, and the JSON that other programs write.

From Python :func:`convert`, from the command line ``python -m jsonckpt.convert``. What goes on
inside, from the bottom up:

=================  ===============================================================================
``progress``       a bar, or lines
``spool``          temporary files without names, for tensors and for what waits
``pieces``         tensors in pieces
``numberarray``    text of numbers to values, a MiB at a time
``lifting``        a JSON text with its long parts lifted out
``payloads``       numbers or base64, dtype and shape to a tensor
``dialects``       which object is a tensor
``foreign``        JSON of other programs to a state
``torchfiles``     files of ``torch.save``, also unpacked ones
``safetensorsfile``  safetensors, both ways
``legacy``         the JSON of the Kaggle guide's converter, written
``core``           the rest of the package
``sources``        any input to a state
``selection``      which tensors, and of what dtype
``targets``        a state to any output
``compare``        are two states the same?
``readback``       the same for a checkpoint on disk, in parts
``conversion``     all of it in order
``command``        the command line
=================  ===============================================================================
"""

from __future__ import annotations

import sys

from jsonckpt._src.convert.command import main
from jsonckpt._src.convert.conversion import ConvertOptions, ConvertResult, convert

__all__ = ["ConvertOptions", "ConvertResult", "convert"]

if __name__ == "__main__":
    sys.exit(main())
