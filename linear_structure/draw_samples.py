"""Samples of a run that begin with a closed-form jump in place of the first solver steps.

RUN is a run of mode none and PARAMS a folder of get_parameters.py: its Gaussian, isotropic or not, its mixture, or its
class-conditional Gaussian as the mixture of its classes. From noise at the highest level the closed form's probability flow
leads to a lower level at once, and the solver does the rest:

    --skip K      to the K-th level of the solver's own grid, of which the rest remains: K steps are saved
    --to-level L  to any level L, from which all --steps are spread anew: a finer grid for as many evaluations

(Wang & Vastola 2023, section 5.) `sweep_skips.py RUN PARAMS --recommend` says which K is safe. Image i is a function of seed
i alone, whatever the batch and the number of ranks. Written: RUN/samples/NAME.npy, uint8 [N, C, H, W], and a picture of them.

  python linear_structure/draw_samples.py runs/edm-synthetic16 gaussian_params --skip 6
  python linear_structure/draw_samples.py runs/edm-cifar10 gaussian_params --to-level 10 --sampler unipc-bh1 --steps 10 --n 50000
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, experiment, figures, ranks, readouts, results
from diffusion_model.experiment import AtLeast
from diffusion_model.samplers import GRIDS, SAMPLERS, evaluations, make_levels
from diffusion_model.score_model import ScoreModel
from linear_structure import inputs, sweeps
from linear_structure.mixture import ClassConditional

SHOWN = 64  # images of the picture


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="draw_samples.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run of mode none")
    parser.add_argument("params", metavar="PARAMS", type=Path, nargs="?", default=inputs.PARAMS, help="its statistics")
    jump = parser.add_mutually_exclusive_group(required=True)
    jump.add_argument("--skip", metavar="K", type=AtLeast(0), help="solver steps that the jump replaces")
    jump.add_argument("--to-level", metavar="L", type=float, help="level that the jump leads to")
    parser.add_argument("--n", type=AtLeast(1), default=64, help="number of images")
    parser.add_argument("--steps", type=AtLeast(2, most=10_000), default=18, help="solver steps")
    parser.add_argument("--sampler", default="heun", choices=tuple(SAMPLERS), help="solver")
    parser.add_argument("--grid", default="edm", choices=tuple(GRIDS), help="how the levels are spaced")
    parser.add_argument("--seed-base", type=int, default=0, help="seed of the first image, the next has the next")
    parser.add_argument("--batch", type=AtLeast(1), default=250, help="images at once")
    parser.add_step()
    parser.add_process()
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if args.skip is not None and args.skip >= args.steps:
        raise experiment.UsageError(
            f"--skip {args.skip}: a solver of {args.steps} steps can skip from 0 to {args.steps - 1}"
        )
    device = experiment.choose_device(args.device)
    with ranks.session(device):
        return draw(args, device)


def draw(args: Any, device: torch.device) -> int:
    """Every rank its share of the images; the first writes them."""
    model, record = inputs.open_model(args.run, args.step, device, args.process)
    form = inputs.load_form(args.params, record)
    form = form.mixture if isinstance(form, ClassConditional) else form
    grid = make_levels(args.grid, model.sde, args.steps)
    levels = grid[args.skip :] if args.to_level is None else below(args, model)
    path = args.run / "samples" / f"{name_of(args)}.npy"
    protocol = {
        "step": model.step, "weights": readouts.fingerprint(model), "statistics": inputs.fingerprint(args.params),
        "seed_base": args.seed_base, "n": args.n, "sampler": args.sampler, "steps": args.steps, "grid": args.grid,
        "skip": args.skip, "first": float(grid[0]), "level": float(levels[0]),
    }  # fmt: skip
    results.check_file(path, protocol)
    mine = ranks.share(args.n, args.batch)
    seeds = range(args.seed_base, args.seed_base + args.n)[mine.start : mine.stop]
    jump = form if levels[0] < grid[0] else None
    made = sweeps.draw(model.denoise, jump, args.sampler, grid[0], levels, seeds, model.shape, args.batch, device)
    count = -(-len(seeds) // args.batch)
    pieces = [model.scaling.to_pixels(x).cpu().numpy() for x in experiment.progress(made, "sampling", "batches", count)]
    pixels = ranks.gather_rows(np.concatenate(pieces) if pieces else np.empty((0, *model.shape), np.uint8))
    if pixels is not None:
        results.write_file(path, protocol, lambda place: arrays.write_array(place, pixels))
        shown = figures.image_grid(pixels[:SHOWN], 8, path.with_suffix(".png"))
        spent, whole = evaluations(args.sampler, levels), evaluations(args.sampler, grid)
        print(
            f"{len(pixels)} images at step {model.step} from a jump to level {levels[0]:.4g}, {spent} evaluations "
            f"(plain solver: {whole}): {path}, {shown}"
        )
    return 0


def below(args: Any, model: ScoreModel) -> torch.Tensor:
    """The solver's levels from --to-level on."""
    inputs.check_levels([args.to_level], model, "--to-level")
    if args.to_level <= model.sde.level_range()[0]:
        raise experiment.UsageError(f"--to-level {args.to_level:g}: there are no levels below for the solver")
    return make_levels(args.grid, model.sde, args.steps, level_max=args.to_level)


def name_of(args: Any) -> str:
    """What names these samples: heun18_skip6_gaussian_params_seed0_n64."""
    solver = f"{args.sampler}{'-' if args.sampler[-1].isdigit() else ''}{args.steps}"
    solver += "" if args.grid == "edm" else f"_{args.grid}"
    jump = f"skip{args.skip}" if args.to_level is None else f"to{args.to_level:g}"
    return f"{solver}_{jump}_{args.params.resolve().name}_seed{args.seed_base}_n{args.n}"


if __name__ == "__main__":
    experiment.launch(main)
