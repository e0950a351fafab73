"""Pictures of tensors against plain loops."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from jsonckpt._src.report.grids import Grid, Picture, as_matrix


def drawn(array: np.ndarray[Any, Any], side: int, step: int, order: int = 1) -> Picture | None:
    grid = Grid(array.shape, 1, array.itemsize, side)
    flat = array.reshape(-1)
    for start in list(range(0, len(flat), step))[::order]:
        grid.take(start * array.itemsize, flat[start : start + step])
    return grid.picture()


def values(picture: Picture) -> np.ndarray[Any, Any]:
    codes = np.frombuffer(base64.b64decode(picture.codes), np.uint8).astype(np.float64)
    cells = (codes - 128) / 127 * picture.scale
    cells[codes == 0] = np.nan
    return cells.reshape(picture.rows, picture.columns)


def by_loops(array: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    """The root mean square of each cell, element by element."""
    rows, columns = as_matrix(array.shape)
    matrix = np.abs(array).reshape(rows, columns).astype(np.float64)
    cells: dict[tuple[int, int], list[float]] = {}
    for (row, column), value in np.ndenumerate(matrix):
        if rows == 1 and height > 1:
            place = divmod(column * height * width // columns, width)
        else:
            place = row * height // rows, column * width // columns
        cells.setdefault(place, []).append(float(value))
    out = np.zeros((height, width))
    for place, found in cells.items():
        out[place] = np.sqrt(np.mean(np.square(found)))
    return out


@pytest.mark.parametrize("shape", [(50, 70), (7, 3), (300,), (90, 2, 5), (1, 33), (200, 1), (65,)])
@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
@pytest.mark.parametrize("order", [1, -1])
def test_cells_are_those_of_loops(shape: tuple[int, ...], step: int, order: int) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    picture = drawn(array, 8, step, order)
    assert picture is not None
    assert picture.rows <= 8
    assert picture.columns <= 8
    expected = by_loops(array, picture.rows, picture.columns)
    found = np.abs(values(picture))
    assert np.abs(found - expected).max() <= picture.scale / 127
    assert picture.signed == (array.size == picture.rows * picture.columns)


def test_a_small_tensor_keeps_its_signs() -> None:
    picture = drawn(np.array([[1.0, -2.0], [0.0, 4.0]]), 8, 3)
    assert picture is not None
    assert picture.signed
    assert values(picture) == pytest.approx(np.array([[1, -2], [0, 4]]), abs=0.04)


def test_what_is_not_finite_has_a_code_of_its_own() -> None:
    array = np.zeros((4, 4))
    array[1, 1], array[3, 0] = np.nan, np.inf
    picture = drawn(array, 2, 5)
    assert picture is not None
    assert np.isnan(values(picture)).tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize("step", [1, 5, 1_000])
def test_dead_rows_and_columns(step: int) -> None:
    array = np.ones((10, 12))
    array[3], array[:, 4], array[:, 7] = 0, 0, 0
    picture = drawn(array, 4, step)
    assert picture is not None
    assert (picture.dead_rows, picture.dead_columns) == (1, 2)
    assert drawn(np.ones(30), 4, step) == drawn(np.ones(30), 4, 30)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_an_empty_tensor_has_no_picture(shape: tuple[int, ...]) -> None:
    assert Grid(shape, 1, 4, 8).picture() is None


def test_two_numbers_in_a_byte() -> None:
    grid = Grid((2, 3), 2, 0.5, 8)
    grid.take(1, np.arange(2, 12, dtype=np.float32))
    grid.take(0, np.arange(2, dtype=np.float32))
    picture = grid.picture()
    assert picture is not None
    assert (picture.rows, picture.columns) == (2, 6)
    assert values(picture).reshape(-1) == pytest.approx(np.arange(12), abs=0.06)


def test_huge_numbers_do_not_overflow() -> None:
    picture = drawn(np.full((4, 4), 1e300), 2, 16)
    assert picture is not None
    assert np.isfinite(picture.scale)
