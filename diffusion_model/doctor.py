"""Examine this machine: what the project finds here, what it lacks, and the remedy for each lack.

    python diffusion_model/doctor.py
    python diffusion_model/doctor.py --data /big/disk/data --workdir /big/disk

A line is `ok`, `lack` (something cannot be done until the remedy is applied; the rest works) or `broken` (training cannot
run). Status 0 where training can run, 1 where something is broken. Nothing is downloaded or changed.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from diffusion_model import arrays, board, data, experiment, training

GIB = 2**30
LITTLE_MEMORY, LITTLE_DISK = 2 * GIB, 5 * GIB  # a small run; checkpoints and trajectories of one
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Finding:
    """One line: `level` ok, lack or broken, what was examined, what was found, and the remedy of a lack."""

    level: str
    what: str
    found: str
    remedy: str = ""


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="doctor.py")
    parser.add_data()
    parser.add_argument("--workdir", type=Path, default=Path(), help="where runs/ is or will be")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings."""
    args = make_parser().parse_args(argv)
    args.data = Path(args.data or os.environ.get("DATA") or "data")
    findings = [finding for check in CHECKS for finding in examine(check, args)]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.level:7} {finding.what:{width}}  {finding.found}")
        if finding.remedy:
            print(f"{'':7} {'':{width}}  -> {finding.remedy}")
    counts = {level: sum(finding.level == level for finding in findings) for level in ("lack", "broken")}
    able = "training can run" if not counts["broken"] else "training cannot run"
    print(f"{able}; {counts['broken']} broken, {counts['lack']} lacking")
    return int(counts["broken"] > 0)


def examine(check: Callable[[Any], Iterator[Finding]], args: Any) -> list[Finding]:
    """The findings of one check; one that fails itself says so, and the others go on."""
    try:
        return list(check(args))
    except Exception as error:
        return [Finding("lack", check.__name__, f"could not be examined ({type(error).__name__}: {error})")]


def python(args: Any) -> Iterator[Finding]:
    """The interpreter and the packages that pyproject.toml names."""
    content = tomllib.loads((experiment.ROOT / "pyproject.toml").read_text())["project"]
    wanted = re.search(r"\d+\.\d+", content["requires-python"])[0]
    new = sys.version_info >= tuple(map(int, wanted.split(".")))
    yield Finding("ok" if new else "broken", "python", f"{platform.python_version()} ({sys.executable})",
                  "" if new else f"install Python {wanted} or newer")  # fmt: skip
    found = {}
    for entry in content["dependencies"]:
        name = re.match(r"[\w-]+", entry)[0]
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("broken", name, "not installed", f"pip install '{entry}'")
    yield Finding("ok", "packages", ", ".join(f"{name} {version}" for name, version in found.items()))


def gpus(args: Any) -> Iterator[Finding]:
    """What torch was built for, the driver, and whether each device computes."""
    built = torch.version.cuda or torch.version.hip
    yield Finding("ok", "torch", f"{torch.__version__}, {f'built for CUDA {built}' if built else 'built for the CPU'}")
    driver = driver_version()
    if not torch.cuda.is_available():
        if driver:
            yield Finding("broken", "GPU", f"driver {driver}, but torch cannot use it", "install a torch build for this "
                          "driver (pytorch.org), or pass --device cpu to each command")  # fmt: skip
        else:
            yield Finding("ok", "GPU", "none here: the CPU is used")
        return
    for index in range(torch.cuda.device_count()):
        yield device(index, driver)


def device(index: int, driver: str) -> Finding:
    """One GPU, after a small computation on it."""
    properties = torch.cuda.get_device_properties(index)
    found = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, compute capability {properties.major}.{properties.minor}"
    try:
        works = (
            float((torch.ones(8, 8, device=f"cuda:{index}") @ torch.ones(8, 8, device=f"cuda:{index}")).sum()) == 512
        )
        free = torch.cuda.mem_get_info(index)[0]
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        return Finding("broken", f"cuda:{index}", f"{found}: {reason}", "install a torch build for this device "
                       "(pytorch.org), or pass --device cpu to each command")  # fmt: skip
    found += f", {free / GIB:.0f} GiB free, bf16 {'yes' if bf16 else 'no'}, driver {driver or 'unknown'}"
    return Finding(
        "ok" if works else "broken", f"cuda:{index}", found, "" if works else "it computes wrongly: replace it"
    )


def driver_version() -> str:
    """Version of the NVIDIA driver; empty where there is none."""
    if not DRIVER.is_file():
        return ""
    found = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text())
    return found[0] if found else "unknown"


