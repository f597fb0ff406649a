"""Mean, covariance and eigenvectors of images, beside the way of the original, in the same run.

The images are made on the spot: --n of 3 x 32 x 32 pixels whose power falls with the square of the frequency, as that of
photographs does, in channels that are correlated. Each way is a process of its own that reads them from one .npy:

  ours      the images streamed as they are, exact sums, the decomposition in float64 (get_parameters.py)
  original  a data set of PIL images, ToTensor and Normalize in a loader, batches stacked in memory, torch.cov and the
            singular values of the covariance, all in float32

and tells its time, the most memory it held (on Linux; with and without what Python and torch take before it begins) and
its eigenvalues, whose error is against float64 on everything, relative to the largest. The rounds alternate between the
ways; CPU time is told too, as wall time means little on a machine that others use.

    python benchmarks/statistics_of_images.py
    python benchmarks/statistics_of_images.py --n 5000 --rounds 1
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from original_statistics import tell

from diffusion_model import arrays, experiment, moments
from diffusion_model.data import Split
from diffusion_model.experiment import ROOT, AtLeast
from linear_structure.gaussian import UNIT, Gaussian

SHAPE = (3, 32, 32)
WAYS = ("original", "ours")
MIXING = ((1.0, 0.0, 0.0), (0.9, 0.3, 0.0), (0.8, 0.35, 0.3))  # of independent fields into red, green and blue


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="statistics_of_images.py")
    parser.add_argument("--n", type=AtLeast(2), default=50_000, help="images")
    parser.add_argument("--rounds", type=AtLeast(1), default=3, help="times that each way is run")
    parser.add_argument("--threads", type=AtLeast(1), default=2, help="of a CPU")
    parser.add_argument("--out", type=Path, help="JSON with all that was measured (default: none is written)")
    parser.add_argument(
        "--worker", metavar="FILE", type=Path, help="used by the command itself: be ours and tell it here"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.worker:
        tell(ours, args.worker)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays.write_array(folder / "images.npy", make_images(args.n))
        exact = exact_eigenvalues(np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False))
        load = os.getloadavg()[0]
        rounds = [{way: measure(way, folder, args) for way in WAYS} for _ in range(args.rounds)]
    report(args, rounds, exact, load)
    return 0


def make_images(count: int) -> np.ndarray:
    """uint8 images [count, 3, 32, 32] with a spectrum like that of photographs."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.rfftfreq(32)) * 32
    amplitude = 1 / np.maximum(frequency, 0.7)
    images = np.empty((count, *SHAPE), np.uint8)
    for start in range(0, count, 1000):
        rows = slice(start, min(start + 1000, count))
        noise = random.standard_normal((rows.stop - start, *SHAPE), np.float32)
        fields = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, (32, 32))
        fields = np.einsum("cd,ndhw->nchw", np.array(MIXING), fields)
        images[rows] = (120 + 60 * fields / fields.std()).round().clip(0, 255)
    return images


def exact_eigenvalues(images: np.ndarray) -> np.ndarray:
    """Eigenvalues of the covariance on [-1, 1], everything in float64, decreasing."""
    total = second = 0.0
    for start in range(0, len(images), 2000):
        rows = torch.from_numpy(np.array(images[start : start + 2000])).flatten(1).double() / 127.5 - 1
        total, second = total + rows.sum(0), second + rows.T @ rows
    covariance = (second - torch.outer(total, total) / len(images)) / (len(images) - 1)
    return torch.linalg.eigvalsh(covariance).flip(0).numpy()


def measure(way: str, folder: Path, args: Any) -> dict[str, Any]:
    """One process of one way: seconds, bytes, eigenvalues."""
    out = str(folder / f"{way}.json")
    own = [__file__, "--worker", out, "--threads", str(args.threads)]
    other = [str(Path(__file__).with_name("original_statistics.py")), out, str(args.threads)]
    command = [sys.executable, *(own if way == "ours" else other)]
    threads = {name: str(args.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, env=os.environ | threads | {"PYTHONPATH": path})
    found = arrays.read_json(folder / f"{way}.json")
    print(f"{way}: {found['seconds']:.1f} s ({', '.join(f'{n} {s:.1f}' for n, s in found['parts'].items())}), "
          f"{found['whole'] / 1e6:.0f} MB", flush=True)  # fmt: skip
    return found


def ours(path: Path) -> tuple[torch.Tensor, dict[str, float]]:
    """As get_parameters.py does it."""
    start = time.perf_counter()
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    split = Split("made", "train", images, np.zeros((len(images), 0)), {}, "", {})
    held = moments.of_images(split)
    middle = time.perf_counter()
    found = Gaussian.fit(held, spend=True)
    return found.lambdas / UNIT, {"moments": middle - start, "decomposition": time.perf_counter() - middle}


def report(args: Any, rounds: list[dict[str, Any]], exact: np.ndarray, load: float) -> None:
    """Ratios of each round, their median, and the errors."""
    ratios = {name: [entry["original"][name] / entry["ours"][name] for entry in rounds]
              for name in ("seconds", "cpu", "bytes", "whole")}  # fmt: skip
    errors = {way: error(np.array(rounds[0][way]["values"]), exact) for way in WAYS}
    said = {"seconds": "times faster", "cpu": "times less CPU time", "bytes": "times less memory, Python and torch left out",
            "whole": "times less memory in all"}  # fmt: skip
    print(f"{args.n:,} images, {args.threads} threads, load {load:.1f} on {os.cpu_count()} cores")
    for name, found in ratios.items():
        print(f"{np.median(found):.2f} {said[name]} (rounds {', '.join(f'{value:.2f}' for value in found)})")
    for way, value in errors.items():
        print(f"{way}: eigenvalues within {value:.1e} of the largest")
    if args.out:
        for entry in rounds:
            for way in WAYS:
                entry[way].pop("values")
        content = {"n": args.n, "threads": args.threads, "load": load, "ratios": ratios, "errors": errors}
        arrays.write_json(args.out, content | {"rounds": rounds})


def error(values: np.ndarray, exact: np.ndarray) -> float:
    """The largest error of an eigenvalue in units of the largest; what was dropped counts as 0."""
    whole = np.zeros_like(exact)
    whole[: len(values)] = values
    return float(np.abs(whole - exact).max() / exact[0])


if __name__ == "__main__":
    experiment.launch(main)
