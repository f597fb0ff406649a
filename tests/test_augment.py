"""Augmentations against Pillow and torchvision on the same parameters, and the laws of their randomness."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torchvision.transforms import functional

from diffusion_model import augment
from diffusion_model.augment import AUGMENTATIONS, OPERATIONS
from diffusion_model.experiment import generator

RANDOM = [name for name, entry in AUGMENTATIONS.items() if entry.numbers]
BELOW_ONE = 1 - 2**-24  # the largest float32 that torch.rand gives
# brightness, contrast and saturation in the six orders of augment.jitter
JITTERS = ((0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0))
LARGEST = {"rotate": 30, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.3, "translate_y": 0.3}
PILLOW = {
    "autocontrast": lambda image, v, size: ImageOps.autocontrast(image),
    "brightness": lambda image, v, size: ImageEnhance.Brightness(image).enhance(0.05 + 0.9 * v),
    "color": lambda image, v, size: ImageEnhance.Color(image).enhance(0.05 + 0.9 * v),
    "contrast": lambda image, v, size: ImageEnhance.Contrast(image).enhance(0.05 + 0.9 * v),
    "equalize": lambda image, v, size: ImageOps.equalize(image),
    "identity": lambda image, v, size: image,
    "posterize": lambda image, v, size: ImageOps.posterize(image, int(4 + 4 * v)),
    "rotate": lambda image, v, size: image.rotate(30 * v),
    "sharpness": lambda image, v, size: ImageEnhance.Sharpness(image).enhance(0.05 + 0.9 * v),
    "shear_x": lambda image, v, size: image.transform((size, size), Image.AFFINE, (1, 0.3 * v, 0, 0, 1, 0)),
    "shear_y": lambda image, v, size: image.transform((size, size), Image.AFFINE, (1, 0, 0, 0.3 * v, 1, 0)),
    "solarize": lambda image, v, size: ImageOps.solarize(image, 256 * v),
    "translate_x": lambda image, v, size: image.transform((size, size), Image.AFFINE, (1, 0, 0.3 * v * size, 0, 1, 0)),
    "translate_y": lambda image, v, size: image.transform((size, size), Image.AFFINE, (1, 0, 0, 0, 1, 0.3 * v * size)),
}


def photographs(count=6, channels=3, size=32):
    """uint8 images of every kind: noise, smooth, dark, pure colours, flat, and one with a few levels only."""
    random = generator("images", size)
    noise = torch.rand(count, channels, size, size, generator=random)
    images = 255 * noise
    images[1] = 255 * torch.nn.functional.interpolate(noise[1:2, :, :4, :4], size, mode="bicubic")[0]
    images[2] = 40 * noise[2] + 7
    images[3] = 255 * (noise[3] > 0.5)
    images[4] = torch.tensor([200.0, 30.0, 90.0])[:channels, None, None]
    images[5] = 60 * (4 * noise[5]).floor()
    return images.clamp(0, 255).to(torch.uint8)


def pillow(image):
    """[C, S, S] as Pillow's image."""
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def tensor(image):
    """Pillow's image as [C, S, S]."""
    array = torch.from_numpy(np.array(image))
    return array[None] if array.dim() == 2 else array.permute(2, 0, 1)


def each(images, change):
    """The change of Pillow's images, one after another."""
    return torch.stack([tensor(change(pillow(image))) for image in images])


def constant(images, value, dtype=torch.float64):
    """[B] of one value."""
    return torch.full((len(images),), value, dtype=dtype)


def distance(one, other):
    """The largest difference in levels."""
    return int((one.int() - other.int()).abs().max())


