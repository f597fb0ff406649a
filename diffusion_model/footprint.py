"""What a run will cost, before it is begun: parameters, arithmetic, memory and disk, from shapes alone.

One training step is carried out on tensors without content (torch's device "meta"): the products are counted, and the
bytes that are kept for the way back. Nothing is computed and no memory is taken, so it works for any preset anywhere.
Times follow from the arithmetic and a rate, which is the reader's to choose.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_model import checkpoint
from diffusion_model.score_model import ScoreModel

KEPT_PER_WEIGHT = 4 * 5  # bytes: weight, gradient, Adam's two moments, average
SAVED_PER_WEIGHT = 4 * 4  # bytes of a checkpoint: weight, two moments, average


@dataclass(frozen=True)
class Footprint:
    """Of one run: sizes of its parts, FLOPs of its training steps, bytes while training in float32, bytes on disk."""

    parameters: dict[str, int]
    flops: float  # of the whole run; a multiplication and an addition are two
    memory: int  # weights, optimiser, activations of one part of the batch; torch itself (about 0.5 GB) comes on top
    disk: int  # all the checkpoints that are kept


def measure(record: dict[str, Any]) -> Footprint:
    """The footprint of the run that a config.json describes, on one rank."""
    training = checkpoint.unflatten(record["config"])["training"]
    part = training["batch"] // training["accumulate"]
    with torch.device("meta"):
        model = checkpoint.build(record).train()
        flops, kept = _step(model, part)
    parameters = {
        name: sum(weight.numel() for weight in child.parameters()) for name, child in model.named_children() if child
    }
    total = sum(parameters.values())
    return Footprint(
        parameters=parameters,
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
