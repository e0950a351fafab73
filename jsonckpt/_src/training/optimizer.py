"""An optimizer restored with the dtypes and memory of its own state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import StateMismatchError
from ..load.objects import load_optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict(state_dict)``, but every state tensor keeps its saved dtype.

    torch casts the state to the dtype of the parameters (pytorch/pytorch#43706), which rounds, for
    instance, float32 moments of bfloat16 parameters, and a resumed run then differs. The tensors
    are moved to the parameters' devices; those that are there already are taken over, not copied.

    State goes to parameters by name where both sides have ``param_names`` (optimizers made from
    ``named_parameters()``), else by position. An optimizer that has a ``load_state_dict`` of its
    own, or hooks on it, checks and orders the state itself.

    Raises:
        StateMismatchError: the parameter groups, their names or the shapes differ, or the state is
            of another kind of optimizer, or it has no tensors, or its keys are no longer integers.
            The optimizer is then unchanged. Or the optimizer's own ``load_state_dict`` failed.

    >>> weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    >>> optimizer = torch.optim.SGD([weight], momentum=0.9)
    >>> saved = {"state": {0: {"momentum_buffer": torch.tensor([0.1, 0.2])}},
    ...          "param_groups": optimizer.state_dict()["param_groups"]}
    >>> restore_optimizer(optimizer, saved)
    >>> optimizer.state[weight]["momentum_buffer"]
    tensor([0.1000, 0.2000])
    """
    state, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, Sequence):
        raise StateMismatchError(
            "not the state of an optimizer: expected 'state' and 'param_groups'"
        )
    if state and not any(state.values()):
        raise StateMismatchError(
            "the saved optimizer has no tensors: they were left out when it was loaded",
            hint="Load without exclude=, or go on with a fresh optimizer without restoring it.",
        )
    load_optimizer(optimizer, "", dict(state_dict))