def compilers(args: Any) -> Iterator[Finding]:
    """What torch.compile needs on the CPU and on each GPU."""
    for name in ("cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))):
        device = torch.device(name)
        lack = training.compilation_lacks(device)
        what, _, remedy = (lack or "").partition(": ")
        if lack:
            yield Finding("lack", f"compile-{name}", f"without {what}", remedy or "take training.compile none")
        else:
            yield Finding("ok", f"compile-{name}", str(training.find_compiler(device.type)))


def cores(args: Any) -> Iterator[Finding]:
    """Cores of this process, and what its control group leaves of them."""
    allowed, text = len(os.sched_getaffinity(0)), f"{torch.get_num_threads()} threads in torch"
    quota = cpu_quota()
    limited = f", control group allows {quota:.1f}" if quota is not None and quota < allowed else ""
    yield Finding("ok", "cores", f"{allowed}{limited}, {text}")


def cpu_quota() -> float | None:
    """Cores that control groups (version 2, then 1) allow; None where they do not limit."""
    text = read_text("/sys/fs/cgroup/cpu.max").split()
    if not text:
        folder = "/sys/fs/cgroup/cpu/cpu.cfs"
        text = [read_text(f"{folder}_quota_us").strip() or "-1", read_text(f"{folder}_period_us").strip() or "100000"]
    if text[0] in ("max", "-1"):
        return None
    return int(text[0]) / int(text[1])


def memory(args: Any) -> Iterator[Finding]:
    """Free memory, as the kernel and the control group see it."""
    lines = dict(line.split(":") for line in read_text("/proc/meminfo").splitlines())
    total, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    limit = memory_limit()
    if limit is not None and limit < total:
        found, free = f"{found}, control group allows {limit / GIB:.1f}", min(free, limit)
    little = free < LITTLE_MEMORY
    yield Finding("lack" if little else "ok", "memory", found, "small runs alone will fit: free some" if little else "")


def memory_limit() -> int | None:
    """Bytes that control groups allow; None where they do not limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = read_text(path).strip()
        if text.isdigit():
            return int(text)
    return None


def read_text(path: str | Path) -> str:
    """Content of a small system file; empty where it cannot be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def disks(args: Any) -> Iterator[Finding]:
    """Room for data sets and runs, and whether they can be written."""
    for what, folder in (("data", args.data), ("workdir", args.workdir)):
        if what == "data" and not folder.absolute().parent.is_dir():  # a mistyped folder is not made: data.root
            found = f"{folder}: there is no folder {folder.parent} to hold it"
            yield Finding("broken", what, found, "make it, or mend --data or $DATA")
            continue
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free
        found = f"{folder.absolute()}: {free / GIB:.1f} GiB free"
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Finding("broken", what, f"{found}, but {there} cannot be written to", f"give another --{what}")
        elif free < LITTLE_DISK:
            yield Finding(
                "lack", what, found, f"less than {LITTLE_DISK / GIB:.0f} GiB: free some, or give another --{what}"
            )
        else:
            yield Finding("ok", what, found if folder.exists() else f"{found} (not made yet)")


def data_sets(args: Any) -> Iterator[Finding]:
    """Each built-in set, and those of the user's own: prepared with counts, or where its files are."""
    own = sorted(entry.name for entry in args.data.glob("*") if (entry / "train").is_dir())
    for name in [*data.DATASETS, *(name for name in own if name not in data.DATASETS)]:
        yield data_set(name, args.data)


def data_set(name: str, root: Path) -> Finding:
    """One data set."""
    counts, remedy = [], f"run `{data.COMMAND} {name}`"
    for split in data.SPLITS:
        try:
            meta = arrays.read_meta(root / name / split, data.KIND, remedy)
            counts.append(f"{meta['count']:,} {split}")
        except FileNotFoundError:
            break
        except (ValueError, TypeError) as error:
            return Finding("lack", name, str(error), f"remove {root / name} and {remedy}")
    if len(counts) == len(data.SPLITS):
        return Finding("ok", name, f"prepared: {', '.join(counts)}")
    kind = data.DATASETS.get(name)
    if kind is None:
        return Finding("lack", name, "half prepared", f"{remedy} --source FILE again")
    if kind.find is None:
        return Finding("ok", name, "made by the project when first used")
    found = kind.find(root)
    if found is not None:
        return Finding("ok", name, f"prepared when first used, from {found}")
    place = kind.place.format(root=root)
    if kind.download is not None:
        return Finding("lack", name, "not prepared", f"{remedy} ({kind.megabytes} MB to download), or {place}")
    return Finding("lack", name, "not prepared", f"{place} and {remedy}")


def weights(args: Any) -> Iterator[Finding]:
    """Inception, where features.py looks for it."""
    from pytorch_fid.inception import FID_WEIGHTS_URL

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(FID_WEIGHTS_URL).name
    if path.is_file():
        yield Finding("ok", "Inception", f"{path}")
    else:
        remedy = f"for FID: it is downloaded once (91 MB); without a network place {FID_WEIGHTS_URL} at {path}, or pass --weights"
        yield Finding("lack", "Inception", "weights not found", remedy)


def extras(args: Any) -> Iterator[Finding]:
    """TensorBoard, torchrun and Slurm: none is required."""
    if board.is_installed():
        yield Finding("ok", "TensorBoard", importlib.metadata.version("tensorboard"))
    else:
        yield Finding("lack", "TensorBoard", "not installed", "for curves in a browser: pip install tensorboard")
    available = torch.distributed.is_available()
    backends = [name for name in ("gloo", "nccl") if available and getattr(torch.distributed, f"is_{name}_available")()]
    yield (
        Finding("ok", "torchrun", f"backends {', '.join(backends)}")
        if backends
        else Finding("lack", "torchrun", "torch has no backend", "for several devices: install another torch build")
    )
    yield slurm()


def slurm() -> Finding:
    """Whether a Slurm is here, and answers."""
    if shutil.which("sinfo") is None:
        return Finding("ok", "Slurm", "none here: scripts/run_all.sh works without it")
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%P %D %T"], capture_output=True, text=True, timeout=2)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("lack", "Slurm", "sinfo is here, but no controller answers", "set SLURM_CONF, or leave it")
    if done.returncode:
        return Finding("lack", "Slurm", "sinfo is here, but no controller answers", "set SLURM_CONF, or leave it")
    parts = [line.split() for line in done.stdout.splitlines()]
    return Finding("ok", "Slurm", "; ".join(f"partition {name} {count} nodes {state}" for name, count, state in parts))


CHECKS = [python, gpus, compilers, cores, memory, disks, data_sets, weights, extras]


if __name__ == "__main__":
    experiment.launch(main)
