"""What turns images into features: the sources of representations.

    encoder, untrained   mean of the code z(x0, t) of the clean image; the same network at initialisation
    block-NAME           activation of a block of the score network for the noised image x0 + level(t) noise
    pixels, pca          the clean image itself, or its principal components of the training images: one time, 0

The noise of a block's image is a function of split, image index and draw, the same at every time and for every run;
activations of several draws are averaged. A DRL score network is given the image's own code at that time, as in training,
but its mean where training draws from the posterior.

A readout has `outputs`, {name of a store: features D}; `read` is the part that a thread can do ahead, on the CPU; the call
gives {name: {time: [B, D] in float32}} for the times and names wanted. Legend: B images, C channels, H and W pixels.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch

from diffusion_model import arrays, checkpoint, data, experiment, moments, ranks
from diffusion_model.folded import FoldedEncoder
from diffusion_model.score_model import ScoreModel
from diffusion_model.trajectories import level_of

Wanted = dict[float, list[str]]  # names of stores by time
Found = dict[str, dict[float, torch.Tensor]]
NOISE = "noise of representations"  # with split, draw and index the key of an image's noise
POOLING = ("mean", "none")
AT_ONCE = 128 * 32 * 32  # pixels that a CPU takes through the networks at once: seen to be best for WRN-28-2
TIMELESS = ("pixels", "pca")  # of the clean images alone
COMPONENTS = "principal components"


class Readout:
    """Base: images of a split in model space, taken through `of` in parts that suit the device."""

    outputs: dict[str, int]

    def __init__(self, model: ScoreModel) -> None:
        self.scaling, self.device = model.scaling, next(model.parameters()).device
        self.part = None if self.device.type == "cuda" else max(1, AT_ONCE // (model.shape[1] * model.shape[2]))

    def read(self, split: data.Split, rows: slice) -> tuple[torch.Tensor, ...]:
        """What `of` needs of these images, on the CPU; the pixels first."""
        return (torch.from_numpy(np.array(split.images[rows])),)

    def __call__(self, held: tuple[torch.Tensor, ...], wanted: Wanted) -> Found:
        """Features of what `read` gave."""
        held = tuple(tensor.to(self.device, non_blocking=True) for tensor in held)
        parts = zip(*(tensor.split(self.part or len(tensor)) for tensor in held), strict=True)
        found = [self.of(self.scaling.to_model(pixels), *others, wanted=wanted) for pixels, *others in parts]
        return {
            name: {time: torch.cat([part[name][time] for part in found]) for time in times}
            for name, times in found[0].items()
        }

    def of(self, x0: torch.Tensor, *others: torch.Tensor, wanted: Wanted) -> Found:
        """Features of clean images [B, C, H, W]."""
        raise NotImplementedError


class Codes(Readout):
    """Means of an encoder's posterior."""

    def __init__(self, name: str, model: ScoreModel, precision: torch.dtype, compiled: bool = False) -> None:
        super().__init__(model)
        self.outputs = {name: model.encoder.dimension}
        self.encoder = FoldedEncoder(model.encoder, precision)
        if compiled:
            self.encoder.compile()
        self.biases: dict[float, list[torch.Tensor]] = {}

    def of(self, x0: torch.Tensor, *others: torch.Tensor, wanted: Wanted) -> Found:
        begun, (name,) = self.encoder.begin(x0), self.outputs
        return {name: {time: self.at(begun, time) for time in wanted}}

    def at(self, begun: tuple[torch.Tensor, torch.Tensor], time: float) -> torch.Tensor:
        """Means [B, D] at one time."""
        if time not in self.biases:
            self.biases[time] = self.encoder.biases(time)
        return self.encoder.finish(begun, self.biases[time])


class Pixels(Readout):
    """Pixels in model space, or their coordinates (x - mean) directions."""

    def __init__(self, name: str, model: ScoreModel, basis: dict[str, np.ndarray] | None = None) -> None:
        super().__init__(model)
        self.basis = {key: torch.from_numpy(np.array(value)).to(self.device) for key, value in (basis or {}).items()}
        self.outputs = {name: len(basis["variances"]) if basis else int(np.prod(model.shape))}

    def of(self, x0: torch.Tensor, *others: torch.Tensor, wanted: Wanted) -> Found:
        (name,) = self.outputs
        features = x0.flatten(1)
        if self.basis:
            features = ((features.double() - self.basis["mean"]) @ self.basis["directions"]).float()
        return {name: dict.fromkeys(wanted, features)}


