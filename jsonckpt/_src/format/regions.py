"""Tensors in regions: one tensor in several records (format section 6.5). Pure."""

from __future__ import annotations

import math
import random
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ..boxes import Box
from ..errors import FormatError, quote
from .dtypes import DTYPES
from .json_text import Json
from .model import (
    MAX_SIZE,
    PLAIN,
    Codec,
    Entry,
    Header,
    Part,
    Whole,
    element_count,
    is_size,
)

#: What ``requires`` names in each text that has regions.
FEATURE: Final = "regions"
TAG: Final = "$regions"
PREFIX: Final = "$region/"
_NAME = re.compile(
    r"\$region/((?:(?:0|[1-9][0-9]{0,18})(?:,(?:0|[1-9][0-9]{0,18}))*)?)((?:/.*)?)", re.DOTALL
)
_DEVICE = re.compile(r"[a-z]{1,20}(:[0-9]{1,5})?")
_MOST_DIMENSIONS = 64
#: A prime above all sizes and counts, so large that no chance hits a root of a polynomial.
_PRIME: Final = (1 << 127) - 1


def region_name(offset: Sequence[int], name: str) -> str:
    """The name of the record of a region.

    Args:
        offset: of its first element in the tensor, one for each dimension.
        name: of the tensor.

    >>> region_name((0, 128), "/model/w"), region_name((), "/step")
    ('$region/0,128/model/w', '$region//step')
    """
    return f"{PREFIX}{','.join(map(str, offset))}{name}"


def parse_region_name(name: str) -> tuple[tuple[int, ...], str]:
    """The inverse of :func:`region_name`.

    Raises:
        FormatError: not the name of a region.

    >>> parse_region_name("$region/0,128/model/w")
    ((0, 128), '/model/w')
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise FormatError(
            f"name is {quote(name)}, expected $region/, offsets with commas, and a JSON Pointer"
        )
    offset = tuple(map(int, match[1].split(","))) if match[1] else ()
    if len(offset) > _MOST_DIMENSIONS or max(offset, default=0) > MAX_SIZE:
        raise FormatError(f"name {quote(name)} has an offset that no tensor has")
    return offset, match[2]


def check_region_record(name: str, shape: Sequence[int], *, is_plain: bool) -> None:
    """Check that a record may have the name of a region.

    Raises:
        FormatError: it may not.
    """
    offset, _ = parse_region_name(name)
    if len(offset) != len(shape):
        raise FormatError(
            f"the name has {len(offset)} offsets, the shape {len(shape)} sizes", tensor=name
        )
    if not is_plain:
        raise FormatError("a region has neither stride nor storage", tensor=name)


def required_features(names: Iterable[str]) -> list[str]:
    """The features that a manifest or a single file with records of these names must require."""
    return [FEATURE] if any(name.startswith(PREFIX) for name in names) else []


def requires(names: Iterable[str]) -> dict[str, Json]:
    """The member ``requires`` of such a text, if it needs one."""
    features = required_features(names)
    return {"requires": [*features]} if features else {}


@dataclass(frozen=True, slots=True)
class Regions:
    """What a ``$regions`` says.

    Attributes:
        name: of the tensor.
        dtype: its name in the format.
        shape: of the whole tensor.
        device: of the tensor, in torch's spelling.
        offsets: of the parts. The name of each one's record follows from it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    offsets: tuple[tuple[int, ...], ...]

    @property
    def records(self) -> list[str]:
        """The names of the parts' records, in order."""
        return [region_name(offset, self.name) for offset in self.offsets]

    @classmethod
    def from_json(cls, body: Any) -> Regions:
        """Read the body of a ``$regions``. Whether its parts fit is not checked yet.

        Raises:
            FormatError: it is not one.
        """
        found = body if isinstance(body, dict) else {}
        name, dtype = found.get("name"), found.get("dtype")
        shape: Any = found.get("shape")
        parts = found.get("parts")
        if not isinstance(name, str) or (name and name[0] != "/"):
            raise FormatError(f"$regions: name is {quote(name)}, expected a JSON Pointer")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise _malformed(name, f"unknown dtype {quote(dtype)}")
        if not _are_sizes(shape):
            raise _malformed(name, f"shape is {quote(shape)}, expected sizes, at most 64")
        if math.prod([size for size in shape if size]) > MAX_SIZE:
            raise _malformed(name, f"shape {quote(shape)} has over 2^63-1 elements")
        device = found.get("device", "cpu")
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            raise _malformed(name, f"device is {quote(device)}, expected e.g. cuda:0")
        if not isinstance(parts, list) or not parts:
            raise _malformed(name, f"parts is {quote(parts)}, expected an array of one or more")
        offsets = tuple([_parse_part(part, name, len(shape)) for part in parts])
        if len(set(offsets)) != len(offsets):
            raise _malformed(name, "two parts have the same offset")
        return cls(name, dtype, tuple(shape), device, offsets)

    def to_json(self) -> dict[str, Any]:
        """The tagged object: ``{"$regions": …}``."""
        body: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        if self.device != "cpu":
            body["device"] = self.device
        body["parts"] = [
            {"of": region_name(offset, self.name), "offset": list(offset)}
            for offset in self.offsets
        ]
        return {TAG: body}

    def check_part(self, offset: Sequence[int], header: Header) -> None:
        """Check one part's record against the whole tensor.

        Raises:
            FormatError: it has another dtype, or leaves the tensor.
        """
        if header.dtype != self.dtype:
            raise FormatError(
                f"the region has dtype {header.dtype}, the tensor {self.dtype}", tensor=header.name
            )
        inside = len(header.shape) == len(self.shape) and all(
            start + size <= most for start, size, most in zip(offset, header.shape, self.shape)
        )
        if not inside:
            raise FormatError(
                f"a region of shape {quote(list(header.shape))} at {quote(list(offset))} leaves "
                f"the tensor of shape {quote(list(self.shape))}",
                tensor=header.name,
            )

    def check_tiled(self, boxes: Iterable[Box]) -> None:
        """Check that parts inside the tensor cover each element once. Takes linear time.

        Raises:
            FormatError: they leave a gap, or overlap.
        """
        boxes = list(boxes)
        if tiles(self.shape, boxes):
            return
        covered, count = sum(element_count(shape) for _, shape in boxes), element_count(self.shape)
        fault = "leave a gap" if covered < count else "overlap"
        fault = "leave a gap and overlap" if covered == count else fault
        raise _malformed(
            self.name, f"its {len(boxes)} parts {fault}: {covered} of {count} elements"
        )


