"""Exponential moving average of a model's parameters and floating-point buffers (batch-norm statistics included)."""

import torch
from torch import nn


class Average:
    """The average `a <- decay a + (1 - decay) w`, after a ramp min(decay, (1 + n) / (10 + n)) over the first updates n."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay} of the weight average: expected 0 <= decay < 1")
        self.decay, self.updates = decay, 0
        # the model's own tensors, which training and loading change in place
        self.live = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        self.tensors = {name: tensor.clone() for name, tensor in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.tensors.values()), list(self.live.values()), 1 - decay)

    def load(self, tensors: dict[str, torch.Tensor], updates: int) -> None:
        """Take over a saved average."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.updates = updates
