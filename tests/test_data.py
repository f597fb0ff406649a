"""Data sets: round trips, fixed content of Synthetic, every loader on files made on the spot, one sentence a mistake."""

import dataclasses
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_model import arrays, data, experiment, prepare_data, sources, synthetic
from diffusion_model import cifar as cifar_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder that holds synthetic16."""
    folder = tmp_path_factory.mktemp("data")
    data.prepare("synthetic16", folder)
    return folder


def small(monkeypatch, name, train=6, test=4):
    """Let a built-in set have a few images only."""
    changed = dataclasses.replace(sources.DATASETS[name], counts=(train, test))
    monkeypatch.setitem(sources.DATASETS, name, changed)


def fail(argv, capsys):
    """Status and sentence of a failing command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(prepare_data.main, [str(argument) for argument in argv])
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return stop.value.code, printed.strip().splitlines()[-1]


# Synthetic


def test_synthetic_is_the_same_everywhere(root):
    splits = [data.open_split("Synthetic16", split, root) for split in data.SPLITS]
    assert [len(split) for split in splits] == [4000, 1760]
    assert splits[0].attributes == {"background": 9, "foreground": 9, "location": 16, "shape": 5}
    assert splits[0].shape == (3, 16, 16)
    assert splits[0].hash.startswith("786348689ca9c9a9")
    assert splits[1].hash.startswith("d432841fa4832c90")


def test_synthetic_holds_every_combination_once(root):
    labels = np.concatenate([data.open_split("synthetic16", split, root).labels for split in data.SPLITS])
    assert len({tuple(row) for row in labels}) == len(labels) == 4 * 4 * 5 * 9 * 8
    assert (labels[:, 0] != labels[:, 1]).all()


@pytest.mark.parametrize("side", [16, 32])
def test_synthetic_images_say_their_labels(side):
    rows = np.array(synthetic.COMBINATIONS)[::97]
    images = synthetic.draw(rows, side)
    backgrounds, foregrounds = synthetic.palette()
    cell = side // 4
    for image, (background, foreground, location, shape) in zip(images, rows, strict=True):
        inside = np.zeros((side, side), bool)
        top, left = location // 4 * cell, location % 4 * cell
        inside[top : top + cell, left : left + cell] = synthetic.masks(cell)[shape]
        assert (image[:, inside] == foregrounds[foreground][:, None]).all()
        assert (image[:, ~inside] == backgrounds[background][:, None]).all()


def test_shapes_and_colours_are_distinct():
    flat = synthetic.masks(4).reshape(5, 16)
    assert min((a != b).sum() for i, a in enumerate(flat) for b in flat[:i]) >= 4
    backgrounds, foregrounds = (colours.astype(int) for colours in synthetic.palette())
    assert abs(backgrounds - 128).max() <= 32
    for colours, apart in ((backgrounds, 16), (foregrounds, 80)):
        assert min(abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]) >= apart
    contrast = abs(backgrounds[:, None] - foregrounds[None]).max(axis=2)
    assert contrast[~np.eye(9, dtype=bool)].min() >= 100


def test_open_split_prepares_synthetic_without_being_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(tmp_path / "elsewhere"))
    assert len(data.open_split("SYNTHETIC16", "test")) == 1760
    assert (tmp_path / "elsewhere" / "synthetic16" / "train" / "images.npy").is_file()


# Names


@pytest.mark.parametrize(
    ("given", "name"),
    [("CIFAR10", "cifar10"), ("FashionMNIST", "fashion_mnist"), ("fashion-mnist", "fashion_mnist"), ("Synthetic", "synthetic"),
     ("MNIST", "mnist"), ("cifar-10", "cifar10"), ("Mine_2", "mine_2"),
     ("ColoredMNIST", "colored_mnist"), ("cmnist", "colored_mnist"), ("CIFAR100", "cifar100"), ("CelebA", "celeba"),
     ("mini_imgnet", "mini_imagenet"), ("MiniImageNet", "mini_imagenet"), ("miniimagenet", "mini_imagenet")],
)  # fmt: skip
def test_names(given, name):
    assert data.canonical(given) == name


def test_names_that_cannot_be_folders():
    with pytest.raises(ValueError, match="expected letters"):
        data.canonical("../mine")


