"""One command at a time where two would spoil each other's files: a folder's lock, held for as long as it is written to.

    with locks.held(run, "trained"):                  # a second command is refused with who holds it
    with locks.held(folder, "written", wait=True):    # or waits, and then finds what the first has made
    with locks.briefly(folder):                       # the instant of one result: many commands fill one folder

The lock is the system's (flock, which NFS takes to its server) on FOLDER/.lock, where who holds it is written. It ends with
its process, however that ends: a lock of the dead blocks nobody, and a file system without locks has none. The ranks of
one job are one command: the first holds the lock for all (`shared`).
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from diffusion_model import arrays, ranks

NAME = ".lock"
BRIEF = ".writing.lock"
REMEDY = "wait for it or stop it"


@contextlib.contextmanager
def held(folder: Path, doing: str, remedy: str = REMEDY, wait: bool = False, name: str = NAME) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is not there.

    While another process holds it, ValueError ("FOLDER is being `doing` by process 7 on HOST: `remedy`") or, with `wait`,
    a line on stderr and patience.
    """
    handle = _open(Path(folder) / name)
    try:
        if not _take(handle, wait=False):
            said = f"{folder} is being {doing} by {_holder(handle)}"
            if not wait:
                raise ValueError(f"{said}: {remedy}")
            print(f"{said}: waiting for it", file=sys.stderr, flush=True)
            _take(handle, wait=True)
        _sign(handle)
        yield
    finally:
        _release(handle)


@contextlib.contextmanager
def shared(folder: Path, doing: str, remedy: str = REMEDY, wait: bool = False) -> Iterator[None]:
    """`held` for all ranks of a job, from before the first of them begins until after the last has ended. All ranks call it."""
    with held(folder, doing, remedy, wait) if ranks.first() else contextlib.nullcontext():
        ranks.barrier()
        yield
        ranks.barrier()


@contextlib.contextmanager
def briefly(folder: Path) -> Iterator[None]:
    """Hold another lock of a folder for the instant in which one result is written: other processes wait their turn."""
    handle = _open(Path(folder) / BRIEF)
    try:
        _take(handle, wait=True)
        yield
    finally:
        _release(handle)


def _open(path: Path) -> int:
    """The file of a lock, never through a link: a folder that came from elsewhere could lead to any file."""
    arrays.refuse_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644
        )  # NFS locks what is open for writing alone
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(f"{path} is a link, and a lock is a file of its own: remove it") from None
    known = os.fstat(handle)
    if not stat.S_ISREG(known.st_mode) or known.st_nlink > 1:
        os.close(handle)
        raise ValueError(f"{path} is no file of its own, as a lock must be: remove it")
    return handle


def _take(handle: int, wait: bool) -> bool:
    """Lock the open file; False where another process has it and `wait` is not asked for."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system that cannot lock
    return True


def _sign(handle: int) -> None:
    """Write who holds the lock, for those who find it taken; a full disk keeps nobody from working."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)


def _holder(handle: int) -> str:
    """Who signed the lock."""
    try:
        content = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(content['pid'])} on {content['host']}"
    except (ValueError, TypeError, LookupError, RecursionError):  # not signed yet, or not by us
        return "another process"


def _release(handle: int) -> None:
    """Let go, also of the copies of the handle that forked workers have."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
