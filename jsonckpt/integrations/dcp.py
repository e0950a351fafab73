"""JSON checkpoints for ``torch.distributed.checkpoint``: FSDP, tensor parallelism, any rank count.

>>> import tempfile, torch
>>> from jsonckpt.integrations import dcp
>>> state = {"w": torch.ones(2), "step": 3}
>>> with tempfile.TemporaryDirectory() as directory:
...     dcp.save(state, directory + "/step-3")
...     target = {"w": torch.zeros(2), "step": 0}
...     dcp.load(target, directory + "/step-3")
...     target
{'w': tensor([1., 1.]), 'step': 3}
"""

from torch import distributed

if not distributed.is_available():
    raise ImportError("this build of torch has no torch.distributed: install another one")

from jsonckpt._src.distributed.api import async_save, load, save
from jsonckpt._src.distributed.planners import JsonLoadPlanner, JsonSavePlanner
from jsonckpt._src.distributed.reader import JsonStorageReader
from jsonckpt._src.distributed.writer import JsonStorageWriter

__all__ = [
    "JsonLoadPlanner",
    "JsonSavePlanner",
    "JsonStorageReader",
    "JsonStorageWriter",
    "async_save",
    "load",
    "save",
]