def test_a_misspelt_name_hears_its_neighbour(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="nearest: fashion_mnist"):
        data.open_split("fashoin_mnist", "train", tmp_path)
    status, sentence = fail(["fashoin_mnist", "--data", tmp_path / "new"], capsys)
    assert status == 1
    assert not (tmp_path / "new").exists()
    assert "nearest: fashion_mnist" in sentence


def test_a_wrong_split_or_attribute_hears_what_there_is(root):
    with pytest.raises(ValueError, match="nearest: train"):
        data.open_split("synthetic16", "trian", root)
    split = data.open_split("synthetic16", "test", root)
    assert (split.label("shape") == split.labels[:, 3]).all()
    with pytest.raises(ValueError, match="nearest: shape"):
        split.label("shap")


# What lies on disk


def copy_of(root, tmp_path):
    """A second folder with the same synthetic16, hard-linked for speed, the meta files apart."""
    for split in data.SPLITS:
        folder = tmp_path / "synthetic16" / split
        folder.mkdir(parents=True)
        for file in (root / "synthetic16" / split).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_truncated_images_are_refused(root, tmp_path):
    path = copy_of(root, tmp_path) / "synthetic16/test/images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        data.open_split("synthetic16", "test", tmp_path)


def test_altered_images_are_refused(root, tmp_path):
    path = copy_of(root, tmp_path) / "synthetic16/test/images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="altered"):
        data.open_split("synthetic16", "test", tmp_path)


def test_an_interrupted_preparation_is_done_again(root, tmp_path):
    copy_of(root, tmp_path)
    (tmp_path / "synthetic16/test/meta.json").unlink()
    assert len(data.open_split("synthetic16", "test", tmp_path)) == 1760


def test_labels_out_of_range_on_disk_are_refused(tmp_path):
    images = np.zeros((3, 1, 4, 4), np.uint8)
    for split in data.SPLITS:
        arrays.write_folder(tmp_path / "mine" / split, data.KIND, {"images": images, "labels": np.array([[0], [1], [2]])},
                            attributes={"label": 2}, hash="0")  # fmt: skip
    with pytest.raises(ValueError, match="labels of 'label' run from 0 to 2, expected 0 to 1"):
        data.open_split("mine", "train", tmp_path)


def by_hand(folder, labels=((0, 1, 2), (0, 1, 2)), shapes=((1, 4, 4), (1, 4, 4)), **meta):
    """A prepared set that somebody wrote; the fields of meta are one for both splits, or a pair."""
    about = {"attributes": {"label": 3}, "hash": "0"} | meta
    for index, split in enumerate(data.SPLITS):
        own = {name: value[index] if isinstance(value, tuple) else value for name, value in about.items()}
        held = {
            "images": np.zeros((len(labels[index]), *shapes[index]), np.uint8),
            "labels": np.array(labels[index])[:, None],
        }
        arrays.write_folder(folder / "mine" / split, data.KIND, held, **own)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"shapes": ((3, 16, 16), (3, 8, 8))}, "images of train are 3x16x16, those of test 3x8x8, expected one shape: remove"),
        ({"shapes": ((3, 4, 4), (1, 4, 4))}, "images of train are 3x4x4, those of test 1x4x4"),
        ({"attributes": ({"label": 3}, {"label": 4})}, "train and test differ in their attributes: remove"),
        ({"attributes": ({"label": 3}, {"kind": 3})}, "train and test differ in their attributes"),
        ({"class_names": ({"label": ["a", "b", "c"]}, {"label": ["a", "c", "b"]})}, "train and test differ in their class_names"),
        ({"attributes": {"label": 5}, "labels": ((1, 2, 3, 4), (1, 2, 3, 4))},
         "'label' has 5 classes, and images of 4, with labels from 1 to 4: number them from 0 without gaps"),
        ({"attributes": {"label": 4}, "labels": ((0, 1), (3, 0))}, "'label' has 4 classes, and images of 3"),
        ({"labels": ((0, 1, 2), (0, 1, 3))}, "test: labels of 'label' run from 0 to 3, expected 0 to 2"),
        ({"attributes": {"label": "3"}}, "meta.json: attributes.label is \"3\", expected an integer: remove"),
        ({"attributes": [3]}, "meta.json: attributes is [3], expected an object: remove"),
        ({"hash": 0}, "meta.json: hash is 0, expected a string: remove"),
    ],
)  # fmt: skip
def test_splits_that_do_not_belong_together_are_refused(tmp_path, given, sentence):
    by_hand(tmp_path, **given)
    for split in data.SPLITS:
        with pytest.raises(ValueError) as said:
            data.open_split("mine", split, tmp_path)
        assert sentence in str(said.value)
        if sentence.endswith("remove"):
            assert str(said.value).endswith("mine and run `python diffusion_model/prepare_data.py mine` again")


