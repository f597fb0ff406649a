"""A result cell: one JSON file whose path lists its key and whose content is its value and its protocol.

`cell_path(root, head="mlp", attribute="shape", seed=0)` is `root/head=mlp/attribute=shape/seed=0.json`. One cell is one
number (or a short record) with everything that decides it: a sweep can stop anywhere, be resumed by filling what is
missing, be looked at by hand and be read back whole. A cell that failed holds `{"error": sentence}` and is tried again.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_model import arrays


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


def write_cell(root: Path, key: dict[str, Any], value: dict[str, Any], protocol: dict[str, Any]) -> Path:
    """Write one cell and return its path; numbers must be finite (ValueError otherwise)."""
    path = cell_path(root, **key)
    arrays.write_json(path, {"format": arrays.FORMAT, "kind": "cell", "key": key, "value": value, "protocol": protocol})
    return path


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
    """Every finished cell below `root`, of this shape, sorted by path; FileNotFoundError where there is none."""
    cells = [read_cell(path, shape) for path in sorted(Path(root).rglob("*.json")) if "=" in path.name]
    if not any(not cell.failed for cell in cells):
        raise FileNotFoundError(f"no results in {root}: {remedy}")
    return [cell for cell in cells if not cell.failed]


def finished(root: Path, key: dict[str, Any], protocol: dict[str, Any]) -> Cell | None:
    """The cell with this key if it is finished under this protocol, None if it is to be made.

    A finished cell of another protocol is a ValueError that names the fields: two protocols never share a table.
    """
    path = cell_path(root, **key)
    if not path.is_file():
        return None
    cell = read_cell(path)
    if cell.failed:
        return None
    written = _as_read(protocol)
    other = sorted(
        name for name in written.keys() | cell.protocol.keys() if written.get(name) != cell.protocol.get(name)
    )
    if other:
        changes = ", ".join(f"{name}: {cell.protocol.get(name)!r} there, {written.get(name)!r} now" for name in other)
        raise ValueError(
            f"{path} was made under another protocol ({changes}): give the options it was made with, or remove {path.parent}"
        )
    return cell


def _as_read(protocol: dict[str, Any]) -> dict[str, Any]:
    """The protocol as JSON gives it back (tuples become lists)."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in protocol.items()}


def _written(value: Any) -> str:
    """A key's value as part of a file name: numbers in shortest form, other characters than [A-Za-z0-9._+-] as '-'."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
