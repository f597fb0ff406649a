"""Random changes of images, for a whole batch at once on the device that holds it.

All randomness of a batch is `draw(name, batch, ...)`: uniform numbers [B, P]. `augment(name, images, numbers)` is a pure
function, and image i of its result depends on (images[i], numbers[i]) alone: the same in any batch, slice or rank.

Legend: B batch, C channels (1 or 3), S x S pixels, P numbers an image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Augmentation(NamedTuple):
    """How many uniform numbers an image takes, and the function (images, columns of numbers) -> images."""

    numbers: int
    apply: Callable[[torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]


def draw(name: str, batch: int, generator: torch.Generator, device: str | torch.device) -> torch.Tensor | None:
    """All that is random in one batch: uniform numbers in [0, 1), float32 [B, P]; None where nothing is random."""
    count = AUGMENTATIONS[name].numbers
    return torch.rand(batch, count, generator=generator, device=device) if count else None


def augment(name: str, images: torch.Tensor, numbers: torch.Tensor | None) -> torch.Tensor:
    """images uint8 [B, C, S, S] changed by the numbers [B, P] of `draw`; the same shape and dtype."""
    count, apply = AUGMENTATIONS[name]
    _check(images, numbers, count)
    # float64: what an image's size is multiplied with never rounds up to the next pixel
    return apply(images, numbers.double().T.contiguous().unbind()) if count else images


def _check(images: torch.Tensor, numbers: torch.Tensor | None, count: int) -> None:
    shape = tuple(images.shape)
    square = len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] >= 8
    if images.dtype != torch.uint8 or not square:
        raise ValueError(
            f"images to augment are {images.dtype} {list(shape)}, expected uint8 [B, C, S, S] with 1 or 3 channels "
            "and S of at least 8"
        )
    found = tuple(numbers.shape) if numbers is not None else (shape[0], 0)
    if found != (shape[0], count):
        raise ValueError(f"numbers are {list(found)}, expected {[shape[0], count]}, as augment.draw gives them")


def flip(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The chosen [B] images seen in a mirror."""
    return torch.where(_each(chosen), images.flip(3), images)


def _each(values: torch.Tensor) -> torch.Tensor:
    """[B] as [B, 1, 1, 1], to meet images."""
    return values.view(-1, 1, 1, 1)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(0, lambda images, u: images),
    "flip": Augmentation(1, lambda images, u: flip(images, u[0] < 0.5)),
}
