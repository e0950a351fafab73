"""Checkpoints of plain JSON for the Hugging Face Trainer (extra ``hf``).

- :class:`JsonCheckpointTrainerMixin`: put it before any Trainer
- :class:`JsonTrainer`: the stock Trainer with it
- :func:`get_last_checkpoint`: the newest ``checkpoint-N`` that is whole
- :func:`load_weights`: the weights of a ``checkpoint-N`` into a model
"""

from jsonckpt._src.frameworks.hf_checkpoint import get_last_checkpoint, load_weights
from jsonckpt._src.frameworks.hf_trainer import JsonCheckpointTrainerMixin, JsonTrainer

__all__ = ["JsonCheckpointTrainerMixin", "JsonTrainer", "get_last_checkpoint", "load_weights"]
