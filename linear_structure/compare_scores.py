"""How much of the neural score is explained by closed forms? Every measure over noise levels, directions and checkpoints.

RUN is a run of mode none and PARAMS the folder of get_parameters.py. At each level the network and every closed form denoise
the same states; measures.py says what is then measured: relative error of the score, cosine between scores, explained
variance of the denoiser, plain and centred, and the network's gain along each eigenvector of PARAMS. The score's relative
error is almost bound to fall at high noise, where any score points back to the data: the denoiser's explained variance,
without the common -x / level^2, is the stricter companion.

The closed forms are the mean alone, the isotropic Gaussian (mean and variance) and the Gaussian of PARAMS; --also adds
other parameter folders (mixtures; a class-conditional Gaussian as the mixture of its classes and, on noised images, also
at the labels of the images; Gaussians of lower rank), --diagonal Gaussians of independent pixels and of independent
frequencies, --delta the training images as points, which takes a pass over them all for every batch.

  --points noised      images of --split, each with its own fixed noise (default)
  --points trajectory  the states of the network's own probability flow, by Heun on EDM's grid, from a noise a seed

One cell a closed form, level, checkpoint and kind of points goes to RUN/scores/; the same command again, or one with more
closed forms, levels or --steps, fills what is missing. (Of trajectories one checkpoint is made at a time.)

  python linear_structure/compare_scores.py runs/edm-synthetic16 gaussian_params
  python linear_structure/compare_scores.py runs/edm-cifar10 gaussian_params --also mixture_params class_params --delta
  python linear_structure/compare_scores.py runs/edm-cifar10 gaussian_params --points trajectory
  python linear_structure/compare_scores.py runs/edm-cifar10 gaussian_params --delta --steps all --at-levels 0.2 1 5
  python linear_structure/plot_scores.py runs/edm-cifar10
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import checkpoint, data, experiment, results
from diffusion_model.experiment import AtLeast
from diffusion_model.samplers import Denoiser, heun, make_levels
from diffusion_model.score_model import ScoreModel
from linear_structure import cells, closed_forms, inputs
from linear_structure.closed_forms import Named
from linear_structure.measures import Comparison, Directions
from linear_structure.mixture import ClassConditional

POINTS = ("noised", "trajectory")
KIND = "score comparison"
SHOWN = 6  # images kept as pictures in each cell
Found = dict[str, torch.Tensor]


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="compare_scores.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run of mode none")
    parser.add_argument("params", metavar="PARAMS", type=Path, nargs="?", default=inputs.PARAMS, help="its statistics")
    closed_forms.add_options(parser)
    parser.add_argument(
        "--diagonal", action="store_true", help="add Gaussians of independent pixels and of independent frequencies"
    )
    parser.add_argument("--points", default="noised", choices=POINTS, help="the states at which scores are compared")
    parser.add_argument(
        "--n", type=AtLeast(2), help="images or seeds, drawn by a fixed seed (default: 512, or all images there are)"
    )
    parser.add_argument("--split", default="test", choices=data.SPLITS, help="of noised images: which")
    parser.add_argument(
        "--levels", type=AtLeast(2, most=1000), default=16, help="number of levels, even in the logarithm"
    )
    parser.add_argument("--level-min", type=float, default=0.02, help="lowest level, in model space")
    parser.add_argument("--level-max", type=float, help="highest level (default: the highest the run was made for)")
    parser.add_argument(
        "--at-levels", metavar="L", type=float, nargs="+", help="these levels in place of --levels, --level-min, -max"
    )
    parser.add_argument(
        "--solver-steps", type=AtLeast(2, most=10_000), default=18, help="of trajectories: Heun's steps"
    )
    parser.add_argument("--batch", type=AtLeast(1), default=256, help="images at once")
    parser.add_argument("--steps", metavar="STEP", nargs="+", help="checkpoints, or all (default: the newest)")
    parser.add_process()
    parser.add_data()
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    device = experiment.choose_device(args.device)
    steps = choose_steps(args.run, args.steps)
    given = inputs.open_inputs(args.run, args.params, data.root(args.data), steps[-1], device, args.process)
    steps = steps if steps != [None] else [given.model.step]
    levels = choose_levels(args, given.model)
    noised = args.points == "noised"
    forms = closed_forms.gather(given, args.also, args.delta, args.diagonal, labelled=noised)
    study = Study(args, given, steps, levels, forms)
    (compare_noised if noised else compare_trajectories)(study)
    total, failed = len(steps) * len(levels), study.failed
    print(
        f"{study.folder}: {args.points} points, {total - len(failed)} of {total} levels finished, "
        f"{len(forms)} closed forms at each" + (f", failed: {failed[0]}" if failed else "")
    )
    return 1 if failed else 0


def choose_steps(run: Path, given: Sequence[str] | None) -> list[int | None]:
    """Checkpoints, ascending: those given, all there are, or None for the newest."""
    if given is None:
        return [None]
    stored = checkpoint.steps(run)
    if list(given) == ["all"]:
        if not stored:
            raise FileNotFoundError(f"--steps all: {run} has no checkpoints; leave it out for the weights it has")
        return list(stored)
    if not all(text.isdigit() for text in given):
        raise experiment.UsageError(f"--steps {' '.join(given)}: expected all, or numbers of checkpoints")
    wanted = sorted({int(text) for text in given})
    absent = [step for step in wanted if step not in stored]
    if absent:
        raise FileNotFoundError(f"--steps {absent[0]}: {run} has no such checkpoint (stored: {stored})")
    return list(wanted)


def choose_levels(args: Any, model: ScoreModel) -> list[float]:
    """The levels, ascending: those asked for, or those of the solver's grid that lie above 0."""
    if args.points == "trajectory":
        if args.at_levels:
            raise experiment.UsageError("--at-levels: a trajectory has its solver's levels; give --solver-steps")
        return sorted(rounded(level) for level in make_levels("edm", model.sde, args.solver_steps).tolist() if level)
    if args.at_levels:
        if min(args.at_levels) <= 0:
            raise experiment.UsageError(f"--at-levels {min(args.at_levels):g}: expected levels above 0")
        inputs.check_levels(args.at_levels, model, "--at-levels")
        return sorted({rounded(level) for level in args.at_levels})
    high = model.sde.level_range()[1] if args.level_max is None else args.level_max
    if not 0 < args.level_min < high:
        raise experiment.UsageError(
            f"--level-min {args.level_min} and highest level {high}: expected 0 < lowest < highest"
        )
    inputs.check_levels([high], model, "--level-max")
    inputs.check_levels([args.level_min], model, "--level-min")
    return [rounded(level) for level in np.geomspace(args.level_min, high, args.levels)]


