"""Three claims a study is held to, read from the numbers that its commands left on disk.

1. The trained encoder knows more than the untrained one: the paired 95 % interval of the difference in test accuracy, each
   at its own best time, lies above 0 for every attribute claimed.
2. At high noise the neural score is the Gaussian's: its relative error lies below the isotropic one's at every level from
   the middle of the grid up, and falls from there to the highest level; between neighbouring levels it may rise by no more
   than their intervals allow.
3. Skipping has a limit: the distance at the recommended skip and at the largest skip differ by more than their intervals.

A file that is missing, or lacks a field, makes its claim fail with the sentence that names it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_model import arrays

Examine = Callable[[dict[str, Any], Path], tuple[list[str], list[str]]]
CLAIMED = ("foreground", "location")  # of the Synthetic data set; other data sets claim every attribute
REMEDIES = {  # what writes the files that the claims and the report read
    "accuracy": "python downstream_classification/tabulate.py RUN",
    "scores": "python linear_structure/compare_scores.py RUN PARAMS, then python linear_structure/plot_scores.py RUN",
    "sweep": "python linear_structure/sweep_skips.py RUN PARAMS, then "
    "python linear_structure/process_experiments_with_skips.py RUN",
    "attention": "python qualitative_analysis/profile_attention.py RUN",
    "information": "python qualitative_analysis/estimate_mi.py RUN/trajectories/encoder",
}
ACCURACY = {"accuracy": float, "low": float, "high": float, "best_time?": float}
DIFFERENCE = {"difference": float, "low": float, "high": float}
COLUMN = {"mean": [float], "low": [float], "high": [float]}
DISTANCE = {"skip": int, "distance": float, "low": float, "high": float}
SHAPES = {  # what the claims and the report read of these files, as `arrays.expect` takes it
    "accuracy": {
        "attributes": {...: {
            "chance": float, "encoder?": ACCURACY, "untrained?": ACCURACY, "pixels?": ACCURACY, "mixed?": {...: ACCURACY},
            "encoder_minus_untrained?": DIFFERENCE, "mixed_minus_single?": {...: DIFFERENCE},
        }},
        "protocol": {"test_images": int},
    },
    "scores": {
        "levels": [float], "relative_error": {"gaussian": COLUMN, "isotropic": {"mean": [float]}},
        "explained_variance": {"gaussian": {"mean": [float]}}, "protocol": dict,
    },
    "sweep": {
        "recommended": DISTANCE, "largest": DISTANCE, "floor?": ({"distance": float}, None), "distance": str, "n": int,
        "features": str, "jump": str, "margin": float, "protocol": dict,
        "lines?": [{"sampler": str, "steps": int, "by": str, "recommended": {"skip": int, "level": float}}],
    },
    "attention": {"attributes": {...: {"most_attended": float, "images": int, "seeds": [int]}}},
    "information": {
        "source": str, "ceiling": float, "beyond_ceiling": list, "still_rising?": list, "beyond_known?": list,
        "known?": [{"truth": float, "nats": float}], "known_up_to?": (float, None),
        "protocol": {"dimension": int, "width": int, "seeds": [int], "rows": {"fit": int, "validation": int, "held_out": int}},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """What is claimed, whether it holds, and the numbers (or the lack) that decide it."""

    title: str
    holds: bool
    numbers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)  # one sentence each; empty where it holds


def judge(workdir: Path, attributes: Sequence[str] | None = None) -> list[Claim]:
    """All claims for the study in `workdir`."""
    return [encoder_learns(workdir, attributes), gaussian_at_high_noise(workdir), skipping_has_a_limit(workdir)]


def read(path: Path, kind: str) -> dict[str, Any]:
    """One summary; an unreadable one, or one of another shape, is a ValueError that names file, field and command."""
    content = arrays.read_json(path)
    arrays.expect(content, path, SHAPES[kind], again(kind))
    return content


def again(kind: str) -> str:
    """What an error tells the user to run."""
    return f"run `{REMEDIES[kind]}` again"


def claim(title: str, workdir: Path, pattern: str, kind: str, examine: Examine) -> Claim:
    """Examine every file of a kind below `workdir`; `examine(content, path)` gives (numbers, failures)."""
    paths = sorted(workdir.glob(pattern))
    if not paths:
        return Claim(title, False, [], [f"no {pattern} in {workdir}: run `{REMEDIES[kind]}`"])
    numbers, failures = [], []
    for path in paths:
        try:
            more, wrong = examine(read(path, kind), path)
        except ValueError as error:
            more, wrong = [], [str(error)]
        numbers += more
        failures += wrong
    return Claim(title, not failures, numbers, failures)


def encoder_learns(workdir: Path, attributes: Sequence[str] | None = None) -> Claim:
    """Claim 1, from tables/accuracy_RUN.json; of tables of blocks beside them it says nothing."""

    def examine(content: dict[str, Any], path: Path) -> tuple[list[str], list[str]]:
        known = content["attributes"]
        if content.get("source") == "blocks":
            return [], []
        chosen = list(attributes or (CLAIMED if set(CLAIMED) <= known.keys() else known))
        if not chosen:
            raise ValueError(f"{path} holds no attribute: {again('accuracy')}")
        numbers, failures = [], []
        for name in chosen:
            if name not in known:
                raise ValueError(f"{path} has no attribute {name!r}; there are: {', '.join(known)}")
            compared = {"attributes": {name: {"encoder_minus_untrained": dict}}}
            arrays.expect(content, path, compared, again("accuracy"))
            found = known[name]["encoder_minus_untrained"]
            told = f"{name}: {found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
            numbers.append(f"{path.stem.removeprefix('accuracy_')}, {told}")
            if not found["low"] > 0:
                failures.append(
                    f"the trained encoder does not beat the untrained one on {told}, an interval not above 0 ({path})"
                )
        return numbers, failures

    title = "The trained encoder beats the untrained encoder (test accuracy, each at its own best time, paired 95 % interval)"
    judged = claim(title, workdir, "tables/accuracy_*.json", "accuracy", examine)
    if judged.holds and not judged.numbers:
        return Claim(title, False, [], [f"no table in {workdir}/tables is of an encoder: {again('accuracy')}"])
    return judged


def gaussian_at_high_noise(workdir: Path) -> Claim:
    """Claim 2, from RUN/scores/summary.json."""

    def examine(content: dict[str, Any], path: Path) -> tuple[list[str], list[str]]:
        levels, gaussian = content["levels"], content["relative_error"]["gaussian"]
        isotropic = content["relative_error"]["isotropic"]["mean"]
        explained = content["explained_variance"]["gaussian"]["mean"]
        columns = [*(gaussian[end] for end in COLUMN), isotropic, explained]
        if len(levels) < 3 or any(len(column) != len(levels) for column in columns):
            raise ValueError(f"{path} holds columns of different length, or fewer than 3 levels: {again('scores')}")
        upper = range(len(levels) // 2, len(levels))
        first, last = upper[0], upper[-1]
        numbers = [
            f"level {levels[at]:.3g}: relative error {gaussian['mean'][at]:.3g} Gaussian, {isotropic[at]:.3g} isotropic; "
            f"variance of the neural denoiser that the Gaussian one explains {explained[at]:.3f}"
            for at in (first, last)
        ]
        failures = [
            f"the Gaussian score's relative error {gaussian['mean'][at]:.3g} is not below the isotropic one's {isotropic[at]:.3g} "
            f"at level {levels[at]:.3g} ({path})"
            for at in upper
            if not gaussian["mean"][at] < isotropic[at]
        ]
        failures += [
            f"the Gaussian score's relative error rises from {gaussian['mean'][at]:.3g} at level {levels[at]:.3g} to "
            f"{gaussian['mean'][at + 1]:.3g} at level {levels[at + 1]:.3g}, by more than their intervals ({path})"
            for at in upper[:-1]
            if gaussian["low"][at + 1] > gaussian["high"][at]
        ]
        if not gaussian["mean"][last] < gaussian["mean"][first]:
            failures.append(
                f"the Gaussian score's relative error does not fall towards high noise: {gaussian['mean'][first]:.3g} at level "
                f"{levels[first]:.3g}, {gaussian['mean'][last]:.3g} at level {levels[last]:.3g} ({path})"
            )
        return numbers, failures

    title = "From the middle of the levels up, the Gaussian score is closer to the neural one than the isotropic score, and ever closer"
    return claim(title, workdir, "runs/*/scores/summary.json", "scores", examine)


def skipping_has_a_limit(workdir: Path) -> Claim:
    """Claim 3, from RUN/sweeps/NAME/summary.json."""

    def examine(content: dict[str, Any], path: Path) -> tuple[list[str], list[str]]:
        ends = {name: content[name] for name in ("recommended", "largest")}
        floor = content.get("floor")
        told = {
            name: f"{end['distance']:.4g} [{end['low']:.4g}, {end['high']:.4g}] at the {name} skip, {end['skip']}"
            for name, end in ends.items()
        }
        beside = f"; real against real {floor['distance']:.4g}" if floor else ""
        measure = f"{content['distance']}, n = {content['n']}"
        numbers = [f"{told['recommended']}; {told['largest']}{beside} ({measure})"]
        low, high = ends["recommended"], ends["largest"]
        apart = low["high"] < high["low"] or high["high"] < low["low"]
        if apart:
            return numbers, []
        return numbers, [
            f"the distances {told['recommended']}, and {told['largest']}, do not differ by more than their intervals "
            f"({path})"
        ]

    title = "The distance at the recommended skip and at the largest skip differ by more than their 95 % intervals"
    return claim(title, workdir, "runs/*/sweeps/*/summary.json", "sweep", examine)