class _Reached(Exception):
    """The last block that is wanted has been computed."""


class Activations(Readout):
    """Activations of blocks of the score network, by name, averaged over draws of noise."""

    def __init__(
        self, names: list[str], model: ScoreModel, precision: torch.dtype, draws: int = 1, pooling: str = "mean"
    ) -> None:
        super().__init__(model)
        shapes = block_shapes(model)
        self.order = [name for name in shapes if name in names]  # as they are computed
        self.model, self.draws, self.pool = model, draws, _pool if pooling == "mean" else _flatten
        model.precision = precision
        self.encoder = None if model.encoder is None else FoldedEncoder(model.encoder, precision)
        size = {name: shapes[name][0] if pooling == "mean" else int(np.prod(shapes[name])) for name in self.order}
        self.outputs = {source_of(name): size[name] for name in self.order}

    def read(self, split: data.Split, rows: slice) -> tuple[torch.Tensor, ...]:
        indices = (range(len(split)) if split.rows is None else split.rows)[rows]
        noise = [noise_of(split.split, draw, indices, split.shape) for draw in range(self.draws)]
        return (*super().read(split, rows), torch.stack(noise, dim=1))

    def of(self, x0: torch.Tensor, *others: torch.Tensor, wanted: Wanted) -> Found:
        (noise,) = others  # [B, draws, C, H, W]
        begun = None if self.encoder is None else self.encoder.begin(x0)
        found: Found = {name: {} for names in wanted.values() for name in names}
        for time, names in wanted.items():
            code = None if begun is None else self.encoder.finish(begun, self.encoder.biases(time))
            level = torch.tensor(self.model.std * level_of(time), device=x0.device)
            blocks = [block for block in self.order if source_of(block) in names]
            draws = [activations(self.model, x0 + level * noise[:, draw], level, code, blocks, self.pool)
                     for draw in range(self.draws)]  # fmt: skip
            for block in blocks:
                found[source_of(block)][time] = torch.stack([held[block] for held in draws]).mean(0)
        return found


def _pool(h: torch.Tensor) -> torch.Tensor:
    return h.float().mean(dim=(2, 3))


def _flatten(h: torch.Tensor) -> torch.Tensor:
    return h.float().flatten(1)


