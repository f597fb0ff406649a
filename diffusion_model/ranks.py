"""The processes of `torchrun`: one a device, on one machine or several, sharing one command's work.

    with ranks.session(device) as device:      # alone, nothing happens and torch.distributed is never initialised
        mine = [encode(time) for time in ranks.deal(times)]
        ranks.barrier()

Tensors on the CPU travel by gloo and those on a GPU by NCCL. Every rank runs the same program and must reach the same
collectives (functions of this module marked "all ranks call it") in the same order. What one rank writes another may
read after a `barrier`: the folders of a command must lie on a file system that all its machines share. No clock is
shared. A rank that fails says why; torchrun reports it, also one that was killed, and ends the others.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from diffusion_model import experiment

Item = TypeVar("Item")

ARRIVAL = timedelta(minutes=5)  # for every rank to start
# For one rank to wait for another inside a collective, long enough for the slowest single share of work. The death of a
# rank breaks its connections and is known at once, to the others and to torchrun; this is for one that lives and does not come.
TIMEOUT = timedelta(hours=2)

_sessions = 0


def first() -> bool:
    """Whether this is the one rank that writes what all ranks share and speaks for them."""
    return experiment.rank() == 0


def say(text: str) -> None:
    """Print one line on stdout, from the first rank alone."""
    if first():
        print(text, flush=True)


@contextlib.contextmanager
def session(device: torch.device) -> Iterator[torch.device]:
    """The body of a command shared by ranks; gives this rank's device. At its end every rank waits for the others.

    An exception leaves the process group as it is: `experiment.launch`, which says it, ends the process without finalising
    the group, whose threads could abort it. The others fail at their next collective, or are ended by torchrun.
    """
    if experiment.world() == 1:
        yield device
        return
    yield start(device)
    barrier()
    dist.destroy_process_group()


def start(device: torch.device) -> torch.device:
    """Join the processes of torchrun, one device each; alone, nothing happens."""
    rank, world = experiment.rank(), experiment.world()
    if world == 1:
        return device
    device = _own_device(device)
    store = _meet()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    own = {"device_id": device} if device.type == "cuda" else {}
    with _together():
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT, **own)
    return device


def _own_device(device: torch.device) -> torch.device:
    """The CPU, or the GPU of this rank's number on its machine."""
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise experiment.UsageError(
            f"--device {device} names one device for {experiment.world()} ranks: pass --device cuda, and each takes its own"
        )
    local, count = experiment.local_rank(), torch.cuda.device_count()
    if local >= count:
        raise ValueError(
            f"local rank {local} on {socket.gethostname()} has no GPU of its own, there are {count}: "
            f"pass --nproc_per_node={count} to torchrun, or --device cpu"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _meet() -> dist.Store:
    """The store of torchrun, with names of this attempt and session alone."""
    global _sessions
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking:
        raise ValueError(
            f"WORLD_SIZE is {experiment.world()} but {lacking[0]} is not set: start the command with torchrun, or unset WORLD_SIZE"
        )
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=ARRIVAL))
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ValueError(
            f"rank {experiment.rank()} cannot reach rank 0 at {where} ({error}): check the network"
        ) from None
    _sessions += 1
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} session {_sessions}", store)


def share(count: int, block: int = 1) -> range:
    """This rank's consecutive rows of `count`, in whole blocks, so that batches of `block` are those of one rank.

    Every row belongs to one rank; with fewer blocks than ranks some have none.
    """
    rank, world, blocks = experiment.rank(), experiment.world(), -(-count // block)
    return range(min(blocks * rank // world * block, count), min(blocks * (rank + 1) // world * block, count))


def deal(items: Sequence[Item]) -> list[Item]:
    """This rank's items, dealt in turn, so that costs that grow along the list are even."""
    return list(items[experiment.rank() :: experiment.world()])


def rounds(items: Sequence[Item]) -> list[list[Item]]:
    """The items in groups of one a rank, for work that is recorded after each; `deal(group)` is this rank's, or none."""
    world = experiment.world()
    return [list(items[start : start + world]) for start in range(0, len(items), world)]


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Around a collective: that another rank is gone is one sentence (ConnectionError), with what gloo or NCCL saw of it."""
    try:
        yield
    except RuntimeError as error:
        seen = next(iter(f"{error}".splitlines()), "no reason given")
        raise ConnectionError(
            f"the ranks cannot go on together ({seen}): see the message of the one that ended first, and torchrun's"
        ) from error


def barrier() -> None:
    """Wait until every rank is here. All ranks call it."""
    if experiment.world() > 1:
        _add(torch.zeros(1))


def _add(tensor: torch.Tensor) -> None:
    with _together():
        dist.all_reduce(tensor)


def first_makes(make: Callable[[], Item]) -> Item:
    """`make()` in the first rank and then in the others, which find on disk what the first has written. All ranks call it."""
    if not first():
        barrier()
    made = make()
    if first():
        barrier()
    return made


def any_rank(flag: bool) -> bool:
    """Whether the flag is up in any rank, the same answer everywhere. All ranks call it."""
    if experiment.world() == 1:
        return flag
    raised = torch.tensor([int(flag)])
    _add(raised)
    return bool(raised.item())


def sum_(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors of one dtype and device by their sums over the ranks, equal in every rank. All ranks call it."""
    if experiment.world() == 1 or not tensors:
        return
    if len(tensors) == 1 and tensors[0].is_contiguous():
        _add(tensors[0])
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    _add(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def mean_(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors of one dtype and device by their means over the ranks (gradients). All ranks call it."""
    if experiment.world() == 1:
        return
    sum_(tensors)
    torch._foreach_div_(list(tensors), experiment.world())


def collect(value: Any) -> list[Any]:
    """The JSON values of all ranks, in the order of ranks, in every rank. All ranks call it."""
    if experiment.world() == 1:
        return [value]
    text = json.dumps(value).encode()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(experiment.world())]
    with _together():
        dist.all_gather(sizes, torch.tensor([len(text)]))
        width = int(max(sizes))
        texts = [torch.zeros(width, dtype=torch.uint8) for _ in sizes]
        dist.all_gather(texts, torch.frombuffer(bytearray(text.ljust(width)), dtype=torch.uint8))
    return [json.loads(bytes(text.numpy()[: int(size)])) for text, size in zip(texts, sizes, strict=True)]


def from_first(value: Any) -> Any:
    """The JSON value of the first rank, in every rank: what all must agree on, such as the work to do. All ranks call it."""
    return collect(value if first() else None)[0]


def gather_rows(rows: np.ndarray) -> np.ndarray | None:
    """All ranks' rows [N, ...] in the order of ranks, in the first rank; None in the others. All ranks call it."""
    if experiment.world() == 1:
        return rows
    counts = collect(len(rows))
    if not first():
        if len(rows):
            with _together():
                dist.send(torch.from_numpy(np.ascontiguousarray(rows).reshape(-1).view(np.uint8)), 0)
        return None
    whole = np.empty((sum(counts), *rows.shape[1:]), rows.dtype)
    whole[: len(rows)] = rows
    ends = np.cumsum(counts)
    for rank, (count, end) in enumerate(zip(counts, ends, strict=True)):
        if rank and count:
            with _together():
                dist.recv(torch.from_numpy(whole[end - count : end].reshape(-1).view(np.uint8)), rank)
    return whole
