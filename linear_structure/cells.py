"""A result cell with arrays beside it, made once: what a killed or extended command finds done, it does not do again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_model import arrays, results

ERRORS = (ValueError, RuntimeError, FloatingPointError)  # of one cell; the others are made all the same


class Made(NamedTuple):
    """A finished cell's value and the arrays beside it."""

    value: dict[str, Any]
    arrays: dict[str, np.ndarray]


def beside(folder: Path, key: dict[str, Any]) -> Path:
    """The folder of a cell's arrays, beside its JSON."""
    return results.folder_beside(results.cell_path(folder, **key))


def find(
    folder: Path, key: dict[str, Any], protocol: dict[str, Any], kind: str, like: dict[str, str] | None = None
) -> Made | None:
    """The cell if it is finished under this protocol, with its arrays; another protocol is refused by its fields.

    like: what its arrays must be, as for `arrays.read_folder`.
    """
    cell, place = results.finished(folder, key, protocol), beside(folder, key)
    if cell is None or not arrays.is_finished(place):
        return None
    return Made(cell.value, arrays.read_folder(place, kind, f"remove {place}", like)[0])


def once(
    folder: Path,
    key: dict[str, Any],
    protocol: dict[str, Any],
    kind: str,
    make: Callable[[], tuple[dict[str, Any], dict[str, np.ndarray]]],
    like: dict[str, str] | None = None,
) -> Made:
    """The cell with this key, made by `make` and written if it is not there; an error of `make` is written and raised."""
    found = find(folder, key, protocol, kind, like)
    if found is not None:
        return found
    try:
        value, content = make()
    except ERRORS as error:
        results.write_cell(folder, key, {"error": str(error)}, protocol)
        raise
    write(folder, key, protocol, kind, value, content)
    return Made(value, content)


def write(
    folder: Path,
    key: dict[str, Any],
    protocol: dict[str, Any],
    kind: str,
    value: dict[str, Any],
    content: dict[str, Any],
) -> None:
    """Write a cell and its arrays as one: another command writes the whole before or after."""

    def arrays_of(place: Path) -> None:
        arrays.write_folder(place, kind, content, key=key)

    results.write_cell(folder, key, value, protocol, arrays_of)
