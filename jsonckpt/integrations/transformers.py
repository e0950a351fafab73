"""Checkpoints of plain JSON for the Hugging Face Trainer (extra ``hf``).

- :class:`JsonCheckpointTrainerMixin`: put it before any Trainer
- :class:`JsonTrainer`: the stock Trainer with it
- :func:`get_last_checkpoint`: the newest ``checkpoint-N`` that is whole
- :func:`load_weights`: the weights of a ``checkpoint-N`` into a model
"""

try:
    from jsonckpt._src.frameworks.hf_checkpoint import get_last_checkpoint, load_weights
    from jsonckpt._src.frameworks.hf_trainer import JsonCheckpointTrainerMixin, JsonTrainer
except ModuleNotFoundError as error:
    from jsonckpt._src.frameworks.missing import not_installed

    raise not_installed(error, __name__, "hf") from error

__all__ = ["JsonCheckpointTrainerMixin", "JsonTrainer", "get_last_checkpoint", "load_weights"]
