"""The training loop: a function of (configuration, data) that can stop anywhere and go on, bit for bit.

A batch is a function of (seed, step): images by a permutation an epoch; levels, noise, augmentation and mixup by
generators seeded from (seed, step), a row an image. Several processes under torchrun each take their share of the same
batch and average the gradients, so more ranks change the speed and not the losses; dropout is drawn by (seed, step, rank),
and the encoder's batch-norm statistics are those of one rank's share, or of one part where gradients are accumulated.
"""

import functools
import importlib.util
import os
import shutil
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import augment, checkpoint, data, experiment, ranks
from diffusion_model.data import Split
from diffusion_model.ema import Average
from diffusion_model.objective import LEVELS
from diffusion_model.score_model import MODES, ScoreModel


def batch_indices(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """Indices [batch] of the images of one step: consecutive entries of a fresh permutation each epoch."""
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    indices = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = _order(seed, int(epoch), count)[positions[chosen] % count]
    return indices


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The permutation of one epoch; two are kept, for the batch that lies across."""
    return torch.randperm(count, generator=experiment.generator(seed, "epoch", epoch)).numpy()


def draw(model: ScoreModel, config: Any, step: int, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    """All that is random in one step but dropout, a row an image of the batch, from generators seeded by (seed, step).

    level [B], noise [B, C, H, W]; with an encoder code_noise [B, Z]; under mixup share [B] and partner [B] (rows of the
    batch); where images are augmented, augmentation [B, P].
    """
    generator = experiment.generator(config["seed"], "step", step, device=device)
    options = {"generator": generator, "device": device}
    uniform = torch.rand(batch, dtype=torch.float64, **options)
    draws = {
        "level": LEVELS[config["objective"]["levels"]](uniform, model.sde, config["objective"]).float(),
        "noise": torch.randn(batch, *model.shape, **options),
    }
    if model.encoder is not None:
        draws["code_noise"] = torch.randn(batch, model.encoder.dimension, **options)
        if config["training"]["mixup"]:
            draws["share"] = torch.rand(batch, **options)  # Beta(1, 1)
            draws["partner"] = torch.randperm(batch, **options)
    generator = experiment.generator(config["seed"], "augment", step, device=device)
    numbers = augment.draw(config["data"]["augmentation"], batch, generator, device)
    return draws if numbers is None else draws | {"augmentation": numbers}


def draw_each(model: ScoreModel, config: Any, indices: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
    """What is random in the loss of images that are looked at once, and neither mixed nor augmented: level, noise, code_noise.

    A row is a function of the image's index alone, whatever the batch, drawn on the CPU.
    """
    rows = [
        torch.rand(1, dtype=torch.float64, generator=experiment.generator("eval level", index)) for index in indices
    ]
    levels = LEVELS[config["objective"]["levels"]](torch.cat(rows), model.sde, config["objective"])
    draws = {"level": levels.float(), "noise": experiment.sample_noise("eval noise", indices, model.shape)}
    if model.encoder is not None:
        draws["code_noise"] = experiment.sample_noise("eval code", indices, (model.encoder.dimension,))
    return {name: values.to(device) for name, values in draws.items()}


def check_batch(training: Mapping[str, Any], mode: str, side: int) -> None:
    """Refuse a batch that the ranks and their parts cannot share, or whose parts an encoder cannot normalise (ValueError)."""
    parts = experiment.world() * training["accumulate"]
    if training["batch"] % parts:
        raise ValueError(
            f"training.batch {training['batch']} is not divisible by {experiment.world()} processes times "
            f"training.accumulate {training['accumulate']}: choose a multiple of {parts}"
        )
    if MODES[mode].encoder is not None and training["batch"] == parts and side <= 4:
        raise ValueError(
            f"images of {side} pixels one at a time: the encoder halves them to one pixel, and batch-norm has no variance of "
            f"one value; choose training.batch of at least {2 * parts}"
        )


def find_compiler(kind: str) -> str | None:
    """What torch.compile calls on a device of this kind: a C++ compiler for "cpu", a C compiler for "cuda" (triton's)."""
    variable, usual = ("CC", ("gcc", "clang")) if kind == "cuda" else ("CXX", ("g++",))
    given = os.environ.get(variable)
    return next((path for path in map(shutil.which, [given] if given else usual) if path), None)


def compilation_lacks(device: torch.device) -> str | None:
    """What torch.compile lacks on this device, with the remedy; None where it lacks nothing."""
    if device.type != "cuda":
        return None if find_compiler("cpu") else "a C++ compiler: apt install g++, set CXX to one"
    if torch.cuda.get_device_capability(device) < (7, 0):
        return "a GPU of compute capability 7.0 or newer"
    if importlib.util.find_spec("triton") is None:
        return "triton: pip install triton"
    if find_compiler("cuda") is None:
        return "a C compiler: apt install gcc, set CC to one"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers: apt install python3-dev"
    return None


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU multiplies in bfloat16 itself: older ones emulate it, more slowly than float32."""
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


class Trainer:
    """Model, optimiser and average of one run; `advance` makes one step, `save` and `restore` carry them over.

    `said` lists what the user should know about how the run is made here: precision, compilation, other ranks before.
    """

    def __init__(
        self, run: Path, record: dict[str, Any], split: Split, device: torch.device, process: str | None = None
    ) -> None:
        self.run, self.split, self.device = Path(run), split, device
        self.config = checkpoint.unflatten(record["config"])
        self.stop = False  # set by a signal handler: make a checkpoint after this step and leave
        training, optimiser = self.config["training"], self.config["optimiser"]
        check_batch(training, self.config["model"]["mode"], split.shape[1])
        torch.manual_seed(experiment.seed_of(self.config["seed"], "weights"))
        self.model = checkpoint.build(record, process).to(device).train()
        self.average = Average(self.model, training["average_decay"])
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.Adam(
            list(self.parameters.values()), lr=optimiser["learning_rate"],
            betas=(optimiser["beta1"], 0.999), eps=optimiser["epsilon"], fused=True,
        )  # fmt: skip
        self.resident = data.resident(split, device)
        self.step, self.total, self.said = 0, checkpoint.total_steps(record), []
        stored = checkpoint.steps(run)
        if stored:
            self._restore(stored[-1])
        self._hasten(training["precision"], training["compile"])

    def _hasten(self, precision: str, compilation: str) -> None:
        """Precision of the networks' products and compilation; `auto` is bfloat16 and compiled on a GPU, neither on a CPU.

        On a GPU where compilation lacks something `auto` compiles nothing, and what is said tells so.
        """
        on_gpu = self.device.type == "cuda"
        if not on_gpu:
            experiment.keep_memory()
        if precision == "bfloat16" or (precision == "auto" and on_gpu and has_bfloat16(self.device)):
            self.model.precision = torch.bfloat16
        lack = compilation_lacks(self.device)
        self.compiled = {"auto": "default" if on_gpu and not lack else "none"}.get(compilation, compilation)
        if self.compiled != "none" and lack:
            raise ValueError(f"training.compile {compilation} needs {lack}, or take training.compile none")
        if self.compiled != "none":
            mode = {"default": None, "graphs": "reduce-overhead"}[self.compiled]
            for part in (self.model.encoder, self.model.net, self.model.decoder):
                if part is not None:
                    part.compile(mode=mode, dynamic=False)
        if self.compiled == "graphs":  # a gradient in a graph's own memory would not outlive the next part of the batch
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
        why = f" (it lacks {lack})" if on_gpu and lack else ""
        self.said.append(f"{str(self.model.precision).removeprefix('torch.')}, compilation {self.compiled}{why}")

    def images(self, indices: np.ndarray, numbers: torch.Tensor | None) -> torch.Tensor:
        """Images of the training split in model space, [B, C, H, W], augmented by their numbers [B, P]."""
        if self.resident is not None:
            pixels = self.resident[torch.from_numpy(indices).to(self.device)]
        else:
            order = np.argsort(indices)  # a memory map is read in order
            held = np.empty((len(indices), *self.split.shape), np.uint8)
            held[order] = self.split.images[indices[order]]
            pixels = torch.from_numpy(held).to(self.device)
        if numbers is not None:
            pixels = augment.augment(self.config["data"]["augmentation"], pixels, numbers)
        return self.model.scaling.to_model(pixels)

    def advance(self) -> dict[str, torch.Tensor]:
        """One optimiser step; returns the loss terms, not yet checked for being finite."""
        optimiser, batch = self.config["optimiser"], self.config["training"]["batch"]
        indices = batch_indices(self.config["seed"], self.step, batch, len(self.split))
        draws = draw(self.model, self.config, self.step, batch, self.device)
        torch.manual_seed(experiment.seed_of(self.config["seed"], "dropout", self.step, experiment.rank()))
        terms = self._gradients(indices, draws)
        ranks.mean_([parameter.grad for parameter in self.parameters.values() if parameter.grad is not None])
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), optimiser["clip"])
        warm_up = optimiser["warm_up"] // batch
        for group in self.optimizer.param_groups:
            group["lr"] = optimiser["learning_rate"] * min(1.0, (self.step + 1) / max(warm_up, 1))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.compiled != "graphs")
        self.average.update()
        self.step += 1
        return terms

    def _gradients(self, indices: np.ndarray, draws: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add up the gradients of this rank's share of the batch, in `training.accumulate` parts; their mean loss terms."""
        mine, parts = ranks.share(len(indices)), self.config["training"]["accumulate"]
        size, sums = len(mine) // parts, {}
        for start in range(mine.start, mine.stop, size):
            rows = slice(start, start + size)
            part = {name: values[rows] for name, values in draws.items()}
            x0 = self.images(indices[rows], part.pop("augmentation", None))
            if "partner" in part:
                partner, numbers = part.pop("partner"), draws.get("augmentation")
                numbers = None if numbers is None else numbers[partner]
                part["other"] = self.images(indices[partner.cpu().numpy()], numbers)
            if self.compiled == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            terms = self.model.loss(x0, part)
            (sum(terms.values()) / parts).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / parts
        return sums

    def check_weights(self) -> None:
        """Refuse to go on with weights that are not finite, which the next loss alone would tell (FloatingPointError)."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters.values()):
            raise FloatingPointError(f"a weight is not finite after step {self.step} of {self.run}; {self.remedy()}")

    def remedy(self) -> str:
        """Where a run that diverged can go on from, and how."""
        kept = checkpoint.steps(self.run)
        where = f"the last good checkpoint is step {kept[-1]}" if kept else "no checkpoint was written yet"
        return f"{where}: lower optimiser.learning_rate or lengthen optimiser.warm_up"

    def save(self) -> None:
        """Write checkpoint `step` (the first rank alone)."""
        if not ranks.first():
            return
        names = {parameter: name for name, parameter in self.parameters.items()}
        state = {
            f"{field}.{names[parameter]}": value
            for parameter, fields in self.optimizer.state.items()
            for field, value in fields.items()
        }
        groups = {"model": self.model.state_dict(), "average": self.average.tensors, "optimizer": state}
        facts = {"updates": self.average.updates, "world": experiment.world()}
        checkpoint.save(self.run, self.step, groups, self.config["logging"]["keep"], **facts)

    def _restore(self, step: int) -> None:
        groups, meta = checkpoint.read(self.run, step, ["model", "average", "optimizer"])
        checkpoint.load_weights(self.model, groups["model"], self.run)
        checkpoint.check_weights(self.average.tensors, groups["average"], self.run)
        self.average.load(groups["average"], meta["updates"])
        state = {f"step.{name}": torch.zeros(()) for name in self.parameters}
        for field in ("exp_avg", "exp_avg_sq"):
            state |= {f"{field}.{name}": parameter for name, parameter in self.parameters.items()}
        checkpoint.check_weights(state, groups["optimizer"], self.run)
        for name, parameter in self.parameters.items():
            saved = {field: groups["optimizer"][f"{field}.{name}"] for field in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                "step": saved["step"].to(self.device),
                # in the parameter's memory layout, which the fused kernel takes for granted
                "exp_avg": torch.empty_like(parameter.data).copy_(saved["exp_avg"]),
                "exp_avg_sq": torch.empty_like(parameter.data).copy_(saved["exp_avg_sq"]),
            }
        self.step = step
        before = meta.get("world", 1)
        if before != experiment.world():
            self.said.append(
                f"resumed with {experiment.world()} ranks, {before} before: the same images and noise at each step, "
                "other draws of dropout and other batch-norm statistics of the encoder"
            )


def train(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """Train to the end, yielding a record every `logging.every` images; checkpoints on the way and at the end.

    A step's checkpoint is written before its record is given: who reports it can lose the report, and no step.

    A loss that is not finite is a FloatingPointError; the last good checkpoint stays the newest. Setting `trainer.stop`
    ends the training after the step at hand, with a checkpoint.
    """
    batch = trainer.config["training"]["batch"]
    logging = trainer.config["logging"]
    every, save_every = (max(1, logging[name] // batch) for name in ("every", "checkpoint_every"))
    if save_every > every:
        save_every -= save_every % every  # a run that goes on from a checkpoint then logs what one without a stop does
    reported = time.monotonic()
    since, sums = trainer.step, None
    while trainer.step < trainer.total:
        terms = trainer.advance()
        trainer.stop = ranks.any_rank(trainer.stop)
        sums = terms if sums is None else {name: sums[name] + value for name, value in terms.items()}
        last = trainer.step == trainer.total or trainer.stop
        if last or trainer.step % every == 0 or trainer.step % save_every == 0:
            totals = torch.stack([torch.as_tensor(value, device=trainer.device).float() for value in sums.values()])
            ranks.mean_([totals])
            means = dict(zip(sums, (totals / (trainer.step - since)).tolist(), strict=True))
            broken = [name for name, value in means.items() if not np.isfinite(value)]
            if broken:
                raise FloatingPointError(
                    f"the loss term {broken[0]!r} is not finite before step {trainer.step} of {trainer.run}; "
                    f"{trainer.remedy()}"
                )
            now = time.monotonic()
            if last or trainer.step % save_every == 0:
                trainer.check_weights()
                trainer.save()
            if last or trainer.step % every == 0:
                yield {
                    "step": trainer.step, "images": trainer.step * batch, **means,
                    "images_per_second": (trainer.step - since) * batch / (now - reported),
                    "memory_mb": _memory(trainer.device),
                    "seconds_left": (trainer.total - trainer.step) * (now - reported) / (trainer.step - since),
                }  # fmt: skip
                reported, since, sums = now, trainer.step, None
        if last:
            break


def _memory(device: torch.device) -> float:
    """Peak memory in MB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
