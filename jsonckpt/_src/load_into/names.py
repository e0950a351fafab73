"""The names in state dicts, without the prefixes of wrappers and other programs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from ..errors import ArgumentError, StateMismatchError, quote
from ..format.pointer import join
from .placeholders import LEFT_OUT

#: Parts that torch's wrappers add to names. A wrapped part of a model has them in the middle.
WRAPPERS: Final = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Prefixes:
    """Removes prefixes from names. Names of both sides are compared without them.

    A prefix is whole parts of a name; its final dot may be left out. It is removed at the beginning
    of a name, as often as it is there, so that a name has one form only. The names of torch's
    wrappers are removed anywhere. The last part of a name stays.

    Attributes:
        given: as the caller wrote them.
        renamed: names in the checkpoint, and their names in the target, where these differ.

    >>> Prefixes(["model.", "_orig_mod"]).strip("model.model.encoder._orig_mod.weight")
    'encoder.weight'
    """

    def __init__(self, given: Sequence[str] = ()) -> None:
        self.given = tuple(given)
        self.renamed: list[tuple[str, str]] = []
        self._heads: dict[str, None] = {}
        self._used: set[str] = set()
        split = [(prefix, prefix.removesuffix(".").split(".")) for prefix in self.given]
        self._anywhere = {
            part: prefix for prefix, parts in split if set(parts) <= set(WRAPPERS) for part in parts
        }
        self._leading = [
            (prefix, ".".join(parts) + ".")
            for prefix, parts in split
            if not set(parts) <= set(WRAPPERS)
        ]

    @classmethod
    def of(cls, argument: Any) -> Prefixes:
        """From the public argument: ``None``, a string, or a sequence of strings.

        Raises:
            ArgumentError: it is something else, or a prefix has an empty part.
        """
        given = [argument] if isinstance(argument, str) else argument
        if given is None:
            return cls()
        if not isinstance(given, Sequence) or not all(isinstance(item, str) for item in given):
            raise ArgumentError(
                "strip_prefix must be a string or a sequence of strings, such as 'module.', not "
                f"{quote(argument)}"
            )
        for prefix in given:
            if not all(prefix.removesuffix(".").split(".")):
                raise ArgumentError(
                    f"strip_prefix: {quote(prefix)} is not the beginning of a name",
                    hint="It is whole parts of a name, such as 'module.' or 'model.encoder.'.",
                )
        return cls(given)

    def strip(self, name: str) -> str:
        """The name without the prefixes."""
        if self._anywhere:
            *parts, last = name.split(".")
            found = self._anywhere.keys() & parts
            if found:
                self._used.update(self._anywhere[part] for part in found)
                name = ".".join([*(part for part in parts if part not in found), last])
        again = bool(self._leading)
        while again:
            again = False
            for prefix, text in self._leading:
                if name.startswith(text) and len(name) > len(text):
                    name = name[len(text) :]
                    self._used.add(prefix)
                    again = True
        return name

    def align(self, value: Mapping[Any, Any], own: Mapping[Any, Any], pointer: str) -> Any:
        """A state dict of the checkpoint under the names of the target.

        Names that the target lacks are only stripped.

        Raises:
            StateMismatchError: two names of one side are the same without their prefixes.
        """
        if not self.given:
            return value
        left_out = {key for key, item in value.items() if item is LEFT_OUT}
        names = {stripped: key for key, stripped in self._stripped(own, pointer, "target").items()}
        items = {}
        for key, stripped in self._stripped(value, pointer, "checkpoint", left_out).items():
            new = names.get(stripped, stripped)
            if key in left_out and new in items:
                continue
            items[new] = value[key]
            if new != key and new in own and key not in left_out:
                self.renamed.append((join(pointer, key), join(pointer, new)))
        aligned: Any = items
        metadata = getattr(value, "_metadata", None)
        if isinstance(metadata, Mapping):
            aligned = OrderedDict(items)
            aligned._metadata = self._aligned_paths(metadata, getattr(own, "_metadata", {}))
        return aligned

    def _stripped(
        self, keys: Iterable[Any], pointer: str, side: str, ignored: Collection[Any] = ()
    ) -> dict[Any, Any]:
        """The keys of one side, and what they are without the prefixes."""
        result: dict[Any, Any] = {}
        first: dict[str, str] = {}
        for key in keys:
            if not isinstance(key, str):
                result[key] = key
                continue
            if len(self._heads) < 5 and "." in key:
                self._heads.setdefault(key.partition(".")[0] + ".")
            result[key] = stripped = self.strip(key)
            other = first.setdefault(stripped, key) if key not in ignored else key
            if other != key:
                raise StateMismatchError(
                    f"without {self} two tensors of the {side} have one name: "
                    f"{quote(join(pointer, other), 200)} and {quote(join(pointer, key), 200)}",
                    hint="Leave one of the checkpoint out with exclude=, or load the state with "
                    "jsonckpt.load and rename its keys.",
                )
        return result

    def _aligned_paths(self, metadata: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
        """The metadata of modules under their paths in the target."""
        paths = {self._strip_path(path): path for path in own}
        stripped = {self._strip_path(path): item for path, item in metadata.items()}
        return {paths.get(path, path): item for path, item in stripped.items()}

    def _strip_path(self, path: str) -> str:
        return self.strip(f"{path}.x" if path else "x")[:-2]

    def require_used(self) -> None:
        """Check that each prefix was found.

        Raises:
            StateMismatchError: one was in no name.
        """
        unused = [prefix for prefix in self.given if prefix not in self._used]
        if unused:
            heads = ", ".join(quote(head) for head in self._heads)
            raise StateMismatchError(
                f"strip_prefix {quote(unused[0], 200)}: no name of a state dict has this prefix, "
                "in the checkpoint or in the target",
                hint=f"The names begin with {heads}." if heads else "The names have no prefix.",
            )

    def __str__(self) -> str:
        """As the argument is written."""
        shown = self.given[0] if len(self.given) == 1 else list(self.given)
        return f"strip_prefix={shown!r}"
