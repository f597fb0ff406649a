"""Folders of arrays: round trips bit for bit, and half-written, truncated or altered files refused with a sentence."""

import io
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from diffusion_model import arrays, row_files

HELD = {
    "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "labels": np.array([[-1], [2]], np.int64),
    "values": np.array([np.nan, np.inf, 1e-300]),
    "empty": np.zeros((0, 4), np.float32),
    "scalar": np.float64(3.5),
}


@pytest.fixture
def folder(tmp_path):
    """A finished folder of kind "things"."""
    return arrays.write_folder(tmp_path / "folder", "things", HELD, note="kept", seed=3)


def test_round_trip(folder):
    held, meta = arrays.read_folder(folder, "things")
    assert held.keys() == HELD.keys()
    for name, array in HELD.items():
        assert held[name].dtype == array.dtype
        np.testing.assert_array_equal(held[name], array)
    assert (meta["note"], meta["seed"], meta["format"], meta["kind"]) == ("kept", 3, arrays.FORMAT, "things")


def test_arrays_are_mapped_and_cannot_be_written(folder):
    held, _ = arrays.read_folder(folder, "things")
    assert isinstance(held["images"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        held["images"][0] = 1


def test_an_interrupted_write_is_not_readable(tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(arrays, "seal_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        arrays.write_folder(tmp_path / "folder", "things", HELD)
    assert not arrays.is_finished(tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match=r"folder is not finished .*: make it"):
        arrays.read_folder(tmp_path / "folder", "things", "make it")


def test_a_rewrite_that_stops_leaves_nothing_readable(folder, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(arrays, "write_array", stop)
    with pytest.raises(KeyboardInterrupt):
        arrays.write_folder(folder, "things", HELD)
    assert not arrays.is_finished(folder)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file.json"
    arrays.write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        arrays.write_atomically(path, fail)
    assert arrays.read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder of things was expected there\): run this"):
        arrays.read_folder(tmp_path / "no", "things", "run this")


def test_truncated(folder):
    path = folder / "images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"images\.npy is truncated"):
        arrays.read_folder(folder, "things")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"images\.npy is truncated"):
        arrays.read_folder(folder, "things")


def test_altered(folder):
    path = folder / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.npy was altered after it was written"):
        arrays.read_folder(folder, "things")


def test_large_files_are_checked_by_size_alone(folder, monkeypatch):
    monkeypatch.setattr(arrays, "VERIFY_UP_TO", 0)
    monkeypatch.setattr(arrays, "file_checksum", None)
    arrays.read_folder(folder, "things")


def test_another_shape_than_the_meta_says(folder):
    meta = arrays.read_json(folder / "meta.json")
    meta["arrays"]["images"]["shape"] = [24]
    arrays.write_json(folder / "meta.json", meta)
    with pytest.raises(ValueError, match=r"images\.npy holds .*meta\.json says"):
        arrays.read_folder(folder, "things")


def test_missing_array(folder):
    (folder / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.npy is missing"):
        arrays.read_folder(folder, "things")


def test_an_archive_in_place_of_an_array(folder):
    with (folder / "images.npy").open("wb") as file:
        np.savez(file, a=np.zeros(2))
    with pytest.raises(ValueError, match="archive of arrays, expected one array"):
        arrays.read_array(folder / "images.npy")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "others"}, "describes others, expected things"),
        ({"format": arrays.FORMAT + 1}, "this version reads up to 1: update the project"),
        ({"format": "1"}, "update the project"),
    ],
)
def test_other_kinds_and_newer_formats(folder, change, sentence):
    arrays.write_json(folder / "meta.json", arrays.read_json(folder / "meta.json") | change)
    with pytest.raises(ValueError, match=sentence):
        arrays.read_folder(folder, "things")


