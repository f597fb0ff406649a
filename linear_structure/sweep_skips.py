"""How many solver steps can the Gaussian jump replace? The distance to the data against the number of steps skipped.

RUN is a run of mode none and PARAMS the folder of get_parameters.py. For each number K of skipped steps the same start
noise is taken from the first to the K-th level of the solver's own grid in one closed-form jump, and the solver does the
rest. Kinds of jump: gaussian, isotropic (mean and variance), mean (mean only). One cell a (kind, K) goes to
RUN/sweeps/NAME/; the same command again fills what is missing. Beside them lies the distance of as many real images.

  python linear_structure/sweep_skips.py runs/edm-synthetic16 gaussian_params --features classifier --n 1000
  python linear_structure/process_experiments_with_skips.py runs/edm-synthetic16

Under torchrun the first rank makes the plain solver's cell, then all share the others.
Then process_experiments_with_skips.py makes the figure and recommends a number of steps.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, data, experiment, features, ranks, results
from diffusion_model.data import Scaling
from diffusion_model.experiment import AtLeast
from diffusion_model.moments import Moments
from diffusion_model.samplers import SAMPLERS, Denoiser, edm_levels, evaluations
from linear_structure import inputs
from linear_structure.gaussian import Gaussian
from linear_structure.intervals import distance

KINDS = ("gaussian", "isotropic", "mean")
SHOWN = 16  # samples kept as images in each cell


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="sweep_skips.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run of mode none")
    parser.add_argument("params", metavar="PARAMS", type=Path, nargs="?", default=inputs.PARAMS, help="its statistics")
    parser.add_argument("--name", default="default", help="the sweep's folder in RUN/sweeps")
    parser.add_argument(
        "--skips", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12], help="numbers of skipped steps"
    )
    parser.add_argument("--kinds", nargs="+", default=["gaussian", "isotropic"], choices=KINDS, help="kinds of jump")
    parser.add_argument("--other-skips", type=int, nargs="+", help="skips of all kinds but gaussian (default: --skips)")
    parser.add_argument("--sampler", default="heun", choices=tuple(SAMPLERS), help="solver")
    parser.add_argument("--steps", type=AtLeast(2), default=18, help="solver steps")
    parser.add_argument("--level-min", type=float, help="last level above 0 (default: the run's)")
    parser.add_argument("--level-max", type=float, help="first level (default: the run's)")
    parser.add_argument("--n", type=AtLeast(4), default=1000, help="samples in each cell; 50000 for a FID to be cited")
    parser.add_argument("--seed-base", type=int, default=0, help="seed of the first sample, the next has the next")
    parser.add_argument(
        "--features", default="inception", choices=tuple(features.FEATURES), help="feature space of the distance"
    )
    parser.add_argument("--weights", type=Path, help="file of pytorch-fid's Inception weights (default: downloaded)")
    parser.add_argument("--batch", type=AtLeast(1), default=250, help="samples at once")
    parser.add_argument("--step", type=int, help="checkpoint (default: the newest)")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: $DATA, else data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    cells = plan(args.kinds, args.skips, args.skips if args.other_skips is None else args.other_skips, args.steps)
    with ranks.session(experiment.choose_device(args.device)) as device:
        return sweep(args, cells, device)


def sweep(args: Any, cells: list[tuple[str, int]], device: torch.device) -> int:
    """Open what the cells need, and make those that are missing."""
    folder, root = inputs.sweep_folder(args.run, args.name), data.root(args.data)
    given = inputs.open_inputs(args.run, args.params, root, args.step, device)
    train = given.split("train")
    extractor = features.open_extractor(args.features, train, root, args.weights, device)
    low, high = level_range(given, args.level_min, args.level_max)
    levels = edm_levels(args.steps, low, high)
    protocol = given.protocol | {
        "sampler": args.sampler, "steps": args.steps, "level_min": low, "level_max": high, "n": args.n,
        "seed_base": args.seed_base, "features": args.features, "weights": extractor.fingerprint,
        "distance": extractor.distance, "reference": f"all {len(train)} training images",
    }  # fmt: skip
    reference = ranks.first_makes(lambda: features.reference(extractor, train, root))
    if ranks.first() and not arrays.is_finished(folder / "reference"):
        reference.moments.save(folder / "reference")
    if args.n <= extractor.dimension and ranks.first():
        print(
            f"{args.n} samples for {extractor.dimension} features: these distances are large by bias and to be compared "
            "with each other only",
            file=sys.stderr,
        )
    made = Sweep(folder, protocol, levels, range(args.seed_base, args.seed_base + args.n), args.batch, reference)
    failed = made.run(cells, given.model.denoise, given.forms, given.model.scaling, extractor, device)
    if not ranks.first():
        return 0  # the first rank tells all that failed
    made.floor(given.split("test"), extractor)
    done = len(results.read_cells(folder))
    print(f"{folder}: {done} cells finished" + (f", {len(failed)} failed: {failed[0]}" if failed else ""))
    return 1 if failed else 0


def plan(kinds: Sequence[str], skips: Sequence[int], other: Sequence[int], steps: int) -> list[tuple[str, int]]:
    """The cells (kind, skip), the plain solver first; more skips than the solver has steps are refused."""
    for skip in (*skips, *other):
        if not 0 <= skip <= steps - 1:
            raise experiment.UsageError(f"--skips {skip}: a solver of {steps} steps can skip from 0 to {steps - 1}")
    cells = [("none", 0)]
    for kind in sorted(set(kinds), key=KINDS.index):
        cells += [(kind, skip) for skip in sorted(set(skips if kind == "gaussian" else other) - {0})]
    return cells


def level_range(given: inputs.Inputs, low: float | None, high: float | None) -> tuple[float, float]:
    """The solver's levels in model space: those given, else those of the run's noise process."""
    ends = given.model.sde.level_range()
    return (ends[0] if low is None else low, ends[1] if high is None else high)


def draw(
    denoise: Denoiser,
    jump: Gaussian | None,
    sampler: str,
    levels: torch.Tensor,
    skip: int,
    seeds: Sequence[int],
    shape: Sequence[int],
    batch: int,
    device: torch.device | str = "cpu",
) -> Iterator[torch.Tensor]:
    """Batches of samples [B, *shape] in model space: the jump over `skip` steps, then the solver; row i belongs to seed i."""
    for start in range(0, len(seeds), batch):
        x = levels[0].float() * experiment.sample_noise("start", seeds[start : start + batch], shape).to(device)
        if skip:
            x = jump.teleport(x, levels[0], levels[skip])
        *_, x = SAMPLERS[sampler][0](denoise, x, levels[skip:])
        if not torch.isfinite(x).all():
            raise FloatingPointError(f"the solver left the finite numbers for seeds from {seeds[start]}")
        yield x


class Sweep:
    """The cells of one sweep in `folder`: made if missing, measured against the plain solver and the reference."""

    def __init__(
        self,
        folder: Path,
        protocol: dict[str, Any],
        levels: torch.Tensor,
        seeds: Sequence[int],
        batch: int,
        reference: features.Reference,
    ) -> None:
        self.folder, self.protocol, self.levels = Path(folder), protocol, levels
        self.seeds, self.batch, self.reference = seeds, batch, reference

    def run(
        self,
        cells: list[tuple[str, int]],
        denoise: Denoiser,
        forms: dict[str, Gaussian],
        scaling: Scaling,
        extractor: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device | str = "cpu",
    ) -> list[str]:
        """Fill the missing cells with any denoiser and its closed forms; returns the sentences of those that failed.

        The plain solver's cell comes first, for every other is measured against it; ranks share the others.
        """
        missing = [tuple(cell) for cell in ranks.from_first([cell for cell in cells if not self.is_there(*cell)])]
        each = [evaluations(self.protocol["sampler"], self.levels[skip:]) for _, skip in missing]
        work = sum(each) * len(self.seeds)
        if missing and ranks.first():
            print(f"{self.folder}: {len(missing)} of {len(cells)} cells to make, {work:,} evaluations", file=sys.stderr)

        def attempt(kind: str, skip: int) -> list[str]:
            try:
                self.make(kind, skip, denoise, forms.get(kind), scaling, extractor, device)
            except (ValueError, RuntimeError, FloatingPointError) as error:
                results.write_cell(self.folder, {"kind": kind, "skip": skip}, {"error": str(error)}, self.protocol)
                return [f"kind {kind}, skip {skip}: {error}"]
            return []

        if ("none", 0) in missing:
            missing.remove(("none", 0))
            failed = ranks.from_first(attempt("none", 0) if ranks.first() else [])
            if failed:
                return failed
        failed = []
        for kind, skip in experiment.progress(ranks.deal(missing), "sweep", "cell"):
            failed += attempt(kind, skip)
        return [sentence for of_rank in ranks.collect(failed) for sentence in of_rank]

    def is_there(self, kind: str, skip: int) -> bool:
        """Whether a cell is finished, with its features."""
        cell = results.finished(self.folder, {"kind": kind, "skip": skip}, self.protocol)
        return cell is not None and arrays.is_finished(self.beside(kind, skip))

    def beside(self, kind: str, skip: int) -> Path:
        """The folder of a cell's arrays, beside its JSON."""
        return results.cell_path(self.folder, kind=kind, skip=skip).with_suffix("")

    def make(
        self,
        kind: str,
        skip: int,
        denoise: Denoiser,
        jump: Gaussian | None,
        scaling: Scaling,
        extractor: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device | str,
    ) -> None:
        """Sample, extract and measure one cell."""
        start, seconds = time.monotonic(), 0.0
        shape, sampler = self.protocol["shape"], self.protocol["sampler"]
        codes, images, drifts, states = [], [], [], []
        plain = None if kind == "none" else arrays.read_folder(self.beside("none", 0), "sweep cell")[0]["states"]
        done = 0
        for x in draw(denoise, jump, sampler, self.levels, skip, self.seeds, shape, self.batch, device):
            seconds += time.monotonic() - start
            pixels = scaling.to_pixels(x)
            codes.append(extractor(pixels).numpy())
            if done < SHOWN:
                images.append(pixels.cpu().numpy())
            x = x.cpu()
            if plain is None:
                states.append(x.numpy())
            else:
                drifts.append((x - torch.from_numpy(np.array(plain[done : done + len(x)]))).flatten(1).norm(dim=1))
            done += len(x)
            start = time.monotonic()
        content = {"features": np.concatenate(codes), "images": np.concatenate(images)[:SHOWN]}
        if plain is None:
            content["states"] = np.concatenate(states)
        arrays.write_folder(self.beside(kind, skip), "sweep cell", content, key={"kind": kind, "skip": skip})
        value = {
            "distance": self.distance(content["features"]),
            "level": float(self.levels[skip]),
            "evaluations": evaluations(sampler, self.levels[skip:]),
            "drift": float(torch.cat(drifts).mean()) if drifts else 0.0,
            "seconds": round(seconds, 3),
        }
        results.write_cell(self.folder, {"kind": kind, "skip": skip}, value, self.protocol)

    def distance(self, codes: np.ndarray) -> float:
        """Distance of features [N, F] to the reference."""
        return distance(Moments(codes.shape[1]).update(codes), self.reference)

    def floor(self, test: data.Split, extractor: features.Extractor) -> None:
        """The distance of as many real images, from the test split, by a fixed draw; a sentence where it has too few."""
        count = len(self.seeds)
        key = {"kind": "real", "skip": 0}
        protocol = self.protocol | {
            "images": f"{count} of {len(test)} test images, drawn by a fixed seed",
            "test": test.hash,
        }
        if len(test) < count:
            print(f"no real-against-real floor: {count} samples, but only {len(test)} test images", file=sys.stderr)
            return
        if results.finished(self.folder, key, protocol) and arrays.is_finished(self.beside(**key)):
            return
        order = torch.randperm(len(test), generator=experiment.generator("floor", self.protocol["seed_base"]))
        rows = order[:count].numpy()
        codes = features.extract(extractor, test.images[rows], "real images")
        content = {"features": codes, "images": np.asarray(test.images[rows[:SHOWN]])}
        arrays.write_folder(self.beside(**key), "sweep cell", content, key=key)
        results.write_cell(self.folder, key, {"distance": self.distance(codes)}, protocol)


if __name__ == "__main__":
    experiment.launch(main)
