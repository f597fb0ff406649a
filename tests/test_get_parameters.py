"""get_parameters.py: statistics once, from images or from moments, and a sentence for everything else."""

import numpy as np
import pytest
import torch
from linear_world import make_data

from diffusion_model import arrays, data, experiment, moments, passes
from linear_structure import decompose, get_parameters
from linear_structure.gaussian import Gaussian
from linear_structure.mixture import ClassConditional, Mixture


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
        ("dots", "gaussian", tmp_path / "x", "--cut-off", -1): (2, "--cut-off -1: expected at least 0"),
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


def test_classes_add_up_to_the_whole(dots, tmp_path, capsys) -> None:
    assert run("dots", "gaussian", tmp_path / "c", "--class-conditional", "place", "--cut-off", 0) == 0
    assert "one gaussian for each of 4 classes of place" in capsys.readouterr().out
    found = ClassConditional.load(tmp_path / "c").mixture
    rows = dots.images.reshape(len(dots), -1).astype(np.float64)
    counts = np.bincount(dots.label("place"))
    assert np.allclose(found.weights, counts / len(dots))
    mean = sum(share * part.mu for share, part in zip(found.weights, found.components, strict=True))
    assert np.allclose(mean, rows.mean(0))
    within, between = 0, 0
    for count, part in zip(counts, found.components, strict=True):
        within = within + (count - 1) * (part.U * part.lambdas) @ part.U.T
        between = between + count * torch.outer(part.mu - mean, part.mu - mean)
    assert np.allclose((within + between) / (len(dots) - 1), np.cov(rows.T), atol=1e-8)
    assert not (tmp_path / "c" / ".unfinished").exists()
    assert run("dots", "gaussian", tmp_path / "c", "--class-conditional", "place", "--cut-off", 0) == 0
    assert "skipped" in capsys.readouterr().out
    assert run("dots", "gaussian", tmp_path / "c", "--class-conditional", "colour", "--cut-off", 0) == 1
    assert "attribute: 'place' there, 'colour' now" in capsys.readouterr().err


def test_a_class_without_images_is_named(dots, tmp_path, capsys) -> None:
    labels = np.zeros((len(dots), 2), np.int64)
    labels[0, 0] = 2
    folder = tmp_path / "data" / "dots" / "train"
    meta = arrays.read_meta(folder, "images", "")
    arrays.write_folder(
        folder, "images", {"images": np.array(dots.images), "labels": labels},
        **{name: meta[name] for name in meta if name not in ("format", "kind", "arrays")},
    )  # fmt: skip
    assert run("dots", "gaussian", tmp_path / "c", "--class-conditional", "place") == 1
    assert "fewer than 2 images of these classes of place (images): 1 (0), 2 (1), 3 (0)" in capsys.readouterr().err


def test_a_mixture_is_written(dots, tmp_path, capsys) -> None:
    assert run("dots", "mixture", tmp_path / "m", "--components", 4, "--rank", 5) == 0
    assert "mixture of 4 gaussians of 192 dots/train images" in capsys.readouterr().out
    found = Mixture.load(tmp_path / "m")
    assert (len(found), found.components[0].rank, found.meta["data_hash"]) == (4, 5, dots.hash)
    assert run("dots", "mixture", tmp_path / "m", "--components", 4, "--rank", 5) == 0
    assert "skipped" in capsys.readouterr().out
    assert run("dots", "gaussian", tmp_path / "m") == 1
    assert "describes gaussian mixture, expected gaussian" in capsys.readouterr().err


def test_a_covariance_that_does_not_fit_is_found_at_a_rank(dots, tmp_path, capsys) -> None:
    assert run("dots", "gaussian", tmp_path / "l", "--memory", 1e-4, "--rank", 5) == 0
    assert "left out, on [-1, 1]" in capsys.readouterr().out
    assert run("dots", "gaussian", tmp_path / "f", "--rank", 5) == 0
    low, full = Gaussian.load(tmp_path / "l"), Gaussian.load(tmp_path / "f")
    assert np.allclose(low.lambdas, full.lambdas, rtol=1e-5)
    assert low.meta == full.meta
    assert run("dots", "gaussian", tmp_path / "x", "--memory", 1e-4) == 2
    assert "the covariance of 192 pixels takes" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["gaussian"], ["isotropic"], ["gaussian", "--class-conditional", "place"]])
