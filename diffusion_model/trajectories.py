"""Representations of N images at T noise times, on disk: one folder a store and split, one `.npy` file a time.

Legend: N images, T times, D features, A label columns. A time t in [0, 1] labels the noise level 0.01 * 5000^t in units
of the data's standard deviation (From Points to Functions, section 4; sigma(t) of its VE process). The paper's eight
granularities k use the times i/k; their union is encoded once: 109 distinct times where single grids need 161.

A store is `RUN/trajectories/SOURCE/SPLIT/`: `labels.npy`, `z_TIME.npy` in float32 or float16, and `meta.json`, which says
where they come from and never names a file that is not whole. The files grow by rows (see row_files.py), on any number of
ranks, so that an interrupted command goes on with the rows that are missing. A store that is whole stays readable, as it
is, while times are added to it and after that was interrupted: `meta.json` learns of them when all of them are there.

Nothing here holds a store in memory: `at` maps a file, `select` fills the array that it returns. A checksum is compared
when a file is read whole, in the same pass; `at` reads a file of up to `arrays.VERIFY_UP_TO` bytes once for it, and
believes larger ones, which `list_trajectories.py --verify` reads.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model import arrays, experiment, ranks, row_files
from diffusion_model.row_files import RowFile

KIND = "trajectories"
LEVEL_MIN, LEVEL_MAX = 0.01, 50.0  # in units of the data's standard deviation
TOLERANCE = 1e-6
FINEST = 1_000  # granularity: of a finer grid every time is a file of its own without saying more
META = {  # of meta.json, as `arrays.expect` takes it
    "requested": [float], "stored": {...: {"time": float, "crc32": int}}, "attributes": {...: int},
    "labels": {"crc32": int}, "count": int, "dimension": int, "dtype?": str,
}  # fmt: skip
DTYPES = ("float32", "float16")
EARLIER = {
    "dtype": "float32",
    "precision": "float32",
    "rows": "in the order of the split",
}  # fields that stores of earlier versions lack, with what those did
ROWS = 1 << 16  # read at once
REMEDY = "run `python diffusion_model/representations.py RUN` first"


def level_of(time: float) -> float:
    """Noise level, in units of the data's standard deviation, that the time t in [0, 1] labels."""
    return LEVEL_MIN * (LEVEL_MAX / LEVEL_MIN) ** time


def grid(granularity: int) -> list[float]:
    """The paper's times i/k for i = 0..k; granularity 1 is t = 0.5 alone."""
    if granularity < 1:
        raise ValueError(f"granularity {granularity}: expected an integer of at least 1")
    if granularity == 1:
        return [0.5]
    return [float(Fraction(i, granularity)) for i in range(granularity + 1)]


def union(granularities: Iterable[int]) -> list[float]:
    """Every distinct time of the grids asked for, sorted."""
    granularities = list(granularities)
    for granularity in granularities:
        grid(granularity)  # refuses what is no granularity
    exact = {Fraction(i, k) for k in granularities if k > 1 for i in range(k + 1)}
    exact |= {Fraction(1, 2) for k in granularities if k == 1}
    return [float(time) for time in sorted(exact)]


def _file(time: float) -> str:
    return f"z_{time:.8f}"


