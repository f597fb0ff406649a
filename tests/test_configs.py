"""Every preset loads, locks, survives JSON and builds; every study names options that exist."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from diffusion_model import checkpoint, experiment
from diffusion_model.sources import DATASETS

ROOT = Path(__file__).resolve().parent.parent
MODELS = [(name, preset) for name in ("drl", "edm") for preset in experiment.load_presets(f"configs/{name}.py")]
STUDIES = [
    f"configs/{name}.py:{preset}"
    for name in ("study", "mixing")
    for preset in experiment.load_presets(f"configs/{name}.py")
]
COMMANDS = {
    path.stem: path
    for path in ROOT.glob("[!t]*/*.py")
    if '__name__ == "__main__"' in path.read_text() and path.parent.name != "benchmarks"
}


@pytest.mark.parametrize(("name", "preset"), MODELS)
def test_a_preset_locks_survives_json_and_builds(name, preset):
    config = experiment.load_config(f"configs/{name}.py:{preset}")
    with pytest.raises((AttributeError, KeyError)):
        config.model.featurs = 3
    flat = experiment.flatten(config)
    assert json.loads(json.dumps(flat)) == flat
    shape = DATASETS[flat["data.name"]].shape
    record = {
        "config": flat,
        "scaling": {"scale": [1.0] * shape[0], "shift": [0.0] * shape[0]},
        "shape": list(shape),
        "std": 0.5,
    }
    with torch.device("meta"):
        model = checkpoint.build(record)
        out = model.net(
            torch.empty(2, *shape), torch.empty(2), torch.empty(2, model.encoder.dimension) if model.encoder else None
        )
    assert out.shape == (2, *shape)


def test_the_small_network_has_the_published_size():
    """NCSN++ small with WRN-28-2 on 32 x 32 images: 2.86 M parameters in the original, with its unused classifier."""
    with torch.device("meta"):
        config = experiment.flatten(experiment.load_config("configs/drl.py:cifar10"))
        record = {
            "config": config,
            "scaling": {"scale": [1.0] * 3, "shift": [0.0] * 3},
            "shape": [3, 32, 32],
            "std": 1.0,
        }
        size = sum(parameter.numel() for parameter in checkpoint.build(record).parameters())
    assert size + 128 * 10 + 11 == pytest.approx(2.86e6, rel=0.005)


@pytest.mark.parametrize("preset", STUDIES)
def test_a_study_names_commands_and_options_that_exist(preset, capsys):
    for section in experiment.load_config(preset):
        path = COMMANDS[section]
        module = importlib.import_module(f"{path.parent.name}.{path.stem}")
        with pytest.raises(SystemExit) as stop:
            experiment.launch(module.main, ["--config", preset, "--help"])
        assert stop.value.code == 0 and capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_a_wrong_option(command, capsys):
    """--help exits 0, shows every option and each default; a wrong option is one sentence with status 2."""
    path = COMMANDS[command]
    module = importlib.import_module(f"{path.parent.name}.{path.stem}")
    with pytest.raises(SystemExit) as stop:
        experiment.launch(module.main, ["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "--config" in said and re.search(r"usage: \S*" + command, said)
    with pytest.raises(SystemExit) as stop:
        experiment.launch(module.main, ["--no-such-option"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1


def test_an_unknown_file_or_preset_names_its_neighbours():
    with pytest.raises(experiment.UsageError, match=r"no configuration file configs/dlr.py; nearest: configs/drl.py"):
        experiment.load_config("configs/dlr.py:cifar10")
    with pytest.raises(experiment.UsageError, match=r"has no preset 'cifar1O'; nearest: cifar10"):
        experiment.load_config("configs/drl.py:cifar1O")
