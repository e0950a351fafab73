"""``save_state`` and ``load_state`` of Accelerate as one checkpoint of plain JSON."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from ..errors import (
    ArgumentError,
    CheckpointNotFoundError,
    FormatError,
    StateMismatchError,
    counted,
    quote,
)
from ..format.limits import Limits
from ..load.api import load
from ..load_into.api import load_into
from ..save.api import save
from ..storage.os_errors import writing
from ..storage.path_arguments import path_text
from ..training.checkpoints import latest
from ..training.optimizer import restore_optimizer
from ..training.rng import rng_state, set_rng_state
from .accelerate_loaders import draw_order_later, loader_state, restore_loader
from .ranks import gather_values, together
from .save_options import check_options

#: The subdirectory of the directory that a script names.
SUBDIRECTORY = "jsonckpt"
#: Ways of training whose models are whole on each rank.
_WHOLE = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_MUSA")


def save_state(
    accelerator: Any,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    extra: Mapping[str, Any] | None = None,
    **options: Any,
) -> str:
    """``accelerator.save_state(output_dir)`` as one JSON checkpoint, without a pickle.

    It is ``output_dir/jsonckpt``: models, optimizers, schedulers, gradient scaler, the place in
    each data loader, registered objects and the random states of all ranks. It is committed in one
    step; other files in ``output_dir`` are left alone. All ranks call it, and the main one writes.

    Hooks of ``register_save_state_pre_hook`` are called as Accelerate calls them. With
    ``automatic_checkpoint_naming`` the directory is ``checkpoints/checkpoint_N``. Old ones
    (``total_limit``) are removed when the new one is whole, and only if they have a ``jsonckpt``.

    Args:
        accelerator: the ``Accelerator`` that prepared everything.
        output_dir: a directory; not used with ``automatic_checkpoint_naming``.
        extra: your own values, such as ``{"epoch": 3}``. :func:`load_state` returns them.
        options: keyword arguments of :func:`jsonckpt.save`, such as ``compression="zstd"``.

    Returns:
        the directory.

    Raises:
        ArgumentError: no directory is given, or a way of training whose state is spread over ranks
            (FSDP, DeepSpeed, Megatron-LM).
        JsonckptError: as for :func:`jsonckpt.save`, on all ranks.
    """
    _refuse_sharded(accelerator)
    check_options(options, "save_state")
    directory = _directory_to_save(accelerator, output_dir)
    if not accelerator.sync_gradients:
        warnings.warn(
            "gradients are being accumulated, and no checkpoint holds them: save when "
            "accelerator.sync_gradients is true",
            RuntimeWarning,
            stacklevel=2,
        )
    models = list(accelerator._models)
    weights = [_plain(accelerator, model).state_dict() for model in models]
    with together(accelerator):
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        for hook in accelerator._save_model_state_pre_hook.values():
            hook(models, weights, str(directory))
    own = {
        "rng": rng_state(),
        "loaders": [loader_state(accelerator, one) for one in accelerator._dataloaders],
    }
    state = {
        "models": weights,
        "optimizers": [_optimizer(one).state_dict() for one in accelerator._optimizers],
        "schedulers": [one.state_dict() for one in accelerator._schedulers],
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "custom_objects": [one.state_dict() for one in accelerator._custom_objects],
        "ranks": gather_values(accelerator, own),
        "accumulation_step": accelerator.step,
        "iteration": accelerator.save_iteration,
        "extra": dict(extra or {}),
    }
    project = accelerator.project_configuration
    writes = accelerator.is_main_process or (
        project.save_on_each_node and accelerator.is_local_main_process
    )
    with together(accelerator):
        if writes:
            save(state, directory / SUBDIRECTORY, **options)
        if writes and project.automatic_checkpoint_naming and project.total_limit is not None:
            _remove_old(directory.parent, project.total_limit)
    project.iteration += 1
    return str(directory)


def load_state(
    accelerator: Any,
    input_dir: str | os.PathLike[str] | None = None,
    *,
    strict: bool = True,
    limits: Limits | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """``accelerator.load_state(input_dir)`` of what :func:`save_state` wrote. All ranks call it.

    Models are filled in place. Optimizer state keeps its saved dtype. A data loader of
    ``use_stateful_dataloader`` goes on where it was, and the random states are put back when it has
    given its first batch, because starting it draws random numbers. With ``skip_first_batches``
    call :func:`restore_rng` after the first batch yourself.

    Args:
        input_dir: the directory that was given to :func:`save_state`. ``None`` takes the newest
            whole one of ``automatic_checkpoint_naming``; it warns of one that is not whole.
        strict, limits, threads: as for :func:`jsonckpt.load_into`.

    Returns:
        the ``extra`` that was saved.

    Raises:
        StateMismatchError: the checkpoint has another number of models, optimizers, …, or their
            tensors differ. If the numbers or the models differ, nothing has been changed.
        FormatError: it is no checkpoint of :func:`save_state`.
        JsonckptError: there is no checkpoint, or it is damaged.
    """
    _refuse_sharded(accelerator)
    directory = _directory_to_load(accelerator, input_dir)
    device = accelerator.device

    def to_device(storage: Any, location: str) -> Any:
        return storage if location == "cpu" else storage.to(device)

    state = load(
        directory / SUBDIRECTORY,
        to_device,
        include=lambda name: not name.startswith("/models/"),
        limits=limits,
        threads=threads,
    )
    _check_members(state, directory)
    models = list(accelerator._models)
    for hook in accelerator._load_model_state_pre_hook.values():
        hook(models, str(directory))
    _check_counts(accelerator, models, state, directory)
    if models:
        load_into(
            {"models": [_plain(accelerator, model) for model in models]},
            directory / SUBDIRECTORY,
            strict=strict,
            include=lambda name: name.startswith("/models/"),
            limits=limits,
            threads=threads,
        )
    for optimizer, saved in zip(accelerator._optimizers, state["optimizers"]):
        restore_optimizer(_optimizer(optimizer), saved)
    parts = [
        *zip(accelerator._schedulers, state["schedulers"]),
        *zip(accelerator._custom_objects, state["custom_objects"]),
    ]
    if accelerator.scaler is not None:
        parts.append((accelerator.scaler, state["scaler"]))
    for part, saved in parts:
        _load_part(part, saved, directory)
    accelerator.step = state["accumulation_step"]
    if accelerator.project_configuration.automatic_checkpoint_naming:
        accelerator.project_configuration.iteration = state["iteration"] + 1
    _restore_rank(accelerator, state["ranks"], directory)
    extra: dict[str, Any] = state["extra"]
    return extra


def restore_rng(accelerator: Any, input_dir: str | os.PathLike[str]) -> None:
    """Put the random states of this rank back once more.

    :func:`load_state` has done it. But the first batch of a data loader draws random numbers: a
    loop that goes on in the middle of an epoch with ``skip_first_batches`` calls this after it.
    """
    directory = Path(input_dir)
    state = load(directory / SUBDIRECTORY, include=lambda name: name.startswith("/ranks/"))
    _set_rng(accelerator, state["ranks"], directory)


def register_hooks(accelerator: Any, **options: Any) -> list[Any]:
    """Let ``accelerator.save_state`` and ``load_state`` write and read the models as JSON.

    The models are in ``jsonckpt/`` of the directory. Accelerate pickles all else: optimizers,
    schedulers, random states. :func:`save_state` writes everything as JSON.

    Args:
        options: keyword arguments of :func:`jsonckpt.save`.

    Returns:
        the handles of both hooks, with ``remove()``.
    """
    _refuse_sharded(accelerator)
    check_options(options, "register_hooks")

    def save_models(models: list[Any], weights: list[Any], output_dir: str) -> None:
        state = {"models": [_plain(accelerator, model).state_dict() for model in models]}
        with together(accelerator):
            if accelerator.is_main_process:
                save(state, Path(output_dir) / SUBDIRECTORY, **options)
        weights.clear()

    def load_models(models: list[Any], input_dir: str) -> None:
        place = Path(input_dir) / SUBDIRECTORY
        load_into({"models": [_plain(accelerator, model) for model in models]}, place)
        models.clear()

    return [
        accelerator.register_save_state_pre_hook(save_models),
        accelerator.register_load_state_pre_hook(load_models),
    ]


class JsonAccelerator(Accelerator):
    """An ``Accelerator`` whose ``save_state`` and ``load_state`` are those of this module.

    Also the first epoch of a stateful data loader with workers can be resumed exactly.
    """

    def prepare_data_loader(self, *arguments: Any, **named: Any) -> Any:
        """As in ``Accelerator``; the order of the first epoch is that of its seed."""
        return draw_order_later(super().prepare_data_loader(*arguments, **named))

    def save_state(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        safe_serialization: bool = True,
        **options: Any,
    ) -> str:
        """:func:`save_state`; ``safe_serialization`` has no meaning here."""
        del safe_serialization
        return save_state(self, output_dir, **options)

    def load_state(
        self,
        input_dir: str | os.PathLike[str] | None = None,
        load_kwargs: None = None,
        map_location: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """:func:`load_state`; state goes to the device of its parameters."""
        if load_kwargs:
            raise ArgumentError("load_kwargs are arguments of torch.load, which is not called")
        if map_location not in (None, "cpu", "on_device"):
            raise ArgumentError("map_location must be None, 'cpu' or 'on_device'")
        return load_state(self, input_dir, **options)


def _plain(accelerator: Any, model: Any) -> Any:
    """A model without the wrappers of DDP and torch.compile."""
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def _optimizer(wrapper: Any) -> Any:
    return getattr(wrapper, "optimizer", wrapper)


def _refuse_sharded(accelerator: Any) -> None:
    kind = accelerator.distributed_type
    if kind not in [getattr(DistributedType, name, None) for name in _WHOLE]:
        raise ArgumentError(
            f"{getattr(kind, 'value', kind)} spreads the state over ranks: this does not save it",
            hint="Use accelerator.save_state, or jsonckpt.integrations.dcp.",
        )


def _directory_to_save(accelerator: Any, given: str | os.PathLike[str] | None) -> Path:
    project = accelerator.project_configuration
    if not project.automatic_checkpoint_naming:
        if given is None:
            raise ArgumentError("output_dir is missing, and automatic_checkpoint_naming is off")
        return Path(path_text(given, "output_dir")).expanduser()
    directory = _automatic(accelerator) / f"checkpoint_{accelerator.save_iteration}"
    if (directory / SUBDIRECTORY / "manifest.json").exists():
        raise ArgumentError(
            f"{directory} exists already",
            hint="Load it first, or set accelerator.project_configuration.iteration.",
        )
    accelerator.wait_for_everyone()
    return directory


def _directory_to_load(accelerator: Any, given: str | os.PathLike[str] | None) -> Path:
    if given is not None:
        return Path(path_text(given, "input_dir")).expanduser()
    if not accelerator.project_configuration.automatic_checkpoint_naming:
        raise ArgumentError("input_dir is missing, and automatic_checkpoint_naming is off")
    folder = _automatic(accelerator)
    found = latest(folder, f"checkpoint_*/{SUBDIRECTORY}")
    if found is None:
        raise CheckpointNotFoundError("no whole checkpoint is in it", file=folder)
    return Path(found).parent


def _automatic(accelerator: Any) -> Path:
    return Path(accelerator.project_dir) / "checkpoints"


def _remove_old(folder: Path, most: int) -> None:
    """Remove the oldest checkpoints of automatic names, those with a JSON state only."""
    found = {
        name: int(match[1])
        for name in os.listdir(folder)
        if (match := re.fullmatch(r"checkpoint_(\d{1,18})", name))
        and (folder / name / SUBDIRECTORY).is_dir()
        and not (folder / name).is_symlink()  # what it leads to is somebody's
    }
    names = sorted(found, key=found.__getitem__)
    for name in names[: len(names) - max(most, 1)]:
        with writing(folder / name):
            shutil.rmtree(folder / name)


#: What :func:`save_state` writes.
_MEMBERS: Any = {
    "models": list, "optimizers": list, "schedulers": list, "scaler": (dict, NoneType),
    "custom_objects": list, "ranks": list, "accumulation_step": int, "iteration": int,
    "extra": dict,
}  # fmt: skip
_ABSENT = object()
_OF_RANK: Any = {"rng": dict, "loaders": list}
_OF_LOADER: Any = {
    "epoch": int, "place": (dict, NoneType), "inside_epoch": bool,
    "generator": (torch.Tensor, NoneType), "seed": (int, NoneType),
}  # fmt: skip


def _check_members(state: Any, directory: Path) -> None:
    """Check that a checkpoint is one of :func:`save_state`.

    Raises:
        FormatError: it is another one.
    """

    def faults(value: Any, members: Any, place: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{place or 'the state'} is no object"
            return
        for name, kinds in members.items():
            found = value.get(name, _ABSENT)
            if not isinstance(found, kinds) or (kinds is int and (found is True or found < 0)):
                kind = "missing" if found is _ABSENT else quote(type(found).__name__)
                yield f"{place}/{name} is {kind}"

    found = list(faults(state, _MEMBERS, ""))
    if not found and not state["ranks"]:
        found = ["/ranks is empty"]
    for number, rank in enumerate([] if found else state["ranks"]):
        found += faults(rank, _OF_RANK, f"/ranks/{number}")
        for at, loader in enumerate([] if found else rank["loaders"]):
            found += faults(loader, _OF_LOADER, f"/ranks/{number}/loaders/{at}")
    if found:
        raise FormatError(
            f"not a checkpoint of save_state: {'; '.join(found[:3])}",
            file=directory / SUBDIRECTORY,
            hint="jsonckpt.load reads other checkpoints.",
        )


def _load_part(part: Any, saved: Any, directory: Path) -> None:
    try:
        part.load_state_dict(saved)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise StateMismatchError(
            "the state was refused; it is restored in part",
            mismatched=[f"{type(part).__name__}: {type(e).__name__}: {quote(e, 200)}"],
            file=directory,
        ) from e


def _check_counts(
    accelerator: Any, models: list[Any], state: Mapping[str, Any], directory: Path
) -> None:
    """Check that the checkpoint has as many of each part as the accelerator prepared.

    Raises:
        StateMismatchError: with all differences.
    """

    def differences() -> Iterator[str]:
        for part, here, saved in (
            ("model", models, state["models"]),
            ("optimizer", accelerator._optimizers, state["optimizers"]),
            ("scheduler", accelerator._schedulers, state["schedulers"]),
            ("data loader", accelerator._dataloaders, state["ranks"][0]["loaders"]),
            ("registered object", accelerator._custom_objects, state["custom_objects"]),
        ):
            if len(here) != len(saved):
                yield f"{counted(len(here), part)} here, {len(saved)} in the checkpoint"
        if (accelerator.scaler is None) != (state["scaler"] is None):
            yield "a gradient scaler is on one side only (mixed_precision differs)"

    found = list(differences())
    if found:
        raise StateMismatchError(
            "the accelerator prepared other parts than it had when the state was saved",
            mismatched=found,
            file=directory,
        )


def _restore_rank(accelerator: Any, ranks: list[Any], directory: Path) -> None:
    """Put back what each rank has of its own: random states, and the places in the data."""
    own = ranks[min(accelerator.process_index, len(ranks) - 1)]

    def again() -> None:
        _set_rng(accelerator, ranks, directory)

    for loader, saved in zip(accelerator._dataloaders, own["loaders"]):
        restore_loader(loader, saved, again)
    again()


def _set_rng(accelerator: Any, ranks: list[Any], directory: Path) -> None:
    try:
        if len(ranks) != accelerator.num_processes:
            raise StateMismatchError(f"{directory} was saved by {counted(len(ranks), 'rank')}")
        set_rng_state(ranks[accelerator.process_index]["rng"])
    except StateMismatchError as error:
        warnings.warn(
            f"the random numbers do not go on as before: {error}", RuntimeWarning, stacklevel=3
        )
