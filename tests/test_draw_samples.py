"""Samples after a jump: no jump is the plain solver, a Gaussian network makes the jump free, bad input is a sentence."""

import shutil

import numpy as np
import pytest
import torch
from linear_world import make_data, make_run

from diffusion_model import checkpoint, experiment, main
from diffusion_model.score_model import ScoreModel
from linear_structure import draw_samples, get_parameters, inputs


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A run and the statistics of its data."""
    monkeypatch.chdir(tmp_path)
    folder = make_run(tmp_path / "run", make_data(tmp_path / "data"))
    assert get_parameters.main(["dots", "gaussian", "params"]) == 0
    return folder


def drawn(folder, name: str) -> np.ndarray:
    return np.load(folder / "samples" / f"{name}.npy", allow_pickle=False)


def test_no_step_skipped_is_the_plain_solver_in_any_batch(world) -> None:
    assert main.main(["--mode", "sample", "--workdir", str(world), "--n", "5", "--steps", "4"]) == 0
    command = [str(world), "params", "--skip", "0", "--n", "5", "--steps", "4", "--batch", "2"]
    assert draw_samples.main(command) == 0
    plain, made = drawn(world, "heun4_seed0_n5"), drawn(world, "heun4_skip0_params_seed0_n5")
    assert np.abs(plain.astype(int) - made).max() <= 1


@pytest.mark.parametrize("jump", [("--skip", "7"), ("--to-level", "5")])
@pytest.mark.parametrize("sampler", ["heun", "unipc-bh1"])
def test_where_the_network_is_the_gaussian_a_jump_changes_nothing(world, monkeypatch, jump, sampler, capsys) -> None:
    given = inputs.open_inputs(world, "params", "data", None, torch.device("cpu"))
    monkeypatch.setattr(ScoreModel, "denoise", lambda self, x, level: given.forms["gaussian"].denoise(x, level))
    common = [str(world), "params", "--n", "4", "--steps", "40", "--sampler", sampler]
    assert draw_samples.main([*common, "--skip", "0"]) == draw_samples.main([*common, *jump]) == 0
    assert "evaluations" in capsys.readouterr().out
    solver = sampler + ("-40" if sampler[-1].isdigit() else "40")
    name = "skip7" if jump[0] == "--skip" else "to5"
    plain, after = (drawn(world, f"{solver}_{what}_params_seed0_n4") for what in ("skip0", name))
    assert np.abs(plain.astype(int) - after).max() <= 1
    assert plain.std() > 5  # images, not one grey


def test_an_image_belongs_to_its_seed(world) -> None:
    common = [str(world), "params", "--to-level", "5", "--steps", "4"]
    assert draw_samples.main([*common, "--n", "4"]) == draw_samples.main([*common, "--n", "2", "--seed-base", "2"]) == 0
    whole, part = drawn(world, "heun4_to5_params_seed0_n4"), drawn(world, "heun4_to5_params_seed2_n2")
    assert np.abs(whole[2:].astype(int) - part).max() <= 1


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--skip", "4", "--steps", "4"], 2, "a solver of 4 steps can skip from 0 to 3"),
        (["--to-level", "500"], 2, "the run has levels from"),
        (["--to-level", "0.002"], 2, "no levels below"),
        ([], 2, "--skip"),
        (["--skip", "1", "--step", "7"], 1, "7"),
    ],
)
def test_mistakes_are_one_sentence(world, capsys, options, status, sentence) -> None:
    with pytest.raises(SystemExit) as stop:
        experiment.launch(draw_samples.main, [str(world), "params", *options])
    assert stop.value.code == status
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_weights_that_are_not_numbers_make_no_images(world, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ScoreModel, "denoise", lambda self, x, level: x * float("nan"))
    for command, argv in (
        (main.main, ["--mode", "sample", "--workdir", str(world), "--n", "2"]),
        (draw_samples.main, [str(world), "params", "--skip", "2", "--n", "2"]),
    ):
        with pytest.raises(SystemExit) as stop:
            experiment.launch(command, argv)
        assert stop.value.code == 1
        assert "finite" in capsys.readouterr().err
    assert not list((world / "samples").glob("*.npy"))


def test_samples_of_another_protocol_are_not_replaced(world, capsys) -> None:
    folder = str(world)
    for main_of, options in (
        (main.main, ["--mode", "sample", "--workdir", folder, "--n", "2", "--steps", "3"]),
        (draw_samples.main, [folder, "params", "--skip", "1", "--n", "2", "--steps", "3"]),
    ):
        assert main_of(options) == main_of(options) == 0
        before = {path: path.read_bytes() for path in (world / "samples").iterdir()}
        state, _ = checkpoint.read(world, 1, ["model", "average"])
        state["average"] = {name: 2 * tensor for name, tensor in state["average"].items()}
        checkpoint.save(world, 2, state, keep=2)
        with pytest.raises(ValueError, match=r"was made under another protocol \(step: 1 there, 2 now, weights: "):
            main_of(options)
        shutil.rmtree(world / "checkpoints" / "2")
        assert {path: path.read_bytes() for path in (world / "samples").iterdir()} == before
    assert get_parameters.main(["dots", "gaussian", "other/params", "--rank", "2"]) == 0
    with pytest.raises(ValueError, match=r"another protocol \(statistics: "):
        draw_samples.main([folder, "other/params", *options[2:]])
