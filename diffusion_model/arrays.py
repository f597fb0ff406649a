"""A folder of arrays: `.npy` files and a `meta.json` that is written last, so a folder with a `meta.json` is finished.

Nothing here reads or writes pickle. Every file goes to a temporary name in its own folder, is flushed to disk and then
renamed: a reader sees the old file, the new file or none. `meta.json` carries `format`, `kind` and, for each array,
its shape, dtype and CRC-32, so that a truncated or altered file is refused with a sentence instead of being believed.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

FORMAT = 1
DTYPES = {"finite": "f", "numbers": "f", "integers": "iu", "bytes": "u"}  # kinds of arrays, as numpy's letters
AGAIN = "remove it and run the command that wrote it again"
TYPES = {
    str: "a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    dict: "an object",
    list: "a list",
    None: "null",
}
ENTRIES = {"arrays": {...: {"shape": [int], "dtype": str, "crc32": int}}}  # of meta.json, by name
BLOCK = 1 << 20  # bytes written to ask whether a disk is full
VERIFY_UP_TO = 256 * 2**20  # bytes; larger files are checked by size and header alone when opened
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary name beside `path`, flush to disk, rename to `path`.

    The temporary name is a function of `path`, so what a killed writer left is taken over by the next one of the same file.
    """
    path = Path(path)
    refuse_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path) as temporary:
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except OSError as error:
            raise _explained(error, path, temporary) from None


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """An error of the system inside tells this file: one of a handle (write, fsync, fallocate) tells none by itself."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def _explained(error: OSError, path: Path, temporary: Path) -> OSError:
    """The error with the file's own name, and with the system's reason where a library says only that it wrote too little."""
    if error.errno is None:
        try:
            with temporary.open("ab") as file:
                file.write(bytes(BLOCK))
        except OSError as reason:
            error = reason
    if error.errno is None:
        return OSError(f"{path} could not be written: {error}")
    named = error.filename if error.filename not in (None, str(temporary)) else str(path)
    return OSError(error.errno, error.strerror, named)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """An empty file beside `path` that no other process writes to: `.NAME.tmp`, or where that is in use one of its own."""
    temporary = path.with_name(f".{path.name}.tmp")
    handle = _take(temporary)
    if handle is None:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _take(temporary: Path) -> int | None:
    """A handle that locks this file, emptied; None where a living process holds it, or where it is nothing to write to."""
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours, there = os.fstat(handle), temporary.stat(follow_symlinks=False)
        if (ours.st_ino, ours.st_nlink) != (there.st_ino, 1) or not stat.S_ISREG(ours.st_mode):
            raise FileExistsError(temporary)  # renamed since it was opened, or a name of another file
        os.ftruncate(handle, 0)
    except OSError:
        os.close(handle)
        return None
    return handle


def append_text(path: Path, text: str) -> None:
    """Add lines to the end of a file, all of them or (OSError) none; a link there is refused (ValueError), not followed."""
    path = Path(path)
    refuse_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        before, left = os.fstat(handle).st_size, text.encode(errors="backslashreplace")
        try:
            with named(path):
                while left:
                    left = left[os.write(handle, left) :]
        except OSError:
            os.ftruncate(handle, before)
            raise
    finally:
        os.close(handle)


def open_own(path: Path, flags: int) -> int:
    """A handle on a file of ours: what is no file there, such as a link or a pipe, is a ValueError and stays untouched."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError:
        if not Path(path).is_symlink():
            raise
        raise ValueError(f"{path} is a link, and nothing is written through one: remove it") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path} is no file, and lies where one is to be written: remove it")
    return handle


def refuse_links(path: Path) -> None:
    """Refuse to write where a link inside a run leads out of it (ValueError): whoever sent the run may have made it.

    The run's own folder may be a link, and so may what lies above it.
    """
    links: list[Path] = []
    for folder in Path(path).absolute().parents:
        for link in links:
            if _is_run(folder) and not link.resolve().is_relative_to(folder.resolve()):
                raise ValueError(
                    f"{link} leads out of the run {folder}, and nothing is written through such a link: remove it, or move "
                    "the whole run there and make its folder the link"
                )
        if folder.is_symlink():
            links.append(folder)


