"""``jsonckpt.report``: a page to look at, of one checkpoint or of several."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ..._version import __version__
from ..errors import ArgumentError
from ..format.json_text import collector_paused
from ..format.limits import Limits
from ..inspect.api import inspect_container
from ..load.container import Container, open_container
from ..load.options import ReadOptions
from ..progress import progress_bar
from ..storage.os_errors import writing
from ..storage.path_arguments import is_url
from .collect import Collected, collect
from .compare import Compared, changed_values, changes
from .data import data_of
from .page import build

PathLike: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True)
class Report:
    """A page. A notebook shows it in place.

    Attributes:
        html: the whole page: style, program and data in one text. It needs no network.
    """

    html: str = field(repr=False)

    def save(self, path: PathLike) -> Path:
        """Write the page to a file, which is replaced if it exists. Missing directories are made.

        Raises:
            ArgumentError: ``path`` is a URL.
            WriteError: the file cannot be written.
        """
        if is_url(os.fspath(path)):
            raise ArgumentError("a report is written to a local file, not to a URL")
        target = Path(path).expanduser()
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("w", encoding="utf-8", newline="\n") as file:
                file.write(self.html)
        return target

    def _repr_html_(self) -> str:
        """An inline frame, which cannot reach the notebook around it."""
        return (
            '<iframe sandbox="allow-scripts" title="report of a checkpoint" '
            'style="width:100%;height:46rem;border:0" '
            f'srcdoc="{html.escape(self.html)}"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Report({len(self.html):,} characters of HTML; .save('report.html') writes it)"


def report(
    paths: PathLike | Sequence[PathLike],
    *,
    progress: bool = False,
    threads: int | None = None,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """A page with what is in a checkpoint: sizes, statistics, health, the state.

    Two paths are set side by side, too: how far each tensor moved, which values changed. Three or
    more are a run, in the order of their steps: norms, plain numbers and health over the steps. The
    page then describes the last one. Tensors are read chunk by chunk; torch is not imported.

    Args:
        paths: one checkpoint or several: directories, files or URLs.
        progress: show a bar on standard error.
        threads, limits, storage_options: as for :func:`jsonckpt.load`.

    Raises:
        ArgumentError: there is no path.
        JsonckptError: a checkpoint is not whole, or a tensor is damaged.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"w": torch.ones(2, 3), "epoch": 3}, directory + "/c.json")
    ...     page = jsonckpt.report(directory + "/c.json")
    ...     page.save(directory + "/report.html").name
    'report.html'
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not several:
        raise ArgumentError("a report needs a path")
    options = ReadOptions.of(threads=threads, limits=limits, storage_options=storage_options)
    with collector_paused():
        containers = [open_container(path, options) for path in several]
        read = [Collected(inspect_container(container)) for container in containers]
        if len(read) > 2:
            order = _by_step(read)
            containers, read = [containers[at] for at in order], [read[at] for at in order]
        total = sum(one.facts.nbytes for one in read)
        total += read[-1].facts.nbytes if len(read) == 2 else 0
        with progress_bar("report", total, show=progress) as advance:
            for at, container in enumerate(containers):
                last = at == len(containers) - 1
                read[at] = collect(container, read[at].facts, pictures=last, advance=advance)
            compared = _compared(containers, read, advance) if len(read) == 2 else None
    return Report(build(data_of(read, compared, made_by=f"jsonckpt {__version__}")))


def _by_step(read: Sequence[Collected]) -> list[int]:
    """The order of the steps; as they are, if one has no step."""
    steps = [one.number("step") for one in read]
    known = [step for step in steps if step is not None]
    places = range(len(read))
    return sorted(places, key=known.__getitem__) if len(known) == len(read) else list(places)


def _compared(
    containers: Sequence[Container],
    read: Sequence[Collected],
    advance: Callable[[int], None] | None,
) -> Compared:
    one, two = read
    found = changes((containers[0], containers[1]), (one, two), advance)
    return Compared(tuple(found), tuple(changed_values(one, two)))