def draws(name, batch, seed=0):
    """Numbers of a batch."""
    return augment.draw(name, batch, generator("draws", seed), "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# The operations on given parameters


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_randaugment_is_pillow(name, channels):
    for size, magnitude in itertools.product((8, 28, 32), (0.0, 0.137, 0.5003, 0.93, BELOW_ONE)):
        images = photographs(channels=channels, size=size)
        for sign in (1, -1) if name in LARGEST else (1,):
            operation = constant(images, OPERATIONS.index(name), torch.long)
            ours = augment.operate(images, operation, constant(images, magnitude), constant(images, sign))
            theirs = each(images, lambda image, v=sign * magnitude, size=size: PILLOW[name](image, v, size))
            assert ours.equal(theirs)


def test_the_turn_of_the_hue_is_torchvision():
    images = photographs()
    for hue in (-0.2, -0.05, 0.004, 0.1, 0.1999):
        theirs = each(images, lambda image, hue=hue: functional.adjust_hue(image, hue))
        assert distance(augment.shift_hue(images, constant(images, int(hue * 255))), theirs) <= 1


def test_the_turn_of_the_hue_on_a_grid_of_all_colours():
    grid = torch.cartesian_prod(*[torch.arange(0, 256, 5)] * 3)
    image = grid[: 364 * 364].T.reshape(3, 364, 364).to(torch.uint8)[None]
    theirs = each(image, lambda image: functional.adjust_hue(image, 0.1))
    assert distance(augment.shift_hue(image, constant(image, int(0.1 * 255))), theirs) <= 1


@pytest.mark.parametrize("window", [(0, 0, 32, 32), (3, 5, 20, 24), (31, 31, 1, 1), (0, 9, 32, 23), (12, 0, 7, 9)])
def test_resized_crops_are_torchvision(window):
    images = photographs()
    ours = augment.resized_crop(images, *(constant(images, value) for value in window))
    theirs = each(images, lambda image: functional.resized_crop(image, *window, [32, 32]))
    assert distance(ours, theirs) <= 1


def test_reflected_crops_are_torchvision():
    images = photographs(size=28)
    for top, left in itertools.product((0, 3, 8), (0, 5, 8)):
        ours = augment.reflected_crop(images, *(constant(images, start, torch.long) for start in (top, left)), 4)
        padded = functional.pad(images, 4, padding_mode="reflect")
        assert ours.equal(functional.crop(padded, top, left, 28, 28))


def test_the_padding_of_the_original():
    assert [augment.padding(size) for size in (32, 84)] == [4, 8]
    assert all(1 <= augment.padding(size) < size / 2 for size in range(8, 300))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("order", range(24))
def test_the_jitter_is_torchvision_in_every_order(order, channels):
    images = photographs(channels=channels)
    kinds = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    factors, hue = (1.3, 0.4, 1.7), -0.15
    hue_at, rest = divmod(order, 6)
    changes = [(kinds[kind], factors[kind]) for kind in JITTERS[rest]]
    changes.insert(hue_at, (functional.adjust_hue, hue))

    def theirs(image):
        for change, value in changes:
            image = change(image, value)
        return image

    ours = augment.jitter(
        images,
        constant(images, order, torch.long),
        tuple(constant(images, factor) for factor in factors),
        constant(images, int(hue * 255)),
    )
    assert ours.equal(each(images, theirs))


def test_grey_is_pillow():
    images = photographs()
    assert augment.luma(images).equal(each(images, lambda image: image.convert("L")))


@pytest.mark.parametrize(("size", "radius"), [(16, 0), (28, 1), (32, 1), (84, 4)])
def test_the_blur_is_torchvision(size, radius):
    images = photographs(size=size)
    for sigma in (0.1, 0.7, 2.0):
        theirs = functional.gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)
        assert distance(augment.gaussian_blur(images, constant(images, sigma)), theirs) <= 1


def test_rectangles_are_pillow():
    images = photographs()
    for side, x, y in ((0.01, 3.0, 4.0), (7.3, 1.2, 30.9), (16.0, 16.0, 16.0), (12.5, 31.9, 2.0), (3.0, 32.0, 32.0)):

        def theirs(image, side=side, x=x, y=y):
            left, top = int(max(0, x - side / 2)), int(max(0, y - side / 2))
            ImageDraw.Draw(image).rectangle((left, top, min(32, left + side), min(32, top + side)), augment.FILL[3])
            return image

        ours = augment.cut_out(images, *(constant(images, value) for value in (side, x, y)))
        assert ours.equal(each(images, theirs))


@pytest.mark.parametrize("channels", [1, 3])
def test_parameters_that_change_nothing(channels):
    images = photographs(channels=channels)
    zero, one = constant(images, 0.0), constant(images, 1.0)
    whole = (zero, zero, constant(images, 32.0), constant(images, 32.0))
    middle = constant(images, 4, torch.long)
    for result in (
        augment.flip(images, zero > 0), augment.reflected_crop(images, middle, middle, 4),
        augment.resized_crop(images, *whole), augment.affine(images, (one, zero, zero, zero, one, zero)),
        augment.jitter(images, torch.arange(6), (one, one, one), zero), augment.blend(images.flip(0), images, one),
        augment.gaussian_blur(images, one / 100), augment.cut_out(images, zero, one, one),
    ):  # fmt: skip
        assert result.equal(images)


