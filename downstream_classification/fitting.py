"""Many fits of one head at once, and the choice between them by validation alone.

A fit is one head trained on one *view* of the trajectories with one learning rate. A head that sees one time has T
views (its times), a head that mixes has one (all of them). All fits of one seed share the split, the order of the
images, the initial weights and the dropout masks, so that they differ in nothing but view and learning rate, and run
as one batched computation (`torch.func.vmap` over their weights): a fit alone and the same fit in a batch agree.

Adam with L2 weight decay 1e-5, cross-entropy, batches of 256 without the incomplete last one; the epoch and the learning
rate of the best validation accuracy are kept, the earliest of equals (From Points to Functions, section 4). Test images
are seen once, at the end, by the chosen fits.

Legend: N images, B images of a batch, T times, D features, V views, L learning rates, F = L V fits, P weights of a head.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from diffusion_model import experiment
from downstream_classification.mixing import HEADS

WEIGHT_DECAY = 1e-5
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's own
EVALUATION_BATCH = 1024  # images; bounds the memory of the activations of all fits


@dataclass(frozen=True)
class Outcome:
    """What validation chose for one view, and how it does on the test images.

    `trials`: learning rate -> (best validation accuracy, its epoch); `hits` [N] bool and `attention` [N, H, T] or None
    are of the test images.
    """

    validation: float
    learning_rate: float
    epoch: int
    trials: dict[float, tuple[float, int]]
    hits: np.ndarray
    attention: np.ndarray | None

    @property
    def test(self) -> float:
        """Test accuracy in [0, 1]."""
        return float(self.hits.mean())


def split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for validation: a random split by the seed with every class in proportion.

    Of the images sorted by class, in random order within each, every 1/fraction-th goes to validation, so each class
    gives its share to within one image. Fewer than one image on either side is a ValueError.
    """
    held = round(len(labels) * fraction)
    if not 0 < held < len(labels):
        raise ValueError(
            f"a validation fraction of {fraction:g} leaves {len(labels) - held} of {len(labels)} images to train on and "
            f"{held} to validate: pass another --validation-fraction or use more images"
        )
    shuffled = torch.randperm(len(labels), generator=experiment.generator("split", seed)).numpy()
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    picked = np.zeros(len(labels), dtype=bool)
    picked[((np.arange(held) + 0.5) * len(labels) / held).astype(int)] = True
    return np.sort(ordered[~picked]), np.sort(ordered[picked])


