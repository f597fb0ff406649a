"""The built-in data sets: one line each, with the loader, the published counts, origin and licence.

To add a set: write `load(source) -> Loaded` (see raw.py) beside its family and give it a line in DATASETS.
"""

from functools import partial

from diffusion_model import cifar, digits, pictures
from diffusion_model.raw import Dataset
from diffusion_model.synthetic import HUES, synthetic

FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DIGITS = tuple("0123456789")
MNIST_ORIGIN, MNIST_SYSTEM = "http://yann.lecun.com/exdb/mnist", "/usr/share/datasets/mnist"
CIFAR_ORIGIN, CIFAR_LICENCE = "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated; cite Krizhevsky 2009"

DATASETS = {
    "synthetic": synthetic(32),
    "synthetic16": synthetic(16),
    "fashion_mnist": digits.mnist_like(
        ("fashion_mnist",), "FashionMNIST", "/usr/share/datasets/fashion-mnist", json_too=False, load=digits.load_idx,
        shape=(1, 28, 28), attributes={"class": 10}, counts=(60_000, 10_000), megabytes=31,
        origin="https://github.com/zalandoresearch/fashion-mnist", licence="MIT", class_names={"class": FASHION}),
    "mnist": digits.mnist_like(
        ("mnist",), "MNIST", MNIST_SYSTEM, load=digits.load_mnist,
        shape=(1, 28, 28), attributes={"digit": 10}, counts=(60_000, 10_000), megabytes=12,
        origin=MNIST_ORIGIN, licence="CC BY-SA 3.0", class_names={"digit": DIGITS}),
    "colored_mnist": digits.mnist_like(
        ("mnist", "colored_mnist"), "MNIST", MNIST_SYSTEM, load=digits.load_colored_mnist,
        shape=(3, 28, 28), attributes={"digit": 10, "background": HUES, "foreground": HUES}, counts=(50_000, 10_000),
        megabytes=12, origin=f"{MNIST_ORIGIN}, coloured by the project", licence="CC BY-SA 3.0",
        class_names={"digit": DIGITS}),
    "cifar10": Dataset(
        load=partial(cifar.load, cifar.CIFAR10), shape=(3, 32, 32), attributes={"class": 10}, counts=(50_000, 10_000),
        origin=CIFAR_ORIGIN, licence=CIFAR_LICENCE, find=partial(cifar.find, cifar.CIFAR10),
        download=partial(cifar.download, cifar.CIFAR10), place=cifar.CIFAR10.place, megabytes=170,
        class_names={"class": cifar.CLASSES10}),
    "cifar100": Dataset(
        load=partial(cifar.load, cifar.CIFAR100), shape=(3, 32, 32), attributes={"class": 100, "superclass": 20},
        counts=(50_000, 10_000), origin=CIFAR_ORIGIN, licence=CIFAR_LICENCE, find=partial(cifar.find, cifar.CIFAR100),
        download=partial(cifar.download, cifar.CIFAR100), place=cifar.CIFAR100.place, megabytes=169,
        class_names={"class": cifar.CLASSES100, "superclass": cifar.SUPERCLASSES}),
    "mini_imagenet": Dataset(
        load=pictures.load_mini_imagenet, shape=pictures.MINI_IMAGENET, attributes={"class": 100},
        counts=(50_000, 10_000), origin="a part of ImageNet (https://image-net.org); Vinyals et al. 2016",
        licence="ImageNet's terms: research, not commercial", find=pictures.find_mini_imagenet,
        place=pictures.MINI_PLACE),
    "celeba": Dataset(
        load=pictures.load_celeba, shape=pictures.CELEBA, attributes=dict.fromkeys(pictures.CELEBA_ATTRIBUTES, 2),
        counts=(162_770, 19_962), origin="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html; Liu et al. 2015",
        licence="CelebA's agreement: research, not commercial", find=pictures.find_celeba, place=pictures.CELEBA_PLACE),
}  # fmt: skip
ALIASES = {"cmnist": "colored_mnist", "colouredmnist": "colored_mnist", "miniimgnet": "mini_imagenet"}