def _is_run(folder: Path) -> bool:
    """Whether a folder holds the config.json of a run."""
    path = folder / "config.json"
    try:
        return path.is_file() and read_json(path)["kind"] == "run"
    except (ValueError, OSError, TypeError):
        return False


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON; NaN and infinity are refused (ValueError), for no other reader accepts them."""
    try:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path} would hold a number that is not finite ({error})") from None
    write_atomically(path, lambda temporary: temporary.write_text(text))


class Fields(dict):
    """An object of a JSON file that names the file when a field is asked for that it lacks (ValueError)."""

    def __init__(self, pairs: Any, path: Path) -> None:
        super().__init__(pairs)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path} has no field {name!r}: it was altered, or another version wrote it; {AGAIN}")


def read_json(path: Path) -> Any:
    """Content of a JSON file, control characters in its strings as `plain` shows them.

    Whatever a truncated or altered file holds is a ValueError that names it: bytes that are no text, nesting too deep to be
    meant, numbers that are not finite.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"), Path(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or altered ({_reason(error)}): {AGAIN}") from None


def parse_json(text: str, path: Path) -> Any:
    """What `read_json` makes of a text, or of one line of a file; ValueError or RecursionError where it is no JSON."""

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError(f"{number} is no finite number")
        return value

    content = json.loads(
        text, parse_constant=finite, parse_float=finite, object_pairs_hook=lambda pairs: Fields(pairs, path)
    )
    return _plain(content, path) if UNSEEN.search(text) or re.search(r"\\[bfru]", text) else content


def read_lines(path: Path, shape: Any) -> Iterator[Any]:
    """The lines of a file of JSON lines that are of this shape (see `expect`); others, such as half of a line, are left out."""
    return parse_lines(Path(path).read_text(encoding="utf-8", errors="replace"), path, shape)


def parse_lines(text: str, path: Path, shape: Any) -> Iterator[Any]:
    """What `read_lines` makes of a text that stands in a file."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            content = parse_json(line, path)
            expect(content, path, shape)
            yield content


def plain(text: str) -> str:
    r"""The text as one can see it: control characters and half surrogates as \x1b and \ud800, line breaks and tabs kept."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _plain(content: Any, path: Path) -> Any:
    if isinstance(content, str):
        return plain(content)
    if isinstance(content, list):
        return [_plain(entry, path) for entry in content]
    if isinstance(content, dict):
        return Fields([(plain(name), _plain(entry, path)) for name, entry in content.items()], path)
    return content


def _reason(error: BaseException) -> str:
    """What a library says of a broken file, in one short line."""
    words = plain(" ".join(f"{error}".split())) or type(error).__name__
    return words if len(words) <= 120 else f"{words[:117]}..."


def expect(content: Any, path: Path, shape: Any, remedy: str = AGAIN, where: str = "") -> None:
    """Refuse content of a JSON file that is not of this shape (ValueError that names file and field).

    shape: a type of `TYPES` (float is any number), [shape] for a list of such, {name: shape} for an object that has these
    fields (a name that ends in "?" may be absent), {...: shape} for what else it has, a tuple of shapes for one of them.
    """
    shapes = shape if isinstance(shape, tuple) else (shape,)
    kinds = [type(entry) if isinstance(entry, dict | list) else entry for entry in shapes]
    fits = [entry for entry, kind in zip(shapes, kinds, strict=True) if _is(content, kind)]
    if not fits:
        wanted = " or ".join(TYPES[kind] for kind in kinds)
        found = json.dumps(content)
        found = found if len(found) <= 40 else f"{found[:37]}..."
        raise ValueError(f"{path}{f': {where} is' if where else ' holds'} {found}, expected {wanted}: {remedy}")
    parts: Any = ()
    if isinstance(fits[0], list):
        parts = ((str(index), entry, fits[0][0]) for index, entry in enumerate(content))
    elif isinstance(fits[0], dict):
        parts = _fields(content, path, fits[0], remedy, where)
    for name, entry, inner in parts:
        expect(entry, path, inner, remedy, f"{where}.{name}" if where else name)