@pytest.mark.parametrize("text", ["", '{"kind": "thi', "[1, 2]", '{"a": 1}', "\xff\xfe"])
def test_altered_meta(folder, text):
    (folder / "meta.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"truncated or altered|it was altered") as refused:
        arrays.read_folder(folder, "things")
    assert "meta.json" in str(refused.value)


def test_pickles_are_neither_written_nor_read(tmp_path):
    with pytest.raises(ValueError, match="Object arrays"):
        arrays.write_array(tmp_path / "a.npy", np.array([None]))
    np.save(tmp_path / "b.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(ValueError, match="truncated or not"):
        arrays.read_array(tmp_path / "b.npy")


def test_json_refuses_what_json_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        arrays.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []
    arrays.write_json(tmp_path / "a.json", {"a": [1, 0.1, None, "x"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 0.1, None, "x"]}


def test_tensors_round_trip(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.zeros(0), "c": torch.ones(2, dtype=torch.float16)}
    arrays.write_tensors(tmp_path / "t.safetensors", tensors, step="7")
    held = arrays.read_tensors(tmp_path / "t.safetensors")
    assert held.keys() == tensors.keys()
    assert all(torch.equal(held[name], tensor) and held[name].dtype == tensor.dtype for name, tensor in tensors.items())


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_tensors(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    arrays.write_tensors(path, {"a": torch.ones(8)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"t\.safetensors is truncated or not a safetensors file"):
        arrays.read_tensors(path)


def test_missing_tensors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t\.safetensors is missing"):
        arrays.read_tensors(tmp_path / "t.safetensors")


def test_a_field_that_is_missing_names_the_file(tmp_path):
    path = tmp_path / "a.json"
    arrays.write_json(path, {"inner": {"here": 1}})
    held = arrays.read_json(path)
    assert held == {"inner": {"here": 1}} and held.get("no") is None
    with pytest.raises(ValueError, match=r"a\.json has no field 'there': it was altered, or another version wrote it"):
        held["inner"]["there"]


def test_the_shape_of_content(folder):
    shape = {"a": int, "b?": [float], "c": ({"d": str}, None), ...: bool}
    for fits in ({"a": 1, "c": None}, {"a": 1, "b": [1, 0.5], "c": {"d": ""}, "e": True}):
        arrays.expect(fits, "x.json", shape)
    wrong = {
        "x.json holds 3, expected an object: remove it": 3,
        "x.json lacks the field a: ": {"c": None},
        "x.json: a is true, expected an integer: ": {"a": True, "c": None},
        "x.json: b.1 is null, expected a number: ": {"a": 1, "b": [1, None], "c": None},
        "x.json: c is 1, expected an object or null: ": {"a": 1, "c": 1},
        "x.json lacks the field c.d: ": {"a": 1, "c": {}},
        "x.json: e is 0, expected true or false: ": {"a": 1, "c": None, "e": 0},
        f'x.json: a is "{"y" * 36}..., expected an integer: ': {"a": "y" * 99},
    }
    for sentence, content in wrong.items():
        with pytest.raises(ValueError, match=re.escape(sentence)):
            arrays.expect(content, "x.json", shape)
    meta = arrays.read_json(folder / "meta.json")
    arrays.write_json(folder / "meta.json", meta | {"arrays": [3]})
    with pytest.raises(ValueError, match=r"meta\.json: arrays is \[3\], expected an object"):
        arrays.read_folder(folder, meta["kind"])


# What strangers leave


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}", "\ufeff{}"],
    ids=["deep", "nan", "infinity", "overflow", "digits", "mark"],
)
def test_json_that_nobody_meant_is_one_sentence(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json is truncated or altered \(.{1,120}\): remove it") as refused:
        arrays.read_json(path)
    assert "\n" not in str(refused.value)


def test_control_characters_are_read_as_one_can_see_them(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"\\u001b[2Ja": ["\\u202eb", {"c\\r": "d\\ud800"}], "line": "1\\n2\\t\\\\u001b"}')
    held = arrays.read_json(path)
    assert held == {"\\x1b[2Ja": ["\\u202eb", {"c\\r": "d\\ud800"}], "line": "1\n2\t\\u001b"}
    with pytest.raises(ValueError, match=r"a\.json has no field 'x'"):
        held["x"]


def test_lines_of_another_shape_are_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "x"}\n[' + "[" * 99_999 + '\n3\n{"a": NaN}\n{"a": 2}\n{"a": 3')
    assert list(arrays.read_lines(path, {"a": int})) == [{"a": 1}, {"a": 2}]


def forged(header: str, body: bytes = b"\0" * 64) -> bytes:
    """A .npy file with this text for a header."""
    text = header.encode("latin-1").ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


HEADER = "{'descr': %s, 'fortran_order': False, 'shape': %s, }"
FORGED = {
    "empty": b"",
    "no text": forged("\x00"),
    "brackets": forged("((((" * 25),
    "deep": b"\x93NUMPY\x02\x00" + (9_000).to_bytes(4, "little") + b"(" * 9_000,
    "huge": forged(HEADER % ("'<f8'", "(9223372036854775807, 9223372036854775807)")),
    "negative": forged(HEADER % ("'<f8'", "(-1,)")),
    "objects": forged(HEADER % ("'|O'", "(2,)")),
    "kind": forged(HEADER % ("'<z9'", "(2,)")),
    "number": forged(HEADER % ("7", "(2,)")),
    "keys": forged("{'descr': '<f8'}"),
    "long": forged(HEADER % ("'<f8'", "(999999,)")),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_header_is_one_sentence(tmp_path, name):
    path = tmp_path / "a.npy"
    path.write_bytes(FORGED[name])
    with pytest.raises(ValueError, match=r"a\.npy is truncated or not a \.npy file .*: give another"):
        arrays.read_array(path, remedy="give another")


def archived(content: bytes, method: int = zipfile.ZIP_STORED, name: str = "mu.npy") -> bytes:
    """A zip file of one member."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        archive.writestr(name, content)
    return held.getvalue()


def altered(content: bytes, old: bytes, new: bytes) -> bytes:
    """The bytes with one place of them replaced, which must be there."""
    assert old in content
    return content.replace(old, new)


WHOLE = forged(HEADER % ("'<f8'", "(8,)"))
ARCHIVES = {
    "empty": b"",
    "no archive": b"PK\x05\x06",
    "half": archived(WHOLE)[:200],
    "checksum": altered(archived(WHOLE), b"\0" * 64, b"\1" * 64),
    "method": altered(archived(WHOLE, zipfile.ZIP_DEFLATED), b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0"),
    "stream": altered(archived(WHOLE, zipfile.ZIP_DEFLATED), b"mu.npy\x9b", b"mu.npy\xff"),
    "encrypted": altered(archived(WHOLE), b"\x14\0\0\0", b"\x14\0\1\0"),
    **{name: archived(content) for name, content in FORGED.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_broken_archive_is_one_sentence(tmp_path, name):
    path = tmp_path / "a.npz"
    path.write_bytes(ARCHIVES[name])
    with pytest.raises(ValueError, match=r"a\.npz .*: expected .*mu \[D\]") as refused:
        arrays.read_archive(path, "mu [D]")
    assert "\n" not in str(refused.value)


def test_an_archive_that_unpacks_to_more_than_memory_is_not_unpacked(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", mu=np.zeros(100_000))
    monkeypatch.setattr(arrays.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 100}.get)
    with pytest.raises(ValueError, match=r"800,\d+ bytes when unpacked, and this machine has 409,600 of memory"):
        arrays.read_archive(tmp_path / "a.npz", "mu [D]")


def test_what_a_killed_writer_left_is_gone_with_the_next(tmp_path):
    left = tmp_path / ".a.json.tmp"
    left.write_text("x" * 100_000)
    arrays.write_json(tmp_path / "a.json", [1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and arrays.read_json(tmp_path / "a.json") == [1]


def test_two_writers_of_one_file_have_a_temporary_file_each(tmp_path):
    path, seen = tmp_path / "a.txt", []

    def first(temporary):
        temporary.write_text("first")
        arrays.write_atomically(path, second)
        seen.append(path.read_text())

    def second(temporary):
        temporary.write_text("second")

    arrays.write_atomically(path, first)
    assert seen == ["second"] and path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_link_in_the_place_of_a_temporary_file_is_not_written_through(tmp_path, link):
    mine, folder = tmp_path / "mine.txt", tmp_path / "folder"
    mine.write_text("precious")
    folder.mkdir()
    link(folder / ".a.json.tmp", mine)
    arrays.write_json(folder / "a.json", [1])
    assert mine.read_text() == "precious" and arrays.read_json(folder / "a.json") == [1]


def test_a_disk_that_takes_only_a_part_is_told_by_its_own_reason(tmp_path):
    def short(temporary):
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        raise OSError("8192 requested and 4096 written")

    with pytest.raises(OSError, match="No space left on device") as refused:
        arrays.write_atomically(tmp_path / "a.npy", short)
    assert refused.value.filename == str(tmp_path / "a.npy")
    with pytest.raises(OSError, match=r"a\.npy could not be written: odd"):
        arrays.write_atomically(tmp_path / "a.npy", lambda temporary: (_ for _ in ()).throw(OSError("odd")))


def test_a_disk_too_full_for_tensors_is_told_by_its_own_reason(tmp_path, monkeypatch):
    def short(tensors, temporary, metadata):
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        raise safetensors.SafetensorError("Error while serializing")

    monkeypatch.setattr(safetensors.torch, "save_file", short)
    with pytest.raises(OSError, match="No space left on device") as refused:
        arrays.write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    assert refused.value.filename == str(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("call", "name"), [("write", "log.txt"), ("pwrite", ".a.npy.part"), ("fsync", ".a.npy.part")])
def test_a_refusal_of_a_handle_tells_the_file(tmp_path, monkeypatch, call, name):
    def full(*_):
        raise OSError(28, "No space left on device")

    file = row_files.RowFile(tmp_path / "a.npy", (4, 2), np.dtype("f4"))
    file.begin()
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left on device") as refused:
        arrays.append_text(tmp_path / "log.txt", "one\n")
        file.put(0, np.ones((4, 2)))
        file.finish()
    assert refused.value.filename == str(tmp_path / name)


LIKE = {"mu": "finite [D]", "U": "finite [D, R]", "rows": "integers [N]"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mu": None}, r"lacks mu\.npy, finite \[D\]: again"),
        ({"mu": np.ones(3)}, r"U\.npy holds float64 \[4, 2\], expected finite \[D, R\] \(D = 3\): again"),
        ({"mu": np.ones((4, 1))}, r"mu\.npy holds float64 \[4, 1\], expected finite \[D\]"),
        ({"mu": np.array(["a"] * 4)}, r"mu\.npy holds <U1 \[4\], expected finite"),
        ({"mu": np.ones(4, complex)}, r"mu\.npy holds complex128"),
        ({"U": np.full((4, 2), np.nan)}, r"U\.npy holds numbers that are not finite: again"),
        ({"rows": np.ones(5)}, r"rows\.npy holds float64 \[5\], expected integers \[N\]"),
    ],
)
def test_arrays_of_another_kind_are_refused_though_their_meta_agrees(tmp_path, change, sentence):
    held = {"mu": np.ones(4), "U": np.ones((4, 2)), "rows": np.arange(5)} | change
    arrays.write_folder(tmp_path, "things", {name: array for name, array in held.items() if array is not None})
    with pytest.raises(ValueError, match=sentence):
        arrays.read_folder(tmp_path, "things", "again", LIKE)


def test_arrays_that_go_together_are_read_also_of_rank_0(tmp_path):
    arrays.write_folder(tmp_path, "things", {"mu": np.ones(4), "U": np.ones((4, 0)), "rows": np.arange(5)})
    assert arrays.read_folder(tmp_path, "things", "again", LIKE)[0].keys() == LIKE.keys()


def test_a_number_that_is_not_finite_is_told_with_its_file(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json would hold a number that is not finite"):
        arrays.write_json(tmp_path / "a.json", {"distance": float("inf")})
