"""References to tensors in the JSON of a state (``docs/format.md`` sections 6.2 and 6.4). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from ..format.json_text import Json
from ..format.regions import PREFIX
from .checks import refuse

#: Tags that refer to the record of a tensor, or to its records.
REFERENCE_TAGS: Final = frozenset({"$tensor", "$tied", "$view", "$regions"})
#: The name of such a tensor is that of its record, or of what its regions make together.
OWN_TAGS: Final = frozenset({"$tensor", "$regions"})
#: Tags of tensors of any kind. A :class:`TensorReader` reads them.
TENSOR_TAGS: Final = REFERENCE_TAGS | {"$parameter", "$requires_grad", "$sparse", "$quantized"}


class Reference(NamedTuple):
    """A ``$tensor``, ``$regions``, ``$tied`` or ``$view``: a tensor's name, the tag, its value."""

    name: str
    tag: str
    body: Any

    @property
    def record(self) -> str:
        """The record that holds the tensor, or the name of what its regions make together.

        >>> Reference("/v", "$tied", {"name": "/v", "of": "/w"}).record
        '/w'
        """
        return self.name if self.tag in OWN_TAGS else str(self.body["of"])


def references_in(value: Json) -> Iterator[Reference]:
    """Every reference in the JSON of a state, in order.

    Nothing is decoded, so that this also works where a registered type is missing.

    Raises:
        FormatError: a reference without a name.

    >>> [reference.name for reference in references_in({"a": [{"$tensor": "/a/0"}]})]
    ['/a/0']
    """
    pending = [value]
    while pending:
        item = pending.pop()
        if type(item) is list:
            pending.extend(reversed(item))
        elif type(item) is dict:
            tag, body = next(iter(item.items())) if len(item) == 1 else ("", None)
            if tag not in REFERENCE_TAGS:
                pending.extend(reversed(item.values()))
                continue
            name, record = body, body
            if tag != "$tensor":
                found = body if type(body) is dict else {}
                name = found.get("name")
                record = name if tag == "$regions" else found.get("of")
            if type(name) is not str or type(record) is not str:
                refuse("", "the name of a tensor, and of the record that holds it", body)
            if record.startswith(PREFIX):
                refuse("", "the name of a whole tensor, not that of a region", body)
            yield Reference(name, tag, body)


def has_references(value: Json) -> bool:
    """Whether the JSON of a state refers to any tensor."""
    return next(references_in(value), None) is not None
