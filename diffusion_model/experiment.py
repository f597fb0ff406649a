"""What every command shares: its command line, its errors, its randomness, its device and its progress.

A command is `main(argv) -> status` started by `launch(main)`. A user's mistake is one sentence on stderr: status 2 for
usage (options, values, config fields), 1 for a failure. `--config FILE:PRESET` names a configuration: a whole
`ConfigDict` for `main.py`, and for every other command the section of its own name, whose fields become its defaults.
"""

import argparse
import ast
import contextlib
import ctypes
import difflib
import errno
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import ml_collections
import torch
from tqdm import tqdm

from diffusion_model import arrays, reports

ROOT = Path(__file__).resolve().parent.parent
MANY = 1_000_000  # what an option counts is at most so many, unless it says otherwise
LONGEST = 100  # bytes of a name that an option gives
REPORT_EVERY = 20.0  # seconds between progress lines where there is no terminal


class UsageError(ValueError):
    """A wrong option, value or config field: one sentence, exit status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`known` for an error message: the names nearest to `name`, or all of them where they are few or none is near."""
    known = sorted({str(entry) for entry in known})
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(close)
    return "accepted: " + ", ".join(known)


@dataclass(frozen=True)
class AtLeast:
    """The `type=` of an option that is a number of the type of `least`, from there to `most`: `--batch 0: expected at least 1`.

    The parser holds the default of a preset to it too. because: said in brackets where the lower bound needs a reason.
    """

    least: int | float
    because: str = ""
    most: int | float | None = None  # as given: `MANY` of what is counted, none of a quantity

    def __call__(self, text: str) -> int | float:
        return type(self.least)(text)

    @property
    def __name__(self) -> str:  # argparse calls it so: invalid int value
        return type(self.least).__name__

    def check(self, option: str, value: Any) -> None:
        """Refuse a value, or one of a list, out of bounds (UsageError); None stands for an option that is not given."""
        for number in value if isinstance(value, list) else [value]:
            shown = f"{number:g}" if isinstance(number, float) else f"{number}"
            if number is not None and self.is_below(number):
                reason = f" ({self.because})" if self.because else ""
                raise UsageError(f"{option} {shown}: expected {self.lower}{reason}")
            most = (MANY if isinstance(self.least, int) else math.inf) if self.most is None else self.most
            if number is not None and number > most:
                raise UsageError(f"{option} {shown}: expected at most {most:,}")

    @property
    def lower(self) -> str:
        """The lower bound in words."""
        return f"at least {self.least:g}"

    def is_below(self, number: int | float) -> bool:
        """Whether a number is too small."""
        return number < self.least


class Above(AtLeast):
    """The same of a number that must not be `least` itself: a learning rate of 0 trains nothing."""

    @property
    def lower(self) -> str:
        """The lower bound in words."""
        return f"above {self.least:g}"

    def is_below(self, number: int | float) -> bool:
        """Whether a number is too small."""
        return number <= self.least


def file_name(text: str) -> str:
    """The `type=` of an option that names one file or folder inside another: no path, not empty, not too long."""
    if not text.strip(". ") or "/" in text or len(os.fsencode(text)) > LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no name: expected 1 to {LONGEST} letters without a slash")
    return text


