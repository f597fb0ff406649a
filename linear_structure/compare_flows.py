"""How near do the flows of closed forms end to the network's samples, from the same noise?

RUN is a run of mode none and PARAMS the folder of get_parameters.py. Image i starts from the noise of seed i at the first
level of EDM's grid. The network's probability flow is solved by --sampler. A Gaussian's flow has a formula and jumps to
every level of the grid. Mixtures have none: theirs is solved as the network's, on the same grid, so that both carry an error
of the same kind, and so that the delta mixture, of which each evaluation is a pass over the training images, takes as many
evaluations as the network and not the hundreds of an integration to 1e-6. What the solver alone does to the Gaussian's flow
is measured too: what lies near it says nothing.

    mse         of two end samples, mean over pixels, on [0, 1] and clipped there; its mean and deviation over seeds
                (Wang & Vastola 2024), and as a share of that between two samples of the network of different seeds
    distance    between the states at each level, root of the mean square over pixels and seeds, in model space
    features    with --features, the Euclidean distance of two end samples in an extractor's features, likewise

Cells and arrays of every form, flows.png, pictures.png (.csv each) and summary.json go to RUN/flows/sampler=S/steps=N/. The
states of the network are kept, n (steps + 1) D numbers of 4 bytes, so that forms can be added without it; a killed command
goes on with the flows that are missing.

  python linear_structure/compare_flows.py runs/edm-synthetic16 gaussian_params --features classifier
  python linear_structure/compare_flows.py runs/edm-cifar10 gaussian_params --also mixture_params --delta --n 512

Dimensions: N seeds, S steps, C x H x W pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion_model import arrays, data, experiment, features, figures
from diffusion_model.data import Scaling
from diffusion_model.experiment import AtLeast
from diffusion_model.samplers import SAMPLERS, Denoiser, edm_levels
from linear_structure import cells, closed_forms, inputs
from linear_structure.closed_forms import Named
from linear_structure.flow import ClosedForm, Integrated
from linear_structure.gaussian import Gaussian
from linear_structure.measures import mean_interval

KIND = "flows"
SHOWN = 10  # seeds of the pictures
NEURAL, SOLVER = "network", "solver"
REFERENCES = {  # name: (label, colour) of what is no closed form
    NEURAL: ("network, different seeds", "black"),
    SOLVER: ("error of the solver alone", "0.6"),
}
# arrays of a cell: end samples, and the network's states or a form's squared errors from it
OF_NETWORK = {"states": "finite [N, S, C, H, W]", "images": "bytes [N, C, H, W]"}
OF_FORM = {"mse": "finite [N]", "images": "bytes [N, C, H, W]"}


class Flows(NamedTuple):
    """What all flows share: the grid, the solver, the seeds and how they become batches."""

    levels: torch.Tensor
    sampler: str
    seeds: Sequence[int]
    shape: tuple[int, int, int]
    batch: int
    device: torch.device

    def starts(self, what: str) -> Iterator[torch.Tensor]:
        """The noise of the seeds at the first level, batch by batch."""
        for start in experiment.progress(range(0, len(self.seeds), self.batch), what, "batch"):
            chosen = self.seeds[start : start + self.batch]
            yield float(self.levels[0]) * experiment.sample_noise("start", chosen, self.shape).to(self.device)

    def solved(self, denoise: Denoiser, what: str) -> np.ndarray:
        """States float32 [N, S + 1, C, H, W] of a denoiser's flow, by the solver."""
        return self._states(lambda x: SAMPLERS[self.sampler].run(denoise, x, self.levels), what)

    def exact(self, form: ClosedForm, what: str) -> np.ndarray:
        """States of a closed form's own flow, by its formula."""
        first = self.levels[0]
        return self._states(lambda x: [x, *(form.teleport(x, first, level) for level in self.levels[1:])], what)

    def of(self, named: Named) -> np.ndarray:
        """States of a closed form's flow: its formula, or the solver where it has none."""
        form = named.form
        without = isinstance(form, Integrated) and len(form) > 1
        return self.solved(form.denoise, named.label) if without else self.exact(form, named.label)

    @torch.no_grad()
    def _states(self, run: Callable[[torch.Tensor], Iterable[torch.Tensor]], what: str) -> np.ndarray:
        found = []
        for x in self.starts(what):
            found.append(torch.stack([state.float().cpu() for state in run(x)], 1))
            if not torch.isfinite(found[-1]).all():
                raise FloatingPointError(f"the flow of {what} left the finite numbers")
        return torch.cat(found).numpy()


