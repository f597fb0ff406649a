"""Checkpoints are complete or absent; a resumed run is checked against what it was."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffusion_model import arrays, checkpoint


def record(**config):
    flat = {"seed": 0, "training.images": 100, "training.batch": 10, "logging.every": 5, "model.mode": "none"} | config
    return {
        "config": flat,
        "scaling": {"scale": [1.0], "shift": [0.0]},
        "data": {"name": "a", "hash": "b"},
        "shape": [1, 8, 8],
        "std": 0.5,
    }


GROUPS = {"model": {"weight": torch.arange(3.0)}, "average": {"weight": torch.ones(3)}}


def test_round_trip_and_pruning(tmp_path):
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, GROUPS, keep=2, updates=step)
    assert checkpoint.steps(tmp_path) == [10, 15]
    groups, meta = checkpoint.read(tmp_path, 15, ["model", "average"])
    assert meta["updates"] == 15 and torch.equal(groups["model"]["weight"], GROUPS["model"]["weight"])


def test_what_is_half_written_is_absent_and_cleared(tmp_path):
    checkpoint.save(tmp_path, 5, GROUPS, keep=2)
    half = tmp_path / "checkpoints" / ".10.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / "12").mkdir()  # no meta.json: not finished
    assert checkpoint.steps(tmp_path) == [5]
    checkpoint.save(tmp_path, 10, GROUPS, keep=2)
    assert checkpoint.steps(tmp_path) == [5, 10] and not half.exists()


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1])], ids=["truncated", "altered"]
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = checkpoint.save(tmp_path, 5, GROUPS, keep=2) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"model.safetensors is missing, truncated or altered: remove .*resume from an older"
    ):
        checkpoint.read(tmp_path, 5, ["model"])


def test_length_and_intervals_may_change_and_nothing_else(tmp_path):
    checkpoint.write_run(tmp_path, record())
    checkpoint.write_run(tmp_path, record(**{"training.images": 200, "logging.every": 7}))
    assert checkpoint.read_run(tmp_path)["config"]["training.images"] == 200
    with pytest.raises(ValueError, match=r"another configuration \(seed: 0 there, 1 now\): give another --workdir"):
        checkpoint.write_run(tmp_path, record(seed=1))
    with pytest.raises(ValueError, match=r"data: .*'hash': 'b'.* there, .*'hash': 'c'.* now"):
        checkpoint.write_run(tmp_path, record() | {"data": {"name": "a", "hash": "c"}})


def test_no_run_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run in .*main.py --mode train"):
        checkpoint.read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 1, "ki')
    with pytest.raises(ValueError, match="truncated or altered"):
        checkpoint.read_run(tmp_path)
    arrays.write_json(tmp_path / "config.json", {"format": 1, "kind": "run"})
    with pytest.raises(ValueError, match=r"lacks the field config: it was altered"):
        checkpoint.read_run(tmp_path)
    arrays.write_json(tmp_path / "config.json", {"format": 2, "kind": "run"})
    with pytest.raises(ValueError, match="format 2, this version reads up to 1"):
        checkpoint.read_run(tmp_path)


def test_weights_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match=r"do not fit its config.json \(weight: \(3, 2\) stored, \(1, 2\) expected\)"):
        checkpoint.load_weights(
            torch.nn.Linear(2, 1), torch.nn.Linear(2, 3).state_dict() | {"bias": torch.zeros(1)}, "run"
        )


@pytest.mark.parametrize(
    "run", sorted((Path(__file__).parent.parent / "docs" / "runs").iterdir()), ids=lambda run: run.name
)
def test_the_published_runs_open_and_denoise(run):
    """At a tiny level a denoiser returns its input nearly unchanged; a DRL run does so given a code."""
    assert (run / "weights.safetensors").stat().st_size <= 8 * 2**20
    model = checkpoint.load_score_model(run)
    torch.manual_seed(0)
    x0 = torch.rand(2, *model.shape) * 0.2
    code = None if model.encoder is None else model.encode(x0, torch.tensor(0.0)).mean
    denoised = model.denoise(x0, torch.tensor(0.002), code)
    assert torch.allclose(denoised, x0, atol=0.02)


def alter(path, field, value):
    """Write another value at `a/b/c` of a JSON file; ... removes the field."""
    content = held = json.loads(path.read_text())
    *parents, name = field.split("/")
    for parent in parents:
        held = held[parent]
    if value is ...:
        del held[name]
    else:
        held[name] = value
    arrays.write_json(path, content)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("config", None, "config is null, expected an object"),
        ("config/model.features", None, "config.model.features is null, expected an integer"),
        ("config/model.multipliers", "12", 'config.model.multipliers is "12", expected a list'),
        ("config/model.unit", [], r"config.model.unit is \[\], expected a number or a string"),
        ("config/sde.sigma_max", True, "config.sde.sigma_max is true, expected a number"),
        ("config/model.features", ..., "has no field 'features'"),
        ("data", [], r"data is \[\], expected an object"),
        ("scaling/scale", 1.0, "scaling.scale is 1.0, expected a list"),
        ("scaling/scale", ..., "lacks the field scaling.scale"),
        ("shape", [3, "16", 16], 'shape.1 is "16", expected an integer'),
        ("std", "wide", 'std is "wide", expected a number'),
        ("step", None, "step is null, expected an integer"),
    ],
)
def test_another_type_in_config_json_is_a_sentence(tmp_path, field, value, sentence):
    published = Path(__file__).parent.parent / "docs" / "runs" / "drl-synthetic16"
    shutil.copytree(published, tmp_path / "run")
    alter(tmp_path / "run" / "config.json", field, value)
    with pytest.raises(ValueError, match=rf"config\.json.* {sentence}: "):
        checkpoint.load_score_model(tmp_path / "run")


def test_what_a_killed_publication_left_is_taken_over(tmp_path):
    half = tmp_path / ".small.tmp" / "small"
    half.mkdir(parents=True)
    for name in ("weights.safetensors", ".config.json.tmp"):
        (half / name).write_bytes(b"half")
    whole = Path(__file__).parent.parent / "docs" / "runs" / "drl-synthetic16"
    checkpoint.publish(whole, tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["config.json", "weights.safetensors"]
    assert checkpoint.load_score_model(tmp_path / "small").step == checkpoint.load_score_model(whole).step
