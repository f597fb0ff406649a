"""Training curves for TensorBoard: RUN/tensorboard/, where the package `tensorboard` is installed, else nothing.

metrics.jsonl holds the same numbers and is what the project reads; this is a copy for those who watch a run. Records have a
`step`; every other number of theirs becomes a curve of its own name. A resumed run goes on at its step: what an earlier
process had written beyond it is hidden (TensorBoard's purge_step).
"""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

from diffusion_model import arrays, reports


class Board:
    """`board(record)` adds one record of metrics.jsonl; without TensorBoard, or with active=False, it does nothing."""

    def __init__(self, run: Path, step: int, active: bool = True) -> None:
        self.folder, self.writer = Path(run) / "tensorboard", None
        if active:
            with reports.survived(self.folder):
                self.writer = _open(self.folder, step)

    def __call__(self, record: dict[str, Any]) -> None:
        """One point on each curve, at once on disk: records are minutes apart, and a process may be killed."""
        if self.writer is None:
            return
        writer, self.writer = self.writer, None  # one that failed is left alone: its queue would be waited for in vain
        with reports.survived(self.folder):
            for name, value in record.items():
                if name != "step" and is_number(value):
                    writer.add_scalar(name, value, record["step"])
            writer.flush()
            self.writer = writer

    def close(self) -> None:
        """Finish the event file."""
        if self.writer is not None:
            with reports.survived(self.folder):
                self.writer.close()


def is_installed() -> bool:
    """Whether the package `tensorboard` can be imported."""
    return importlib.util.find_spec("tensorboard") is not None


def is_number(value: Any) -> bool:
    """Whether a value is a point of a curve."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _open(folder: Path, step: int) -> Any:
    """A writer whose next point follows `step`, hiding those beyond it; None without TensorBoard, or a broken one."""
    if not is_installed():
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # an optional package of any age must not end a training
        print(f"no TensorBoard curves: the package cannot be imported ({error})", file=sys.stderr)
        return None
    arrays.refuse_links(folder / "events")
    return SummaryWriter(str(folder), purge_step=step + 1)
