"""What a sweep over skips shows: its cells with intervals, the recommended jump of each solver, and both in words.

Intervals are 95 %, by leaving out one block of seeds at a time (intervals.py). Over a solver's own grid the recommended
skip is the largest whose paired upper bound lies within the margin; of jumps to levels from which all steps are spread
anew, which save no evaluations, it is the one of least distance.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_model import arrays, experiment, results
from diffusion_model.samplers import SAMPLERS
from linear_structure.intervals import accepted, distances, increase
from linear_structure.sweeps import kept_reference

KINDS = ("gaussian", "mixture", "isotropic", "mean")  # of jumps, the first of a sweep's is the one recommended
SAMPLER_ORDER = ("heun", *(name for name in SAMPLERS if name != "heun"))
VARIED = ("images", "test", "mixture")  # protocol fields that some cells of one sweep have
NAMES = {
    "heun": "Heun",
    "euler": "Euler",
    "dpmpp-2m": "DPM-Solver++ (2M)",
    "unipc-bh1": "UniPC-bh1",
    "unipc-bh2": "UniPC-bh2",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """The cells that share a plain solver, by kind of jump, from the least jump: over its own grid or to any level."""

    sampler: str
    steps: int
    by: str
    start: Row
    kinds: dict[str, list[Row]]

    @property
    def main(self) -> list[Row]:
        """The cells of the first kind."""
        return next(iter(self.kinds.values()))

    @property
    def title(self) -> str:
        """The solver, as a figure says it."""
        return f"{NAMES.get(self.sampler, self.sampler)}, {self.steps} steps"


def read_sweep(folder: Path, blocks: int, remedy: str) -> list[Row]:
    """The cells of one sweep, each with its distance and its paired increase as estimates: by solver, kind and level."""
    cells = results.read_cells(folder, remedy)
    names = {name for cell in cells for name in cell.protocol} - {*VARIED}
    mixed = sorted(name for name in names if len({str(cell.protocol.get(name)) for cell in cells}) > 1)
    if mixed:
        raise ValueError(f"{folder} mixes cells of different {', '.join(mixed)}: remove it and {remedy}")
    reference = kept_reference(folder, remedy)
    rows, starts = [], {}
    for cell in experiment.progress(sorted(cells, key=_order), "intervals", "cell"):
        held, _ = arrays.read_folder(cell.path.with_suffix(""), "sweep cell", remedy)
        if blocks > len(held["features"]) // 2:
            raise experiment.UsageError(
                f"--blocks {blocks}: {len(held['features'])} samples make 2 to {len(held['features']) // 2} blocks"
            )
        found = distances(held["features"], reference, blocks)
        # a cell of format 1 before samplers were part of the key has them in its protocol
        given = {name: cell.protocol[name] for name in ("sampler", "steps") if name in cell.protocol}
        row = {**given, **cell.value, **cell.key, "by": "level" if "level" in cell.key else "skip", "estimate": found}
        solver = (row.get("sampler"), row.get("steps"))
        if row["kind"] == "none":
            starts[solver] = found
        paired = row["kind"] != "real" and solver in starts
        change = increase(found, starts[solver]) if paired else None
        rows.append({**row, "change": change, "images": held["images"], "protocol": cell.protocol})
    return rows


def _order(cell: results.Cell) -> tuple:
    """The plain solvers, then kinds in their order from the least jump, then real images; Heun before others."""
    given = cell.protocol | cell.key
    kinds, sampler = ["none", *KINDS, "real"], given.get("sampler")
    place = SAMPLER_ORDER.index(sampler) if sampler in SAMPLER_ORDER else len(SAMPLER_ORDER)
    return (
        cell.key["kind"] == "real", place, -given.get("steps", 0), kinds.index(cell.key["kind"]), "level" in cell.key,
        cell.key.get("skip", 0), -cell.key.get("level", 0.0),
    )  # fmt: skip


def lines(rows: list[Row]) -> list[Line]:
    """The cells by solver, those on the solvers' own grids first; a solver without a plain cell or without jumps has none."""
    found = []
    for by in ("skip", "level"):
        for start in (row for row in rows if row["kind"] == "none"):
            solver = (start["sampler"], start["steps"])
            own = [row for row in rows if row["by"] == by and (row.get("sampler"), row.get("steps")) == solver]
            kinds = {kind: [row for row in own if row["kind"] == kind] for kind in KINDS}
            kinds = {kind: cells for kind, cells in kinds.items() if cells}
            if kinds:
                found.append(Line(*solver, by, start, kinds))
    return found