def test_a_set_made_by_hand_is_not_that_of_a_source(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    for given, sentence in (({"source": 3}, "meta.json: source is 3, expected a string"), ({}, "no field 'source'")):
        by_hand(tmp_path, **given)
        with pytest.raises(ValueError, match=sentence):
            data.prepare("mine", tmp_path, tmp_path / "a.npy")


def test_a_class_that_is_named_may_be_without_an_image(tmp_path):
    by_hand(tmp_path, labels=((0, 2), (2, 0)), class_names={"label": ["a", "b", "c"]})
    assert data.open_split("mine", "train", tmp_path).attributes == {"label": 3}
    by_hand(tmp_path, labels=((0, 1), (2, 0)))
    assert data.open_split("mine", "test", tmp_path).attributes == {"label": 3}


def test_splits_of_two_shapes_are_refused_before_anything_is_written(tmp_path, capsys):
    sizes = {"train_images": np.zeros((4, 3, 16, 16), np.uint8), "test_images": np.zeros((4, 3, 8, 8), np.uint8)}
    np.savez(tmp_path / "a.npz", **sizes)
    status, sentence = fail(["mine", "--source", tmp_path / "a.npz", "--data", tmp_path / "data"], capsys)
    assert (status, "images of train are 3x16x16, those of test 3x8x8, expected one shape" in sentence) == (1, True)
    assert not (tmp_path / "data" / "mine").exists()


def test_labels_become_classes_from_0_without_gaps(tmp_path, capsys):
    """Labels 1 to 4 are four classes, also where a split lacks one; meta.json tells the value of each."""
    images = np.arange(128, dtype=np.uint8).reshape(8, 4, 4)
    labels = {"train_labels": [1, 2, 4, 1, 9, 2], "test_labels": [2, 3]}
    np.savez(tmp_path / "a.npz", train_images=images[:6], test_images=images[6:], **labels)
    prepare_data.main(["mine", "--source", str(tmp_path / "a.npz"), "--data", str(tmp_path)])
    train, test = (data.open_split("mine", split, tmp_path) for split in data.SPLITS)
    assert train.attributes == test.attributes == {"label": 5}
    known = dict(zip((images[:, 0, 0] // 16).tolist(), [0, 1, 3, 0, 4, 1, 1, 2], strict=True))
    for split in (train, test):
        assert [known[pixel // 16] for pixel in split.images[:, 0, 0, 0].tolist()] == split.labels[:, 0].tolist()
    assert train.meta["class_names"] == test.meta["class_names"] == {"label": ["1", "2", "3", "4", "9"]}
    said = capsys.readouterr().err
    assert "labels of 'label' have 5 values from 1 to 9, which become the classes 0 to 4" in said
    assert "mine: 1 of 5 classes of 'label' have no train images: 3\n" in said
    assert "mine: 3 of 5 classes of 'label' have no test images: 1, 4, 9\n" in said


def test_a_single_class_is_said(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=np.zeros(5, int))
    data.prepare("mine", tmp_path, tmp_path / "a.npz")
    assert "mine: 'label' has one class, so that nothing can be told apart by it" in capsys.readouterr().err


def test_images_in_both_splits_are_counted(tmp_path, capsys):
    images = np.arange(160, dtype=np.uint8).reshape(10, 4, 4)
    np.savez(tmp_path / "a.npz", train_images=images[:7], test_images=images[[8, 2, 9, 2, 6]])
    for _ in range(2):  # also when nothing is left to do
        prepare_data.main(["mine", "--source", str(tmp_path / "a.npz"), "--data", str(tmp_path)])
        assert "mine/test: 5 images 1x4x4, 3 of them also in train, no labels" in capsys.readouterr().out
    assert data.open_split("mine", "test", tmp_path).meta["also_in_train"] == 3


@pytest.mark.parametrize("left", [False, True], ids=["tidy", "with what a kill left"])
def test_a_prepared_set_needs_no_writing(root, tmp_path, left, read_only, capsys):
    copy_of(root, tmp_path)
    if left:
        (tmp_path / "synthetic16/test/.images.npy.done").write_text("")
    read_only(tmp_path)
    with pytest.raises(OSError, match="Read-only"):
        (tmp_path / "new").write_text("")
    prepare_data.main(["synthetic16", "--data", str(tmp_path)])
    assert "4,000 images 3x16x16" in capsys.readouterr().out


def test_preparing_twice_changes_nothing(root):
    before = (root / "synthetic16/train/meta.json").stat().st_mtime_ns
    data.prepare("synthetic16", root)
    assert (root / "synthetic16/train/meta.json").stat().st_mtime_ns == before


def test_a_full_disk_is_said_before(tmp_path, monkeypatch):
    monkeypatch.setattr(data.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6})())
    with pytest.raises(ValueError, match=r"needs 4\.6 MB in .*, where 1\.0 MB are free"):
        data.prepare("synthetic16", tmp_path)


# Model space


def test_scaling_round_trip(root):
    split = data.open_split("synthetic16", "train", root)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    for kind in ("unit", "standardised"):
        scaling = data.scaling(kind, split)
        assert torch.equal(scaling.to_pixels(scaling.to_model(pixels)), pixels)
        assert data.Scaling.from_dict(scaling.as_dict()) == scaling
    unit = data.scaling("unit", split)
    assert unit.to_model(pixels).aminmax() == (torch.tensor(-1.0), torch.tensor(1.0))
    assert unit.to_pixels(torch.tensor([-9.0, 9.0, 0.01]).view(1, 3, 1, 1)).flatten().tolist() == [0, 255, 129]


def test_standardised_has_mean_0_and_deviation_1(root):
    split = data.open_split("synthetic16", "train", root)
    split = dataclasses.replace(split, images=split.images[:200].copy())
    x = data.scaling("standardised", split).to_model(torch.from_numpy(split.images)).double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_scaling_says_what_it_expects(root):
    split = data.open_split("synthetic16", "test", root)
    with pytest.raises(ValueError, match="nearest: unit"):
        data.scaling("unti", split)
    scaling = data.scaling("unit", split)
    with pytest.raises(ValueError, match=r"pixels are torch\.float32, expected torch\.uint8"):
        scaling.to_model(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"shape \[1, 1, 4, 4\], expected \[B, 3, H, W\]"):
        scaling.to_model(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="one positive scale"):
        data.Scaling((0.0,), (1.0,))


def test_a_constant_channel_cannot_be_standardised():
    split = data.Split("flat", "train", np.zeros((2, 1, 4, 4), np.uint8), np.zeros((2, 0), np.int64), {}, "0", {})
    with pytest.raises(ValueError, match="is constant"):
        data.scaling("standardised", split)


# IDX files


def idx(array):
    """Bytes of an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path):
    """A folder of four small IDX files, one of them gzipped."""
    folder = tmp_path / "idx"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("t10k", 4)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count, dtype=np.uint8))))
    return folder


def test_idx_files(idx_folder, tmp_path, monkeypatch, capsys):
    small(monkeypatch, "fashion_mnist")
    prepare_data.main(["FashionMNIST", "--source", str(idx_folder), "--data", str(tmp_path)])
    split = data.open_split("FashionMNIST", "train", tmp_path)
    assert (split.shape, split.attributes) == ((1, 28, 28), {"class": 10})
    assert split.labels[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    written = (idx_folder / "train-images-idx3-ubyte").read_bytes()[16:]
    assert split.images.tobytes() == written
    assert split.meta["licence"] == "MIT"
    assert split.meta["source"] == str(idx_folder)
    captured = capsys.readouterr()
    assert "6 train, 4 test images, 0.0 MB on disk" in captured.err
    assert "6 images 1x28x28, class (10), sha256" in captured.out


def test_files_placed_beside_the_prepared_folders_are_found(idx_folder, tmp_path, monkeypatch):
    small(monkeypatch, "mnist")
    (tmp_path / "data").mkdir()
    idx_folder.rename(tmp_path / "data" / "mnist")
    assert len(data.open_split("mnist", "test", tmp_path / "data")) == 4


def test_a_relative_source_is_the_one_of_where_one_stood(tmp_path, monkeypatch, capsys):
    for name, grey in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "own.npz", images=np.full((5, 4, 4), grey, np.uint8))
    command = ["mine", "--source", "own.npz", "--data", str(tmp_path / "data")]
    monkeypatch.chdir(tmp_path / "a")
    prepare_data.main(command)
    prepare_data.main(command)
    monkeypatch.chdir(tmp_path / "b")
    status, sentence = fail(command, capsys)
    assert (status, f"was prepared from {tmp_path / 'a' / 'own.npz'}: remove it to prepare it from" in sentence) == (
        1,
        True,
    )
    prepare_data.main(["mine", "--source", "../a/own.npz", "--data", str(tmp_path / "data")])


def test_a_source_that_has_changed_is_said(tmp_path):
    """The same path with other content is another set; a source that is gone leaves what was prepared as it is."""
    source = tmp_path / "own.npy"
    np.save(source, IMAGES)
    data.prepare("mine", tmp_path, source)
    np.save(source, IMAGES + 1)
    with pytest.raises(ValueError, match=r"was prepared from .*own.npy when that held other files: remove it"):
        data.prepare("mine", tmp_path, source)
    np.save(source, IMAGES)
    np.save(tmp_path / "own_labels.npy", np.arange(5))
    with pytest.raises(ValueError, match="when that held other files"):
        data.prepare("mine", tmp_path, source)
    source.unlink()
    data.prepare("mine", tmp_path, source)


def test_another_source_is_refused(idx_folder, tmp_path, monkeypatch):
    small(monkeypatch, "mnist")
    data.prepare("mnist", tmp_path, idx_folder)
    with pytest.raises(ValueError, match="remove it to prepare it from"):
        data.prepare("mnist", tmp_path, tmp_path)


def break_idx(folder, how):
    """Break one file of an IDX folder."""
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte.gz"
    if how == "missing":
        images.unlink()
    elif how == "short":
        images.write_bytes(images.read_bytes()[:-1])
    elif how == "empty":
        images.write_bytes(b"")
    elif how == "kind":
        images.write_bytes(b"\x00\x00\x0d\x03" + images.read_bytes()[4:])
    elif how == "gzip":
        labels.write_bytes(labels.read_bytes()[:-9])
    elif how == "count":
        labels.write_bytes(gzip.compress(idx(np.zeros(5, np.uint8))))
    elif how == "range":
        labels.write_bytes(gzip.compress(idx(np.full(6, 10, np.uint8))))
    elif how == "shape":
        images.write_bytes(idx(np.zeros((6, 20, 20), np.uint8)))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", "holds no train-images-idx3-ubyte"),
        ("short", "holds 4703 values, its header says 4704"),
        ("empty", "no IDX file of unsigned bytes with 3 dimensions"),
        ("kind", "no IDX file of unsigned bytes"),
        ("gzip", "truncated or no gzip file"),
        ("count", "holds 6 images, .* 5 labels"),
        ("range", "labels of 'class' run from 10 to 10, expected 0 to 9"),
        ("shape", r"images of shape \[1, 20, 20\], expected \[1, 28, 28\]"),
    ],
)
def test_broken_idx_files(idx_folder, tmp_path, monkeypatch, how, sentence):
    small(monkeypatch, "fashion_mnist")
    break_idx(idx_folder, how)
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        data.prepare("fashion_mnist", tmp_path, idx_folder)
    assert not arrays.is_finished(tmp_path / "fashion_mnist" / "train")


def test_counts_are_checked(idx_folder, tmp_path):
    with pytest.raises(ValueError, match="mnist/train has 6 images, expected 60000"):
        data.prepare("mnist", tmp_path, idx_folder)


def test_a_source_that_is_not_there(tmp_path, capsys):
    status, sentence = fail(["mnist", "--source", tmp_path / "no", "--data", tmp_path], capsys)
    assert status == 1
    assert "is no folder: place train-images-idx3-ubyte.gz" in sentence
    status, sentence = fail(["synthetic", "--source", tmp_path, "--data", tmp_path], capsys)
    assert (status, "takes no --source" in sentence) == (1, True)


@pytest.mark.parametrize(
    ("name", "files"), [("cifar10", "cifar-10-batches-bin"), ("mnist", "t10k-labels-idx1-ubyte.gz")]
)
def test_without_a_network_one_sentence_says_what_to_place_where(name, files, tmp_path, monkeypatch, capsys):
    def offline(target):
        raise OSError("no network")

    changed = dataclasses.replace(sources.DATASETS[name], find=lambda root: None, download=offline)
    monkeypatch.setitem(sources.DATASETS, name, changed)
    status, sentence = fail([name, "--data", tmp_path], capsys)
    assert status == 1
    assert "could not be downloaded (OSError: no network): place " in sentence
    assert files in sentence
    assert f"run `python diffusion_model/prepare_data.py {name}`" in sentence
    with pytest.raises(FileNotFoundError, match="which downloads it; without a network, place"):
        data.open_split(name, "train", tmp_path)


# CIFAR-10


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder with a small CIFAR-10 in the layout of its binary version, and the pixels of its test file."""
    small(monkeypatch, "cifar10", train=10, test=3)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in [*((f"data_batch_{index}.bin", 2) for index in range(1, 6)), ("test_batch.bin", 3)]:
        records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count)
        records.tofile(folder / name)
    return tmp_path, records[:, 1:].reshape(3, 3, 32, 32)


def test_cifar10_is_read_where_it_is_present(cifar):
    root, pixels = cifar
    split = data.open_split("CIFAR10", "test", root)
    assert np.array_equal(split.images, pixels)
    assert split.labels[:, 0].tolist() == [0, 1, 2]
    assert len(data.open_split("CIFAR10", "train", root)) == 10


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10_from_a_source(cifar, tmp_path, inside):
    data.prepare("cifar10", tmp_path / "other", cifar[0] / inside)
    assert len(data.open_split("cifar10", "test", tmp_path / "other")) == 3


def test_broken_cifar10(cifar):
    root, _ = cifar
    path = root / "cifar-10-batches-bin" / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"has 6145 bytes, expected a multiple of 3073"):
        data.prepare("cifar10", root)
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(ValueError, match="labels of 'class' run from 0 to 10, expected 0 to 9"):
        data.prepare("cifar10", root)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_2.bin is missing: place the folder cifar-10-batches-bin"):
        data.prepare("cifar10", root)


@pytest.mark.parametrize(
    ("name", "folder", "file", "binary"),
    [("cifar10", "cifar-10-batches-py", "data_batch_1", "cifar-10-batches-bin (from https://www.cs.toronto.edu/~kriz/"
      "cifar-10-binary.tar.gz)"),
     ("cifar100", "cifar-100-python", "train", "cifar-100-binary (from https://www.cs.toronto.edu/~kriz/"
      "cifar-100-binary.tar.gz)")],
)  # fmt: skip
def test_the_python_version_is_never_read(name, folder, file, binary, tmp_path):
    """A pickle is named, with what to place instead."""
    held = tmp_path / "root" / folder
    held.mkdir(parents=True)
    (held / file).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    for source in (held, held.parent):
        with pytest.raises(
            FileNotFoundError, match=f"{folder} is the Python version, a pickle, which is never"
        ) as said:
            data.prepare(name, tmp_path / "root", source)
        assert f"place the folder {binary} in" in str(said.value)
    with pytest.raises(FileNotFoundError, match="which downloads it; without a network, place the folder") as said:
        data.open_split(name, "train", tmp_path / "root")
    assert f"{binary} in {tmp_path / 'root'}" in str(said.value)


@pytest.mark.parametrize(
    ("name", "md5"),
    [("cifar10", "c32a1d4ab5d03f1284b67883e8d87530"), ("cifar100", "03b5dce01913d631647c71ecec9e9cb8")],
)
def test_the_binary_version_is_downloaded_with_its_checksum(name, md5, tmp_path, monkeypatch):
    asked, version = [], {"cifar10": cifar_sets.CIFAR10, "cifar100": cifar_sets.CIFAR100}[name]
    small(monkeypatch, name, train=10 if name == "cifar10" else 2, test=2)

    def fetch(url, target, md5):
        asked.append((url, md5))
        for names in version.files.values():
            for file in names:
                path = Path(target) / version.binary / file
                path.parent.mkdir(parents=True, exist_ok=True)
                records = np.zeros((2, version.record), np.uint8)
                records[:, 0] = 4 if name == "cifar100" else 0  # the superclass of class 0
                records.tofile(path)

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fetch)
    half = tmp_path / "downloads" / version.binary / version.files["train"][0]
    half.parent.mkdir(parents=True)
    half.write_bytes(b"what an unpacking that was killed has left")
    data.prepare(name, tmp_path)
    assert asked == [(f"https://www.cs.toronto.edu/~kriz/{version.archive}", md5)]
    assert len(data.open_split(name, "test", tmp_path)) == 2
    assert cifar_sets.find(version, tmp_path) == tmp_path / "downloads"


def test_an_empty_source_says_what_to_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no binary version of CIFAR-10: .* holds none: place the folder"):
        data.prepare("cifar10", tmp_path / "data", tmp_path)


# Images of one's own


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_own_npz(tmp_path, layout, capsys):
    shape = {"NHW": (10, 8, 8), "NHWC": (10, 8, 8, 3), "NCHW": (10, 3, 8, 8)}[layout]
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.stack([np.arange(10) % 2, np.arange(10)], 1)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, attributes=np.array(["parity", "row"]))
    prepare_data.main(["Mine", "--source", str(tmp_path / "a.npz"), "--data", str(tmp_path)])
    splits = [data.open_split("mine", split, tmp_path) for split in data.SPLITS]
    assert [len(split) for split in splits] == [8, 2]
    assert splits[0].attributes == {"parity": 2, "row": 10}
    assert "80% train" in splits[0].meta["splitting"]
    chw = {"NHW": images[:, None] if images.ndim == 3 else None, "NHWC": images.transpose(0, -1, 1, 2) if images.ndim == 4 else None,
           "NCHW": images}[layout]  # fmt: skip
    for split in splits:
        assert np.array_equal(split.images, chw[split.label("row")])


