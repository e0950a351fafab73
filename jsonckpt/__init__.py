"""Checkpoints for PyTorch that are plain JSON: readable, exact, fast, small in memory, safe.

>>> import tempfile, torch, jsonckpt
>>> with tempfile.TemporaryDirectory() as directory:
...     result = jsonckpt.save({"w": torch.ones(2), "epoch": 3}, directory + "/checkpoint")
...     jsonckpt.load(directory + "/checkpoint")
{'w': tensor([1., 1.]), 'epoch': 3}
"""

from jsonckpt._src.errors import (
    ArgumentError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    DurabilityUncertainError,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    LimitError,
    SaveCancelledError,
    StateMismatchError,
    UnsafePathError,
    UnsupportedTypeError,
    UnsupportedVersionError,
    WriteError,
)
from jsonckpt._src.format.limits import Limits
from jsonckpt._src.load.api import load, stream
from jsonckpt._src.load.checkpoint import Checkpoint, TensorEntry
from jsonckpt._src.load.checkpoint import open_checkpoint as open
from jsonckpt._src.load_into.api import LoadResult, load_into
from jsonckpt._src.rescue.gc import GcReport, gc
from jsonckpt._src.rescue.recover import RecoverReport, recover
from jsonckpt._src.rescue.scan import LostTensor
from jsonckpt._src.rescue.verify import VerifyReport, verify
from jsonckpt._src.save.api import save, save_async
from jsonckpt._src.save.background import PendingSave
from jsonckpt._src.save.write import SaveResult
from jsonckpt._src.state.registry import register
from jsonckpt._version import __version__

__all__ = [
    "ArgumentError",
    "Checkpoint",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "DurabilityUncertainError",
    "FormatError",
    "GcReport",
    "IncompleteCheckpointError",
    "IntegrityError",
    "JsonckptError",
    "LimitError",
    "Limits",
    "LoadResult",
    "LostTensor",
    "PendingSave",
    "RecoverReport",
    "SaveCancelledError",
    "SaveResult",
    "StateMismatchError",
    "TensorEntry",
    "UnsafePathError",
    "UnsupportedTypeError",
    "UnsupportedVersionError",
    "VerifyReport",
    "WriteError",
    "__version__",
    "gc",
    "load",
    "load_into",
    "open",
    "recover",
    "register",
    "save",
    "save_async",
    "stream",
    "verify",
]

for _name in __all__:
    # Tracebacks show the name that users import, not the module where the class is defined.
    if isinstance(_error := globals()[_name], type) and issubclass(_error, JsonckptError):
        _error.__module__ = __name__
del _name, _error
