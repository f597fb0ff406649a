"""The cells of a sweep over skips: samples after a jump, measured against the plain solver's and against real images.

A cell is a solver, its number of steps, a kind of jump and where it jumps to. What it made lies beside its JSON: features,
some images, each sample's drift from the plain solver's of the same seed, and, for the plain solvers, the states that
those are measured from. The reference that distances are measured to lies in the sweep's folder too.

Dimensions: N samples, F features.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from diffusion_model import arrays, data, experiment, features, fid, ranks, results
from diffusion_model.data import Scaling
from diffusion_model.moments import Moments, read_npz
from diffusion_model.row_files import RowFile
from diffusion_model.samplers import SAMPLERS, Denoiser, evaluations, last
from linear_structure import intervals
from linear_structure.flow import ClosedForm

KIND = "sweep cell"
SHOWN = 16  # samples kept as images in each cell
SUBSET = 1000  # samples of one estimate of the kernel distance, of enough of them (Binkowski et al. 2018)
FILE = "reference.npz"  # a reference of others, as it was given


class Cell(NamedTuple):
    """One point of a sweep: after a jump to the level `skip` of the solver's grid, or else to any level."""

    sampler: str
    steps: int
    kind: str = "none"
    skip: int = 0
    level: float | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What names it on disk."""
        where = {"skip": self.skip} if self.level is None else {"level": self.level}
        return {"sampler": self.sampler, "steps": self.steps, "kind": self.kind, **where}

    @property
    def plain(self) -> "Cell":
        """The cell without a jump that it is measured against."""
        return Cell(self.sampler, self.steps)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.key.items())


def kernel_subset(n: int, reference: features.Reference) -> int | None:
    """Rows of one estimate of the kernel distance: at least 4 of them where there are fewer than 4 x SUBSET samples."""
    return None if reference.kept is None else max(2, min(SUBSET, n // 4, len(reference.kept)))


def draw(
    denoise: Denoiser,
    jump: ClosedForm | None,
    sampler: str,
    first: float | torch.Tensor,
    levels: torch.Tensor,
    seeds: Sequence[int],
    shape: Sequence[int],
    batch: int,
    device: torch.device | str = "cpu",
) -> Iterator[torch.Tensor]:
    """Batches of samples [B, *shape] in model space: noise at the first level, the jump, the solver on `levels`.

    Row i belongs to seed i. Without a jump `levels` begin at the first level.
    """
    for start in range(0, len(seeds), batch):
        x = float(first) * experiment.sample_noise("start", seeds[start : start + batch], shape).to(device)
        if jump is not None:
            x = jump.teleport(x, first, levels[0])
        x = last(SAMPLERS[sampler].run(denoise, x, levels))
        if not torch.isfinite(x).all():
            raise FloatingPointError(f"the solver left the finite numbers for seeds from {seeds[start]}")
        yield x


class Sweep:
    """The cells of one sweep in `folder`: made if missing, measured against the plain solver and the reference.

    grid(steps, first): the solver's levels from a first one, by default its own highest; shown: samples kept as images.
    """

    def __init__(
        self,
        folder: Path,
        protocol: dict[str, Any],
        grid: Callable[..., torch.Tensor],
        seeds: Sequence[int],
        batch: int,
        reference: features.Reference,
        shown: int = SHOWN,
    ) -> None:
        self.folder, self.protocol, self.grid = Path(folder), protocol, grid
        self.seeds, self.batch, self.reference, self.shown = seeds, batch, reference, min(shown, len(seeds))
        self.of_kind: dict[str, dict[str, Any]] = {}  # what else decides the cells of a kind

    def levels(self, cell: Cell) -> torch.Tensor:
        """The levels that are left to the solver."""
        return self.grid(cell.steps)[cell.skip :] if cell.level is None else self.grid(cell.steps, cell.level)

    def protocol_of(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell beside its key."""
        return self.protocol | self.of_kind.get(cell.kind, {})

    def run(
        self,
        cells: list[Cell],
        denoise: Denoiser,
        forms: Mapping[str, ClosedForm],
        scaling: Scaling,
        extractor: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device | str = "cpu",
    ) -> list[str]:
        """Fill the missing cells with any denoiser and its closed forms; returns the sentences of those that failed.

        The plain solvers' cells come first, for every other is measured against one; ranks share them, then the others.
        """
        missing = [Cell(*cell) for cell in ranks.from_first([cell for cell in cells if not self.is_there(cell)])]
        work = sum(evaluations(cell.sampler, self.levels(cell)) for cell in missing) * len(self.seeds)
        if missing and ranks.first():
            print(f"{self.folder}: {len(missing)} of {len(cells)} cells to make, {work:,} evaluations", file=sys.stderr)
        if missing:  # what the first evaluation sets up would count as the first cell's time
            with torch.no_grad():
                denoise(torch.zeros(1, *self.protocol["shape"], device=device), torch.tensor(1.0, device=device))

        def attempt(cell: Cell) -> list[str]:
            try:
                self.make(cell, denoise, forms.get(cell.kind), scaling, extractor, device)
            except (ValueError, RuntimeError, FloatingPointError) as error:
                results.write_cell(self.folder, cell.key, {"error": str(error)}, self.protocol_of(cell))
                return [f"{cell}: {error}"]
            return []

        plain = [cell for cell in missing if cell == cell.plain]
        failed = self._share(plain, attempt)
        lost = [] if not failed else [cell for cell in plain if not self.is_there(cell)]
        others = [cell for cell in missing if cell != cell.plain and cell.plain not in lost]
        return failed + self._share(others, attempt)

    def _share(self, cells: list[Cell], attempt: Callable[[Cell], list[str]]) -> list[str]:
        """Every rank makes its share; the sentences of all ranks' failures."""
        failed = []
        for cell in experiment.progress(ranks.deal(cells), "sweep", "cell"):
            failed += attempt(cell)
        return [sentence for of_rank in ranks.collect(failed) for sentence in of_rank]

    def is_there(self, cell: Cell) -> bool:
        """Whether a cell is finished, with its features and as many images as are wanted."""
        if results.finished(self.folder, cell.key, self.protocol_of(cell)) is None:
            return False
        beside = self.beside(cell.key)
        if not arrays.is_finished(beside):
            return False
        held = arrays.read_meta(beside, KIND, "remove it")["arrays"]
        return held["images"]["shape"][0] >= self.shown

    def beside(self, key: dict[str, Any]) -> Path:
        """The folder of a cell's arrays, beside its JSON."""
        return results.folder_beside(results.cell_path(self.folder, **key))

    def codes(self, cell: Cell) -> np.ndarray:
        """The features [N, F] of a finished cell."""
        return arrays.read_folder(self.beside(cell.key), KIND)[0]["features"]

    def make(
        self,
        cell: Cell,
        denoise: Denoiser,
        jump: ClosedForm | None,
        scaling: Scaling,
        extractor: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device | str,
    ) -> None:
        """Sample, extract and measure one cell, batch by batch; the plain solver's states stay on disk for the drifts."""
        own, levels = self.grid(cell.steps), self.levels(cell)
        shape, count, plain = self.protocol["shape"], len(self.seeds), cell == cell.plain
        others = None if plain else arrays.read_folder(self.beside(cell.plain.key), KIND)[0]["states"]
        wanted = {"images": (np.uint8, (self.shown, *shape))} | (
            {"states": (np.float32, (count, *shape))} if plain else {}
        )
        codes, drift, done, clocks = [], np.zeros(count, np.float32), 0, (time.monotonic, busy_clock(device))
        spent, start = np.zeros(2), [clock() for clock in clocks]
        with Growing(self.beside(cell.key), wanted) as growing:
            for x in draw(denoise, jump, cell.sampler, own[0], levels, self.seeds, shape, self.batch, device):
                spent += [clock() - before for clock, before in zip(clocks, start, strict=True)]
                rows = slice(done, done + len(x))
                pixels, x = scaling.to_pixels(x), x.float().cpu()
                codes.append(extractor(pixels).numpy())
                if done < self.shown:
                    growing.put("images", done, pixels[: self.shown - done].cpu().numpy())
                if plain:
                    growing.put("states", done, x.numpy())
                else:
                    drift[rows] = (x - torch.from_numpy(np.array(others[rows]))).flatten(1).norm(dim=1).numpy()
                done += len(x)
                start = [clock() for clock in clocks]
            growing.seal({"drift": drift, "features": np.concatenate(codes)}, cell.key)
            value = self.measure(np.concatenate(codes)) | {
                "level": float(levels[0]),
                "skip": int((own > levels[0]).sum()),
                "evaluations": evaluations(cell.sampler, levels),
                "drift": float(drift.mean(dtype=np.float64)),
                "seconds": round(float(spent[0]), 3),
                "busy_seconds": round(float(spent[1]), 3),
            }
            results.write_cell(self.folder, cell.key, value, self.protocol_of(cell), growing.replace)

    def measure(self, codes: np.ndarray) -> dict[str, float]:
        """Distances of features [N, F] to the reference: Frechet and, where it holds features, kernel."""
        found = {"distance": intervals.measure(codes, self.reference)}
        size = self.protocol.get("kernel_subset")
        if size is not None:
            kernel = fid.KernelStream(self.reference.kept, size).update(codes).result()
            found |= {"kernel_distance": kernel.value, "kernel_deviation": kernel.deviation}
        return found

    def floor(self, test: data.Split, extractor: features.Extractor) -> None:
        """The distance of as many real images, from the test split, by a fixed draw; a sentence where it has too few."""
        count = len(self.seeds)
        key = {"kind": "real", "skip": 0}
        protocol = self.protocol | {
            "images": f"{count} of {len(test)} test images, drawn by a fixed seed",
            "test": test.hash,
        }
        if len(test) < count:
            print(f"no real-against-real floor: {count} samples, but only {len(test)} test images", file=sys.stderr)
            return
        if results.finished(self.folder, key, protocol) and arrays.is_finished(self.beside(key)):
            return
        order = torch.randperm(len(test), generator=experiment.generator("floor", self.protocol["seed_base"]))
        rows = order[:count].numpy()
        codes = features.extract(extractor, test.images[rows], "real images")
        content = {"features": codes, "images": np.asarray(test.images[rows[:SHOWN]])}

        def arrays_of(place: Path) -> None:
            arrays.write_folder(place, KIND, content, key=key)

        results.write_cell(self.folder, key, self.measure(codes), protocol, arrays_of)


