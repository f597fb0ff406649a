"""How many Gaussians, of what rank, does the network's score need? A map of explained variance by level.

RUN is a run of mode none and PARAMS the folder of get_parameters.py. For each number of components C a mixture is fitted to
the training images by k-means, once, at the largest rank asked for, and kept in RUN/mixtures/fits. Its components are then
cut to every rank R in memory, the variance left out spread evenly over the directions left out: the fit at rank R, for
k-means does not look at ranks. Each is measured against the network at every level, on test images with the noise that
compare_scores.py gives them and by its measures: 1 minus the relative error of the score, and the denoiser's explained
variance. (Training images, --split train, flatter large mixtures, which have begun to remember them.)

Of each C and level the least of the ranks is named that explains --share; where none does, that is said. A cell for each C,
R and level, map_score.png, map_denoiser.png, least_rank.png (.csv each) and summary.json go to RUN/mixtures/; a fit takes 8 C
R D bytes.

  python linear_structure/map_mixtures.py runs/edm-synthetic16 gaussian_params
  python linear_structure/map_mixtures.py runs/edm-cifar10 gaussian_params --components 1 10 100 --ranks 16 128 1024 3072

Dimensions: C components, R rank, L levels, N images, D = C*H*W pixels.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LogNorm

from diffusion_model import arrays, data, experiment, figures, results
from diffusion_model.experiment import AtLeast
from linear_structure import get_parameters, inputs, mixture
from linear_structure.cells import ERRORS
from linear_structure.gaussian import Gaussian
from linear_structure.measures import Comparison
from linear_structure.mixture import Mixture

COMPONENTS = (1, 2, 5, 10, 20)
LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
MEASURES = {"score": "relative_error", "denoiser": "explained_variance"}  # what is explained: the measure it is in
FLOOR = 1e-5  # of the unexplained variance: where the colours end at the latest
Key = tuple[int, int, float]  # components, rank, level


class States(NamedTuple):
    """Noised images of one level and what the network makes of them, batch by batch [B, C, H, W]."""

    x: list[torch.Tensor]
    neural: list[torch.Tensor]


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="map_mixtures.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run of mode none")
    parser.add_argument("params", metavar="PARAMS", type=Path, nargs="?", default=inputs.PARAMS, help="its statistics")
    parser.add_argument(
        "--components", metavar="C", type=AtLeast(1), nargs="+", default=list(COMPONENTS), help="numbers of Gaussians"
    )
    parser.add_argument(
        "--ranks", metavar="R", type=AtLeast(1), nargs="+", help="directions of each (default: 1, 2, 4, ... and all)"
    )
    parser.add_argument("--levels", metavar="L", type=float, nargs="+", default=list(LEVELS), help="noise levels")
    parser.add_argument(
        "--share", type=float, default=0.99, help="explained variance that the least rank is sought for"
    )
    parser.add_argument("--n", type=AtLeast(2), help="images, drawn by a fixed seed (default: 256, or all there are)")
    parser.add_argument("--split", default="test", choices=data.SPLITS, help="which images")
    parser.add_argument("--fits", metavar="DIR", type=Path, help="folder of the fits (default: RUN/mixtures/fits)")
    parser.add_argument("--batch", type=AtLeast(1), default=256, help="images at once")
    parser.add_step()
    parser.add_process()
    parser.add_pdf()
    parser.add_data()
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    levels = sorted({float(level) for level in args.levels})
    if not levels[0] > 0:
        raise experiment.UsageError(f"--levels {levels[0]:g}: expected levels above 0")
    if not 0 < args.share < 1:
        raise experiment.UsageError(f"--share {args.share:g}: expected a share between 0 and 1")
    device = experiment.choose_device(args.device)
    given = inputs.open_inputs(args.run, args.params, data.root(args.data), args.step, device, args.process)
    inputs.check_levels(levels, given.model, "--levels")
    ranks, components = choose_ranks(args.ranks, given), sorted(set(args.components))
    split = given.split(args.split)
    n = min(256, len(split)) if args.n is None else args.n
    if n > len(split):
        raise ValueError(f"--n {n}: {split.name}/{split.split} has {len(split)} images")
    folder = args.run / "mixtures"
    protocol = given.protocol | {
        "split": split.split, "images": split.hash, "n": n, "noise": "fixed an image", "fit": "kmeans, seed 0, train"
    }  # fmt: skip
    work = Work(folder, args.fits or folder / "fits", given, protocol, ranks, levels)
    failed = work.all(components, split, n, args.batch)
    found = work.read(components)
    if not found:
        raise ValueError(failed[0])
    components = [count for count in components if any(key[0] == count for key in found)]
    summary = summarise(found, components, work, args.share)
    arrays.write_json(folder / "summary.json", summary)
    for what in MEASURES:
        draw_map(summary, found, what, folder / f"map_{what}.png", args.pdf)
    draw_least(summary, folder / "least_rank.png", args.pdf)
    say(summary)
    print(f"{folder / 'map_score.png'}, {folder / 'least_rank.png'}" + (f", failed: {failed[0]}" if failed else ""))
    return 1 if failed else 0


def choose_ranks(asked: Sequence[int] | None, given: inputs.Inputs) -> list[int]:
    """Ranks, ascending: those asked for, or powers of two and all directions."""
    dimension = given.forms["gaussian"].dimension
    if asked is None:
        return [*(2**power for power in range(20) if 2**power < dimension), dimension]
    if max(asked) > dimension:
        raise experiment.UsageError(f"--ranks {max(asked)}: images of {dimension} numbers have ranks 1 to {dimension}")
    return sorted(set(asked))


class Work(NamedTuple):
    """The cells of one run: made where they are missing."""

    folder: Path
    fits: Path
    given: inputs.Inputs
    protocol: dict[str, Any]
    ranks: list[int]
    levels: list[float]

    def all(self, components: Sequence[int], split: data.Split, n: int, batch: int) -> list[str]:
        """Make what is missing; the errors of what failed."""
        missing = {count: list(self._missing(count)) for count in components}
        wanted = sorted({level for keys in missing.values() for _, _, level in keys})
        states = {
            level: noised(self.given, split, n, level, batch)
            for level in experiment.progress(wanted, "the network", "level")
        }
        failed = []
        for count, keys in missing.items():
            if keys:
                try:
                    self._measure(count, keys, states)
                except ERRORS as error:
                    failed.append(f"{count} components: {error}")
        return failed

    def _missing(self, count: int) -> Iterator[Key]:
        for rank in self.ranks:
            for level in self.levels:
                if results.finished(self.folder, key_of((count, rank, level)), self.protocol) is None:
                    yield count, rank, level

    def _measure(self, count: int, keys: list[Key], states: dict[float, States]) -> None:
        """The cells of one number of components; those of ranks beyond the fit's own directions are alike."""
        whole, known = self.fit(count), {}
        most, form, held = max(part.rank for part in whole.components), None, None
        for key in experiment.progress(keys, f"{count} components", "cell"):
            rank, level = min(key[1], most), key[2]
            if held != rank:
                form, held = truncated(whole, rank), rank
            if (rank, level) not in known:
                known[rank, level] = measure(form, self.given.forms["gaussian"].mu, states[level], level)
            results.write_cell(self.folder, key_of(key), known[rank, level], self.protocol)

    def fit(self, count: int) -> Mixture:
        """The mixture of this many Gaussians in model space, fitted unless one of enough rank is there."""
        name, most = self.given.record["data"]["name"], self.ranks[-1]
        stem = f"{name}-components-{count}-rank-"
        names = {path.name.removeprefix(stem): path for path in self.fits.glob(f"{stem}*")}
        there = {int(rank): path for rank, path in names.items() if rank.isdigit()}
        enough = [rank for rank in sorted(there) if rank >= most and arrays.is_finished(there[rank])]
        folder = there[enough[0]] if enough else self.fits / f"{stem}{most}"
        if not enough:
            options = ["--components", str(count), "--rank", str(most), "--data", str(self.given.root)]
            get_parameters.main([name, "mixture", str(folder), *options])
        return inputs.load_form(folder, self.given.record, mixture.KIND)

    def read(self, components: Sequence[int]) -> dict[Key, dict[str, Any]]:
        """The values of the cells that are there, of the numbers of components that are complete."""
        found = {}
        for count in components:
            keys = [(count, rank, level) for rank in self.ranks for level in self.levels]
            held = [results.finished(self.folder, key_of(key), self.protocol) for key in keys]
            if all(held):
                found |= {key: cell.value for key, cell in zip(keys, held, strict=True)}
        return found


