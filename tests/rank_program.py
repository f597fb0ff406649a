"""What tests run under torchrun: commands in turn (`run FILE`), or a job in which one rank ends before the others."""

import atexit
import importlib
import itertools
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from diffusion_model import arrays, experiment, ranks


def exchange(device: torch.device) -> None:
    """Every way in which ranks exchange things, against what one process knows they must give."""
    rank, world = experiment.rank(), experiment.world()
    assert ranks.collect({"text": "é" * rank}) == [{"text": "é" * other} for other in range(world)]
    assert ranks.from_first(rank + 0.1) == 0.1
    assert ranks.any_rank(rank == world - 1) and not ranks.any_rank(False)
    shared = [torch.full((2, 3), float(rank)), torch.ones(4)]
    tensors = [tensor.to(device) for tensor in shared]
    ranks.mean_(tensors)
    assert torch.equal(tensors[0].cpu(), torch.full((2, 3), (world - 1) / 2)) and torch.equal(
        tensors[1].cpu(), torch.ones(4)
    )
    for dtype in (np.uint8, np.float32, np.int64):
        whole = np.arange(42).reshape(7, 3, 2).astype(dtype)
        mine = ranks.share(7, 3)
        rows = ranks.gather_rows(whole[mine.start : mine.stop])
        assert np.array_equal(rows, whole) if rank == 0 else rows is None
    order = []
    ranks.first_makes(lambda: order.append(time.time()))
    starts = [values[0] for values in ranks.collect(order)]
    assert starts[0] == min(starts)


def end(how: str) -> None:
    """A job of endless steps in which rank 1 is killed or fails at step 7; says so if the interpreter finalises."""
    atexit.register(print, "finalised", flush=True)
    with ranks.session(torch.device("cpu")):
        sys.stdout.write(f"pid {os.getpid()}\n")  # one write, whole beside the other rank's
        sys.stdout.flush()
        for step in itertools.count():
            ranks.barrier()
            if step == 7 and experiment.rank() == 1:
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise FloatingPointError("the loss is not finite")


def program(argv: list[str]) -> int:
    """`run FILE`: the commands listed in a JSON file; `exchange DEVICE`; `killed` or `failed`: a job that ends badly."""
    if argv[0] == "exchange":
        with ranks.session(torch.device(argv[1])) as device:
            exchange(device)
        return 0
    if argv[0] != "run":
        end(argv[0])
    with ranks.session(torch.device("cpu")) as device:
        exchange(device)
    for name, *arguments in arrays.read_json(Path(argv[1])):
        assert importlib.import_module(name).main(arguments) == 0
    return 0


if __name__ == "__main__":
    experiment.launch(program, sys.argv[1:])
