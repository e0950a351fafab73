"""What a training loop must keep to go on, after a stop, exactly as if it had not stopped.

A loop resumes exactly when these are saved and put back: weights, optimizer, schedule, gradient
scaler, the random number generators, the place in the data, and its own counters. torch gives state
dicts for the first four; this room has the rest. All of it is plain Python, NumPy arrays and
tensors: put it into the state that :func:`jsonckpt.save` writes.

Save only between optimizer steps: gradients that are still being accumulated are in no state dict.
"""

from jsonckpt._src.training.checkpoints import checkpoints, latest
from jsonckpt._src.training.deadline import Deadline
from jsonckpt._src.training.optimizer import restore_optimizer
from jsonckpt._src.training.order import SeededOrder
from jsonckpt._src.training.rng import fork_rng, rng_state, set_rng_state

__all__ = [
    "Deadline",
    "SeededOrder",
    "checkpoints",
    "fork_rng",
    "latest",
    "restore_optimizer",
    "rng_state",
    "set_rng_state",
]
