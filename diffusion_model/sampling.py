"""Images that a run makes: samples of a score model, reconstructions of a decoder, and the pictures of them while it trains.

Image i of a sampling is a function of seed i alone, whatever the batch. Legend: N images, T times, C channels, H x W pixels.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch

from diffusion_model import experiment, figures, trajectories
from diffusion_model.samplers import SAMPLERS, Churn, edm_levels, last
from diffusion_model.score_model import ScoreModel
from diffusion_model.training import Trainer

SHOWN = 16  # images of a picture drawn during training


def draw(trainer: Trainer) -> None:
    """samples/STEP.png: samples (mode none) or reconstructions (vae-*, ae-*); a drl mode has neither."""
    if trainer.model.decoder is not None:
        draw_reconstructions(trainer)
    elif trainer.model.encoder is None:
        draw_samples(trainer)


@torch.no_grad()
def draw_samples(trainer: Trainer) -> None:
    """samples/STEP.png: images of the averaged weights, from the same noise at every step."""
    live = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    levels = edm_levels(18, *trainer.model.sde.level_range())
    try:
        trainer.model.load_state_dict(live | trainer.average.tensors)
        trainer.model.eval()
        pixels = sample_images(trainer.model, range(SHOWN), "heun", levels, SHOWN)
    finally:  # training goes on, whatever becomes of its picture
        trainer.model.load_state_dict(live)
        trainer.model.train()
    figures.image_grid(pixels, 8, trainer.run / "samples" / f"step_{trainer.step:08d}.png")


def draw_reconstructions(trainer: Trainer) -> None:
    """samples/STEP.png: some training images, and below each row what the decoder makes of their codes."""
    given = np.array(trainer.split.sample(SHOWN).images[:])
    trainer.model.eval()
    try:
        made = reconstruct_images(trainer.model, given, [0.5], SHOWN)[:, 0]
    finally:
        trainer.model.train()
    rows = [part for start in range(0, len(given), 8) for part in (given[start : start + 8], made[start : start + 8])]
    figures.image_grid(np.concatenate(rows), 8, trainer.run / "samples" / f"step_{trainer.step:08d}.png")


@torch.no_grad()
def reconstruct_images(model: ScoreModel, given: np.ndarray, times: Sequence[float], batch: int) -> np.ndarray:
    """uint8 images [N, T, C, H, W]: what the decoder of a vae-* or ae-* run makes of the mean codes of uint8 images."""
    device, pieces = next(model.parameters()).device, []
    for start in range(0, len(given), batch):
        x0 = model.scaling.to_model(torch.from_numpy(np.array(given[start : start + batch])).to(device))
        made = []
        for time in times:
            level = torch.full((len(x0),), model.std * trajectories.level_of(time), device=device)
            made.append(model.scaling.to_pixels(model.reconstruct(level, model.encode(x0, torch.tensor(time)).mean)))
        pieces.append(torch.stack(made, 1).cpu().numpy())
    return np.concatenate(pieces) if pieces else np.empty((0, len(times), *model.shape), np.uint8)


def sample_images(
    model: ScoreModel,
    seeds: Sequence[int],
    sampler: str,
    levels: torch.Tensor,
    batch: int,
    given: np.ndarray | None = None,
    churn: Churn | None = None,
) -> np.ndarray:
    """uint8 images [N, C, H, W], one a seed; `given` images [N, C, H, W] give the codes of a run with an encoder.

    Image i is a function of seed i, whatever the batch, also with `churn` (the sampler "heun" alone).
    """
    device = next(model.parameters()).device
    pieces = []
    for start in experiment.progress(range(0, len(seeds), batch), "sampling", "batches"):
        chosen = seeds[start : start + batch]
        x = levels[0].float() * experiment.sample_noise("start", chosen, model.shape).to(device)
        denoise = model.denoise
        if given is not None:
            x0 = model.scaling.to_model(torch.from_numpy(np.array(given[start : start + batch])).to(device))

            def denoise(x: torch.Tensor, level: torch.Tensor, x0: torch.Tensor = x0) -> torch.Tensor:
                return model.denoise(x, level, model.encode(x0, model.time_of(level)).mean)

        noise = functools.partial(churn_noise, chosen, model.shape)
        options = {} if churn is None else {"churn": churn, "noise": noise}
        x = last(SAMPLERS[sampler].run(denoise, x, levels, **options))
        if not torch.isfinite(x).all():
            raise FloatingPointError(f"the solver left the finite numbers for seeds from {chosen[0]}: are the weights?")
        pieces.append(model.scaling.to_pixels(x).cpu().numpy())
    return np.concatenate(pieces) if pieces else np.empty((0, *model.shape), np.uint8)


def churn_noise(seeds: Sequence[int], shape: Sequence[int], step: int) -> torch.Tensor:
    """Noise [B, *shape] that churn adds before a step: row i is a function of (seeds[i], step) alone."""
    return experiment.sample_noise(["churn", step], seeds, shape)
