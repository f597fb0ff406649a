"""A run on disk: its configuration, its checkpoints, and the model they hold.

RUN/config.json says what the run is; RUN/checkpoints/STEP/ holds `model`, `average` and `optimizer` as safetensors and a
`meta.json`, written under a temporary name and renamed as a whole: a checkpoint is complete or absent. A run that is
published for others to start from holds `weights.safetensors` (half precision) beside config.json instead.
"""

import errno
import re
import shlex
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffusion_model import arrays, bounds, locks
from diffusion_model.data import Scaling
from diffusion_model.score_model import ScoreModel
from diffusion_model.sde import LinearSDE

TRAIN = "run `python diffusion_model/main.py --mode train --config FILE:PRESET --workdir {run}` first"
LARGEST = 4096  # side of an image
MAY_CHANGE = ("training.images", "training.compile", "logging.")  # on resuming: length, compilation, intervals


RECORD = {  # of config.json, as `arrays.expect` takes it: what a run is read back by
    "config": {
        "data.name?": str, "model.mode?": str, "model.precondition?": str, "model.embedding?": str, "model.unit?": (float, str),
        "model.features?": int, "model.multipliers?": [int], "model.blocks?": int, "model.attention?": [int],
        "model.dropout?": float, "model.fourier_scale?": float, "encoder.widen?": float, "encoder.fourier_scale?": float,
        "sde.name?": str, "sde.sha256?": str,
        "sde.sigma_min?": float, "sde.sigma_max?": float, "sde.beta_min?": float, "sde.beta_max?": float,
        "training.images?": int, "training.batch?": int, "seed?": int,
    },
    "data": {"name": str, "hash": str}, "scaling": {"scale": [float], "shift": [float]}, "shape": [int], "std": float,
    "step?": int,
}  # fmt: skip
# fields that runs of earlier versions lack, with what those did
EARLIER = {
    "model.embedding": "fourier", "sde.beta_min": 0.1, "sde.beta_max": 20.0, "training.accumulate": 1,
    "training.precision": "auto", "training.compile": "auto",
}  # fmt: skip


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """{'section.field': value} as {'section': {'field': value}}."""
    section_of = partial(arrays.Fields, (), flat.path) if isinstance(flat, arrays.Fields) else dict  # name the file
    nested: dict[str, Any] = section_of()
    for name, value in flat.items():
        section, _, field = name.rpartition(".")
        (nested.setdefault(section, section_of()) if section else nested)[field] = value
    return nested


