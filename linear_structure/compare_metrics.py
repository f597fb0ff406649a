"""Two results side by side, if they were measured alike.

A and B are each a folder of result cells (a sweep: RUN/sweeps/NAME), one cell (.json) or a sweep's summary.json. Numbers
that both have are printed with their difference and ratio. Every field of the two protocols must agree: a distance at
another n, in another feature space or to another reference is another quantity. What is compared is named by --vary; a
field that names cells (sampler, steps, kind) then pairs those that differ in it.

  python linear_structure/compare_metrics.py runs/edm-synthetic16/sweeps/default runs/edm-synthetic16/sweeps/dpm \
    --vary sampler

With --anyway nothing is refused, and the fields that differ are printed above the table.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_model import arrays, experiment, results

REMEDY = "give a folder of result cells, one cell or a summary.json"
SUMMARIES = ("sweep summary", "recommended skip")
SUMMARY = {"protocol": dict, "cells": [{"jump": str, "skip": int, "distance": float}], "distance": str}
KEY = ("steps", "skip")  # numbers of a summary's cell that name it
ABSENT = "absent"
WIDTH = 48  # characters of a protocol field's value in a sentence


@dataclass(frozen=True)
class Row:
    """The numbers of one cell by name, its protocol and its key."""

    numbers: dict[str, float]
    protocol: dict[str, Any]
    key: dict[str, Any]


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="compare_metrics.py")
    parser.add_argument("first", metavar="A", type=Path, help="a folder of cells, a cell or a summary.json")
    parser.add_argument("second", metavar="B", type=Path, help="likewise")
    parser.add_argument("--vary", metavar="FIELD", nargs="+", default=[], help="fields that may differ")
    parser.add_argument("--anyway", action="store_true", help="compare whatever differs, and say what does")
    parser.add_argument("--metrics", metavar="NAME", nargs="+", help="numbers to print (default: all that both have)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    pairs = match(args.first, args.second, args.vary)
    differing = differences([(one.protocol, other.protocol) for _, one, other in pairs])
    refused = {name: values for name, values in differing.items() if name not in args.vary}
    if refused and not args.anyway:
        raise ValueError(
            f"{args.first} and {args.second} were measured under different protocols ({written(refused)}): measure both "
            f"alike, or pass --vary {' '.join(refused)} if that is what you compare, or --anyway"
        )
    lines = table(pairs, args.metrics)
    print(f"A: {args.first}\nB: {args.second}")
    if differing:
        print(f"protocols differ: {written(differing)}")
    for name in ("distance", "kernel_distance"):
        units = sorted({str(row.protocol[name]) for _, *rows in pairs for row in rows if name in row.protocol})
        if units:
            print(f"{name}: {' and '.join(units)}")
    print("\n".join(lines))
    return 0


def match(first: Path, second: Path, vary: Sequence[str] = ()) -> list[tuple[str, Row, Row]]:
    """(key, row of A, row of B) of every cell that both have; two single cells are a pair whatever their keys.

    Cells are paired by their keys without the fields in `vary`.
    """
    one, other = read(first), read(second)
    check_vary(vary, [*one.values(), *other.values()])
    if len(one) == len(other) == 1:
        (name, row), (others, beside) = *one.items(), *other.items()
        return [(name if name == others else f"{name} | {others}", row, beside)]
    one, other = without(first, one, vary), without(second, other, vary)
    common = [name for name in one if name in other]
    if not common:
        raise ValueError(
            f"{first} and {second} have no cell in common: {len(one)} such as {next(iter(one))} there, "
            f"{len(other)} such as {next(iter(other))} here{hint(one, other)}"
        )
    for path, here, there in ((first, one, other), (second, other, one)):
        alone = [name for name in here if name not in there]
        if alone:
            print(f"only in {path}: {', '.join(alone)}", file=sys.stderr)
    return [(name, one[name], other[name]) for name in common]


def without(path: Path, rows: dict[str, Row], fields: Sequence[str]) -> dict[str, Row]:
    """The rows by their keys without these fields, which must still tell them apart."""
    found: dict[str, Row] = {}
    for name, row in rows.items():
        short = key_of({field: value for field, value in row.key.items() if field not in fields})
        if short in found:
            raise ValueError(
                f"{path} holds cells that differ in nothing but {' and '.join(fields)} ({name}; "
                f"{key_of(found[short].key)}): give a folder with one of them, or leave that out of --vary"
            )
        found[short] = row
    return found


def hint(one: dict[str, Row], other: dict[str, Row]) -> str:
    """How to pair cells whose keys differ in fields that are the same throughout each result."""
    held = []
    for rows in (one, other):
        fields = dict.fromkeys(field for row in rows.values() for field in row.key)
        held.append({field: {str(row.key[field]) for row in rows.values() if field in row.key} for field in fields})
    apart = [name for name in held[0] if name in held[1] and not held[0][name] & held[1][name]]
    return f"; to pair them pass --vary {' '.join(apart)}" if apart else ""


def read(path: Path) -> dict[str, Row]:
    """The cells of a result by their key, as text."""
    if path.is_file():
        content = arrays.read_json(path)
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind in SUMMARIES:
            return of_summary(path, content)
        if kind != "cell":
            raise ValueError(f"{path} is neither a result cell nor a sweep's summary: {REMEDY}")
        cells = [results.read_cell(path)]
        if cells[0].failed:
            raise ValueError(f"{path} holds no result but an error ({cells[0].value['error']}): make it again")
    elif path.is_dir():
        cells = results.read_cells(path, REMEDY)
    else:
        raise FileNotFoundError(f"{path}: no such file or folder; {REMEDY}")
    return {key_of(cell.key): Row(numbers(cell.value), cell.protocol, cell.key) for cell in cells}


def of_summary(path: Path, content: dict[str, Any]) -> dict[str, Row]:
    """The cells that a summary lists, and its floor, under the keys of the sweep's own cells."""
    arrays.check_meta(content, path, content["kind"])
    arrays.expect(content, path, SUMMARY)
    protocol, rows = content["protocol"], {}
    for cell in content["cells"]:
        varied = {name: cell[name] for name in ("sampler", "steps") if name in cell}
        where = "level" if cell.get("by") == "level" else "skip"
        key = varied | {"kind": cell["jump"], where: cell[where]}
        found = {name: value for name, value in numbers(cell).items() if name not in KEY}
        rows[key_of(key)] = Row(found, protocol, key)
    if content.get("floor"):
        floor = content["floor"]
        key = {"kind": "real", "skip": 0}
        rows[key_of(key)] = Row(numbers(floor), protocol | {"images": floor.get("images")}, key)
    return rows