def rounded(level: float) -> float:
    """A level as cells name it."""
    return float(f"{level:.6g}")


class Study:
    """The cells of one kind of points: where they lie, of which checkpoints, levels and closed forms."""

    def __init__(
        self, args: Any, given: inputs.Inputs, steps: list[int], levels: list[float], forms: dict[str, Named]
    ) -> None:
        self.args, self.given, self.steps, self.levels, self.forms = args, given, steps, levels, forms
        self.folder, self.points = args.run / "scores", args.points
        self.directions = Directions(given.forms["gaussian"])
        self.protocol = {name: value for name, value in given.protocol.items() if name != "step"}
        self.failed: list[str] = []

    def key(self, step: int, name: str, level: float) -> dict[str, Any]:
        """What names a cell on disk."""
        return {"points": self.points, "step": step, "form": name, "level": level}

    def protocol_of(self, name: str) -> dict[str, Any]:
        """What decides the cells of one closed form, beside their key."""
        return {**self.protocol, "form": self.forms[name].origin}

    def model(self, step: int) -> ScoreModel:
        """The model of a checkpoint."""
        held, device, process = self.given.model, self.given.device, self.args.process
        if step == held.step:
            return held
        return checkpoint.load_score_model(self.args.run, step, device=device, process=process)

    def missing(self) -> dict[tuple[float, int], list[str]]:
        """Names of the closed forms whose cells are to be made, by level and checkpoint.

        Cells of other images or data are refused wherever they lie among these points: they make one table.
        """
        first = next(iter(sorted((self.folder / f"points={self.points}").rglob("level=*.json"))), None)
        cell = None if first is None else results.read_cell(first)
        if cell is not None and not cell.failed:
            results.finished(self.folder, cell.key, {**self.protocol, "form": cell.protocol.get("form")})
        found: dict[tuple[float, int], list[str]] = {}
        for level, step, name in itertools.product(self.levels, self.steps, self.forms):
            if cells.find(self.folder, self.key(step, name, level), self.protocol_of(name), KIND) is None:
                found.setdefault((level, step), []).append(name)
        return found

    def write(self, step: int, level: float, collected: "Collected", names: Iterable[str]) -> None:
        """Write the cells of one level of one checkpoint."""
        values = collected.comparison.results()
        for name in names:
            key, value = self.key(step, name, level), {"label": self.forms[name].label, **values[name]}
            cells.write(self.folder, key, self.protocol_of(name), KIND, value, collected.arrays(name))

    def fail(self, step: int, level: float, names: Iterable[str], error: Exception) -> None:
        """Write what went wrong in place of the cells, which are then tried again by the next command."""
        self.failed.append(f"level {level:g} of step {step}: {error}")
        for name in names:
            results.write_cell(self.folder, self.key(step, name, level), {"error": str(error)}, self.protocol_of(name))


