"""How does the score field look? Two-dimensional slices of it through three images, for the network and closed forms.

RUN is a run of mode none and PARAMS the folder of get_parameters.py. Three images p_0, p_1, p_2 span a plane with the
orthonormal axes e_1 along p_1 - p_0 and e_2 towards p_2. At each noise level the score on a square grid of the plane is
projected on the axes and drawn over the log density, of which it is the gradient there. A closed form has that density in a
formula. The network's is the function phi of the grid whose differences fit its score s best,

    phi(q) - phi(p) = (s(p) + s(q)) . (q - p) / 2        over all edges p - q of the grid, by least squares,

which is exact for linear scores. What no function fits is curl; the score of a density has none. It is written as a share
of what was to be fitted. The relative errors that are printed are sums over the grid, sum |s_nn - s|^2 / sum |s_nn|^2, of
the projections and of the whole scores.

Noised images do not lie in such a plane: at level s they are s sqrt(D) away from it. A slice shows a field;
compare_scores.py measures it where a sampler uses it. The images are training images by default, which are the points of
the delta mixture; that takes two passes over all of them a level and batch. Cells and arrays of every level and form,
slices.png (.csv) and summary.json go to RUN/slices/.

  python linear_structure/slice_scores.py runs/edm-synthetic16 gaussian_params
  python linear_structure/slice_scores.py runs/edm-cifar10 gaussian_params --also mixture_params --delta --points 3 17 40

Dimensions: G grid points a side, N points, D = C*H*W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import torch
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from diffusion_model import arrays, data, experiment, figures
from diffusion_model.experiment import AtLeast
from diffusion_model.samplers import Denoiser
from linear_structure import cells, closed_forms, inputs
from linear_structure.flow import ClosedForm

KIND = "score slice"
LEVELS = (0.5, 2.0, 10.0)
MARGIN = 0.3  # of the triangle's longer side, around it
ARROWS = 13  # arrows a side of a panel at most


class Plane(NamedTuple):
    """Through three points: origin [D], orthonormal axes [2, D], the points' coordinates [3, 2]; all float64."""

    origin: torch.Tensor
    axes: torch.Tensor
    corners: torch.Tensor

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """Points of the plane [N, D] at coordinates [N, 2]."""
        return self.origin + places @ self.axes

    def ticks(self, count: int) -> torch.Tensor:
        """Coordinates [2, G] of a square grid around the triangle."""
        low, high = self.corners.amin(0), self.corners.amax(0)
        reach = float((high - low).max()) * (0.5 + MARGIN)
        steps = torch.linspace(-reach, reach, count, dtype=torch.float64)
        return (low + high)[:, None] / 2 + steps


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="slice_scores.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run of mode none")
    parser.add_argument("params", metavar="PARAMS", type=Path, nargs="?", default=inputs.PARAMS, help="its statistics")
    closed_forms.add_options(parser)
    parser.add_argument(
        "--points", metavar="ROW", type=int, nargs=3, help="three images of the split (default: a fixed draw)"
    )
    parser.add_argument("--split", default="train", choices=data.SPLITS, help="which images")
    parser.add_argument("--levels", metavar="L", type=float, nargs="+", default=list(LEVELS), help="noise levels")
    parser.add_argument("--grid", type=AtLeast(2, most=1000), default=25, help="points a side")
    parser.add_argument("--batch", type=AtLeast(1), default=256, help="points at once")
    parser.add_step()
    parser.add_process()
    parser.add_pdf()
    parser.add_data()
    parser.add_device()
    return parser


