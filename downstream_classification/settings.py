"""Runs as settings: those that differ in nothing but their seed are one setting, with an encoder a seed.

What a run is stands in its config.json. A setting is named in figures by what tells it from the other settings at hand
(mode, widen factor, data set, ...), and on disk by what the names of its runs have in common.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_model import checkpoint, experiment

AXES = {  # what settings are compared by, and how it is written
    "data.name": "{}",
    "model.mode": "{}",
    "encoder.widen": "widen {:g}",
    "optimiser.learning_rate": "rate {:g}",
    "data.augmentation": "{}",
    "training.mixup": "mixup {}",
}
ASIDE = ("seed", "logging.")  # fields that do not make another setting


@dataclass(frozen=True)
class Setting:
    """Runs of one configuration; `label` says what tells it from the others, `config` is that of its first run."""

    name: str
    label: str
    runs: tuple[Path, ...]
    config: dict[str, Any]

    @property
    def dataset(self) -> str:
        """Name of the data set; empty where the run has no config.json."""
        return self.config.get("data.name", "")

    @property
    def mode(self) -> str:
        """Training mode; empty where the run has no config.json."""
        return self.config.get("model.mode", "")

    def beside(self, *fields: str) -> str:
        """What this setting is, leaving out these fields: settings of one such text differ in the fields alone."""
        return json.dumps({name: value for name, value in sorted(self.config.items()) if name not in fields})


def read_config(run: Path) -> dict[str, Any]:
    """The flat configuration of a run without what does not make another setting; empty where it has no config.json."""
    if not (run / "config.json").is_file():
        return {}
    config = checkpoint.read_run(run)["config"]
    return {name: value for name, value in config.items() if not name.startswith(ASIDE)}


def group(runs: Sequence[Path]) -> list[Setting]:
    """The settings of these runs, in the order of their first runs; a run given twice is a UsageError."""
    found: dict[str, tuple[dict[str, Any], list[Path]]] = {}
    places: set[Path] = set()
    for run in runs:
        if run.resolve() in places:
            raise experiment.UsageError(f"{run} is given twice: its test images would count as those of two encoders")
        places.add(run.resolve())
        config = read_config(run)
        same = json.dumps(config, sort_keys=True) if config else str(run.resolve())
        found.setdefault(same, (config, []))[1].append(run)
    told = labels([config for config, _ in found.values()])
    settings = [
        Setting(name_of(members), label or name_of(members), tuple(members), config)
        for label, (config, members) in zip(told, found.values(), strict=True)
    ]
    return unique(settings)


def labels(configs: Sequence[dict[str, Any]]) -> list[str]:
    """What tells each configuration from the others, by the axes in which any two differ; empty for one alone."""
    differing = [name for name in AXES if len({json.dumps(config.get(name)) for config in configs}) > 1]
    return [
        ", ".join(AXES[name].format(config[name]) for name in differing if config.get(name) is not None)
        for config in configs
    ]


def name_of(runs: Sequence[Path]) -> str:
    """A run's name, or what several runs' names have in common before their seeds."""
    names = [run.resolve().name for run in runs]
    if len(names) == 1:
        return names[0]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same).rstrip("_-.") or f"{names[0]}-and-{len(names) - 1}-more"


def unique(settings: Sequence[Setting]) -> list[Setting]:
    """The settings, those that share a name or a label told apart by a number that no other name has."""
    names = numbered([setting.name for setting in settings], "{}-{}")
    shown = numbered([setting.label for setting in settings], "{} ({})")
    return [
        Setting(name, label, setting.runs, setting.config)
        for setting, name, label in zip(settings, names, shown, strict=True)
    ]


def numbered(names: Sequence[str], form: str) -> list[str]:
    """The names, each that occurs more than once with its place behind it, or with the next number that makes it unlike all."""
    found: list[str] = []
    for index, name in enumerate(names, 1):
        candidates = itertools.chain(
            [name] * (names.count(name) == 1), (form.format(name, i) for i in itertools.count(index))
        )
        found.append(next(entry for entry in candidates if entry == name or entry not in {*names, *found}))
    return found
