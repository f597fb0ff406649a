"""One pass of a readout over a split's images: features into stores, shared by ranks, gone on with after a kill.

The images are read once for all times and stores of a pass, in batches; the next one is read and the last one written
while the networks work on this one. Ranks share the batches. A batch is cut smaller where its features are large, so that
memory holds three batches and no more. What is written already is known by rows: a time, or a store, of which other rows
are missing makes a pass of its own.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion_model import data, experiment, ranks
from diffusion_model.readouts import Readout, Wanted
from diffusion_model.trajectories import Writer

HELD = 1 << 28  # bytes of features of one batch


class Pass(NamedTuple):
    """What to compute (names of stores by time) for which rows, [start, stop) each."""

    wanted: Wanted
    batches: list[tuple[int, int]]


def encode(readout: Readout, split: data.Split, writers: dict[str, Writer], batch: int) -> None:
    """Fill the pending times of the stores {name: writer}. All ranks call it."""
    for part in _shared(plan(writers, readout.outputs, len(split), batch) if ranks.first() else []):
        mine = ranks.share(len(part.batches))
        batches = [slice(*rows) for rows in part.batches[mine.start : mine.stop]]
        _run(readout, split, writers, part.wanted, batches)
    ranks.barrier()
    finish(writers)


def plan(writers: dict[str, Writer], outputs: dict[str, int], count: int, batch: int) -> list[Pass]:
    """The passes that are left, after laying out the files."""
    groups: dict[bytes, list[tuple[float, str]]] = {}
    masks: dict[bytes, np.ndarray] = {}
    for name, writer in writers.items():
        for time, there in writer.begin().items():
            key = np.packbits(there).tobytes()
            masks[key] = there
            groups.setdefault(key, []).append((time, name))
    passes = []
    for key, targets in groups.items():
        wanted = {time: [name for other, name in targets if other == time] for time in sorted({t for t, _ in targets})}
        features = sum(outputs[name] for names in wanted.values() for name in names)
        size = max(1, min(batch, HELD // (4 * features)))
        spans = [(start, min(start + size, count)) for start in range(0, count, size)]
        passes.append(Pass(wanted, [(start, stop) for start, stop in spans if not masks[key][start:stop].all()]))
    return passes


def _shared(passes: list[Pass]) -> list[Pass]:
    """The first rank's passes, in every rank."""
    told = ranks.from_first([[list(part.wanted.items()), part.batches] for part in passes])
    return [Pass(dict(wanted), batches) for wanted, batches in told]


def _run(readout: Readout, split: data.Split, writers: dict[str, Writer], wanted: Wanted, batches: list[slice]) -> None:
    def compute(held: tuple[torch.Tensor, ...]) -> dict[str, dict[float, torch.Tensor]]:
        with torch.inference_mode():
            return readout(held, wanted)

    def write(rows: slice, found: dict[str, dict[float, torch.Tensor]]) -> None:
        for name, times in found.items():
            writers[name].put(rows.start, {time: z.cpu().numpy() for time, z in times.items()})

    names = sorted({name for names in wanted.values() for name in names})
    what = names[0] if len(names) == 1 else f"{len(names)} stores"
    progress = experiment.progress(batches, f"encoding {split.split} to {what}", "batches")
    overlap(progress, batches, lambda rows: readout.read(split, rows), compute, write)


def overlap(
    progress: Iterable[Any], items: list[Any], read: Callable[[Any], Any], compute: Callable[[Any], Any],
    write: Callable[[Any, Any], None],
) -> None:  # fmt: skip
    """write(item, compute(read(item))) for every item, in order; one item is read ahead and one written behind, in threads.

    progress: the items again, wrapped.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        coming = reader.submit(read, items[0]) if items else None
        written = None
        for number, item in enumerate(progress):
            held = coming.result()
            coming = reader.submit(read, items[number + 1]) if number + 1 < len(items) else None
            found = compute(held)
            if written is not None:
                written.result()
            written = writer.submit(write, item, found)
        if written is not None:
            written.result()


def finish(writers: dict[str, Writer]) -> None:
    """Name and record what is whole; the ranks share the reading. All ranks call it."""
    targets = [(name, time) for name, writer in writers.items() for time in writer.pending]
    targets = ranks.from_first(targets)
    done: dict[str, dict[str, Any]] = {name: {} for name in writers}
    for name, time in ranks.deal(targets):
        done[name] |= writers[name].finish(time)
    everyone = ranks.collect(done)
    for name, writer in writers.items():
        writer.record(entries[name] for entries in everyone)
    ranks.barrier()  # what follows reads the stores that the first rank has recorded
