"""Many fits of one head at once, and the choice between them by validation alone.

A fit is one head trained with one learning rate, one seed and one *view* of the trajectories. A head that sees one time
has T views (its times), a head that mixes has one (all of them). A seed decides the split, the order of the images, the
initial weights and the dropout masks; the fits of a seed share all of them and differ in nothing but view and learning
rate. All fits run as batched products over weights [F, ...] (mixing.py), so that a fit alone and the same fit among others
agree to rounding. The images stay on the device, where they are shuffled too.

Fits are cut into chunks that hold no more than `memory` bytes at once: on a GPU half of what is free, on a CPU half a
gibibyte. The rates of a seed stay together if they can, as they share its masks. Products are made in bfloat16 where the
processor has it and `precision` allows it; weights, their updates, standardisation and losses stay in float32.

Adam with L2 weight decay 1e-5, batches of 256 without the incomplete last one; the epoch and the learning rate of the best
validation accuracy are kept, the earliest of equals (From Points to Functions, section 4). Test images are seen once, at
the end, by the chosen fits.

Legend: N images, B images of a batch, T times, D features, K outputs, A attributes, M answers, L learning rates, S seeds,
V views, F = L S V fits in this order.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from diffusion_model import experiment
from downstream_classification.mixing import HEADS, Dropout

WEIGHT_DECAY = 1e-5
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's own
EVALUATION_BATCH = 1024  # images; bounds the memory of the activations of all fits
CPU_MEMORY = 512 << 20  # bytes of a chunk: six transformers; fewer would draw the masks of their seed again
PRECISIONS = ("auto", "float32", "bfloat16")


class CrossEntropy:
    """One attribute of several classes: labels [N] from 0; a hit is the most probable class."""

    def __init__(self, classes: int) -> None:
        self.outputs = classes

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the images [...] of logits [..., B, K] and labels [..., B]."""
        losses = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        return losses.view(labels.shape).mean(-1)

    def hits(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Which images are right [..., N]."""
        return logits.argmax(-1) == labels

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [F, N, K] of the mean probability of the answers [F, M, N, K]."""
        return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])


