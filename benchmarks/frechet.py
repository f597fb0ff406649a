"""How fast is the Frechet distance beside the general matrix root, and do the two agree? Both in one run, in float64.

The formula as published takes scipy.linalg.sqrtm of the product of two covariances; here they are factored. Features are
drawn with a spectrum that falls over --decades powers of ten. Below it the same distance of fewer rows than features,
straight from the rows and by their covariances: singular, which sqrtm was not made for.

  OMP_NUM_THREADS=1 python benchmarks/frechet.py

Expected: about a minute and a half on one thread.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg
import torch

from diffusion_model import experiment, fid
from diffusion_model.experiment import AtLeast


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="frechet.py")
    parser.add_argument("--dimension", type=AtLeast(2), default=2048, help="number of features")
    parser.add_argument("--rows", type=AtLeast(2), default=6000, help="rows of each set")
    parser.add_argument("--few", type=AtLeast(2), default=1000, help="rows of each small set")
    parser.add_argument("--decades", type=float, default=4.0, help="of the variances, from the largest to the least")
    parser.add_argument("--rounds", type=AtLeast(1), default=2, help="of which the fastest counts")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    sets = [draw(seed, args.rows, args.dimension, args.decades) for seed in range(2)]
    moments = [(rows.mean(0), torch.cov(rows.T)) for rows in sets]
    published, slow = best(lambda: with_sqrtm(*moments[0], *moments[1]), args.rounds)
    found, fast = best(lambda: fid.frechet_distance(*moments[0], *moments[1]), args.rounds)
    print(f"{args.dimension} features, {torch.get_num_threads()} thread(s), {args.rows} rows of each set")
    print(f"  scipy.linalg.sqrtm   {slow:8.2f} s   {published:.12g}")
    print(f"  factors              {fast:8.2f} s   {found:.12g}")
    print(f"  ratio {slow / fast:.1f}, relative difference {abs(found / published - 1):.1e}")
    few = [rows[: args.few] for rows in sets]
    moments = [(rows.mean(0), torch.cov(rows.T)) for rows in few]
    dense, slow = best(lambda: fid.frechet_distance(*moments[0], *moments[1]), args.rounds)
    found, fast = best(lambda: fid.distance(*map(fid.Normal.from_rows, few)), args.rounds)
    print(f"{args.few} rows of each set")
    print(f"  of covariances       {slow:8.2f} s   {dense:.12g}")
    print(f"  of rows              {fast:8.2f} s   {found:.12g}")
    print(f"  ratio {slow / fast:.1f}, relative difference {abs(found / dense - 1):.1e}")
    return 0


def draw(seed: int, rows: int, dimension: int, decades: float) -> torch.Tensor:
    """Normal rows [N, D] in a random basis, with variances even in the logarithm."""
    random = experiment.generator("frechet", seed)
    basis = torch.linalg.qr(torch.randn(dimension, dimension, generator=random, dtype=torch.float64))[0]
    scales = torch.logspace(0, -decades / 2, dimension, dtype=torch.float64)
    return 0.1 * seed + (torch.randn(rows, dimension, generator=random, dtype=torch.float64) * scales) @ basis


def with_sqrtm(mean1: torch.Tensor, covariance1: torch.Tensor, mean2: torch.Tensor, covariance2: torch.Tensor) -> float:
    """The distance as pytorch-fid computes it where the product of the covariances is not singular."""
    root = scipy.linalg.sqrtm(covariance1.numpy() @ covariance2.numpy())
    apart = float((mean1 - mean2).square().sum())
    return apart + float(covariance1.trace() + covariance2.trace()) - 2 * float(np.trace(root).real)


def best(compute: Callable[[], float], rounds: int) -> tuple[float, float]:
    """The value, and the least of the seconds that the rounds took."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        value = compute()
        seconds.append(time.perf_counter() - start)
    return value, min(seconds)


if __name__ == "__main__":
    experiment.launch(main)
