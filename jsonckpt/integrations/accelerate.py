"""Checkpoints of plain JSON for Hugging Face Accelerate (extra ``accelerate``).

- :func:`save_state`, :func:`load_state`: everything that an ``Accelerator`` prepared
- :func:`restore_rng`: the random states once more, after ``skip_first_batches``
- :class:`JsonAccelerator`: an ``Accelerator`` with both as its methods
- :func:`register_hooks`: the models only, below ``Accelerator.save_state``
"""

try:
    from jsonckpt._src.frameworks.accelerate_state import (
        JsonAccelerator,
        load_state,
        register_hooks,
        restore_rng,
        save_state,
    )
except ModuleNotFoundError as error:
    from jsonckpt._src.frameworks.missing import not_installed

    raise not_installed(error, __name__, "accelerate") from error

__all__ = ["JsonAccelerator", "load_state", "register_hooks", "restore_rng", "save_state"]