class Binary:
    """Many attributes that are there or not: labels [N, A] in {0, 1}; binary cross-entropy, averaged over the attributes."""

    def __init__(self, attributes: int) -> None:
        self.outputs = attributes

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the images [...] of logits [..., B, A] and labels [..., B, A]."""
        losses = functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        return losses.mean((-2, -1))

    def hits(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Which attributes of which images are right [..., N, A]."""
        return (logits > 0) == labels.bool()

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [F, N, A] of the mean probability of the answers [F, M, N, A]."""
        return functional.logsigmoid(logits).logsumexp(1) - functional.logsigmoid(-logits).logsumexp(1)


class Several:
    """Several attributes of `classes` classes each, read out of one head: labels [N, A]; their cross-entropies are summed."""

    def __init__(self, classes: Sequence[int]) -> None:
        self.classes, self.outputs = list(classes), sum(classes)
        self.parts = [CrossEntropy(count) for count in self.classes]

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the images [...] of logits [..., B, K] and labels [..., B, A]."""
        return sum(part.loss(own, labels[..., index]) for index, part, own in self._each(logits))

    def hits(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Which attributes of which images are right [..., N, A]."""
        return torch.stack([part.hits(own, labels[..., index]) for index, part, own in self._each(logits)], dim=-1)

    def average(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [F, N, K] of the mean probabilities of the answers [F, M, N, K]."""
        return torch.cat([part.average(own) for _, part, own in self._each(logits)], dim=-1)

    def _each(self, logits: torch.Tensor) -> Iterator[tuple[int, CrossEntropy, torch.Tensor]]:
        return zip(itertools.count(), self.parts, logits.split(self.classes, dim=-1), strict=False)


Criterion = CrossEntropy | Binary | Several


@dataclass(frozen=True)
class Outcome:
    """What validation chose for one seed and view, and how it does on the test images.

    `trials`: learning rate -> (best validation accuracy, its epoch); `hits` [N], or [N, A] of several attributes, and
    `attention` [N, H, T] or None are of the test images. `hits_by_rate` are those of every learning rate that did not
    diverge, for whoever chooses the rate by several seeds.
    """

    seed: int
    view: int
    validation: float
    learning_rate: float
    epoch: int
    trials: dict[float, tuple[float, int]]
    hits: np.ndarray
    hits_by_rate: dict[float, np.ndarray]
    attention: np.ndarray | None

    @property
    def test(self) -> float:
        """Test accuracy in [0, 1], over all attributes."""
        return float(self.hits.mean())


def strata(labels: np.ndarray) -> np.ndarray:
    """The class [N] of each image by which a split is stratified: its label, or its combination of labels [N, A]."""
    return labels if labels.ndim == 1 else np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for validation: a random split by the seed with every class in proportion.

    Of the images sorted by class, in random order within each, every 1/fraction-th goes to validation, so each class
    gives its share to within one image; of several attributes, the first has this for sure. Fewer than one image on
    either side is a ValueError.
    """
    held = round(len(labels) * fraction)
    if not 0 < held < len(labels):
        raise ValueError(
            f"a validation fraction of {fraction:g} leaves {len(labels) - held} of {len(labels)} images to train on and "
            f"{held} to validate: pass another --validation-fraction or use more images"
        )
    shuffled = torch.randperm(len(labels), generator=experiment.generator("split", seed)).numpy()
    ordered = shuffled[np.argsort(strata(labels)[shuffled], kind="stable")]
    picked = np.zeros(len(labels), dtype=bool)
    picked[((np.arange(held) + 0.5) * len(labels) / held).astype(int)] = True
    return np.sort(ordered[~picked]), np.sort(ordered[picked])


def subset(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` rows of the images, every class in proportion: the subsets of one seed are nested.

    Image i of the n of its class, in random order by the seed, stands at (i + 1/2) / n; the first `count` are taken.
    """
    if not 0 < count <= len(labels):
        raise ValueError(f"{count} labels of {len(labels)} images to train on: expected 1 to {len(labels)}")
    classes = np.unique(strata(labels), return_inverse=True)[1]
    shuffled = torch.randperm(len(labels), generator=experiment.generator("subset", seed)).numpy()
    ordered = shuffled[np.argsort(classes[shuffled], kind="stable")]
    sizes = np.bincount(classes)
    place = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    return np.sort(ordered[np.argsort(place, kind="stable")[:count]])


def rows(labels: np.ndarray, fraction: float, count: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for validation: of all images, or of `count` labelled ones, the same fraction held out.

    Both parts of fewer labels lie within those of more, so that validation never saw what another count trained on.
    """
    training, validation = split(labels, fraction, seed)
    if count is None:
        return training, validation
    held = round(count * fraction)
    return tuple(
        part[subset(labels[part], size, seed)] for part, size in ((training, count - held), (validation, held))
    )


def build(head: str, dimension: int, outputs: int, times: int, seed: int, **sizes: Any) -> nn.Module:
    """One fit of a head with the initial weights of this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed_of("head", seed))
        return HEADS[head](dimension, outputs, times, **sizes)


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of products; `auto` is bfloat16 where the processor multiplies in it."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    return getattr(torch, precision)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor itself multiplies in bfloat16; others emulate it, more slowly than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


class Adam:
    """Adam with L2 weight decay on weights [F, P], the same number of fits for each of the rates, in their order.

    torch.optim has no learning rate a row; besides, it loads torch's compiler, which looks for a package `tabulate` at
    exit and finds the command of that name beside this file. Its fused update is the one used here.
    """

    def __init__(self, weights: torch.Tensor, rates: Sequence[float], decay: float = WEIGHT_DECAY) -> None:
        self.rates, self.decay = list(rates), decay
        self.state = (weights, torch.zeros_like(weights), torch.zeros_like(weights))  # with moments of the gradient
        self.steps = torch.zeros((), device=weights.device)

    def step(self, gradient: torch.Tensor) -> None:
        """Move the weights, in place, against this gradient [F, P]."""
        self.steps += 1
        blocks = (tensor.unflatten(0, (len(self.rates), -1)) for tensor in (gradient, *self.state))
        for rate, gradients, weights, first, second in zip(self.rates, *blocks, strict=True):
            torch._fused_adam_(
                [weights], [gradients], [first], [second], [], [self.steps], lr=rate, beta1=BETAS[0], beta2=BETAS[1],
                weight_decay=self.decay, eps=EPSILON, amsgrad=False, maximize=False,
            )  # fmt: skip


@dataclass(frozen=True)
class Images:
    """The images that fits are trained on and validated with, and what each seed makes of them, on one device."""

    z: torch.Tensor  # float32 [N, T, D]
    labels: torch.Tensor  # int64 [N] or [N, A]
    training: torch.Tensor  # rows [S, n]
    validation: torch.Tensor  # rows [S, m]
    mean: torch.Tensor | None  # [S, T, D]; None: not standardised
    deviation: torch.Tensor | None


class Fits:
    """All fits of one head: `epoch()` trains each by one epoch and keeps what validates best, `outcomes` tests.

    `z` float32 [N, T, D] and `labels` int64 [N] or [N, A], as the criterion takes them, are the images to train on and to
    validate with. `count` labelled images only are used, those held out included, nested by the seed (None: all). `hidden`
    [T] and `hide_cls` are of training, validation and test. `memory` is the bytes of a chunk (None: chosen).
    `losses` holds the mean training loss [L, S, V] of every epoch.
    """

    def __init__(
        self, head: str, z: torch.Tensor, labels: np.ndarray, criterion: Criterion, learning_rates: Sequence[float],
        seeds: Sequence[int], batch: int = 256, validation_fraction: float = 0.1, standardise: bool = True,
        sizes: Mapping[str, Any] | None = None, device: torch.device | str = "cpu", count: int | None = None,
        hidden: torch.Tensor | None = None, hide_cls: bool = False, precision: str = "auto", memory: int | None = None,
    ) -> None:  # fmt: skip
        _, times, dimension = z.shape
        self.rates, self.seeds, self.device = list(learning_rates), list(seeds), torch.device(device)
        self.views = 1 if HEADS[head].mixes else times
        self.criterion, self.precision = criterion, choose_precision(precision, self.device)
        self.images = prepare(z, labels, self.seeds, validation_fraction, count, standardise, self.device)
        self.batch = min(batch, self.images.training.shape[1])
        self.hiding = {"hidden": hidden if hidden is None else hidden.to(self.device), "hide_cls": hide_cls}
        self.clip, self.mixes = HEADS[head].clip, HEADS[head].mixes
        seen = times if self.mixes else 1
        self.modules = [build(head, dimension, criterion.outputs, seen, seed, **(sizes or {})) for seed in self.seeds]
        for module in self.modules:
            module.to(self.device)
        self.epochs = 0
        self.losses: list[np.ndarray] = []
        shape = (len(self.rates), len(self.seeds), self.views)
        self.best_accuracy, self.best_epoch = np.full(shape, -1.0), np.zeros(shape, dtype=int)
        self.chunks = [Chunk(self, *part) for part in self._parts(self._room(memory))]

    def _room(self, memory: int | None) -> int:
        """How many fits run together."""
        if memory is None:
            on_gpu = self.device.type == "cuda"
            memory = torch.cuda.mem_get_info(self.device)[0] // 2 if on_gpu else CPU_MEMORY
        return max(1, memory // self.footprint())

    def footprint(self) -> int:
        """Bytes that one fit takes in a step: weights, gradient, moments, the best weights, and what is kept for the gradient."""
        weights = sum(parameter.numel() for parameter in self.modules[0].parameters())
        kept = 0

        def note(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        one = Chunk(self, [0], [0], [0])
        one.share_masks(0)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            one.forward(self.images.training[:1, : self.batch])
        return 5 * 4 * weights + kept

    def _parts(self, room: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
        """Rates, seeds and views of each chunk of at most `room` fits: all rates of a seed and view stay together if they can."""
        cuts = []
        for count in (len(self.rates), self.views, len(self.seeds)):
            size = min(count, room)
            room = max(1, room // count)
            cuts.append([list(range(start, min(start + size, count))) for start in range(0, count, size)])
        for rates, views, seeds in itertools.product(*cuts):
            yield rates, seeds, views

    def epoch(self) -> None:
        """Train every fit on every batch once, then keep the weights of the fits that validate better than before."""
        self.epochs += 1
        losses = np.zeros_like(self.best_accuracy)
        for chunk in self.chunks:
            losses[chunk.index] = chunk.train(self.epochs)
            accuracy = np.where(np.isfinite(losses[chunk.index]), chunk.validate(), -1.0)
            better = accuracy > self.best_accuracy[chunk.index]
            chunk.keep(better)
            self.best_accuracy[chunk.index] = np.where(better, accuracy, self.best_accuracy[chunk.index])
            self.best_epoch[chunk.index] = np.where(better, self.epochs, self.best_epoch[chunk.index])
        self.losses.append(losses)

    def outcomes(
        self, z: torch.Tensor, labels: np.ndarray, hidden: torch.Tensor | None = None, hide_cls: bool | None = None
    ) -> list[list[Outcome | None]]:
        """For each seed, for each view, the learning rate that validated best, tested on z [N, T, D].

        None where every fit diverged. `hidden` and `hide_cls` replace those of training.
        """
        chosen = self.best_accuracy.argmax(0)  # [S, V], the first of equals
        z, answers = z.to(self.device), torch.as_tensor(labels)
        hiding = dict(self.hiding)
        if hidden is not None:
            hiding["hidden"] = hidden.to(self.device)
        if hide_cls is not None:
            hiding["hide_cls"] = hide_cls
        found: list[list[Outcome | None]] = [[None] * self.views for _ in self.seeds]
        hits, attentions = {}, {}
        for number, chunk in itertools.product(range(len(self.rates)), self.chunks):  # a rate at once bounds the memory
            for fit, logits, attention in chunk.test(np.full_like(chosen, number), self.best_accuracy, z, hiding):
                hits[fit] = self.criterion.hits(logits, answers).numpy()
                if chosen[fit[1:]] == number:
                    attentions[fit] = attention
        for (rate, seed, view), attention in attentions.items():
            found[seed][view] = self._outcome(rate, seed, view, hits, attention)
        return found

    def _outcome(
        self, rate: int, seed: int, view: int, hits: Mapping[tuple[int, int, int], np.ndarray],
        attention: torch.Tensor | None,
    ) -> Outcome:  # fmt: skip
        accuracy, epoch = self.best_accuracy[:, seed, view], self.best_epoch[:, seed, view]
        return Outcome(
            seed=self.seeds[seed],
            view=view,
            validation=float(accuracy[rate]),
            learning_rate=self.rates[rate],
            epoch=int(epoch[rate]),
            trials={value: (float(accuracy[index]), int(epoch[index])) for index, value in enumerate(self.rates)},
            hits=hits[rate, seed, view],
            hits_by_rate={
                value: hits[index, seed, view] for index, value in enumerate(self.rates) if (index, seed, view) in hits
            },
            attention=None if attention is None else attention.numpy(),
        )


class Chunk:
    """The fits of some rates, seeds and views (by their indices) that run as one."""

    def __init__(self, fits: Fits, rates: list[int], seeds: list[int], views: list[int]) -> None:
        self.fits, self.rates, self.seeds, self.views = fits, rates, seeds, views
        self.index = np.ix_(rates, seeds, views)
        self.module = fits.modules[seeds[0]]
        self.shapes = {name: parameter.shape for name, parameter in self.module.named_parameters()}
        starts = [nn.utils.parameters_to_vector(fits.modules[seed].parameters()).detach() for seed in seeds]
        self.weights = torch.stack(starts)[:, None].repeat(len(rates), 1, len(views), 1).flatten(0, 2)  # [F, P]
        self.best = self.weights.clone()
        self.adam = Adam(self.weights, [fits.rates[rate] for rate in rates])

    def unpack(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters of the head of F fits, in the precision of products, from weights [F, P]."""
        parts = weights.split([shape.numel() for shape in self.shapes.values()], dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {
            name: part.to(self.fits.precision, memory_format=torch.contiguous_format).reshape(-1, *shape[1:])
            for (name, shape), part in named
        }

    def train(self, epoch: int) -> np.ndarray:
        """Train each fit on every batch once; the mean loss [L, S, V]."""
        self.share_masks(epoch)
        batch, device, orders = self.fits.batch, self.fits.device, []
        for seed in self.seeds:
            rows = self.fits.images.training[seed]
            generator = experiment.generator("order", self.fits.seeds[seed], epoch, device=device)
            orders.append(rows[torch.randperm(len(rows), generator=generator, device=device)])
        steps = len(rows) // batch
        total = sum(self.step(rows) for rows in torch.stack(orders)[:, : steps * batch].split(batch, dim=1))
        return (total / steps).view(len(self.rates), len(self.seeds), len(self.views)).double().cpu().numpy()

    def share_masks(self, epoch: int) -> None:
        """Let the dropout of this epoch come from one generator a seed."""
        names = [self.fits.seeds[seed] for seed in self.seeds]
        masks = [experiment.generator("dropout", name, epoch, device=self.fits.device) for name in names]
        for part in self.module.modules():
            if isinstance(part, Dropout):
                part.share(len(self.rates), masks)

    def step(self, rows: torch.Tensor) -> torch.Tensor:
        """One step of every fit on its seed's rows [S, B]; their losses [F] before it."""
        losses, weights = self.forward(rows)
        gradients = torch.autograd.grad(losses.sum(), weights)
        gradient = torch.cat([part.reshape(len(losses), -1) for part in gradients], dim=1).float()  # [F, P]
        if self.fits.clip is not None:  # each fit by its own norm
            gradient *= (self.fits.clip / gradient.norm(dim=1, keepdim=True).clamp_min(1e-6)).clamp_max(1.0)
        self.adam.step(gradient)
        return losses.detach()

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Losses [F] of every fit on its seed's rows [S, B], and the weights, as they are multiplied, that they depend on."""
        weights = {name: weight.requires_grad_() for name, weight in self.unpack(self.weights).items()}
        images = self.fits.images
        z = self.seen(images.z, rows)
        self.module.train()
        z = z.expand(len(self.rates), *z.shape).flatten(0, 2)  # [F, B, T or 1, D]
        logits, _ = functional_call(self.module, weights, (z,), self.fits.hiding)  # [F, M, B, K]
        labels = images.labels[rows][None, :, None, None]  # [1, S, 1, 1, B, ...]
        labels = labels.expand(len(self.rates), -1, len(self.views), logits.shape[1], *labels.shape[4:]).flatten(0, 2)
        return self.fits.criterion.loss(logits.float(), labels).sum(1), list(weights.values())

    def seen(self, z: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What the fits of each seed and view see of rows [S, B] of z, standardised: [S, V, B, T or 1, D], T of heads that mix."""
        mean, deviation = self.fits.images.mean, self.fits.images.deviation  # [S, T, D]
        if self.fits.mixes:
            z = z[rows]  # [S, B, T, D]
            if mean is not None:
                z = (z - mean[self.seeds, None]) / deviation[self.seeds, None]
            return z.to(self.fits.precision)[:, None]
        views = torch.tensor(self.views, device=z.device)
        z = z[rows[:, None], views[:, None]]  # [S, V, B, D]
        if mean is not None:
            z = (z - mean[self.seeds][:, views, None]) / deviation[self.seeds][:, views, None]
        return z.to(self.fits.precision)[:, :, :, None]

    def validate(self) -> np.ndarray:
        """Validation accuracy [L, S, V]; -1 where the weights are no longer finite."""
        images = self.fits.images
        rows = images.validation[self.seeds]
        logits, _ = self.evaluate(self.weights, images.z, rows, self.fits.hiding)  # [F, m, K]
        labels = images.labels[rows][None, :, None]
        labels = labels.expand(len(self.rates), -1, len(self.views), *labels.shape[3:]).flatten(0, 2)
        accuracy = self.fits.criterion.hits(logits, labels).flatten(1).double().mean(1)
        accuracy = accuracy.where(self.weights.isfinite().all(1), -1.0)
        return accuracy.view(len(self.rates), len(self.seeds), len(self.views)).cpu().numpy()

    def keep(self, better: np.ndarray) -> None:
        """Remember the weights of the fits marked [L, S, V]."""
        chosen = torch.from_numpy(better.ravel()).to(self.fits.device)
        self.best[chosen] = self.weights[chosen]

    def test(
        self, chosen: np.ndarray, accuracy: np.ndarray, z: torch.Tensor, hiding: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[int, int, int], torch.Tensor, torch.Tensor | None]]:
        """(rate, seed, view), logits [N, K] and attention [N, H, T] of the fits here whose rate is the chosen [S, V]."""
        fits = itertools.product(self.rates, self.seeds, self.views)
        mine = {place: fit for place, fit in enumerate(fits) if chosen[fit[1:]] == fit[0] and accuracy[fit] >= 0}
        if not mine:
            return
        index = torch.tensor(list(mine), device=self.fits.device)
        rows = torch.arange(len(z), device=self.fits.device).expand(len(self.seeds), -1)
        inputs = index % (len(self.seeds) * len(self.views))
        logits, attention = self.evaluate(self.best[index], z, rows, hiding, inputs)
        for place, fit in enumerate(mine.values()):
            yield fit, logits[place].cpu(), None if attention is None else attention[place].cpu()

    @torch.no_grad()
    def evaluate(
        self, weights: torch.Tensor, z: torch.Tensor, rows: torch.Tensor, hiding: Mapping[str, Any],
        inputs: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """Logits [F, N, K] and attention [F, N, H, T] of the fits of these weights [F, P] on rows [S, N] of z.

        `inputs` [F] says which seed and view, as s V + v, each fit sees (None: the fits are all of the chunk's).
        """
        if inputs is None:
            inputs = torch.arange(len(self.seeds) * len(self.views), device=z.device).repeat(len(self.rates))
        parameters = self.unpack(weights)
        self.module.eval()
        parts = []
        for block in rows.split(EVALUATION_BATCH, dim=1):
            seen = self.seen(z, block).flatten(0, 1)[inputs]
            logits, attention = functional_call(self.module, parameters, (seen,), dict(hiding))
            logits = logits.float()
            parts.append((logits[:, 0] if logits.shape[1] == 1 else self.fits.criterion.average(logits), attention))
        logits, attention = zip(*parts, strict=True)
        return torch.cat(logits, dim=1), None if attention[0] is None else torch.cat(attention, dim=1).float()


def prepare(
    z: torch.Tensor, labels: np.ndarray, seeds: Sequence[int], fraction: float, count: int | None, standardise: bool,
    device: torch.device,
) -> Images:  # fmt: skip
    """The images on the device, with each seed's split, its subset of labels, and its standardisation."""
    z = z.to(device)
    parts = [rows(labels, fraction, count, seed) for seed in seeds]
    training, validation = (torch.from_numpy(np.stack(part)).to(device) for part in zip(*parts, strict=True))
    mean = deviation = None
    if standardise:
        measured = [statistics(z, rows) for rows in training]
        mean, deviation = (torch.stack(values) for values in zip(*measured, strict=True))
    return Images(z, torch.as_tensor(labels, device=device), training, validation, mean, deviation)


def statistics(z: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [T, D] of each feature over these rows of z; the deviation of a constant feature is 1."""
    parts = [torch.std_mean(z[rows, time], dim=0) for time in range(z.shape[1])]
    deviation, mean = (torch.stack(values) for values in zip(*parts, strict=True))
    return mean, deviation.where(deviation > 1e-6 * mean.abs(), 1.0)  # 1e-6: below it, float32 rounding of a constant