def test_two_flips_are_none():
    images, chosen = photographs(), torch.tensor([True, False] * 3)
    once = augment.flip(images, chosen)
    assert once[1::2].equal(images[1::2]) and once[::2].equal(images[::2].flip(3)) and not once.equal(images)
    assert augment.flip(once, chosen).equal(images)


# ---------------------------------------------------------------------------------------------------------------------
# Whole augmentations: what they draw


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_numbers_and_images(name):
    numbers, images = draws(name, 6), photographs()
    assert (numbers is None) == (name == "none")
    assert numbers is None or (numbers.dtype, tuple(numbers.shape)) == (torch.float32, (6, AUGMENTATIONS[name].numbers))
    result = augment.augment(name, images, numbers)
    assert (result.dtype, result.shape) == (images.dtype, images.shape)
    assert images.equal(photographs())  # never in place


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RANDOM)
def test_an_image_depends_on_its_own_numbers_alone(name, channels):
    images = torch.cat([photographs(channels=channels, size=20)] * 9)
    numbers = draws(name, 54)
    whole = augment.augment(name, images, numbers)
    order = torch.randperm(54, generator=generator("order"))
    assert augment.augment(name, images[order], numbers[order]).equal(whole[order])
    for part in (slice(0, 1), slice(1, 18), slice(18, 53), slice(53, 54)):
        assert augment.augment(name, images[part], numbers[part]).equal(whole[part])
    strided = images.to(memory_format=torch.channels_last)
    assert augment.augment(name, strided, numbers).equal(whole)


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_numbers_by_the_same_generator(name):
    assert draws(name, 5, seed=1).equal(draws(name, 5, seed=1))
    assert not draws(name, 5, seed=1).equal(draws(name, 5, seed=2))


@pytest.mark.parametrize("size", [8, 9, 28, 45])
@pytest.mark.parametrize("name", RANDOM)
def test_the_ends_of_the_numbers(name, size):
    images = photographs(size=size)
    for numbers in itertools.product((0.0, BELOW_ONE), repeat=2):
        columns = torch.tensor(numbers * AUGMENTATIONS[name].numbers)[: AUGMENTATIONS[name].numbers]
        result = augment.augment(name, images, columns.expand(6, -1).clone())
        assert result.shape == images.shape


def test_half_of_the_images_are_flipped():
    numbers = (torch.arange(1000)[:, None] + 0.5) / 1000
    images = photographs()[:1].expand(1000, -1, -1, -1)
    flipped = (augment.augment("flip", images, numbers) != images).flatten(1).any(1)
    assert flipped.sum() == 500


def laplace(count, **columns):
    """Numbers of laplace_weak, all neutral (no flip, no shift, identity, no rectangle) but the columns given."""
    neutral = {"flip": 0.9, "top": 0.5, "left": 0.5, "operation": 5.5 / 14, "magnitude": 0.5, "sign": 0.0,
               "side": 0.0, "x": 0.5, "y": 0.5}  # fmt: skip
    values = [torch.as_tensor(columns.get(name, value)).float().expand(count) for name, value in neutral.items()]
    return torch.stack(values, 1)


def test_neutral_numbers_change_nothing():
    images = photographs()
    assert augment.augment("laplace_weak", images, laplace(6)).equal(images)


def test_each_operation_is_drawn_one_time_in_fourteen():
    grid = (torch.arange(1400) + 0.5) / 1400
    image = photographs()[:1]
    halves, ones = (torch.full((14,), value, dtype=torch.float64) for value in (0.5, 1.0))
    expected = augment.operate(image.expand(14, -1, -1, -1), torch.arange(14), halves, ones)
    assert len({bytes(entry.flatten().tolist()) for entry in expected}) == 14
    result = augment.augment("laplace_weak", image.expand(1400, -1, -1, -1), laplace(1400, operation=grid))
    assert result.equal(expected.repeat_interleave(100, 0))


def test_shifts_reach_every_place():
    starts = (torch.arange(9) + 0.5) / 9
    images = photographs()[1:2].expand(81, -1, -1, -1)
    top, left = torch.cartesian_prod(starts, starts).unbind(1)
    result = augment.augment("laplace_weak", images, laplace(81, top=top, left=left))
    padded = functional.pad(images[0], 4, padding_mode="reflect")
    for entry, (row, column) in zip(result, itertools.product(range(9), range(9)), strict=True):
        assert entry.equal(padded[:, row : row + 32, column : column + 32])


