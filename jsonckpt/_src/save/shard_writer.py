"""Writes one shard: several threads encode the chunks, which are written one after the other."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import JsonckptError
from ..format.checksums import hexdigest
from ..format.chunk_codec import ChunkCodec, check_bool
from ..format.model import Header, ShardFile
from ..parallel import JobSequence, threads_for
from ..shards.shard_text import ShardText
from ..storage.protocols import Output
from .outputs import require_all
from .plan import Part, RecordPlan, ShardPlan, jobs

_Pieces = list[bytes | memoryview]
#: The pieces of a payload, and the checksum of the chunk; ``None`` for a chunk of no bytes.
_Chunk = tuple[_Pieces, str] | None


class ShardWriter:
    """Writes the text of one shard to an output.

    Args:
        head: the text before the first record.
        done: gets the number of raw bytes of each job that was written; may raise.
        settle: gets the size and the seal of the whole file; returns its final name.
        check_index: gets the text after the last record before it is written; may raise.
    """

    def __init__(
        self,
        output: Output,
        shard: ShardPlan,
        *,
        head: bytes,
        checksum: str,
        done: Callable[[int], None],
        settle: Callable[[int, str], str],
        check_index: Callable[[bytes], None] | None = None,
    ) -> None:
        self.text = ShardText(checksum, shard.number)
        self._output = output
        self._shard = shard
        self._checksum = checksum
        self._progress = done
        self._settle = settle
        self._name = shard.name
        self._check_index = check_index
        output.put(0, [self.text.begin(head)])

    def sequence(
        self, threads: int
    ) -> JobSequence[list[Part], ChunkCodec, list[_Chunk], tuple[int, _Pieces] | None]:
        """The jobs that write the shard, for at most ``threads`` threads."""
        records = self._shard.records
        return JobSequence(
            jobs(records),
            work=self._encode,
            turn=self._place,
            land=None if self._output.ordered else self._put,
            done=self._done,
            finish=self._finish,
            most_threads=useful_threads(self._shard, threads),
        )

    def file(self) -> ShardFile:
        """The entry of the file in the manifest."""
        text = self.text
        return ShardFile(self._name, self._output.written, text.position, text.seal)

    def _encode(self, coder: ChunkCodec, job: list[Part]) -> list[_Chunk]:
        return [self._encode_part(coder, part) for part in job]

    def _encode_part(self, coder: ChunkCodec, part: Part) -> _Chunk:
        record, source = part.record, part.record.source
        start, stop = record.chunk_range(part.chunk)
        if start == stop:
            return None
        try:
            if record.stored is not None:
                return record.stored(part.chunk)
            raw = source.read(start, stop)
            if source.dtype == "bool":
                check_bool(raw)
            payload = coder.pieces(raw, record.codec, source.dtype)
            return payload, hexdigest(self._checksum, raw)
        except JsonckptError as error:
            error.at(tensor=source.name, chunk=part.chunk)
            raise

    def _place(self, job: list[Part], encoded: list[_Chunk]) -> tuple[int, _Pieces] | None:
        """Give the encoded chunks their offsets in the text."""
        start = self.text.position
        buffers: _Pieces = []
        for part, chunk in zip(job, encoded):
            if chunk is not None and part.first and part.last and len(job) > 1:
                buffers.append(self.text.add_record(_header(part.record), *chunk))
            else:
                self._add_part(buffers, part, chunk)
        if len(job) > 1:
            # One copy is cheaper than a writev of many small pieces.
            buffers = [b"".join(buffers)]
        if not self._output.ordered:
            return start, buffers
        self._output.put(start, buffers)
        return None

    def _add_part(self, buffers: _Pieces, part: Part, chunk: _Chunk) -> None:
        if part.first:
            buffers.append(self.text.open_record(_header(part.record)))
        if chunk is not None:
            payload, checksum = chunk
            before, after = self.text.add_chunk(sum(map(len, payload)), checksum)
            buffers += [before, *payload, after]
        if part.last:
            buffers.append(self.text.close_record())

    def _put(self, _: ChunkCodec, placed: tuple[int, _Pieces] | None) -> None:
        assert placed is not None
        self._output.put(*placed)

    def _done(self, job: list[Part]) -> None:
        count = 0
        for part in job:
            start, stop = part.record.chunk_range(part.chunk)
            count += stop - start
        self._progress(count)

    def _finish(self) -> None:
        text = self.text
        require_all(sum(entry.nbytes for entry in text.entries), _raw_bytes(self._shard))
        start = text.position
        end = text.finish()
        if self._check_index is not None:
            self._check_index(end)
        self._output.put(start, [end])
        self._output.end(text.position)
        self._name = self._settle(self._output.written, text.seal)


def _header(record: RecordPlan) -> Header:
    source = record.source
    return Header(
        source.name,
        source.dtype,
        source.shape,
        source.device,
        record.codec,
        record.nbytes,
        layout=source.layout,
    )


def useful_threads(shard: ShardPlan, threads: int) -> int:
    """How many of the threads are useful for a shard."""
    return threads_for(threads, _raw_bytes(shard), len(shard.records))


def _raw_bytes(shard: ShardPlan) -> int:
    return sum(record.nbytes for record in shard.records)
