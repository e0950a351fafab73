"""``pytest benchmarks``: measures the speed of jsonckpt, to compare commits.

``--with-peers`` also measures the peers, in turns. ``--bench-bytes`` sets the size.
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
    """A missing baseline, or a changed machine, is a warning here, not an error. pytest-benchmark
    warns while pytest is configured, before pytest's filters apply, so this sets Python's own
    filters, too."""
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
    group.addoption("--bench-dir", type=Path, default=None, help="directory for the files")


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Iterator[Settings]:
    """The settings of ``python -m benchmarks`` if it runs these tests, else from the options."""
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
