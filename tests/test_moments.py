"""Laws of moments: exact however the data is cut, mergeable, removable, bit-equal through a file."""

import json

import numpy as np
import pytest
import torch

from diffusion_model import moments as moments_module
from diffusion_model.moments import ROWS, Moments, read_npz, write_npz


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


@pytest.mark.parametrize("integers", [True, False], ids=["integer products", "float32 products"])
@pytest.mark.parametrize("dimension", [5, 33])
def test_every_sum_of_extreme_pixels_is_exact(integers, dimension, monkeypatch) -> None:
    monkeypatch.setattr(moments_module, "_integers_are_exact", lambda: integers)
    monkeypatch.setattr(moments_module, "STRIP", 16)
    rows = np.random.default_rng(1).choice(np.array([0, 1, 254, 255], np.uint8), (2 * ROWS + 77, dimension))
    rows[:, 0], rows[:, 1] = 255, 0
    moments = of(rows)
    exact = rows.astype(np.float64)
    assert np.array_equal(moments.total, exact.sum(0))
    assert np.array_equal(moments.second, exact.T @ exact)


def test_white_images_do_not_overflow() -> None:
    count = 3 * ROWS + 1
    moments = of(np.full((count, 3), 255, np.uint8))
    assert moments.second.eq(255.0**2 * count).all()
    assert not moments.covariance.any()


def test_integer_products_are_believed_only_where_they_are_right(monkeypatch) -> None:
    for wrong in (lambda a, b: torch.zeros(a.shape[0], b.shape[1], dtype=torch.int32), None):
        moments_module._integers_are_exact.cache_clear()
        monkeypatch.setattr(torch, "_int_mm", wrong) if wrong else monkeypatch.delattr(torch, "_int_mm")
        assert not moments_module._integers_are_exact()
        rows = pixels(3000)
        assert np.array_equal(of(rows).second, rows.T.astype(np.float64) @ rows)
        monkeypatch.undo()
    moments_module._integers_are_exact.cache_clear()


def test_covariance_taken_in_place_is_the_covariance() -> None:
    moments = of(pixels())
    kept = moments.covariance
    assert torch.equal(moments.take_covariance(), kept)


def test_npz_is_read_as_it_was_written_and_as_others_write_it(tmp_path) -> None:
    rows = pixels()
    moments = Moments(12, dataset="dots").update(rows)
    write_npz(tmp_path / "ours.npz", moments)
    found = read_npz(tmp_path / "ours.npz").moments()
    assert (found.count, found.meta) == (300, {"dataset": "dots"})
    assert np.allclose(found.mean, moments.mean, rtol=1e-14)
    assert np.allclose(found.covariance, moments.covariance, rtol=1e-9)
    np.savez(tmp_path / "theirs.npz", mu=rows.mean(0), sigma=np.cov(rows.T.astype(np.float64)))
    assert np.allclose(read_npz(tmp_path / "theirs.npz").moments(300).second, moments.second, rtol=1e-12)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert {"mu", "sigma"} <= set(file.files)


def test_a_foreign_npz_is_refused(tmp_path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_npz(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3) * 1j)
    with pytest.raises(ValueError, match="complex128 numbers in sigma, expected real ones"):
        read_npz(path)
    path.write_bytes(b"PK cut")
    with pytest.raises(ValueError, match="truncated"):
        read_npz(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="truncated"):
        read_npz(path)
    good = {"mu": np.zeros(2), "sigma": np.eye(2)}
    cases = {
        r"expected mu \[D\] and sigma \[D, D\]": {"sigma": np.eye(3)},
        "NaN or infinite": {"mu": np.array([0, np.nan])},
        "not symmetric": {"sigma": np.array([[1.0, 2.0], [0.0, 1.0]])},
    }
    for match, change in cases.items():
        np.savez(path, **good | change)
        with pytest.raises(ValueError, match=match):
            read_npz(path)
    np.savez(path, **good)
    with pytest.raises(ValueError, match="of None rows: their sums need a number"):
        read_npz(path).moments()
    np.savez(path, sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"holds \{'sigma': \[3, 3\]\}, expected mu"):
        read_npz(path)
    np.savez(path, mu=np.array([None, 1]), sigma=np.eye(2))
    with pytest.raises(ValueError, match="Object arrays"):
        read_npz(path)


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
    with pytest.raises(ValueError, match=r"lacks second\.npy, finite \[D, D\]"):
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