def _is(value: Any, kind: type | None) -> bool:
    """Whether a value read from JSON is of this type; true and false are no numbers."""
    if kind is None or isinstance(value, bool):
        return value is None if kind is None else kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _fields(content: dict, path: Path, shape: dict, remedy: str, where: str) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, shape) of every field that a shape names; ValueError at one that is absent and must not be."""
    named = {name.removesuffix("?"): name for name in shape if name is not ...}
    for name, written in named.items():
        if name in content:
            yield name, content[name], shape[written]
        elif name == written:
            raise ValueError(f"{path} lacks the field {f'{where}.' if where else ''}{name}: {remedy}")
    if ... in shape:
        yield from ((name, value, shape[...]) for name, value in content.items() if name not in named)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one `.npy` file; object arrays are refused by numpy (ValueError)."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    write_atomically(path, write)


def read_array(
    path: Path, checksum: int | None = None, remedy: str = "remove its folder and make it again"
) -> np.ndarray:
    """Memory-map one `.npy` file, read-only; with `checksum`, its CRC-32 must agree (files up to `VERIFY_UP_TO` bytes)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the command that writes {path.parent} again")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of the header's text numpy raises whatever Python's own parser does
        raise ValueError(f"{path} is truncated or not a .npy file ({_reason(error)}): {remedy}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays, expected one array in a .npy file")
    if checksum is not None and path.stat().st_size <= VERIFY_UP_TO and file_checksum(path) != checksum:
        raise ValueError(
            f"{path} was altered after it was written (its checksum differs): remove its folder and make it again"
        )
    return array


