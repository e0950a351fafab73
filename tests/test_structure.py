"""How the source is built: imports go one way, pure packages stay pure, nothing grows too large."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonckpt

SOURCE = Path(jsonckpt.__file__).parent / "_src"
#: A module imports from its own package and from the layers before its own.
LAYERS: list[set[str]] = [
    {"boxes", "errors", "linux", "parallel", "progress", "shown"},
    {"format"},
    {"state", "shards"},
    {"tensors", "storage"},
    {"standalone"},
    {"save", "load", "json_stream", "pickles"},
    {"load_into", "foreign", "inspect"},
    {"sources", "diff"},
    {"rescue", "convert", "find", "report", "edit"},
    {"training", "kaggle", "distributed"},
    {"terminal"},
    {"commands"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(file: Path) -> Iterator[str]:
    """What a module imports, absolute: ``jsonckpt._src.format.model``, ``torch``."""
    package = ["jsonckpt", "_src", *file.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_imports_go_one_way() -> None:
    upward = []
    for file in SOURCE.rglob("*.py"):
        own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports_of(file):
            if name.startswith("jsonckpt._src."):
                other = name.split(".")[2]
                ground = LEVEL[own] == LEVEL[other] == 0
                if own != other and not ground and LEVEL[own] <= LEVEL[other]:
                    upward.append(f"{file.relative_to(SOURCE)} imports {name}")
            elif name.split(".")[0] == "jsonckpt" and name != "jsonckpt._version.__version__":
                upward.append(f"{file.relative_to(SOURCE)} imports {name}")
    assert not upward


def test_no_circles() -> None:
    """Also between the modules of one package."""
    graph: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        parts = ("jsonckpt", "_src", *file.relative_to(SOURCE).with_suffix("").parts)
        graph[".".join(parts)] = set()
    for file in SOURCE.rglob("*.py"):
        own = ".".join(("jsonckpt", "_src", *file.relative_to(SOURCE).with_suffix("").parts))
        for name in imports_of(file):
            graph[own] |= {name, name.rpartition(".")[0]} & set(graph)
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


def definitions(kind: type[ast.AST]) -> Iterator[tuple[str, int, str]]:
    """Each definition with the lines of its body without the docstring, and that docstring."""
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kind) and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                words = ast.get_docstring(node) or ""
                body = node.body[1:] if words else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                yield f"{file.relative_to(SOURCE)}: {node.name}", lines, words


def test_functions_fit_on_a_screen() -> None:
    assert not [(name, lines) for name, lines, _ in definitions(ast.FunctionDef) if lines > 60]


def test_large_classes_say_why() -> None:
    """More than 200 lines need a reason in the docstring: a sentence with ``because``."""
    assert not [
        (name, lines)
        for name, lines, words in definitions(ast.ClassDef)
        if lines > 200 and "because" not in words.lower()
    ]


def test_modules_and_packages_stay_small() -> None:
    for file in SOURCE.rglob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 500, file
    for package in filter(Path.is_dir, SOURCE.iterdir()):
        assert len(list(package.glob("*.py"))) <= 15, package


def test_only_the_public_modules_list_their_names() -> None:
    listing = [file for file in SOURCE.rglob("*.py") if "__all__" in file.read_text("utf-8")]
    assert not listing


def test_every_package_has_a_layer() -> None:
    found = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__pycache__"} == set(LEVEL)


def test_the_format_needs_no_torch_and_opens_nothing() -> None:
    banned = {"torch", "pathlib", "socket", "tempfile", "mmap", "fsspec", "shutil"}
    for file in [*(SOURCE / "format").glob("*.py"), *(SOURCE / "shards").glob("*.py")]:
        found = {name.split(".")[0] for name in imports_of(file)} & banned
        assert not found, (file.name, found)


def test_threads_start_in_two_modules() -> None:
    makers = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "threading.Thread",
                "Thread",
                "ThreadPoolExecutor",
                "start_thread",
            }:
                makers.add(str(file.relative_to(SOURCE)))
    assert makers == {"parallel.py", "save/background.py"}


def test_extras_are_not_imported_with_the_package() -> None:
    extras = {"fsspec", "safetensors", "blake3", "aiohttp"}
    code = f"import sys, jsonckpt; print(sorted({extras!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
