"""Hyper-parameters of Lightning: what is saved of those that are no plain values.

``save_hyperparameters()`` keeps whatever the constructor was given: functions, modules, enums. A
checkpoint of plain JSON holds values. What it cannot hold is described in its place, and named in
a note, so that a load leaves it out instead of passing the description on.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, LimitError, UnsupportedTypeError, full_name, quote
from ..format import pointer
from ..save.snapshot import take_snapshot

#: Where Lightning keeps hyper-parameters of modules and of data modules, and their class.
PLACES = {
    "hyper_parameters": "hparams_type",
    "datamodule_hyper_parameters": "datamodule_hparams_type",
}
#: The note: ``{"not_saved": {place: description}, "omegaconf": {place: class}}``.
NOTE = "jsonckpt_hyper_parameters"
_MARK = "not saved: "


def without_objects(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A checkpoint of Lightning whose hyper-parameters can be saved.

    Returns:
        the checkpoint (the same values in a new dictionary), and a description of each
        hyper-parameter that is not saved, by its place.
    """
    result = dict(checkpoint)
    plain = _Plain()
    for name, kind in PLACES.items():
        if name in result and not _is_savable(result[name]):
            result[name] = plain.of(result[name], f"/{name}", ())
        if isinstance(result.get(kind), type):
            del result[kind]  # the note says it
    if plain.lost or plain.configs:
        result[NOTE] = {"not_saved": plain.lost, "omegaconf": plain.configs}
    return result, plain.lost


def with_objects(checkpoint: Any) -> dict[str, str]:
    """Undo :func:`without_objects` in place, as far as that is possible.

    Configurations of OmegaConf are made again if it is installed.

    Returns:
        the descriptions of the hyper-parameters that were not saved, by their places.

    Raises:
        FormatError: the note is malformed.
    """
    if not isinstance(checkpoint, dict) or NOTE not in checkpoint:
        return {}
    note = checkpoint.pop(NOTE)
    lost, configs = (
        note.get(part) if isinstance(note, dict) else None for part in ("not_saved", "omegaconf")
    )
    for part in (lost, configs):
        if (
            not isinstance(part, dict)
            or not all(isinstance(item, str) for pair in part.items() for item in pair)
            or not all(place.startswith("/") for place in part)
        ):
            raise FormatError(f"{NOTE} is not a note of this package")
    for place in configs or ():
        _make_config(checkpoint, place)
    return dict(lost or {})


def lost_names(lost: Mapping[str, str], place: str) -> dict[str, str]:
    """The names of the hyper-parameters in a place that are not saved as a whole.

    >>> lost_names({"/hyper_parameters/act": "f", "/hyper_parameters/c/0": "g"}, "hyper_parameters")
    {'act': 'f', 'c': 'g'}
    """
    found: dict[str, str] = {}
    for place_of_it, description in lost.items():
        _, first, *rest = place_of_it.split("/")
        if first == place:
            found.setdefault(pointer.unescape(rest[0]) if rest else "", description)
    return found


class _Plain:
    """Makes plain values of hyper-parameters, and keeps what was lost."""

    def __init__(self) -> None:
        self.lost: dict[str, str] = {}
        self.configs: dict[str, str] = {}

    def of(self, value: Any, place: str, above: tuple[int, ...]) -> Any:
        """The value itself, or one that can be saved instead.

        Args:
            above: the ids of the containers that it is in.
        """
        if _is_savable(value):
            return value
        config = _container_of(value)
        if config is not None:
            self.configs[place] = type(value).__name__
            value = config
        if id(value) in above:
            return self._describe("a container that contains itself", place)
        inside = (*above, id(value))
        if isinstance(value, dict):  # also one of a subclass: its items are what counts
            return {
                key: self.of(item, pointer.join(place, str(key)), inside)
                for key, item in value.items()
                if _is_savable(key) or self._describe(describe(key), pointer.join(place, str(key)))
            }
        if type(value) in (list, tuple):
            items = (self.of(one, f"{place}/{at}", inside) for at, one in enumerate(value))
            return type(value)(items)
        return self._describe(describe(value), place)

    def _describe(self, description: str, place: str) -> str:
        self.lost[place] = description
        return _MARK + description


def _is_savable(value: Any) -> bool:
    try:
        take_snapshot({"value": value}, None)
    except (UnsupportedTypeError, LimitError):
        return False
    return True


def describe(value: Any) -> str:
    """What an object is, in a few words.

    >>> describe(functools.partial(len))
    'functools.partial of the function builtins.len'
    """
    if isinstance(value, enum.Enum):
        return f"the enum member {full_name(type(value))}.{value.name}"
    if isinstance(value, functools.partial):
        return f"functools.partial of {describe(value.func)}"
    if isinstance(value, type):
        return f"the class {full_name(value)}"
    if inspect.isroutine(value):
        module = getattr(value, "__module__", None) or "?"
        return f"the function {module}.{getattr(value, '__qualname__', '?')}"
    return f"an object of the class {full_name(type(value))}"


def _container_of(value: Any) -> Any:
    """The plain container of a configuration of OmegaConf, not resolved; ``None`` for others."""
    if not type(value).__module__.startswith("omegaconf."):
        return None
    from omegaconf import Container, OmegaConf

    return OmegaConf.to_container(value, resolve=False) if isinstance(value, Container) else None


def _make_config(checkpoint: dict[str, Any], place: str) -> None:
    try:
        from omegaconf import OmegaConf
    except ImportError:
        return  # plain containers do as well
    *parts, last = place.removeprefix("/").split("/")
    at: Any = checkpoint
    try:
        for name in map(pointer.unescape, parts):
            at = at[int(name)] if isinstance(at, list) else at[name]
        key: Any = int(last) if isinstance(at, list) else pointer.unescape(last)
        at[key] = OmegaConf.create(at[key])
    except Exception as error:  # OmegaConf has errors of its own
        raise FormatError(
            f"no configuration of OmegaConf can be made of {quote(place)}: {quote(error, 200)}"
        ) from error
    if not parts and last in PLACES:
        checkpoint[PLACES[last]] = type(at[key])