class Flow(NamedTuple):
    """The cells of one flow: its states and, where features are asked for, how they look."""

    states: cells.Made
    seen: cells.Made | None = None


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="compare_flows.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run of mode none")
    parser.add_argument("params", metavar="PARAMS", type=Path, nargs="?", default=inputs.PARAMS, help="its statistics")
    closed_forms.add_options(parser)
    parser.add_argument("--n", type=AtLeast(2), default=256, help="seeds, from 0")
    parser.add_argument("--sampler", default="heun", choices=tuple(SAMPLERS), help="solver")
    parser.add_argument("--steps", type=AtLeast(2, most=10_000), default=18, help="of the solver, on EDM's grid")
    parser.add_argument("--features", choices=tuple(features.FEATURES), help="also measure in this feature space")
    parser.add_argument("--weights", type=Path, help="file of pytorch-fid's Inception weights (default: downloaded)")
    parser.add_argument("--batch", type=AtLeast(1), default=64, help="samples at once")
    parser.add_step()
    parser.add_process()
    parser.add_pdf()
    parser.add_data()
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if args.weights is not None and args.features is None:
        raise experiment.UsageError("--weights: pass --features inception too")
    device, root = experiment.choose_device(args.device), data.root(args.data)
    given = inputs.open_inputs(args.run, args.params, root, args.step, device, args.process)
    forms = closed_forms.gather(given, args.also, args.delta)
    extractor = None
    if args.features:
        extractor = features.open_extractor(args.features, given.split("train"), root, args.weights, device)
    low, high = given.model.sde.level_range()
    levels = edm_levels(args.steps, low, high)
    flows = Flows(levels, args.sampler, range(args.n), given.model.shape, args.batch, device)
    protocol = given.protocol | {"grid": "edm", "level_min": low, "level_max": high, "n": args.n}
    work = Work(args.run / "flows", protocol, flows, given.model.scaling, extractor)
    made, failed = work.all(given.model.denoise, forms)
    folder = args.run / "flows" / f"sampler={args.sampler}" / f"steps={args.steps}"
    summary = summarise(made, forms, work)
    arrays.write_json(folder / "summary.json", summary)
    draw_flows(summary, forms, folder / "flows.png", args.pdf)
    draw_pictures(made, forms, summary, folder / "pictures.png", args.pdf)
    say(summary)
    print(f"{folder / 'flows.png'}, {folder / 'pictures.png'}" + (f", failed: {failed[0]}" if failed else ""))
    return 1 if failed else 0


