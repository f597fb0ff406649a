"""How many solver steps can the Gaussian jump replace? The distance to the data against what is skipped.

RUN is a run of mode none and PARAMS the folder of get_parameters.py. Every cell starts from the same noise, jumps in one
closed form from the first level of the solver's grid to a lower one, and the solver does the rest:

    --skips K ...       to the K-th level of the solver's own grid, of which the rest remains: K steps are saved
    --to-levels L ...   to any level L, from which all steps are spread anew: evaluations stay, the grid is finer
                        (what Wang & Vastola 2024 tabulate against the number of evaluations)

for every sampler, every number of steps (or of evaluations) and every kind of jump: gaussian, isotropic (mean and
variance), mean (mean only), mixture (the folder --mixture; its flow is integrated without the network). The plain solver
of as many steps is the partner that a cell is measured against. A cell's JSON and arrays lie in RUN/sweeps/NAME/; the same
command again fills what is missing. Beside them lies the distance of as many real images.

  python linear_structure/sweep_skips.py runs/edm-synthetic16 gaussian_params --features classifier --n 1000
  python linear_structure/sweep_skips.py runs/edm-cifar10 gaussian_params --name budgets --samplers heun dpmpp-2m \
    --evaluations 5 8 10 15 25 --to-levels 40 20 10 5 2.5 1
  python linear_structure/sweep_skips.py runs/edm-cifar10 gaussian_params --recommend

Under torchrun the ranks share the plain solvers' cells and then all others; process_experiments_with_skips.py makes tables
and figures and recommends a skip. --recommend does without: it halves the range of skips until the largest is found that
changes the distance by no more than --margin, for the first kind, and says how sure that is. Where PARAMS does not
exist it computes the statistics first.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_model import arrays, checkpoint, data, experiment, features, locks, ranks, results
from diffusion_model.experiment import AtLeast
from diffusion_model.samplers import GRIDS, SAMPLERS, make_levels, steps_within
from linear_structure import get_parameters, inputs, intervals, mixture, summaries
from linear_structure.flow import ClosedForm
from linear_structure.intervals import Estimate, Margin
from linear_structure.sweeps import SHOWN, Cell, Sweep, keep_reference, kernel_subset, refuse_others

KINDS = ("gaussian", "isotropic", "mean", "mixture")
SKIPS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12)


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="sweep_skips.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run of mode none")
    parser.add_argument("params", metavar="PARAMS", type=Path, nargs="?", default=inputs.PARAMS, help="its statistics")
    parser.add_argument(
        "--name", type=experiment.file_name, help="the sweep's folder in RUN/sweeps (default: default, or recommend)"
    )
    known = " ".join(map(str, SKIPS))
    parser.add_argument(
        "--skips", type=int, nargs="+", help=f"numbers of skipped steps (default: {known}; none with --to-levels)"
    )
    parser.add_argument("--to-levels", metavar="L", type=float, nargs="+", help="levels to jump to, all steps below")
    parser.add_argument("--kinds", nargs="+", default=["gaussian", "isotropic"], choices=KINDS, help="kinds of jump")
    parser.add_argument("--other-skips", type=int, nargs="+", help="skips of all kinds but gaussian (default: --skips)")
    parser.add_argument("--mixture", metavar="DIR", type=Path, help="statistics of the kind mixture")
    parser.add_argument("--samplers", nargs="+", default=["heun"], choices=tuple(SAMPLERS), help="solvers")
    parser.add_argument("--steps", type=AtLeast(2, most=10_000), nargs="+", default=[18], help="solver steps")
    parser.add_argument(
        "--evaluations",
        type=AtLeast(1),
        nargs="+",
        help="in place of --steps: as many as stay within so many evaluations",
    )
    parser.add_argument(
        "--grid", default="edm", choices=tuple(GRIDS), help="levels: EDM's, even in ln level, or in time"
    )
    parser.add_argument("--level-min", type=float, help="last level above 0 (default: the run's)")
    parser.add_argument("--level-max", type=float, help="first level (default: the run's)")
    parser.add_argument("--n", type=AtLeast(4), default=1000, help="samples in each cell; 50000 for a FID to be cited")
    parser.add_argument("--seed-base", type=int, default=0, help="seed of the first sample, the next has the next")
    parser.add_argument(
        "--features", default="inception", choices=tuple(features.FEATURES), help="feature space of the distance"
    )
    parser.add_argument("--weights", type=Path, help="file of pytorch-fid's Inception weights (default: downloaded)")
    parser.add_argument(
        "--reference", type=Path, help="a .npz of mu and sigma, or a reference's folder (default: made)"
    )
    parser.add_argument("--extractor", metavar="NAME", help="network of a --reference that does not say it")
    parser.add_argument(
        "--save-images", action="store_true", help=f"keep all samples as images, not only {SHOWN} a cell"
    )
    parser.add_argument("--recommend", action="store_true", help="search for the largest safe skip and say it")
    parser.add_argument("--margin", type=Margin(0.0), default=0.01, help="of --recommend: accepted increase, or spread")
    parser.add_argument(
        "--blocks", type=AtLeast(2), default=20, help="of --recommend: blocks of seeds for the intervals"
    )
    parser.add_argument("--batch", type=AtLeast(1), default=250, help="samples at once")
    parser.add_step()
    parser.add_process()
    parser.add_data()
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    skips = list(SKIPS) if args.skips is None and args.to_levels is None and not args.recommend else args.skips
    chosen = budgets(args.samplers, args.steps, args.evaluations)
    cells = plan(chosen, args.kinds, skips, args.other_skips, args.to_levels or (), given=args.skips is not None)
    if "mixture" in args.kinds and args.mixture is None:
        raise experiment.UsageError("--kinds mixture: pass its statistics with --mixture DIR")
    if args.extractor and not args.reference:
        raise experiment.UsageError("--extractor goes with --reference: the data set's own reference knows its network")
    if args.recommend:
        check_recommend(args, chosen)
    device, root = experiment.choose_device(args.device), data.root(args.data)
    if args.recommend and not arrays.is_finished(args.params):
        name = checkpoint.read_run(args.run)["data"]["name"]
        get_parameters.main([name, "gaussian", str(args.params), "--data", str(root)])
    with ranks.session(device) as device:
        return sweep(args, cells, root, device)


def budgets(samplers: Sequence[str], steps: Sequence[int], within: Sequence[int] | None) -> dict[str, list[int]]:
    """Numbers of steps of each sampler, from the least: those given, or the most within each number of evaluations."""
    if within is None:
        return {sampler: sorted(set(steps)) for sampler in dict.fromkeys(samplers)}
    try:
        return {sampler: sorted({steps_within(sampler, budget) for budget in within}) for sampler in samplers}
    except ValueError as error:
        raise experiment.UsageError(f"--evaluations: {error}") from None


def plan(
    chosen: Mapping[str, Sequence[int]],
    kinds: Sequence[str],
    skips: Sequence[int] | None,
    other: Sequence[int] | None = None,
    levels: Sequence[float] = (),
    given: bool = True,
) -> list[Cell]:
    """The cells, each plain solver before those measured against it.

    More skips than a solver has steps are refused; those that were not given but come by default are left out.
    """
    cells = []
    kinds = sorted(set(kinds), key=KINDS.index)
    for sampler, counts in chosen.items():
        for steps in counts:
            wanted = [skip for skip in skips or () if given or skip < steps]
            for option, skips_given in (("--skips", wanted), ("--other-skips", other or ())):
                for skip in skips_given:
                    if not 0 <= skip <= steps - 1:
                        raise experiment.UsageError(
                            f"{option} {skip}: a solver of {steps} steps can skip from 0 to {steps - 1}"
                        )
            cells.append(Cell(sampler, steps))
            for kind in kinds:
                of_kind = wanted if kind == "gaussian" or other is None else other
                cells += [Cell(sampler, steps, kind, skip) for skip in sorted(set(of_kind) - {0})]
                cells += [Cell(sampler, steps, kind, level=float(level)) for level in sorted(set(levels), reverse=True)]
    return cells


def check_recommend(args: Any, chosen: Mapping[str, Sequence[int]]) -> None:
    """Refuse what a search for one number cannot serve (UsageError)."""
    if len(chosen) != 1 or any(len(counts) != 1 for counts in chosen.values()) or args.to_levels:
        raise experiment.UsageError(
            "--recommend finds one number of skips: give one sampler, one --steps, no --to-levels"
        )
    if args.blocks > args.n // 2:
        raise experiment.UsageError(f"--blocks {args.blocks}: {args.n} samples make 2 to {args.n // 2} blocks")


def sweep(args: Any, cells: list[Cell], root: Path, device: torch.device) -> int:
    """Open what the cells need, and fill the folder."""
    folder = args.run / "sweeps" / (args.name or ("recommend" if args.recommend else "default"))
    given = inputs.open_inputs(args.run, args.params, root, args.step, device, args.process)
    train = given.split("train")
    extractor = features.open_extractor(args.features, train, root, args.weights, device)
    low, high = level_range(given, args.level_min, args.level_max)
    cells = within_levels(cells, low, high)

    def grid(steps: int, first: float | None = None) -> torch.Tensor:
        return make_levels(args.grid, given.model.sde, steps, low, high if first is None else first)

    for steps in {cell.steps for cell in cells}:
        grid(steps)  # refused before anything is made
    if args.reference:
        reference = features.read_reference(args.reference, extractor, told=args.extractor)
    else:
        reference = ranks.first_makes(lambda: features.reference(extractor, train, root))
    protocol = given.protocol | {
        "grid": args.grid, "level_min": low, "level_max": high, "n": args.n, "seed_base": args.seed_base,
        "features": args.features, "weights": extractor.fingerprint, "distance": extractor.distance,
        "kernel_distance": extractor.kernel_distance, "kernel_subset": kernel_subset(args.n, reference),
        "reference": features.mark(args.reference) if args.reference else f"all {len(train)} training images",
    }  # fmt: skip
    if args.n <= extractor.dimension and ranks.first():
        print(
            f"{args.n} samples for {extractor.dimension} features: these distances are large by bias and to be compared "
            "with each other only",
            file=sys.stderr,
        )
    seeds = range(args.seed_base, args.seed_base + args.n)
    made = Sweep(folder, protocol, grid, seeds, args.batch, reference, args.n if args.save_images else SHOWN)
    forms: dict[str, ClosedForm] = dict(given.forms)
    if "mixture" in args.kinds:
        forms["mixture"] = inputs.load_form(args.mixture, given.record, mixture.KIND)
        made.of_kind["mixture"] = {"mixture": inputs.fingerprint(args.mixture)}

    with locks.shared(folder, "swept", f"{locks.REMEDY}, or give another --name"):
        return fill(args, made, cells, given, forms, extractor)


def fill(
    args: Any,
    made: Sweep,
    cells: list[Cell],
    given: inputs.Inputs,
    forms: dict[str, ClosedForm],
    extractor: features.Extractor,
) -> int:
    """Make the cells that are missing, or search among them, while no other command does so in this folder."""
    refuse_others(made.folder, made.protocol)
    if ranks.first():
        keep_reference(made.folder, made.reference, args.reference)

    def make(cells: list[Cell]) -> list[str]:
        return made.run(cells, given.model.denoise, forms, given.model.scaling, extractor, given.device)

    if args.recommend:
        return recommend(args, made, cells, make, lambda: made.floor(given.split("test"), extractor))
    failed = make(cells)
    if not ranks.first():
        return 0  # the first rank tells all that failed
    made.floor(given.split("test"), extractor)
    done = len(results.read_cells(made.folder))
    print(f"{made.folder}: {done} cells finished" + (f", {len(failed)} failed: {failed[0]}" if failed else ""))
    return 1 if failed else 0


def level_range(given: inputs.Inputs, low: float | None, high: float | None) -> tuple[float, float]:
    """The solver's levels in model space: those given, else those of the run's noise process."""
    ends = given.model.sde.level_range()
    low, high = (ends[0] if low is None else low, ends[1] if high is None else high)
    inputs.check_levels([low], given.model, "--level-min")
    inputs.check_levels([high], given.model, "--level-max")
    if not low < high:
        raise experiment.UsageError(f"--level-min {low:g} and --level-max {high:g}: expected the lower one first")
    return low, high


def within_levels(cells: list[Cell], low: float, high: float) -> list[Cell]:
    """The cells without jumps to the first level itself, which are the plain solver's; levels outside are refused."""
    for level in {cell.level for cell in cells if cell.level is not None}:
        if not low < level <= high:
            raise experiment.UsageError(f"--to-levels {level:g}: expected levels above {low:g} and up to {high:g}")
    return [cell for cell in cells if cell.level != high]


