"""Laws of moments: exact however the data is cut, mergeable, removable, bit-equal through a file."""

import json

import numpy as np
import pytest
import torch

from diffusion_model.moments import Moments


def pixels(count: int = 300, dimension: int = 12) -> np.ndarray:
    """Random uint8 rows [count, dimension]."""
    return np.random.default_rng(0).integers(0, 256, (count, dimension), dtype=np.uint8)


def of(rows: np.ndarray) -> Moments:
    """Moments of one batch."""
    return Moments(rows.shape[1]).update(rows)


def same(first: Moments, second: Moments) -> bool:
    """Whether two moments agree bit for bit."""
    return (
        first.count == second.count
        and torch.equal(first.total, second.total)
        and torch.equal(first.second, second.second)
    )


def test_agrees_with_numpy() -> None:
    rows = pixels()
    moments = of(rows)
    assert np.allclose(moments.mean, rows.mean(0), rtol=1e-14)
    assert np.allclose(moments.covariance, np.cov(rows.T.astype(np.float64)), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 299])
def test_pixels_are_exact_however_cut(size: int) -> None:
    rows = pixels()
    moments = Moments(rows.shape[1])
    for start in range(0, len(rows), size):
        moments.update(rows[start : start + size].reshape(-1, 3, 2, 2))
    assert same(moments, of(rows))


def test_merge_and_remove_are_inverse() -> None:
    rows = pixels()
    first, second, whole = of(rows[:100]), of(rows[100:]), of(rows)
    assert same(first.copy().merge(second), whole)
    assert same(whole.copy().remove(second), first)
    with pytest.raises(ValueError, match="cannot take 300 rows from moments of 100"):
        first.remove(whole)


def test_saved_moments_come_back_bit_for_bit(tmp_path) -> None:
    moments = Moments(12, dataset="dots").update(torch.randn(50, 12))
    moments.save(tmp_path / "moments", step=3)
    loaded = Moments.load(tmp_path / "moments")
    assert same(loaded, moments)
    assert loaded.meta == {"dataset": "dots", "step": 3}


def test_a_damaged_folder_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist.*make it"):
        Moments.load(tmp_path / "none", "make it")
    folder = of(pixels()).save(tmp_path / "moments")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"arrays": {"total": meta["arrays"]["total"]}}))
    with pytest.raises(ValueError, match=r"expected total \[D\], second \[D, D\]"):
        Moments.load(folder)
    (folder / "total.npy").write_bytes(b"cut")
    with pytest.raises(ValueError, match="truncated"):
        Moments.load(folder)


def test_wrong_rows_are_refused() -> None:
    moments = Moments(4)
    with pytest.raises(ValueError, match=r"rows of 5 numbers .*expected 4"):
        moments.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments.update(torch.tensor([[0.0, 1.0, float("nan"), 2.0]]))
    with pytest.raises(ValueError, match="no mean"):
        _ = moments.mean
    with pytest.raises(ValueError, match="at least 2 rows, 1"):
        _ = moments.update(torch.zeros(1, 4)).covariance
    with pytest.raises(ValueError, match="moments of 5 dimensions, expected 4"):
        moments.merge(Moments(5))
