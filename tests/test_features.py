"""Extractors: what they need, what they refuse, and that the classifier tells its data apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
from linear_world import Pixels, make_data

from diffusion_model import arrays, data, experiment, features, fid, moments, train_features
from diffusion_model.features import Classifier, extract, open_extractor, reference

QUICK = ["--images", "2400", "--batch", "32", "--width", "8"]


def run(*argv: str) -> int:
    """Exit status of the command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(train_features.main, [str(entry) for entry in argv])
    return stop.value.code


@pytest.fixture
def dots(tmp_path) -> data.Split:
    """The small set, below the folder that $DATA names in tests."""
    return make_data(tmp_path / "data")


def test_train_once_then_skip_then_refuse_other_options(dots, capsys) -> None:
    assert run("dots", *QUICK) == 0
    assert "place 1.000, colour 1.000" in capsys.readouterr().out
    assert run("dots", *QUICK) == 0
    assert "skipped" in capsys.readouterr().out
    assert run("dots", *QUICK, "--seed", "3") == 1
    assert "trained with other seed: remove it" in capsys.readouterr().err


def test_classifier_features(dots, tmp_path) -> None:
    root = tmp_path / "data"
    run("dots", *QUICK)
    extractor = open_extractor("classifier", dots, root)
    assert extractor.distance == "Frechet distance (classifier features)"
    found = extract(extractor, dots.images, "test", batch=50)
    assert found.shape == (len(dots), 64)
    assert found.dtype == np.float32
    assert np.allclose(found[:7], extractor(dots.images[:7]), atol=1e-4)
    assert np.allclose(found[[9, 2]], extract(extractor, dots.images, "test", rows=np.array([9, 2])), atol=1e-4)
    # Each feature is normalised over the training images; the running statistics lag behind the weights.
    assert np.median(found.std(0)) == pytest.approx(1, abs=0.25)
    known = reference(extractor, dots, root)
    assert np.allclose(known.moments.mean, found.mean(0), atol=1e-4)
    folder = next((root / "dots" / "features").glob("reference-classifier-*-train"))
    before = (folder / "meta.json").stat().st_mtime_ns
    assert torch.equal(reference(extractor, dots, root).moments.second, known.moments.second)
    assert (folder / "meta.json").stat().st_mtime_ns == before


def test_a_reference_is_made_once_and_again_where_weights_or_images_changed(dots, tmp_path, monkeypatch) -> None:
    root, extractor = tmp_path / "data", Pixels("inception")
    first = reference(extractor, dots, root, batch=50)
    codes = extractor(dots.images)
    assert np.allclose(first.moments.mean, codes.double().mean(0), rtol=1e-12)
    assert torch.allclose(first.root @ first.root.T, torch.cov(codes.double().T))
    assert sorted(first.kept.tolist()) == sorted(codes.tolist())
    assert not np.array_equal(first.kept, codes)
    folder = root / "dots" / "features" / "reference-inception-00000001-train"
    meta = arrays.read_json(folder / "meta.json")
    assert {name: meta[name] for name in ("extractor", "fingerprint", "data_hash", "n", "resizing")} == {
        "extractor": "inception", "fingerprint": "00000001", "data_hash": dots.hash, "n": len(dots), "resizing": "none"
    }  # fmt: skip

    monkeypatch.setattr(Pixels, "__call__", None)
    again = reference(extractor, dots, root)
    assert torch.equal(again.moments.second, first.moments.second) and torch.equal(again.root, first.root)
    assert np.array_equal(again.kept, first.kept)

    changed = data.Split(dots.name, "train", dots.images, dots.labels, dots.attributes, "other", dots.meta)
    with pytest.raises(ValueError, match=r"another kind \(data_hash: '.*' there, 'other' now\)"):
        features.read_reference(folder, extractor, changed)
    with pytest.raises(TypeError):
        reference(extractor, changed, root)
    monkeypatch.setattr(Pixels, "fingerprint", "00000002")
    with pytest.raises(ValueError, match="fingerprint: '00000001' there, '00000002' now"):
        features.read_reference(folder, extractor, dots)


def test_the_features_kept_are_a_random_few(dots, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(features, "KEPT", 30)
    known = reference(Pixels("inception"), dots, tmp_path / "data", batch=17)
    codes = {tuple(row) for row in Pixels("inception")(dots.images).tolist()}
    assert known.kept.shape == (30, 12)
    assert len({tuple(row) for row in known.kept.tolist()} & codes) == 30
    assert known.moments.count == len(dots)


def test_references_of_others_name_their_extractor_or_are_refused(dots, tmp_path) -> None:
    known = reference(Pixels("inception"), dots, tmp_path / "data")
    path = tmp_path / "known.npz"
    moments.write_npz(path, known.moments)
    found = features.read_reference(path, Pixels("inception"), dots)
    assert torch.equal(found.root, known.root) and torch.equal(found.moments.mean, known.moments.mean)
    codes = Pixels("inception")(dots.images[:50])
    assert features.measure(codes, found) == features.measure(codes, known)
    with pytest.raises(ValueError, match="gives no kernel distance"):
        features.measure(codes, found, size=10)
    with pytest.raises(ValueError, match=r"--extractor classifier: .* says that it was made with inception"):
        features.read_reference(path, Pixels("inception"), told="classifier")
    np.savez(path, mu=known.moments.mean.numpy(), sigma=known.moments.covariance.numpy())
    with pytest.raises(ValueError, match=r"does not say which network .*--extractor NAME \(inception, classifier\)"):
        features.read_reference(path, Pixels("inception"))
    assert torch.equal(features.read_reference(path, Pixels("inception"), told="inception").root, known.root)
    with pytest.raises(ValueError, match="extractor: 'edm' there, 'inception' now"):
        features.read_reference(path, Pixels("inception"), told="edm")
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="has 3 features, inception has 12"):
        features.read_reference(path, Pixels("inception"), told="inception")