def test_signs_are_drawn_one_time_in_two():
    images = photographs()[:1].expand(2, -1, -1, -1)
    turned = augment.augment(
        "laplace_weak", images, laplace(2, operation=7.5 / 14, magnitude=2 / 3, sign=torch.tensor([0.4, 0.6]))
    )
    assert turned.equal(torch.stack([tensor(pillow(images[0]).rotate(angle)) for angle in (20, -20)]))


def test_the_rectangle_covers_up_to_half_the_side():
    sides = torch.arange(0, 100) / 100
    images = torch.zeros(100, 3, 84, 84, dtype=torch.uint8)
    result = augment.augment("laplace_weak", images, laplace(100, side=sides))
    covered = (result[:, 0] > 0).sum((1, 2)).double().sqrt()
    assert covered.equal(torch.where(sides > 0, (42 * sides.double()).floor() + 1, 0))
    assert set(result.flatten(2).amax(2)[1:].unique(dim=0).flatten().tolist()) == {125, 123, 114}


def test_two_operations_follow_one_another():
    images = photographs()
    weak = laplace(6, operation=11.5 / 14, magnitude=0.6)
    numbers = torch.cat([weak[:, :6], laplace(6, operation=7.5 / 14, magnitude=0.8)[:, 3:]], 1)
    first = each(images, lambda image: PILLOW["solarize"](image, weak[0, 4].item(), 32))
    second = each(first, lambda image: image.rotate(30 * numbers[0, 7].item()))
    assert augment.augment("laplace_strong", images, numbers).equal(second)


def windows(areas, aspects, place=(0.5, 0.5)):
    """crop_window for tries [TRIES] of area and aspect."""
    u = [torch.tensor([value], dtype=torch.float64) for value in (*areas, *aspects, *place)]
    return tuple(int(value) for value in augment.crop_window(tuple(u), 32))


def test_the_first_window_that_fits_is_taken():
    small, wide = 0.0, BELOW_ONE  # area .08 of any aspect fits; the whole area fits as a square alone
    assert windows([small] * 10, [0.5] * 10) == (12, 12, 9, 9)  # 32^2 * .08 = 9.05^2
    assert windows([BELOW_ONE] * 3 + [small] * 7, [wide] * 10) == (12, 11, 8, 10)  # 9.05 / sqrt(4/3), 9.05 * sqrt(4/3)
    assert windows([BELOW_ONE] * 10, [wide] * 10) == (0, 0, 32, 32)  # none fits: the whole image
    assert windows([small] * 10, [0.5] * 10, (BELOW_ONE, 0.0)) == (23, 0, 9, 9)  # 24 places a side


def test_windows_have_torchvisions_areas_and_aspects():
    u = torch.rand(22, 20_000, generator=generator("windows"), dtype=torch.float64)
    top, left, height, width = augment.crop_window(u.unbind(), 1000)
    area, aspect = height * width / 1e6, width / height
    assert area.min() > 0.079 and area.max() <= 1 and aspect.min() > 0.74 and aspect.max() < 1.35
    assert ((top >= 0) & (top + height <= 1000) & (left >= 0) & (left + width <= 1000)).all()
    # small windows always fit, so among them areas are uniform and aspects log-uniform
    small = area < 0.5
    assert area[small].mean() == pytest.approx(0.29, abs=0.006)
    assert aspect[small].log().mean() == pytest.approx(0, abs=0.006)
    assert aspect[small].log().var() == pytest.approx((2 * np.log(4 / 3)) ** 2 / 12, rel=0.04)


def simclr(count, **columns):
    """Numbers of simclr, all neutral (whole image, no flip, no jitter, no grey, least blur) but the columns given."""
    neutral = {"flip": 0.9, "jitter": 0.9, "order": 0.0, "brightness": 0.5, "contrast": 0.5, "saturation": 0.5,
               "hue": 0.5, "grey": 0.9, "sigma": 0.0}  # fmt: skip
    whole = [torch.full((count,), BELOW_ONE)] * 10 + [torch.full((count,), 0.5)] * 12
    values = [torch.as_tensor(columns.get(name, value)).float().expand(count) for name, value in neutral.items()]
    return torch.stack([*whole, *values], 1)