class Collected:
    """What is measured at one level of one checkpoint, and pictures of the first images."""

    def __init__(self, directions: Directions, scaling: data.Scaling) -> None:
        self.comparison, self.scaling = Comparison(directions.gaussian.mu, directions), scaling
        self._pictures: dict[str, np.ndarray] = {}

    def add(self, x: torch.Tensor, neural: torch.Tensor, found: Found) -> None:
        """Add a batch: states, the network's denoised images and each closed form's, all [B, C, H, W]."""
        self.comparison.update(x, neural, found)
        if not self._pictures:
            shown = {".noised": x, ".neural": neural, **found}
            self._pictures = {
                name: self.scaling.to_pixels(value[:SHOWN]).cpu().numpy() for name, value in shown.items()
            }

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """What lies beside a cell: its denoised images and, beside that of "gaussian", all that no closed form decides."""
        held = {"denoised": self._pictures[name]}
        if name == "gaussian":
            held |= {
                "noised": self._pictures[".noised"],
                "neural": self._pictures[".neural"],
                **self.comparison.gains(),
            }
        return held


def compare_noised(study: Study) -> None:
    """Fill the missing cells of noised images: at each level all closed forms once, then every checkpoint."""
    args, given = study.args, study.given
    split = given.split(args.split)
    n = min(512, len(split)) if args.n is None else args.n
    if n > len(split):
        raise ValueError(f"--n {n}: {split.name}/{split.split} has {len(split)} images")
    study.protocol |= {"split": split.split, "images": split.hash, "n": n, "noise": "fixed an image"}
    missing = study.missing()
    rows = torch.randperm(len(split), generator=experiment.generator("scores"))[:n].numpy()
    say_cost(study, missing, n)
    for level, group in itertools.groupby(experiment.progress(missing, "scores", "level"), key=lambda pair: pair[0]):
        steps = [step for _, step in group]
        names = [name for name in study.forms if any(name in missing[level, step] for step in steps)]
        forms = {name: study.forms[name].form for name in names}
        batches = noised(forms, split, rows, given.model.scaling, level, args.batch, given.device)
        if len(steps) > 1:
            batches = list(batches)
        for step in steps:
            try:
                collected = Collected(study.directions, given.model.scaling)
                compare(study.model(step).denoise, batches, level, collected)
                study.write(step, level, collected, missing[level, step])
            except cells.ERRORS as error:
                study.fail(step, level, missing[level, step], error)


