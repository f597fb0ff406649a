"""A run and the statistics of its data, checked against each other before anything is computed with both."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, checkpoint, data, experiment
from diffusion_model.score_model import ScoreModel
from linear_structure import mixture
from linear_structure.gaussian import Gaussian, closed_forms
from linear_structure.mixture import ClassConditional, Mixture

Form = Gaussian | Mixture | ClassConditional
FORMS = {  # kind of a parameter folder: (what reads it, what get_parameters.py is told to write it)
    "gaussian": (Gaussian, "gaussian {params}"),
    mixture.KIND: (Mixture, "mixture {params} --components N"),
    mixture.CLASSES: (ClassConditional, "gaussian {params} --class-conditional ATTRIBUTE"),
}
KINDS = {reader: kind for kind, (reader, _) in FORMS.items()}
EDGE = 1e-4  # levels as cells name them are rounded
RUN = Path("runs/edm-cifar10")
PARAMS = Path("gaussian_params")


@dataclass(frozen=True)
class Inputs:
    """A model with an unconditional score, the closed forms of its data in its model space, and what identifies both."""

    model: ScoreModel
    forms: dict[str, Gaussian]
    record: dict[str, Any]
    protocol: dict[str, Any]
    root: Path
    device: torch.device

    def split(self, name: str) -> data.Split:
        """A split of the run's data; the training split must still hold the images the run was trained on."""
        split = data.open_split(self.record["data"]["name"], name, self.root)
        if name == "train" and split.hash != self.record["data"]["hash"]:
            raise ValueError(
                f"the run was trained on other images than {self.root / split.name} now holds (the hashes differ): "
                "pass the folder of its data with --data"
            )
        return split


def open_model(
    run: Path, step: int | None, device: torch.device, process: str | None = None
) -> tuple[ScoreModel, dict[str, Any]]:
    """A run's model and record; a run without an unconditional score is one sentence."""
    record = checkpoint.read_run(run)
    model = checkpoint.load_score_model(run, step, device=device, process=process)
    if model.decoder is not None:
        raise ValueError(
            f"{run} has model.mode {model.mode}: it reconstructs images and has no score to compare or to sample with; give "
            "a run of configs/edm.py (mode none)"
        )
    if model.encoder is not None:
        raise ValueError(
            f"{run} has model.mode {model.mode}: its score is conditioned on the code of a given image and there is no "
            "unconditional score to compare or to sample with; give a run of configs/edm.py (mode none)"
        )
    return model, record


def open_inputs(
    run: Path, params: Path, root: Path, step: int | None, device: torch.device, process: str | None = None
) -> Inputs:
    """Load both; other data, shapes and runs without an unconditional score are one sentence each."""
    model, record = open_model(run, step, device, process)
    forms = closed_forms(load_form(params, record, "gaussian"))
    protocol = {
        "dataset": record["data"]["name"],
        "data_hash": record["data"]["hash"],
        "shape": list(record["shape"]),
        "step": model.step,
        "statistics": fingerprint(params),
        "statistics_rank": forms["gaussian"].rank,
    }
    return Inputs(model, forms, record, protocol, root, device)


def load_form(params: Path, record: dict[str, Any], kind: str | None = None) -> Form:
    """The closed form in a folder of get_parameters.py, in the model space of the run with this record.

    Statistics of other images are refused, and those of another kind than `kind` where that is given.
    """
    name, known = record["data"]["name"], kind
    if kind is None and arrays.is_finished(params):
        known = arrays.read_json(Path(params) / "meta.json").get("kind")
        if known not in FORMS:
            raise ValueError(f"{params} describes {known}, expected one of {', '.join(FORMS)}")
    reader, options = FORMS[known or "gaussian"]
    command = f"`python linear_structure/get_parameters.py {name} {options.format(params=params)}`"
    form = read_form(reader, params, command)
    check_form(form, params, record, command)
    return form.mapped(data.Scaling.from_dict(record["scaling"]), tuple(record["shape"]))


def read_form(reader: type[Form], params: Path, command: str) -> Form:
    """The form in a folder; arrays that make none, whose checksums hold, are refused by the folder's name."""
    meta = arrays.read_meta(params, KINDS[reader], f"run {command} first")
    try:
        return reader.load(params, f"remove it and run {command}")
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        if str(params) in str(error):
            raise
        raise ValueError(f"{params} holds no {meta['kind']} ({error}): remove it and run {command}") from None


def check_levels(levels: Sequence[float], model: ScoreModel, option: str) -> None:
    """Refuse noise levels that the run's process does not have (UsageError), for its network was never asked there."""
    low, high = model.sde.level_range()
    for level in levels:
        if not low * (1 - EDGE) <= level <= high * (1 + EDGE):
            raise experiment.UsageError(f"{option} {level:g}: the run has levels from {low:g} to {high:g}")


def check_form(form: Form, params: Path, record: dict[str, Any], command: str) -> None:
    """Refuse a closed form that is not of the run's images, or not of numbers."""
    whole = form.mixture if isinstance(form, ClassConditional) else form
    name, meta = record["data"]["name"], whole.meta
    missing = {"dataset", "data_hash", "shape"} - meta.keys()
    if missing:
        raise ValueError(f"{params} does not say of which images it is (no {sorted(missing)}): run {command}")
    if list(meta["shape"]) != list(record["shape"]):
        raise ValueError(
            f"{params} has statistics of {meta['dataset']} images {list(meta['shape'])}, the run's are {name} images "
            f"{list(record['shape'])}: run {command.replace(str(params), 'ANOTHER_FOLDER')}"
        )
    if meta["dataset"] != name:
        raise ValueError(
            f"{params} has statistics of {meta['dataset']}, the run was trained on {name}: "
            f"run {command.replace(str(params), 'ANOTHER_FOLDER')}"
        )
    if meta.get("split") == "train" and meta["data_hash"] != record["data"]["hash"]:
        raise ValueError(
            f"{params} was made from other images of {name} than the run was trained on (the hashes differ): "
            f"remove it and run {command}"
        )
    if whole.dimension != int(np.prod(record["shape"])):
        raise ValueError(f"{params} has {whole.dimension} dimensions, expected {list(record['shape'])}: run {command}")
    parts = whole.components if isinstance(whole, Mixture) else [whole]
    numbers = (value for part in parts for value in (part.mu, part.U, part.lambdas, part.variance))
    if not all(torch.isfinite(value).all() for value in numbers):
        raise ValueError(f"{params} holds NaN or infinite numbers: remove it and run {command}")


def fingerprint(params: Path) -> str:
    """A mark of the arrays in a folder, from the checksums in its meta."""
    entries = arrays.read_json(Path(params) / "meta.json")["arrays"]
    marks = ",".join(f"{name}:{entries[name]['crc32']}" for name in sorted(entries))
    return f"{zlib.crc32(marks.encode()):08x}"
