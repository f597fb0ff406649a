"""A result cell: one JSON file whose path lists its key and whose content is its value and its protocol.

`cell_path(root, head="mlp", attribute="shape", seed=0)` is `root/head=mlp/attribute=shape/seed=0.json`. One cell is one
number (or a short record) with everything that decides it: a sweep can stop anywhere, be resumed by filling what is
missing, be looked at by hand and be read back whole. A cell that failed holds `{"error": sentence}` and is tried again.

No two keys share a path: what is not [A-Za-z0-9._+-] in a value is written as %XX. Where a file system takes two paths for
one all the same ("Shape" and "shape"), and where a result of another protocol stands, the writer refuses; many commands may
fill one folder at once. A file that is no cell (samples, a picture) has its protocol beside it, in a JSON of its own name.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from diffusion_model import arrays, locks

LONGEST = 160  # characters of a value in a path: longer ones end in their hash
FILE = "protocol of a file"


@dataclass(frozen=True)
class Cell:
    """One result: what was varied (`key`), what came out (`value`), and what else decides it (`protocol`)."""

    key: dict[str, Any]
    value: dict[str, Any]
    protocol: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def failed(self) -> bool:
        """Whether the cell holds an error in place of a value."""
        return "error" in self.value


def cell_path(root: Path, **key: Any) -> Path:
    """Path of the cell with this key, the fields in the order given."""
    parts = [f"{name}={_written(value)}" for name, value in key.items()]
    return Path(root, *parts[:-1], parts[-1] + ".json")


def write_cell(
    root: Path,
    key: dict[str, Any],
    value: dict[str, Any],
    protocol: dict[str, Any],
    beside: Callable[[Path], Any] | None = None,
) -> Path:
    """Write one cell and return its path; numbers must be finite (ValueError otherwise).

    beside: writes the arrays that belong to the cell into the folder that it is given, before the cell. A finished cell of
    another protocol is a ValueError; one of this protocol is replaced by a value, and never by an error.
    """
    path = cell_path(root, **key)
    content = {"format": arrays.FORMAT, "kind": "cell", "key": key, "value": value, "protocol": protocol}
    with locks.briefly(root):
        if finished(root, key, protocol) is not None and "error" in value:
            return path
        if beside is not None:
            beside(folder_beside(path))
        arrays.write_json(path, content)
    return path


def folder_beside(path: Path) -> Path:
    """Where the arrays of the cell with this path lie."""
    return path.with_name(path.name.removesuffix(".json"))


def read_cell(path: Path, shape: dict[str, Any] | None = None) -> Cell:
    """One cell; a truncated or altered file is a ValueError that names it.

    shape: of `key`, `value` and `protocol`, as for `arrays.expect`; a cell that failed needs no value.
    """
    content = arrays.read_json(path)
    arrays.check_meta(content, path, "cell")
    arrays.expect(content, path, {"key": dict, "value": dict, "protocol": dict})
    cell = Cell(content["key"], content["value"], content["protocol"], Path(path))
    if shape and not cell.failed:
        arrays.expect(content, path, shape)
    return cell


def read_cells(
    root: Path, remedy: str = "run the command that writes it", shape: dict[str, Any] | None = None
) -> list[Cell]:
    """Every finished cell below `root`, of this shape, sorted by path; FileNotFoundError where there is none.

    Two of one key are a ValueError: a table would count both.
    """
    cells = [read_cell(path, shape) for path in sorted(Path(root).rglob("*.json")) if "=" in path.name]
    found: dict[str, Cell] = {}
    for cell in cells:
        if not cell.failed:
            other = found.setdefault(json.dumps(cell.key), cell)
            if other is not cell:
                name = ", ".join(f"{field} {value}" for field, value in cell.key.items())
                raise ValueError(
                    f"{root} holds two results with the key {name} ({other.path.relative_to(root)} and "
                    f"{cell.path.relative_to(root)}): give the folder of one of them, or remove one"
                )
    if not found:
        raise FileNotFoundError(f"no results in {root}: {remedy}")
    return list(found.values())


def finished(root: Path, key: dict[str, Any], protocol: dict[str, Any]) -> Cell | None:
    """The cell with this key if it is finished under this protocol, None if it is to be made.

    A finished cell of another protocol is a ValueError that names the fields: two protocols never share a table. So is a
    file of this path with another key.
    """
    path = cell_path(root, **key)
    if not path.is_file():
        return None
    cell = read_cell(path)
    if cell.key != _as_read(key):
        raise ValueError(
            f"{path} holds the result of another key ({_changes(cell.key, _as_read(key))}): the two share one file, so give "
            "another name, or remove it"
        )
    if cell.failed:
        return None
    changes = _changes(cell.protocol, _as_read(protocol))
    if changes:
        raise ValueError(
            f"{path} was made under another protocol ({changes}): give the options it was made with, or remove {path.parent}"
        )
    return cell


def check_file(path: Path, protocol: dict[str, Any]) -> None:
    """Refuse to replace a file that is not of this protocol, or of none that is told (ValueError)."""
    if not path.is_file():
        return
    told = path.with_suffix(".json")
    if not told.is_file():
        raise ValueError(f"{path} is there, and no {told.name} beside it says how it was made: move or remove it")
    content = arrays.read_json(told)
    arrays.check_meta(content, told, FILE)
    arrays.expect(content, told, {"protocol": dict})
    changes = _changes(content["protocol"], _as_read(protocol))
    if changes:
        raise ValueError(f"{path} was made under another protocol ({changes}): move or remove it to make it anew")


def write_file(path: Path, protocol: dict[str, Any], write: Callable[[Path], Any]) -> Path:
    """`write(path)`, with the protocol beside it in a JSON of the same name; a file of another protocol is a ValueError."""
    with locks.briefly(path.parent):
        check_file(path, protocol)
        content = {"format": arrays.FORMAT, "kind": FILE, "file": path.name, "protocol": protocol}
        arrays.write_json(path.with_suffix(".json"), content)
        write(path)
    return path


def _changes(there: dict[str, Any], now: dict[str, Any]) -> str:
    """The fields in which two protocols or keys differ, with both values; empty where they agree."""
    other = sorted(name for name in now.keys() | there.keys() if now.get(name) != there.get(name))
    return ", ".join(f"{name}: {there.get(name)!r} there, {now.get(name)!r} now" for name in other)


def _as_read(protocol: dict[str, Any]) -> dict[str, Any]:
    """The protocol as `arrays.read_json` gives it back (tuples become lists)."""

    def read(value: Any) -> Any:
        if isinstance(value, tuple):
            return list(value)
        return arrays.plain(value) if isinstance(value, str) else value

    return {name: read(value) for name, value in protocol.items()}


def _written(value: Any) -> str:
    """A key's value as part of a file name, no two alike: numbers in shortest form, unsafe characters as %XX of UTF-8.

    "%~" begins the hash that ends a long one, and stands nowhere else.
    """
    text = str(value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        text = f"{value:g}"
    safe = quote(text, safe="+", errors="surrogateescape").replace("~", "%7E")
    if safe.endswith(".json"):  # the folder beside such a cell would be another one's file
        safe = safe.removesuffix(".json") + "%2Ejson"
    if len(safe) <= LONGEST:
        return safe
    digest = hashlib.sha256(safe.encode()).hexdigest()[:32]
    return f"{safe[: LONGEST - len(digest) - 2]}%~{digest}"


def text_of(part: str) -> str:
    """The value in a part of a path, `attribute=hair%20colour`."""
    return unquote(part.partition("=")[2])
