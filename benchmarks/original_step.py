"""One training step of the original's code (traj_drl), for benchmarks/train_step.py; its folder must be on PYTHONPATH.

Built as its run_lib.train does for run.sh's probabilistic-drl, widen factor 2, without warm-up. It takes its images in the
same model space and the same units of noise as ours: standardised over the whole set.
"""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from diffusion_model import data


def make(batch: int, device: torch.device, root: Path | None) -> tuple[Callable[[], float], dict[str, int]]:
    """A function that makes one step on the next batch of Synthetic's images and gives the loss; parameters by part."""
    sys.modules["op"] = types.ModuleType("op")  # compiled for CUDA on import; used by FIR resampling alone
    for name in ("upfirdn2d", "FusedLeakyReLU", "fused_leaky_relu"):
        setattr(sys.modules["op"], name, None)
    config = importlib.import_module("configs.ve.cifar10_ncsnpp_small_continuous").get_config()
    config.unlock()
    config.device, config.optim.lr, config.optim.warmup = device, 2e-4, 0
    config.model.widen_factor = 2
    settings = {
        "include_encoder": True, "probabilistic_encoder": True, "lambda_z": 1e-5, "apply_mixup": False,
        "lambda_reconstr": 0.0, "recon": "l2",
    }  # fmt: skip
    for name, value in settings.items():
        config.training[name] = value
    losses, utils = importlib.import_module("losses"), importlib.import_module("models.utils")
    importlib.import_module("models.ncsnpp")  # registers the network
    model = utils.create_model(config)
    average = importlib.import_module("models.ema").ExponentialMovingAverage(model.parameters(), config.model.ema_rate)
    state = {"optimizer": losses.get_optimizer(config, model.parameters()), "model": model, "ema": average, "step": 0}
    process = importlib.import_module("sde_lib").VESDE(
        sigma_min=config.model.sigma_min, sigma_max=config.model.sigma_max, N=config.model.num_scales
    )
    step = losses.get_step_fn(
        process, train=True, optimize_fn=losses.optimization_manager(config), reduce_mean=config.training.reduce_mean,
        continuous=True, likelihood_weighting=config.training.likelihood_weighting, config=config,
    )  # fmt: skip
    images, draw = standardised(root).to(device), np.random.default_rng(0)
    whole = model.module  # it is wrapped for several devices
    sizes = {"encoder": count_parameters(whole.encoder), "decoder": count_parameters(whole.decoder)}
    sizes["score network"] = count_parameters(whole) - sum(sizes.values())
    return lambda: step(state, images[torch.from_numpy(draw.integers(0, len(images), batch)).to(device)]), sizes


def count_parameters(part: torch.nn.Module) -> int:
    """Numbers that are trained."""
    return sum(parameter.numel() for parameter in part.parameters())


def standardised(root: Path | None) -> torch.Tensor:
    """Synthetic's training images in [-1, 1], divided by their standard deviation: the original's unit of noise is ours."""
    split = data.open_split("synthetic", "train", root)
    x = data.scaling("unit", split).to_model(torch.from_numpy(np.array(split.images)))
    _, deviation = data.channel_statistics(split)
    return x / float(np.sqrt(np.mean((deviation / 127.5) ** 2)))