class Parser(argparse.ArgumentParser):
    """argparse with the project's manners: defaults in `--help`, no abbreviations, nearest names in errors, `--config`.

    `document` is the module docstring of the command; its first paragraph is the description and the rest the epilogue.
    With `whole` the preset is the command's whole configuration (main.py): it is left to the command, and the
    `--config.section.field=value` arguments are collected in `overrides`.
    """

    def __init__(self, document: str, whole: bool = False, **options: Any) -> None:
        self.whole = whole
        summary, _, rest = (document or "").strip().partition("\n\n")
        super().__init__(description=summary, epilog=rest, formatter_class=_Formatter, allow_abbrev=False, **options)
        purpose = (
            "the configuration; --config.section.field=value changes one field"
            if whole
            else "defaults from this preset"
        )
        self.add_argument("--config", metavar="FILE:PRESET", help=purpose)

    def add_data(self) -> None:
        """--data, for commands that open a data set."""
        self.add_argument("--data", type=Path, help="folder of the data sets (default: $DATA, else data)")

    def add_step(self) -> None:
        """--step, for commands that open a run."""
        self.add_argument("--step", type=int, help="checkpoint (default: the newest)")

    def add_process(self) -> None:
        """--process, for commands that make a run's model: without it no file that a run names is executed."""
        self.add_argument(
            "--process", metavar="FILE.py:CLASS", help="the noise process of the run, where it is a file of your own"
        )

    def add_pdf(self) -> None:
        """--pdf, for commands that draw; `figures.save` takes it."""
        self.add_argument("--pdf", action="store_true", help="also write the figures as PDF")

    def add_device(self) -> None:
        """--device, for commands that compute with torch; `choose_device` reads it."""
        self.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")

    def error(self, message: str) -> NoReturn:
        """Raise UsageError in place of printing the whole usage."""
        raise UsageError(f"{message} (run `python {_command(self.prog)} --help`)")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parse, after the preset's section has become the defaults; unknown options name their nearest neighbours."""
        arguments = list(sys.argv[1:] if args is None else args)
        overrides = [argument for argument in arguments if self.whole and argument.startswith("--config.")]
        arguments = [argument for argument in arguments if argument not in overrides]
        unseen = [argument for argument in arguments if "\0" in argument or arrays.plain(argument) != argument]
        if unseen:
            self.error(f"{arrays.plain(unseen[0])} holds characters that cannot be seen: rename what it names")
        preset = _value_of("--config", arguments)
        if preset is not None and not self.whole:
            self._take_defaults(preset)
        known, extra = super().parse_known_args(arguments, namespace)
        if extra:
            options = [option for action in self._actions for option in action.option_strings]
            self.error(f"unknown argument {extra[0]}; {nearest(extra[0].split('=')[0], options)}")
        for action in self._actions:
            if isinstance(action.type, AtLeast):
                action.type.check(action.option_strings[0], getattr(known, action.dest))
        known.overrides = overrides
        return known

    def _get_value(self, action: argparse.Action, string: str) -> Any:
        value = super()._get_value(action, string)
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentError(action, f"{string} is not a finite number")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise argparse.ArgumentError(action, f"{string[:40]} is beyond 64 bits")
        if isinstance(value, Path) and not string.strip():
            raise argparse.ArgumentError(action, f"{string!r} is no path; the folder at hand is .")
        return value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.dest
            self.error(f"{name}: {value!r} is not known; {nearest(value, action.choices)}")

    def _take_defaults(self, preset: str) -> None:
        config = load_config(preset)
        section = Path(self.prog).stem
        if section not in config:
            raise UsageError(f"{preset} has no section {section!r}; {nearest(section, config.keys())}")
        actions = {action.dest: action for action in self._actions}
        for name, value in config[section].items():
            if name not in actions:
                raise UsageError(f"{preset}: {section}.{name} is no option of this command; {nearest(name, actions)}")
            self.set_defaults(**{name: self._preset_value(actions[name], value, f"{preset}: {section}.{name}")})
            actions[name].required = False

    def _preset_value(self, action: argparse.Action, value: Any, where: str) -> Any:
        """What an option would make of a preset's value; one that it would not take is a UsageError."""
        if value is None:
            return None
        several = action.nargs not in (None, 0, "?")
        if isinstance(value, list | tuple) != several or isinstance(value, bool) != (action.nargs == 0):
            kind = "a list" if several else "True or False" if action.nargs == 0 else "a single value"
            raise UsageError(f"{where} is {value!r}, expected {kind}")
        if action.nargs == 0:
            return value
        try:
            entries = [self._get_value(action, str(entry)) for entry in (value if several else [value])]
        except argparse.ArgumentError as error:
            raise UsageError(f"{where}: {error.message}") from None
        for entry in entries:
            self._check_value(action, entry)
        return entries if several else entries[0]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Paragraphs as written, defaults behind each option (also behind those without a help text)."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, argparse.SUPPRESS) or isinstance(action.default, bool):
            return action.help or ""
        return super()._get_help_string(action)

    def _format_action(self, action: argparse.Action) -> str:
        if not action.help and action.default not in (None, argparse.SUPPRESS) and not isinstance(action.default, bool):
            action.help = "(default: %(default)s)"
        return super()._format_action(action)


def _command(prog: str) -> str:
    found = list(ROOT.glob(f"*/{Path(prog).name}"))
    return str(found[0].relative_to(ROOT)) if found else prog


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument.startswith(option + "="):
            return argument.partition("=")[2]
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
    return None


