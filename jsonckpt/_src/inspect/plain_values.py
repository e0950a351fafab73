"""The JSON of a state read plainly: what each value is, without making it. Pure.

The tags of ``docs/format.md`` section 6.2 are names of kinds here. A value of an unknown tag is an
object of a registered class. A tag with a body that the format does not allow is shown as it is:
only loading refuses it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple, TypeAlias, cast

from ..errors import JsonckptError
from ..format.json_text import Json
from ..state.numpy_types import NUMPY
from ..state.paths import DistinctPaths, child, label
from ..state.python_types import PLAIN
from ..state.references import REFERENCE_TAGS, TENSOR_TAGS
from ..state.tree import OMIT, decode_state

Scalar: TypeAlias = "str | int | float | bool | None"
#: The types that need no torch.
RULES: Final = NUMPY + PLAIN
#: Tags of containers, and the Python type that they stand for.
_CONTAINERS: Final = {
    "$tuple": "tuple",
    "$set": "set",
    "$frozenset": "frozenset",
    "$dict": "dict",
    "$counter": "Counter",
    "$namespace": "Namespace",
    "$simple_namespace": "SimpleNamespace",
    "$ordered_dict": "OrderedDict",
    "$defaultdict": "defaultdict",
    "$deque": "deque",
}
#: Containers whose members are in the member ``items`` of the body.
_WITH_ITEMS: Final = frozenset({"$ordered_dict", "$defaultdict", "$deque"})
_MAPPINGS: Final = frozenset(_CONTAINERS) - {"$tuple", "$set", "$frozenset", "$deque"}
#: Tags of single values, and their kinds.
_LEAVES: Final = {
    "$int": "int",
    "$float": "float",
    "$complex": "complex",
    "$str": "str",
    "$scalar": "NumPy scalar",
    "$ndarray": "NumPy array",
    "$numpy_dtype": "numpy.dtype",
} | {
    f"${name}": name
    for name in (
        "bytes",
        "bytearray",
        "range",
        "slice",
        "ellipsis",
        "path",
        "pure_path",
        "datetime",
        "date",
        "time",
        "timedelta",
        "timezone",
        "zone",
        "decimal",
        "fraction",
        "uuid",
        "dtype",
        "device",
        "size",
        "layout",
        "memory_format",
        "torch_version",
    )
}
_TENSOR_KINDS: Final = {"$sparse": "sparse tensor", "$quantized": "quantized tensor"}
_PLAIN: Final = {str: "str", int: "int", float: "float", bool: "bool", type(None): "None"}
_LONGEST = 60


class Member(NamedTuple):
    """A value in a container: the text of its key, its path (a JSON Pointer), its JSON."""

    key: str
    path: str
    value: Json


def tag_of(value: Json) -> str:
    """The tag of a value, or an empty text.

    >>> tag_of({"$tensor": "/w"}), tag_of({"w": 1})
    ('$tensor', '')
    """
    if type(value) is dict and len(value) == 1:
        tag = next(iter(value))
        return tag if tag[:1] == "$" else ""
    return ""


def kind_of(value: Json) -> str:
    """The kind of a value, in the words of Python; of a registered class its name.

    >>> kind_of({"$tuple": [1]}), kind_of({"$Config": {}}), kind_of(1.5)
    ('tuple', 'Config', 'float')
    """
    if type(value) in _PLAIN:
        return _PLAIN[type(value)]
    tag = tag_of(value)
    if not tag:
        return "dict" if type(value) is dict else "list"
    if tag in TENSOR_TAGS:
        return _TENSOR_KINDS.get(tag, "tensor")
    return _CONTAINERS.get(tag) or _LEAVES.get(tag) or tag[1:]


def is_tensor(value: Json) -> bool:
    """Whether a value is a tensor of any kind."""
    return tag_of(value) in TENSOR_TAGS


def is_registered(value: Json) -> bool:
    """Whether a value is an object of a registered class."""
    tag = tag_of(value)
    return bool(tag) and tag not in _CONTAINERS and tag not in _LEAVES and tag not in TENSOR_TAGS


def is_mapping(value: Json) -> bool:
    """Whether a value has keys."""
    tag = tag_of(value)
    return tag in _MAPPINGS or (not tag and type(value) is dict)


def members_of(value: Json, path: str = "") -> Iterator[Member] | None:
    """The members of a container; ``None`` for other values.

    Their paths are those that names of tensors have (format section 6.3).

    >>> [member.path for member in members_of({"a": 1, "b/c": {"$tuple": []}}, "/x")]
    ['/x/a', '/x/b~1c']
    """
    tag, body = _inside(value)
    if type(body) is dict:
        return _of_object(body, path)
    if type(body) is list:
        return _of_pairs(body, path) if tag in _MAPPINGS else _of_array(body, path)
    return None


def contents(value: Json) -> Json:
    """The object, array or array of pairs with the members of a container; ``None`` of others.

    >>> contents({"$tuple": [1, 2]}), contents({"$ordered_dict": {"items": {"a": 1}}}), contents(3)
    ([1, 2], {'a': 1}, None)
    """
    return _inside(value)[1]


def is_pairs(value: Json) -> bool:
    """Whether the contents of a container are an array of pairs."""
    tag, body = _inside(value)
    return type(body) is list and tag in _MAPPINGS


def _inside(value: Json) -> tuple[str, Json]:
    """The innermost tag of a container, and its contents."""
    while is_registered(value):
        value = cast("dict[str, Json]", value)[tag_of(value)]
    tag = tag_of(value)
    body = cast("dict[str, Json]", value)[tag] if tag else value
    if tag in _WITH_ITEMS:
        body = body.get("items") if type(body) is dict else None
    elif tag and tag not in _CONTAINERS:
        body = None
    return tag, body if type(body) in (dict, list) else None


def keys_of(value: Json) -> list[Json]:
    """The keys of a mapping, as JSON, in the order of its members; of other values none.

    >>> keys_of({"$dict": [[5, "a"], [{"$tuple": []}, "b"]]}), keys_of({"a": 1}), keys_of([1])
    ([5, {'$tuple': []}], ['a'], [])
    """
    tag, body = _inside(value)
    if type(body) is dict:
        return list(body)
    pairs = body if type(body) is list and tag in _MAPPINGS else []
    return [pair[0] for pair in pairs if type(pair) is list and len(pair) == 2]


def frame_of(value: Json) -> Json:
    """What a container says beside its members: its tags, the length of a deque and the like."""
    tag = tag_of(value)
    if not tag:
        return None
    body = cast("dict[str, Json]", value)[tag]
    if is_registered(value):
        return [tag, kind_of(body), frame_of(body)]
    if tag in _WITH_ITEMS and type(body) is dict:
        return {key: item for key, item in body.items() if key != "items"}
    return None


def _of_object(body: dict[str, Json], path: str) -> Iterator[Member]:
    below = None if all(map(str.isprintable, body)) else DistinctPaths(path)
    for key, value in body.items():
        yield Member(key, child(path, key) if below is None else below.child(key), value)


def _of_array(body: list[Json], path: str) -> Iterator[Member]:
    for position, value in enumerate(body):
        yield Member(str(position), f"{path}/{position}", value)


def _of_pairs(body: list[Json], path: str) -> Iterator[Member]:
    pairs = [pair for pair in body if type(pair) is list and len(pair) == 2]
    paths = key_paths((pair[0] for pair in pairs), path)
    for pair, (text, at) in zip(pairs, paths):
        yield Member(text, at, pair[1])


def key_paths(keys: Iterable[Json], path: str) -> Iterator[tuple[str, str]]:
    """The text of each key of a dictionary, and the path of its member, as a save makes them."""
    below = DistinctPaths(path)
    for key in keys:
        text = key_label(key)
        at = below.child(text)
        if type(key) not in _PLAIN:
            below.beside(at, "key")  # a save gives the key a path, too
        yield text, at


def key_label(key: Json) -> str:
    """The text of a dictionary's key in a path.

    >>> key_label("a"), key_label(0), key_label(True), key_label({"$tuple": [0, "a"]})
    ('a', '0', 'True', "(0, 'a')")
    """
    if type(key) in _PLAIN:
        return label(key, is_tensor=False)
    if is_tensor(key):
        return "Tensor"
    try:
        found = decode_state(key, NoTensors(), rules=RULES)
    except JsonckptError:
        found = OMIT
    return text_of(key) if found is OMIT else label(found, is_tensor=False)


class NoTensors:
    """A reader of tensors for values that hold none: everything else can be decoded."""

    def get(self, _tag: str, _body: Json, _path: str, /) -> Any:
        """Leaves it out."""
        return OMIT

    def get_array(self, _body: Json, _path: str, /) -> Any:
        """Leaves it out."""
        return OMIT

    def charge(self, _nbytes: int, _path: str, /) -> None:
        """Nothing is too much here."""


def scalar(value: Json) -> Scalar:
    """A number, string or bool, also of ``$int``, ``$float`` and ``$scalar``; ``None`` for others.

    >>> scalar({"$scalar": {"dtype": "<f4", "value": 0.5}}), scalar([1])
    (0.5, None)
    """
    if type(value) in _PLAIN:
        return cast(Scalar, value)
    tag = tag_of(value)
    body = cast("dict[str, Json]", value)[tag] if tag else None
    if tag == "$scalar" and type(body) is dict:
        inner = body.get("value")
        if type(inner) is str and str(body.get("dtype"))[1:2] == "f":
            return _float(inner)
        return cast(Scalar, inner) if type(inner) in _PLAIN else None
    if tag == "$float":
        return _float(body)
    if tag == "$int" and type(body) is str and len(body) < 2_000:
        try:
            return int(body, 16)
        except ValueError:
            return None
    return None


def _float(text: Json) -> Scalar:
    if type(text) is not str:
        return None
    names = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    return names.get(text, math.nan if text.startswith("0x") else None)


def number(value: Json) -> int | float | None:
    """A number that is no bool, or ``None``."""
    found = scalar(value)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def text_of(value: Json, longest: int = _LONGEST) -> str:
    """A value on one line, at most ``longest`` characters; containers in short.

    >>> text_of({"$tuple": [0.9, 0.999]}), text_of({"a": 1, "b": [1]}), text_of("x" * 99, 9)
    ('(0.9, 0.999)', 'dict of 2', '"xxxxxxx…')
    """
    return short(_text(value, longest), longest)


def _text(value: Json, longest: int) -> str:
    found = scalar(value)
    if isinstance(found, str):
        return json.dumps(found[: longest + 1], ensure_ascii=False)
    if isinstance(found, int) and not isinstance(found, bool) and found.bit_length() > 2_048:
        return f"an integer of {found.bit_length():,} bits"
    if found is not None or value is None:
        return str(found)
    if is_tensor(value):
        return kind_of(value)
    members = members_of(value)
    if members is not None:
        kind, count = kind_of(value), size_of(value)
        if kind in {"list", "tuple"} and count <= 8:
            parts = [_short_member(member.value) for member in members]
            if None not in parts:
                left, right = "[]" if kind == "list" else "()"
                return f"{left}{', '.join(map(str, parts))}{right}"
        return f"{kind} of {count:,}"
    body = next(iter(cast("dict[str, Json]", value).values()))
    kind = kind_of(value)
    if kind == "NumPy array" and type(body) is dict:
        return f"{kind} {text_of(body.get('dtype'))} {text_of(body.get('shape'))}"
    if type(body) in _PLAIN:
        return f"{kind} {json.dumps(body, ensure_ascii=False)[: longest + 1]}"
    return f"{kind} {text_of(body, longest)}" if type(body) is list else kind


def _short_member(value: Json) -> str | None:
    found = scalar(value)
    if found is None and value is not None:
        return None
    if isinstance(found, str) and len(found) > 20:
        return None
    if isinstance(found, int) and found.bit_length() > 128:
        return None
    return json.dumps(found, ensure_ascii=False) if isinstance(found, str) else str(found)


def size_of(value: Json) -> int:
    """The number of members of a container."""
    body = contents(value)
    return len(body) if isinstance(body, dict | list) else 0


def brief(value: Json, longest: int = _LONGEST) -> str:
    """:func:`text_of`, with six digits of a long float.

    >>> brief(0.000299334294690462), brief(1e-05), brief([0.1, 0.2])
    ('0.000299334', '1e-05', '[0.1, 0.2]')
    """
    found = scalar(value)
    if isinstance(found, float) and len(str(found)) > 10:
        return f"{found:.6g}"
    members = members_of(value) if kind_of(value) in {"list", "tuple"} else None
    if members is not None and size_of(value) <= 8:
        below = [member.value for member in members]
        if all(number(one) is not None for one in below):
            left, right = "[]" if kind_of(value) == "list" else "()"
            return short(f"{left}{', '.join(map(brief, below))}{right}", longest)
    return text_of(value, longest)


def short(text: str, longest: int = _LONGEST) -> str:
    """Text of at most ``longest`` characters; the end is cut."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def references_at(value: Json) -> list[str]:
    """The names of the tensors that a value is made of."""
    names: list[str] = []
    pending = [value]
    while pending:
        item = pending.pop()
        tag = tag_of(item)
        if tag in REFERENCE_TAGS:
            body = cast("dict[str, Json]", item)[tag]
            name = body if tag == "$tensor" else body.get("name") if type(body) is dict else None
            names += [name] if type(name) is str else []
        elif isinstance(item, dict | list):
            pending += reversed(item.values() if isinstance(item, dict) else item)
    return names


def without_references(value: Json) -> Json:
    """A value with ``null`` in place of each reference to a tensor.

    >>> without_references({"$parameter": {"data": {"$tensor": "/w"}, "requires_grad": True}})
    {'$parameter': {'data': None, 'requires_grad': True}}
    """
    if type(value) is list:
        return [without_references(item) for item in value]
    if type(value) is dict:
        if tag_of(value) in REFERENCE_TAGS:
            return None
        return {key: without_references(item) for key, item in value.items()}
    return value
