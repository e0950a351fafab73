"""Says which tensors of a state belong to models. The structure around a tensor decides.

A model is a dictionary of tensors with the names of parameters: below a key such as ``state_dict``
or ``ema``, or the whole state. A lone tensor below such a key is none. What is not certain is
called so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

import numpy as np
import torch


class Place(Enum):
    """What is known of a container."""

    ROOT = auto()
    #: Nothing is known.
    OTHER = auto()
    #: A key above it names a model.
    NAMED = auto()
    #: A state dict of a model.
    MODEL = auto()
    #: A dictionary of which only the tensors with names of parameters are of a model.
    MIXED = auto()
    #: The state of an optimizer, a scheduler, a scaler or a random generator.
    TRAINING = auto()


class Role(Enum):
    """What a tensor is. The value says it in a note."""

    MODEL = "of models"
    TRAINING = "of the training state (optimizers, schedulers, scalers, random numbers)"
    NUMBER = "that are numbers beside the weights (decays, scores, histories)"
    QUANTIZATION = "that describe a quantization"
    UNKNOWN = "that may not be of a model (pass --dtype-of NAME to change them)"


_OPTIMIZER = r"(?:.*_)?(?:optim|optimizer|optimizers)(?:_.*|\d*)?"
#: ``opt_model`` is a model: OPT is one.
_SHORT = r"(?:.*_)?opt(?:_(?:state|states|state_dict|params?|sd|[gd]|param_scheduler))?\d*"
OPTIMIZER = re.compile(f"{_OPTIMIZER}|{_SHORT}")
_FLAT_OPTIMIZER = re.compile(rf"{_OPTIMIZER}\..*")
_TRAINING = re.compile(
    rf"{_OPTIMIZER}|{_SHORT}|(?:.*_)?(?:sched|scheduler|schedulers|scaler|amp|rng)(?:_.*|\d*)?"
    r"|random_state|rng.*|(?:.*_)?(?:exp_avgs?|exp_avg_sqs?|momentum|momentum_buffer|moments?"
    r"|grads?|gradients?)"
)
_MODEL = re.compile(
    r"(?:.*_)?(?:models?|modules?|state_dicts?|weights?|params?|parameters|ema|emas|shadow"
    r"|generator|discriminator|nets?|network|swa)(?:_.*|\d*)?"
)
#: Numbers that programs keep beside weights. In a state dict these are last parts of names.
_NUMBERS = re.compile(
    r"(?:best|last|kth|top)_.*_?(?:score|loss|acc|accuracy|metric|value|step|epoch|fitness)s?"
    r"|(?:.*_)?(?:loss|losses|acc|accs|accuracy|metrics?|scores?|hist|history|histories|decay"
    r"|momentum|lr|lrs|epochs?|iter|iters|iterations?|steps?|num_updates|updates|n_averaged"
    r"|num_batches_tracked|fitness|perplexity|ppl|bleu|auc|f1|psnr|ssim|fid|patience|best)"
)
_PARAMETER = re.compile(
    r"(?:.*_)?(?:weight|bias|kernel|embedding|embeddings|embed|flat_param)(?:_.*|\d*)?"
    r"|[wb]\d*|gamma|beta|running_(?:mean|var)|num_batches_tracked|lora_[AB]|(?:.*_)?token|in_proj.*"
)
_MOMENTS = re.compile(r"(?:max_)?exp_avg(?:_sq)?(?:_.*)?|momentum_buffer|square_avg|acc_delta")
_QUANTIZATION = re.compile(
    r"min_vals?|max_vals?|(?:nested_)?(?:absmax|quant_map)|SCB|(?:.*_)?(?:weight|input)_scale.*"
)
_PAIRS = {"scale": "zero_point", "zero_point": "scale", "scales": "qzeros", "eps": "min_val"}


def is_optimizer(value: object) -> bool:
    """True if this has the form of an optimizer's ``state_dict()``."""
    return isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()


def place_of(child: Any, key: object, parent: Any, place: Place) -> Place:
    """What is known of a container that is the child of another.

    Args:
        child: the container.
        key: its key or index in ``parent``.
        place: that of ``parent``.
    """
    if place is Place.TRAINING or is_optimizer(child):
        return Place.TRAINING
    named = place in (Place.NAMED, Place.MODEL)
    if isinstance(parent, Mapping):
        text = str(key).lower()
        if text.endswith("_extra_state") or (place is not Place.MODEL and _is_training(text)):
            return Place.TRAINING
        if _NUMBERS.fullmatch(text):
            return Place.OTHER
        named = named or _MODEL.fullmatch(text) is not None
    return _entered(child, Place.NAMED if named else Place.OTHER)