def missing(meta: dict[str, Any], times: Iterable[float]) -> list[float]:
    """Those of the times that a store's meta.json does not list as stored."""
    return [time for time in times if f"{time:.8f}" not in meta["stored"]]


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a store, which may be unfinished; an altered one is a ValueError."""
    meta = arrays.read_meta(folder, KIND, REMEDY)
    again = f"remove {folder} and {REMEDY.removesuffix(' first')}"
    arrays.expect(meta, folder / "meta.json", META, again)
    if meta.get("dtype", DTYPES[0]) not in DTYPES:
        raise ValueError(f"{folder}/meta.json: dtype is {meta['dtype']!r}, expected {' or '.join(DTYPES)}: {again}")
    lacking = {name: value for name, value in EARLIER.items() if name not in meta}
    return arrays.Fields(meta | lacking, folder / "meta.json")


class Trajectories:
    """Reader of one store and split. `times` [T] ascending, `labels` int64 [N, A], `attributes` {name: number of classes}."""

    def __init__(self, folder: Path, unfinished: bool = False) -> None:
        """unfinished: take also a store that is still being written, with the times that are there."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no trajectories in {self.folder}: {REMEDY}")
        self.meta = read_meta(self.folder)
        lacking = missing(self.meta, self.meta["requested"])
        if lacking and not unfinished:
            raise ValueError(
                f"{self.folder} is still being written or was interrupted ({len(lacking)} times are missing): {REMEDY}"
            )
        self.times = sorted(entry["time"] for entry in self.meta["stored"].values())
        self.attributes: dict[str, int] = self.meta["attributes"]
        self.labels = arrays.read_array(self.folder / "labels.npy", self.meta["labels"]["crc32"])
        self.count, self.dimension, self.dtype = self.meta["count"], self.meta["dimension"], self.meta["dtype"]
        self._verified: set[str] = set()
        self._check()

    def _check(self) -> None:
        """Refuse sizes that are none, labels of other images, and a folder that another source or split was written to."""
        again = f"remove {self.folder} and make it again"
        if min(self.count, self.dimension) < 1 or not self.meta["requested"]:
            raise ValueError(
                f"{self.folder} holds {len(self.times)} times of {self.count} images with {self.dimension} features, "
                f"expected at least one of each: {again}"
            )
        found, told = (self.labels.shape, self.labels.dtype.kind), ((self.count, len(self.attributes)), "i")
        if found != told:
            raise ValueError(
                f"{self.folder}/labels.npy holds {self.labels.dtype} of shape {self.labels.shape}, expected integers of "
                f"shape {told[0]}, as meta.json says: {again}"
            )
        *_, above, source, split = ("", "", *self.folder.absolute().parts)
        for what, named in (("source", source), ("split", split)) if above == "trajectories" else ():
            if self.meta.get(what, named) != named:
                raise ValueError(
                    f"{self.folder} holds the images of the {what} {self.meta[what]!r}: move it back, or {again}"
                )

    def nearest(self, time: float) -> float:
        """The stored time within 1e-6 of `time`; ValueError with the list of stored times where there is none."""
        found = min(self.times, key=lambda stored: abs(stored - time))
        if not abs(found - time) <= TOLERANCE:
            stored = ", ".join(f"{entry:g}" for entry in self.times)
            source = self.meta.get("source", "SOURCE")
            raise ValueError(
                f"time {time:g} is not stored in {self.folder}; stored: {stored}; to add it, run `python "
                f"diffusion_model/representations.py RUN --sources {source} --times {time:g}`"
            )
        return found

    def at(self, time: float) -> np.ndarray:
        """Representations [N, D] at one stored time, memory-mapped, in the store's dtype."""
        name = f"{self.nearest(time):.8f}"
        return self._map(name, None if name in self._verified else self.meta["stored"][name]["crc32"])

    def look(self, time: float) -> np.ndarray:
        """As `at`, without reading the file for its checksum."""
        return self._map(f"{self.nearest(time):.8f}", None)

    def _map(self, name: str, checksum: int | None) -> np.ndarray:
        path = self.folder / f"z_{name}.npy"
        array = arrays.read_array(path, checksum)
        found, told = (array.shape, str(array.dtype)), ((self.count, self.dimension), self.dtype)
        if found != told:
            raise ValueError(f"{path} holds {found}, meta.json says {told}: remove {self.folder} and make it again")
        if checksum is not None and path.stat().st_size <= arrays.VERIFY_UP_TO:
            self._verified.add(name)
        return array

    def blocks(self, time: float) -> Iterator[tuple[slice, np.ndarray]]:
        """(rows, representations) of one time in float32, block by block in order, as `select` refuses them.

        The checksum is compared at the end, whatever the file's size, unless it has been before.
        """
        name = f"{self.nearest(time):.8f}"
        array = self.look(time)
        path = self.folder / f"z_{name}.npy"
        with path.open("rb") as file:
            value = zlib.crc32(file.read(array.offset))
        step = max(1, ROWS * 256 // self.dimension)
        for start in range(0, self.count, step):
            block = array[start : start + step]
            value = value if name in self._verified else zlib.crc32(block, value)
            yield slice(start, start + len(block)), self._finite(block.astype(np.float32))
        if name not in self._verified and value != self.meta["stored"][name]["crc32"]:
            raise ValueError(
                f"{path} was altered after it was written (its checksum differs): remove its folder and make it again"
            )
        self._verified.add(name)

    def select(self, times: Sequence[float] | None = None, rows: np.ndarray | None = None) -> np.ndarray:
        """Representations [N, T, D] in float32 at the times given, or at every stored time; NaN is a ValueError.

        rows: indices or a mask of the images wanted; these alone are read.
        """
        times = self.times if times is None else times
        if rows is not None:
            rows = np.arange(self.count)[rows]
            return self._finite(
                np.stack([self.at(time)[rows] for time in times], axis=1).astype(np.float32, copy=False)
            )
        chosen = np.empty((self.count, len(times), self.dimension), np.float32)
        for index, time in enumerate(times):
            for block, z in self.blocks(time):
                chosen[block, index] = z
        return chosen

    def share_over_times(self, most: int = 2_000, entries: int = 20_000_000) -> float | None:
        """Share of the variance that is between the times of one image: 0 of constant trajectories, 1 of independent times.

        Of images drawn by a fixed seed, as many as `most` and `entries` of their features allow, the mean of each time removed.
        None of a single time, of a single image, and of features that do not vary.
        """
        count = min(most, self.count, max(2, entries // max(1, len(self.times) * self.dimension)))
        if len(self.times) < 2 or count < 2:
            return None
        rows = np.random.default_rng(experiment.seed_of("share over times")).permutation(self.count)[:count]
        z = self.select(rows=np.sort(rows)).astype(np.float64)
        z -= z.mean(axis=0)
        whole = np.square(z).mean(axis=1).sum()
        return float(z.var(axis=1, ddof=1).sum() / whole) if whole > 0 else None

    def _finite(self, z: np.ndarray) -> np.ndarray:
        if not np.isfinite(z).all():
            raise ValueError(
                f"{self.folder} holds values that are not finite: the run has diverged, or the store was altered"
            )
        return z

    def label(self, attribute: str) -> np.ndarray:
        """Labels [N] of one attribute; ValueError with the names that exist."""
        names = list(self.attributes)
        if attribute not in names:
            raise ValueError(f"no attribute {attribute!r} in {self.folder}; there are: {', '.join(names) or 'none'}")
        return np.asarray(self.labels[:, names.index(attribute)])


class Writer:
    """Writer of one store and split; `pending` lists the times still to be encoded, `write` adds one of them.

    Opening a folder that holds a store of the same provenance goes on with it; another provenance is a ValueError. A store
    is whole with the times that its `requested` names: those of the writer, or of an earlier one that came to its end.
    By rows, on any number of ranks: the first calls `begin` and learns what is there; each rank calls `put` with rows of
    its own; when all are there, `finish` for each time by one of them, and `record` with what all finished by the first.
    """

    def __init__(self, folder: Path, times: Sequence[float], labels: np.ndarray, attributes: dict[str, int],
                 dimension: int, dtype: str = "float32", **provenance: Any) -> None:  # fmt: skip
        self.folder = Path(folder)
        identity = {
            **provenance,
            "attributes": attributes,
            "dimension": dimension,
            "count": len(labels),
            "dtype": dtype,
        }
        self.times = sorted(times)
        if arrays.is_finished(self.folder):
            self.meta = read_meta(self.folder)
            self._refuse_other(identity)
            if not missing(self.meta, self.meta["requested"]):
                return  # whole, and read by others perhaps
            self.meta["requested"] = sorted({*self._stored(), *times})
        else:
            self.meta = {
                "format": arrays.FORMAT,
                "kind": KIND,
                **identity,
                "requested": self.times,
                "labels": self._write_labels(labels),
                "stored": {},
            }
        self._save()

    def _refuse_other(self, identity: dict[str, Any]) -> None:
        known = self.meta.keys() | identity.keys() - {"weights"}  # which stores of earlier versions do not tell
        other = [name for name in identity if name in known and self.meta.get(name) != identity[name]]
        if other:
            changes = ", ".join(f"{name}: {self.meta.get(name)!r} there, {identity[name]!r} now" for name in other)
            raise ValueError(
                f"{self.folder} holds trajectories of another origin ({changes}): to go on with them, give the options that "
                "made them; to make them anew, remove it first"
            )

    def _write_labels(self, labels: np.ndarray) -> dict[str, Any] | None:
        if not ranks.first():
            return None
        arrays.write_array(self.folder / "labels.npy", np.asarray(labels, dtype=np.int64))
        return arrays.describe(self.folder / "labels.npy")

    def _save(self) -> None:
        if ranks.first():
            arrays.write_json(self.folder / "meta.json", self.meta)

    @property
    def pending(self) -> list[float]:
        """Times asked for and not yet stored."""
        return missing(self.meta, self.times)

    def _stored(self) -> list[float]:
        return [entry["time"] for entry in self.meta["stored"].values()]

    def _file(self, time: float) -> RowFile:
        shape = self.meta["count"], self.meta["dimension"]
        return RowFile(self.folder / f"{_file(time)}.npy", shape, np.dtype(self.meta["dtype"]))

    def begin(self) -> dict[float, np.ndarray]:
        """Lay out the files of the pending times; {time: whether each row [N] is there}, from before a kill."""
        files = {time: self._file(time) for time in self.pending}
        for file in files.values():
            file.begin()
        found = row_files.written(self.folder, list(files.values()))
        return {time: found[file.path.name] for time, file in files.items()}

    def put(self, start: int, z: dict[float, np.ndarray]) -> None:
        """Write {time: rows [B, D]} from row `start` on; a wrong shape or a value that is not finite is a ValueError."""
        checksums = {}
        for time, rows in z.items():
            file = self._file(time)
            checksums[file.path.name] = len(rows), file.put(start, self._fit(time, start, rows))
        row_files.note(self.folder, experiment.rank(), start, checksums)

    def _fit(self, time: float, start: int, rows: np.ndarray) -> np.ndarray:
        """Rows in the store's dtype."""
        left, dimension = self.meta["count"] - start, self.meta["dimension"]
        if rows.ndim != 2 or rows.shape[1] != dimension or len(rows) > left:
            raise ValueError(
                f"representations at time {time:g} have shape {rows.shape}, expected ({left}, {dimension})"
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"representations at time {time:g} are not finite: the run has diverged")
        with np.errstate(over="ignore"):
            fitted = rows.astype(self.meta["dtype"], copy=False)
        if not np.isfinite(fitted).all():
            largest = np.abs(rows).max()
            raise ValueError(
                f"representations at time {time:g} reach {largest:.3g}, beyond float16: take float32, after removing {self.folder}"
            )
        return fitted

    def finish(self, time: float) -> dict[str, Any]:
        """Give the file of one time its name, all rows being there, and return what `record` is to be told of it."""
        file = self._file(time)
        checksum = arrays.file_checksum(file.part)
        file.finish()
        return {f"{time:.8f}": {"time": time, "level": level_of(time), "crc32": checksum}}

    def record(self, finished: Iterable[dict[str, Any]]) -> None:
        """Take times that were finished, by this rank and others, into the store."""
        for entries in finished:
            self.meta["stored"] |= entries
        self.meta["stored"] = dict(sorted(self.meta["stored"].items()))
        self.meta["requested"] = sorted({*self.meta["requested"], *self._stored()})
        self._save()
        if ranks.first():
            row_files.forget(self.folder)

    def write(self, time: float, z: np.ndarray) -> None:
        """Store z [N, D] of one time at once."""
        expected = (self.meta["count"], self.meta["dimension"])
        if z.shape != expected:
            raise ValueError(f"representations at time {time:g} have shape {z.shape}, expected {expected}")
        self._file(time).begin()
        self.put(0, {time: z})
        self.record([self.finish(time)])
