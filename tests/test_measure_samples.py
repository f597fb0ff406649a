"""The distance of a file of images: what it writes, that it is what the features give, and what it refuses."""

import shutil

import numpy as np
import pytest
import torch
from linear_world import Pixels, make_data

from diffusion_model import data, experiment, features, fid, measure_samples, results, train_features
from linear_structure import compare_metrics


def run(command, *argv: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(command.main, [str(entry) for entry in argv])
    return stop.value.code


@pytest.fixture
def dots(tmp_path, monkeypatch) -> data.Split:
    """The small set, and an extractor for it."""
    monkeypatch.setitem(features.FEATURES, "classifier", lambda *_: Pixels("classifier"))
    return make_data(tmp_path / "data")


def test_measure_and_compare(dots, tmp_path, capsys) -> None:
    noisy = np.clip(np.asarray(dots.images[:60]).astype(int) + 20, 0, 255).astype(np.uint8)
    for name, images in {"good": dots.images[60:120], "bad": noisy}.items():
        np.save(tmp_path / f"{name}.npy", images)
        options = ["--features", "classifier", "--subset-size", 40, "--subsets", 30, "--floor"]
        assert run(measure_samples, tmp_path / f"{name}.npy", "dots", *options) == 0
    said = capsys.readouterr().out
    assert "Frechet distance (pixels) of 60 images" in said
    cells = [tmp_path / "distances" / "features=classifier" / f"samples={name}.json" for name in ("good", "bad")]
    good, bad = (results.read_cell(path) for path in cells)
    codes = Pixels("classifier")
    expected = fid.distance(fid.Normal.from_rows(codes(dots.images)), fid.Normal.from_rows(codes(noisy)))
    assert bad.value["distance"] == pytest.approx(expected, rel=1e-9)
    assert good.value["distance"] < good.value["floor"]["distance"] < bad.value["distance"]
    assert good.value["floor"] == bad.value["floor"]
    assert abs(good.value["kernel_distance"]) < good.value["kernel_deviation"] < bad.value["kernel_distance"]
    assert good.protocol == bad.protocol
    assert good.protocol["n"] == 60 and good.protocol["reference"] == f"all {len(dots)} train images"
    assert run(compare_metrics, *cells) == 0
    assert "floor.kernel_distance" in capsys.readouterr().out
    few_images = [measure_samples, tmp_path / "bad.npy", "dots", "--features", "classifier", "--n", 50]
    assert run(*few_images) == 1
    assert "another protocol (n: 60 there, 50 now" in capsys.readouterr().err
    assert run(*few_images, "--out", tmp_path / "few") == 0
    cells[1] = tmp_path / "few" / cells[1].relative_to(tmp_path / "distances")
    assert run(compare_metrics, *cells) == 1
    assert "n: 60 in A, 50 in B" in capsys.readouterr().err
    few = results.read_cell(cells[1])
    assert few.protocol["subset_size"] == 50 // 4 and few.value["kernel_deviation"] > 1e-3  # subsets differ


def test_of_a_sorted_file_both_halves_are_drawn(dots, tmp_path) -> None:
    images = np.zeros((60, *dots.shape), np.uint8)
    images[30:] = 255
    np.save(tmp_path / "sorted.npy", images)
    drawn, again, other = (measure_samples.read_images(tmp_path / "sorted.npy", dots, 30, seed) for seed in (0, 0, 1))
    assert 8 < (drawn[:, 0, 0, 0] > 0).sum() < 22
    assert np.array_equal(drawn, again) and not np.array_equal(drawn, other)
    assert np.array_equal(measure_samples.read_images(tmp_path / "sorted.npy", dots, None, 0), images)


def test_data_that_cannot_be_written_serves_as_well(dots, tmp_path, read_only, capsys) -> None:
    """The distance is the same, and that the reference is not kept is said."""
    np.save(tmp_path / "made.npy", dots.images[:100])
    command = (measure_samples, tmp_path / "made.npy", "dots", "--features", "classifier")
    assert run(*command) == 0
    shutil.rmtree(tmp_path / "data" / "dots" / "features")
    path = tmp_path / "distances" / "features=classifier" / "samples=made.json"
    plain = results.read_cell(path)
    path.unlink()
    read_only(tmp_path / "data")
    assert run(*command) == 0
    assert f"the reference cannot be kept in {tmp_path / 'data' / 'dots'}" in capsys.readouterr().err
    assert results.read_cell(path).value == plain.value


def test_a_reference_of_others(dots, tmp_path, capsys) -> None:
    np.save(tmp_path / "made.npy", dots.images[:100])
    command = (measure_samples, tmp_path / "made.npy", "dots", "--features", "classifier")
    codes = Pixels("classifier")(dots.images).double()
    np.savez(tmp_path / "known.npz", mu=codes.mean(0).numpy(), sigma=torch.cov(codes.T).numpy())
    assert run(*command, "--reference", tmp_path / "known.npz") == 1
    assert "say it with --extractor NAME" in capsys.readouterr().err
    assert run(*command, "--reference", tmp_path / "known.npz", "--extractor", "classifier", "--floor") == 0
    said = capsys.readouterr()
    assert "no kernel distance: the reference holds no features" in said.out
    assert f"it needs 200 real images, dots has {len(dots)}" in said.err
    cell = results.read_cells(tmp_path / "distances")[0]
    assert cell.protocol["reference"].startswith("known.npz ")
    assert cell.value.keys() == {"file", "distance", "floor"} and cell.value["floor"] is None
    expected = fid.distance(fid.Normal.from_rows(codes), fid.Normal.from_rows(codes[:100]))
    assert cell.value["distance"] == pytest.approx(expected, rel=1e-9)


def test_mistakes_are_sentences(dots, tmp_path, capsys) -> None:
    made = tmp_path / "made.npy"
    np.save(made, dots.images[:30])
    np.save(tmp_path / "float.npy", np.zeros((4, 3, 8, 8), np.float32))
    np.save(tmp_path / "grey.npy", np.zeros((4, 1, 8, 8), np.uint8))
    np.save(tmp_path / "one.npy", dots.images[:1])
    cases = [
        ((tmp_path / "none.npy", "dots"), 1, "main.py --mode sample` writes one"),
        ((tmp_path / "float.npy", "dots"), 1, "holds float32 [4, 3, 8, 8], expected uint8 [N, 3, 8, 8]"),
        ((tmp_path / "grey.npy", "dots"), 1, "holds uint8 [4, 1, 8, 8], expected uint8 [N, 3, 8, 8]"),
        ((tmp_path / "one.npy", "dots"), 1, "holds 1 images, expected at least 2"),
        ((made, "dots", "--n", 40), 1, "holds 30 images, expected at least 40"),
        ((made, "dots", "--n", 1), 2, "--n 1: expected at least 2"),
        ((made, "dots", "--subset-size", 31), 2, "--subset-size 31: expected at most the 30 images there are"),
        ((made, "dots", "--extractor", "inception"), 2, "--extractor goes with --reference"),
        (
            (made, "dots", "--reference", tmp_path / "no.npz"),
            1,
            "no such file; expected a .npz with mu [D] and sigma [D, D]",
        ),
        ((made, "dotz"), 1, "no data set 'dotz'"),
    ]
    for argv, status, sentence in cases:
        assert run(measure_samples, *argv, "--features", "classifier") == status
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("error: ") == 1


def test_other_images_of_one_name_are_refused_and_a_floor_stays(dots, tmp_path, capsys) -> None:
    np.save(tmp_path / "made.npy", dots.images[:60])
    command = (measure_samples, tmp_path / "made.npy", "dots", "--features", "classifier", "--n", 20)
    assert run(*command, "--floor") == run(*command) == 0
    path = tmp_path / "distances" / "features=classifier" / "samples=made.json"
    before = path.read_bytes()
    assert results.read_cell(path).value["floor"]["distance"] > 0
    np.save(tmp_path / "made.npy", dots.images[60:120])
    assert run(*command) == 1
    assert "is of other images of that name (made.npy " in capsys.readouterr().err
    assert path.read_bytes() == before


def test_the_test_split_is_measured_with_the_classifier_of_the_train_split(dots, tmp_path, capsys) -> None:
    assert run(train_features, "dots", "--images", 8, "--batch", 8, "--width", 1) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(features.FEATURES, "classifier", features.open_classifier)
        np.save(tmp_path / "made.npy", dots.images[:20])
        command = (measure_samples, tmp_path / "made.npy", "dots", "--features", "classifier", "--split", "test")
        assert run(*command) == 0
    cell = results.read_cell(tmp_path / "distances" / "features=classifier" / "samples=made.json")
    assert (cell.protocol["split"], cell.protocol["reference"]) == ("test", "all 48 test images")