def launch(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status: 0 done, 1 failed or a report lost, 2 wrong usage, 130 interrupted.

    No stream ends the command: a reader who leaves (`| head`), a closed or full one (see reports.py).
    """
    try:
        status = reports.guarded(lambda: _run(main, argv))
    except Exception:  # a bug
        if not _joined():
            raise
        traceback.print_exc()
        status = 1
    _leave(status)


def _run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None) -> int:
    """The status of a command, with its error said."""
    if "matplotlib" in sys.modules:  # a matplotlibrc in the folder at hand has no say: it could have LaTeX run
        sys.modules["matplotlib"].rcdefaults()
    try:
        status = main(argv) or 0
    except SystemExit as end:  # argparse's --help
        status = end.code or 0
    except UsageError as error:
        status = _report(error, 2)
    except KeyboardInterrupt:
        if rank() == 0:
            print("interrupted: run the same command to go on from here", file=sys.stderr)
        status = 130
    except (MemoryError, torch.OutOfMemoryError) as error:
        status = _report(_too_large(error), 1)
    except RecursionError:
        status = _report("a file or an option is nested too deep to be read", 1)
    except RuntimeError as error:
        if not re.search("allocate memory|size calculation overflowed", str(error)):  # what torch says on a CPU
            raise
        status = _report(_too_large(error), 1)
    except (ValueError, OSError, FloatingPointError) as error:
        of_the_system = isinstance(error, OSError) and error.strerror
        if not of_the_system and not _is_ours(error):
            traceback.print_exc()
        status = _report(_sentence(error) if of_the_system else error, 1)
    return status


def _too_large(error: BaseException) -> str:
    reason = str(error).partition("DefaultCPUAllocator: ")[2] or str(error) or "of Python"
    return f"this needs more memory than there is ({reason.splitlines()[0][:120]}): ask for less at once"


def _joined() -> bool:
    """Whether this process is one of several ranks, in a session that has not come to its end."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _leave(status: int) -> NoReturn:
    """Exit; out of a session that failed at once, for threads of its process group abort an interpreter that finalises."""
    if _joined():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


REMEDIES = {  # of what the system refuses, by its number
    errno.EACCES: "give a place that can be read and written",
    errno.EPERM: "give a place that can be read and written",
    errno.EROFS: "give a place that can be read and written",
    errno.ENOSPC: "make room there, or give another place",
    errno.EDQUOT: "make room there, or give another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
}


def _sentence(error: OSError) -> str:
    """What the system refused, as a sentence: no permission, a full disk, a file where a folder is needed."""
    named = error.filename2 or error.filename
    where = f"{os.fsdecode(named)}: " if isinstance(named, str | bytes) else ""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{where}a file lies where a folder is needed: give another folder or move the file"
    remedy = REMEDIES.get(error.errno, "")
    return f"{where}{error.strerror[0].lower()}{error.strerror[1:]}{remedy and f': {remedy}'}"


def _report(error: BaseException | str, status: int) -> int:
    if status != 2 or rank() == 0:  # every rank finds the same wrong usage
        whose = f"rank {rank()}: " if rank() else ""
        print(f"error: {whose}{arrays.plain(str(error))}", file=sys.stderr)
    return status


def _is_ours(error: BaseException) -> bool:
    """Whether the project itself raised this (a sentence for the user), rather than a library below it (a bug of ours)."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(ROOT) and ".venv" not in frames[-1].filename
    )


def load_config(spec: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The locked configuration `FILE:PRESET`, with `--config.section.field=value` overrides of the field's own type.

    FILE is looked up as `find_file` does. Unknown presets and fields are a UsageError.
    """
    name, _, preset = spec.partition(":")
    module = _config_module(name)
    presets = {entry.lower(): entry for entry in module.PRESETS}
    if preset.lower() not in presets:
        raise UsageError(f"{name} has no preset {preset!r}; {nearest(preset, module.PRESETS)}")
    config = module.get_config(presets[preset.lower()]).lock()
    for override in overrides:
        override_field(config, override)
    return config


def load_presets(name: str) -> list[str]:
    """Names of the presets of a configuration file."""
    return list(_config_module(name).PRESETS)


def find_file(name: str) -> Path | None:
    """A Python file that a command line names: seen from here, then from the project's root; None where there is none.

    configs/FILE is the project's alone, whatever lies in the folder where a command is started; ./configs/FILE is there.
    """
    bases = (ROOT,) if name.startswith("configs/") else (Path(), ROOT)
    return next((base / name for base in bases if (base / name).is_file()), None)


def _config_module(name: str) -> ModuleType:
    path = find_file(name)
    if path is None:
        known = [str(entry.relative_to(ROOT)) for entry in (ROOT / "configs").glob("*.py")]
        here = f"; the one that lies here is ./{name}" if Path(name).is_file() else ""
        raise UsageError(f"no configuration file {name}{here}; {nearest(name, known)}")
    if path.suffix != ".py":
        raise UsageError(f"{name} is no configuration file: expected a Python file such as configs/edm.py")
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # also a script that ends itself
        raise UsageError(f"{name} cannot be read as Python ({type(error).__name__}: {error})") from None
    if not hasattr(module, "PRESETS") or not hasattr(module, "get_config"):
        raise UsageError(f"{name} is no configuration file: expected PRESETS and get_config, as in configs/edm.py")
    return module


def override_field(config: ml_collections.ConfigDict, override: str) -> None:
    """Apply one `--config.section.field=value`; the value is read as JSON or, failing that, as text."""
    name, equals, text = override.removeprefix("--config.").partition("=")
    if not override.startswith("--config.") or not equals:
        raise UsageError(f"cannot read {override!r}: write --config.section.field=value")
    *sections, field = name.split(".")
    node = config
    for section in [*sections, field]:
        if not isinstance(node, ml_collections.ConfigDict) or section not in node:
            known = flatten(config)
            raise UsageError(f"the configuration has no field {name!r}; {nearest(name, known)}")
        parent, node = node, node[section]
    value = _parsed(text)
    if isinstance(node, float) and isinstance(value, str):
        with contextlib.suppress(ValueError):  # .0625 is no JSON
            value = float(value)
    if isinstance(node, ml_collections.ConfigDict):
        raise UsageError(f"{name!r} is a section; its fields are {', '.join(node)}")
    if isinstance(node, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(node, tuple) and isinstance(value, list):
        value = tuple(value)
    if node is not None and type(value) is not type(node):
        raise UsageError(f"--config.{name}={text}: expected a value of type {type(node).__name__}, such as {node!r}")
    for entry in value if isinstance(value, tuple) else [value]:
        if isinstance(entry, float) and not math.isfinite(entry):
            raise UsageError(f"--config.{name}={text}: expected a finite number")
        if isinstance(value, tuple) and node and type(entry) is not type(node[0]):
            raise UsageError(
                f"--config.{name}={text}: expected entries of type {type(node[0]).__name__}, such as {node!r}"
            )
    parent[field] = value


def _parsed(text: str) -> Any:
    """A value as JSON or Python writes it, or the text itself."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    return text


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested configuration as {'section.field': value}."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def seed_of(*key: Any) -> int:
    """A 63-bit seed that is a function of the key alone: seed_of(run seed, "start", 17)."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: Any, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by `seed_of(*key)`."""
    return torch.Generator(device=device).manual_seed(seed_of(*key))


def sample_noise(key: Any, seeds: Iterable[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise [B, *shape] in float32 on the CPU; row i depends on (key, seeds[i]) alone, whatever the batch."""
    return torch.stack([torch.randn(tuple(shape), generator=generator(key, int(seed))) for seed in seeds])


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is the GPU where torch can use one, else the CPU; a GPU that torch cannot use is a ValueError with the remedy."""
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        elif Path("/proc/driver/nvidia/version").is_file():
            driver = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
            raise ValueError(
                f"a GPU is present ({driver}) but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it: "
                "install a torch build for this driver, or pass --device cpu"
            )
        else:
            name = "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device: {name!r} is not known; accepted: auto, cpu, cuda, cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch {torch.__version__} finds no CUDA device here; pass --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from cuda:0")
    return device


def keep_memory() -> None:
    """Let this process keep what it has freed (glibc): a training step asks for the same large blocks again and again.

    By default each of them is mapped anew and filled with zeros by the system, a tenth to a fifth of a step on a CPU. The
    process then stays as large as it has ever been. Elsewhere than glibc nothing happens.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def environment() -> dict[str, Any]:
    """Versions and hardware that a result may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def progress(items: Iterable[Any], what: str, unit: str = "it", total: int | None = None) -> Iterator[Any]:
    """Iterate with progress on stderr: a tqdm bar on a terminal, else a line every `REPORT_EVERY` seconds with speed and time left.

    Of several ranks the first reports, on its own share.
    """
    if rank():
        yield from items
        return
    if total is None:
        total = len(items)
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, unit=unit, total=total, dynamic_ncols=True)
        return
    start = reported = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - reported >= REPORT_EVERY and done:
            speed = done / (now - start)
            print(
                f"{what}: {done}/{total} {unit}, {speed:.3g} {unit}/s, {(total - done) / speed:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
            reported = now
        yield item


def rank() -> int:
    """This process among those of torchrun; 0 alone."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """Number of processes of torchrun; 1 alone."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def truncate_lines(path: Path, field: str, largest: float) -> None:
    """Drop the lines of a JSON-lines file whose `field` lies beyond `largest`, and a half-written last one."""
    if not Path(path).is_file():
        return
    kept = []
    for record in arrays.read_lines(path, {field: float}):
        if record[field] <= largest:
            kept.append(json.dumps(record) + "\n")
    arrays.write_atomically(path, lambda temporary: temporary.write_text("".join(kept)))