@torch.no_grad()
def noised(
    forms: Mapping[str, Any],
    split: data.Split,
    rows: Sequence[int],
    scaling: data.Scaling,
    level: float,
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[torch.Tensor, Found]]:
    """Images of a split with noise of this level, and what the closed forms make of them; the noise belongs to the row."""
    for start in range(0, len(rows), batch):
        chosen = [int(row) for row in rows[start : start + batch]]
        x0 = scaling.to_model(torch.from_numpy(np.array(split.images[chosen])).to(device))
        x = x0 + level * experiment.sample_noise("scores", chosen, x0.shape[1:]).to(device)
        found = {}
        for name, form in forms.items():
            if isinstance(form, ClassConditional):
                labels = split.label(form.mixture.meta["attribute"])[chosen]
                form = form.given(torch.from_numpy(np.array(labels)))
            found[name] = form.denoise(x, torch.tensor(level, device=device))
        yield x, found


@torch.no_grad()
def compare(
    denoise: Denoiser, batches: Iterable[tuple[torch.Tensor, Found]], level: float, collected: Collected
) -> None:
    """Collect the measures of closed forms against any denoiser at one level."""
    for x, found in batches:
        # one level, rounded alike, for the network and the closed forms
        collected.add(x, denoise(x, torch.tensor(level, device=x.device)), found)


def compare_trajectories(study: Study) -> None:
    """Fill the missing cells of trajectories, one checkpoint at a time."""
    args, given = study.args, study.given
    n = 512 if args.n is None else args.n
    study.protocol |= {"solver": "heun", "grid": "edm", "solver_steps": args.solver_steps, "n": n}
    study.protocol |= {"noise": "one a seed"}
    missing = study.missing()
    say_cost(study, missing, n)
    for step in experiment.progress(sorted({step for _, step in missing}), "trajectories", "checkpoint"):
        names = {level: missing[level, step] for level in study.levels if (level, step) in missing}
        try:
            model = study.model(step)
            wanted = [name for name in study.forms if any(name in entry for entry in names.values())]
            forms = {name: study.forms[name].form for name in wanted}
            collected = {level: Collected(study.directions, model.scaling) for level in names}
            grid = make_levels("edm", model.sde, args.solver_steps)
            for level, *batch in trajectory(
                model.denoise, forms, grid, range(n), model.shape, args.batch, given.device
            ):
                if level in collected:
                    collected[level].add(*batch)
            for level, held in collected.items():
                study.write(step, level, held, names[level])
        except cells.ERRORS as error:
            for level, entry in names.items():
                study.fail(step, level, entry, error)


@torch.no_grad()
def trajectory(
    denoise: Denoiser,
    forms: Mapping[str, Any],
    levels: torch.Tensor,
    seeds: Sequence[int],
    shape: Sequence[int],
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[float, torch.Tensor, torch.Tensor, Found]]:
    """States of Heun's solution from the noise of each seed, with the network's and the closed forms' denoised images.

    Yields batch after batch, in each level after level, those above 0.
    """
    for start in range(0, len(seeds), batch):
        chosen = seeds[start : start + batch]
        x = float(levels[0]) * experiment.sample_noise("start", chosen, shape).to(device)
        known = Remembered(denoise)
        for level, at, state in zip(levels.tolist(), levels.to(x), heun(known, x, levels), strict=True):
            if level > 0:
                found = {name: form.denoise(state, at) for name, form in forms.items()}
                yield rounded(level), state, known(state, at), found


class Remembered:
    """A denoiser that is not asked twice for one state: what a trajectory is measured by, its solver needs too."""

    def __init__(self, denoise: Denoiser) -> None:
        self.denoise, self._last = denoise, (None, None, None)

    def __call__(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        if self._last[0] is not x or self._last[1] != level:
            self._last = (x, level, self.denoise(x, level))
        return self._last[2]


def say_cost(study: Study, missing: Mapping[tuple[float, int], list[str]], n: int) -> None:
    """What --delta takes, before it is spent: two products with every training image for every state."""
    made = [pair for pair, names in missing.items() if "delta" in names]
    if made:
        form = study.forms["delta"].form
        passes = len({level for level, _ in made}) if study.points == "noised" else len(made)
        work = 4.0 * passes * n * len(form) * form.dimension
        print(
            f"--delta: {passes} levels x {n} states x {len(form):,} training images of {form.dimension:,} numbers, "
            f"{work:.2g} operations in float64",
            file=sys.stderr,
        )


if __name__ == "__main__":
    experiment.launch(main)
