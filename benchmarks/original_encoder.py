"""The original's encoding of images (traj_drl), for encode_images.py and parity.py; its folder must be on PYTHONPATH.

Its own wide ResNet with the weights of benchmarks/parity.py, and what its representations.py does for each batch: the
images in float32, one time after another for the whole batch, the mean's half of the output to numpy, kept in lists.
"""

import contextlib
import importlib
import sys
import types
from collections.abc import Callable, Sequence

import numpy as np
import parity
import torch
from torch import nn


def network(widen: float, probabilistic: bool) -> nn.Module:
    """Its WRN-28, in evaluation, with the numbers that `parity.fill` gives ours too."""
    sys.modules["op"] = types.ModuleType("op")  # compiled for CUDA on import; the encoder does not use it
    for name in ("upfirdn2d", "FusedLeakyReLU", "fused_leaky_relu"):
        setattr(sys.modules["op"], name, None)
    width = round(64 * widen) or 2
    with contextlib.redirect_stdout(sys.stderr):  # it prints its name
        model = importlib.import_module("models.wrn").build_wideresnet(28, widen, 0, 10, width, probabilistic)
    parity.fill({name: value for name, value in model.state_dict().items() if value.is_floating_point()})
    return model.eval()


def make(batch: int, device: torch.device) -> Callable[[np.ndarray, Sequence[float]], dict[float, np.ndarray]]:
    """(images uint8 [N, C, H, W], times) -> {time: means [N, D]} by WRN-28-2, in batches of this size."""
    model = network(2.0, True).to(device)

    def encode(images: np.ndarray, times: Sequence[float]) -> dict[float, np.ndarray]:
        kept: dict[float, list[np.ndarray]] = {time: [] for time in times}
        for start in range(0, len(images), batch):
            x = (torch.from_numpy(images[start : start + batch]).float() / 127.5 - 1).to(device)
            for time in times:
                t = torch.full((len(x),), float(time), device=device)
                with torch.no_grad():
                    code = model(x, t)[2]
                kept[time].append(code.chunk(2, dim=-1)[0].cpu().numpy())
        return {time: np.concatenate(parts) for time, parts in kept.items()}

    return encode