def key_of(key: Key) -> dict[str, Any]:
    """What names a cell on disk."""
    return dict(zip(("components", "rank", "level"), key, strict=True))


@torch.no_grad()
def noised(given: inputs.Inputs, split: data.Split, n: int, level: float, batch: int) -> States:
    """The images and the noise of compare_scores.py at one level, and the network's denoised images."""
    rows = torch.randperm(len(split), generator=experiment.generator("scores"))[:n].tolist()
    states, at = States([], []), torch.tensor(level, device=given.device)
    for start in range(0, n, batch):
        chosen = rows[start : start + batch]
        x0 = given.model.scaling.to_model(torch.from_numpy(np.array(split.images[chosen])).to(given.device))
        states.x.append(x0 + level * experiment.sample_noise("scores", chosen, x0.shape[1:]).to(given.device))
        states.neural.append(given.model.denoise(states.x[-1], at))
    return states


def measure(form: Mixture, mu: torch.Tensor, states: States, level: float) -> dict[str, Any]:
    """The measures of measures.py for one closed form at one level."""
    comparison, at = Comparison(mu), torch.tensor(level)
    for x, neural in zip(*states, strict=True):
        comparison.update(x, neural, {"mixture": form.denoise(x, at)})
    return comparison.results()["mixture"]