def write_run(run: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write RUN/config.json, or check a resumed run against it: another configuration or data set is a ValueError."""
    path = Path(run) / "config.json"
    record = {"format": arrays.FORMAT, "kind": "run", **record}
    if path.is_file():
        before = read_run(run)
        given = EARLIER | record["config"]
        fields = before["config"].keys() | given.keys()
        changed = [name for name in sorted(fields) if before["config"].get(name) != given.get(name)]
        refused = [name for name in changed if not name.startswith(MAY_CHANGE)]
        refused += [name for name in ("data", "scaling") if before[name] != record[name]]
        if refused:
            both = [(before["config"], given) if name in fields else (before, record) for name in refused]
            changes = ", ".join(
                f"{name}: {old.get(name)!r} there, {new.get(name)!r} now"
                for name, (old, new) in zip(refused, both, strict=True)
            )
            raise ValueError(f"{run} holds a run of another configuration ({changes}): give another --workdir")
        newest = max(steps(run), default=0)
        if total_steps(record) < newest:
            seen, asked = newest * record["config"]["training.batch"], record["config"]["training.images"]
            raise ValueError(
                f"{run} has seen {seen:,} images, more than training.images={asked}: a run can be made longer, not shorter; "
                "give more images, or another --workdir"
            )
    arrays.write_json(path, record)
    return record


def read_run(run: Path) -> dict[str, Any]:
    """RUN/config.json: `config` (flat), `scaling`, `data` {name, hash}, `shape` [C, H, W] and `std` (model space)."""
    path = Path(run) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no run in {run} (it has no config.json): {TRAIN.format(run=shlex.quote(str(run)))}")
    record = arrays.read_json(path)
    arrays.check_meta(record, path, "run")
    arrays.expect(record, path, RECORD, "it was altered; train the run again")
    shape, scaling = record["shape"], record["scaling"]
    if not (len(shape) == 3 and 0 < min(shape) <= max(shape) <= LARGEST and len(scaling["scale"]) == shape[0]):
        raise ValueError(
            f"{path} tells of images {shape} and {len(scaling['scale'])} scales, expected [channels, height, width] of at "
            f"most {LARGEST} and a scale a channel: it was altered; train the run again"
        )
    if not 0 < record["std"] < 1e6:
        raise ValueError(f"{path} tells of images of deviation {record['std']}: it was altered; train the run again")
    if wrong := bounds.fault(record["config"]):
        raise ValueError(f"{path}: {wrong}; it was altered: train the run again")
    return record | {"config": arrays.Fields(EARLIER | record["config"], path)}


def build(record: dict[str, Any], process: str | type[LinearSDE] | None = None) -> ScoreModel:
    """The model a run's record describes, freshly initialised from torch's global generator.

    process: FILE.py:CLASS or the class itself, where the noise process is none of the built-in ones (`sde.from_config`).
    """
    config, scaling = unflatten(record["config"]), Scaling.from_dict(record["scaling"])
    return ScoreModel(config, tuple(record["shape"]), scaling, record["std"], process)


def steps(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    folder = Path(run) / "checkpoints"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch(r"\d+", name) and arrays.is_finished(folder / name))


def save(run: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], keep: int, **meta: Any) -> Path:
    """Write checkpoint STEP (one safetensors file a group of tensors) and remove all but the newest `keep`.

    Where the disk is full nothing is left of STEP, the older checkpoints stay, and the OSError says which is the newest.
    """
    folder = Path(run) / "checkpoints"
    temporary, final = folder / f".{step}.tmp", folder / str(step)
    arrays.refuse_links(temporary)
    _clear(folder.glob(".*.tmp"))  # what an interrupted write left behind
    try:
        temporary.mkdir(parents=True)
        for name, group in tensors.items():
            arrays.write_tensors(temporary / f"{name}.safetensors", group)
        files = {name: arrays.file_checksum(temporary / f"{name}.safetensors") for name in tensors}
        described = {"format": arrays.FORMAT, "kind": "checkpoint", "step": step, **meta, "crc32": files}
        arrays.write_json(temporary / "meta.json", described)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        before = steps(run)
        kept = f"the last good checkpoint is step {before[-1]}" if before else "no checkpoint was written yet"
        raise OSError(
            f"checkpoint {step} of {run} could not be written ({error.strerror or error}); {kept}: "
            "make room and run the same command to go on from there"
        ) from error
    _clear([final])
    temporary.rename(final)
    _clear(folder / str(old) for old in steps(run)[:-keep])
    return final


def _clear(paths: Iterable[Path]) -> None:
    """Remove folders; of a link or a file that lies in the place of one, the link or file itself."""
    for path in paths:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)


def read(run: Path, step: int, groups: list[str]) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The groups of tensors asked for and the meta of one checkpoint; altered or truncated files are a ValueError."""
    folder = Path(run) / "checkpoints" / str(step)
    meta = arrays.read_meta(folder, "checkpoint", TRAIN.format(run=shlex.quote(str(run))))
    arrays.expect(meta, folder / "meta.json", {"crc32": {...: int}, "updates?": int, "world?": int})
    tensors = {}
    for name in groups:
        path = folder / f"{name}.safetensors"
        if not path.is_file() or arrays.file_checksum(path) != meta["crc32"].get(name):
            raise ValueError(
                f"{path} is missing, truncated or altered: remove {folder} and resume from an older checkpoint"
            )
        tensors[name] = arrays.read_tensors(path)
    return tensors, meta


def total_steps(record: dict[str, Any]) -> int:
    """Steps of the whole run that a config.json describes: training.images over the batch, rounded up."""
    return -(-record["config"]["training.images"] // record["config"]["training.batch"])


def load_weights(
    model: torch.nn.Module, tensors: dict[str, torch.Tensor], run: Path, record: str = "config.json",
    remedy: str = "train the run again",
) -> None:  # fmt: skip
    """Load weights that must fit exactly; others are a ValueError that names the first that does not."""
    check_weights(model.state_dict(), tensors, run, record, remedy)
    model.load_state_dict(tensors)


def check_weights(
    wanted: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], run: Path, record: str = "config.json",
    remedy: str = "train the run again",
) -> None:  # fmt: skip
    """Refuse tensors whose names or shapes are not those wanted (ValueError), by the first that does not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    other = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if other:
        raise ValueError(
            f"the weights of {run} do not fit its {record} ({other[0]}: {found.get(other[0])} stored, "
            f"{expected.get(other[0])} expected): it was altered, or another version wrote it; {remedy}"
        )


def load_score_model(
    run: Path, step: int | None = None, average: bool = True, device: str | torch.device = "cpu",
    process: str | type[LinearSDE] | None = None,
) -> ScoreModel:  # fmt: skip
    """The model of a run in evaluation mode, with the averaged weights in the score net and the live ones in the encoder.

    step: a checkpoint, by default the newest. average=False takes the live weights everywhere. The attribute `step`
    of the model says which step it is. A run without a checkpoint is a FileNotFoundError with the command to run.
    process: as `build` takes it. Without it nothing that the run brings along is executed: a run with a noise process of
    its maker's own is then a ValueError.
    """
    run, record = Path(run), read_run(run)
    published = run / "weights.safetensors"
    if published.is_file() and step is None:
        tensors = {name: tensor.float() for name, tensor in arrays.read_tensors(published).items()}
        step = record["step"]
    else:
        stored = steps(run)
        if not stored or (step is not None and step not in stored):
            given = "no finished checkpoint" if step is None else f"no checkpoint at step {step} (stored: {stored})"
            raise FileNotFoundError(f"{run} has {given}: {TRAIN.format(run=shlex.quote(str(run)))}")
        step = stored[-1] if step is None else step
        groups, _ = read(run, step, ["model", "average"] if average else ["model"])
        averaged = {name: tensor for name, tensor in groups.get("average", {}).items() if name.startswith("net.")}
        tensors = groups["model"] | averaged
    check_size(record, tensors, run, process)
    model = build(record, process)
    load_weights(model, tensors, run)
    model.step = step
    return model.requires_grad_(False).eval().to(device)


def check_size(
    record: dict[str, Any], tensors: dict[str, torch.Tensor], run: Path, process: str | type[LinearSDE] | None
) -> None:
    """Refuse a config.json whose network is not that of the weights (ValueError) before anything of its size is made."""
    parts = record["config"]["model.blocks"] * len(record["config"]["model.multipliers"])
    if parts > len(tensors):
        raise ValueError(
            f"{run}/config.json describes a network of {parts:,} blocks, and its weights are {len(tensors)} tensors: "
            "it was altered; train the run again"
        )
    try:
        with torch.device("meta"):
            described = build(record, process)
    except (RuntimeError, TypeError, ArithmeticError) as error:  # sizes of which torch can make no tensor
        reason = " ".join(f"{error}".split())[:120]
        raise ValueError(
            f"{run}/config.json describes no network that can be built ({reason}): it was altered; train the run again"
        ) from None
    check_weights(described.state_dict(), tensors, run)


def publish(run: Path, out: Path, process: str | type[LinearSDE] | None = None, **provenance: Any) -> Path:
    """Write what `load_score_model(run)` gives as a small run: config.json with provenance and half-precision weights.

    Buffers stay whole: rounded frequencies of an embedding change it by far more than rounded weights change the rest.
    """
    model, record = load_score_model(run, process=process), read_run(run)
    if (Path(out) / "checkpoints").exists() or Path(out).resolve() == Path(run).resolve():
        raise ValueError(f"{out} holds a run of its own, which the small run would replace: give another --out")
    weights = dict(model.named_parameters())
    tensors = {name: tensor.half() if name in weights else tensor for name, tensor in model.state_dict().items()}
    beside = Path(out).with_name(f".{Path(out).name}.tmp")  # what a killed one left is taken over
    if beside.is_symlink():
        beside.unlink()
    with locks.held(beside, "written to", wait=True):
        try:
            made = beside / Path(out).name
            arrays.write_tensors(made / "weights.safetensors", tensors)
            arrays.write_json(made / "config.json", {**record, "step": model.step, "provenance": provenance})
            _move(made, Path(out))
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return Path(out)


def _move(made: Path, out: Path) -> None:
    """Give a small run its place, whole; what lies there already stays, and is a ValueError unless it is this run."""
    try:
        made.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        names = ("weights.safetensors", "config.json")
        if any(not (out / name).is_file() or (out / name).read_bytes() != (made / name).read_bytes() for name in names):
            raise ValueError(f"{out} holds another run or other files: remove it or give another --out") from None
