"""Write a data set once as uint8 array folders, from this machine, from a download or from images of your own.

NAME is a built-in set in any spelling (Synthetic, synthetic16, FashionMNIST, MNIST, ColoredMNIST, CIFAR10, CIFAR100,
MiniImageNet, CelebA) or, with --source, any new name. What is prepared already is left as it is; what was interrupted
goes on where it stopped.

  python diffusion_model/prepare_data.py Synthetic
  python diffusion_model/prepare_data.py FashionMNIST --source folder/of/idx/files
  python diffusion_model/prepare_data.py CelebA --source folder/of/img_align_celeba/and/tables
  python diffusion_model/prepare_data.py mine --source mine.npz
  python diffusion_model/prepare_data.py mine --source folder/of/classes --size 64

An .npz holds images and labels, or train_images, train_labels, test_images and test_labels; images are uint8 [N, H, W],
[N, H, W, C] or [N, C, H, W], labels integers [N] or [N, A], with names for the columns in attributes if wished. A .npy
holds images, their labels lie beside it in FILE_labels.npy. The values of a label become classes from 0 without gaps, in
their order. A folder holds train/CLASS/ and test/CLASS/, or CLASS/, with image files of one size, or of any sizes with
--size: the shorter side is resized to it and the middle square kept. Files are JPEG, PNG, BMP, WebP, TIFF, PGM or PPM, of
one frame and 8 bits a channel; hidden files and folders are skipped and links followed. Without a split, 80 % train by a
fixed seed.
"""

from collections.abc import Sequence
from pathlib import Path

from diffusion_model import blocks, data
from diffusion_model.experiment import AtLeast, Parser, launch


def parser() -> Parser:
    """The command line."""
    parse = Parser(__doc__, prog="prepare_data.py")
    parse.add_argument("name", metavar="NAME", help="data set")
    parse.add_argument(
        "--source",
        type=Path,
        help="folder of a built-in set's files; or a .npy, a .npz or a folder of classes of your own",
    )
    parse.add_argument(
        "--size",
        type=AtLeast(1),
        help="side in pixels to resize and crop a folder of your own to (default: as they are)",
    )
    parse.add_argument(
        "--workers", type=AtLeast(1, most=256), default=blocks.cores(), help="processes that decode images"
    )
    parse.add_data()
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, then say what is there."""
    options = parser().parse_args(argv)
    root = data.root(options.data)
    folder = data.prepare(options.name, root, options.source, workers=options.workers, size=options.size)
    for split in data.SPLITS:
        held = data.open_split(folder.name, split, root)
        attributes = ", ".join(f"{name} ({classes})" for name, classes in held.attributes.items()) or "no labels"
        if len(held.attributes) > 8:
            attributes = f"{len(held.attributes)} attributes"
        shared = held.meta.get("also_in_train")
        again = f", {shared:,} of them also in train" if shared else ""
        shape = "x".join(map(str, held.shape))
        print(f"{folder / split}: {len(held):,} images {shape}{again}, {attributes}, sha256 {held.hash[:12]}")
    return 0


if __name__ == "__main__":
    launch(main)
