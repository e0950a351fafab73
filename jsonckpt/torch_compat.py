"""``save`` and ``load`` with the arguments of ``torch.save`` and ``torch.load``.

>>> import io, torch
>>> from jsonckpt import torch_compat
>>> file = io.BytesIO()
>>> torch_compat.save({"w": torch.ones(2)}, file)
>>> _ = file.seek(0)
>>> torch_compat.load(file, map_location="cpu", weights_only=True)
{'w': tensor([1., 1.])}
"""

from jsonckpt._src.frameworks.torch_calls import load, save

__all__ = ["load", "save"]