def regions_json(
    name: str, dtype: str, shape: Sequence[int], boxes: Iterable[Box], device: str = "cpu"
) -> dict[str, Any]:
    """The JSON of a tensor in regions, checked: ``{"$regions": …}``.

    Args:
        name, dtype, shape, device: of the whole tensor, in the format's spelling.
        boxes: offset and shape of each part. Parts without elements are left out where they can be.

    Raises:
        FormatError: the parts do not cover each element once.

    >>> regions_json("/w", "int8", (4,), [((0,), (3,)), ((3,), (1,))])["$regions"]["parts"]
    [{'of': '$region/0/w', 'offset': [0]}, {'of': '$region/3/w', 'offset': [3]}]
    """
    kept = sorted((tuple(offset), tuple(size)) for offset, size in boxes)
    if element_count(shape):
        kept = [box for box in kept if element_count(box[1])]
    regions = Regions(name, dtype, tuple(shape), device, tuple([offset for offset, _ in kept]))
    result = regions.to_json()
    regions = Regions.from_json(result[TAG])
    for offset, size in kept:
        header = Header(region_name(offset, name), dtype, size, device, _NO_CODEC, 0)
        regions.check_part(offset, header)
    regions.check_tiled(kept)
    return result


_NO_CODEC: Final = Codec("base64", "none", "none", 1)


def tiles(shape: Sequence[int], boxes: Iterable[Box]) -> bool:
    """Whether boxes cover each element of a tensor once and nothing outside.

    Each box stands for the product, over the dimensions, of ``x[start] - x[stop]``, with a variable
    for each coordinate of each dimension. The boxes tile the tensor exactly where their sum is the
    polynomial of the tensor. Both have one value at a random point then; else, they have one with a
    chance of less than 2^-120. So the time is linear, whatever the boxes are.

    >>> tiles((2, 2), [((0, 0), (2, 1)), ((0, 1), (2, 1))]), tiles((2,), [((0,), (1,))])
    (True, False)
    """
    generator = random.Random(secrets.randbits(256))
    values: list[dict[int, int]] = [{} for _ in shape]

    def value(offset: Sequence[int], sizes: Sequence[int]) -> int:
        product = 1
        for known, start, size in zip(values, offset, sizes):
            if start not in known:
                known[start] = generator.randrange(_PRIME)
            stop = start + size
            if stop not in known:
                known[stop] = generator.randrange(_PRIME)
            product = product * (known[start] - known[stop]) % _PRIME
        return product

    whole = value([0] * len(shape), shape)
    return sum(value(offset, sizes) for offset, sizes in boxes) % _PRIME == whole


