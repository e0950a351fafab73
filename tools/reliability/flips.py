"""Damages every bit, every length and every line of a checkpoint of about 50 KB.

    python -m tools.reliability.flips [--full] [--seed N] [--sample N] [--kind NAME] [--form NAME]

No damage may give another state. Each error must name the file, and the tensor if the damage is in
its chunks. Damage may pass only if it is a flipped bit that changes no byte of a tensor: zstd
frames have padding bits without a meaning, and in a list ``1E-3`` is another spelling of ``1e-3``.
Base64 has one spelling. Without ``--full``, the tool takes a sample of each kind by seed.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import jsonckpt
from tests.readers import indexed, streaming
from tests.support import difference
from tools.reliability.common import BAD, command_line, memory_directory
from tools.reliability.forked import Tally, run_trials

#: Each kind of checkpoint, with the arguments of its save.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "base64": ("run", {"max_shard_size": 12_000, "chunk_size": 2_000}),
    "zstd": ("run", {"compression": "zstd", "max_shard_size": 12_000, "chunk_size": 2_000}),
    "list": ("run", {"encoding": "list", "max_shard_size": 20_000, "chunk_size": 2_000}),
    "list_zst": (
        "run",
        {"encoding": "list", "compression": "zstd", "max_shard_size": 20_000, "chunk_size": 2_000},
    ),
    "single": ("run.json", {"chunk_size": 2_000}),
    "single_zst": ("run.json.zst", {"chunk_size": 2_000}),
}
KINDS = ("bits", "cuts", "lines")
_SAMPLE = 250


def _state(size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(size // 8, generator=generator)
    return {
        "model": {
            "w": weights[: len(weights) // 4 * 4].reshape(-1, 4),
            "h": weights[: size // 16].bfloat16(),
            "mask": torch.arange(size // 40) % 3 == 0,
            "steps": torch.arange(size // 80) * 1_000_003,
            "empty": torch.zeros(0, 3),
        },
        "tied": weights,
        "epoch": 3,
        "lr": 0.1,
        "betas": (0.9, 0.999),
        "notes": ["a", "b\u00e9", {"x": None}],
    }


class Damage:
    """One file of a checkpoint, and its possible damages.

    Trial ``n`` flips bit ``n % 8`` of byte ``n // 8``, or cuts the file to ``n`` bytes, or makes
    the change ``n % 4`` to line ``n // 4``.
    """

    def __init__(self, path: Path, file: Path, form: str, kind: str) -> None:
        self.path = path
        self.file = file
        self.kind = kind
        self.data = file.read_bytes()
        self.compressed = file.suffix == ".zst"
        self.expected = jsonckpt.load(path, threads=1)
        self.lines = self.data.splitlines(keepends=True)
        #: Only white space follows the seal of a manifest, and it may be missing.
        self.manifest = file.name == "manifest.json"
        self.respelled = form != "base64" and form != "single"
        self.tensors = [] if self.compressed or self.manifest else list(_chunk_ranges(self.data))

    @property
    def trials(self) -> int:
        """The number of different damages."""
        if self.kind == "bits":
            return 8 * len(self.data)
        if self.kind == "cuts":
            return len(self.data)
        return 0 if self.compressed else 4 * len(self.lines)

    def damaged(self, number: int) -> tuple[bytes, str | None]:
        """The damaged bytes, and the tensor whose chunks are damaged, if any."""
        if self.kind == "bits":
            changed = bytearray(self.data)
            changed[number // 8] ^= 1 << number % 8
            return bytes(changed), self._tensor_at(number // 8)
        if self.kind == "cuts":
            return self.data[:number], None
        at, change = divmod(number, 4)
        before, line, after = self.lines[:at], self.lines[at], self.lines[at + 1 :]
        made = {
            0: [*before, *after],
            1: [*before, line, line, *after],
            2: [*before, b"\n", line, *after],
            3: [*before, *after[:1], line, *after[1:]],
        }
        return b"".join(made[change]), None

    def _tensor_at(self, place: int) -> str | None:
        return next((name for start, stop, name in self.tensors if start <= place < stop), None)

    def trial(self, number: int, folder: Path) -> str:
        """Read the damaged file with both readers."""
        del folder
        data, tensor = self.damaged(number)
        if data == self.data:
            return "no damage"
        self.file.write_bytes(data)
        verdicts = [self._read(reader, tensor) for reader in (_one_thread, streaming)]
        bad = [verdict for verdict in verdicts if verdict.startswith(BAD)]
        if bad:
            return bad[0]
        if verdicts[0] != verdicts[1] and "same state" in verdicts:
            return f"{BAD}one reader refuses, the other does not"
        if verdicts[0] == "same state" and not self._may_pass(data):
            return f"{BAD}the damage passes"
        return verdicts[0]

    def _may_pass(self, data: bytes) -> bool:
        if self.manifest:
            return data.rstrip() == self.data.rstrip()
        return self.respelled and self.kind == "bits"

    def _read(self, reader: Any, tensor: str | None) -> str:
        try:
            state = reader(self.path)
        except jsonckpt.JsonckptError as error:
            if error.file is None or str(self.path) not in error.file:
                return f"{BAD}no file in: {error}"
            if tensor is not None and error.tensor != tensor:
                return f"{BAD}the damage is in {tensor}: {error}"
            return f"refused, tensor {'' if error.tensor else 'not '}named"
        found = difference(self.expected, state)
        return "same state" if found is None else f"{BAD}another state: {found}"


def _one_thread(path: Path) -> Any:
    return indexed(path, threads=1)


_HEAD = re.compile(rb'^\{"name":"([^"]*)".*"chunks":\[$')


def _chunk_ranges(data: bytes) -> Iterator[tuple[int, int, str]]:
    """The ranges of the payloads of a shard, and their tensors. Read line by line."""
    name = ""
    position = 0
    for line in data.splitlines(keepends=True):
        head = _HEAD.match(line.rstrip(b"\n"))
        if head:
            name = head[1].decode()
        elif line.startswith((b"]", b"{")):
            name = ""
        elif name:
            stop = position + len(line.rstrip(b",\n")) - 1
            yield position + 1, stop, name
        position += len(line)


def flips(
    seed: int,
    *,
    full: bool = False,
    forms: Sequence[str] = tuple(FORMS),
    kinds: Sequence[str] = KINDS,
    size: int = 36_000,
    sample: int = _SAMPLE,
    seconds: float | None = None,
) -> dict[str, Tally]:
    """Damage each file of each form in each way. Returns results by form and kind.

    Args:
        full: every damage; else a sample.
        size: raw bytes of the tensors. With the default the text has about 50 KB.
        sample: trials of one kind for one form.
        seconds: begin no more trials after this time.
    """
    found: dict[str, Tally] = {}
    began = time.monotonic()
    for form in forms:
        name, options = FORMS[form]
        with tempfile.TemporaryDirectory(dir=memory_directory(), prefix="flips-") as directory:
            path = Path(directory) / name
            jsonckpt.save(_state(size), path, sync=False, **options)
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            for kind in kinds:
                tally = found[f"{form} {kind}"] = Tally()
                for file in files:
                    damage = Damage(path, file, form, kind)
                    numbers: Sequence[int] = range(damage.trials)
                    wanted = -(-sample // len(files))
                    if not full and len(numbers) > wanted:
                        numbers = random.Random(f"{seed}:{form}:{kind}").sample(numbers, wanted)
                    left = None if seconds is None else seconds - (time.monotonic() - began)
                    if left is not None and left <= 0:
                        continue
                    part = run_trials(
                        partial(Damage.trial, damage), numbers, Path(directory), seconds=left
                    )
                    file.write_bytes(damage.data)
                    for number, what in part.failures:
                        print(f"{form} {kind} {file.name} {number}: {what}", file=sys.stderr)
                    tally.add(part)
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns 1 if anything failed."""
    parser = command_line("flips", "everything, not a sample")
    parser.add_argument("--form", choices=sorted(FORMS), action="append")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--size", type=int, default=36_000)
    parser.add_argument("--sample", type=int, default=_SAMPLE, help="damages of one kind and form")
    parser.add_argument("--seconds", type=float, help="stop after about so long")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = flips(
        arguments.seed,
        full=arguments.full,
        forms=arguments.form or tuple(FORMS),
        kinds=arguments.kind or KINDS,
        size=arguments.size,
        sample=arguments.sample,
        seconds=arguments.seconds,
    )
    for name, tally in found.items():
        print(f"  {name}: {tally}")
    total = sum(tally.trials for tally in found.values())
    failures = sum(len(tally.failures) for tally in found.values())
    silent = sum(tally.verdicts["same state"] for tally in found.values())
    print(
        f"flips: seed {arguments.seed}: {total} damages, {failures} failures, 0 wrong tensors, "
        f"{silent} without effect, {time.perf_counter() - began:.0f} s"
        if not failures
        else f"flips: seed {arguments.seed}: {total} damages, {failures} failures"
    )
    return int(failures > 0 or total == 0)


if __name__ == "__main__":
    sys.exit(main())
