"""Random changes of images, for a whole batch at once on the device that holds it.

    none            the images themselves
    flip            mirrored, half of the time
    simclr          random resized crop, flip, colour jitter (4 times in 5), grey (1 time in 5), Gaussian blur
    laplace_weak    flip, shift over reflected borders, one operation of RandAugment, a rectangle cut out
    laplace_strong  the same with two operations

All randomness of a batch is `draw(name, batch, ...)`: uniform numbers [B, P]. `augment(name, images, numbers)` is a pure
function, and image i of its result depends on (images[i], numbers[i]) alone: the same in any batch, slice or rank. So
sums are over integers, and no kernel mixes images. Nothing waits for the GPU: every step runs over the whole batch,
with parameters that change nothing where an image did not draw it. One operation of RandAugment is one affine map, one
table of levels and one blend. Sorting images by operation would make the GPU wait and saves little: 100 images of 32 x 32
take 25 (laplace_weak) to 75 ms (simclr) of one CPU core.

Values are those of Pillow and torchvision: the same integers wherever these compute in integers or float32, else within
one level. On grey images saturation, hue, colour and grey are the identity, contrast works on the image itself.

Legend: B batch, C channels (1 or 3), S x S pixels, P numbers an image, L = 256 levels; u a number in [0, 1).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# The operations of RandAugment in the order in which they are drawn, 1 / 14 each. Their ranges stand where they are used.
OPERATIONS = (
    "autocontrast", "brightness", "color", "contrast", "equalize", "identity", "posterize", "rotate", "sharpness",
    "shear_x", "shear_y", "solarize", "translate_x", "translate_y",
)  # fmt: skip
TRIES = 10  # of a random resized crop, before the whole image is taken
FILL = {1: (123,), 3: (125, 123, 114)}  # of a rectangle cut out; grey is the luma of the three


class Augmentation(NamedTuple):
    """How many uniform numbers an image takes, the function (images, columns of numbers) -> images, its smallest S."""

    numbers: int
    apply: Callable[[Tensor, tuple[Tensor, ...]], Tensor]
    smallest: int = 8  # below, a crop or a blur has no room


def draw(name: str, batch: int, generator: torch.Generator, device: str | torch.device) -> Tensor | None:
    """All that is random in one batch: uniform numbers in [0, 1), float32 [B, P]; None where nothing is random."""
    count = AUGMENTATIONS[name].numbers
    return torch.rand(batch, count, generator=generator, device=device) if count else None


def check_side(name: str, side: int) -> None:
    """Refuse images of S pixels that an augmentation has no room in (ValueError)."""
    if side < AUGMENTATIONS[name].smallest:
        raise ValueError(
            f"data.augmentation {name} needs images of at least {AUGMENTATIONS[name].smallest} pixels a side, these have "
            f"{side}: take none or flip"
        )


def augment(name: str, images: Tensor, numbers: Tensor | None) -> Tensor:
    """images uint8 [B, C, S, S] changed by the numbers [B, P] of `draw`; the same shape and dtype."""
    count, apply, smallest = AUGMENTATIONS[name]
    _check(images, numbers, count, smallest)
    # float64: the largest u below 1, times a number of choices, stays below that number
    return apply(images, numbers.double().T.contiguous().unbind()) if count else images


def _check(images: Tensor, numbers: Tensor | None, count: int, smallest: int) -> None:
    shape = tuple(images.shape)
    square = len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] >= smallest
    if images.dtype != torch.uint8 or not square:
        raise ValueError(
            f"images to augment are {images.dtype} {list(shape)}, expected uint8 [B, C, S, S] with 1 or 3 channels "
            f"and S of at least {smallest}"
        )
    found = tuple(numbers.shape) if numbers is not None else (shape[0], 0)
    if found != (shape[0], count):
        raise ValueError(f"numbers are {list(found)}, expected {[shape[0], count]}, as augment.draw gives them")


# ---------------------------------------------------------------------------------------------------------------------
# Where a pixel comes from


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """The chosen [B] images seen in a mirror."""
    return torch.where(_each(chosen), images.flip(3), images)


def padding(size: int) -> int:
    """By how many pixels an image is shifted at most: 4 of 32 and 8 of 84, that is size / 10.5 rounded up."""
    return -(-2 * size // 21)


def reflected_crop(images: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """The S x S window from (top, left) [B], in 0..2 pad, of the images with `pad` reflected pixels on every side."""
    steps = torch.arange(images.shape[2], device=images.device) - pad
    rows, columns = (_reflect(start.view(-1, 1) + steps, len(steps)) for start in (top, left))
    return _pick(images, rows[:, :, None], columns[:, None, :])


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """The window of height x width at (top, left), each [B], enlarged to S x S: bilinear, columns first, rounded twice."""
    steps = torch.arange(images.shape[2], device=images.device)
    low, high, share = _between(left, width, steps)
    rows = steps.view(1, -1, 1)
    images = _mix(_pick(images, rows, low[:, None]), _pick(images, rows, high[:, None]), share[:, None, None])
    low, high, share = _between(top, height, steps)
    columns = steps.view(1, 1, -1)
    low, high = (_pick(images, index[:, :, None], columns) for index in (low, high))
    return _mix(low, high, share[:, None, :, None])


def affine(images: Tensor, matrix: tuple[Tensor, ...]) -> Tensor:
    """Pixel (x, y) from (a x + b y + c, d x + e y + f), the nearest one, black outside; each of the six is [B].

    As in Pillow: coordinates of pixel centres, in fixed point with 16 bits behind the point.
    """
    a, b, c, d, e, f = matrix
    steps = torch.arange(images.shape[2], device=images.device)
    x, y = steps.view(1, 1, -1), steps.view(1, -1, 1)

    def source(along_x: Tensor, along_y: Tensor, start: Tensor) -> Tensor:
        along_x, along_y, start = (
            (entry * 65536 + 0.5).floor().long().view(-1, 1, 1)
            for entry in (along_x, along_y, start + along_x * 0.5 + along_y * 0.5)
        )
        return (start + along_x * x + along_y * y) >> 16

    rows, columns = source(d, e, f), source(a, b, c)
    last = images.shape[2] - 1
    inside = (rows >= 0) & (rows <= last) & (columns >= 0) & (columns <= last)
    picked = _pick(images, rows.clamp(0, last), columns.clamp(0, last))
    return torch.where(inside[:, None], picked, 0)


def _each(values: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1], to meet images."""
    return values.view(-1, 1, 1, 1)


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images[b, :, rows[b], columns[b]]; rows and columns broadcast to [B, S, S]."""
    batch, channels, size, _ = images.shape
    index = (rows * size + columns).expand(batch, size, size).reshape(batch, 1, -1).expand(-1, channels, -1)
    return images.flatten(2).gather(2, index).view_as(images)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Positions in 0..size-1 for positions a little outside, reflected at the outermost pixels, which are not doubled."""
    return size - 1 - (size - 1 - index.abs()).abs()


