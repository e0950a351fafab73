"""Checkpoints for PyTorch that are plain JSON: readable, exact, fast, small in memory, safe.

>>> import tempfile, torch, jsonckpt
>>> with tempfile.TemporaryDirectory() as directory:
...     result = jsonckpt.save({"w": torch.ones(2), "epoch": 3}, directory + "/checkpoint")
...     jsonckpt.load(directory + "/checkpoint")
{'w': tensor([1., 1.]), 'epoch': 3}
"""

from jsonckpt._version import __version__
from jsonckpt.background import PendingSave
from jsonckpt.checkpoint import Checkpoint, TensorEntry
from jsonckpt.checkpoint import open_checkpoint as open
from jsonckpt.collecting import GcReport, gc
from jsonckpt.errors import (
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
from jsonckpt.inspection import VerifyReport, verify
from jsonckpt.into import LoadResult, load_into
from jsonckpt.limits import Limits
from jsonckpt.loading import load, stream
from jsonckpt.recovery import RecoverReport, recover
from jsonckpt.registry import register
from jsonckpt.salvage import LostTensor
from jsonckpt.saving import SaveResult, save, save_async

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