def test_real_against_real_is_the_least_that_can_be_expected(dots) -> None:
    codes = Pixels("inception")(dots.images).numpy()
    floor = features.real_against_real(codes, 90, size=30, subsets=20)
    assert floor == features.real_against_real(codes, 90, size=30, subsets=20)
    assert abs(floor["kernel_distance"]) < 3 * floor["kernel_deviation"]
    order = torch.randperm(len(dots), generator=experiment.generator("real against real", 0)).numpy()
    first, second = (fid.Normal.from_rows(codes[order[k : k + 90]]) for k in (0, 90))
    assert floor["distance"] == fid.distance(first, second)
    assert floor["distance"] < features.real_against_real(codes, 4)["distance"]
    few = len(dots) // 2 + 1
    with pytest.raises(ValueError, match=f"at n = {few}: it needs {2 * few} real images, and there are {len(dots)}"):
        features.real_against_real(codes, few)


def test_classifier_refusals(dots, tmp_path) -> None:
    root = tmp_path / "data"
    with pytest.raises(
        FileNotFoundError, match=r"no classifier in .*run `python diffusion_model/train_features.py dots`"
    ):
        open_extractor("classifier", dots, root)
    with pytest.raises(ValueError, match=r"features 'classifer'.*nearest: classifier"):
        open_extractor("classifer", dots, root)
    with pytest.raises(ValueError, match="--weights is for Inception"):
        open_extractor("classifier", dots, root, Path("x"))
    run("dots", *QUICK[:1], "64", *QUICK[2:])
    with pytest.raises(ValueError, match=r"expected torch\.uint8"):
        open_extractor("classifier", dots, root)(torch.zeros(1, 3, 8, 8))
    changed = data.Split(dots.name, "train", dots.images, dots.labels, dots.attributes, "other", dots.meta)
    with pytest.raises(ValueError, match="trained on other images than dots now holds"):
        open_extractor("classifier", changed, root)
    path = root / "dots" / "features" / "classifier" / "meta.json"
    meta = arrays.read_json(path)
    for change, sentence in {
        "width": (meta["width"] + 1, r"weights of .*classifier do not fit its meta\.json \(code\.0\.weight: .* stored"),
        "attributes": ([2], r"meta\.json: attributes is \[2\], expected an object"),
        "shape": (None, r"meta\.json: shape is null, expected a list"),
    }.items():
        arrays.write_json(path, meta | {change: sentence[0]})
        with pytest.raises(
            ValueError, match=rf"{sentence[1]}.*: .*run `python diffusion_model/train_features.py dots`"
        ):
            open_extractor("classifier", dots, root)
    arrays.write_json(path, meta)
    weights = path.with_name("weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"xxxx")
    with pytest.raises(ValueError, match="missing or was altered"):
        open_extractor("classifier", dots, root)


def test_location_is_a_feature() -> None:
    torch.manual_seed(0)
    network = Classifier((1, 8, 8), [4]).eval()
    images = torch.zeros(2, 1, 8, 8)
    images[0, 0, :4, :4] = images[1, 0, 4:, 4:] = 1
    first, second = network(images)
    assert not torch.allclose(first, second, atol=1e-3)


def test_bad_usage_is_a_sentence(tmp_path, capsys) -> None:
    assert run("dots", "--batch", "1") == 2
    assert "--batch 1: expected at least 2" in capsys.readouterr().err
    assert run("dots", "--imges", "1") == 2
    assert "nearest: --images" in capsys.readouterr().err
    assert run("nothing") == 1
    assert "no data set 'nothing'" in capsys.readouterr().err
    make_data(tmp_path / "data")
    source = tmp_path / "plain.npy"
    np.save(source, np.zeros((10, 8, 8, 3), np.uint8))
    data.prepare("plain", tmp_path / "data", source)
    assert run("plain") == 1
    assert "plain has no labels" in capsys.readouterr().err


def test_inception_without_its_weights_says_what_to_place_where(dots, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"no network.*place it at .*pt_inception-2015-12-05.*or pass --weights"
    ):
        open_extractor("inception", dots, tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_extractor("inception", dots, tmp_path, tmp_path / "none.pth")
    wrong = tmp_path / "wrong.pth"
    arrays.write_atomically(wrong, lambda temporary: temporary.write_bytes(b"not weights"))
    with pytest.raises(ValueError, match="does not hold pytorch-fid's Inception weights"):
        open_extractor("inception", dots, tmp_path, wrong)


def test_inception_is_the_published_network() -> None:
    """Same tensors as pytorch-fid's file names, and 2,048 features of grey and coloured images of any size."""
    torch.manual_seed(0)
    network = features.Inception(None).eval()
    names = set(network.network.state_dict())
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch_pool.conv.weight", "Mixed_7c.branch3x3_2b.bn.bias"} <= names
    with torch.no_grad():
        grey = network(torch.full((1, 1, 8, 8), 0.5))
        assert grey.shape == (1, 2048)
        assert torch.allclose(grey, network(torch.full((1, 3, 12, 12), 0.5)), atol=1e-5)