def truncated(form: Mixture, rank: int) -> Mixture:
    """The mixture with at most this many directions a component, every component's trace kept."""
    return Mixture(form.weights, [leading(part, rank) for part in form.components], form.meta)


def leading(gaussian: Gaussian, rank: int) -> Gaussian:
    """The Gaussian of the first `rank` directions; the variance left out is spread over the others."""
    if rank >= gaussian.rank:
        return gaussian
    lambdas = gaussian.lambdas[:rank]
    rest = float(gaussian.variance.sum() - lambdas.sum()) / (gaussian.dimension - rank)
    return Gaussian(gaussian.mu, gaussian.U[:, :rank], lambdas, max(0.0, rest), gaussian.variance)


def explained(value: dict[str, Any], what: str) -> float:
    """Explained variance of the score or of the denoiser, of one cell."""
    mean = value[MEASURES[what]]["mean"]
    return 1 - mean if what == "score" else mean


def least_rank(ranks: Sequence[int], shares: Sequence[float], share: float) -> int | None:
    """The least of increasing ranks that explains the share; None where none does."""
    return next((rank for rank, found in zip(ranks, shares, strict=True) if found >= share), None)


def summarise(found: dict[Key, dict[str, Any]], components: Sequence[int], work: Work, share: float) -> dict[str, Any]:
    """Explained variances [C, R, L] as lists of lists, and the least rank of each number of components and level [C, L]."""
    summary: dict[str, Any] = {
        "format": arrays.FORMAT, "kind": "mixtures summary", "protocol": work.protocol, "share": share,
        "components": list(components), "ranks": work.ranks, "levels": work.levels, "least_rank": {},
    }  # fmt: skip
    for what in MEASURES:
        table = [
            [[explained(found[count, rank, level], what) for level in work.levels] for rank in work.ranks]
            for count in components
        ]
        summary[what] = table
        summary["least_rank"][what] = [
            [least_rank(work.ranks, shares, share) for shares in zip(*by_rank, strict=True)] for by_rank in table
        ]
    return summary


def say(summary: dict[str, Any]) -> None:
    """The least ranks, a line for each number of components."""
    for count, least in zip(summary["components"], summary["least_rank"]["score"], strict=True):
        where: dict[int | None, list[str]] = {}
        for level, rank in zip(summary["levels"], least, strict=True):
            where.setdefault(rank, []).append(f"{level:g}")
        parts = [
            f"{'no rank tried' if rank is None else f'rank {rank}'} at level {', '.join(at)}"
            for rank, at in where.items()
        ]
        named = "1 component" if count == 1 else f"{count} components"
        print(f"{whole_percent(summary)} of the score by {named}: {'; '.join(parts)}")


def whole_percent(summary: dict[str, Any]) -> str:
    """The share as 99 %."""
    return f"{100 * summary['share']:g} %"