class Slice(NamedTuple):
    """What all cells share: the plane, a grid of G x G of its points, and how points become a batch."""

    plane: Plane
    ticks: torch.Tensor
    shape: tuple[int, int, int]
    batch: int
    device: torch.device

    @property
    def points(self) -> torch.Tensor:
        """The grid's points [G * G, D], the second coordinate running fastest."""
        return self.plane.at(torch.cartesian_prod(*self.ticks))

    def scores(self, denoise: Denoiser, level: float) -> np.ndarray:
        """Scores float32 [G * G, D] of a denoiser on the grid."""
        found = field(denoise, self.points, level, self.shape, self.batch, self.device)
        if not torch.isfinite(found).all():
            raise FloatingPointError("the score on the grid has NaN or infinite values")
        return found.float().numpy()

    def projected(self, scores: np.ndarray) -> np.ndarray:
        """Scores [G * G, D] as components along the axes, float64 [G, G, 2]."""
        count = self.ticks.shape[1]
        return (torch.from_numpy(scores).double() @ self.plane.axes.T).reshape(count, count, 2).numpy()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    levels = sorted({float(level) for level in args.levels})
    if not levels[0] > 0:
        raise experiment.UsageError(f"--levels {levels[0]:g}: expected levels above 0")
    device = experiment.choose_device(args.device)
    given = inputs.open_inputs(args.run, args.params, data.root(args.data), args.step, device, args.process)
    inputs.check_levels(levels, given.model, "--levels")
    split = given.split(args.split)
    rows = choose(args.points, split)
    images = np.array(split.images[rows])
    plane = span(given.model.scaling.to_model(torch.from_numpy(images)))
    made = Slice(plane, plane.ticks(args.grid), given.model.shape, args.batch, device)
    found = closed_forms.gather(given, args.also, args.delta)
    forms = {name: named for name, named in found.items() if name not in ("mean", "isotropic")}
    protocol = given.protocol | {"split": split.split, "images": split.hash, "points": rows, "grid": args.grid}
    folder, failed, panels = args.run / "slices", [], {}
    for level in experiment.progress(levels, "slices", "level"):
        try:
            panels[level] = at_level(folder, level, made, given.model.denoise, forms, protocol)
        except cells.ERRORS as error:
            failed.append(f"level {level:g}: {error}")
    if panels:
        arrays.write_json(folder / "summary.json", summarise(panels, protocol))
        draw(panels, made, forms, images, folder / "slices.png", protocol, args.pdf)
        say(panels, forms)
        print(f"{folder / 'slices.png'}, {folder / 'summary.json'}" + (f", failed: {failed[0]}" if failed else ""))
    if failed and not panels:
        raise ValueError(failed[0])
    return 1 if failed else 0


def choose(given: Sequence[int] | None, split: data.Split) -> list[int]:
    """Rows of the three images: those given, or a fixed draw."""
    if len(split) < 3:
        raise ValueError(f"{split.name}/{split.split} has {len(split)} images: a plane needs 3")
    if given is None:
        return torch.randperm(len(split), generator=experiment.generator("slices"))[:3].tolist()
    if not all(0 <= row < len(split) for row in given) or len(set(given)) < 3:
        raise experiment.UsageError(
            f"--points {' '.join(map(str, given))}: expected three of rows 0 to {len(split) - 1}"
        )
    return list(given)


def span(points: torch.Tensor) -> Plane:
    """The plane through three points [3, D]; points on one line are a ValueError."""
    points = points.double().flatten(1)
    along, aside = points[1] - points[0], points[2] - points[0]
    first = along / along.norm()
    left = aside - (aside @ first) * first
    if not left.norm() > 1e-6 * aside.norm():
        raise ValueError("the three images lie on one line, so that they span no plane: give others with --points")
    axes = torch.stack([first, left / left.norm()])
    return Plane(points[0], axes, (points - points[0]) @ axes.T)