class Work(NamedTuple):
    """The cells of one solver and grid, made where they are missing."""

    folder: Path
    protocol: dict[str, Any]
    flows: Flows
    scaling: Scaling
    extractor: features.Extractor | None = None

    def all(self, denoise: Denoiser, forms: dict[str, Named]) -> tuple[dict[str, Flow], list[str]]:
        """The network's flow, the solver's error and every closed form's, by name, and the errors of those that failed.

        Without the network's there is nothing to compare with: its error is raised.
        """
        network = self._once(NEURAL, lambda: self._network(denoise))
        made, failed = {NEURAL: Flow(network, self._codes(network))}, []
        made[SOLVER] = Flow(self._once(SOLVER, lambda: self._solver(forms["gaussian"].form)))
        for name, named in forms.items():
            try:
                found = self._once(name, lambda named=named: self._form(named, network), form=named.origin)
                made[name] = Flow(found, self._seen(name, named, found, made[NEURAL]))
            except cells.ERRORS as error:
                failed.append(f"{name}: {error}")
        return made, failed

    def _once(self, name: str, make: Callable[[], tuple], space: str | None = None, **origin: str) -> cells.Made:
        """The cell of one flow, or of what a feature space says of it."""
        key = {"sampler": self.flows.sampler, "steps": len(self.flows.levels) - 1}
        key |= {"features": space} if space else {}
        like = None if space else OF_NETWORK if name == NEURAL else OF_FORM
        return cells.once(self.folder, key | {"form": name}, self.protocol | origin, KIND, make, like)

    def _network(self, denoise: Denoiser) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        states = self.flows.solved(denoise, "the network")
        value = {"mse": float(between(self._unit(states)[:, None])[0]), "distance": np.sqrt(between(states)).tolist()}
        return value, {"states": states, "images": self._images(states)}

    def _solver(self, gaussian: Gaussian) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return self._apart(
            self.flows.solved(gaussian.denoise, "the Gaussian by the solver"),
            self.flows.exact(gaussian, "the Gaussian by its formula"),
        )

    def _form(self, named: Named, network: cells.Made) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return self._apart(self.flows.of(named), network.arrays["states"])

    def _apart(self, states: np.ndarray, others: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Distances [N, S + 1, C, H, W] between two flows."""
        mse = np.square(self._unit(states) - self._unit(others)).mean((1, 2, 3))
        value = {"mse": spread(mse), "distance": np.sqrt(squares(states, others).mean(0)).tolist()}
        return value, {"mse": mse, "images": self._images(states)}

    def _unit(self, states: np.ndarray) -> np.ndarray:
        """The ends as pixels on [0, 1], float64 [N, C, H, W]."""
        return self.scaling.to_unit(torch.from_numpy(np.array(states[:, -1])).double()).clamp(0, 1).numpy()

    def _images(self, states: np.ndarray) -> np.ndarray:
        """The ends as uint8 images [N, C, H, W]."""
        return self.scaling.to_pixels(torch.from_numpy(np.array(states[:, -1]))).numpy()

    def _codes(self, network: cells.Made) -> cells.Made | None:
        """Features of the network's ends and the mean distance between two of them."""
        if self.extractor is None:
            return None

        def make() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
            codes = features.extract(self.extractor, network.arrays["images"], "network's samples")
            return {"mean": float(torch.pdist(torch.from_numpy(codes).double()).mean())}, {"codes": codes}

        return self._once(NEURAL, make, self.extractor.name, weights=self.extractor.fingerprint)

    def _seen(self, name: str, named: Named, found: cells.Made, network: Flow) -> cells.Made | None:
        """Distances in feature space between a form's ends and the network's."""
        if self.extractor is None:
            return None

        def make() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
            codes = features.extract(self.extractor, found.arrays["images"], named.label)
            distance = np.linalg.norm(codes.astype(np.float64) - network.seen.arrays["codes"], axis=1)
            return spread(distance), {"distance": distance}

        origin = {"form": named.origin, "weights": self.extractor.fingerprint}
        return self._once(name, make, self.extractor.name, **origin)


def squares(states: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean over pixels of the squared difference at each level, float64 [N, S + 1]; one level in memory at a time."""
    levels = range(states.shape[1])
    apart = (states[:, level].astype(np.float64) - others[:, level] for level in levels)
    return np.stack([np.square(difference).mean((1, 2, 3)) for difference in apart], 1)


def between(states: np.ndarray) -> np.ndarray:
    """Mean over pixels and over all pairs of seeds of the squared difference at each level, float64 [S + 1]."""
    levels = range(states.shape[1])
    return np.array([2 * states[:, level].astype(np.float64).var(0, ddof=1).mean() for level in levels])


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean and deviation over seeds, the interval of the mean, and where the middle 80 % of the seeds lie."""
    tenth, ninetieth = np.quantile(values, (0.1, 0.9)).tolist()
    found = mean_interval(torch.from_numpy(values))
    return found | {"deviation": float(values.std(ddof=1)), "tenth": tenth, "ninetieth": ninetieth}


def summarise(made: dict[str, Flow], forms: dict[str, Named], work: Work) -> dict[str, Any]:
    """The numbers of all cells, each also as a share of what lies between two seeds of the network."""
    network, seen = made[NEURAL].states.value, made[NEURAL].seen
    key = {"sampler": work.flows.sampler, "steps": len(work.flows.levels) - 1}
    summary: dict[str, Any] = {
        "format": arrays.FORMAT,
        "kind": "flows summary",
        "protocol": work.protocol | key | {"interval": "95 %, normal, over seeds"},
        "levels": work.flows.levels.tolist(),
        "different_seeds": network | ({work.extractor.name: seen.value["mean"]} if seen else {}),
        "solver": made[SOLVER].states.value,
        "forms": {},
    }
    for name in (name for name in forms if name in made):
        value = made[name].states.value
        entry = {"label": forms[name].label, **value, "share": value["mse"]["mean"] / network["mse"]}
        if seen:
            distance = made[name].seen.value
            entry[work.extractor.name] = distance | {"share": distance["mean"] / seen.value["mean"]}
        summary["forms"][name] = entry
    return summary


def say(summary: dict[str, Any]) -> None:
    """The end samples' distances, a line for pixels and one for features."""
    spaces = {"mse": "mean squared error of end samples from the same noise, on [0, 1]"}
    spaces |= {
        name: f"their distance in {name} features" for name in summary["different_seeds"].keys() & features.FEATURES
    }
    for space, what in spaces.items():
        parts = []
        for entry in summary["forms"].values():
            share = entry["share"] if space == "mse" else entry[space]["share"]
            parts.append(
                f"{entry['label']} {entry[space]['mean']:.3g} +- {entry[space]['deviation']:.2g} ({share:.1%})"
            )
        if space == "mse":
            parts.append(f"solver alone {summary['solver'][space]['mean']:.2g}")
        print(f"{what} (share of that between seeds, {summary['different_seeds'][space]:.3g}): {', '.join(parts)}")


def draw_flows(summary: dict[str, Any], forms: dict[str, Named], path: Path, pdf: bool) -> None:
    """Distance along the flow, and of the end samples; the right panel names the lines of the left."""
    figure, (axes,) = figures.panels(1, 2, width=5.2, height=3.9)
    rows = {NEURAL: summary["different_seeds"], **summary["forms"], SOLVER: summary["solver"]}
    looks = REFERENCES | {name: (named.label, named.colour) for name, named in forms.items()}
    levels = summary["levels"][:-1]
    for place, (name, entry) in enumerate(rows.items()):
        colour = looks[name][1]
        style = {NEURAL: "--", SOLVER: ":"}.get(name, "o-")
        axes[0].plot(levels, [value or np.nan for value in entry["distance"][:-1]], style, color=colour, markersize=3)
        dot(axes[1], len(rows) - 1 - place, entry["mse"], colour)
    axes[0].set(xscale="log", yscale="log", xlabel="noise level (model space)")
    axes[0].set_ylabel("root mean square a pixel (model space)")
    axes[0].set_title("distance to the network's state")
    axes[1].set(xscale="log", xlabel="mean squared error on [0, 1]", ylim=(-0.6, len(rows) - 0.4))
    axes[1].set_yticks(range(len(rows)), [looks[name][0] for name in reversed(rows)])
    axes[1].set_title("end samples: mean, middle 80 % of the seeds")
    protocol = summary["protocol"]
    figure.suptitle(
        f"{protocol['dataset']}, {protocol['n']} seeds: flows from the same noise; network by {protocol['sampler']}, "
        f"{protocol['steps']} steps",
        fontsize=10.5,
    )
    table: dict[str, list[Any]] = {"level": summary["levels"]}
    figures.save(figure, path, table | {f"distance_{name}": entry["distance"] for name, entry in rows.items()}, pdf)


def dot(axis: Any, height: int, mse: dict[str, float] | float, colour: str) -> None:
    """A mean with its range, and its number at the right; a line down the panel for what is a mean alone."""
    if isinstance(mse, float):
        axis.axvline(mse, color=colour, linestyle="--", linewidth=1.2)
        mean, text = mse, f"{mse:.3g}"
    else:
        axis.plot([mse["tenth"], mse["ninetieth"]], [height, height], color=colour, linewidth=3, alpha=0.4)
        mean, text = mse["mean"], f"{mse['mean']:.3g} ± {mse['deviation']:.2g}"
    axis.plot(mean, height, "o", color=colour)
    axis.text(1.02, height, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8.5)


def draw_pictures(
    made: dict[str, Flow], forms: dict[str, Named], summary: dict[str, Any], path: Path, pdf: bool
) -> None:
    """End samples of the same noise in a column: the network's, then every closed form's but the isotropic ones."""
    shown = [name for name in forms if name in made and name not in ("mean", "isotropic")]
    names = [NEURAL, *shown]
    figure, axes = figures.panels(len(names), 1, width=8.2, height=0.72)
    for axis, name in zip(axes[:, 0], names, strict=True):
        images = made[name].states.arrays["images"][:SHOWN]
        gaps = np.pad(images, ((0, 0), (0, 0), (0, 0), (1, 1)), constant_values=255)
        strip = np.concatenate([image.transpose(1, 2, 0) for image in gaps], axis=1)
        axis.imshow(np.broadcast_to(strip, (*strip.shape[:2], 3)), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        for side in axis.spines.values():
            side.set_visible(False)
        label = "network"
        if name != NEURAL:
            label = f"{forms[name].label}\n{summary['forms'][name]['mse']['mean']:.3g}".replace(" (", "\n(")
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle("end samples, each column from the same noise; mean squared error on [0, 1]", fontsize=10.5)
    mse = {name: made[name].states.arrays["mse"].tolist() for name in shown}
    table = {"seed": list(range(len(made[NEURAL].states.arrays["images"])))}
    figures.save(figure, path, table | {f"mse_{name}": values for name, values in mse.items()}, pdf)


if __name__ == "__main__":
    experiment.launch(main)
