"""A parameter folder of any kind as a closed form in the run's model space, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from linear_world import SHAPE, make_data, make_run

from diffusion_model import arrays, checkpoint, data, experiment
from linear_structure import get_parameters, inputs, mixture
from linear_structure.gaussian import Gaussian
from linear_structure.mixture import ClassConditional, Mixture

KINDS = {
    "gaussian": (["gaussian"], Gaussian),
    "isotropic": (["isotropic"], Gaussian),
    "low rank": (["gaussian", "--rank", "4", "--spread"], Gaussian),
    "mixture": (["mixture", "--components", "2", "--rank", "3"], Mixture),
    "classes": (["gaussian", "--class-conditional", "place", "--rank", "3"], ClassConditional),
}


@pytest.fixture
def world(tmp_path):
    """A split, the record of a run on it, and a writer of statistics."""
    split = make_data(tmp_path / "data")
    record = checkpoint.read_run(make_run(tmp_path / "run", split))

    def write(kind: str, folder):
        options = KINDS[kind][0]
        assert get_parameters.main(["dots", options[0], str(folder), *options[1:]]) == 0
        return folder

    return split, record, write


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_into_model_space(world, tmp_path, kind) -> None:
    split, record, write = world
    form = inputs.load_form(write(kind, tmp_path / "params"), record)
    reader = KINDS[kind][1]
    assert type(form) is reader
    direct = reader.load(tmp_path / "params").mapped(data.scaling("unit", split), SHAPE)
    x = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    labels = [torch.arange(6) % 4] if kind == "classes" else []
    assert torch.equal(form.denoise(x, 0.5, *labels), direct.denoise(x, 0.5, *labels))


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "classes"])
def test_statistics_of_other_images_are_refused_whatever_their_kind(world, tmp_path, kind) -> None:
    _, record, write = world
    params = write(kind, tmp_path / "params")
    meta = json.loads((params / "meta.json").read_text())
    changes = {
        "dataset": ("stripes", "has statistics of stripes, the run was trained on dots: run `python linear_structure"),
        "shape": ([1, 9, 9], r"has statistics of dots images \[1, 9, 9\], the run's are dots images \[3, 8, 8\]"),
        "data_hash": ("0" * 8, "was made from other images of dots than the run was trained on"),
    }
    for field, (value, text) in changes.items():
        arrays.write_json(params / "meta.json", meta | {field: value})
        with pytest.raises(ValueError, match=text):
            inputs.load_form(params, record)
    arrays.write_json(params / "meta.json", {name: meta[name] for name in meta if name != "data_hash"})
    with pytest.raises(ValueError, match=r"does not say of which images it is \(no \['data_hash'\]\)"):
        inputs.load_form(params, record)


def test_foreign_folders_wrong_kinds_and_nan_are_sentences(world, tmp_path) -> None:
    _, record, write = world
    with pytest.raises(FileNotFoundError, match=r"none does not exist .*get_parameters.py dots gaussian"):
        inputs.load_form(tmp_path / "none", record)
    images = arrays.write_folder(tmp_path / "images", "pictures", {"images": np.zeros((1, 2))})
    with pytest.raises(ValueError, match="describes pictures, expected one of gaussian, gaussian mixture, class-cond"):
        inputs.load_form(images, record)
    params = write("gaussian", tmp_path / "params")
    with pytest.raises(ValueError, match="describes gaussian, expected gaussian mixture"):
        inputs.load_form(params, record, mixture.KIND)
    shutil.rmtree(tmp_path / "images")
    content, meta = arrays.read_folder(params, "gaussian")
    given = {name: value for name, value in meta.items() if name not in ("format", "kind", "arrays")}
    mu = np.array(content["mu"])
    mu[3] = np.nan
    arrays.write_folder(tmp_path / "images", "gaussian", {**content, "mu": mu}, **given)
    with pytest.raises(ValueError, match=r"mu.npy holds numbers that are not finite: remove it and run `python"):
        inputs.load_form(tmp_path / "images", record)


def test_arrays_that_make_no_form_are_refused_by_the_folder(world, tmp_path) -> None:
    _, record, write = world
    params = write("mixture", tmp_path / "params")
    content, meta = arrays.read_folder(params, mixture.KIND)
    held = {name: np.array(value) for name, value in content.items()}
    said = {name: value for name, value in meta.items() if name not in ("format", "kind", "arrays")}
    for name, value in (("weights", held["weights"] * 2), ("basis", held["basis"] + 7), ("rank", held["rank"] * 3)):
        arrays.write_folder(params, mixture.KIND, held | {name: value}, **said)
        with pytest.raises(ValueError, match=f"{params}.* (holds|sum to) .*: remove it and run `python linear"):
            inputs.load_form(params, record)


def test_levels_that_a_run_does_not_have_are_refused(world, tmp_path) -> None:
    model = checkpoint.load_score_model(tmp_path / "run")
    low, high = model.sde.level_range()
    inputs.check_levels([low, high, float(f"{high:.5g}")], model, "--levels")
    for level in (0.0, low / 2, 2 * high):
        with pytest.raises(experiment.UsageError, match=f"--levels {level:g}: the run has levels from"):
            inputs.check_levels([1.0, level], model, "--levels")