def summarise(rows: list[Row], margin: float | str, blocks: int) -> dict[str, Any]:
    """What the sweep shows: no skip, the recommended skip, the largest skip, the floor, and every cell.

    `lines` has that for every solver; the fields beside it are those of the first.
    """
    every = [outline(line, margin) for line in lines(rows)]
    first, start = every[0], next(row for row in rows if row["kind"] == "none")
    floor = next((row for row in rows if row["kind"] == "real"), None)
    protocol = start["protocol"] | {"sampler": first["sampler"], "steps": first["steps"]}
    starts = {(row["sampler"], row["steps"]): row for row in rows if row["kind"] == "none"}
    paired = [(row, starts.get((row.get("sampler"), row.get("steps")))) for row in rows if row["change"] is not None]
    return {
        "format": arrays.FORMAT,
        "kind": "sweep summary",
        "distance": start["protocol"]["distance"],
        "features": start["protocol"]["features"],
        "n": start["protocol"]["n"],
        **{name: first[name] for name in ("margin", "jump", "start", "recommended", "largest")},
        "floor": floor and {**floor["estimate"].as_dict("distance"), "images": floor["protocol"]["images"]},
        "lines": every,
        "cells": [record(row, beside) for row, beside in paired],
        "protocol": protocol
        | {"margin": margin, "blocks": blocks, "interval": "95 %, delete-one-block jackknife over seeds"},
    }


def outline(line: Line, margin: float | str) -> dict[str, Any]:
    """What one solver's cells show: the recommended jump of the first kind, and what speaks against the next.

    Over its own grid that is the largest skip within the margin, for it saves the most; to a level, where all cost the
    same, it is the jump of least distance.
    """
    accept = accepted(margin, line.start["estimate"])
    cells = [line.start, *line.main]
    if line.by == "skip":
        place = max(place for place, row in enumerate(cells) if row["change"].high <= accept or not place)
    else:
        place = min(range(len(cells)), key=lambda place: cells[place]["estimate"].value)
    beyond = cells[place + 1] if place + 1 < len(cells) else None
    return {
        "sampler": line.sampler,
        "steps": line.steps,
        "by": line.by,
        "jump": line.main[0]["kind"],
        "margin": accept,
        "start": record(line.start, line.start),
        "recommended": record(cells[place], line.start),
        "beyond": beyond and record(beyond, line.start) | {"surely_worse": bool(beyond["change"].low > accept)},
        "largest": record(line.main[-1], line.start),
    }


def record(row: Row, start: Row) -> dict[str, Any]:
    """One cell as the summary holds it."""
    return {
        "sampler": row["sampler"],
        "steps": row["steps"],
        "jump": row["kind"],
        "by": row["by"],
        "skip": row["skip"],
        "level": row["level"],
        "evaluations": row["evaluations"],
        "evaluations_saved": 1 - row["evaluations"] / start["evaluations"],
        **row["estimate"].as_dict("distance"),
        **{name: row[name] for name in ("kernel_distance", "kernel_deviation") if name in row},
        "increase": row["change"].as_dict(),
        "drift": row["drift"],
        **{name: row[name] for name in ("seconds", "busy_seconds") if name in row},
        "seconds_saved": saved(row, start),
    }


def saved(row: Row, start: Row) -> float:
    """The share of the plain solver's time that a cell did without; below 0 where it took longer."""
    spent, whole = (one.get("busy_seconds", one["seconds"]) for one in (row, start))
    return 1 - spent / whole if whole else 0.0


def sentence(summary: dict[str, Any], line: dict[str, Any]) -> str:
    """The recommendation for one solver in words, and how sure it is."""
    said = by_skip(summary, line) if line["by"] == "skip" else by_level(summary, line)
    return f"recommended ({line['sampler']}, {line['steps']} steps, n = {summary['n']}): {said}"


