"""Checkpoints of plain JSON for PyTorch-Ignite (extra ``ignite``).

- :class:`JsonSaver`: ``Checkpoint(to_save, JsonSaver("run"), …)``
- :func:`load_objects`: ``Checkpoint.load_objects`` from such a checkpoint
"""

try:
    from jsonckpt._src.frameworks.ignite_saver import JsonSaver, load_objects
except ModuleNotFoundError as error:
    from jsonckpt._src.frameworks.missing import not_installed

    raise not_installed(error, __name__, "ignite") from error

__all__ = ["JsonSaver", "load_objects"]
