"""What a run will cost, before it is begun: parameters, arithmetic, memory and disk, from shapes alone.

One training step is carried out on tensors without content (torch's device "meta"): the products are counted, and the
bytes that are kept for the way back. Nothing is computed and no memory is taken, so it works for any preset anywhere.
Times on a GPU follow by a stated rule, which is an estimate: nothing of it has been measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_model import checkpoint
from diffusion_model.score_model import ScoreModel

KEPT_PER_WEIGHT = 4 * 5  # bytes: weight, gradient, Adam's two moments, average
SAVED_PER_WEIGHT = 4 * 4  # bytes of a checkpoint: weight, two moments, average
# The rule for one GPU: the arithmetic at this rate, but no step in less than this, whatever its size.
GPU_FLOPS_PER_SECOND, GPU_SECONDS_PER_STEP = 20e12, 0.02


@dataclass(frozen=True)
class Footprint:
    """Of one run: sizes of its parts, FLOPs of its training steps, bytes while training in float32, bytes on disk."""

    parameters: dict[str, int]
    steps: int
    flops: float  # of the whole run; a multiplication and an addition are two
    memory: int  # weights, optimiser, activations of one part of the batch; torch itself (about 0.5 GB) comes on top
    disk: int  # all the checkpoints that are kept

    @property
    def gpu_hours(self) -> float:
        """Estimated hours on one GPU."""
        return max(self.flops / GPU_FLOPS_PER_SECOND, self.steps * GPU_SECONDS_PER_STEP) / 3600


def describe(config: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """What config.json would hold as far as sizes depend on it, for images [C, H, W] that need not be there."""
    scaling = {"scale": [1 / 127.5] * shape[0], "shift": [-1.0] * shape[0]}
    return {"config": config, "scaling": scaling, "shape": list(shape), "std": 0.5}


def measure(record: dict[str, Any], process: str | None = None) -> Footprint:
    """The footprint of the run that a config.json describes, on one rank; process as `checkpoint.build` takes it."""
    training = checkpoint.unflatten(record["config"])["training"]
    part = training["batch"] // training["accumulate"]
    with torch.device("meta"):
        model = checkpoint.build(record, process).train()
        flops, kept = _step(model, part)
    parameters = {
        name: sum(weight.numel() for weight in child.parameters()) for name, child in model.named_children() if child
    }
    total = sum(parameters.values())
    return Footprint(
        parameters=parameters,
        steps=checkpoint.total_steps(record),
        flops=flops / part * training["images"],
        memory=KEPT_PER_WEIGHT * total + kept,
        disk=SAVED_PER_WEIGHT * total * record["config"]["logging.keep"],
    )


def _step(model: ScoreModel, batch: int) -> tuple[float, int]:
    """FLOPs of the loss and its gradient, and the bytes kept in between, the weights themselves not counted."""
    x0 = torch.empty(batch, *model.shape)
    draws = {"level": torch.empty(batch), "noise": torch.empty_like(x0)}
    if model.encoder is not None:
        draws["code_noise"] = torch.empty(batch, model.encoder.dimension)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            kept[key] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = sum(model.loss(x0, draws).values())
        bytes_kept = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        loss.backward()
    return counter.get_total_flops(), bytes_kept
