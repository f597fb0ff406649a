"""One large array written block by block: on several processes, and resumed where it was killed.

Images in memory are copied straight. Images that must be decoded (`Raw.key` is there) go to `.NAME.part`, a `.npy` file of
the final shape, and each written block adds a line to `.NAME.done`: first row, key of its files, CRC-32 of its bytes. A
rerun believes a line only where the key still holds and the bytes have that CRC, so whatever instant the writer was
killed at, and even if the machine lost what it had not yet flushed, the result has the same bytes. The bytes are also the
same for any number of processes: these only decode, and one process writes.
"""

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from diffusion_model import arrays
from diffusion_model.experiment import progress
from diffusion_model.raw import Raw

BLOCK = 1024  # images copied at once
DECODED = 256  # images decoded at once: what a kill can cost each process
HELD = 2**25  # bytes of a block of decoded images, of which a few wait for each process: it holds fewer large ones
_READERS: list[Callable] = []  # in a worker: what it decodes with


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(path: Path, raw: Raw, shape: tuple[int, ...], workers: int, what: str, check: Callable) -> None:
    """Write the images of `raw` as `path`, uint8 of `shape` [N, C, H, W]; `check(rows, block)` refuses wrong ones."""
    size = BLOCK if raw.key is None else max(1, min(DECODED, HELD // math.prod(shape[1:])))
    blocks = [np.arange(start, min(start + size, shape[0])) for start in range(0, shape[0], size)]
    if raw.key is not None:
        _write_decoded(path, raw, shape, blocks, workers, what, check)
        return

    def copy(temporary: Path) -> None:
        target = _allocate(temporary, shape)
        for rows in progress(blocks, f"preparing {what}", f"blocks of {size}"):
            block = raw.read(rows)
            check(rows, block)
            target[rows[0] : rows[-1] + 1] = block
        target.flush()

    arrays.write_atomically(path, copy)


def part(path: Path) -> Path:
    """Where `path` grows until it is whole."""
    return path.with_name(f".{path.name}.part")


def _done(path: Path) -> Path:
    return path.with_name(f".{path.name}.done")


def _write_decoded(
    path: Path, raw: Raw, shape: tuple[int, ...], blocks: list[np.ndarray], workers: int, what: str, check: Callable
) -> None:
    """Decode the blocks that are not there yet, each listed as done after its bytes lie in the file."""
    target, lines = _resume(path, shape)
    kept = {rows[0]: lines[rows[0]] for rows in blocks if _holds(target, rows, raw, lines.get(rows[0]))}
    arrays.write_atomically(
        _done(path), lambda temporary: temporary.write_text("".join(_line(*kept[row]) for row in kept))
    )
    missing = [rows for rows in blocks if rows[0] not in kept]
    if kept:
        print(f"preparing {what}: {len(kept)} of {len(blocks)} blocks are there already", file=sys.stderr)
    found = zip(missing, decode(raw.read, missing, workers), strict=True)
    for rows, block in progress(found, f"preparing {what}", f"blocks of {len(blocks[0])}", total=len(missing)):
        check(rows, block)
        target[rows[0] : rows[-1] + 1] = block
        arrays.append_text(_done(path), _line(int(rows[0]), raw.key(rows), _checksum(block)))
    target.flush()
    del target
    with arrays.named(part(path)), part(path).open("rb+") as file:
        os.fsync(file.fileno())
    part(path).replace(path)


def _resume(path: Path, shape: tuple[int, ...]) -> tuple[np.memmap, dict[int, tuple[int, str, int]]]:
    """The array to go on with, and the lines (first row, key, checksum) written so far; a new one where none fits."""
    if part(path).is_symlink():
        part(path).unlink()  # nobody links to what is half written: it could lead to any file
    if _done(path).is_file() and path.is_file() and not part(path).is_file():
        path.replace(part(path))  # killed after the last block, before the folder was sealed
    try:
        target = np.lib.format.open_memmap(part(path), mode="r+")
    except (OSError, ValueError):
        target = None
    if target is not None and (target.shape, target.dtype) == (shape, np.uint8):
        _reserve(part(path))
        return target, _read_lines(_done(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _done(path).unlink(missing_ok=True)
    return _allocate(part(path), shape), {}


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new array with its place on the disk."""
    with arrays.named(path):
        target = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    _reserve(path)
    return target


def _reserve(path: Path) -> None:
    """Take a file's place on the disk, also of one that is gone on with: who was refused it left a file of holes.

    A disk that is full says so here, not by a signal at some later write.
    """
    if hasattr(os, "posix_fallocate"):
        with arrays.named(path), path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _line(row: int, key: str, checksum: int) -> str:
    return json.dumps([row, key, checksum]) + "\n"


def _read_lines(path: Path) -> dict[int, tuple[int, str, int]]:
    """Lines by first row; a half-written one is dropped, so its block is decoded again."""
    lines = {}
    for line in arrays.read_lines(path, [(int, str)]) if path.is_file() else ():
        if [type(entry) for entry in line] == [int, str, int]:
            lines[line[0]] = tuple(line)
    return lines


def _checksum(block: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(block))


def _holds(target: np.ndarray, rows: np.ndarray, raw: Raw, line: tuple[int, str, int] | None) -> bool:
    """Whether a finished block is still what its files say and what was written."""
    return line is not None and line[1:] == (raw.key(rows), _checksum(target[rows[0] : rows[-1] + 1]))


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def decode(read: Callable, blocks: Iterable[np.ndarray], workers: int) -> Iterator[np.ndarray]:
    """`read(rows)` of every block, in order; on `workers` processes where there are several blocks."""
    blocks = list(blocks)
    workers = min(workers, len(blocks))
    if workers <= 1:
        yield from map(read, blocks)
        return
    # fork: a worker starts at once and has the list of files; it touches neither torch nor a thread of its parent
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _serve, (read,))
    waiting: deque = deque()  # few, so that a slow disk does not pile up decoded images
    try:
        for rows in blocks:
            waiting.append(pool.submit(_work, rows))
            if len(waiting) > 2 * workers:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: object) -> np.ndarray:
    try:
        found = future.result()
    except BrokenProcessPool:
        raise ValueError("a process that decodes images was killed, perhaps for memory: take fewer --workers") from None
    if isinstance(found, ValueError):
        raise found
    return found


def _serve(read: Callable) -> None:
    """Begin a worker: it ends with its parent, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _READERS[:] = [read]


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(rows: np.ndarray) -> np.ndarray | ValueError:
    """One block; a user's mistake comes back as a value, for the parent to raise."""
    try:
        return _READERS[0](rows)
    except ValueError as error:
        return ValueError(str(error))
