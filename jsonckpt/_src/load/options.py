"""The options of a read, checked once. No torch here: listing a checkpoint needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..format.checksums import check_expected
from ..format.limits import DEFAULT_LIMITS, Limits, checked_limits
from ..parallel import thread_count
from ..storage.path_arguments import check_storage_options


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How to read a checkpoint.

    Attributes:
        limits: sizes above these are refused.
        verify: compare the checksums of all chunks. Everything else is always checked.
        threads: the largest number of threads that decode.
        progress: show a tqdm bar.
        storage_options: for fsspec.
        expected_digest: the ``SaveResult.digest`` that the checkpoint must have.
        forward_only: read forward even where byte ranges are known.
    """

    limits: Limits = DEFAULT_LIMITS
    verify: bool = True
    threads: int = 1
    progress: bool = False
    storage_options: Mapping[str, Any] | None = None
    expected_digest: str | None = None
    forward_only: bool = False

    @classmethod
    def of(
        cls, *, limits: Limits | None = None, threads: int | None = None, **others: Any
    ) -> ReadOptions:
        """The options of a public function, checked.

        Raises:
            ArgumentError: an argument is not valid.
        """
        options = cls(limits=checked_limits(limits), threads=thread_count(threads), **others)
        check_expected(options.expected_digest, verify=options.verify)
        check_storage_options(options.storage_options)
        return options
