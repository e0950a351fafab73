"""Checkpoints of plain JSON for Lightning (extra ``lightning``).

- :class:`JsonCheckpointIO`: ``Trainer(plugins=[JsonCheckpointIO()])``
- :class:`AsyncJsonCheckpointIO`: the same, written in the background
- :func:`load_from_checkpoint`: a module from such a checkpoint
- :class:`ExactResume`: the callback that keeps random numbers

Both packages will do: ``lightning``, or ``pytorch_lightning`` where that is imported first.
"""

try:
    from jsonckpt._src.frameworks.lightning_io import AsyncJsonCheckpointIO, JsonCheckpointIO
    from jsonckpt._src.frameworks.lightning_load import load_from_checkpoint
    from jsonckpt._src.frameworks.lightning_resume import ExactResume
except ModuleNotFoundError as error:
    from jsonckpt._src.frameworks.missing import not_installed

    raise not_installed(error, __name__, "lightning") from error

__all__ = ["AsyncJsonCheckpointIO", "ExactResume", "JsonCheckpointIO", "load_from_checkpoint"]
