"""Edits of checkpoints on disk, in bounded memory and without torch.

- :func:`get_value`, :func:`export`: one value or tensor of a state
- :func:`set_value`: change a plain value
- :func:`rename`: other keys, ``module.`` and ``_orig_mod.`` for example
- :func:`merge`, :func:`split`: several checkpoints into one, and one into several
- :func:`copy`: a checkpoint once more, whole, with the files that it shares with others
- :func:`average`: the mean of the weights of several checkpoints

Each writes a whole checkpoint, atomically, or leaves what was there. Tensors are copied as they are
stored; only :func:`average` decodes them.
"""

from jsonckpt._src.edit.average import AverageResult, average
from jsonckpt._src.edit.copy import copy
from jsonckpt._src.edit.get_value import export, get_value
from jsonckpt._src.edit.merge import MergeResult, merge
from jsonckpt._src.edit.rename import RenameResult, rename
from jsonckpt._src.edit.set_value import SetResult, set_value
from jsonckpt._src.edit.split import SplitPart, SplitResult, split

__all__ = [
    "AverageResult",
    "MergeResult",
    "RenameResult",
    "SetResult",
    "SplitPart",
    "SplitResult",
    "average",
    "copy",
    "export",
    "get_value",
    "merge",
    "rename",
    "set_value",
    "split",
]