def build(head: str, dimension: int, classes: int, times: int, seed: int, **sizes: Any) -> nn.Module:
    """A head with the initial weights of this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed_of("head", seed))
        return HEADS[head](dimension, classes, times, **sizes)


class Adam:
    """Adam with L2 weight decay on weights [F, P], each row with its own learning rate [F].

    torch.optim has no learning rate a row; besides, it loads torch's compiler, which looks for a package `tabulate` at
    exit and finds the command of that name beside this file.
    """

    def __init__(self, weights: torch.Tensor, rates: torch.Tensor, decay: float = WEIGHT_DECAY) -> None:
        self.weights, self.rates, self.decay, self.steps = weights, rates[:, None], decay, 0
        self.first, self.second = torch.zeros_like(weights), torch.zeros_like(weights)  # moments of the gradient

    def step(self, gradient: torch.Tensor) -> None:
        """Move the weights, in place, against this gradient [F, P]."""
        self.steps += 1
        gradient = gradient.add(self.weights, alpha=self.decay)
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        scale = torch.sqrt(self.second).mul_((1 - BETAS[1] ** self.steps) ** -0.5).add_(EPSILON)
        self.weights -= self.rates / (1 - BETAS[0] ** self.steps) * self.first / scale


class Fits:
    """All fits of one head and seed: `epoch()` trains each by one epoch and keeps what validates best, `outcomes` tests.

    `z` float32 [N, T, D] and `labels` int64 [N] are the images to train on and to validate with.
    """

    def __init__(
        self, head: str, z: torch.Tensor, labels: np.ndarray, classes: int, learning_rates: Sequence[float], seed: int,
        batch: int = 256, validation_fraction: float = 0.1, standardise: bool = True,
        sizes: Mapping[str, Any] | None = None, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        _, times, dimension = z.shape
        self.seed, self.rates, self.device = seed, list(learning_rates), torch.device(device)
        self.mixes = HEADS[head].mixes
        self.views = 1 if self.mixes else times
        self.z, self.labels = z.to(device), torch.as_tensor(labels, device=device)
        training, validation = split(labels, validation_fraction, seed)
        self.training, self.validation = torch.from_numpy(training), torch.from_numpy(validation)
        self.batch = min(batch, len(training))
        self.mean, self.deviation = statistics(self.z, self.training) if standardise else (None, None)

        seen = times if self.mixes else 1
        self.module = build(head, dimension, classes, seen, seed, **(sizes or {})).to(device)
        self.clip = self.module.clip
        parameters = dict(self.module.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        start = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])  # [P]
        fits = len(self.rates) * self.views  # fit = rate * V + view
        self.weights = start.repeat(fits, 1)  # [F, P]; fit = rate * V + view
        self.adam = Adam(self.weights, torch.tensor(self.rates, device=device).repeat_interleave(self.views))
        self.epochs = 0

        self.best = self.weights.clone()
        self.best_accuracy = torch.full((fits,), -1.0, dtype=torch.float64, device=device)
        self.best_epoch = torch.zeros(fits, dtype=torch.int64, device=device)

    def epoch(self) -> None:
        """Train every fit on every batch once, then keep the weights of the fits that validate better than before."""
        self.epochs += 1
        order = torch.randperm(len(self.training), generator=experiment.generator("order", self.seed, self.epochs))
        self.module.train()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(experiment.seed_of("dropout", self.seed, self.epochs))
            for rows in self.training[order].split(self.batch):
                if len(rows) == self.batch:
                    self._step(rows)
        accuracy = self._validate()
        better = accuracy > self.best_accuracy
        self.best[better] = self.weights[better]
        self.best_accuracy = torch.where(better, accuracy, self.best_accuracy)
        self.best_epoch[better] = self.epochs

    def outcomes(self, z: torch.Tensor, labels: np.ndarray) -> list[Outcome | None]:
        """For each view, the learning rate that validated best, tested on z [N, T, D]; None where every fit diverged."""
        accuracy = self.best_accuracy.reshape(-1, self.views).cpu().numpy()  # [L, V]
        epoch = self.best_epoch.reshape(-1, self.views).cpu().numpy()
        chosen = accuracy.argmax(0)  # [V], the first of equals
        weights = self.best.reshape(len(self.rates), self.views, -1)[chosen, np.arange(self.views)]  # [V, P]
        logits, attention = self._evaluate(weights, z.to(self.device), torch.arange(len(z)))
        hits = logits.argmax(-1).numpy() == labels  # [V, N]
        return [
            Outcome(
                validation=float(accuracy[rate, view]),
                learning_rate=self.rates[rate],
                epoch=int(epoch[rate, view]),
                trials={
                    value: (float(accuracy[index, view]), int(epoch[index, view]))
                    for index, value in enumerate(self.rates)
                },
                hits=hits[view],
                attention=None if attention is None else attention[view].numpy(),
            )
            if accuracy[rate, view] >= 0
            else None
            for view, rate in enumerate(chosen)
        ]

    def _validate(self) -> torch.Tensor:
        """Validation accuracy [F] in float64; -1 where the weights are no longer finite."""
        logits, _ = self._evaluate(self.weights, self.z, self.validation)
        right = logits.to(self.device).argmax(-1) == self.labels[self.validation]
        return right.double().mean(-1).where(self.weights.isfinite().all(1), -1.0)

    @torch.no_grad()
    def _evaluate(
        self, weights: torch.Tensor, z: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [F or V, N, K] and attention [F or V, N, H, T] of these rows, on the CPU, for weights [F or V, P]."""
        self.module.eval()
        parts = [self._forward(weights, self._seen(z, block)) for block in rows.split(EVALUATION_BATCH)]
        logits = torch.cat([part.cpu() for part, _ in parts], dim=1)
        if parts[0][1] is None:
            return logits, None
        return logits, torch.cat([part.cpu() for _, part in parts], dim=1)

    def _step(self, rows: torch.Tensor) -> None:
        """One step of every fit; their losses are summed, so that no fit's gradient knows of another."""
        weights = self.weights.detach().requires_grad_()
        logits, _ = self._forward(weights, self._seen(self.z, rows))  # [F, B, K]
        labels = self.labels[rows].repeat(len(logits))
        loss = functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum") / len(rows)
        (gradient,) = torch.autograd.grad(loss, weights)  # [F, P]
        if self.clip is not None:  # each fit by its own norm
            gradient *= (self.clip / gradient.norm(dim=1, keepdim=True).clamp_min(1e-6)).clamp_max(1.0)
        self.adam.step(gradient)

    def _seen(self, z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What each view sees of these rows: [V, B, 1, D] for heads of one time, [1, B, T, D] for heads that mix."""
        seen = z[rows.to(z.device)]  # [B, T, D]
        if self.mean is not None:
            seen = (seen - self.mean) / self.deviation
        return seen[None] if self.mixes else seen.transpose(0, 1)[:, :, None]

    def _forward(self, weights: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [F, B, K] and attention of the heads with weights [F, P] on seen [V, B, T or 1, D]; F a multiple of V."""
        flat = weights.split([math.prod(shape) for shape in self.shapes.values()], dim=1)
        stacked = {
            name: part.reshape(-1, *shape) for part, (name, shape) in zip(flat, self.shapes.items(), strict=True)
        }
        if len(seen) == 1:
            shared, over = seen[0], (0, None)
        else:
            shared, over = seen.repeat(len(weights) // len(seen), 1, 1, 1), (0, 0)
        if self.mixes:
            return vmap(self._call, in_dims=over, randomness="same")(stacked, shared)
        return vmap(lambda *one: self._call(*one)[0], in_dims=over, randomness="same")(stacked, shared), None

    def _call(self, weights: dict[str, torch.Tensor], seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return functional_call(self.module, weights, (seen,))


def statistics(z: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [T, D] of each feature over these rows of z; the deviation of a constant feature is 1."""
    parts = [torch.std_mean(z[rows.to(z.device), time], dim=0) for time in range(z.shape[1])]
    deviation, mean = (torch.stack(values) for values in zip(*parts, strict=True))
    return mean, deviation.where(deviation > 1e-6 * mean.abs(), 1.0)  # 1e-6: below it, float32 rounding of a constant