def test_own_npz_with_its_own_split(tmp_path):
    images = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    np.savez(
        tmp_path / "a.npz", train_images=images[:3], train_labels=[0, 1, 0], test_images=images[3:], test_labels=[2]
    )
    data.prepare("mine", tmp_path, tmp_path / "a.npz")
    assert len(data.open_split("mine", "train", tmp_path)) == 3
    assert data.open_split("mine", "test", tmp_path).attributes == {"label": 3}


def test_own_npy_with_and_without_labels(tmp_path, capsys):
    images = np.arange(80, dtype=np.uint8).reshape(5, 4, 4)
    np.save(tmp_path / "a.npy", images)
    data.prepare("bare", tmp_path, tmp_path / "a.npy")
    assert data.open_split("bare", "train", tmp_path).attributes == {}
    assert "holds no labels" in capsys.readouterr().err
    np.save(tmp_path / "a_labels.npy", np.arange(5))
    data.prepare("labelled", tmp_path, tmp_path / "a.npy")
    split = data.open_split("labelled", "train", tmp_path)
    assert np.array_equal(split.images[:, 0], images[split.label("label")])


@pytest.mark.parametrize("given", [True, False])
def test_own_arrays_sorted_by_class_are_shuffled(tmp_path, given):
    """Every image once, beside its own label, in a random order that is the same every time; 30 images of each of 10 classes."""
    labels = np.repeat(np.arange(10), 30)
    images = np.arange(300, dtype=np.uint16).view(np.uint8).reshape(300, 2, 1)  # each tells its row
    both = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "a.npz", **(both if given else {"images": images, "labels": labels}))
    for name in ("one", "two"):
        data.prepare(name, tmp_path, tmp_path / "a.npz")
    splits = [data.open_split("one", split, tmp_path) for split in data.SPLITS]
    rows = [split.images[:, 0].reshape(len(split), 2).copy().view(np.uint16)[:, 0] for split in splits]
    for split, held in zip(splits, rows, strict=True):
        assert np.array_equal(split.label("label"), labels[held])
        assert len(set(split.label("label")[:40])) >= 8 and abs(np.corrcoef(np.arange(len(held)), held)[0, 1]) < 0.3
        assert split.hash == data.open_split("two", split.split, tmp_path).hash
    assert sorted(np.concatenate(rows)) == sorted([*range(300)] * (2 if given else 1))