def busy_clock(device: torch.device | str) -> Callable[[], float]:
    """Processor time on a CPU, which other processes there do not lengthen; on a GPU the time that passes."""
    return time.process_time if torch.device(device).type == "cpu" else time.monotonic


class Growing:
    """The arrays of a cell while they are made: in a folder of their own, so that what is there before stays whole."""

    def __init__(self, folder: Path, wanted: Mapping[str, tuple[Any, tuple[int, ...]]]) -> None:
        self.folder = folder.with_name(f".{folder.name}.tmp")
        self.files = {
            name: RowFile(self.folder / f"{name}.npy", shape, np.dtype(dtype))
            for name, (dtype, shape) in wanted.items()
        }

    def __enter__(self) -> Self:
        """Take the place of the arrays {name: (dtype, shape)} on the disk."""
        shutil.rmtree(self.folder, ignore_errors=True)  # of a sweep that was killed
        try:
            for file in self.files.values():
                file.begin()
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *failure: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def put(self, name: str, start: int, rows: np.ndarray) -> None:
        """Write rows of one array, from row `start` on."""
        self.files[name].put(start, rows)

    def seal(self, others: Mapping[str, np.ndarray], key: dict[str, Any]) -> None:
        """Finish the arrays, write others beside them, and the folder's meta last."""
        for file in self.files.values():
            file.finish()
        for name, array in others.items():
            arrays.write_array(self.folder / f"{name}.npy", array)
        arrays.seal_folder(self.folder, KIND, [*self.files, *others], key=key)

    def replace(self, folder: Path) -> None:
        """Put the sealed arrays in the place of the cell's folder."""
        (folder / "meta.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        self.folder.rename(folder)


def refuse_others(folder: Path, protocol: dict[str, Any]) -> None:
    """Refuse a folder with cells of another protocol, whatever their keys: all of it makes one table and has one reference."""
    first = next(iter(sorted(folder.glob("sampler=*/steps=*/kind=none/skip=0.json"))), None)
    if first is not None:
        results.finished(folder, results.read_cell(first).key, protocol)


def keep_reference(folder: Path, reference: features.Reference, file: Path | None = None) -> None:
    """Leave the reference in a sweep's folder: its moments, or the file that it came in."""
    if file is not None and file.suffix == ".npz":
        folder.mkdir(parents=True, exist_ok=True)
        arrays.write_atomically(folder / FILE, lambda temporary: shutil.copyfile(file, temporary))
        return
    (folder / FILE).unlink(missing_ok=True)
    held, moments = folder / "reference", reference.moments
    if arrays.is_finished(held):  # also one that a sweep left which was killed before its first cell
        known = Moments.load(held)
        if known.count == moments.count and torch.equal(known.mean, moments.mean):
            return
    moments.save(held)


def kept_reference(folder: Path, remedy: str) -> features.Reference:
    """The reference in a sweep's folder, without the features that kernel distances take."""
    held = folder / FILE
    moments = read_npz(held) if held.is_file() else Moments.load(folder / "reference", remedy)
    return features.Reference(moments, fid.factor(moments.covariance))
