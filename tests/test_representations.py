"""Encoding a run: the store holds what the encoder says, resumes by time, and refuses what does not fit."""

import dataclasses
import os

import numpy as np
import pytest
import torch

from diffusion_model import arrays, checkpoint, data, experiment, main, representations
from diffusion_model.moments import Moments
from diffusion_model.trajectories import Trajectories

FEW = 300  # images of each split; the moments of the images are of all
OPTIONS = ("--limit", FEW, "--granularities", 2)


def call(command, *argv):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(command.main, [str(entry) for entry in argv])
    return stop.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps with its data beside it."""
    folder = tmp_path_factory.mktemp("encoded")
    before, os.environ["DATA"] = os.environ.get("DATA"), str(folder / "data")
    short = ["--config.training.images=64", "--config.logging.sample_every=1000000"]
    for name, config in (("drl", "configs/drl.py:smoke"), ("edm", "configs/edm.py:smoke")):
        assert (
            call(main, "--mode", "train", "--config", config, "--workdir", folder / name, "--device", "cpu", *short)
            == 0
        )
    assert call(representations, folder / "drl", *OPTIONS, "--sources", *representations.SOURCES) == 0
    os.environ.pop("DATA") if before is None else os.environ.update(DATA=before)
    return folder


@pytest.fixture(autouse=True)
def its_data(run, monkeypatch):
    monkeypatch.setenv("DATA", str(run / "data"))


def test_the_store_holds_what_the_encoder_says(run):
    store = Trajectories(run / "drl" / "trajectories" / "encoder" / "test")
    split = data.open_split("synthetic16", "test")
    model = checkpoint.load_score_model(run / "drl")
    assert store.times == [0.0, 0.5, 1.0] and np.array_equal(store.labels, split.labels[:FEW])
    x0 = model.scaling.to_model(torch.from_numpy(np.array(split.images[:7])))
    assert np.allclose(store.at(0.5)[:7], model.encode(x0, torch.tensor(0.5)).mean.numpy(), atol=1e-5)


def test_encoding_does_not_depend_on_the_batch(run, tmp_path):
    store = Trajectories(run / "drl" / "trajectories" / "encoder" / "test")
    model, split = checkpoint.load_score_model(run / "drl"), data.open_split("synthetic16", "test")
    split = dataclasses.replace(split, images=split.images[:FEW])
    z = representations.encode_images(lambda x0, time: model.encode(x0, time).mean, model, split, 0.5, batch=97)
    assert np.allclose(z, store.at(0.5), atol=1e-5)


def test_controls_are_not_the_encoder(run):
    trained, untrained, pixels = (
        Trajectories(run / "drl" / "trajectories" / source / "train") for source in representations.SOURCES
    )
    assert not np.allclose(trained.at(0.5), untrained.at(0.5), atol=1e-3) and untrained.meta["step"] == 0
    assert pixels.times == [0.0] and pixels.dimension == 768
    split = data.open_split("synthetic16", "train")
    assert np.allclose(pixels.at(0.0)[3], split.images[3].ravel() / 127.5 - 1, atol=1e-6)


def test_moments_lie_beside_the_trajectories(run):
    split = data.open_split("synthetic16", "train")
    images = Moments.load(run / "drl" / "moments" / "images")
    flat = split.images.reshape(len(split), -1).astype(np.float64)
    assert images.count == len(split) and np.allclose(images.mean, flat.mean(0), atol=1e-9)
    store = Trajectories(run / "drl" / "trajectories" / "encoder" / "train")
    z = Moments.load(run / "drl" / "moments" / "z_0.50000000")
    assert np.allclose(z.covariance, np.cov(store.at(0.5).astype(np.float64), rowvar=False), atol=1e-8)


def test_missing_moments_are_made_though_every_time_is_stored(run):
    folder = run / "drl" / "moments"
    before = {path: path.read_bytes() for path in folder.rglob("*.npy")}
    for name in ("images", "z_0.50000000"):  # as if the command had been killed before their last file
        (folder / name / "meta.json").unlink()
    assert call(representations, run / "drl", *OPTIONS) == 0
    assert Moments.load(folder / "images").count == len(data.open_split("synthetic16", "train"))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_resuming_makes_the_missing_times_and_leaves_the_others(run):
    folder = run / "drl" / "trajectories" / "encoder" / "test"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("z_*.npy")}
    kept = np.array(Trajectories(folder).at(0.5))
    meta = arrays.read_json(folder / "meta.json")
    del meta["stored"]["0.50000000"]
    arrays.write_json(folder / "meta.json", meta)
    with pytest.raises(
        ValueError, match=r"still being written or was interrupted \(1 times are missing\): run `python"
    ):
        Trajectories(folder)
    assert call(representations, run / "drl", *OPTIONS) == 0
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("z_*.npy")}
    assert [name for name in before if before[name] != after[name]] == ["z_0.50000000.npy"]
    assert np.array_equal(Trajectories(folder).at(0.5), kept)
    assert call(representations, run / "drl", *OPTIONS, 5) == 0
    assert Trajectories(folder).times == [0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0]


def test_bad_input_is_one_sentence(run, tmp_path, capsys):
    assert call(representations, run / "edm") == 1
    assert "has model.mode none and no encoder" in capsys.readouterr().err
    assert call(representations, run / "drl", "--granularities", 0) == 2
    assert "--granularities: granularity 0: expected an integer of at least 1" in capsys.readouterr().err
    assert call(representations, run / "drl", "--step", 7) == 1
    assert "no checkpoint at step 7 (stored: [2])" in capsys.readouterr().err
    assert call(representations, tmp_path) == 1
    assert "no run in" in capsys.readouterr().err
