"""Images a second of one training step, beside a checkout of the original (traj_drl) on the same machine in the same run.

The configuration of the DRL paper: images of 32 x 32, probabilistic encoder WRN-28-2, NCSN++ of 16 features, VE noise,
lr 2e-4, on the images of Synthetic. Each contender is a process of its own with its own model; the rounds alternate
between them, one works at a time, and ratios are taken round by round. --curve trains each from scratch without
warm-up and compares the losses window by window, in units of their noise. --profile says what a step's time is made of.

    python benchmarks/train_step.py --original DIR                   # images a second, and how many times the original's
    python benchmarks/train_step.py --original DIR --curve 120       # the loss curves as well

DIR is the original's root. Its code runs as it is; only `op`, the CUDA extension that this configuration does not use and
that is compiled on import, is left out. A compiled contender takes minutes for its first step, which is not counted.

Both sides train the same encoder on the same loss (parity.py holds them equal). They do not train the same score network:
ours has another map of the code and other middle blocks, and the original also runs a decoder whose output its loss does not
use. The command prints parameters and floating-point operations of both, and what part of a ratio they may explain.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import parity
import torch
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from diffusion_model import arrays, data, experiment, main, training
from diffusion_model.experiment import ROOT, AtLeast

# name: training.precision, training.compile; the original is beside them
OURS = {
    "float32": ("float32", "none"),
    "float32 compiled": ("float32", "default"),
    "bfloat16": ("bfloat16", "none"),
    "bfloat16 compiled": ("bfloat16", "default"),
}
ORIGINAL = "original"
# kind of work: what the names of its operators hold, first fit; the rest is activations, additions and copies
KINDS = {
    "optimiser": ("adam", "foreach"),
    "convolutions": ("conv",),
    "compiled kernels": ("cpp_fused", "triton"),
    "normalisation": ("norm",),
    "matrix products": ("mm", "attention"),
    "random numbers": ("normal_", "random", "dropout", "uniform_"),
}


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="train_step.py")
    parser.add_argument("--original", type=Path, help="root of a checkout of traj_drl (default: without it)")
    parser.add_argument("--contenders", nargs="+", default=["float32", "bfloat16", "bfloat16 compiled"], choices=OURS)
    parser.add_argument("--batch", type=AtLeast(1), default=64, help="images a step")
    parser.add_argument("--rounds", type=AtLeast(1), default=9, help="rounds of timing")
    parser.add_argument("--steps", type=AtLeast(1), default=2, help="steps a round")
    parser.add_argument("--curve", type=AtLeast(0), default=0, help="steps of the loss curves (0: none)")
    parser.add_argument("--profile", action="store_true", help="the share of each kind of work in a step's time")
    parser.add_argument("--threads", type=AtLeast(1), default=2, help="of a CPU")
    parser.add_device()
    parser.add_data()
    parser.add_argument("--out", type=Path, help="JSON with all that was measured (default: none is written)")
    parser.add_argument("--worker", help="used by the command itself: be this contender")
    return parser


def main_(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if args.worker:
        return serve(*make_step(args))
    names = ([ORIGINAL] if args.original else []) + list(args.contenders)
    workers = {name: Worker(name, args) for name in names}
    try:
        for name, worker in workers.items():
            started = time.monotonic()
            worker.ask(2)
            print(f"{name}: ready after {time.monotonic() - started:.0f} s", flush=True)
        facts = {name: worker.ask("facts") for name, worker in workers.items()}
        curves = {name: worker.ask(args.curve)["losses"] for name, worker in workers.items()} if args.curve else {}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name, worker in workers.items():
                seconds[name].append(worker.ask(args.steps)["seconds"] / args.steps)
        shares = {name: worker.ask("profile") for name, worker in workers.items()} if args.profile else {}
    finally:
        for worker in workers.values():
            worker.close()
    report(seconds, args.batch)
    tell_work(facts, args.batch)
    if curves:
        compare(curves)
    for name, kinds in shares.items():
        print(f"{name:20} " + ", ".join(f"{kind} {share:.0%}" for kind, share in kinds.items()))
    if args.out:
        content = {
            "environment": experiment.environment(),
            "batch": args.batch,
            "seconds": seconds,
            "losses": curves,
            "facts": facts,
            "shares": shares,
        }
        arrays.write_json(args.out, content)
    return 0


def report(seconds: dict[str, list[float]], batch: int) -> None:
    """A line a contender: images a second, and the ratio to the first one, round by round."""
    first = next(iter(seconds))
    print(f"{'':20} images/s (median, least to most)   times {first} (median, least to most)")
    for name, times in seconds.items():
        rates = batch / np.array(times)
        ratios = np.array(seconds[first]) / np.array(times)
        print(
            f"{name:20} {np.median(rates):8.1f} ({rates.min():.1f} to {rates.max():.1f})"
            f"{np.median(ratios):20.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
        )


def tell_work(facts: dict[str, dict[str, Any]], batch: int) -> None:
    """A line a contender: parameters of its parts and operations of a step, an image; beside the original, its parity."""
    for name, fact in facts.items():
        sizes = ", ".join(f"{part} {size:,}" for part, size in fact["parameters"].items())
        print(f"{name:20} parameters: {sizes}; {fact['flops'] / batch / 1e9:.3f} GFLOP an image and step")
    if ORIGINAL in facts:
        print(
            "the same encoder and loss: with the same weights codes in training differ by "
            f"{facts[ORIGINAL]['apart']:.0e} of the largest; not the same score network, see the sizes"
        )


def compare(curves: dict[str, list[float]], windows: int = 6) -> None:
    """Mean loss of each window of steps, and for the others their distance from the first in standard errors."""
    first = next(iter(curves))
    cut = {name: np.array_split(np.array(losses), windows) for name, losses in curves.items()}
    print(f"loss in {windows} windows of {len(cut[first][0])} steps; in brackets (other - {first}) / standard error")
    for name, parts in cut.items():
        cells = []
        for own, theirs in zip(parts, cut[first], strict=True):
            error = np.sqrt(own.var(ddof=1) / len(own) + theirs.var(ddof=1) / len(theirs))
            apart = "" if name == first else f" [{(own.mean() - theirs.mean()) / error:+.1f}]"
            cells.append(f"{own.mean():8.1f}{apart}")
        print(f"{name:20} " + "  ".join(cells))


class Worker:
    """A process that is one contender: `ask(n)` makes n steps and gives {"seconds", "losses"}; "profile" gives shares, "facts" sizes."""

    def __init__(self, name: str, args: Any) -> None:
        options = [f"--batch={args.batch}", f"--threads={args.threads}", f"--device={args.device}"]
        options += [f"--data={data.root(args.data).resolve()}", f"--worker={name}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads)}
        folder = None
        if name == ORIGINAL:
            folder = args.original / "diffusion_model"
            if not (folder / "losses.py").is_file():
                raise experiment.UsageError(
                    f"--original {args.original} holds no diffusion_model/losses.py of traj_drl"
                )
            environment["PYTHONPATH"] = os.pathsep.join([str(folder.resolve()), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, __file__, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=folder,
        )  # fmt: skip

    def ask(self, steps: int | str) -> dict[str, Any]:
        """Make so many steps, or profile one."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise ValueError("a contender has ended: see its message above")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def serve(step: Callable[[], float], facts: dict[str, Any]) -> int:
    """Make as many steps as each line of the input asks for, and answer with their time and losses."""
    for line in sys.stdin:
        if line.strip() == "facts":
            with FlopCounterMode(display=False) as counter:
                step()
            print(json.dumps({**facts, "flops": counter.get_total_flops()}), flush=True)
            continue
        if line.strip() == "profile":
            print(json.dumps(profile(step)), flush=True)
            continue
        started = time.perf_counter()
        losses = [float(step()) for _ in range(int(line))]
        print(json.dumps({"seconds": time.perf_counter() - started, "losses": losses}), flush=True)
    return 0


