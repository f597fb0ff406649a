"""The training loop: a function of (configuration, data) that can stop anywhere and go on, bit for bit.

A batch is a function of (seed, step): images by a permutation an epoch, levels, noise and dropout by generators seeded
from (seed, step). Several processes under torchrun each take their share of the same batch and average the gradients,
so more ranks change the speed and not the losses (the encoder's batch-norm statistics are per rank).
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from diffusion_model import checkpoint, experiment
from diffusion_model.data import Split
from diffusion_model.ema import Average
from diffusion_model.score_model import LEVELS, ScoreModel


def batch_indices(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """Indices [batch] of the images of one step: consecutive entries of a fresh permutation each epoch."""
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    indices = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        order = torch.randperm(count, generator=experiment.generator(seed, "epoch", int(epoch))).numpy()
        chosen = epochs == epoch
        indices[chosen] = order[positions[chosen] % count]
    return indices


def draw(model: ScoreModel, config: Any, step: int, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    """All that is random in one step's loss (see ScoreModel.loss), from generators seeded by (seed, step)."""
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
    return draws


class Trainer:
    """Model, optimiser and average of one run; `advance` makes one step, `save` and `restore` carry them over."""

    def __init__(self, run: Path, record: dict[str, Any], split: Split, device: torch.device) -> None:
        self.run, self.split, self.device = Path(run), split, device
        self.config = checkpoint.unflatten(record["config"])
        self.rank, self.world = experiment.rank(), experiment.world()
        self.stop = False  # set by a signal handler: make a checkpoint after this step and leave
        training, optimiser = self.config["training"], self.config["optimiser"]
        if training["batch"] % self.world:
            raise ValueError(f"training.batch {training['batch']} is not divisible by {self.world} processes")
        torch.manual_seed(experiment.seed_of(self.config["seed"], "weights"))
        self.model = checkpoint.build(record).to(device).train()
        self.average = Average(self.model, training["average_decay"])
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.Adam(
            list(self.parameters.values()), lr=optimiser["learning_rate"],
            betas=(optimiser["beta1"], 0.999), eps=optimiser["epsilon"], fused=True,
        )  # fmt: skip
        self.step = 0
        stored = checkpoint.steps(run)
        if stored:
            self._restore(stored[-1])

    @property
    def total(self) -> int:
        """Steps of the whole run: training.images over the batch, rounded up."""
        return -(-self.config["training"]["images"] // self.config["training"]["batch"])

    def batch(self, step: int) -> torch.Tensor:
        """Images of one step in model space, [B, C, H, W]."""
        indices = batch_indices(self.config["seed"], step, self.config["training"]["batch"], len(self.split))
        order = np.argsort(indices)  # a memory map is read in order
        images = np.empty((len(indices), *self.split.shape), np.uint8)
        images[order] = self.split.images[indices[order]]
        return self.model.scaling.to_model(torch.from_numpy(images).to(self.device))

    def advance(self) -> dict[str, torch.Tensor]:
        """One optimiser step; returns the loss terms, not yet checked for being finite."""
        optimiser = self.config["optimiser"]
        images = self.batch(self.step)
        draws = draw(self.model, self.config, self.step, len(images), self.device)
        if self.world > 1:
            share = slice(self.rank * len(images) // self.world, (self.rank + 1) * len(images) // self.world)
            images, draws = images[share], {name: values[share] for name, values in draws.items() if name != "partner"}
            if "share" in draws:  # the partner is drawn among the rank's own images
                generator = experiment.generator(self.config["seed"], "partner", self.step, self.rank)
                draws["partner"] = torch.randperm(len(images), generator=generator).to(self.device)
        torch.manual_seed(experiment.seed_of(self.config["seed"], "dropout", self.step, self.rank))
        terms = self.model.loss(images, draws)
        sum(terms.values()).backward()
        if self.world > 1:
            self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), optimiser["clip"])
        warm_up = optimiser["warm_up"] // self.config["training"]["batch"]
        for group in self.optimizer.param_groups:
            group["lr"] = optimiser["learning_rate"] * min(1.0, (self.step + 1) / max(warm_up, 1))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self.step += 1
        return {name: value.detach() for name, value in terms.items()}

    def _average_gradients(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def save(self) -> None:
        """Write checkpoint `step` (rank 0 alone)."""
        if self.rank:
            return
        names = {parameter: name for name, parameter in self.parameters.items()}
        state = {
            f"{field}.{names[parameter]}": value
            for parameter, fields in self.optimizer.state.items()
            for field, value in fields.items()
        }
        groups = {"model": self.model.state_dict(), "average": self.average.tensors, "optimizer": state}
        checkpoint.save(self.run, self.step, groups, self.config["logging"]["keep"], updates=self.average.updates)

    def _restore(self, step: int) -> None:
        groups, meta = checkpoint.read(self.run, step, ["model", "average", "optimizer"])
        checkpoint.load_weights(self.model, groups["model"], self.run)
        self.average.load(groups["average"], meta["updates"])
        for name, parameter in self.parameters.items():
            saved = {field: groups["optimizer"][f"{field}.{name}"] for field in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                "step": saved["step"].to(self.device),
                # in the parameter's memory layout, which the fused kernel takes for granted
                "exp_avg": torch.empty_like(parameter.data).copy_(saved["exp_avg"]),
                "exp_avg_sq": torch.empty_like(parameter.data).copy_(saved["exp_avg_sq"]),
            }
        self.step = step


def train(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """Train to the end, yielding a record every `logging.every` images; checkpoints on the way and at the end.

    A loss that is not finite is a FloatingPointError; the last good checkpoint stays the newest. Setting `trainer.stop`
    ends the training after the step at hand, with a checkpoint.
    """
    batch = trainer.config["training"]["batch"]
    logging = trainer.config["logging"]
    every, save_every = (max(1, logging[name] // batch) for name in ("every", "checkpoint_every"))
    reported = time.monotonic()
    since, sums = trainer.step, None
    while trainer.step < trainer.total:
        terms = trainer.advance()
        sums = terms if sums is None else {name: sums[name] + value for name, value in terms.items()}
        last = trainer.step == trainer.total or trainer.stop
        if last or trainer.step % every == 0 or trainer.step % save_every == 0:
            means = {name: float(value) / (trainer.step - since) for name, value in sums.items()}
            broken = [name for name, value in means.items() if not np.isfinite(value)]
            if broken:
                kept = checkpoint.steps(trainer.run)
                where = f"the last good checkpoint is step {kept[-1]}" if kept else "no checkpoint was written yet"
                raise FloatingPointError(
                    f"the loss term {broken[0]!r} is not finite before step {trainer.step} of {trainer.run}; {where}: "
                    "lower optimiser.learning_rate or lengthen optimiser.warm_up"
                )
            now = time.monotonic()
            if last or trainer.step % every == 0:
                yield {
                    "step": trainer.step, "images": trainer.step * batch, **means,
                    "images_per_second": (trainer.step - since) * batch / (now - reported),
                    "memory_mb": _memory(trainer.device),
                    "seconds_left": (trainer.total - trainer.step) * (now - reported) / (trainer.step - since),
                }  # fmt: skip
                reported, since, sums = now, trainer.step, None
            if last or trainer.step % save_every == 0:
                trainer.save()
        if last:
            break


def _memory(device: torch.device) -> float:
    """Peak memory in MB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
