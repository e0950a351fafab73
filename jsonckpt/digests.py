"""Pinning a checkpoint: ``expected_digest=`` against what the files say. Pure.

Of a directory the digest is the SHA-256 of ``manifest.json``, of a single file its seal. Either
covers every checksum of the checkpoint, so where these are cryptographic it covers every byte.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from jsonckpt.errors import ArgumentError, IntegrityError, quote

__all__ = ["CRYPTOGRAPHIC", "check_expected", "check_manifest_digest", "check_pinned", "check_seal"]

#: Checksum algorithms that nobody can find a second text for.
CRYPTOGRAPHIC = ("sha256", "blake3")
_DIGEST = re.compile(r"(sha256|blake3):[0-9a-f]{64}")


def check_expected(digest: object, *, verify: bool = True) -> None:
    """Whether the argument ``expected_digest`` can pin anything.

    Raises:
        ArgumentError: it is no digest, or ``verify`` is off.

    >>> check_expected("sha256:" + "0" * 64)
    """
    if digest is None:
        return
    if isinstance(digest, str) and digest.startswith("xxh3_128:"):
        raise ArgumentError(
            "expected_digest is an xxh3_128 checksum, which finds accidents but pins nothing; "
            'save with checksum="sha256" and take SaveResult.digest of that'
        )
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ArgumentError(
            f"expected_digest is {quote(digest)}; it must be 'sha256:' or 'blake3:' and 64 "
            "lower-case hexadecimal digits, as SaveResult.digest has it"
        )
    if not verify:
        raise ArgumentError("expected_digest needs verify=True: nothing else looks at the payloads")


def check_manifest_digest(text: bytes, expected: str | None) -> None:
    """Whether a ``manifest.json`` is the one that is pinned.

    Raises:
        IntegrityError: it is not.
    """
    if expected is not None:
        _compare(f"sha256:{hashlib.sha256(text).hexdigest()}", expected, "the manifest")


def check_seal(seal: str, expected: str | None) -> None:
    """Whether a single file, known by its seal, is the one that is pinned.

    Raises:
        IntegrityError: it is not.
    """
    if expected is not None:
        check_pinned(seal.partition(":")[0], expected)
        _compare(seal, expected, "the file")


def check_pinned(checksum: str, expected: str | None) -> None:
    """Whether a checkpoint's checksums are such that a digest over them pins its payloads.

    Raises:
        IntegrityError: they are not.
    """
    if expected is not None and checksum not in CRYPTOGRAPHIC:
        raise IntegrityError(
            f"expected_digest cannot pin this checkpoint: its checksum is {checksum}, which finds "
            "accidents but not forgeries",
            hint='Save it again with checksum="sha256" and pin the digest of that save.',
        )


def _compare(found: str, expected: str, what: str) -> None:
    if not hmac.compare_digest(found, expected):
        raise IntegrityError(
            f"{what} has the digest {found}, expected {expected}; no tensor was read",
            hint="This is another save, or it was changed: take the checkpoint you pinned.",
        )