def profile(step: Callable[[], float]) -> dict[str, float]:
    """Share of each kind of work in the operators' own time of one step, largest first."""
    with torch.profiler.profile() as seen:
        step()
    times: dict[str, float] = {}
    entries = seen.key_averages()
    kernels = [entry for entry in entries if entry.device_type == DeviceType.CUDA]
    for entry in kernels or entries:
        own = entry.self_device_time_total if kernels else entry.self_cpu_time_total
        kind = next((kind for kind, names in KINDS.items() if any(name in entry.key.lower() for name in names)), "rest")
        times[kind] = times.get(kind, 0.0) + own
    return {kind: times[kind] / sum(times.values()) for kind in sorted(times, key=times.get, reverse=True)}


def make_step(args: Any) -> tuple[Callable[[], float], dict[str, Any]]:
    """One training step of a contender, which gives its loss; its parameters by part and, of the original, its parity."""
    torch.set_num_threads(args.threads)
    device = experiment.choose_device(args.device)
    if args.worker == ORIGINAL:
        import original_encoder
        import original_step

        step, sizes = original_step.make(args.batch, device, args.data)
        name = "encoder, widen 1, probabilistic"
        theirs = parity.original_encoder_cases(name, original_encoder.network(*parity.ENCODERS[name]))
        return step, {"parameters": sizes, "apart": parity.difference(*(
            cases[f"{name}: training"] for cases in (parity.our_encoder_cases(name), theirs)
        ))}  # fmt: skip
    precision, compilation = OURS[args.worker]
    overrides = {
        "data.scaling": "unit", "encoder.widen": 2.0, "training.batch": args.batch, "training.precision": precision,
        "training.compile": compilation, "optimiser.warm_up": 0,
    }  # fmt: skip
    config = experiment.flatten(experiment.load_config(str(ROOT / "configs" / "drl.py") + ":synthetic")) | overrides
    split = data.open_split("synthetic", "train", args.data)
    record = main.describe_run(config, split)
    trainer = training.Trainer(Path(tempfile.mkdtemp()), record, split, device)
    parts = {"encoder": trainer.model.encoder, "score network": trainer.model.net}
    sizes = {name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()}
    return lambda: sum(trainer.advance().values()), {"parameters": sizes}


if __name__ == "__main__":
    experiment.launch(main_)
