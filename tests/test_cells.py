"""A cell with arrays is made once, again if a part of it is missing, and never under two protocols."""

import numpy as np
import pytest

from diffusion_model import arrays, results
from linear_structure import cells

KEY = {"level": 0.5, "form": "gaussian"}


def test_a_cell_is_made_once_and_again_where_it_is_not_whole(tmp_path) -> None:
    made = []

    def make() -> tuple[dict, dict]:
        made.append(len(made))
        return {"number": 3.0}, {"score": np.arange(4.0)}

    def ask(**protocol: int) -> cells.Made:
        return cells.once(tmp_path, KEY, {"n": 2} | protocol, "slice", make)

    for _ in range(2):
        found = ask()
        assert found.value == {"number": 3.0}
        assert np.array_equal(found.arrays["score"], np.arange(4.0))
    assert made == [0]
    (cells.beside(tmp_path, KEY) / "meta.json").unlink()  # killed between arrays and cell
    assert cells.find(tmp_path, KEY, {"n": 2}, "slice") is None
    ask()
    results.cell_path(tmp_path, **KEY).unlink()
    ask()
    assert made == [0, 1, 2]
    with pytest.raises(ValueError, match="n: 2 there, 3 now"):
        ask(n=3)


def test_an_error_is_written_raised_and_tried_again(tmp_path) -> None:
    def fail() -> tuple[dict, dict]:
        raise FloatingPointError("NaN")

    with pytest.raises(FloatingPointError):
        cells.once(tmp_path, KEY, {}, "slice", fail)
    assert results.read_cell(results.cell_path(tmp_path, **KEY)).value == {"error": "NaN"}
    assert not arrays.is_finished(cells.beside(tmp_path, KEY))
    assert cells.once(tmp_path, KEY, {}, "slice", lambda: ({"a": 1}, {})).value == {"a": 1}
