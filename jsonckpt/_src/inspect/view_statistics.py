"""Statistics of views: of those that lie without gaps in their record."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import FormatError
from ..format.dtypes import DTYPES
from ..format.model import entries_of
from ..load.container import Container
from .facts import TensorFacts
from .statistics import StatisticsSink, TensorStatistics


def statistics_of_views(
    container: Container, tensors: Iterable[TensorFacts]
) -> dict[str, TensorStatistics]:
    """The statistics of the views among tensors, by their names. Those with gaps are left out.

    Raises:
        FormatError: a view leaves its record.
        JsonckptError: a record cannot be read.
    """
    found: dict[str, TensorStatistics] = {}
    for tensor in tensors:
        entry, itemsize = tensor.entry, DTYPES[tensor.dtype].itemsize
        start = tensor.offset * itemsize
        if tensor.kind != "view" or not tensor.is_row_major:
            continue
        chunks = [each.codec.chunk_bytes for each in entries_of(entry)]
        if any(size % itemsize for size in chunks) or start % itemsize:
            continue  # an element of the view may lie in two chunks
        if start + tensor.nbytes > entry.nbytes:
            raise FormatError("the view leaves its record", tensor=tensor.name)
        results: list[TensorStatistics] = []
        sink = StatisticsSink(tensor.dtype, tensor.nbytes, results.append)
        if tensor.nbytes:
            container.read_range(entry, start, start + tensor.nbytes, sink)
        found[tensor.name] = results[0]
    return found
