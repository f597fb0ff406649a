"""Image-times a second of encoding, beside a checkout of the original (traj_drl) on the same machine in the same run.

The encoder of the paper, WRN-28-2 with probabilistic code on images of 32 x 32 x 3. An image-time is the code of one image
at one time. The original runs its own model in its own loop, at the batch it ships (1000) and at some others; ours makes
whole stores, from the images on disk to the finished files. Each contender is a process of its own; the rounds alternate
between them, one works at a time, and ratios are taken round by round, to the original as shipped and at its best batch.

    python benchmarks/encode_images.py --original DIR
    python benchmarks/encode_images.py --original DIR --profile --contenders float32 bfloat16 "bfloat16 compiled"

DIR is the original's root; only its `op`, a CUDA extension that the encoder does not use, is left out. Both sides have the
same weights (parity.py), and the last column tells how far our codes are from the original's, or without it from those of
our network before folding. The share of the device is what the convolutions and products
of the network would take at the rate of a large matrix product in the same precision, over what it all took.
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

from diffusion_model import arrays, data, encoding, experiment, readouts, representations, score_model, trajectories
from diffusion_model.experiment import ROOT, AtLeast

# name: precision, compiled
OURS = {
    "float32": ("float32", False),
    "float32 compiled": ("float32", True),
    "bfloat16": ("bfloat16", False),
    "bfloat16 compiled": ("bfloat16", True),
}
SHIPPED = 1000  # the original's batch
SHAPE = (3, 32, 32)
COMPARED = 64  # images whose codes are compared
SIDE = 2048  # of the matrices whose product is the device's rate
KINDS = {"convolutions": ("conv",), "compiled kernels": ("cpp_fused", "triton"), "copies": ("copy", "clone")}


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="encode_images.py")
    parser.add_argument("--original", type=Path, help="root of a checkout of traj_drl (default: without it)")
    parser.add_argument("--batches", type=AtLeast(1), nargs="*", default=[25, 50, 100, 200], help="of the original too")
    parser.add_argument("--contenders", nargs="+", default=["float32", "bfloat16"], choices=OURS)
    parser.add_argument("--images", type=AtLeast(1), default=SHIPPED, help="a round")
    parser.add_argument("--times", type=AtLeast(1), default=2, help="a round; the more, the more is shared")
    parser.add_argument("--rounds", type=AtLeast(1), default=5, help="rounds of timing")
    parser.add_argument("--profile", action="store_true", help="the share of each kind of work in a round")
    parser.add_argument("--threads", type=AtLeast(1), default=2, help="of a CPU")
    parser.add_device()
    parser.add_argument("--out", type=Path, help="JSON with all that was measured (default: none is written)")
    parser.add_argument("--worker", help="used by the command itself: be this contender")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if args.worker:
        return serve(args)
    batches = sorted({SHIPPED, *args.batches}, reverse=True) if args.original else []
    names = [*(f"original, batch {batch}" for batch in batches), *args.contenders]
    workers = {name: Worker(name, args) for name in names}
    try:
        for worker in workers.values():
            worker.ask("ready")  # one that still begins would take the processor from what the others measure
        facts = {name: worker.ask("facts") for name, worker in workers.items()}
        codes = {name: np.array(worker.ask("codes")) for name, worker in workers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name, worker in workers.items():
                seconds[name].append(worker.ask("round"))
        shares = {name: worker.ask("profile") for name, worker in workers.items()} if args.profile else {}
    finally:
        for worker in workers.values():
            worker.close()
    for name in args.contenders:
        theirs = codes[names[0]] if batches else facts[name]["unfolded"]
        facts[name]["error"] = parity.difference(codes[name], np.array(theirs))
    report(seconds, facts, args.images * args.times)
    for name, kinds in shares.items():
        print(f"{name:22} " + ", ".join(f"{kind} {share:.0%}" for kind, share in kinds.items()))
    if args.out:
        settings = {name: getattr(args, name) for name in ("images", "times", "threads", "device")}
        content = {"environment": experiment.environment(), **settings, "seconds": seconds, "facts": facts, "shares": shares}  # fmt: skip
        arrays.write_json(args.out, content)
    return 0


def report(seconds: dict[str, list[float]], facts: dict[str, dict[str, float]], count: int) -> None:
    """A line a contender: image-times a second, ratios to the original, share of the device, distance of the codes."""
    held = {name: np.array(times) for name, times in seconds.items()}
    original = {name: times for name, times in held.items() if name.startswith("original")}
    shipped = original.get(f"original, batch {SHIPPED}")
    best = min(original.values(), key=np.median) if original else None
    print(
        f"{'':22} {'image-times/s (least to most)':37}{'times shipped':23}{'times best':23}{'of the device':15}codes off by"
    )
    for name, times in held.items():
        rates = count / times
        cells = [name.ljust(22), f"{np.median(rates):9.1f} ({rates.min():.1f} to {rates.max():.1f})".ljust(36)]
        cells += [compare(other, times).ljust(22) for other in (shipped, best) if other is not None]
        if name in OURS:
            share = np.median(rates) * facts[name]["work"] / facts[name]["rate"]
            cells += [f"{share:.0%}".ljust(14), f"{facts[name]['error']:.1e}"]
        print(" ".join(cells).rstrip())


def compare(other: np.ndarray, times: np.ndarray) -> str:
    """How many times as fast, round by round: the median, the least and the most."""
    ratios = other / times
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


class Worker:
    """A process that is one contender: `ask` one of "ready", "facts", "codes", "round" (its seconds), "profile"."""

    def __init__(self, name: str, args: Any) -> None:
        options = [f"--{option}={getattr(args, option)}" for option in ("images", "times", "threads", "device")]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads)}
        if name.startswith("original"):
            folder = args.original / "diffusion_model"
            if not (folder / "models" / "wrn.py").is_file():
                raise experiment.UsageError(
                    f"--original {args.original} holds no diffusion_model/models/wrn.py of traj_drl"
                )
            environment["PYTHONPATH"] = os.pathsep.join([str(folder.resolve()), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, __file__, *options, f"--worker={name}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment,
        )  # fmt: skip

    def ask(self, question: str) -> Any:
        """The answer, once the contender has it."""
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise ValueError("a contender has ended: see its message above")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def serve(args: Any) -> int:
    """Be a contender: answer each line of the input."""
    torch.set_num_threads(args.threads)
    device = experiment.choose_device(args.device)
    with representations.exact_products():
        work, facts, codes = make_work(args, device)
        work()
        for line in sys.stdin:
            question = line.strip()
            started = time.perf_counter()
            answers = {"ready": dict, "facts": facts, "codes": codes, "round": work, "profile": lambda: profile(work)}
            answer: Any = answers[question]()
            answer = time.perf_counter() - started if question == "round" else answer
            print(f"answer {json.dumps(answer)}", flush=True)
    return 0


def make_work(args: Any, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """One round of a contender, what is known of it, and its codes [64, D] of the first images at the middle time."""
    images = np.random.default_rng(0).integers(0, 256, (args.images, *SHAPE), np.uint8)
    times = [index / max(1, args.times - 1) for index in range(args.times)]
    if args.worker.startswith("original"):
        import original_encoder

        encode = original_encoder.make(int(args.worker.rpartition(" ")[2]), device)
        return lambda: encode(images, times), dict, lambda: encode(images[:COMPARED], [0.5])[0.5].tolist()
    if device.type == "cpu":
        experiment.keep_memory()  # as the command does
    precision, compiled = OURS[args.worker]
    model = make_model().to(device)
    readout = readouts.Codes("encoder", model, representations.PRECISIONS[precision], compiled)
    labels = np.zeros((len(images), 1), np.int64)
    split = data.Split("noise", "test", images, labels, {"label": 1}, "", {})

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = trajectories.Writer(Path(folder), times, labels, {"label": 1}, model.encoder.dimension)
            encoding.encode(readout, split, {"encoder": writer}, 512)

    @torch.inference_mode()
    def codes(folded: bool = True) -> list[list[float]]:
        held = readout.read(split, slice(0, COMPARED))
        if folded:
            return readout(held, {0.5: ["encoder"]})["encoder"][0.5].tolist()
        return model.encode(model.scaling.to_model(held[0].to(device)), torch.tensor(0.5)).mean.tolist()

    facts = {"work": work_of(model), "rate": rate_of(device, representations.PRECISIONS[precision])}
    return work, lambda: {**facts, "unfolded": codes(folded=False)}, codes


def make_model() -> score_model.ScoreModel:
    """A model with the paper's encoder and the weights that the original's has here."""
    config = experiment.load_config(str(ROOT / "configs" / "drl.py") + ":synthetic").to_dict()
    config["encoder"]["widen"] = 2.0
    model = score_model.ScoreModel(config, SHAPE, data.Scaling((1 / 127.5,) * 3, (-1.0,) * 3), 1.0)
    parity.fill(parity.encoder_partners(model.encoder))
    return model.requires_grad_(False).eval()


def work_of(model: score_model.ScoreModel) -> float:
    """Floating-point operations of one image-time, without sharing between times."""
    x0 = torch.zeros(1, *SHAPE, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode(x0, torch.tensor(0.5, device=x0.device))
    return float(counter.get_total_flops())


def rate_of(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the best of some."""
    left, right = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for it
        seconds.append(time.perf_counter() - started)
    return 2 * SIDE**3 / min(seconds)


def profile(work: Callable[[], Any]) -> dict[str, float]:
    """Share of each kind of work in the operators' own time of one round, largest first."""
    with torch.profiler.profile() as seen:
        work()
    entries, times = seen.key_averages(), dict.fromkeys([*KINDS, "rest"], 0.0)
    kernels = [entry for entry in entries if entry.device_type == DeviceType.CUDA]
    for entry in kernels or entries:
        own = entry.self_device_time_total if kernels else entry.self_cpu_time_total
        kind = next((kind for kind, names in KINDS.items() if any(name in entry.key.lower() for name in names)), "rest")
        times[kind] += own
    return {kind: times[kind] / sum(times.values()) for kind in sorted(times, key=times.get, reverse=True)}


if __name__ == "__main__":
    experiment.launch(main)