def test_a_sample_is_of_every_part_of_a_set_and_the_start_of_a_larger_one(root):
    split = data.open_split("synthetic16", "train", root)
    few, more = split.sample(100), split.sample(1000)
    assert np.array_equal(few.rows, more.rows[:100]) and len(set(more.rows)) == 1000
    assert np.bincount(more.rows // 1000, minlength=4).min() > 200  # not the first
    for one in (few, more):
        assert np.array_equal(one.images[:], split.images[one.rows]) and np.array_equal(
            one.labels, split.labels[one.rows]
        )
    assert len(few) == 100 and few.shape == split.shape and np.array_equal(few.images[3:5], split.images[few.rows[3:5]])
    assert split.sample(None) is split and split.sample(4000) is split


IMAGES = np.zeros((5, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"images": IMAGES.astype(np.float32)}, "images are float32, expected uint8"),
        ({"images": np.zeros((5, 8, 8, 2), np.uint8)}, r"shape \[5, 8, 8, 2\], expected \[N, H, W\]"),
        ({"images": np.zeros((5, 8), np.uint8)}, r"shape \[5, 8\], expected \[N, H, W\]"),
        ({"images": np.array(5, np.uint8)}, "holds 1 images, expected at least 3"),
        (
            {"images": IMAGES, "labels": np.full(5, np.nan)},
            r"float64 \[5\], expected integers .* images: number the classes 0",
        ),
        ({"images": IMAGES, "labels": np.zeros(4, int)}, r"labels are int64 \[4\], expected integers \[N\] or"),
        ({"images": IMAGES, "labels": np.zeros(5)}, r"labels are float64 \[5\], expected integers"),
        ({"images": IMAGES, "labels": np.full(5, -1)}, "labels run from -1, expected 0"),
        (
            {"images": IMAGES, "labels": np.zeros(5, int), "attributes": np.array(["a", "b"])},
            "expected 1 distinct names",
        ),
        ({"images": IMAGES[:1]}, "holds 1 images, expected at least 3"),
        ({"pictures": IMAGES}, r"has the keys \['pictures'\], expected images and labels, or train_images"),
        ({"train_images": IMAGES, "test_images": IMAGES, "test_labels": np.zeros(5, int)}, "the same number"),
        ({"images": np.array([None] * 5)}, "holds objects"),
        ({"train_images": IMAGES, "test_images": IMAGES[:0]}, "mine/test has no images"),
    ],
)
def test_wrong_arrays_of_ones_own(tmp_path, content, sentence):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(ValueError, match=sentence):
        data.prepare("mine", tmp_path, tmp_path / "a.npz")


