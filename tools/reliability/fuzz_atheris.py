"""Fuzzing guided by coverage: atheris mutates, with the same checks. Needs ``pip install atheris``.

    python -m tools.reliability.fuzz_atheris [TARGET] [options of libFuzzer] [CORPUS]

TARGET: ``single`` (a single file, all readers), ``manifest``, ``lists``, ``codecs`` or ``foreign``.
With ``-runs=N`` it ends after N inputs. The first failure ends it with an error and is kept in a
file. atheris instruments Python code. So it finds paths that :mod:`tools.reliability.fuzz` finds
only by luck, but it is slower.
"""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _targets(folder: Path) -> dict[str, tuple[Callable[[bytes], Any], list[bytes]]]:
    """Each target, with its first inputs."""
    import jsonckpt
    from jsonckpt._src.foreign.read_json import read_foreign
    from jsonckpt._src.foreign.values import ForeignOptions
    from jsonckpt._src.format.chunk_codec import ChunkCodec
    from jsonckpt._src.format.limits import Limits
    from jsonckpt._src.format.manifest import parse_manifest
    from jsonckpt._src.format.model import Codec
    from tests.foreign.dialects import DIALECTS
    from tests.hostile.forge import good, zstd
    from tools.reliability.common import BAD
    from tools.reliability.fuzz import judge, manifest_text

    def refused(call: Callable[[], Any]) -> None:
        try:
            call()
        except jsonckpt.JsonckptError as error:
            str(error)

    def single(data: bytes) -> None:
        verdict = judge({"run.json": data}, "single", folder, doors=False)
        assert not verdict.startswith(BAD), verdict

    def manifest(data: bytes) -> None:
        refused(lambda: parse_manifest(data, Limits()))

    def decode(codec: Codec, dtype: str, data: bytes, size: int) -> None:
        out = memoryview(bytearray(size))
        refused(
            lambda: ChunkCodec(zstd_window=1 << 26).decode_into(memoryview(data), codec, dtype, out)
        )

    def lists(data: bytes) -> None:
        for dtype in ("float32", "int64", "bfloat16", "bool"):
            decode(Codec("list", "none", "none", 1 << 20), dtype, data, 16)

    def codecs(data: bytes) -> None:
        decode(Codec("base64", "none", "none", 1 << 20), "uint8", data, 32)
        text = base64.b64encode(data)
        decode(Codec("base64", "zstd", "none", 1 << 20), "uint8", text, 32)

    def foreign(data: bytes) -> None:
        refused(lambda: read_foreign(io.BytesIO(data), folder, ForeignOptions(limit=1 << 20)))

    whole = good()
    return {
        "single": (single, [whole.text(whole.records, single=True).text]),
        "manifest": (manifest, [manifest_text()]),
        "lists": (lists, [b"1.5,-0.0,1e-7,3", b"0,1", b'"NaN","Infinity","0x7fc00001",2']),
        "codecs": (codecs, [base64.b64encode(bytes(32)), zstd(bytes(32))]),
        "foreign": (foreign, [text.encode() for text in DIALECTS.values()]),
    }


def main(argv: list[str]) -> int:
    """Run until libFuzzer ends it. Returns 0 without atheris, because it is optional."""
    try:
        import atheris
    except ImportError:
        print("fuzz_atheris: skipped: atheris is not installed (pip install atheris)")
        return 0
    name = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else "single"
    with atheris.instrument_imports(include=["jsonckpt", "json", "ijson"]):
        import jsonckpt._src.foreign.read_json  # noqa: F401
    with tempfile.TemporaryDirectory(prefix="atheris-") as directory:
        target, seeds = _targets(Path(directory))[name]
        corpus = Path(directory) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        options = [argument for argument in argv[1:] if argument != name]
        atheris.Setup([argv[0], "-timeout=2", "-rss_limit_mb=4096", *options, str(corpus)], target)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
