"""get_parameters.py: statistics once, from images or from moments, and a sentence for everything else."""

import numpy as np
import pytest
import torch
from linear_world import make_data

from diffusion_model import arrays, data, experiment, moments
from linear_structure import get_parameters
from linear_structure.gaussian import Gaussian


def run(*argv: object) -> int:
    """Exit status of the command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(get_parameters.main, [str(entry) for entry in argv])
    return stop.value.code


@pytest.fixture
def dots(tmp_path) -> data.Split:
    """The small set, below the folder that $DATA names in tests."""
    return make_data(tmp_path / "data")


def test_gaussian_statistics_of_the_training_images(dots, tmp_path, capsys) -> None:
    assert run("dots", "gaussian", tmp_path / "g") == 0
    assert "gaussian of 192 dots/train images, rank" in capsys.readouterr().out
    found = Gaussian.load(tmp_path / "g")
    rows = dots.images.reshape(len(dots), -1).astype(np.float64)
    covariance = (found.U * found.lambdas) @ found.U.T
    assert np.allclose(found.mu, rows.mean(0))
    assert np.allclose(covariance, np.cov(rows.T), atol=0.05)
    assert 0.9 * len(dots) < found.rank < len(dots)
    assert (found.meta["dataset"], found.meta["shape"], found.meta["data_hash"]) == ("dots", [3, 8, 8], dots.hash)


def test_again_is_skipped_and_other_options_are_refused(dots, tmp_path, capsys) -> None:
    folder = tmp_path / "g"
    assert run("dots", "gaussian", folder) == 0
    before = (folder / "meta.json").read_bytes()
    assert run("DOTS", "gaussian", folder) == 0
    assert "skipped" in capsys.readouterr().out
    assert (folder / "meta.json").read_bytes() == before
    assert run("dots", "gaussian", folder, "--rank", 3) == 1
    assert "rank: None there, 3 now" in capsys.readouterr().err
    (folder / "mu.npy").write_bytes((folder / "mu.npy").read_bytes()[:-1])
    assert run("dots", "gaussian", folder) == 1
    assert "mu.npy" in capsys.readouterr().err


def test_from_moments_equals_from_images(dots, tmp_path, capsys) -> None:
    moments.of_images(dots).save(tmp_path / "run" / "moments" / "images")
    assert run("dots", "gaussian", tmp_path / "a") == 0
    assert run("dots", "gaussian", tmp_path / "b", "--moments", tmp_path / "run" / "moments") == 0
    first, second = Gaussian.load(tmp_path / "a"), Gaussian.load(tmp_path / "b")
    assert torch.equal(first.U, second.U)
    assert first.meta == second.meta
    assert run("synthetic16", "gaussian", tmp_path / "c", "--moments", tmp_path / "run" / "moments") == 1
    assert "expected {'dataset': 'synthetic16', 'split': 'train'" in capsys.readouterr().err
    assert run("dots", "gaussian", tmp_path / "c", "--moments", tmp_path / "none") == 1
    assert "representations.py" in capsys.readouterr().err


def test_isotropic_and_low_rank(dots, tmp_path) -> None:
    assert run("dots", "isotropic", tmp_path / "i") == 0
    isotropic = Gaussian.load(tmp_path / "i")
    variance = dots.images.reshape(len(dots), -1).astype(np.float64).var(0, ddof=1)
    assert (isotropic.rank, isotropic.rest) == (0, pytest.approx(variance.mean()))
    assert run("dots", "gaussian", tmp_path / "r", "--rank", 3, "--spread") == 0
    low = Gaussian.load(tmp_path / "r")
    assert low.rank == 3
    assert float(low.lambdas.sum()) + 189 * low.rest == pytest.approx(variance.sum())


def test_mistakes_are_sentences(dots, tmp_path, capsys) -> None:
    cases = {
        ("dots", "gausian", tmp_path / "x"): (2, "nearest: gaussian"),
        ("dots", "gaussian", tmp_path / "x", "--rank", 0): (2, "rank 0 is KIND isotropic"),
        ("dots", "gaussian", tmp_path / "x", "--cut-off", -1): (2, "--cut-off -1.0: expected at least 0"),
        ("dots", "gaussian"): (2, "DIR"),
        ("cifar10", "gaussian", tmp_path / "x"): (1, "cifar10"),
    }
    for argv, (status, text) in cases.items():
        assert run(*argv) == status
        assert text in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert run("dots", "gaussian", tmp_path / "full") == 1
    assert "holds other files" in capsys.readouterr().err
    arrays.write_folder(tmp_path / "other", "moments", {"a": np.zeros(2)})
    assert run("dots", "gaussian", tmp_path / "other") == 1
    assert "describes moments, expected gaussian" in capsys.readouterr().err
