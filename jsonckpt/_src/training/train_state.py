"""The state of a training run: saved as one, restored in place, all of it or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import torch

from ..errors import ArgumentError, StateMismatchError, listed, quote
from ..format.json_text import is_text
from ..format.pointer import escape, join
from ..load.options import ReadOptions
from ..load.selection import TensorSelection
from ..load_into.api import LoadResult, Settings, fill
from ..load_into.in_memory import fill_from_memory
from ..load_into.names import Prefixes
from ..load_into.plan import Plan
from .parts import GLOBAL_RNG, InnerNames, Part, extra_part, leaves, mapped, part_of, unwrapped
from .ranks import check_ranks, gathered, own_state
from .together import Collector, load_again, load_together

#: Names in the state that are not names of parts.
_OWN: Final = ("accumulation_step", "gradients", "rng", "extra")
_PLAIN: Final = (type(None), bool, int, float, str)


class TrainState:
    """Everything that a training run needs to go on exactly, saved and restored as one.

    Args:
        rng: whether the global random number generators are part of it: Python's, NumPy's, torch's
            on the CPU and on each GPU.
        extra: a dictionary of your own values, such as the epoch and the best score. A restore puts
            the saved values into the same dictionary; keys that the checkpoint lacks stay.
        accumulation_step: how many backward passes were done since the last optimizer step. While
            it is not 0, the gradients are saved, too.
        per_rank: names of parts whose state differs from rank to rank: ``("rng", "loader")``.
            Then each rank calls :meth:`state_dict`, one of them saves the result, and each rank
            restores its own.
        parts: by name: a model, an optimizer, and anything else with ``state_dict`` and
            ``load_state_dict`` (scheduler, scaler, sampler, ``StatefulDataLoader``, metrics), a
            generator of torch, NumPy or Python, or lists and dicts of these.

    Names in models have no ``module.`` of ``DataParallel`` and ``DistributedDataParallel`` and no
    ``_orig_mod.`` of ``torch.compile``: what one run saves loads into a wrapped and a plain model.

    Attributes:
        extra: the dictionary that was given, or an empty one.
        accumulation_step: as above. The training loop sets it.

    Raises:
        ArgumentError: a part has no state, or its name is not possible.

    >>> import tempfile, torch, jsonckpt
    >>> def build():
    ...     model = torch.nn.Linear(2, 1)
    ...     optimizer = torch.optim.AdamW(model.parameters())
    ...     return jsonckpt.TrainState(model=model, optimizer=optimizer, extra={"epoch": 0})
    >>> state = build()
    >>> state.extra["epoch"] = 3
    >>> resumed = build()
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save(state.state_dict(), directory)
    ...     _ = resumed.restore(directory)
    >>> resumed.extra
    {'epoch': 3}
    """

    def __init__(
        self,
        *,
        rng: bool = True,
        extra: dict[str, Any] | None = None,
        accumulation_step: int = 0,
        per_rank: Collection[str] = (),
        **parts: Any,
    ) -> None:
        if not isinstance(rng, bool):
            raise ArgumentError(f"rng must be True or False, not {quote(rng, 60)}")
        if extra is not None and not isinstance(extra, dict):
            kind = quote(type(extra).__name__)
            raise ArgumentError(f"extra must be a dictionary or None, not {kind}")
        if type(accumulation_step) is not int or accumulation_step < 0:
            shown = quote(accumulation_step, 60)
            raise ArgumentError(f"accumulation_step must be an integer from 0, not {shown}")
        self.extra: dict[str, Any] = {} if extra is None else extra
        self.accumulation_step = accumulation_step
        # A part that this run lacks (scaler=None without mixed precision) is no part.
        self._parts = {name: part for name, part in parts.items() if part is not None}
        for name in self._parts:
            if name in _OWN or not is_text(name) or name.startswith("$"):
                raise ArgumentError(f"{quote(name)} cannot be the name of a part")
        found = list(leaves(self._parts))
        optimizers = [part for _, part in found if isinstance(part, torch.optim.Optimizer)]
        self._others: dict[str, Part] = {
            pointer: part_of(part, pointer[1:], optimizers)
            for pointer, part in found
            if not isinstance(part, (torch.nn.Module, torch.optim.Optimizer))
        }
        if extra is not None:
            self._others["/extra"] = extra_part(self.extra)
        if rng:
            self._others["/rng"] = GLOBAL_RNG
        self._per_rank = frozenset([per_rank] if isinstance(per_rank, str) else per_rank)
        for name in sorted(self._per_rank):
            if f"/{name}" not in self._others:
                raise ArgumentError(
                    f"per_rank: {quote(name)} is no part, or a model, an optimizer, a list or dict",
                )

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{pointer[1:]}: {type(part).__name__}" for pointer, part in leaves(self._parts)
        )
        return f"<TrainState: {shown}>"

    def __getitem__(self, name: str) -> Any:
        """A part, as it was given."""
        return self._parts[name]

    def state_dict(self) -> dict[str, Any]:
        """The whole state, nested by the names of the parts.

        It holds the tensors themselves, not copies: save it before the training goes on, or give it
        to :func:`jsonckpt.save_async`, which copies it first.
        """
        state: dict[str, Any] = mapped(self._parts, self._saved)
        state["accumulation_step"] = int(self.accumulation_step)
        if self.accumulation_step:
            state["gradients"] = self._gradients()
        for pointer in ("/extra", "/rng"):
            if pointer in self._others:
                state[pointer[1:]] = self._others[pointer].save()
        return gathered(state, self._per_rank)

    def _saved(self, part: Any, pointer: str) -> Any:
        if isinstance(part, torch.nn.Module):
            return InnerNames(unwrapped(part)).state_dict()
        if isinstance(part, torch.optim.Optimizer):
            return part.state_dict()
        return self._others[pointer].save()

    def load_state_dict(
        self, state: Mapping[str, Any], *, skip: str | Collection[str] = ()
    ) -> None:
        """Put back what :meth:`state_dict` returned, in place.

        Args:
            state: as it was returned, or loaded by :func:`jsonckpt.load`. It is not changed.
            skip: as for :meth:`restore`.

        Raises:
            StateMismatchError: as for :meth:`restore`.
        """
        if not isinstance(state, Mapping):
            raise ArgumentError(f"state must be a dictionary, not {quote(type(state).__name__)}")
        restoring = _Restoring(self, skip)
        fill_from_memory(restoring.target, state, restoring.settings())
        restoring.finish()

    def restore(
        self,
        path: str | os.PathLike[str],
        *,
        skip: str | Collection[str] = (),
        strict: bool = True,
        cast: bool = False,
        strip_prefix: str | Collection[str] | None = None,
        **options: Any,
    ) -> LoadResult:
        """Put back what a checkpoint holds, in place and without a second copy of the tensors.

        Everything is compared with the checkpoint first: the parts, the names and shapes of the
        tensors, the kinds of optimizers. Then each ``load_state_dict`` is called, and taken back if
        one fails. Then the tensors are filled, and last the random number generators.

        Args:
            path: of the checkpoint.
            skip: names of parts that stay as they are, and may be missing on either side.
            strict, cast, strip_prefix: as for :func:`jsonckpt.load_into`.
            options: ``verify``, ``threads``, ``progress``, ``limits``, ``storage_options`` and
                ``expected_digest``, as for :func:`jsonckpt.load`.

        Raises:
            StateMismatchError: what the checkpoint holds does not fit, with all names; or a
                ``load_state_dict`` refused its state. Nothing has been changed.
            JsonckptError: damage was found while tensors were filled. The state is then partly
                overwritten: restore another checkpoint.
        """
        given = Prefixes.of(strip_prefix).given
        restoring = _Restoring(self, skip)
        result = fill(
            restoring.target,
            path,
            TensorSelection.of(),
            restoring.settings(strict=strict, cast=cast, prefixes=given),
            ReadOptions.of(**options),
        )
        restoring.finish()
        return result

    def frozen(self) -> list[str]:
        """The names, as in a checkpoint, of parameters that are not trained.

        These have ``requires_grad=False``: their values do not change from step to step.

        >>> model = torch.nn.Linear(2, 1)
        >>> _ = model.bias.requires_grad_(False)
        >>> TrainState(model=model).frozen()
        ['/model/bias']
        """
        return [name for name, tensor in self._parameters() if not tensor.requires_grad]

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for pointer, part in leaves(self._parts):
            if isinstance(part, torch.nn.Module):
                module = unwrapped(part)
                plain = InnerNames(module).plain
                for name, tensor in module.named_parameters(remove_duplicate=False):
                    yield join(pointer, plain(name)), tensor

    def _gradients(self) -> dict[str, torch.Tensor]:
        seen: set[int] = set()
        found = {}
        for name, tensor in self._parameters():
            if tensor.grad is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[name] = tensor.grad
        return found

    def _put_gradients(self, gradients: Mapping[str, torch.Tensor]) -> None:
        seen: set[int] = set()
        for name, tensor in self._parameters():
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            saved = gradients.get(name)
            tensor.grad = None if saved is None else saved.to(tensor.device)

    def _check_gradients(self, gradients: Any) -> None:
        parameters = dict(self._parameters())
        found = gradients if isinstance(gradients, Mapping) else {}
        wrong = [
            f"/gradients: {quote(name)}"
            for name, saved in found.items()
            if name not in parameters or not _fits(saved, parameters[name])
        ]
        if found is not gradients:
            wrong = [f"/gradients: expected a dictionary, found {quote(type(gradients).__name__)}"]
        if wrong:
            raise StateMismatchError(
                "gradients that no parameter of this run has; nothing has been changed",
                mismatched=wrong,
            )


def _fits(gradient: Any, parameter: torch.Tensor) -> bool:
    """Whether a value may be the gradient of a parameter."""
    dtype = getattr(parameter, "grad_dtype", parameter.dtype)  # None: any
    return (
        isinstance(gradient, torch.Tensor)
        and gradient.shape == parameter.shape
        and (dtype is None or gradient.dtype == dtype)
    )


class _Restoring:
    """One restore in progress.

    Attributes:
        target: for ``load_into``: modules and optimizers are filled in place. The states of all
            other objects are collected.
        skip: names at the top that are left alone.
    """

    def __init__(self, state: TrainState, skip: str | Collection[str]) -> None:
        self.skip = frozenset([skip] if isinstance(skip, str) else skip)
        self._state = state
        self._per_rank = frozenset(f"/{name}" for name in state._per_rank)
        self._collected: dict[str, Collector] = {}
        self._names: dict[int, Callable[[str], str]] = {}
        parts = {name: part for name, part in state._parts.items() if name not in self.skip}
        self.target: dict[str, Any] = mapped(parts, self._target_of)
        own = [pointer for pointer in ("/extra", "/rng") if pointer in state._others]
        for pointer in (*own, "/accumulation_step", "/gradients"):
            if pointer[1:] not in self.skip:
                self.target[pointer[1:]] = self._target_of(None, pointer)

    def _target_of(self, part: Any, pointer: str) -> Any:
        if isinstance(part, torch.nn.Module):
            module = unwrapped(part)
            names = InnerNames(module)
            if names.differ:
                self._names[id(module)] = names.plain
            return module
        if isinstance(part, torch.optim.Optimizer):
            return part
        return self._collected.setdefault(pointer, Collector())

    def settings(
        self, *, strict: bool = True, cast: bool = False, prefixes: tuple[str, ...] = ()
    ) -> Settings:
        """How the target is filled."""
        return Settings(
            strict=strict,
            cast=cast,
            prefixes=prefixes,
            names=self._names,
            ways_out="Pass skip= with the names of parts to leave alone, or strict=False to"
            " restore what fits.",
            check=self._check,
            before_filling=self._load_others,
        )

    def _check_skip(self, value: Any) -> None:
        """Check that each part to skip is there, on one side.

        Raises:
            ArgumentError: one is not.
        """
        there = {*self._state._parts, *_OWN, *(value if isinstance(value, Mapping) else ())}
        for name in sorted(self.skip - there):
            raise ArgumentError(
                f"skip: {quote(name)} is no part of this state or of the saved one",
                hint=f"This state has {listed(sorted(self._state._parts), 8)}.",
            )

    def _check(self, value: Any, plan: Plan) -> None:
        """Compare the parts, also those without tensors."""
        self._check_skip(value)
        for name in ("accumulation_step", "gradients"):
            plan.missing.pop(f"/{name}", None)
        left = self.skip if "/rng" in self._state._others else {*self.skip, "rng"}
        heads = tuple(f"/{escape(name)}/" for name in left)
        for names in (plan.missing, plan.unexpected):
            for name in [name for name in names if f"{name}/".startswith(heads)]:
                del names[name]
        check_ranks(value, self._collected, self._per_rank, plan)
        optional = {*left, "accumulation_step", "gradients"}
        _compare_parts(value, self.target, "", optional, plan)

    def _states(self) -> list[tuple[str, Part, Any]]:
        return [
            (pointer, part, own_state(self._collected[pointer].value, pointer, self._per_rank))
            for pointer, part in self._state._others.items()
            if pointer in self._collected and self._collected[pointer].is_filled
        ]

    def _load_others(self) -> None:
        gradients = self._collected.get("/gradients")
        if gradients is not None and gradients.is_filled:
            self._state._check_gradients(gradients.value)
        step = self._collected.get("/accumulation_step")
        if step is not None and step.is_filled:
            _check_step(step.value)
        load_together(self._states())

    def finish(self) -> None:
        """After the tensors: what depends on them, and the generators last."""
        collected = self._collected
        if "/gradients" in collected:
            saved = collected["/gradients"]
            self._state._put_gradients(saved.value if saved.is_filled else {})
        if "/accumulation_step" in collected:
            step = collected["/accumulation_step"]
            self._state.accumulation_step = step.value if step.is_filled else 0
        load_again(self._states())


def _check_step(value: Any) -> None:
    """Check a saved ``accumulation_step``.

    Raises:
        StateMismatchError: it is none.
    """
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise StateMismatchError(
            "the saved accumulation_step is none; nothing has been changed",
            mismatched=[f"/accumulation_step: {quote(value, 60)}"],
            hint='Pass skip="accumulation_step" to leave it as it is.',
        )


def _compare_parts(
    value: Any, target: Any, pointer: str, optional: Collection[str], plan: Plan
) -> None:
    """Note the parts that only one side has, in place of the tensors in them."""
    if not isinstance(target, dict) or not isinstance(value, Mapping):
        return
    for names, one, other in ((plan.missing, target, value), (plan.unexpected, value, target)):
        for key, item in one.items():
            place = join(pointer, str(key))
            if key in other:
                if names is plan.missing:
                    _compare_parts(other[key], item, place, (), plan)
            elif key in optional or (not pointer and isinstance(item, _PLAIN)):
                continue  # a plain value beside the parts, such as a step
            else:
                for name in [name for name in names if f"{name}/".startswith(f"{place}/")]:
                    del names[name]
                names[place] = None
