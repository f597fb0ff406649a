"""Write a data set once as uint8 array folders, from this machine, from a download or from arrays of your own.

NAME is a built-in set in any spelling (Synthetic, synthetic16, FashionMNIST, MNIST, CIFAR10) or, with --source FILE.npz
or FILE.npy, any new name. What is prepared already is left as it is.

  python diffusion_model/prepare_data.py Synthetic
  python diffusion_model/prepare_data.py FashionMNIST --source folder/of/idx/files
  python diffusion_model/prepare_data.py mine --source mine.npz

An .npz holds images and labels, or train_images, train_labels, test_images and test_labels; images are uint8 [N, H, W],
[N, H, W, C] or [N, C, H, W], labels integers [N] or [N, A], with names for the columns in attributes if wished. A .npy
holds images, their labels lie beside it in FILE_labels.npy. Without a split, 80 % train by a fixed seed.
"""

from collections.abc import Sequence
from pathlib import Path

from diffusion_model import data
from diffusion_model.experiment import Parser, launch


def parser() -> Parser:
    """The command line."""
    parse = Parser(__doc__, prog="prepare_data.py")
    parse.add_argument("name", metavar="NAME", help="data set")
    parse.add_argument("--source", type=Path, help="folder of a built-in set's files, or a .npy or .npz of your own")
    parse.add_argument("--data", type=Path, help="folder of the data sets (default: $DATA, else data)")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, then say what is there."""
    options = parser().parse_args(argv)
    root = data.root(options.data)
    folder = data.prepare(options.name, root, options.source)
    for split in data.SPLITS:
        held = data.open_split(folder.name, split, root)
        attributes = ", ".join(f"{name} ({classes})" for name, classes in held.attributes.items()) or "no labels"
        print(
            f"{folder / split}: {len(held):,} images {'x'.join(map(str, held.shape))}, {attributes}, sha256 {held.hash[:12]}"
        )
    return 0


if __name__ == "__main__":
    launch(main)
