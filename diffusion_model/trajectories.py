"""Representations of N images at T noise times, on disk: one folder a store and split, one `.npy` file a time.

Legend: N images, T times, D features, A label columns. A time t in [0, 1] labels the noise level 0.01 * 5000^t in units
of the data's standard deviation (From Points to Functions, section 4; sigma(t) of its VE process). The paper's eight
granularities k use the times i/k; their union is encoded once: 109 distinct times where single grids need 161.

A store is `RUN/trajectories/SOURCE/SPLIT/`: `labels.npy`, `z_TIME.npy` ... and `meta.json`, rewritten after each time,
so that an interrupted command goes on with the times that are missing. Where ranks share the times, each writes its own
`z_TIME.npy` and the first alone writes `meta.json`: it never names a file that is not whole.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model import arrays, ranks

KIND = "trajectories"
LEVEL_MIN, LEVEL_MAX = 0.01, 50.0  # in units of the data's standard deviation
TOLERANCE = 1e-6
META = {  # of meta.json, as `arrays.expect` takes it
    "requested": [float], "stored": {...: {"time": float, "crc32": int}}, "attributes": {...: int},
    "labels": {"crc32": int}, "count": int, "dimension": int,
}  # fmt: skip
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


def _read_meta(folder: Path) -> dict[str, Any]:
    meta = arrays.read_meta(folder, KIND, REMEDY)
    arrays.expect(meta, folder / "meta.json", META, f"remove {folder} and {REMEDY.removesuffix(' first')}")
    return meta


class Trajectories:
    """Reader of one store and split. `times` [T] ascending, `labels` int64 [N, A], `attributes` {name: number of classes}."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no trajectories in {self.folder}: {REMEDY}")
        self.meta = _read_meta(self.folder)
        missing = [time for time in self.meta["requested"] if f"{time:.8f}" not in self.meta["stored"]]
        if missing:
            raise ValueError(
                f"{self.folder} is still being written or was interrupted ({len(missing)} times are missing): {REMEDY}"
            )
        self.times = sorted(entry["time"] for entry in self.meta["stored"].values())
        self.attributes: dict[str, int] = self.meta["attributes"]
        self.labels = arrays.read_array(self.folder / "labels.npy", self.meta["labels"]["crc32"])
        self.count, self.dimension = self.meta["count"], self.meta["dimension"]

    def nearest(self, time: float) -> float:
        """The stored time within 1e-6 of `time`; ValueError with the list of stored times where there is none."""
        found = min(self.times, key=lambda stored: abs(stored - time))
        if not abs(found - time) <= TOLERANCE:
            stored = ", ".join(f"{entry:g}" for entry in self.times)
            raise ValueError(f"time {time:g} is not stored in {self.folder}; stored: {stored}")
        return found

    def at(self, time: float) -> np.ndarray:
        """Representations [N, D] at one stored time, memory-mapped."""
        name = f"{self.nearest(time):.8f}"
        entry = self.meta["stored"][name]
        array = arrays.read_array(self.folder / f"z_{name}.npy", entry["crc32"])
        if array.shape != (self.count, self.dimension):
            raise ValueError(
                f"{self.folder}/z_{name}.npy has shape {array.shape}, meta.json says {(self.count, self.dimension)}"
            )
        return array

    def select(self, times: Sequence[float] | None = None) -> np.ndarray:
        """Representations [N, T, D] in float32 at the times given, or at every stored time; NaN is a ValueError."""
        times = self.times if times is None else times
        chosen = np.stack([self.at(time) for time in times], axis=1).astype(np.float32, copy=False)
        if not np.isfinite(chosen).all():
            raise ValueError(
                f"{self.folder} holds values that are not finite: the run has diverged, or the store was altered"
            )
        return chosen

    def label(self, attribute: str) -> np.ndarray:
        """Labels [N] of one attribute; ValueError with the names that exist."""
        names = list(self.attributes)
        if attribute not in names:
            raise ValueError(f"no attribute {attribute!r} in {self.folder}; there are: {', '.join(names) or 'none'}")
        return np.asarray(self.labels[:, names.index(attribute)])


class Writer:
    """Writer of one store and split; `pending` lists the times still to be encoded, `write` adds one of them.

    Opening a folder that holds a store of the same provenance goes on with it; another provenance is a ValueError.
    Ranks that share the times `put` them and `record` those of all; one process does both by `write`.
    """

    def __init__(self, folder: Path, times: Sequence[float], labels: np.ndarray, attributes: dict[str, int],
                 dimension: int, **provenance: Any) -> None:  # fmt: skip
        self.folder = Path(folder)
        identity = {**provenance, "attributes": attributes, "dimension": dimension, "count": len(labels)}
        if arrays.is_finished(self.folder):
            self.meta = _read_meta(self.folder)
            other = [name for name in identity if self.meta.get(name) != identity[name]]
            if other:
                changes = ", ".join(f"{name}: {self.meta.get(name)!r} there, {identity[name]!r} now" for name in other)
                raise ValueError(f"{self.folder} holds trajectories of another origin ({changes}): remove it first")
            self.meta["requested"] = sorted({*self.meta["requested"], *times})
        else:
            self.meta = {
                "format": arrays.FORMAT,
                "kind": KIND,
                **identity,
                "requested": sorted(times),
                "labels": self._write_labels(labels),
                "stored": {},
            }
        self._save()

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
        return [time for time in self.meta["requested"] if f"{time:.8f}" not in self.meta["stored"]]

    def write(self, time: float, z: np.ndarray) -> None:
        """Store z [N, D] at one time; a wrong shape or a value that is not finite is a ValueError."""
        self.record([self.put(time, z)])

    def put(self, time: float, z: np.ndarray) -> dict[str, Any]:
        """Write the file of one time and return what `record` is to be told of it; until then the time is pending."""
        expected = (self.meta["count"], self.meta["dimension"])
        if z.shape != expected:
            raise ValueError(f"representations at time {time:g} have shape {z.shape}, expected {expected}")
        if not np.isfinite(z).all():
            raise ValueError(f"representations at time {time:g} are not finite: the run has diverged")
        path = self.folder / f"{_file(time)}.npy"
        arrays.write_array(path, z)
        entry = {"time": time, "level": level_of(time), "crc32": arrays.file_checksum(path)}
        return {f"{time:.8f}": entry}

    def record(self, written: Iterable[dict[str, Any]]) -> None:
        """Take times that were put, by this rank and others, into the store."""
        for entries in written:
            self.meta["stored"] |= entries
        self._save()