def key_of(key: dict[str, Any]) -> str:
    """A cell's key as text."""
    return ", ".join(f"{name} {value}" for name, value in key.items())


def numbers(value: dict[str, Any], before: str = "") -> dict[str, float]:
    """The numbers in a value, those of an object inside as `name.inner`."""
    found: dict[str, float] = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            found |= numbers(entry, f"{before}{name}.")
        elif isinstance(entry, int | float) and not isinstance(entry, bool):
            found[before + name] = entry
    return found


def differences(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, tuple[Any, Any]]:
    """The protocol fields that differ in any pair, each with its first two values."""
    found: dict[str, tuple[Any, Any]] = {}
    for one, other in pairs:
        for name in sorted(one.keys() | other.keys()):
            values = (one.get(name, ABSENT), other.get(name, ABSENT))
            if values[0] != values[1]:
                found.setdefault(name, values)
    return dict(sorted(found.items()))


def check_vary(names: Sequence[str], rows: Sequence[Row]) -> None:
    """Refuse a name that no protocol and no key has (UsageError)."""
    known = {field for row in rows for field in (*row.protocol, *row.key)}
    for name in names:
        if name not in known:
            raise experiment.UsageError(f"--vary {name}: no field of the protocols; {experiment.nearest(name, known)}")


def written(differing: dict[str, tuple[Any, Any]]) -> str:
    """Fields and their values in a sentence."""
    return ", ".join(f"{name}: {_short(one)} in A, {_short(other)} in B" for name, (one, other) in differing.items())


def _short(value: Any) -> str:
    text = value if value is ABSENT else json.dumps(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def table(pairs: list[tuple[str, Row, Row]], metrics: Sequence[str] | None) -> list[str]:
    """The lines of a Markdown table, a row a number that both have."""
    known = dict.fromkeys(name for _, one, other in pairs for name in one.numbers if name in other.numbers)
    for name in metrics or ():
        if name not in known:
            raise experiment.UsageError(f"--metrics {name}: not a number of both; {experiment.nearest(name, known)}")
    if not known:
        raise ValueError("the two have no number in common, though they have cells of the same key")
    cells = [("cell", "number", "A", "B", "B - A", "B / A")]
    for key, one, other in pairs:
        for name in metrics or known:
            if name in one.numbers and name in other.numbers:
                cells.append((key, name, *_compared(one.numbers[name], other.numbers[name])))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(f"{entry:{'<' if column < 2 else '>'}{widths[column]}}" for column, entry in enumerate(line))
        + " |"
        for line in cells
    ]  # fmt: skip
    rule = "|" + "|".join("-" * (width + 2 - (column > 1)) + ":" * (column > 1) for column, width in enumerate(widths))
    return [lines[0], rule + "|", *lines[1:]]


def _compared(one: float, other: float) -> tuple[str, str, str, str]:
    ratio = f"{other / one:.4g}" if one else ""
    return f"{one:.6g}", f"{other:.6g}", f"{other - one:+.4g}", ratio


if __name__ == "__main__":
    experiment.launch(main)