def recommend(
    args: Any, made: Sweep, cells: list[Cell], make: Callable[[list[Cell]], list[str]], floor: Callable[[], None]
) -> int:
    """Search for the largest safe skip of the first kind; write and say it."""
    start, kind = cells[0], args.kinds[0]
    offered = sorted({*(args.skips or range(start.steps))} - {0})
    failed = make([start])
    plain = None if failed else intervals.distances(made.codes(start), made.reference, args.blocks)

    def change(skips: list[int]) -> list[Estimate]:
        chosen = [start._replace(kind=kind, skip=skip) for skip in skips]
        failed.extend(make(chosen))
        if failed:
            raise ValueError(failed[0])
        found = (intervals.distances(made.codes(cell), made.reference, args.blocks) for cell in chosen)
        return [intervals.increase(one, plain) for one in found]

    if failed:
        raise ValueError(failed[0])
    search(change, offered, intervals.accepted(args.margin, plain), experiment.world())
    if not ranks.first():
        return 0
    floor()
    rows = summaries.read_sweep(made.folder, args.blocks, "remove it and run the command again")
    kept = {(*start.plain[:2], "none"), (*start.plain[:2], kind)}  # another search may have used the folder
    rows = [row for row in rows if row["kind"] == "real" or (row["sampler"], row["steps"], row["kind"]) in kept]
    summary = summaries.summarise(rows, args.margin, args.blocks)
    arrays.write_json(made.folder / "recommendation.json", summary | {"kind": "recommended skip"})
    print(summaries.sentence(summary, summary["lines"][0]))
    print(made.folder / "recommendation.json")
    return 0


def search(
    change: Callable[[list[int]], Iterable[Estimate]], offered: Sequence[int], margin: float, probes: int = 1
) -> dict[int, Estimate]:
    """Changes by skip, of the few that find the largest whose upper bound is within the margin; `offered` increase.

    The range between the largest safe skip and the least unsafe one above it is cut by `probes` skips at a time.
    """
    found: dict[int, Estimate] = {}
    low, high = -1, len(offered)  # positions: safe, unsafe
    while high - low > 1:
        count = min(probes, high - low - 1)
        chosen = [offered[low + (high - low) * part // (count + 1)] for part in range(1, count + 1)]
        found |= dict(zip(chosen, change(chosen), strict=True))
        safe = [place for place, skip in enumerate(offered) if skip in found and found[skip].high <= margin]
        low = max(safe, default=-1)
        unsafe = [place for place, skip in enumerate(offered) if skip in found and place > low]
        high = min(unsafe, default=len(offered))
    return found


if __name__ == "__main__":
    experiment.launch(main)