def noise_of(split: str, draw: int, indices: Iterable[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise [B, C, H, W] of a split's images, on the CPU; each is a function of its own index."""
    return experiment.sample_noise([NOISE, split, draw], indices, shape)


def activations(
    model: ScoreModel, x: torch.Tensor, level: torch.Tensor, code: torch.Tensor | None, blocks: list[str],
    read: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, torch.Tensor]:  # fmt: skip
    """{block: read(its output)} for noised images [B, C, H, W]; nothing is computed beyond the last of them."""
    held: dict[str, torch.Tensor] = {}

    def hook(block: str) -> Callable[..., None]:
        def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            held[block] = read(output)
            if len(held) == len(blocks):
                raise _Reached

        return keep

    handles = [model.net.get_submodule(block).register_forward_hook(hook(block)) for block in blocks]
    try:
        model.denoise(x, level, code)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return held


def block_names(model: ScoreModel) -> list[str]:
    """Names of the blocks of a score network; a run that has none is a ValueError."""
    if model.net is None:
        raise ValueError(
            f"this run has model.mode {model.mode}: it reconstructs and has no score network, so no blocks to read; "
            "use a run of another mode"
        )
    halves = {"down": model.net.down, "up": model.net.up}
    inside = [f"{half}.{name}" for half, modules in halves.items() for name in modules]
    return [*inside, *(name for name, _ in model.net.named_children() if name.startswith("middle_"))]


@torch.inference_mode()
def block_shapes(model: ScoreModel) -> dict[str, tuple[int, int, int]]:
    """{block: (C, H, W)} in the order in which they are computed."""
    names = block_names(model)
    device = next(model.parameters()).device
    x = torch.zeros(1, *model.shape, device=device)
    code = None if model.encoder is None else torch.zeros(1, model.encoder.dimension, device=device)
    held = activations(model, x, torch.tensor(model.std, device=device), code, names, lambda h: h)
    return {name: tuple(h.shape[1:]) for name, h in held.items()}


def source_of(block: str) -> str:
    """Name of the store of a block."""
    return f"block-{block}"


# ---------------------------------------------------------------------------------------------------------------------
# Controls


def untrained(model: ScoreModel, record: dict[str, Any]) -> tuple[ScoreModel, str]:
    """A run's model at initialisation, its encoder calibrated, and the fingerprint of its weights."""
    torch.manual_seed(experiment.seed_of(record["config"]["seed"], "weights"))
    fresh = checkpoint.build(record, model.process).requires_grad_(False)
    weights = fingerprint(fresh.encoder)  # before calibration, which rounds differently on other machines
    fresh.to(next(model.parameters()).device)
    calibrate(fresh, record)
    return fresh.eval(), weights


def calibrate(model: ScoreModel, record: dict[str, Any], images: int = 512) -> None:
    """Give an untrained encoder the batch-norm statistics of white noise at random times, so that it is no straw man.

    At initialisation the running statistics (0, 1) are those of no data at all; a cumulative average over a few batches
    puts every layer in its working range without any training.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative
    generator = experiment.generator(record["config"]["seed"], "calibrate")
    device = next(model.parameters()).device
    model.train()
    for _ in range(4):
        noise = torch.randn(images // 4, *model.shape, generator=generator) * model.std
        model.encode(noise.to(device), torch.rand(images // 4, generator=generator).to(device))


def fingerprint(*modules: torch.nn.Module | None) -> str:
    """A hash of the weights and buffers of modules, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items() if module is not None else ():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()))
    return digest.hexdigest()[:16]


def image_moments(folder: Path, split: data.Split) -> moments.Moments:
    """Moments of the training images, kept in RUN/moments/images. All ranks call it and share the work."""
    path = folder / "images"
    if ranks.from_first(arrays.is_finished(path)):
        return moments.Moments.load(path)
    held = moments.of_images(split)
    if ranks.first():
        held.save(path)
    ranks.barrier()
    return held


def principal_components(folder: Path, split: data.Split, scaling: data.Scaling, count: int) -> dict[str, np.ndarray]:
    """`mean` [D], `directions` [D, K] and `variances` [K], descending, of the training images in model space, float64.

    Kept in RUN/moments/pca-K. The sign of a direction makes its largest entry positive. All ranks call it.
    """
    path = folder / f"pca-{count}"
    largest = min(int(np.prod(split.shape)), len(split) - 1)
    if count > largest:
        raise experiment.UsageError(f"--components {count}: {split.name} has at most {largest}")
    about = {"data_hash": split.hash, "scaling": scaling.as_dict()}
    if not ranks.from_first(arrays.is_finished(path)):
        held = image_moments(folder, split)
        if ranks.first():
            arrays.write_folder(path, COMPONENTS, _eigen(held, scaling, split.shape, count), **about)
        ranks.barrier()
    found, meta = arrays.read_folder(path, COMPONENTS, f"remove {path}")
    if {name: meta.get(name) for name in about} != about:
        raise ValueError(f"{path} holds principal components of other images or another scaling: remove it first")
    return found


def _eigen(held: moments.Moments, scaling: data.Scaling, shape: tuple[int, ...], count: int) -> dict[str, np.ndarray]:
    scale, shift = (np.repeat(np.array(values), shape[1] * shape[2]) for values in (scaling.scale, scaling.shift))
    covariance = held.covariance.numpy() * scale * scale[:, None]
    size = len(covariance)
    variances, directions = scipy.linalg.eigh(covariance, subset_by_index=(size - count, size - 1), overwrite_a=True)
    variances, directions = variances[::-1], directions[:, ::-1]
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(count)])
    return {"mean": held.mean.numpy() * scale + shift, "directions": directions * signs, "variances": variances.copy()}
