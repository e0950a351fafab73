"""``copy``: a checkpoint as a whole, with the shards that it shares with others."""

from __future__ import annotations

import os
from contextlib import ExitStack

from ..format.limits import Limits
from ..load.options import ReadOptions
from ..save.write import SaveResult
from .records import Opened, StoredRecord
from .write import Draft, WriteOptions, check_out, local, write_draft


def copy(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    threads: int | None = None,
    limits: Limits | None = None,
    sync: bool = True,
) -> SaveResult:
    """Write a checkpoint once more, whole: it needs no other directory.

    A checkpoint that was saved with ``unchanged_from`` names files of directories beside it. The
    copy has them all. Payloads are copied undecoded, in bounded memory; damage in one is found by
    :func:`jsonckpt.verify`. State, metadata, time and ``save_id`` stay.

    Args:
        path: of the checkpoint; may be a URL.
        out: the new checkpoint: a directory, or a ``.json`` or ``.json.zst`` file.
        overwrite: replace a checkpoint that is there.
        threads, limits, sync: as for :func:`jsonckpt.save` and :func:`jsonckpt.load`.

    Returns:
        what :func:`jsonckpt.save` returns.

    Raises:
        CheckpointExistsError: something is at ``out``.
        IncompleteCheckpointError, FormatError: a file is missing or is another one.
        WriteError: the system refused; nothing was changed.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as run:
    ...     state, one, two = {"w": torch.ones(3)}, run + "/step-1", run + "/step-2"
    ...     _ = jsonckpt.save(state, one)
    ...     _ = jsonckpt.save(state, two, unchanged_from=one)
    ...     whole = copy(two, run + "/whole")
    ...     whole.nbytes, len(whole.files), jsonckpt.load(whole.path)
    (12, 2, {'w': tensor([1., 1., 1.])})
    """
    target = local(out, "out")
    options = WriteOptions(overwrite=overwrite, threads=threads, sync=sync)
    check_out(target, options)
    with ExitStack() as stack:
        opened = Opened(path, ReadOptions.of(limits=limits, threads=threads), stack)
        manifest = opened.manifest
        draft = Draft(
            inputs=[opened],
            state=manifest.state,
            metadata=manifest.metadata,
            records=[StoredRecord.of(opened, entry) for entry in manifest.entries],
            plans={},
            save_id=manifest.save_id,
            created_at=manifest.created_at,
        )
        return write_draft(draft, target, options)