def test_a_killed_command_goes_on(options, dots, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(passes, "EVERY", 0.0)
    monkeypatch.setattr(moments, "BATCH", 192 * 20)
    monkeypatch.setattr(decompose, "BLOCK", 4 * 192 * 20)
    kind, *rest = options
    assert run("dots", kind, tmp_path / "whole", *rest) == 0
    real, left = moments.pixels, iter(range(7))

    def read(*arguments: object) -> torch.Tensor:
        if next(left, None) is None:
            raise ValueError("killed")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(moments, "pixels", read)
        patch.setattr(decompose, "pixels", read)
        assert run("dots", kind, tmp_path / "again", *rest) == 1
    assert run("dots", kind, tmp_path / "again", *rest) == 0
    assert "going on from" in capsys.readouterr().out
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_npz_written_is_npz_read_and_others_are_refused(dots, tmp_path, capsys) -> None:
    path = tmp_path / "stats.npz"
    assert run("dots", "gaussian", tmp_path / "a", "--npz", path) == 0
    assert run("dots", "gaussian", tmp_path / "b", "--moments", path) == 0
    first, second = Gaussian.load(tmp_path / "a"), Gaussian.load(tmp_path / "b")
    assert np.allclose(first.lambdas, second.lambdas, rtol=1e-9, atol=1e-9 * first.lambdas[0])
    rows = dots.images.reshape(len(dots), -1) / 255.0
    np.savez(tmp_path / "unit.npz", mu=rows.mean(0), sigma=np.cov(rows.T))
    assert run("dots", "gaussian", tmp_path / "x", "--moments", tmp_path / "unit.npz") == 1
    assert "not of pixels from 0 to 255" in capsys.readouterr().err
    rows = dots.images.reshape(len(dots), -1).astype(float)
    sigma = np.cov(rows.T)
    np.savez(tmp_path / "turned.npz", mu=rows.mean(0), sigma=sigma[::-1, ::-1])  # the same mean and total variance
    assert run("dots", "gaussian", tmp_path / "x", "--moments", tmp_path / "turned.npz") == 1
    assert "of the largest in a pixel: it is of other images" in capsys.readouterr().err
    apart = np.diag(sigma) * ~np.eye(len(sigma), dtype=bool)
    np.savez(tmp_path / "none.npz", mu=rows.mean(0), sigma=np.diag(np.diag(sigma)) - (apart + apart.T))
    assert run("dots", "gaussian", tmp_path / "x", "--moments", tmp_path / "none.npz") == 1
    assert "expected none below 0: it is no covariance" in capsys.readouterr().err
    np.savez(tmp_path / "features.npz", mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    assert run("dots", "gaussian", tmp_path / "x", "--moments", tmp_path / "features.npz") == 1
    assert "2048 dimensions, the images of dots [3, 8, 8] have 192" in capsys.readouterr().err
    assert run("dots", "gaussian", tmp_path / "a", "--npz", tmp_path / "late.npz") == 1
    assert "needs a new folder" in capsys.readouterr().err


def test_few_images_are_said(dots, tmp_path, capsys) -> None:
    assert run("dots", "gaussian", tmp_path / "g", "--split", "test") == 0
    assert "48 images have at most 47 directions of 192: the covariance is singular" in capsys.readouterr().out
    assert Gaussian.load(tmp_path / "g").rank == 47


def test_images_that_do_not_differ_and_numbers_that_are_none(tmp_path, capsys) -> None:
    alike, root = np.full((20, 3, 4, 4), 7, np.uint8), tmp_path / "data"
    np.savez(tmp_path / "alike.npz", images=alike, labels=np.zeros((20, 1), np.int64))
    data.prepare("alike", root, tmp_path / "alike.npz")
    for name, options in {"a": [], "b": ["--rank", 3, "--memory", 1e-6]}.items():
        assert run("alike", "gaussian", tmp_path / name, *options) == 0
        assert "the images do not differ" in capsys.readouterr().out
        found = Gaussian.load(tmp_path / name)
        assert found.rank == 0 and torch.equal(found.denoise(torch.zeros(1, 48), 1.0)[0], torch.full((48,), 7.0))
    for method, text in (("kmeans", "2 clusters for 1 distinct images"), ("em", "the 16 images do not differ")):
        assert run("alike", "mixture", tmp_path / method, "--components", 2, "--method", method) == 1
        assert text in capsys.readouterr().err
    np.savez(tmp_path / "nan.npz", mu=np.full(48, np.nan), sigma=np.eye(48))
    assert run("alike", "gaussian", tmp_path / "x", "--moments", tmp_path / "nan.npz") == 1
    assert "holds NaN or infinite values" in capsys.readouterr().err


def test_options_that_contradict_each_other(dots, tmp_path, capsys) -> None:
    cases = {
        ("mixture",): "give both or neither",
        ("gaussian", "--components", 3): "give both or neither",
        ("isotropic", "--class-conditional", "place"): "needs KIND gaussian",
        ("gaussian", "--class-conditional", "place", "--npz", "x"): "--npz is of one mean and covariance",
        ("mixture", "--components", 2, "--spread"): "always spreads",
        ("isotropic", "--npz", "x"): "have no covariance to write",
        ("gaussian", "--seed", 3): "--seed goes with KIND mixture, not with gaussian",
        ("isotropic", "--method", "em"): "--method goes with KIND mixture, not with isotropic",
        ("isotropic", "--class-conditional", ""): "needs KIND gaussian",
    }
    for (kind, *rest), text in cases.items():
        assert run("dots", kind, tmp_path / "x", *rest) == 2
        assert text in capsys.readouterr().err
    for name in ("plase", ""):
        assert run("dots", "gaussian", tmp_path / "x", "--class-conditional", name) == 1
        assert f"no attribute {name!r}" in capsys.readouterr().err


def test_fewer_images_than_pixels_need_no_covariance(dots, tmp_path, monkeypatch) -> None:
    def none(*_: object) -> None:
        raise AssertionError("a covariance was added up")

    monkeypatch.setattr(moments, "of_images", none)
    assert run("dots", "gaussian", tmp_path / "few", "--split", "test", "--memory", 0.0005) == 0
    found = Gaussian.load(tmp_path / "few")
    rows = data.open_split("dots", "test").images.reshape(48, -1).astype(np.float64)
    assert found.rank == 47 and not (tmp_path / "few" / ".unfinished").exists()
    assert np.allclose((found.U * found.lambdas) @ found.U.T, np.cov(rows.T), atol=1e-9)