def place_of_root(state: Any) -> Place:
    """What is known of a whole state.

    >>> place_of_root({"fc.weight": torch.ones(2), "epoch": 3})
    <Place.MIXED: 5>
    """
    return Place.TRAINING if is_optimizer(state) else _entered(state, Place.ROOT)


def _is_training(text: str) -> bool:
    return _TRAINING.fullmatch(text) is not None


def _entered(value: Any, outside: Place) -> Place:
    """The place of a container, from what it holds and what is known ``outside`` of it."""
    trusted = outside is not Place.OTHER
    if isinstance(value, list | tuple):
        tensors = [item for item in value if isinstance(item, torch.Tensor)]
        whole = trusted and len(tensors) == len(value) and any(map(_is_wide, tensors))
        return Place.MODEL if whole else outside
    if not isinstance(value, Mapping):
        return outside
    found = {key: item for key, item in value.items() if isinstance(item, torch.Tensor)}
    if found and hasattr(value, "_metadata"):  # torch's modules set it
        return Place.MODEL
    wide = [key for key, item in found.items() if _is_wide(item) and not is_number(key)]
    parameters = sum(map(is_parameter_name, wide))
    whole = len(found) == len(value) or outside is Place.NAMED
    if wide and whole and (trusted or 2 * parameters >= len(wide)):
        return Place.MODEL
    return Place.MIXED if parameters else outside


def _is_wide(tensor: torch.Tensor) -> bool:
    """Whether a tensor has dimensions. Lazy and nested tensors are no plain numbers either."""
    return type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.dim() > 0


def _last(key: object) -> str:
    return str(key).rpartition(".")[2]


def is_parameter_name(key: object) -> bool:
    """Whether a key looks like the name of a parameter or a buffer of a module.

    >>> [is_parameter_name(key) for key in ("conv1.weight", "bias", "best_loss", 0)]
    [True, True, False, False]
    """
    return isinstance(key, str) and _PARAMETER.fullmatch(_last(key)) is not None


def is_number(key: object) -> bool:
    """Whether a key looks like that of a number beside the weights.

    >>> [is_number(key) for key in ("ema_decay", "val_losses", "model_ema.decay", "fc.weight")]
    [True, True, True, False]
    """
    return isinstance(key, str) and _NUMBERS.fullmatch(_last(key).lower()) is not None


def role_of(tensor: torch.Tensor, key: object, parent: Any, place: Place) -> Role:
    """What a tensor is.

    Args:
        key: its key or index in ``parent``.
        place: that of ``parent``.
    """
    if place is Place.TRAINING:
        return Role.TRAINING
    if not isinstance(parent, Mapping):
        return Role.MODEL if place is Place.MODEL else _outside(tensor)
    text = str(key)
    if _MOMENTS.fullmatch(_last(text)) or _FLAT_OPTIMIZER.fullmatch(text.lower()):
        return Role.TRAINING
    if place is Place.MODEL or (place is Place.MIXED and is_parameter_name(key)):
        if text.endswith("_extra_state") or (
            is_number(key) and ("." not in text or not _is_wide(tensor))
        ):
            return Role.NUMBER
        if _quantizes(text, parent):
            return Role.QUANTIZATION
        # A lone tensor that is called ``ema`` is no state dict.
        lone = _MODEL.fullmatch(text.lower()) and not is_parameter_name(key)
        return Role.UNKNOWN if lone else Role.MODEL
    if _is_training(text.lower()):
        return Role.TRAINING
    return Role.NUMBER if is_number(key) else _outside(tensor)


def _outside(tensor: torch.Tensor) -> Role:
    return Role.UNKNOWN if _is_wide(tensor) else Role.NUMBER


def _quantizes(name: str, parent: Mapping[Any, Any]) -> bool:
    """Whether this is the range or the scale of a quantization: a name, or a pair, says so."""
    prefix, dot, last = name.rpartition(".")
    other = _PAIRS.get(last)
    pair = other is not None and f"{prefix}{dot}{other}" in parent
    return pair or _QUANTIZATION.fullmatch(last) is not None


def holds_tensors(value: Any) -> bool:
    """Whether a container holds a tensor, a NumPy array or the state of an optimizer."""
    if isinstance(value, torch.Tensor | np.ndarray) or is_optimizer(value):
        return True
    items = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, Mapping | list | tuple) and any(map(holds_tensors, items))
