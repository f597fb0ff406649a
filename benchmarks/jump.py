"""What does the jump cost? Gaussian.teleport beside the bytes it must move, its two products, and one network evaluation.

Rank is full: --batch images of --shape against a basis of D x D in float32. In turns, each --rounds times:

  jump         teleport from level 80 to level 20
  bytes        a copy of the basis and of the images: it moves as much as reading the basis twice, the images once and
               writing the result, so no jump that reads its basis for each of two products takes less
  products     (x U) U^T, two bare products into memory that is there: 4 B D^2 operations, so no such jump takes less
               where a machine multiplies more slowly than it reads
  evaluation   one of a network of configs/edm.py:--preset, untrained, on --images images, scaled to the batch

The bound of a machine is the greater of bytes and products. All medians; --rounds alternate between them.

  python benchmarks/jump.py --threads 1
  python benchmarks/jump.py --device cuda --images 64
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, checkpoint, experiment, footprint
from diffusion_model.experiment import ROOT, AtLeast
from linear_structure.gaussian import Gaussian

LEVELS = (80.0, 20.0)
LIMITS = {"bound": 2.0, "evaluation": 0.005}  # what a jump may cost at most, as a multiple


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="jump.py")
    parser.add_argument("--batch", type=AtLeast(1), default=64, help="images in a jump")
    parser.add_argument("--shape", type=AtLeast(1), nargs=3, default=[3, 32, 32], help="channels, height, width")
    parser.add_argument("--preset", default="cifar10", help="network, a preset of configs/edm.py")
    parser.add_argument("--images", type=AtLeast(1), default=2, help="images of a network evaluation")
    parser.add_argument("--rounds", type=AtLeast(1), default=15, help="of which the median counts")
    parser.add_argument("--evaluations", type=AtLeast(1), default=3, help="rounds that have a network evaluation too")
    parser.add_argument("--threads", type=AtLeast(1), default=2, help="of a CPU")
    parser.add_argument("--out", type=Path, help="JSON with all that was measured (default: none is written)")
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    device = experiment.choose_device(args.device)
    form = make_gaussian(math.prod(args.shape))
    x = LEVELS[0] * experiment.sample_noise("jump", range(args.batch), args.shape).to(device)
    work = {**parts(form, x), "evaluation": evaluation(args.preset, args.shape, args.images, device)}
    seconds = measure(work, args.rounds, args.evaluations, device)
    seconds["evaluation"] = [taken * args.batch / args.images for taken in seconds["evaluation"]]
    found = {name: float(np.median(taken)) for name, taken in seconds.items()}
    found["bound"] = max(found["bytes"], found["products"])
    report(args, form, found)
    if args.out:
        given = {"batch": args.batch, "shape": args.shape, "preset": args.preset, "images": args.images}
        arrays.write_json(args.out, given | {"environment": experiment.environment(), "seconds": seconds} | found)
    return 0


def make_gaussian(dimension: int) -> Gaussian:
    """One of full rank, with variances that fall as those of photographs do."""
    random = experiment.generator("jump", dimension)
    basis = torch.linalg.qr(torch.randn(dimension, dimension, generator=random))[0]
    return Gaussian(torch.zeros(dimension), basis, 200 / torch.arange(1, dimension + 1, dtype=torch.float64) ** 1.5)


def parts(form: Gaussian, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The jump and its lower bounds."""
    basis, rows = form.U.to(x), x.flatten(1)
    copies, along, result = torch.empty_like(basis), torch.empty_like(rows), torch.empty_like(rows)
    return {
        "jump": lambda: form.teleport(x, *LEVELS),
        "bytes": lambda: (copies.copy_(basis), result.copy_(rows)),
        "products": lambda: (torch.mm(rows, basis, out=along), torch.mm(along, basis.T, out=result)),
    }


def evaluation(preset: str, shape: Sequence[int], images: int, device: torch.device) -> Callable[[], object]:
    """One call of an untrained network's denoiser; says how large it is."""
    config = experiment.flatten(experiment.load_config(f"{ROOT / 'configs' / 'edm.py'}:{preset}"))
    model = checkpoint.build(footprint.describe(config, shape)).eval().to(device)
    count = sum(weight.numel() for weight in model.net.parameters())
    print(f"network: {preset} of configs/edm.py, {count / 1e6:.1f} M parameters, on {images} images at once")
    x = torch.randn(images, *shape, device=device)
    return lambda: model.denoise(x, torch.tensor(LEVELS[1], device=device))


@torch.no_grad()
def measure(
    work: dict[str, Callable[[], object]], rounds: int, evaluations: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each round of each; the first of all is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(-1, rounds):
        for name, run in work.items():
            if name == "evaluation" and number >= evaluations:
                continue
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(args: Any, form: Gaussian, found: dict[str, float]) -> None:
    """Times, and the jump as multiples of them."""
    print(f"jump of {args.batch} images, D = {form.dimension}, rank {form.rank}, float32, {args.threads} thread(s)")
    for name in ("jump", "bytes", "products", "evaluation"):
        ratio = f"   the jump is {found['jump'] / found[name]:.3g} times this" if name != "jump" else ""
        print(f"  {name:12}{1000 * found[name]:10.3g} ms{ratio}")
    which = "products" if found["bound"] == found["products"] else "bytes"
    for name, what in (("bound", f"the bound here ({which})"), ("evaluation", "one evaluation")):
        ratio, limit = found["jump"] / found[name], LIMITS[name]
        said = "within" if ratio <= limit else "NOT within"
        shown = f"{ratio:.2%}" if limit < 1 else f"{ratio:.2f}x"
        print(f"  {shown} of {what}: {said} {f'{limit:.1%}' if limit < 1 else f'{limit:.0f}x'}")


if __name__ == "__main__":
    experiment.launch(main)
