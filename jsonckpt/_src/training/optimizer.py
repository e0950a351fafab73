"""Restores an optimizer without rounding its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import ArgumentError, StateMismatchError, quote
from ..load_into.pairing import load_optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict(state_dict)``, but every state tensor keeps its saved dtype.

    torch casts the state to the dtype of the parameters (pytorch/pytorch#43706). That rounds, for
    example, float32 moments of bfloat16 parameters, and the resumed run differs. Here tensors are
    only moved to the parameters' devices. Tensors that are already there are used without a copy.

    State goes to parameters by name if both sides have ``param_names`` (optimizers made from
    ``named_parameters()``), else by position. An optimizer that has its own ``load_state_dict``, or
    hooks on it, checks and orders the state itself.

    Raises:
        ArgumentError: an argument is of another type.
        StateMismatchError: the parameter groups, their names or the shapes differ; the state is
            that of another kind of optimizer; it has no tensors; or its keys are not integers. The
            optimizer is unchanged. Also if the optimizer's own ``load_state_dict`` fails.

    >>> weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    >>> optimizer = torch.optim.SGD([weight], momentum=0.9)
    >>> saved = {"state": {0: {"momentum_buffer": torch.tensor([0.1, 0.2])}},
    ...          "param_groups": optimizer.state_dict()["param_groups"]}
    >>> restore_optimizer(optimizer, saved)
    >>> optimizer.state[weight]["momentum_buffer"]
    tensor([0.1000, 0.2000])
    """
    kinds = f"{quote(type(optimizer).__name__)} and {quote(type(state_dict).__name__)}"
    if not (hasattr(optimizer, "load_state_dict") and isinstance(state_dict, Mapping)):
        raise ArgumentError(
            f"expected an optimizer and the dictionary of its state_dict(), found {kinds}",
            hint="The order is restore_optimizer(optimizer, state_dict).",
        )
    state, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, Sequence):
        raise StateMismatchError(
            "not the state of an optimizer: expected 'state' and 'param_groups'"
        )
    if state and not any(state.values()):
        raise StateMismatchError(
            "the saved optimizer has no tensors: they were left out when it was loaded",
            hint="Load without exclude=, or continue with a fresh optimizer without restoring it.",
        )
    load_optimizer(optimizer, "", dict(state_dict))
