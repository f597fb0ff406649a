"""The original's encoding of images (traj_drl), for benchmarks/encode_images.py; its folder must be on PYTHONPATH.

Its own WRN-28-2 with probabilistic code, freshly initialised, and what its representations.py does for each batch: the
images in float32, one time after another for the whole batch, the mean's half of the output to numpy, kept in lists.
"""

import importlib
import sys
import types
from collections.abc import Callable, Sequence

import numpy as np
import torch


def make(batch: int, device: torch.device) -> Callable[[np.ndarray, Sequence[float]], dict[float, np.ndarray]]:
    """(images uint8 [N, C, H, W], times) -> {time: means [N, D]}, in batches of this size."""
    sys.modules["op"] = types.ModuleType("op")  # compiled for CUDA on import; the encoder does not use it
    for name in ("upfirdn2d", "FusedLeakyReLU", "fused_leaky_relu"):
        setattr(sys.modules["op"], name, None)
    torch.manual_seed(0)
    model = importlib.import_module("models.wrn").build_wideresnet(28, 2, 0, 10, 128, True).to(device).eval()

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