def put_together(regions: Regions, records: Mapping[str, Entry]) -> Whole:
    """The tensor of a ``$regions``.

    Raises:
        FormatError: a record is missing or does not fit, or the parts do not tile the tensor.
    """
    parts = []
    for offset, name in zip(regions.offsets, regions.records):
        entry = records.get(name)
        if entry is None:
            raise _malformed(regions.name, f"there is no record {quote(name)}")
        regions.check_part(offset, entry)
        parts.append(Part(entry, offset))
    regions.check_tiled([(part.offset, part.entry.shape) for part in parts])
    first = parts[0].entry
    return Whole(
        regions.name,
        regions.dtype,
        regions.shape,
        regions.device,
        first.codec,
        sum(part.entry.nbytes for part in parts),
        tuple(parts),
        layout=PLAIN,
    )


def find_regions(state: Any) -> Iterator[Regions]:
    """What the ``$regions`` of a state say, each tensor once.

    Raises:
        FormatError: one is malformed.
    """
    seen: dict[str, Any] = {}
    pending = [state]
    while pending:
        item = pending.pop()
        if type(item) is list:
            pending.extend(reversed(item))
        elif type(item) is dict:
            if len(item) != 1 or TAG not in item:
                pending.extend(reversed(item.values()))
                continue
            regions = Regions.from_json(item[TAG])
            if seen.setdefault(regions.name, item[TAG]) is item[TAG]:
                yield regions


class Region(Protocol):
    """A record of a region."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str


def regions_by_names(records: Iterable[Region]) -> Iterator[Regions]:
    """What the ``$regions`` of a lost state may have said, by the names of the regions."""
    groups: dict[str, list[tuple[tuple[int, ...], Region]]] = {}
    for record in records:
        if record.name.startswith(PREFIX):
            offset, name = parse_region_name(record.name)
            groups.setdefault(name, []).append((offset, record))
    for name, parts in groups.items():
        stops = [[a + b for a, b in zip(offset, record.shape)] for offset, record in parts]
        shape = tuple(max(stop) for stop in zip(*stops))
        first = parts[0][1]
        offsets = tuple(sorted(offset for offset, _ in parts))
        try:
            yield Regions.from_json(
                Regions(name, first.dtype, shape, first.device, offsets).to_json()[TAG]
            )
        except FormatError:
            continue  # regions of different numbers of dimensions: not of one tensor


def wholes(state: Any, records: Mapping[str, Entry]) -> dict[str, Whole]:
    """The tensors in regions of a state, by name.

    Raises:
        FormatError: one is malformed, does not fit its records, or has the name of a record.
    """
    found: dict[str, Whole] = {}
    for regions in find_regions(state):
        if regions.name in records:
            raise _malformed(regions.name, "a record has this name, too")
        found[regions.name] = put_together(regions, records)
    return found


def _malformed(name: str, message: str) -> FormatError:
    return FormatError(f"$regions {quote(name)}: {message}", tensor=name)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_DIMENSIONS and all(map(is_size, value))


def _parse_part(part: Any, name: str, dimensions: int) -> tuple[int, ...]:
    found = part if isinstance(part, dict) else {}
    offset: Any = found.get("offset")
    if not _are_sizes(offset) or len(offset) != dimensions:
        raise _malformed(name, f"offset is {quote(offset)}, expected {dimensions} integers")
    expected = region_name(offset, name)
    if found.get("of") != expected:
        raise _malformed(name, f"of is {quote(found.get('of'))}, expected {quote(expected)}")
    return tuple(offset)


def plain_state(value: Json) -> Json:
    """The state with the tensors in regions as if each were one record.

    >>> plain_state([{"$regions": {"name": "/0"}}])
    [{'$tensor': '/0'}]
    """
    if type(value) is list:
        return [plain_state(item) for item in value]
    if type(value) is not dict:
        return value
    body = value.get(TAG) if len(value) == 1 else None
    if type(body) is dict:
        return {"$tensor": body.get("name")}
    return {key: plain_state(item) for key, item in value.items()}


def state_in_regions(value: Json, wholes: Mapping[str, Whole]) -> Json:
    """The inverse of :func:`plain_state`: these tensors are in regions again."""
    if type(value) is list:
        return [state_in_regions(item, wholes) for item in value]
    if type(value) is not dict:
        return value
    name = value.get("$tensor") if len(value) == 1 else None
    if type(name) is str and name in wholes:
        whole = wholes[name]
        offsets = tuple([part.offset for part in whole.parts])
        return Regions(name, whole.dtype, whole.shape, whole.device, offsets).to_json()
    return {key: state_in_regions(item, wholes) for key, item in value.items()}
