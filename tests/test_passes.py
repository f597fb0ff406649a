"""Laws of a pass: every block once, whatever killed it and however often; states that are not its own are refused."""

import shutil
from pathlib import Path

import pytest
import torch

from diffusion_model import arrays, passes

COUNT, BLOCK = 103, 10  # 11 blocks
ROWS = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0)) * 1e3


@pytest.fixture(autouse=True)
def always(monkeypatch) -> None:
    """A state after every block."""
    monkeypatch.setattr(passes, "EVERY", 0.0)


def over(folder: Path | None, stop: int | None = None, key: dict | None = None) -> torch.Tensor:
    """The float32 sum of outer products of ROWS; killed at block `stop`."""
    sums = {"second": torch.zeros(4, 4)}

    def add(rows: slice) -> None:
        if stop is not None and rows.start >= stop * BLOCK:
            raise KeyboardInterrupt
        sums["second"].addmm_(ROWS[rows].T, ROWS[rows])

    passes.accumulate(sums, COUNT, BLOCK, add, "rows", folder, key)
    return sums["second"]


def as_rank(rank: int, world: int, monkeypatch) -> None:
    """Be one of several ranks, without the others: what they would add stays in their states."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setattr(passes.ranks, "sum_", lambda tensors: None)
    monkeypatch.setattr(passes.ranks, "from_first", lambda value: value)


def test_a_pass_killed_again_and_again_is_one_that_was_not(tmp_path, capsys) -> None:
    for stop in (3, 3, 7, 10):
        with pytest.raises(KeyboardInterrupt):
            over(tmp_path / "pass", stop)
    assert torch.equal(over(tmp_path / "pass"), over(None))
    assert "7 of 11 blocks are there" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "pass").iterdir()] == ["0-11"]
    assert torch.equal(over(tmp_path / "pass", stop=0), over(None))  # no block is read again


def test_states_of_several_ranks_become_one(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "pass"
    for rank in (1, 2, 0):  # rank 0 last, as it takes up what it finds
        with monkeypatch.context() as patch:
            as_rank(rank, 4, patch)
            over(folder)
    assert len(list(folder.iterdir())) == 1  # ranks 1 and 2 were taken up by rank 0
    with monkeypatch.context() as patch:
        as_rank(0, 4, patch)
    found = over(folder)  # one rank does what rank 3 never did
    assert torch.allclose(found, ROWS.T @ ROWS, rtol=1e-5, atol=1.0)


def test_a_state_within_another_is_counted_once(tmp_path) -> None:
    folder = tmp_path / "pass"
    for stop in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            over(folder, stop)
        shutil.copytree(next(folder.iterdir()), tmp_path / f"{stop}")
    shutil.copytree(tmp_path / "3", folder / "1-3")  # killed between writing a larger state and removing this one
    (folder / "0-9").mkdir()  # killed while writing
    (folder / "0-9" / "second.npy").write_bytes(b"half")
    assert torch.equal(over(folder), over(None))


def test_states_of_other_rows_are_refused(tmp_path) -> None:
    folder = tmp_path / "pass"
    with pytest.raises(KeyboardInterrupt):
        over(folder, 3, {"data": "dots"})
    with pytest.raises(ValueError, match="unfinished pass over other rows"):
        over(folder, None, {"data": "stripes"})
    arrays.write_folder(folder / "9-9", "gaussian", {})
    with pytest.raises(ValueError, match="describes gaussian"):
        over(folder, None, {"data": "dots"})
    passes.forget(folder)
    assert torch.equal(over(folder, None, {"data": "stripes"}), over(None))
