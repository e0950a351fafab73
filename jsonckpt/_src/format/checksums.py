"""The checksum algorithms of the format, under one interface."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import xxhash

from ..errors import ArgumentError, IntegrityError, JsonckptError, quote

Buffer = Any


class Hasher(Protocol):
    """What ``hashlib`` and ``xxhash`` objects share."""

    def update(self, data: Buffer, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""


def _blake3() -> Hasher:
    try:
        import blake3  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise JsonckptError(
            "the checksum blake3 needs the package blake3, which is not installed",
            hint="pip install 'jsonckpt[blake3]'.",
        ) from error
    made: Hasher = blake3.blake3()
    return made


@dataclass(frozen=True)
class Algorithm:
    """A checksum: its name in files, its number of hexadecimal digits, how to start one."""

    name: str
    digits: int
    start: Callable[[], Hasher]


ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (
        Algorithm("xxh3_128", 32, xxhash.xxh3_128),
        Algorithm("sha256", 64, hashlib.sha256),
        Algorithm("blake3", 64, _blake3),
    )
}


def hasher(algorithm: str) -> Hasher:
    """A new checksum of nothing yet."""
    return ALGORITHMS[algorithm].start()


def hexdigest(algorithm: str, data: Buffer) -> str:
    """The checksum of one buffer.

    >>> hexdigest("xxh3_128", b"")
    '99aa06d3014798d86001c324468d497f'
    """
    if algorithm == "xxh3_128":
        return xxhash.xxh3_128_hexdigest(data)
    state = hasher(algorithm)
    state.update(data)
    return state.hexdigest()


def seal_of(algorithm: str, data: Buffer) -> str:
    """The value of a ``seal`` over ``data``."""
    return f"{algorithm}:{hexdigest(algorithm, data)}"


#: Checksum algorithms that resist forgery.
CRYPTOGRAPHIC = ("sha256", "blake3")
_DIGEST = re.compile(r"(sha256|blake3):[0-9a-f]{64}")


def check_expected(digest: object, *, verify: bool = True) -> None:
    """Check the argument ``expected_digest``.

    Raises:
        ArgumentError: it is not a digest that resists forgery, or ``verify`` is off.

    >>> check_expected("sha256:" + "0" * 64)
    """
    if digest is None:
        return
    if isinstance(digest, str) and digest.startswith("xxh3_128:"):
        raise ArgumentError(
            "expected_digest is an xxh3_128 checksum, which finds accidents but not forgeries; "
            'save with checksum="sha256" and pass SaveResult.pin of that save'
        )
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ArgumentError(
            f"expected_digest is {quote(digest)}; it must be 'sha256:' or 'blake3:' and 64 "
            "lower-case hexadecimal digits, as SaveResult.pin has it"
        )
    if not verify:
        raise ArgumentError("expected_digest needs verify=True, which checks the payloads")


def check_manifest_digest(text: bytes, expected: str | None) -> None:
    """Check that a ``manifest.json`` is the expected one.

    Raises:
        IntegrityError: it is not.
    """
    if expected is not None:
        _compare(f"sha256:{hashlib.sha256(text).hexdigest()}", expected, "the manifest")


def check_seal(seal: str, expected: str | None) -> None:
    """Check that a single file with this seal (empty if it is null) is the expected one.

    Raises:
        IntegrityError: it is not.
    """
    if expected is not None and not seal:
        raise IntegrityError(
            "expected_digest pins a checkpoint, but this one was edited: its seal is null, so "
            "nothing shows that it is the one that was saved",
            hint="Take the checkpoint you pinned, or load this one without expected_digest.",
        )
    if expected is not None:
        check_pinned(seal.partition(":")[0], expected)
        _compare(seal, expected, "the file")


def check_pinned(checksum: str, expected: str | None) -> None:
    """Check that a checkpoint's checksums resist forgery, if a digest is expected.

    Raises:
        IntegrityError: they do not.
    """
    if expected is not None and checksum not in CRYPTOGRAPHIC:
        raise IntegrityError(
            f"expected_digest cannot pin this checkpoint: its checksum is {checksum}, which finds "
            "accidents but not forgeries",
            hint='Save it again with checksum="sha256", or convert it with --checksum sha256, and '
            "pass SaveResult.pin of that. It is None where there is nothing to pin.",
        )


def pin_of(digest: str | None, checksum: str) -> str | None:
    """A digest, if ``expected_digest`` takes it: the checksums must resist forgery."""
    return digest if digest and checksum in CRYPTOGRAPHIC else None


def digest_text(digest: str | None, pin: str | None) -> str:
    """A digest for people, and whether it can be pinned."""
    if digest is None:
        return "none: its seal is null"
    if pin is not None:
        return f"{digest} (to pin it: --expected-digest)"
    return f"{digest} (cannot be pinned: save with checksum sha256 or blake3)"


def _compare(found: str, expected: str, what: str) -> None:
    if not hmac.compare_digest(found, expected):
        raise IntegrityError(
            f"{what} has the digest {found}, expected {expected}; no tensor was read",
            hint="This is another save, or it was changed: take the checkpoint you pinned.",
        )
