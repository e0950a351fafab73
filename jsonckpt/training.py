"""What a training loop must keep to go on, after a stop, exactly as if it had not stopped.

- :func:`checkpoints`, :func:`latest`: the checkpoints of a run in their order, and the newest
- :func:`remove_step`: remove one of them, but not the files that others use
- :func:`rng_state`, :func:`set_rng_state`, :func:`fork_rng`: the random number generators
- :class:`SeededOrder`: a shuffled order of the data, and the place in it
- :class:`ResumableSampler`: a place in the order of torch's own samplers
- :func:`restore_optimizer`: an optimizer's state in the dtypes in which it was saved
- :class:`Deadline`: when to save and stop

A loop resumes exactly if these are saved and put back: weights, optimizer, schedule, gradient
scaler, the random number generators, the place in the data, and the loop's own counters.
:class:`jsonckpt.TrainState` does it for all of them. torch has state dicts for the first four. What
is here is plain Python, NumPy arrays and tensors: put it into the state that :func:`jsonckpt.save`
writes.

Save between optimizer steps: no state dict holds gradients that are still being accumulated.
"""

from jsonckpt._src.sharing.remove_step import Removal, remove_step
from jsonckpt._src.training.checkpoints import checkpoints, latest
from jsonckpt._src.training.deadline import Deadline
from jsonckpt._src.training.optimizer import restore_optimizer
from jsonckpt._src.training.order import SeededOrder
from jsonckpt._src.training.rng import fork_rng, rng_state, set_rng_state
from jsonckpt._src.training.sampler import ResumableSampler

__all__ = [
    "Deadline",
    "Removal",
    "ResumableSampler",
    "SeededOrder",
    "checkpoints",
    "fork_rng",
    "latest",
    "remove_step",
    "restore_optimizer",
    "rng_state",
    "set_rng_state",
]