def _between(start: Tensor, length: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For S new pixels over `length` old ones from `start`: the two neighbours and the second's share, each [B, S]."""
    position = (steps + 0.5) * (length / len(steps)).view(-1, 1) - 0.5
    low = position.floor()
    last = (length - 1).view(-1, 1)
    first, second = (start.view(-1, 1) + torch.minimum(entry.clamp(min=0), last) for entry in (low, low + 1))
    return first.long(), second.long(), (position - low).float()


def _mix(low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    mixed = low.float() * (1 - share) + high.float() * share
    return (mixed + 0.5).to(torch.uint8)  # shares add to 1: never above 255.5


# ---------------------------------------------------------------------------------------------------------------------
# What a pixel's value becomes


def luma(images: Tensor) -> Tensor:
    """ITU-R 601 grey values [B, 1, S, S] in fixed point, as Pillow's conversion to L; grey images are their own."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().split(1, 1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8)


def blend(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """first + factor (second - first), truncated; factor [B] of 0 is the first, of 1 the second, above 1 beyond it."""
    first = first.float()
    mixed = first + _each(factor).float() * (second.float() - first)
    return mixed.clamp(0, 255).to(torch.uint8)


def _mean(grey: Tensor) -> Tensor:
    """The mean of grey values [B, 1, S, S], rounded, [B, 1, 1, 1]."""
    count = grey[0].numel()
    return ((2 * grey.sum((2, 3), keepdim=True) + count) // (2 * count)).to(torch.uint8)


def smooth(images: Tensor) -> Tensor:
    """Each pixel five times, and its eight neighbours, over 13; the outermost pixels stay."""
    wide = images.int()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    square = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1] = ((2 * (square + 4 * wide[:, :, 1:-1, 1:-1]) + 13) // 26).to(torch.uint8)
    return smoothed


def shift_hue(images: Tensor, steps: Tensor) -> Tensor:
    """Turn the hue by steps [B] of 255, through Pillow's 8-bit HSV; 0 steps leave an image as it is."""
    if images.shape[1] == 1:
        return images
    hue, saturation, value = _to_hsv(images)
    sector = ((hue + steps.view(-1, 1, 1)) % 256) * (6 / 255)
    channels = []
    for offset in (5, 3, 1):  # red, green, blue: v (1 - s clamp(min(k, 4 - k), 0, 1)), k around the circle
        k = (offset + sector) % 6
        channels.append(value * (1 - saturation / 255 * torch.minimum(k, 4 - k).clamp(0, 1)) + 0.5)
    turned = torch.stack(channels, 1).floor().to(torch.uint8)
    return torch.where(_each(steps) == 0, images, turned)


def _to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value, 0 to 255, float64 [B, S, S]; float32 in between where Pillow has it."""
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    away = (value[:, None] - images).float() / chroma.clamp(min=1)[:, None].float()
    red, green, blue = away.double().unbind(1)
    turn = torch.where(images[:, 1] == value, 2 + red - blue, 4 + green - red)
    turn = torch.where(images[:, 0] == value, blue - green, turn).float().double()
    hue = ((turn / 6 + 1) % 1).float().double()
    saturation = (chroma.float() / value.clamp(min=1).float()).double()
    return (hue * 255).floor(), (saturation * 255).floor(), value.double()


def jitter(images: Tensor, order: Tensor, factors: tuple[Tensor, Tensor, Tensor], steps: Tensor) -> Tensor:
    """Brightness, contrast and saturation by factors [B] and hue by steps [B], in the `order` [B] of 24.

    Hue is the dear one and is turned once: the others come before it or after it, with factor 1 on the other side.
    """
    hue_at, rest = order // 6, order % 6
    first, swapped = rest // 2, rest % 2
    kinds = (first, (first + 1 + swapped) % 3, (first + 2 - swapped) % 3)
    factors = torch.stack(factors)
    for after in (False, True):
        for slot, kind in enumerate(kinds):
            factor = factors.gather(0, kind[None])[0]
            images = _adjust(images, kind, torch.where((slot >= hue_at) == after, factor, 1.0))
        images = images if after else shift_hue(images, steps)
    return images


def _adjust(images: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Brightness (kind 0), contrast (1) or saturation (2): away from black, the mean or the grey image."""
    kind, grey = _each(kind), luma(images)
    poorer = torch.where(kind == 1, _mean(grey), torch.where(kind == 0, 0, grey))
    return blend(poorer, images, factor)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur by a Gaussian of `sigma` [B] pixels, cut at int(S / 10) // 2 pixels; reflected borders. S below 20 stays."""
    size = images.shape[2]
    radius = int(0.1 * size) // 2
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = (-(offsets**2) / (2 * sigma.view(-1, 1) ** 2)).exp()
    weights = (weights / weights.sum(1, keepdim=True)).float()  # [B, taps]
    border = _reflect(torch.arange(-radius, size + radius, device=images.device), size)
    blurred = images.float()
    for dimension in (2, 3):
        wide = blurred.index_select(dimension, border)
        taps = (wide.narrow(dimension, start, size) for start in range(2 * radius + 1))
        blurred = sum(tap * _each(weight) for tap, weight in zip(taps, weights.unbind(1), strict=True))
    return blurred.round().clamp(0, 255).to(torch.uint8)


def cut_out(images: Tensor, side: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cover a rectangle of `side` pixels around (x, y), each [B]; both its edges are drawn, and side 0 is nothing."""
    steps = torch.arange(images.shape[2], device=images.device)

    def covered(centre: Tensor) -> Tensor:
        start = (centre - side / 2).clamp(min=0).floor()
        return (steps >= start.view(-1, 1)) & (steps <= (start + side).floor().view(-1, 1)) & (side > 0).view(-1, 1)

    inside = covered(y)[:, :, None] & covered(x)[:, None, :]
    filled = [torch.where(inside, fill, images[:, index]) for index, fill in enumerate(FILL[images.shape[1]])]
    return torch.stack(filled, 1)


# ---------------------------------------------------------------------------------------------------------------------
# RandAugment (arXiv 1909.13719) with the operations and ranges of UDA's policies


def operate(images: Tensor, operation: Tensor, magnitude: Tensor, sign: Tensor) -> Tensor:
    """Operation number [B] of OPERATIONS on each image, its range run through by magnitude [B] in [0, 1]; sign is 1 or -1."""
    images = affine(images, _matrix(operation, magnitude * sign, images.shape[2]))
    table = _table(images, operation, magnitude)
    images = table.gather(2, images.flatten(2).long()).view_as(images)
    return _enhance(images, operation, 0.05 + 0.9 * magnitude)


def _is(operation: Tensor, name: str) -> Tensor:
    return operation == OPERATIONS.index(name)


def _matrix(operation: Tensor, magnitude: Tensor, size: int) -> tuple[Tensor, ...]:
    """Where pixels come from: turned by up to 30 degrees around the middle, sheared by up to .3, moved by up to .3 S."""

    def amount(name: str, largest: float) -> Tensor:
        return torch.where(_is(operation, name), largest * magnitude, 0.0)

    angle = amount("rotate", math.pi / 6)
    cosine, sine, middle = angle.cos(), angle.sin(), size / 2
    return (
        cosine, amount("shear_x", 0.3) - sine, (1 - cosine + sine) * middle + amount("translate_x", 0.3) * size,
        amount("shear_y", 0.3) + sine, cosine, (1 - cosine - sine) * middle + amount("translate_y", 0.3) * size,
    )  # fmt: skip


def _table(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """What each level becomes, uint8 [B, C, L]."""
    levels = torch.arange(256, device=images.device)
    operation, magnitude = operation.view(-1, 1, 1), magnitude.view(-1, 1, 1)
    table = levels.expand(*images.shape[:2], 256)
    table = torch.where(_is(operation, "autocontrast"), _stretched(images, levels), table)
    table = torch.where(_is(operation, "equalize"), _equalized(images, levels), table)
    dropped = (4 - (4 * magnitude).long()).clamp(min=0)  # 4 to 8 of 8 bits stay
    table = torch.where(_is(operation, "posterize"), levels >> dropped << dropped, table)
    table = torch.where(_is(operation, "solarize") & (levels >= 256 * magnitude), 255 - levels, table)
    return table.to(torch.uint8)


def _stretched(images: Tensor, levels: Tensor) -> Tensor:
    """Levels spread so that each channel's darkest becomes 0 and its lightest 255; a flat channel stays."""
    flat = images.flatten(2)
    low, high = (extreme.long()[..., None] for extreme in (flat.amin(2), flat.amax(2)))
    width = (high - low).clamp(min=1).double()
    scale = torch.full_like(width, 255) / width  # 255 / width would multiply by a rounded reciprocal
    spread = (levels * scale + -low * scale).long().clamp(0, 255)
    return torch.where(high > low, spread, levels)


def _equalized(images: Tensor, levels: Tensor) -> Tensor:
    """Levels by the share of pixels below them, counted a channel; as it was where the lightest level is nearly all."""
    flat = images.flatten(2).long()
    ones = torch.ones((), dtype=torch.long, device=images.device).expand_as(flat)
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=images.device).scatter_add_(2, flat, ones)
    step = (flat.shape[2] - counts.gather(2, flat.amax(2, keepdim=True))) // 255
    spread = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    return torch.where(step > 0, spread.clamp(max=255), levels)


def _enhance(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """The four operations that blend with a poorer image: black, flat, grey or smoothed."""
    brightness, contrast, color, sharpness = (
        _each(_is(operation, name)) for name in ("brightness", "contrast", "color", "sharpness")
    )
    grey = luma(images)
    poorer = torch.where(sharpness, smooth(images), images)
    poorer = torch.where(color | contrast | brightness, torch.where(contrast, _mean(grey), grey), poorer)
    return blend(torch.where(brightness, 0, poorer), images, factor)


# ---------------------------------------------------------------------------------------------------------------------
# The augmentations


def _simclr(images: Tensor, u: tuple[Tensor, ...]) -> Tensor:
    window, (flipped, jittered, order, *factors, hue, grey, sigma) = u[: 2 * TRIES + 2], u[2 * TRIES + 2 :]
    images = resized_crop(images, *crop_window(window, images.shape[2]))
    images = flip(images, flipped < 0.5)
    jittered = jittered < 0.8
    factors = tuple(torch.where(jittered, 0.2 + 1.6 * factor, 1.0) for factor in factors)
    steps = torch.where(jittered, (255 * (0.4 * hue - 0.2)).trunc(), 0.0)
    images = jitter(images, (24 * order).long(), factors, steps)
    images = torch.where(_each(grey < 0.2), luma(images), images)
    return gaussian_blur(images, 0.1 + 1.9 * sigma)


def crop_window(u: tuple[Tensor, ...], size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(top, left, height, width) [B] of a random resized crop: area .08 to 1, aspect 3/4 to 4/3, the first try that fits."""
    areas, aspects, (down, right) = torch.stack(u[:TRIES]), torch.stack(u[TRIES : 2 * TRIES]), u[2 * TRIES :]
    area = size**2 * (0.08 + 0.92 * areas)
    aspect = (math.log(4 / 3) * (2 * aspects - 1)).exp()
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()  # [TRIES, B]
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    first = fits.byte().argmax(0, keepdim=True)
    height, width = (torch.where(fits.any(0), sides.gather(0, first)[0], size) for sides in (height, width))
    return (down * (size - height + 1)).floor(), (right * (size - width + 1)).floor(), height, width


def _laplace(images: Tensor, u: tuple[Tensor, ...]) -> Tensor:
    """RandAugment with as many operations as there are numbers for."""
    (flipped, top, left), operations, (side, x, y) = u[:3], u[3:-3], u[-3:]
    size, pad = images.shape[2], padding(images.shape[2])
    images = flip(images, flipped < 0.5)
    images = reflected_crop(images, *((start * (2 * pad + 1)).long() for start in (top, left)), pad)
    for operation, magnitude, sign in zip(operations[::3], operations[1::3], operations[2::3], strict=True):
        images = operate(
            images, (len(OPERATIONS) * operation).long(), magnitude, torch.where(sign < 0.5, 1.0, -1.0).to(sign)
        )
    # the rectangle's side is up to half the image's; its middle is uniform in (1, S), as in the original
    return cut_out(images, 0.5 * size * side, *(size - (size - 1) * middle for middle in (x, y)))


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(0, lambda images, u: images, 1),
    "flip": Augmentation(1, lambda images, u: flip(images, u[0] < 0.5), 1),
    "simclr": Augmentation(2 * TRIES + 11, _simclr),
    "laplace_weak": Augmentation(9, _laplace),
    "laplace_strong": Augmentation(12, _laplace),
}
