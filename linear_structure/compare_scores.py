"""How much of the neural score is explained by closed forms? Relative error and explained variance over noise levels.

RUN is a run of mode none and PARAMS the folder of get_parameters.py. At each level the same images, each with its own
fixed noise, are denoised by the network, by the mean alone, by the isotropic Gaussian (mean and variance) and by the Gaussian:

  relative error                |s_nn - s|^2 / |s_nn|^2        mean over images; 1 minus it is the score's explained variance
  denoiser's explained variance 1 - |D_nn - D|^2 / |D_nn|^2    mean over images
  centred                       1 - sum |D_nn - D|^2 / sum |D_nn - mu|^2, which the mean alone explains by 0

The score's relative error is almost bound to fall at high noise, where any score points back to the data: the denoiser's
explained variance, without the common -x / level^2, is the stricter companion. One cell a level goes to RUN/scores/.

  python linear_structure/compare_scores.py runs/edm-synthetic16 gaussian_params
  python linear_structure/plot_scores.py runs/edm-synthetic16
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, data, experiment, results
from diffusion_model.experiment import AtLeast
from diffusion_model.samplers import Denoiser
from linear_structure import inputs
from linear_structure.gaussian import Gaussian

SHOWN = 6  # images kept as pictures at each level


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="compare_scores.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run of mode none")
    parser.add_argument("params", metavar="PARAMS", type=Path, nargs="?", default=inputs.PARAMS, help="its statistics")
    parser.add_argument("--n", type=AtLeast(2), help="images, drawn by a fixed seed (default: 512, or all there are)")
    parser.add_argument("--split", default="test", choices=data.SPLITS, help="which images")
    parser.add_argument("--levels", type=AtLeast(2), default=16, help="number of levels, even in the logarithm")
    parser.add_argument("--level-min", type=float, default=0.02, help="lowest level, in model space")
    parser.add_argument("--level-max", type=float, help="highest level (default: the highest the run was made for)")
    parser.add_argument("--batch", type=AtLeast(1), default=256, help="images at once")
    parser.add_argument("--step", type=int, help="checkpoint (default: the newest)")
    parser.add_data()
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    device = experiment.choose_device(args.device)
    given = inputs.open_inputs(args.run, args.params, data.root(args.data), args.step, device)
    high = given.model.sde.level_range()[1] if args.level_max is None else args.level_max
    if not 0 < args.level_min < high:
        raise experiment.UsageError(
            f"--level-min {args.level_min} and highest level {high}: expected 0 < lowest < highest"
        )
    split = given.split(args.split)
    n = min(512, len(split)) if args.n is None else args.n
    if n > len(split):
        raise ValueError(f"--n {n}: {split.name}/{split.split} has {len(split)} images")
    folder = args.run / "scores"
    protocol = given.protocol | {"split": split.split, "images": split.hash, "n": n, "noise": "fixed an image"}
    levels = [float(f"{level:.6g}") for level in np.geomspace(args.level_min, high, args.levels)]
    missing = [level for level in levels if not is_there(folder, level, protocol)]
    rows = torch.randperm(len(split), generator=experiment.generator("scores"))[:n].numpy()
    failed = []
    for level in experiment.progress(missing, "scores", "level"):
        try:
            value, pictures = compare(
                given.model.denoise, given.forms, split.images, rows, given.model.scaling, level, args.batch, device
            )
        except (ValueError, RuntimeError, FloatingPointError) as error:
            failed.append(f"level {level:g}: {error}")
            results.write_cell(folder, {"level": level}, {"error": str(error)}, protocol)
            continue
        arrays.write_folder(beside(folder, level), "denoised images", pictures, level=level)
        results.write_cell(folder, {"level": level}, value, protocol)
    print(f"{folder}: {len(levels) - len(failed)} levels finished" + (f", failed: {failed[0]}" if failed else ""))
    return 1 if failed else 0


def beside(folder: Path, level: float) -> Path:
    """The folder of a cell's pictures, beside its JSON."""
    path = results.cell_path(folder, level=level)
    return path.with_name(path.name.removesuffix(".json"))


def is_there(folder: Path, level: float, protocol: dict[str, Any]) -> bool:
    """Whether a level is finished, with its pictures."""
    return results.finished(folder, {"level": level}, protocol) is not None and arrays.is_finished(
        beside(folder, level)
    )


@torch.no_grad()
def compare(
    denoise: Denoiser,
    forms: dict[str, Gaussian],
    images: np.ndarray,
    rows: Sequence[int],
    scaling: data.Scaling,
    level: float,
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The measures of each closed form against any denoiser at one level, and pictures of the first images.

    images uint8 [N, C, H, W], of which `rows` are taken; the noise belongs to the row.
    """
    mu = next(iter(forms.values())).mu
    error, explained = ({name: [] for name in forms} for _ in range(2))
    residual, spread = dict.fromkeys(forms, 0.0), 0.0
    pictures: dict[str, np.ndarray] = {}
    for start in range(0, len(rows), batch):
        chosen = [int(row) for row in rows[start : start + batch]]
        x0 = scaling.to_model(torch.from_numpy(np.array(images[chosen])).to(device))
        x = x0 + level * experiment.sample_noise("scores", chosen, x0.shape[1:]).to(device)
        given = torch.tensor(level, device=device)  # one level, rounded alike, for the network and the closed forms
        neural = denoise(x, given)
        if not torch.isfinite(neural).all():
            raise FloatingPointError("the network's denoiser gave NaN or infinite values")
        size, whole = squares(neural - x), squares(neural)
        spread += float(squares(neural - mu.reshape(x.shape[1:]).to(neural)).sum())
        found = {name: form.denoise(x, given) for name, form in forms.items()}
        for name, denoised in found.items():
            difference = squares(neural - denoised)
            residual[name] += float(difference.sum())
            error[name].append(difference / size)
            explained[name].append(1 - difference / whole)
        if not pictures:
            shown = {"clean": x0, "noised": x, "neural": neural, **found}
            pictures = {name: scaling.to_pixels(value[:SHOWN]).cpu().numpy() for name, value in shown.items()}
    value = {
        "relative_error": {name: mean_interval(torch.cat(parts)) for name, parts in error.items()},
        "explained_variance": {name: mean_interval(torch.cat(parts)) for name, parts in explained.items()},
        "centred": {name: 1 - residual[name] / spread for name in forms},
    }
    return value, pictures


def squares(values: torch.Tensor) -> torch.Tensor:
    """Sum of squares of each row, in float64 [B]."""
    return values.double().square().flatten(1).sum(1).cpu()


def mean_interval(values: torch.Tensor) -> dict[str, float]:
    """Mean over images [N] with its normal 95 % interval."""
    mean, reach = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


if __name__ == "__main__":
    experiment.launch(main)
