"""What of a directory the upload takes, and what becomes of it there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import LimitError, counted, listed, quote
from ..find.walk import METADATA_NAMES
from ..format.filenames import is_shard_name
from ..format.model import MANIFEST_NAME
from ..progress import human

#: Files that a data set may have at its top level.
MOST_FILES: Final = 50
#: Bytes of one data set.
MOST_BYTES: Final = 200_000_000_000
#: Names that the upload leaves out without a word.
_NEVER = METADATA_NAMES | {
    f"dataset-cover-image.{ending}" for ending in ("png", "jpg", "jpeg", "webp")
}
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".gz", ".whl")


@dataclass(frozen=True)
class Folder:
    """The entries of a directory.

    Attributes:
        files: names and sizes of the files that the upload takes.
        directories: names of the subdirectories, which it skips.
        never: names of the files that it leaves out.
    """

    path: Path
    files: dict[str, int]
    directories: tuple[str, ...]
    never: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> Folder:
        """Read a directory."""
        files, directories, never = dict[str, int](), list[str](), list[str]()
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    directories.append(entry.name)
                elif entry.name in _NEVER:
                    never.append(entry.name)
                elif entry.is_file():
                    files[entry.name] = entry.stat().st_size
        return cls(path, files, tuple(directories), tuple(never))

    @property
    def nbytes(self) -> int:
        """The size of the upload."""
        return sum(self.files.values())

    def check_count(self, more: int) -> None:
        """Check that there is room for all files.

        Args:
            more: files that are about to be copied into it.

        Raises:
            LimitError: there are too many.
        """
        count = len(self.files) + more
        if count <= MOST_FILES:
            return
        shards = {name: size for name, size in self.files.items() if is_shard_name(name)}
        if len(shards) > 1:
            others = count - len(shards)
            size = -(-sum(shards.values()) // max(1, MOST_FILES - others - 5)) // 1_000_000 + 1
            hint = (
                f'Save again with larger shards, such as max_shard_size="{size}MB", into a new '
                "directory."
            )
        else:
            hint = "Move files that the data set does not need, such as old checkpoints, elsewhere."
        raise LimitError(
            f"{counted(count, 'file')} to upload, Kaggle takes {MOST_FILES}",
            file=self.path,
            hint=hint,
        )

    def warnings(self) -> list[str]:
        """What the upload leaves out or changes, as sentences."""
        return [said for rule in _RULES if (said := rule(self))]


def _skipped(folder: Folder) -> str:
    names = [name for name in folder.directories if not name.startswith(".")]
    if not names:
        return ""
    held = [name for name in names if (folder.path / name / MANIFEST_NAME).is_file()]
    if held:
        return (
            f"subdirectories are not uploaded, and these are checkpoints: {listed(held, 3)}. Run "
            "kaggle-init for the checkpoint's own directory, or upload with: -r zip"
        )
    return (
        f"subdirectories are not uploaded: {listed(names, 3)}. Move what is needed up, or upload "
        "with: -r zip"
    )


def _left_out(folder: Folder) -> str:
    names = [name for name in folder.never if name != "dataset-metadata.json"]
    if not names:
        return ""
    return f"files of these names are never uploaded: {listed(names, 3)}. Rename what is needed"


def _unpacked(folder: Folder) -> str:
    names = [name for name in folder.files if name.lower().endswith(_ARCHIVES)]
    if not names:
        return ""
    wheels = " (wheels, too)" if any(name.endswith(".whl") for name in names) else ""
    return (
        f"Kaggle unpacks archives{wheels}: {listed(names, 3)}. Compress inside the JSON instead: "
        'jsonckpt.save(…, compression="zstd")'
    )


def _zip_of_torch(folder: Folder) -> str:
    names = [name for name in folder.files if _is_zip(folder.path / name)]
    names = [name for name in names if not name.lower().endswith(_ARCHIVES)]
    if not names:
        return ""
    return (
        f"these are ZIP archives inside, and may arrive as directories: {listed(names, 3)}. "
        "Convert them: jsonckpt convert PATH -o NEW.json"
    )


def _is_zip(path: Path) -> bool:
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt", ".npz", ".keras"):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _zst(folder: Folder) -> str:
    names = [name for name in folder.files if name.endswith(".zst")]
    if not names:
        return ""
    return (
        f"it is not documented whether Kaggle unpacks .zst: {listed(names, 3)}. To be sure, "
        'compress inside the JSON: jsonckpt.save(…, compression="zstd") into a .json or a directory'
    )


def _temporary(folder: Folder) -> str:
    names = [name for name in folder.files if name.endswith(".tmp") or name.startswith(".")]
    if not names:
        return ""
    return (
        f"hidden and temporary files are uploaded, too: {listed(names, 3)}. Leftovers of a killed "
        f"save are removed by: jsonckpt gc {quote(str(folder.path))}"
    )


def _large(folder: Folder) -> str:
    if folder.nbytes <= MOST_BYTES:
        return ""
    return f"{human(folder.nbytes)} to upload, a data set may have {human(MOST_BYTES)}"


_RULES: tuple[Callable[[Folder], str], ...] = (
    _skipped, _left_out, _unpacked, _zip_of_torch, _zst, _temporary, _large,
)  # fmt: skip
