"""A large `.npy` file written by rows: by several processes side by side, and gone on with where they were killed.

A `RowFile` grows as `.NAME.part`, of its final size from the start, and is renamed to NAME when it is whole. What has been
written stands in journals beside it, `.rows.RANK`, one a process so that none waits for another: a line says which rows,
and for each file the CRC-32 of their bytes. Who goes on believes a line only where the bytes still have that CRC, so
whatever instant the writers were killed at, and even if the machine lost what it had not yet flushed, no row is missed.

Rows are written by position and not through a memory map: over NFS two machines may then write beside each other.
"""

import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_model import arrays

JOURNAL = ".rows."
BLOCK = 1 << 22  # bytes read at once


@dataclass(frozen=True)
class RowFile:
    """One `.npy` file of this shape [N, ...] and dtype, being written."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def part(self) -> Path:
        """Where it grows."""
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def header(self) -> bytes:
        """What `np.save` writes in front of such an array."""
        held = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(held, described)
        return held.getvalue()

    def _place(self, row: int) -> int:
        return len(self.header) + row * math.prod(self.shape[1:]) * self.dtype.itemsize

    def begin(self) -> None:
        """Make the part file, with its place on the disk, or keep the one that is there.

        A file that lies there whole without being recorded (killed in between) becomes the part again.
        """
        if not self.part.is_file() and self.path.is_file():
            self.path.replace(self.part)
        if self.part.is_file() and self.part.stat().st_size == self._place(self.shape[0]):
            with self.part.open("rb") as file:
                if file.read(len(self.header)) == self.header:
                    return
        arrays.refuse_links(self.part)
        self.part.parent.mkdir(parents=True, exist_ok=True)
        handle = arrays.open_own(self.part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with arrays.named(self.part), os.fdopen(handle, "wb") as file:
            file.write(self.header)
            _reserve(file.fileno(), self._place(self.shape[0]), self.part)

    def put(self, start: int, rows: np.ndarray) -> int:
        """Write rows from `start` on, of the file's own dtype; gives the CRC-32 of their bytes."""
        held = memoryview(np.ascontiguousarray(rows, self.dtype)).cast("B")
        place, done = self._place(start), 0
        handle = arrays.open_own(self.part, os.O_WRONLY)
        try:
            with arrays.named(self.part):
                while done < len(held):
                    done += os.pwrite(handle, held[done:], place + done)
        finally:
            os.close(handle)
        return zlib.crc32(held)

    def holds(self, start: int, stop: int, checksum: int) -> bool:
        """Whether the rows from `start` to `stop` have this CRC-32."""
        value, left = 0, self._place(stop) - self._place(start)
        with self.part.open("rb") as file:
            file.seek(self._place(start))
            while left and (block := file.read(min(left, BLOCK))):
                value, left = zlib.crc32(block, value), left - len(block)
        return not left and value == checksum

    def finish(self) -> None:
        """Flush the part to disk and give it its name."""
        with arrays.named(self.part), self.part.open("rb+") as file:
            os.fsync(file.fileno())
        self.part.replace(self.path)


def _reserve(handle: int, size: int, path: Path) -> None:
    """Take the place on the disk now: a disk that is full says so here, not hours later."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.truncate(handle, size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror} ({size / 1e6:.0f} MB)", str(path)) from None


def note(folder: Path, rank: int, start: int, checksums: dict[str, int]) -> None:
    """Add a line to a journal: from row `start` on {file: [rows, CRC-32]}, after `put`."""
    arrays.append_text(folder / f"{JOURNAL}{rank}", json.dumps([start, checksums]) + "\n")


def written(folder: Path, files: Sequence[RowFile]) -> dict[str, np.ndarray]:
    """{name of a file: whether each row [N] is there}, for files that have begun; bytes and journals must agree."""
    known = {file.path.name: file for file in files}
    found = {name: np.zeros(file.shape[0], bool) for name, file in known.items()}
    for start, checksums in _lines(folder):
        for name, (count, checksum) in checksums.items():
            if name in known and known[name].holds(start, start + count, checksum):
                found[name][start : start + count] = True
    return found


def share_written(folder: Path, names: Iterable[str], count: int) -> float:
    """Share of the rows of these files that the journals speak of, unverified; for a look at a writer at work."""
    rows = {name: np.zeros(count, bool) for name in names}
    for start, checksums in _lines(folder):
        for name in rows.keys() & checksums.keys():
            rows[name][start : start + checksums[name][0]] = True
    return float(np.mean([held.mean() for held in rows.values()])) if rows else 1.0


def _lines(folder: Path) -> list[tuple[int, dict[str, list[int]]]]:
    """Lines of every journal; one that was half written is dropped, so its rows are written again."""
    lines = []
    for path in sorted(folder.glob(f"{JOURNAL}*")):
        for line in arrays.read_lines(path, [(int, {...: [int]})]):
            if len(line) == 2 and isinstance(line[0], int) and isinstance(line[1], dict):
                start, checksums = line
                if start >= 0 and all(len(held) == 2 and held[0] >= 0 for held in checksums.values()):
                    lines.append((start, checksums))
    return lines


def begun(folder: Path) -> list[str]:
    """Names of the files that have begun and are not whole."""
    return sorted(path.name[1:].removesuffix(".part") for path in folder.glob(".*.part"))


def forget(folder: Path) -> None:
    """Remove the journals, once no file is being written."""
    for path in () if begun(folder) else folder.glob(f"{JOURNAL}*"):
        path.unlink(missing_ok=True)