def test_arrays_that_are_not_used_are_named(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=IMAGES, label=np.arange(5))
    data.prepare("mine", tmp_path, tmp_path / "a.npz")
    assert "a.npz: label left out, expected images and labels, or train_images" in capsys.readouterr().err


def test_wrong_files_of_ones_own(tmp_path, capsys):
    status, sentence = fail(["mine", "--source", tmp_path / "no.npz", "--data", tmp_path], capsys)
    assert (status, "is no file: expected a .npy or .npz" in sentence) == (1, True)
    for name in ("a.npz", "a.npy"):
        (tmp_path / name).write_bytes(b"short")
        status, sentence = fail(["mine", "--source", tmp_path / name, "--data", tmp_path], capsys)
        assert (status, "truncated" in sentence) == (1, True)
    (tmp_path / "a.csv").write_text("1")
    status, sentence = fail(["mine", "--source", tmp_path / "a.csv", "--data", tmp_path], capsys)
    assert (status, "expected a .npy or .npz" in sentence) == (1, True)


def test_help_and_wrong_option(capsys):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(prepare_data.main, ["--help"])
    assert stop.value.code == 0
    status, sentence = fail(["synthetic", "--sorce", "x"], capsys)
    assert status == 2
    assert "--source" in sentence


def test_labels_of_three_dimensions_are_refused(tmp_path):
    images = np.zeros((6, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.zeros((6, 2, 2), np.int64))
    with pytest.raises(
        ValueError, match=r"labels are int64 \[6, 2, 2\], expected integers \[N\] or \[N, A\] for 6 images"
    ):
        data.prepare("mine", tmp_path, tmp_path / "a.npz")
    assert not (tmp_path / "mine").exists()