def by_skip(summary: dict[str, Any], line: dict[str, Any]) -> str:
    """The number of steps that can be skipped, and whether one more is known to be too many."""
    chosen, start, beyond, unit = line["recommended"], line["start"], line["beyond"], summary["distance"]
    margin = f"margin {line['margin']:.2g}" if line["margin"] < 1e-3 else f"margin {line['margin']:.1%}"
    what = f"skip nothing: no {line['jump']} jump lies within the {margin} of {unit} {start['distance']:.4g}"
    if chosen["skip"]:
        what = (
            f"skip {chosen['skip']} of {line['steps']} steps by a {chosen['jump']} jump to level {chosen['level']:.3g}: "
            f"{chosen['evaluations']} evaluations in place of {start['evaluations']} ({chosen['evaluations_saved']:.0%} "
            f"saved, {chosen['seconds_saved']:.0%} of the time); {unit} {chosen['distance']:.4g} against "
            f"{start['distance']:.4g}, {interval(chosen)}, {margin}"
        )
    if not beyond:
        return f"{what}; nothing beyond it was tried"
    doubt = "surely worse" if beyond["surely_worse"] else "undecided"
    hint = "" if beyond["surely_worse"] else ": a larger --n would tell"
    return f"{what}; skip {beyond['skip']} is {doubt}, {interval(beyond)}{hint}"


def by_level(summary: dict[str, Any], line: dict[str, Any]) -> str:
    """The level from which all steps do best."""
    chosen, start = line["recommended"], line["start"]
    what = f"{start['evaluations']} evaluations do best "
    what += (
        "without a jump"
        if chosen["jump"] == "none"
        else f"below a {chosen['jump']} jump to level {chosen['level']:.3g}"
    )
    change = "" if chosen["jump"] == "none" else f" against {start['distance']:.4g}, {interval(chosen)}"
    return f"{what}: {summary['distance']} {chosen['distance']:.4g}{change}"


def interval(cell: dict[str, Any]) -> str:
    """A paired change with its interval, in percent."""
    change = cell["increase"]
    return f"{change['value']:+.1%} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"


def markdown(rows: list[Row]) -> str:
    """The table in Markdown; solvers are named where there are several."""
    unit = rows[0]["protocol"]["distance"]
    kernel = any("kernel_distance" in row for row in rows)
    several = len({(row.get("sampler"), row.get("steps")) for row in rows if row["kind"] == "none"}) > 1
    names = ["solver", "steps"] * several + ["jump", "skipped steps", "start level", "evaluations", f"{unit} [95 %]"]
    names += ["paired change [95 %]"] + [rows[0]["protocol"].get("kernel_distance", "kernel distance")] * kernel
    names += ["drift (L2)", "seconds"]
    table = [names, ["---"] * len(names)]
    for row in rows:
        real, found, change = row["kind"] == "real", row["estimate"], row["change"]
        cells = [row.get("sampler", ""), str(row.get("steps", ""))] * several
        skip = str(row["skip"]) if row["by"] == "skip" else "to level"
        cells += (
            ["real images", "", "", ""] if real else [row["kind"], skip, f"{row['level']:.4g}", str(row["evaluations"])]
        )
        paired = f"{change.value:+.2%} [{change.low:+.2%}, {change.high:+.2%}]" if change else ""
        cells += [f"{found.value:.5g} [{found.low:.5g}, {found.high:.5g}]", "" if row["kind"] == "none" else paired]
        cells += [deviated(row)] * kernel
        table.append(cells + (["", ""] if real else [f"{row['drift']:.4g}", f"{row['seconds']:.1f}"]))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in table)


def deviated(row: Row) -> str:
    """A kernel distance with its deviation over subsets."""
    if "kernel_distance" not in row:
        return ""
    deviation = row.get("kernel_deviation")
    return f"{row['kernel_distance']:.3g}" + ("" if deviation is None else f" (s.d. {deviation:.2g})")


def table(rows: list[Row]) -> dict[str, list[Any]]:
    """The numbers of the figure, a row a cell."""
    columns = {
        "sampler": [row.get("sampler", "") for row in rows],
        "steps": [row.get("steps", "") for row in rows],
        "jump": [row["kind"] for row in rows],
        "by": [row["by"] for row in rows],
    }
    columns |= {name: [row.get(name, "") for row in rows] for name in ("skip", "level", "evaluations")}
    columns |= {
        "distance": [row["estimate"].value for row in rows],
        "low": [row["estimate"].low for row in rows],
        "high": [row["estimate"].high for row in rows],
    }
    for name, field in (("increase", "value"), ("increase_low", "low"), ("increase_high", "high")):
        columns[name] = [getattr(row["change"], field) if row["change"] else "" for row in rows]
    rest = ("kernel_distance", "kernel_deviation", "drift", "seconds", "busy_seconds")
    return columns | {name: [row.get(name, "") for row in rows] for name in rest}
