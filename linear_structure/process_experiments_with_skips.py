"""Distance against skipped steps: the figures, the table and the number of steps that can be skipped.

RUN holds a sweep made by sweep_skips.py. Intervals are 95 %, by leaving out one block of seeds at a time. The recommended
skip of a sampler is the largest whose paired upper bound lies within --margin of the distance without skipping: pairing is
so sharp that without a margin one skipped step may already count as worse. The margin is a share of that distance (0.01
is 1 %), or "spread": the relative standard error of that distance, by which it moves as well if all seeds are others.
Jumps to levels from which all steps are spread anew save no evaluations: there the level of least distance is recommended.

  python linear_structure/process_experiments_with_skips.py runs/edm-cifar10

Writes to RUN/sweeps/NAME/ table.md, samples.png (.csv), summary.json and

    distance.png (.csv)   distance against skipped steps or levels, a panel a sampler and number of steps
    levels.png (.csv)     distance over level jumped to and number of evaluations, where a sweep has jumps to levels
"""

from collections.abc import Sequence
from pathlib import Path

from diffusion_model import arrays, experiment
from linear_structure import inputs
from linear_structure.intervals import Margin
from linear_structure.summaries import lines, markdown, read_sweep, sentence, summarise
from linear_structure.sweep_figures import draw


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="process_experiments_with_skips.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run with a sweep")
    parser.add_argument("--name", type=experiment.file_name, default="default", help="the sweep's folder in RUN/sweeps")
    parser.add_argument(
        "--margin", type=Margin(0.0), default=0.01, help="relative increase that is accepted, or spread"
    )
    parser.add_argument("--blocks", type=experiment.AtLeast(2), default=20, help="blocks of seeds for the intervals")
    parser.add_pdf()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    folder = args.run / "sweeps" / args.name
    remedy = f"run `python linear_structure/sweep_skips.py {args.run} PARAMS --name {args.name}` first"
    rows = read_sweep(folder, args.blocks, remedy)
    found = lines(rows)
    if not found:
        raise ValueError(f"{folder} has no cell with skipped steps beside one without: {remedy}")
    summary = summarise(rows, args.margin, args.blocks)
    arrays.write_json(folder / "summary.json", summary)
    drawn = draw(rows, summary, folder, args.pdf)
    arrays.write_atomically(folder / "table.md", lambda temporary: temporary.write_text(markdown(rows)))
    print(markdown(rows))
    for line in summary["lines"]:
        print(sentence(summary, line))
    print(", ".join(str(path) for path in [*drawn, folder / "summary.json"]))
    return 0


if __name__ == "__main__":
    experiment.launch(main)
