"""``pytest benchmarks``: jsonckpt's own speed, to be compared across commits.

``--with-peers`` lets its peers take their turns between the rounds, ``--bench-bytes`` sets the
size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.figures import Stage
from benchmarks.settings import Settings, places

PLUGIN = "jsonckpt-benchmarks"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """That there is nothing to compare with, or that the machine has changed, is worth a line, and
    no error as warnings are elsewhere. It is told while pytest is configured, before its filters
    count, so Python's own are told, too."""
    if config.pluginmanager.hasplugin("benchmark"):
        from pytest_benchmark.logger import PytestBenchmarkWarning

        config.addinivalue_line(
            "filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning"
        )
        warnings.simplefilter("default", PytestBenchmarkWarning)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this directory."""
    group = parser.getgroup("jsonckpt benchmarks")
    group.addoption("--with-peers", action="store_true", help="interleave the peers' turns")
    group.addoption("--bench-bytes", type=int, default=200_000_000, help="tensor bytes")
    group.addoption("--bench-dir", type=Path, default=None, help="where files lie")


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Those of ``python -m benchmarks`` when it runs these tests, else from the options."""
    given = request.config.pluginmanager.get_plugin(PLUGIN)
    if given is not None:
        yield given.settings
        return
    with places(request.config.getoption("--bench-dir")) as found:
        size: int = request.config.getoption("--bench-bytes")
        yield replace(
            Settings.of(found, quick=True),
            state_bytes=size,
            list_bytes=min(size, 6_000_000),
            rounds=3,
        )


@pytest.fixture(scope="session")
def stage(settings: Settings) -> Iterator[Stage]:
    """The processes that are measured."""
    made = Stage(settings)
    try:
        yield made
    finally:
        made.close()