def draw_map(summary: dict[str, Any], found: dict[Key, dict[str, Any]], what: str, path: Path, pdf: bool) -> None:
    """Rank x components, a panel a level: unexplained variance as colour, explained in percent; bold from the share on."""
    levels, shares = summary["levels"], np.array(summary[what])
    columns = min(3, len(levels))
    rows = -(-len(levels) // columns)
    norm = LogNorm(max(FLOOR, min(0.1, 1 - shares.max())), 1.0)
    size = 0.62 * len(summary["components"]) + 0.9, 0.27 * len(summary["ranks"]) + 0.9
    figure, axes = figures.panels(rows, columns, width=size[0], height=size[1], sharex=True, sharey=True)
    for place, axis in enumerate(axes.flat):
        axis.set_visible(place < len(levels))
        if place < len(levels):
            image = panel(axis, shares[:, :, place].T, norm, summary)
            axis.set_title(f"level {levels[place]:g}", fontsize=9.5)
    for axis in axes[:, 0]:
        axis.set_ylabel("rank")
    for axis in axes[-1]:
        axis.set_xlabel("components")
    figure.colorbar(image, ax=axes, label="unexplained variance", shrink=0.6)
    protocol = summary["protocol"]
    figure.suptitle(
        f"{protocol['dataset']}/{protocol['split']}, {protocol['n']} noised images: % of the network's {what} explained",
        fontsize=10.5,
    )
    figures.save(figure, path, table_of(found, what), pdf)


def panel(axis: Any, shares: np.ndarray, norm: LogNorm, summary: dict[str, Any]) -> Any:
    """One level: explained variances [R, C]."""
    left = np.clip(1 - shares, norm.vmin, norm.vmax)
    image = axis.imshow(left, cmap="viridis_r", norm=norm, origin="lower", aspect="auto")
    axis.grid(False)
    axis.set_xticks(range(shares.shape[1]), summary["components"])
    axis.set_yticks(range(shares.shape[0]), summary["ranks"])
    for (row, column), share in np.ndenumerate(shares):
        bold = "bold" if share >= summary["share"] else "normal"
        shade = "white" if norm(left[row, column]) > 0.5 else "black"
        text = percent(share)
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=shade, fontweight=bold)
    return image


def percent(share: float) -> str:
    """An explained variance in percent, cut, not rounded, so that 99.0 is at least 99 %."""
    if share < 0:
        return "< 0"
    digits = 1 if share < 0.99 else 2 if share < 0.9999 else 3
    return f"{math.floor(share * 10 ** (2 + digits)) / 10**digits:.{digits}f}"


def table_of(found: dict[Key, dict[str, Any]], what: str) -> dict[str, list[Any]]:
    """A row a cell: explained variance with its interval."""
    rows = sorted(found.items())
    table = {name: [key[place] for key, _ in rows] for place, name in enumerate(("components", "rank", "level"))}
    table["explained_variance"] = [explained(value, what) for _, value in rows]
    ends = {"low": "high", "high": "low"} if what == "score" else {"low": "low", "high": "high"}
    for end, held in ends.items():
        values = [value[MEASURES[what]][held] for _, value in rows]
        table[end] = [1 - value if what == "score" else value for value in values]
    return table


def draw_least(summary: dict[str, Any], path: Path, pdf: bool) -> None:
    """The least rank that explains the share against the level, a line for each number of components."""
    figure, (axes,) = figures.panels(1, len(MEASURES), width=4.4, height=3.6, sharey=True)
    ranks, levels = summary["ranks"], summary["levels"]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(summary["components"])))
    table: dict[str, list[Any]] = {"level": levels}
    for axis, what in zip(axes, MEASURES, strict=True):
        for place, (count, least) in enumerate(zip(summary["components"], summary["least_rank"][what], strict=True)):
            # places in the list of ranks, the lines a little apart; "none" is one above the largest
            heights = [len(ranks) if rank is None else ranks.index(rank) for rank in least]
            apart = 0.3 * (place / max(1, len(shades) - 1) - 0.5)
            axis.plot(levels, np.array(heights) + apart, "o-", color=shades[place], label=f"{count}", markersize=4)
            table[f"{what}_components_{count}"] = ["" if rank is None else rank for rank in least]
        axis.set(xscale="log", xlabel="noise level (model space)", title=f"of the network's {what}")
    axes[0].set_yticks(range(len(ranks) + 1), [*ranks, "none"])
    axes[0].set_ylabel(f"least rank that explains {whole_percent(summary)}")
    axes[-1].legend(title="components", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figures.save(figure, path, table, pdf)


if __name__ == "__main__":
    experiment.launch(main)
