"""Checkpoints for PyTorch that are plain JSON: readable, exact, fast, small in memory, safe.

>>> import tempfile, torch, jsonckpt
>>> with tempfile.TemporaryDirectory() as directory:
...     result = jsonckpt.save({"w": torch.ones(2), "epoch": 3}, directory + "/checkpoint")
...     jsonckpt.load(directory + "/checkpoint")
{'w': tensor([1., 1.]), 'epoch': 3}
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

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
from jsonckpt._version import __version__

if TYPE_CHECKING:
    from jsonckpt import edit as edit
    from jsonckpt import training as training
    from jsonckpt._src.diff.api import diff
    from jsonckpt._src.diff.facts import Diff
    from jsonckpt._src.find.api import FoundCheckpoints, find
    from jsonckpt._src.find.look import FoundCheckpoint
    from jsonckpt._src.format.limits import Limits
    from jsonckpt._src.inspect.api import inspect
    from jsonckpt._src.inspect.facts import Inspection
    from jsonckpt._src.load.api import load, stream
    from jsonckpt._src.load.checkpoint import Checkpoint, TensorEntry
    from jsonckpt._src.load.checkpoint import open_checkpoint as open
    from jsonckpt._src.load_into.api import LoadResult, load_into
    from jsonckpt._src.manager.api import CheckpointManager
    from jsonckpt._src.manager.saved_step import SavedStep
    from jsonckpt._src.report.api import Report, report
    from jsonckpt._src.rescue.gc import GcReport, gc
    from jsonckpt._src.rescue.recover import RecoverReport, recover
    from jsonckpt._src.rescue.scan import LostTensor
    from jsonckpt._src.rescue.verify import VerifyReport, verify
    from jsonckpt._src.save.api import save, save_async
    from jsonckpt._src.save.background import PendingSave
    from jsonckpt._src.save.write import SaveResult
    from jsonckpt._src.standalone.export import export_reader
    from jsonckpt._src.state.registry import register
    from jsonckpt._src.training.train_state import TrainState
    from jsonckpt.convert import convert as convert

__all__ = [
    "ArgumentError",
    "Checkpoint",
    "CheckpointExistsError",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "Diff",
    "DurabilityUncertainError",
    "FormatError",
    "FoundCheckpoint",
    "FoundCheckpoints",
    "GcReport",
    "IncompleteCheckpointError",
    "Inspection",
    "IntegrityError",
    "JsonckptError",
    "LimitError",
    "Limits",
    "LoadResult",
    "LostTensor",
    "PendingSave",
    "RecoverReport",
    "Report",
    "SaveCancelledError",
    "SaveResult",
    "SavedStep",
    "StateMismatchError",
    "TensorEntry",
    "TrainState",
    "UnsafePathError",
    "UnsupportedTypeError",
    "UnsupportedVersionError",
    "VerifyReport",
    "WriteError",
    "__version__",
    "diff",
    "export_reader",
    "find",
    "gc",
    "inspect",
    "load",
    "load_into",
    "open",
    "recover",
    "register",
    "report",
    "save",
    "save_async",
    "stream",
    "verify",
]

#: Where each name is that is imported when it is first used: its module below ``_src``, and its
#: name there. Listing a checkpoint needs no torch, which takes seconds to import.
_TENSORS = {
    "Checkpoint": ("load.checkpoint", "Checkpoint"),
    "GcReport": ("rescue.gc", "GcReport"),
    "Limits": ("format.limits", "Limits"),
    "LoadResult": ("load_into.api", "LoadResult"),
    "LostTensor": ("rescue.scan", "LostTensor"),
    "PendingSave": ("save.background", "PendingSave"),
    "RecoverReport": ("rescue.recover", "RecoverReport"),
    "SaveResult": ("save.write", "SaveResult"),
    "TensorEntry": ("load.checkpoint", "TensorEntry"),
    "TrainState": ("training.train_state", "TrainState"),
    "VerifyReport": ("rescue.verify", "VerifyReport"),
    "gc": ("rescue.gc", "gc"),
    "load": ("load.api", "load"),
    "load_into": ("load_into.api", "load_into"),
    "open": ("load.checkpoint", "open_checkpoint"),
    "recover": ("rescue.recover", "recover"),
    "register": ("state.registry", "register"),
    "save": ("save.api", "save"),
    "save_async": ("save.api", "save_async"),
    "stream": ("load.api", "stream"),
    "verify": ("rescue.verify", "verify"),
}
#: The names that look into checkpoints. A training run seldom needs them.
_LOOKING = {
    "Diff": ("diff.facts", "Diff"),
    "FoundCheckpoint": ("find.look", "FoundCheckpoint"),
    "FoundCheckpoints": ("find.api", "FoundCheckpoints"),
    "Inspection": ("inspect.facts", "Inspection"),
    "Report": ("report.api", "Report"),
    "diff": ("diff.api", "diff"),
    "export_reader": ("standalone.export", "export_reader"),
    "find": ("find.api", "find"),
    "inspect": ("inspect.api", "inspect"),
    "report": ("report.api", "report"),
}
#: What a run needs beside them: it can wait for that, too.
_RUN = {
    "CheckpointManager": ("manager.api", "CheckpointManager"),
    "SavedStep": ("manager.saved_step", "SavedStep"),
}
_LAZY = _TENSORS | _LOOKING | _RUN


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, original = _LAZY[name]
        value = getattr(importlib.import_module(f"jsonckpt._src.{module}"), original)
    elif name in {"convert", "edit", "training"}:
        value = importlib.import_module(f"jsonckpt.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # What a notebook completes: the names of Python, and of modules used here, are left out.
    return sorted({*__all__, "convert", "edit", "training"})


for _name in __all__:
    # Tracebacks show the name that users import, not the module where the class is defined.
    if isinstance(_error := globals().get(_name), type) and issubclass(_error, JsonckptError):
        _error.__module__ = __name__
if "torch" in sys.modules:  # nothing is gained by waiting: the first call need not pay
    for _name in _TENSORS:
        __getattr__(_name)
del _name, _error
