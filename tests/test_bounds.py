"""What a configuration may hold: every field bounded, whatever type it has, on the command line and in a config.json."""

import numpy as np
import pytest
from run_folders import make_run

from diffusion_model import arrays, bounds, checkpoint, data, experiment, main

CONFIG = experiment.flatten(experiment.load_config("configs/drl.py:smoke"))
WRONG = {
    "training.images": (0, -1, 10**12, "x", None, [1]), "training.batch": (0, 10**11), "model.features": (0, -8, 6, 10**8, "8"),
    "model.blocks": (0, 10**8), "model.multipliers": ([], (0,), [10**6], [1] * 9, "12", [True], 3), "model.attention": ([-3], 1),
    "sde.sigma_max": (1e39, 0, -1), "objective.mean": (1e30, "x"), "objective.std": (0, -1, 1e9), "encoder.widen": (-1, 1e9, 0.01),
    "optimiser.learning_rate": (0, -1.0), "optimiser.warm_up": (-5, 10**20), "seed": (2**63,), "model.dropout": (1.5, -1),
    "objective.lambda_z": (-1, "x"), "model.unit": ("x", 0), "model.mode": ("x", ["none"], None), "sde.sigma_min": (1e5,),
}  # fmt: skip


def test_every_preset_is_within_bounds():
    for name in ("configs/drl.py", "configs/edm.py"):
        for preset in experiment.load_presets(name):
            assert bounds.fault(experiment.flatten(experiment.load_config(f"{name}:{preset}"))) is None


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_no_stage_can_work_with_is_named(name):
    for value in WRONG[name]:
        found = bounds.fault(CONFIG | {name: value})
        assert found and found.startswith(name) and ("expected" in found or "is not known" in found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"config": {"model.features": 0}}, r"model.features=0: expected a multiple of 4, up to 4,096; it was altered"),
        (
            {"config": {"sde.sigma_min": 2.0, "sde.sigma_max": 1.0}},
            r"sde.sigma_min=2.0: expected below sde.sigma_max, 1.0",
        ),
        ({"shape": [3, 0, 8]}, r"tells of images \[3, 0, 8\]"),
        ({"shape": [1, 8]}, r"tells of images \[1, 8\]"),
        ({"std": 0.0}, r"tells of images of deviation 0\.0"),
    ],
)
def test_a_run_that_describes_no_model_is_refused_as_it_is_read(tmp_path, change, sentence):
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    record = arrays.read_json(path)
    checkpoint.read_run(tmp_path / "run")
    arrays.write_json(path, record | change | {"config": record["config"] | change.get("config", {})})
    with pytest.raises(ValueError, match=r"config\.json.*" + sentence):
        checkpoint.read_run(tmp_path / "run")


def test_images_that_are_all_the_same_are_named_as_the_cause(tmp_path):
    np.savez(tmp_path / "black.npz", images=np.zeros((20, 1, 8, 8), np.uint8))
    data.prepare("black", tmp_path, tmp_path / "black.npz")
    with pytest.raises(ValueError, match="every pixel of black/train is the same: there is nothing to learn from"):
        main.describe_run(CONFIG, data.open_split("black", "train", tmp_path))


@pytest.mark.parametrize(
    ("mode", "option", "sentence"),
    [
        ("train", ["--out", "x"], "--out goes with --mode publish, not with train"),
        ("eval", ["--n", "3"], "--n goes with --mode sample, not with eval"),
        ("publish", ["--batch", "3"], "--batch goes with --mode sample or eval, not with publish"),
        ("sample", ["--dry-run"], "--dry-run goes with --mode train, not with sample"),
        ("train", ["--churn-levels", "1", "2"], "--churn-levels goes with --mode sample, not with train"),
    ],
)
def test_an_option_of_another_mode_is_not_ignored(mode, option, sentence):
    with pytest.raises(experiment.UsageError, match=sentence):
        main.main(["--mode", mode, "--workdir", "no-run", *option])
