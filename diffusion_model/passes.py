"""One pass over many rows: sums of blocks, shared by ranks and resumed where it was killed.

A pass cuts `count` rows into blocks and adds each to tensors of sums. Every `EVERY` seconds each rank writes a state: its
sums and the blocks they are of. The same command then goes on, with any number of ranks: the first rank starts from all
states together, and the blocks in none of them are shared anew. Sums of integers are therefore those of a pass that was
never killed; sums of floats too, bit for bit, on one rank, and to rounding on several.

A state is replaced by writing the next and then removing it, so at any instant one is whole. Of two that overlap the
larger counts.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, experiment, ranks

KIND = "partial sums"
EVERY = 60.0  # seconds between states: what a kill can cost
STATES = "[0-9]*-[0-9]*"  # names of their folders: rank and number of blocks


def accumulate(
    sums: dict[str, torch.Tensor],
    count: int,
    block: int,
    add: Callable[[slice], None],
    what: str,
    folder: Path | None = None,
    key: dict[str, Any] | None = None,
) -> None:
    """Call `add(rows)`, which adds to `sums` in place, once for each block of `count` rows; then `sums` are all ranks'.

    folder: where states are kept, none if not given; key: what the sums are of (JSON). All ranks call it.
    """
    key = {"key": key, "count": count, "block": block}
    done = set(ranks.from_first(_resume(sums, folder, key) if ranks.first() and folder else []))
    pending = [number for number in range(-(-count // block)) if number not in done]
    share = ranks.share(len(pending))
    own = sorted(done) if ranks.first() else []
    started = saved = time.monotonic()
    for number in experiment.progress(pending[share.start : share.stop], what, "block"):
        add(slice(number * block, min((number + 1) * block, count)))
        own.append(number)
        if folder and time.monotonic() - saved >= EVERY:
            _save(sums, folder, key, own)
            saved = time.monotonic()
    if folder and share and time.monotonic() - started >= EVERY:
        _save(sums, folder, key, own)
    for name in sums:
        ranks.sum_([sums[name]])


def last(folder: Path | None, name: str) -> tuple[int, Path | None]:
    """The number and the folder of the last round kept as `name`; 0 and None where there is none."""
    found = [path for path in folder.glob(f"{name}-*") if arrays.is_finished(path)] if folder else []
    path = max(found, key=_number, default=None)
    return (0, None) if path is None else (_number(path), path)


def keep(folder: Path, name: str, number: int, write: Callable[[Path], Any]) -> None:
    """`write` round `number` of `name` into a folder of its own, and then remove those before it. One rank calls it."""
    write(folder / f"{name}-{number}")
    for path in folder.glob(f"{name}-*"):
        if _number(path) < number:
            shutil.rmtree(path)


def check_key(folder: Path, meta: dict[str, Any], key: dict[str, Any]) -> None:
    """Refuse what was left by a fit of something else."""
    if meta.get("key") != key:
        raise ValueError(
            f"{folder} holds an unfinished fit of other images or options: remove it or give another folder"
        )


def _number(path: Path) -> int:
    """The number at the end of a folder's name."""
    return int(path.name.rpartition("-")[2])


def forget(folder: Path) -> None:
    """Remove the states of a pass whose result lies elsewhere now."""
    shutil.rmtree(folder, ignore_errors=True)


def _resume(sums: dict[str, torch.Tensor], folder: Path, key: dict[str, Any]) -> list[int]:
    """Add the states in `folder` to `sums`, make them one state and give its blocks."""
    link = next((path for path in (folder, *folder.parents) if path.is_symlink() and path.name.startswith(".")), None)
    if link is not None:  # whatever it leads to would be cleared
        raise ValueError(f"{link} is a link, and the project keeps its own states there: remove it")
    found = {path: _blocks(path, key) for path in folder.glob(STATES) if arrays.is_finished(path)}
    done: list[int] = []
    used = []
    for path in sorted(found, key=lambda path: (-len(found[path]), path)):
        if not set(found[path]) & set(done):
            for name, held in arrays.read_folder(path, KIND, f"remove {folder}")[0].items():
                sums[name] += torch.from_numpy(np.array(held))
            done += found[path]
            used.append(path)
    if used:
        print(f"going on from {folder}: {len(done)} of {-(-key['count'] // key['block'])} blocks are there", flush=True)
    kept = used[0] if len(used) == 1 else _write(sums, folder, key, sorted(done)) if used else None
    for path in folder.glob(STATES):
        if path != kept:
            shutil.rmtree(path)
    return sorted(done)


def _blocks(path: Path, key: dict[str, Any]) -> list[int]:
    """The blocks of one state; one of other sums is a ValueError."""
    meta = arrays.read_meta(path, KIND, f"remove {path.parent}")
    if any(meta.get(name) != value for name, value in key.items()):
        raise ValueError(
            f"{path.parent} holds an unfinished pass over other rows or with other options: remove it or give another folder"
        )
    return [number for start, stop in meta["blocks"] for number in range(start, stop)]


def _save(sums: dict[str, torch.Tensor], folder: Path, key: dict[str, Any], own: list[int]) -> None:
    """Write this rank's state and then remove those before it."""
    kept = _write(sums, folder, key, own)
    for path in folder.glob(f"{experiment.rank()}-*"):
        if path != kept:
            shutil.rmtree(path)


def _write(sums: dict[str, torch.Tensor], folder: Path, key: dict[str, Any], own: list[int]) -> Path:
    """Write a state; its name is new, as a state only grows."""
    content = {name: held.numpy() for name, held in sums.items()}
    path = folder / f"{experiment.rank()}-{len(own)}"
    return arrays.write_folder(path, KIND, content, **key, blocks=_ranges(own))


def _ranges(numbers: list[int]) -> list[list[int]]:
    """Increasing numbers as [start, stop) pairs."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1][1] += 1
        else:
            found.append([number, number + 1])
    return found