def test_simclr_takes_its_numbers_in_order():
    images = photographs()
    assert augment.augment("simclr", images, simclr(6)).equal(images)  # sigma .1 blurs nothing
    assert augment.augment("simclr", images, simclr(6, flip=0.1)).equal(images.flip(3))
    grey = augment.augment("simclr", images, simclr(6, grey=0.1))
    assert grey.equal(augment.luma(images).expand_as(images))
    bright = augment.augment("simclr", images, simclr(6, jitter=0.1, brightness=0.875))
    assert distance(bright, each(images, lambda image: functional.adjust_brightness(image, 1.6))) <= 1
    turned = augment.augment("simclr", images, simclr(6, jitter=0.1, hue=0.75))
    assert distance(turned, each(images, lambda image: functional.adjust_hue(image, 0.1))) <= 1
    blurred = augment.augment("simclr", images, simclr(6, sigma=0.5))
    assert distance(blurred, functional.gaussian_blur(images, [3, 3], [1.05, 1.05])) <= 1


@pytest.mark.parametrize(("column", "share"), [("flip", 0.5), ("grey", 0.2), ("jitter", 0.8)])
def test_simclrs_probabilities(column, share):
    grid = (torch.arange(1000) + 0.5) / 1000
    images = photographs(size=8)[:1].expand(1000, -1, -1, -1)
    numbers = simclr(1000, **{"brightness": 0.2, column: grid})
    changed = (augment.augment("simclr", images, numbers) != images).flatten(1).any(1)
    assert changed.sum() == round(1000 * share)


def test_every_order_of_the_jitter_is_drawn_once_in_twenty_four():
    grid = (torch.arange(240) + 0.5) / 240
    image = photographs(size=16)[1:2].expand(240, -1, -1, -1)
    columns = {"jitter": 0.1, "brightness": 0.9, "contrast": 0.2, "saturation": 0.9, "hue": 0.8}
    result = augment.augment("simclr", image, simclr(240, order=grid, **columns))
    kinds = [bytes(entry.flatten().tolist()) for entry in result]
    assert all(len(set(kinds[start : start + 10])) == 1 for start in range(0, 240, 10))
    assert len(set(kinds)) > 12  # brightness and saturation commute where nothing is clipped


@pytest.mark.parametrize("name", RANDOM)
def test_grey_images_are_as_coloured_ones_of_equal_channels(name):
    # the crop, the shift, the rectangle's place and every operation agree; the rectangle's colour and the hue's are not grey
    images = torch.cat([photographs(channels=1, size=20)] * 10)
    numbers = draws(name, 60)
    if name.startswith("laplace"):
        numbers[:, -3] = 0
    alone = augment.augment(name, images, numbers)
    coloured = augment.augment(name, images.expand(-1, 3, -1, -1), numbers)
    assert coloured.equal(alone.expand(-1, 3, -1, -1))


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 32, 32), r"torch.float32 \[2, 3, 32, 32\], expected uint8"),
        (torch.zeros(2, 2, 32, 32, dtype=torch.uint8), r"\[2, 2, 32, 32\], expected .* 1 or 3 channels"),
        (torch.zeros(2, 3, 32, 28, dtype=torch.uint8), r"\[2, 3, 32, 28\], expected"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), r"\[3, 32, 32\], expected"),
    ],
)
def test_other_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        augment.augment("flip", images, torch.zeros(2, 1))


def test_small_images_are_mirrored_and_no_more():
    for side in (1, 2, 7):
        images = torch.arange(3 * side**2, dtype=torch.uint8).view(1, 3, side, side)
        augment.check_side("flip", side)
        assert torch.equal(augment.augment("flip", images, torch.zeros(1, 1)), images.flip(3))
        for name in ("simclr", "laplace_weak", "laplace_strong"):
            with pytest.raises(
                ValueError, match=f"augmentation {name} needs images of at least 8 .* these have {side}"
            ):
                augment.check_side(name, side)
            with pytest.raises(ValueError, match="S of at least 8"):
                augment.augment(name, images, torch.zeros(1, AUGMENTATIONS[name].numbers))


def test_other_numbers_are_refused():
    with pytest.raises(ValueError, match=r"numbers are \[6, 9\], expected \[6, 12\], as augment.draw gives them"):
        augment.augment("laplace_strong", photographs(), draws("laplace_weak", 6))
    with pytest.raises(ValueError, match=r"numbers are \[6, 0\], expected \[6, 1\]"):
        augment.augment("flip", photographs(), None)
