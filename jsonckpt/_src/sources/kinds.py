"""The table of files that are told by their content, and what to do with each.

A row with advice is no checkpoint that ``convert`` reads: the advice is the way out. A row without
advice has a reader in :mod:`read`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zstandard import FRAME_HEADER

from ..errors import FormatError, listed, quote

#: Bytes at the beginning of a file that tell its kind.
HEAD: Final = 4096
_BOM = b"\xef\xbb\xbf"
#: How the names of weights end.
WEIGHTS: Final = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".h5", ".onnx", ".gguf")
#: A JSON tool may have sorted the members: then others stand before it, which hold no brackets.
_OWN = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{[^{}\[\]]*"format"\s*:\s*"jsonckpt\.(?:shard|manifest)"')
_INDEX = re.compile(r".*\.(safetensors|bin)\.index\.json")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_OLD_PICKLE = re.compile(
    rb"\((?:dp\d|lp\d|i\w|c\w)|c(?:__builtin__|_codecs|co|numpy|torch)[\w.]*\n|[}\]]q\x00"
)
_SKLEARN = re.compile(
    rb"(?:\x80.(?:\x95.{8})?)?(?:ccopy_reg\n_reconstructor\n(?:q.|p\d+\n)\()?"
    rb"(?:\x8c.|c)(?:sklearn|lightgbm|xgboost|catboost)[.\n]",
    re.DOTALL,
)
_TAR_OF_TORCH = re.compile(rb"(?:\./)?(?:sys_info|pickle|storages|tensors)\0")
_REPR = re.compile(
    rb"\s*(?:\{\s*'|\{\s*\d+\s*:|\[?\(?(?:\w+\.)*(?:OrderedDict|odict|tensor|array|Parameter)\()"
)
_YAML = re.compile(rb"(?:#[^\n]*\n|\s)*(?:---|- |['\"]?[\w./-]+['\"]?:(?:\s|$))")
_ONNX = re.compile(rb"\x08[\x01-\x20](?:\x12.[\w .+/-]|[\x3a\x42]|\x1a.[\w.+ -])", re.DOTALL)
_JOBLIB = (
    "In Python: joblib.load(PATH) reads it, if you trust whoever made it. Save what it holds with "
    "torch.save, and convert that."
)
_OF_EXPORT = re.compile(r"(.*/)?(archive_format|serialized_exported_program\.json|models/.+\.json)")
_TREES = "It holds decision trees and no tensors: keep it in its own format."


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a file before it is read.

    Attributes:
        path: its path. The name decides only where the content says too little.
        head: its first bytes, at most :data:`HEAD`.
        size: the number of its bytes.
        members: the names in it, if it is a ZIP archive that can be opened.
    """

    path: Path
    head: bytes
    size: int
    members: tuple[str, ...] = ()

    @property
    def text(self) -> bytes:
        """The head without a byte order mark and without white space before the first value."""
        return self.head.removeprefix(_BOM).lstrip(b" \t\r\n")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file or directory.

    Attributes:
        name: what it is, as a message says it.
        advice: what to do. Empty if ``convert`` reads it.
    """

    name: str
    advice: str = ""

    def refuse(self) -> FormatError:
        """The error that says what it is and what to do."""
        return FormatError(f"this is {self.name}", hint=self.advice)


def _starts(*heads: bytes) -> Callable[[Look], bool]:
    return lambda look: look.head.startswith(heads)


def _text(pattern: bytes) -> Callable[[Look], bool]:
    found = re.compile(pattern, re.IGNORECASE)
    return lambda look: found.match(look.text) is not None


def _named(pattern: str) -> Callable[[Look], bool]:
    found = re.compile(pattern)
    return lambda look: found.fullmatch(look.path.name) is not None


def _is_safetensors(look: Look) -> bool:
    return look.head[8:9] == b"{" and 2 <= int.from_bytes(look.head[:8], "little") <= look.size - 8


def _is_pickle(look: Look) -> bool:
    return look.head.startswith(b"\x80") or _OLD_PICKLE.match(look.head) is not None


def _is_data_pkl(look: Look) -> bool:
    return look.path.name == "data.pkl" and (look.path.parent / "data").is_dir()


def _is_tar(look: Look) -> bool:
    return look.head[257:262] == b"ustar"


def _is_msgpack(look: Look) -> bool:
    """A map whose first key is a short string."""
    head = look.head[:64]
    start = 1 if head[:1] and 0x81 <= head[0] <= 0x8F else {0xDE: 3, 0xDF: 5}.get(head[0], 0)
    length = head[start] - 0xA0 if start and len(head) > start else 0
    key = head[start + 1 : start + 1 + length]
    return 0 < length < 32 and len(key) == length and re.fullmatch(rb"[\w ./-]+", key) is not None


def _is_json_lines(look: Look) -> bool:
    first, _, rest = look.text.partition(b"\n")
    if not first.startswith((b"{", b"[")) or rest.lstrip()[:1] not in (b"{", b"["):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _is_text(look: Look) -> bool:
    try:
        # The head may end within a character.
        text = (
            look.head.decode()
            if len(look.head) < HEAD
            else look.head[:-4].decode("utf-8", "ignore")
        )
    except UnicodeDecodeError:
        return False
    return re.search(r"[\x00-\x08\x0e-\x1f]", text) is None and "\ufffd" not in text


def _has(*suffixes: str) -> Callable[[Look], bool]:
    return lambda look: any(name.endswith(suffixes) for name in look.members)


def _is_zip_of_torch(look: Look) -> bool:
    # An archive that cannot be opened is most often a .pt that was cut off: its reader says so.
    return not look.members or any(name.split("/", 1)[-1] == "data.pkl" for name in look.members)


def _others(look: Look) -> str:
    names = [name for name in look.members if not name.endswith("/")]
    shown = [name for name in names if name.lower().endswith(WEIGHTS)] or names
    return listed(shown, 3)


TORCH: Final = Kind("PyTorch file")
SAFETENSORS: Final = Kind("safetensors file")
NPZ: Final = Kind("NumPy archive")
NPY: Final = Kind("NumPy array")
COMPRESSED: Final = Kind("compressed file")
SHARDED: Final = Kind("sharded checkpoint")
OWN: Final = Kind("jsonckpt checkpoint")
JSON: Final = Kind("JSON of another program")

SCRIPT: Final = Kind(
    "a TorchScript program, not a checkpoint",
    "In Python: torch.save(torch.jit.load(PATH).state_dict(), OUT), and convert OUT. A "
    "program that was unpacked into a directory cannot be loaded: take the .pt file that it was.",
)
_Row = tuple[Callable[[Look], bool], Kind]

_DISTCP: _Row = (
    _named(r".*\.distcp"),
    Kind(
        "one part of a distributed checkpoint (torch.distributed.checkpoint)",
        "Give its directory: the message says how to make one file of it.",
    ),
)

#: The members of a ZIP archive tell its kind.
_ARCHIVES: list[_Row] = [
    _DISTCP,
    (
        lambda look: "constants.pkl" in {name.split("/", 1)[-1] for name in look.members},
        SCRIPT,
    ),
    (
        lambda look: any(map(_OF_EXPORT.fullmatch, look.members)),
        Kind(
            "a program of torch.export (.pt2), not a checkpoint",
            "Convert its state dict: torch.save(torch.export.load(PATH).state_dict, OUT), and "
            "convert OUT.",
        ),
    ),
    (
        lambda look: any(name.endswith(".data/extern_modules") for name in look.members),
        Kind(
            "a package of torch.package, which is code, not a checkpoint",
            "Load the object with torch.package.PackageImporter(PATH), save its state_dict(), and "
            "convert that file.",
        ),
    ),
    (_is_zip_of_torch, TORCH),
    (
        _has("model.weights.h5"),
        Kind(
            "a Keras model (.keras)",
            "In Python: model = keras.saving.load_model(PATH), then numpy.savez(OUT, **{w.path: "
            "w.numpy() for w in model.weights}), and convert OUT.npz.",
        ),
    ),
    (
        _has("/data.pkl"),
        Kind("a ZIP archive around the files of a .pt", "Unzip it, and give the directory."),
    ),
    (_has(".npy"), NPZ),
]

#: Files by their first bytes.
_BINARIES: list[_Row] = [
    (lambda look: look.size == 0, Kind("an empty file", "Take another copy.")),
    (_is_safetensors, SAFETENSORS),
    (
        lambda look: not look.head.strip(b"\0"),
        Kind(
            "a file that begins with zero bytes only",
            "A download that did not finish leaves such a file: download it again.",
        ),
    ),
    _DISTCP,
    (_starts(b"\x93NUMPY"), NPY),
    (
        _is_data_pkl,
        Kind(
            "data.pkl of an unpacked .pt: the values are in other files",
            "Give the directory that holds data.pkl and data/.",
        ),
    ),
    (
        lambda look: (
            look.head.startswith(b"\x80")
            and b"joblib.numpy_pickle" in look.head
            and _SKLEARN.search(look.head) is None
        ),
        Kind("a joblib file", _JOBLIB),
    ),
    (
        lambda look: _SKLEARN.match(look.head) is not None,
        Kind(
            "a pickled model of scikit-learn or the like, not of tensors",
            "Keep it in its own format, or save its arrays (such as coef_) with numpy.savez, and "
            "convert that file.",
        ),
    ),
    (_is_pickle, TORCH),
    (lambda look: _is_tar(look) and _TAR_OF_TORCH.match(look.head) is not None, TORCH),
    (_starts(FRAME_HEADER, b"\x1f\x8b"), COMPRESSED),
    (_starts(*(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))), COMPRESSED),
    (_is_tar, Kind("a tar archive", "Unpack it (tar xf PATH), and give what is in it.")),
    (
        _starts(b"\xfd7zXZ\0"),
        Kind("a file compressed with xz", "Unpack it first: unxz -c PATH > NEW"),
    ),
    (
        _starts(b"BZh"),
        Kind("a file compressed with bzip2", "Unpack it first: bunzip2 -c PATH > NEW"),
    ),
    (
        _starts(b"\x04\x22\x4d\x18"),
        Kind("a file compressed with lz4", "Unpack it first: lz4 -dc PATH > NEW"),
    ),
    (_starts(b"7z\xbc\xaf\x27\x1c"), Kind("a 7-Zip archive", "Unpack it first: 7z x PATH")),
    (_starts(b"Rar!\x1a\x07"), Kind("a RAR archive", "Unpack it first: unrar x PATH")),
    (
        _starts(b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"),
        Kind("zlib-compressed data, as joblib writes it", _JOBLIB),
    ),
    (
        _starts(b"GGUF"),
        Kind(
            "a GGUF model, mostly with quantized weights",
            "Convert the model that it was made from; or dequantize in Python: numpy.savez(OUT, "
            "**{t.name: gguf.dequantize(t.data, t.tensor_type) for t in "
            "gguf.GGUFReader(PATH).tensors}), and convert OUT.npz.",
        ),
    ),
    (
        _starts(b"lmgg", b"fmgg", b"tjgg", b"algg"),
        Kind("a GGML model", "Convert the model that it was made from."),
    ),
    (
        _starts(b"\x89HDF\r\n\x1a\n"),
        Kind(
            "an HDF5 file, as Keras writes .h5",
            "Read its arrays with h5py, save them with numpy.savez, and convert that file.",
        ),
    ),
    (
        _starts(b"{L\0\0\0\0\0\0\0", b"{i\x07learner", b"{U\x07learner"),
        Kind("an XGBoost model (UBJSON)", _TREES),
    ),
    (_starts(b"CBM1"), Kind("a CatBoost model", _TREES)),
    (
        lambda look: look.head[4:8] == b"TFL3",
        Kind("a TensorFlow Lite model", "Convert the model that it was made from."),
    ),
    (
        _starts(b"\x08\x01\x12"),
        Kind(
            "a TensorFlow SavedModel (saved_model.pb), whose weights are in variables/",
            "In Python: model = tf.saved_model.load(DIRECTORY), then numpy.savez(OUT, **{v.name: "
            "v.numpy() for v in model.variables}), and convert OUT.npz.",
        ),
    ),
    (
        lambda look: _ONNX.match(look.head) is not None,
        Kind(
            "an ONNX model",
            "In Python: numpy.savez(OUT, **{t.name: onnx.numpy_helper.to_array(t) for t in "
            "onnx.load(PATH).graph.initializer}), and convert OUT.npz.",
        ),
    ),
    (
        _named(r".*\.data-\d{5}-of-\d{5}|.*\.ckpt-\d+\.(index|meta)|.*\.ckpt\.(index|meta)"),
        Kind(
            "one file of a TensorFlow checkpoint",
            "In Python: r = tf.train.load_checkpoint(PREFIX), then numpy.savez(OUT, **{n: "
            "r.get_tensor(n) for n in r.get_variable_to_shape_map()}), and convert OUT.npz.",
        ),
    ),
    (
        lambda look: b"brain.Event:" in look.head[:64],
        Kind("an event file of TensorBoard", "It holds a log of scalars: give the checkpoint."),
    ),
    (
        _is_msgpack,
        Kind(
            "a msgpack file, as Flax writes it",
            "In Python: tree = flax.serialization.msgpack_restore(open(PATH, 'rb').read()), then "
            "numpy.savez(OUT, **flax.traverse_util.flatten_dict(tree, sep='.')), and convert "
            "OUT.npz.",
        ),
    ),
    (_starts(b"SQLite format 3\0"), Kind("an SQLite database", "Give the checkpoint.")),
    (
        _starts(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"%PDF", b"\x7fELF", b"MZ"),
        Kind("an image, a document or a program", "Give the checkpoint."),
    ),
]

#: Text.
_TEXTS: list[_Row] = [
    (
        _text(rb"version https?://(git-lfs\.github\.com|hawser)"),
        Kind("a Git LFS pointer, not the file itself", "Get the file with: git lfs pull"),
    ),
    (
        _text(rb"/annex/objects/|\.\./.*annex/objects/"),
        Kind("a pointer of git-annex, not the file itself", "Get the file with: git annex get"),
    ),
    (
        _text(rb"outs:\s*\n- (?:md5|etag|hash):"),
        Kind("a pointer of DVC, not the file itself", "Get the file with: dvc pull"),
    ),
    (
        _text(rb"<!doctype html|<html|<head|<body"),
        Kind(
            "a web page (HTML)",
            "A site sent a page, such as a login or an error, in place of the file: download it "
            "again, logged in.",
        ),
    ),
    (
        _text(rb"<\?xml|<[a-z]"),
        Kind(
            "XML",
            "If it was downloaded, a site sent an error in place of the file: download it again.",
        ),
    ),
    (lambda look: _INDEX.fullmatch(look.path.name) is not None, SHARDED),
    (lambda look: _OWN.match(look.head) is not None, OWN),
    (_text(rb'\{\s*"learner"\s*:\s*\{'), Kind("an XGBoost model (JSON)", _TREES)),
    (
        _text(rb"tree\r?\nversion=|\{\s*\"name\"\s*:\s*\"tree\"\s*,"),
        Kind("a LightGBM model", _TREES),
    ),
    (
        _text(rb"\{[^{}]{0,200}\"(?:oblivious_trees|features_info)\"\s*:"),
        Kind("a CatBoost model", _TREES),
    ),
    (
        _text(
            rb'\{\s*(?:"module"\s*:\s*"[\w.]*",\s*)?"class_name"\s*:\s*"(?:Sequential|Functional|Model)"'
        ),
        Kind(
            "the architecture of a Keras model, without weights",
            "In Python: numpy.savez(OUT, **{w.path: w.numpy() for w in model.weights}), and "
            "convert OUT.npz.",
        ),
    ),
    (
        _is_json_lines,
        Kind(
            "JSON Lines: each line is a JSON text of its own",
            "Convert one line of it, such as the last: tail -n 1 PATH > last.json",
        ),
    ),
    (
        lambda look: _REPR.match(look.head) is not None,
        Kind(
            "text as Python prints it, not JSON",
            "Printed tensors are rounded and shortened: save the values with jsonckpt.save or "
            "torch.save.",
        ),
    ),
    (lambda look: look.text[:1] in (b"{", b"["), JSON),
    (_starts(b"\xff\xfe", b"\xfe\xff"), Kind("UTF-16 text", "Save it as UTF-8.")),
    (
        _text(rb"(?:export\s+default|module\.exports|(?:var|let|const)\s+[\w$]+\s*=)"),
        Kind("JavaScript, not JSON", "Keep what is between its outermost brackets, as JSON."),
    ),
    (
        _text(rb"[\d.eE+-]+(?:[,;\t ]\s*[\d.eE+-]+)+\s*(?:\n|\Z)"),
        Kind(
            "numbers as text (CSV)",
            "In Python: numpy.save(OUT, numpy.loadtxt(PATH, delimiter=',')), and convert OUT.npy.",
        ),
    ),
    (
        _text(rb"model_checkpoint_path:"),
        Kind(
            "the list of TensorFlow's checkpoints, not one of them",
            "Give the directory: the message says what to do.",
        ),
    ),
    (
        lambda look: _is_text(look) and _YAML.match(look.head) is not None,
        Kind(
            "text that is not JSON, perhaps YAML or a log",
            "If it holds the weights as YAML: write them as JSON with yaml.safe_load and "
            "json.dump.",
        ),
    ),
    (
        _text(rb'(?:"|-?\d|true\b|false\b|null\b|NaN\b)[^\n]*\s*\Z'),
        Kind("a single value, not a checkpoint", "A checkpoint in JSON is an object or a list."),
    ),
    (
        _is_text,
        Kind(
            "text that is not JSON",
            "Known are files of torch.save, safetensors, NumPy, TensorFlow.js, jsonckpt and JSON.",
        ),
    ),
]


def kind_of(look: Look) -> Kind:
    """The kind of a file.

    >>> kind_of(Look(Path("best.pt"), b"version https://git-lfs.github.com/spec/v1", 130)).name
    'a Git LFS pointer, not the file itself'
    """
    if look.head.startswith(b"PK\x03\x04"):
        return _kind_of_archive(look)
    for test, kind in [*_BINARIES, *_TEXTS]:
        if test(look):
            return kind
    return Kind(
        f"a file of unknown kind; it begins with {quote(look.head[:12])}",
        "Known are files of torch.save, safetensors, NumPy, TensorFlow.js, jsonckpt and JSON.",
    )


def _kind_of_archive(look: Look) -> Kind:
    for test, kind in _ARCHIVES:
        if test(look):
            return kind
    held = _others(look)
    if any(name.lower().endswith(WEIGHTS) for name in look.members):
        return Kind(f"a ZIP archive that holds {held}", "Unzip it, and give what is in it.")
    return Kind(
        f"a ZIP archive, but not one of torch.save: it has no data.pkl, but {held}",
        "Unzip it if a checkpoint is in it, and give that.",
    )
