"""Is a run being trained? RUN/state.json, written by who trains it and believed only with evidence.

    with run_state.tracked(run) as note:      # another process that trains the same run is refused
        note(step=100, total=250_000)         # at the start and at each logged record: "running"
                                              # "finished" or "stopped" at the end, "failed" with its reason

A process that is killed cannot say so. Its file goes on saying "running", so a reader asks the system: on the same machine
for a process of that number that began at that time (numbers are used again), elsewhere whether the run's files have
been written to lately. Whether a run has reached its last step is read from its checkpoints, not from this file.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_model import arrays, checkpoint, locks, reports

KIND = "state"
STATES = ("running", "finished", "stopped", "failed")
FRESH = 600.0  # seconds: files written to within this time speak for a process on another machine
FIRST = 3600.0  # the same before the first record, whose interval is not known yet


@dataclass(frozen=True)
class State:
    """What is known of a run: one of `STATES`, the evidence in words, and when its files were last written to (Unix time)."""

    name: str
    why: str
    step: int  # of the newest checkpoint, or reported by a running process
    total: int
    touched: float
    facts: dict[str, Any]  # what state.json holds; empty where there is none


def mark(run: Path, state: str, **facts: Any) -> None:
    """Write RUN/state.json: the state, this process and the facts given (step, total, world, reason)."""
    if state not in STATES:
        raise ValueError(f"state {state!r}: accepted: {', '.join(STATES)}")
    content = {"format": arrays.FORMAT, "kind": KIND, "state": state, **whereabouts(), "time": time.time(), **facts}
    arrays.write_json(Path(run) / "state.json", content)


def whereabouts() -> dict[str, Any]:
    """This process, so that another one can look for it: machine, its boot, name space of processes, number and start."""
    return {"host": socket.gethostname(), **_system(), "pid": os.getpid(), "started": start_of(os.getpid())}


def _system() -> dict[str, str | None]:
    """What tells machines and containers of one host name apart."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return {"boot": boot.read_text().strip(), "space": str(space.readlink())}
    except OSError:
        return {"boot": None, "space": None}


def start_of(pid: int) -> int | None:
    """When a process began, in ticks since the machine's boot; None where it is gone, or dead and not yet buried."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # behind the name, which may hold anything: state is field 3, start 22
    return None if fields[0] in "ZX" else int(fields[19])


@contextlib.contextmanager
def tracked(run: Path, active: bool = True) -> Iterator[Callable[..., None]]:
    """Keep RUN/state.json while the body trains the run; yields `note(**facts)`, to be called at each logged record.

    A body that ends leaves "finished" where the facts say step == total, else "stopped"; KeyboardInterrupt is "stopped",
    any other exception "failed" with its reason. A body that ends before its first note leaves the state as it was: a
    command that is refused is not what became of the run. With active=False (all ranks but the first) nothing is written.
    """
    if not active:
        yield lambda **facts: None
        return
    facts: dict[str, Any] = {"interval": None}
    before = time.time()

    def note(**more: Any) -> None:
        nonlocal before
        now = time.time()
        if more.get("step", 0) > facts.get("step", more.get("step", 0)):
            facts["interval"] = now - before
        facts.update(more)
        before = now
        _note(run, "running", facts)

    with locks.held(run, "trained", f"{locks.REMEDY}, or give another --workdir"):
        try:
            yield note
        except BaseException as error:
            if "step" in facts:
                _leave(run, error, facts)
            raise
        if "step" in facts:
            _note(run, "finished" if facts["step"] == facts.get("total") else "stopped", facts)


def _note(run: Path, state: str, facts: dict[str, Any]) -> None:
    """`mark`, without which a training goes on."""
    with reports.survived(Path(run) / "state.json"):
        mark(run, state, **facts)


def _leave(run: Path, error: BaseException, facts: dict[str, Any]) -> None:
    """The last word of a run that ends by an exception, which a full disk must not hide."""
    reason = " ".join(f"{error}".split())[:300] or type(error).__name__
    stopped = isinstance(error, KeyboardInterrupt)
    with contextlib.suppress(OSError):
        mark(run, "stopped" if stopped else "failed", **facts, **({} if stopped else {"reason": reason}))


def read(run: Path) -> dict[str, Any]:
    """Content of RUN/state.json; empty where there is none, or where it cannot be read."""
    path = Path(run) / "state.json"
    if not path.is_file():  # nor a pipe, whose end would be waited for
        return {}
    try:
        content = arrays.read_json(path)
        arrays.check_meta(content, path, KIND)
    except (ValueError, OSError):
        return {}
    return dict(content)


def state_of(run: Path) -> State:
    """State of a run with a readable config.json; without one, the error of `checkpoint.read_run`."""
    run = Path(run)
    record = checkpoint.read_run(run)
    held = read(run)
    total = checkpoint.total_steps(record)
    if (run / "weights.safetensors").is_file() and not held:
        return State("finished", "published weights", record.get("step", total), total, touched(run), held)
    saved = max(checkpoint.steps(run), default=0)
    name, why = _judge(run, held, saved, total)
    noted = held.get("step", 0)
    step = max(saved, noted) if name == "running" and isinstance(noted, int) else saved
    return State(name, why, step, total, touched(run), held)


def _judge(run: Path, held: dict[str, Any], saved: int, total: int) -> tuple[str, str]:
    """Name of the state and the evidence for it."""
    if held.get("state") == "running":
        believed, why = is_alive(run, held)
        if believed:
            return "running", why
        return ("finished", "at its last step") if saved >= total else ("stopped", why)
    if saved >= total:
        return "finished", "at its last step"
    if held.get("state") == "failed":
        return "failed", str(held.get("reason", "no reason given"))
    if held.get("state") == "finished":
        return "stopped", f"finished at step {saved}, and made longer since"
    return "stopped", "stopped with a checkpoint" if saved else "stopped before its first checkpoint"


def is_alive(run: Path, held: dict[str, Any]) -> tuple[bool, str]:
    """Whether the process that a state.json of "running" names is still there, and how that is known."""
    pid, here = held.get("pid"), {"host": socket.gethostname(), **_system()}
    if here["boot"] and all(held.get(name) == value for name, value in here.items()):
        begun = start_of(pid) if isinstance(pid, int) else None
        if begun is not None and begun == held.get("started"):
            return True, f"process {pid}"
        return False, f"process {pid} is gone: it was killed"
    interval = held.get("interval")
    patience = max(FRESH, 3 * interval) if isinstance(interval, int | float) else FIRST
    quiet = time.time() - touched(run)
    if quiet <= patience:
        return True, f"on {held.get('host')}, not verified: its files were written to {quiet:.0f} s ago"
    return False, f"on {held.get('host')}, where nothing was written for {quiet / 60:.0f} min"


def touched(run: Path) -> float:
    """When the run was last written to: the newest of its state, metrics, log and configuration (Unix time; 0 for none)."""
    times = [0.0]
    for name in ("state.json", "metrics.jsonl", "log.txt", "config.json"):
        with contextlib.suppress(OSError):
            times.append((Path(run) / name).stat().st_mtime)
    return max(times)