def potential(score: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """phi [G, G] whose differences along a grid's edges fit a score [G, G, 2] best, and the share that none fits.

    score[i, j] is at the i-th first and the j-th second coordinate. The normal equations are Poisson's with free edges,
    which cosines solve. phi is 0 in the mean.
    """
    along, aside = (step * (score[1:, :, 0] + score[:-1, :, 0]) / 2, step * (score[:, 1:, 1] + score[:, :-1, 1]) / 2)
    source = np.zeros(score.shape[:2])
    for differences, axis in ((along, 0), (aside, 1)):
        edge = [(1, 1) if side == axis else (0, 0) for side in range(2)]
        source -= np.diff(np.pad(differences, edge), axis=axis)
    bends = [2 - 2 * np.cos(np.pi * np.arange(size) / size) for size in source.shape]
    stiffness = bends[0][:, None] + bends[1]
    stiffness[0, 0] = 1.0  # the mean, which is left 0
    spectrum = scipy.fft.dctn(source, norm="ortho") / stiffness
    spectrum[0, 0] = 0.0
    phi = scipy.fft.idctn(spectrum, norm="ortho")
    left = np.square(np.diff(phi, axis=0) - along).sum() + np.square(np.diff(phi, axis=1) - aside).sum()
    whole = np.square(along).sum() + np.square(aside).sum()
    return phi, float(left / whole) if whole else 0.0


@torch.no_grad()
def field(
    denoise: Denoiser,
    points: torch.Tensor,
    level: float,
    shape: Sequence[int],
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Scores float64 [N, D] of a denoiser at points [N, D] of images [C, H, W]."""
    found, given = [], torch.tensor(level, device=device)
    for part in points.float().split(batch):
        x = part.reshape(-1, *shape).to(device)
        found.append(((denoise(x, given) - x).double() / level**2).flatten(1).cpu())
    return torch.cat(found)


def measure(neural: np.ndarray, score: np.ndarray) -> float:
    """Relative error of a score against the network's, over all points."""
    return float(np.square(neural - score).sum(dtype=np.float64) / np.square(neural).sum(dtype=np.float64))


def at_level(
    folder: Path,
    level: float,
    made: Slice,
    denoise: Denoiser,
    forms: dict[str, closed_forms.Named],
    protocol: dict[str, Any],
) -> dict[str, cells.Made]:
    """The cells of one level by form, the network's first; what is there is read."""

    def of_network() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        scores = made.scores(denoise, level)
        along = made.projected(scores)
        phi, curl = potential(along, float(made.ticks[0, 1] - made.ticks[0, 0]))
        return {"curl": curl}, {"score": along, "density": phi, "whole": scores}

    def of_form(named: closed_forms.Named) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        scores = made.scores(named.form.denoise, level)
        along, density = made.projected(scores), log_density(named.form, made, level)
        network = found["neural"].arrays
        whole, projected = measure(network["whole"], scores), measure(network["score"], along)
        return {"in_plane": projected, "whole": whole}, {"score": along, "density": density}

    found = {"neural": cells.once(folder, {"level": level, "form": "neural"}, protocol, KIND, of_network)}
    for name, named in forms.items():
        key, own = {"level": level, "form": name}, protocol | {"form": named.origin}
        found[name] = cells.once(folder, key, own, KIND, lambda named=named: of_form(named))
    return found


def log_density(form: ClosedForm, made: Slice, level: float) -> np.ndarray:
    """ln of the density on the grid, float64 [G, G], 0 in the mean."""
    parts = [part.reshape(-1, *made.shape).to(made.device) for part in made.points.split(made.batch)]
    found = torch.cat([form.log_density(part, level).cpu() for part in parts])
    return (found - found.mean()).reshape(made.ticks.shape[1], -1).numpy()


def summarise(panels: dict[float, dict[str, cells.Made]], protocol: dict[str, Any]) -> dict[str, Any]:
    """The numbers of all cells."""
    numbers = [{"level": level} | {name: made.value for name, made in found.items()} for level, found in panels.items()]
    return {"format": arrays.FORMAT, "kind": "slices summary", "protocol": protocol, "levels": numbers}


def say(panels: dict[float, dict[str, cells.Made]], forms: dict[str, closed_forms.Named]) -> None:
    """The relative errors in the plane."""
    for level, found in panels.items():
        parts = ", ".join(f"{named.label} {found[name].value['in_plane']:.3g}" for name, named in forms.items())
        print(
            f"relative error in the plane at level {level:g}: {parts} (curl of the network {found['neural'].value['curl']:.2g})"
        )


def draw(
    panels: dict[float, dict[str, cells.Made]],
    made: Slice,
    forms: dict[str, closed_forms.Named],
    images: np.ndarray,
    path: Path,
    protocol: dict[str, Any],
    pdf: bool,
) -> None:
    """A row a level, high noise below; a column for the network and each closed form."""
    names = ["neural", *forms]
    figure, axes = figures.panels(len(panels), len(names), width=3.1, height=3.0)
    for row, (level, found) in enumerate(panels.items()):
        longest = max(np.linalg.norm(entry.arrays["score"], axis=-1).max() for entry in found.values())
        for column, name in enumerate(names):
            axis, entry = axes[row, column], found[name]
            panel(axis, made, entry.arrays["density"], entry.arrays["score"], longest)
            title = "network" if name == "neural" else forms[name].label
            if column:
                title += f", error {entry.value['in_plane']:.3g}"
            axis.set_title(title, fontsize=9)
        axes[row, 0].set_ylabel(f"level {level:g}")
    thumbnails(axes[0, 0], made.plane, images)
    figure.suptitle(
        f"{protocol['dataset']}/{protocol['split']}: the score in the plane through three images, over its log density",
        fontsize=10.5,
    )
    figures.save(figure, path, table_of(panels, made, names), pdf)


def panel(axis: Any, made: Slice, density: np.ndarray, score: np.ndarray, longest: float) -> None:
    """Log density as colour and lines, the score as arrows on a part of the grid."""
    first, second = made.ticks.numpy()
    axis.contourf(first, second, density.T, levels=24, cmap="viridis")
    axis.contour(first, second, density.T, levels=12, colors="white", linewidths=0.4, alpha=0.5)
    step = -(-len(first) // ARROWS)
    start = (len(first) - 1) % step // 2
    some = slice(start, None, step)
    arrows = score[some, some]
    reach = (first[1] - first[0]) * step * 1.1
    axis.quiver(
        first[some], second[some], *np.moveaxis(arrows, 2, 0).transpose(0, 2, 1), angles="xy", scale_units="xy",
        scale=longest / reach, width=0.005, color="white", pivot="mid",
    )  # fmt: skip
    axis.plot(*made.plane.corners.T.numpy(), "o", color="black", markeredgecolor="white", markersize=6)
    axis.set_aspect("equal")
    axis.grid(False)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def thumbnails(axis: Any, plane: Plane, images: np.ndarray) -> None:
    """The three images beside their points."""
    for place, image in zip(plane.corners.tolist(), images, strict=True):
        picture = np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3))
        box = OffsetImage(picture, zoom=26 / image.shape[1])
        axis.add_artist(AnnotationBbox(box, place, (22, 0), boxcoords="offset points", frameon=True, pad=0.1))


def table_of(panels: dict[float, dict[str, cells.Made]], made: Slice, names: Sequence[str]) -> dict[str, list[float]]:
    """Every grid point of every level: coordinates, scores, log densities."""
    places = torch.cartesian_prod(*made.ticks).numpy()
    table: dict[str, list[float]] = {"level": [level for level in panels for _ in places]}
    table |= {f"coordinate_{axis + 1}": places[:, axis].tolist() * len(panels) for axis in range(2)}
    for name in names:
        parts = [panels[level][name].arrays for level in panels]
        for axis in range(2):
            table[f"score_{axis + 1}_{name}"] = np.concatenate(
                [part["score"][..., axis].ravel() for part in parts]
            ).tolist()
        table[f"log_density_{name}"] = np.concatenate([part["density"].ravel() for part in parts]).tolist()
    return table


if __name__ == "__main__":
    experiment.launch(main)