def read_archive(path: Path, wanted: str) -> dict[str, np.ndarray]:
    """Every array of a .npz file by name; one that is truncated, holds objects or does not fit in memory is a ValueError.

    wanted: what the file should hold, for the error.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a .npz with {wanted}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
            raise ValueError(f"{size:,} bytes when unpacked, and this machine has {memory:,} of memory")
        with np.load(path, allow_pickle=False) as held:
            content = {name: held[name] for name in held.files}
        if others := [name for name, array in content.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{others[0]} in it is no array")
        return content
    except MemoryError:
        raise ValueError(f"{path} says that it holds more than fits in memory: expected a .npz with {wanted}") from None
    except Exception as error:  # zip files and headers can be broken in as many ways as there are libraries below
        raise ValueError(
            f"{path} is truncated, holds objects, or is no .npz file ({_reason(error)}): expected {wanted}"
        ) from None


def file_checksum(path: Path) -> int:
    """CRC-32 of a file's bytes, read in blocks of 4 MiB."""
    value = 0
    with Path(path).open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def describe(path: Path) -> dict:
    """What `meta.json` says of one `.npy` file: shape, dtype and CRC-32."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": file_checksum(path)}


def write_folder(folder: Path, kind: str, arrays: dict[str, np.ndarray], **meta: Any) -> Path:
    """Write `arrays` as `NAME.npy` and then `meta.json`; an old `meta.json` is removed first, so half a rewrite is not readable."""
    folder = Path(folder)
    refuse_links(folder / "meta.json")
    (folder / "meta.json").unlink(missing_ok=True)
    for name, array in arrays.items():
        write_array(folder / f"{name}.npy", np.asarray(array))
    seal_folder(folder, kind, list(arrays), **meta)
    return folder


def seal_folder(folder: Path, kind: str, names: list[str], **meta: Any) -> None:
    """Write `meta.json` over arrays that already lie in `folder` (for writers that stream)."""
    entries = {name: describe(folder / f"{name}.npy") for name in names}
    write_json(folder / "meta.json", {"format": FORMAT, "kind": kind, **meta, "arrays": entries})


def is_finished(folder: Path) -> bool:
    """Whether `folder` was written to its end."""
    return (Path(folder) / "meta.json").is_file()


def read_meta(folder: Path, kind: str, remedy: str) -> dict:
    """`meta.json` of a finished folder of this kind; `remedy` is the command the error tells the user to run."""
    folder = Path(folder)
    if not is_finished(folder):
        state = "is not finished" if folder.is_dir() and any(folder.iterdir()) else "does not exist"
        raise FileNotFoundError(f"{folder} {state} (a folder of {kind} was expected there): {remedy}")
    meta = read_json(folder / "meta.json")
    check_meta(meta, folder / "meta.json", kind)
    return meta


def check_meta(meta: Any, path: Path, kind: str) -> None:
    """Refuse content that is not of this kind, or that a newer version of the project wrote."""
    if not isinstance(meta, dict) or "kind" not in meta or "format" not in meta:
        raise ValueError(f"{path} has no fields 'kind' and 'format': it was altered, or this project did not write it")
    if meta["kind"] != kind:
        raise ValueError(f"{path} describes {meta['kind']}, expected {kind}")
    if not isinstance(meta["format"], int) or meta["format"] > FORMAT:
        raise ValueError(f"{path} has format {meta['format']}, this version reads up to {FORMAT}: update the project")


def read_folder(
    folder: Path, kind: str, remedy: str = "run the command that writes it", like: dict[str, str] | None = None
) -> tuple[dict[str, np.ndarray], dict]:
    """Memory-mapped arrays by name, and the meta, of a finished folder of this kind.

    like: what each array must be, as {"mu": "finite [D]", "U": "finite [D, R]", "rows": "integers [N]"}: a kind of `DTYPES`
    and a shape whose letters stand for one size each.
    Errors: FileNotFoundError where nothing is finished, ValueError where a file is missing, truncated, altered,
    of another kind or of a newer format.
    """
    folder = Path(folder)
    meta = read_meta(folder, kind, remedy)
    expect(meta, folder / "meta.json", ENTRIES)
    arrays = {}
    for name, entry in meta["arrays"].items():
        if Path(name).name != name:
            raise ValueError(
                f"{folder / 'meta.json'} names an array {name!r} of another folder: it was altered; {AGAIN}"
            )
        array = read_array(folder / f"{name}.npy", entry["crc32"])
        found = (list(array.shape), str(array.dtype))
        if found != (entry["shape"], entry["dtype"]):
            raise ValueError(
                f"{folder / name}.npy holds {found}, meta.json says {(entry['shape'], entry['dtype'])}: make it again"
            )
        arrays[name] = array
    _check_like(folder, arrays, like or {}, remedy)
    return arrays, meta


def _check_like(folder: Path, arrays: dict[str, np.ndarray], like: dict[str, str], remedy: str) -> None:
    """Refuse arrays that are absent, of another kind or of shapes that do not go together (see `read_folder`)."""
    sizes: dict[str, int] = {}
    for name, wanted in like.items():
        if name not in arrays:
            raise ValueError(f"{folder} lacks {name}.npy, {wanted}: {remedy}")
        array, (kind, _, letters) = arrays[name], wanted.partition(" ")
        dimensions = letters.strip("[]").split(", ") if letters != "[]" else []
        alike = array.ndim == len(dimensions) and all(
            sizes.setdefault(letter, size) == size for letter, size in zip(dimensions, array.shape, strict=True)
        )
        if array.dtype.kind not in DTYPES[kind] or not alike:
            known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items() if letter in dimensions)
            raise ValueError(
                f"{folder / name}.npy holds {array.dtype} {list(array.shape)}, expected {wanted} ({known}): {remedy}"
            )
        if kind == "finite" and not np.isfinite(array).all():
            raise ValueError(f"{folder / name}.npy holds numbers that are not finite: {remedy}")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], **meta: str) -> None:
    """Write one safetensors file; `meta` is its header of strings. A full disk is an OSError, as for every other file."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(held, temporary, metadata=meta or None)
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from None

    write_atomically(path, write)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of one safetensors file, on the CPU; a truncated or altered header is a ValueError that names the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # of a forged header torch raises as many kinds as safetensors
        raise ValueError(
            f"{path} is truncated or not a safetensors file ({_reason(error)}): remove its folder and make it again"
        ) from None
