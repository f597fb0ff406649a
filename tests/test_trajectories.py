"""Trajectories: grids of times, round trips, interrupted stores, and missing times told with the list."""

import json
import os

import numpy as np
import pytest

from diffusion_model import arrays, trajectories

PAPER = (2, 5, 7, 10, 17, 25, 37, 50)
TIMES = [0.0, 0.1, 1 / 3]
LABELS = np.array([[0, 3], [1, 2], [0, 1], [1, 0]])
ATTRIBUTES = {"colour": 2, "shape": 4}
Z = {time: np.random.default_rng(index).normal(size=(4, 5)).astype(np.float32) for index, time in enumerate(TIMES)}


def writer(folder, times=TIMES, **provenance):
    """A writer with labels of four images and codes of five numbers."""
    return trajectories.Writer(folder, times, LABELS, ATTRIBUTES, 5, **{"run": "a", "step": 7, **provenance})


@pytest.fixture
def store(tmp_path):
    """A finished store."""
    written = writer(tmp_path / "store")
    for time in written.pending:
        written.write(time, Z[time])
    return tmp_path / "store"


def test_the_papers_grids_share_their_times():
    assert sum(len(trajectories.grid(granularity)) for granularity in PAPER) == 161
    assert len(trajectories.union(PAPER)) == 109
    assert trajectories.grid(10) == [index / 10 for index in range(11)]
    assert trajectories.grid(1) == trajectories.union([1]) == [0.5]
    assert trajectories.union([3, 1]) == [0.0, 1 / 3, 0.5, 2 / 3, 1.0]
    with pytest.raises(ValueError, match="expected an integer of at least 1"):
        trajectories.grid(0)


def test_levels_of_times():
    assert trajectories.level_of(0) == 0.01
    assert trajectories.level_of(1) == pytest.approx(50)
    assert trajectories.level_of(0.5) == pytest.approx((0.01 * 50) ** 0.5)


def test_round_trip(store):
    held = trajectories.Trajectories(store)
    assert (held.times, held.count, held.dimension, held.attributes) == (TIMES, 4, 5, ATTRIBUTES)
    for time in TIMES:
        assert np.array_equal(held.at(time), Z[time])
    assert np.array_equal(held.select(), np.stack([Z[time] for time in TIMES], 1))
    assert np.array_equal(held.select([0.1]), Z[0.1][:, None])
    assert held.label("shape").tolist() == [3, 2, 1, 0]
    assert (held.meta["run"], held.meta["step"]) == ("a", 7)


def test_rows_written_side_by_side_are_the_whole(tmp_path, monkeypatch):
    first = writer(tmp_path / "store")
    first.begin()
    second = writer(tmp_path / "store")  # another rank
    first.put(0, {time: Z[time][:3] for time in TIMES})
    monkeypatch.setenv("RANK", "1")
    second.put(3, {time: Z[time][3:] for time in TIMES})
    monkeypatch.delenv("RANK")
    assert writer(tmp_path / "store").pending == TIMES
    first.record([first.finish(0.0) | first.finish(1 / 3), second.finish(0.1)])
    assert first.pending == writer(tmp_path / "store").pending == []
    assert np.array_equal(trajectories.Trajectories(tmp_path / "store").select(), np.stack([Z[t] for t in TIMES], 1))
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {"meta.json", "labels.npy", *(f"z_{time:.8f}.npy" for time in TIMES)}


def test_what_was_written_before_a_kill_is_known_by_its_bytes(tmp_path):
    killed = writer(tmp_path)
    assert not any(there.any() for there in killed.begin().values())
    killed.put(0, {time: Z[time][:1] for time in TIMES})
    killed.put(2, {time: Z[time][2:] for time in TIMES})
    assert killed.finish(0.1) and killed.pending == TIMES  # killed before it was recorded
    part = tmp_path / ".z_0.33333333.npy.part"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1  # as if the machine had lost the last block
    part.write_bytes(content)
    with (tmp_path / ".rows.0").open("a") as journal:
        journal.write('[1, {"z_0.000')  # half a line
    there = writer(tmp_path).begin()
    assert {time: rows.tolist() for time, rows in there.items()} == {
        0.0: [True, False, True, True], 0.1: [True, False, True, True], 1 / 3: [True, False, False, False],
    }  # fmt: skip


def test_a_file_written_by_rows_is_numpys_own(tmp_path):
    writer(tmp_path).write(0.1, Z[0.1])
    np.save(tmp_path / "expected.npy", Z[0.1])
    assert (tmp_path / "z_0.10000000.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_half_precision_is_rounded_single_precision(tmp_path):
    written = writer(tmp_path, dtype="float16")
    for time in TIMES:
        written.write(time, Z[time])
    held = trajectories.Trajectories(tmp_path)
    assert held.dtype == "float16" and held.at(0.1).dtype == np.float16
    rounded = np.stack([Z[time].astype(np.float16) for time in TIMES], 1).astype(np.float32)
    assert np.array_equal(held.select(), rounded) and held.select().dtype == np.float32
    with pytest.raises(ValueError, match=r"reach 1e\+05, beyond float16: take float32"):
        writer(tmp_path, [0.7], dtype="float16").write(0.7, np.full((4, 5), 1e5, np.float32))
    with pytest.raises(ValueError, match="dtype: 'float16' there, 'float32' now"):
        writer(tmp_path)


def test_rows_alone_are_selected(store):
    held = trajectories.Trajectories(store)
    whole = held.select()
    for rows in (np.array([2, 0]), np.array([True, False, True, False])):
        assert np.array_equal(held.select(TIMES, rows), whole[rows])
        assert np.array_equal(held.select([0.1], rows), whole[rows][:, 1:2])


def test_a_large_file_is_verified_when_it_is_read_whole(store, monkeypatch):
    path = store / "z_0.10000000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(arrays, "VERIFY_UP_TO", 0)
    monkeypatch.setattr(trajectories, "ROWS", 1)  # several blocks
    held = trajectories.Trajectories(store)
    assert held.at(0.1).shape == (4, 5)  # mapped, unread
    with pytest.raises(ValueError, match="altered after it was written"):
        held.select()


def test_a_store_of_an_earlier_version_goes_on(store):
    meta = arrays.read_json(store / "meta.json")
    del meta["dtype"]
    arrays.write_json(store / "meta.json", meta)
    assert trajectories.Trajectories(store).dtype == "float32"
    assert writer(store, [0.7], weights="abc", precision="float32").pending == [0.7]
    with pytest.raises(ValueError, match="precision: 'float32' there, 'bfloat16' now"):
        writer(store, precision="bfloat16")


def test_a_full_disk_is_said_before_the_work(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device \(0 MB\).*z_0\.00000000"):
        writer(tmp_path).begin()
    assert not list(tmp_path.glob(".z_*"))


def test_a_time_is_found_within_a_tolerance(store):
    held = trajectories.Trajectories(store)
    assert held.nearest(0.3333333) == 1 / 3
    assert np.array_equal(held.at(0.3333333), Z[1 / 3])


def test_a_missing_time_is_told_with_the_list(store):
    held = trajectories.Trajectories(store)
    with pytest.raises(ValueError, match=r"time 0\.3 is not stored in .*; stored: 0, 0\.1, 0\.333333"):
        held.select([0.1, 0.3])
    with pytest.raises(ValueError, match=r"no attribute 'size'.*there are: colour, shape"):
        held.label("size")


def test_no_store_says_what_to_run(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no trajectories in .*: run `python diffusion_model/representations\.py"
    ):
        trajectories.Trajectories(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"does not exist .*: run `python diffusion_model/representations\.py"):
        trajectories.Trajectories(tmp_path / "empty")


def test_an_interrupted_store_is_not_readable_and_goes_on(tmp_path):
    first = writer(tmp_path)
    first.write(0.1, Z[0.1])
    with pytest.raises(ValueError, match=r"still being written or was interrupted \(2 times are missing\)"):
        trajectories.Trajectories(tmp_path)
    second = writer(tmp_path)
    assert second.pending == [0.0, 1 / 3]
    for time in second.pending:
        second.write(time, Z[time])
    assert trajectories.Trajectories(tmp_path).times == TIMES


def test_more_times_are_added_to_a_store(store):
    more = writer(store, [0.1, 0.7])
    assert more.pending == [0.7]
    more.write(0.7, Z[0.1])
    assert trajectories.Trajectories(store).times == [*TIMES, 0.7]


def test_another_origin_is_refused(store):
    told = r"another origin \(step: 7 there, 8 now\): .* give the options that made them; .* anew, remove it first"
    with pytest.raises(ValueError, match=told):
        writer(store, step=8)


def test_wrong_shapes_and_values(tmp_path):
    written = writer(tmp_path)
    with pytest.raises(ValueError, match=r"shape \(4, 6\), expected \(4, 5\)"):
        written.write(0.1, np.zeros((4, 6)))
    with pytest.raises(ValueError, match=r"time 0\.1 are not finite: the run has diverged"):
        written.write(0.1, np.full((4, 5), np.nan))
    assert written.pending == TIMES


@pytest.mark.parametrize("name", ["z_0.10000000.npy", "labels.npy"])
def test_truncated_and_altered_files(store, name):
    path = store / name
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"truncated|altered"):
            trajectories.Trajectories(store).select()


def test_altered_meta(store):
    (store / "meta.json").write_text((store / "meta.json").read_text()[:-5])
    with pytest.raises(ValueError, match=r"meta\.json is truncated or altered"):
        trajectories.Trajectories(store)


def test_values_that_are_not_finite_are_refused_when_read(store):
    changed = Z[0.1].copy()
    changed[0, 0] = np.inf
    arrays.write_array(store / "z_0.10000000.npy", changed)
    meta = arrays.read_json(store / "meta.json")
    meta["stored"]["0.10000000"]["crc32"] = arrays.file_checksum(store / "z_0.10000000.npy")
    arrays.write_json(store / "meta.json", meta)
    with pytest.raises(ValueError, match="values that are not finite"):
        trajectories.Trajectories(store).select()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"requested": None}, "requested is null, expected a list"),
        ({"stored": [0.1]}, r"stored is \[0\.1\], expected an object"),
        ({"stored": {"0.00000000": 3}}, r"stored\.0\.00000000 is 3, expected an object"),
        ({"attributes": ["colour"]}, "attributes is .*, expected an object"),
        ({"labels": None}, "labels is null, expected an object"),
        ({"count": "4"}, 'count is "4", expected an integer'),
        ({"dimension": 2.5}, r"dimension is 2\.5, expected an integer"),
        ({"dtype": "int8"}, "dtype is 'int8', expected float32 or float16"),
    ],
)
def test_another_type_in_meta_json_is_a_sentence(store, change, sentence):
    arrays.write_json(store / "meta.json", arrays.read_json(store / "meta.json") | change)
    for reader in (trajectories.Trajectories, writer):
        with pytest.raises(ValueError, match=rf"meta\.json: {sentence}: remove .* and run"):
            reader(store)


def test_labels_of_other_images_are_refused(tmp_path):
    for number, labels in enumerate((LABELS[:-1], LABELS[:, 0], LABELS + 0.5, LABELS[:, :0])):
        folder = tmp_path / str(number)
        written = writer(folder)
        for time in TIMES:
            written.write(time, Z[time])
        arrays.write_array(folder / "labels.npy", labels)
        meta = json.loads((folder / "meta.json").read_text())
        arrays.write_json(folder / "meta.json", meta | {"labels": arrays.describe(folder / "labels.npy")})
        with pytest.raises(ValueError, match=r"labels\.npy holds .*, expected integers of shape \(\d+, \d+\)"):
            trajectories.Trajectories(folder)


def test_the_share_of_the_variance_over_the_times(tmp_path):
    """0 of trajectories that stand still, 1 of independent times, and what is drawn in between."""
    random = np.random.default_rng(0)
    still, moving = random.normal(size=(400, 1, 8)), random.normal(size=(400, 5, 8))
    for weight in (0.0, 0.3, 1.0):
        z = (
            np.sqrt(1 - weight) * still + np.sqrt(weight) * moving + np.arange(5)[:, None]
        )  # times may differ in their mean
        writer = trajectories.Writer(
            tmp_path / f"{weight}", np.linspace(0, 1, 5), np.zeros((400, 1), np.int64), {"a": 2}, 8
        )
        for index, time in enumerate(np.linspace(0, 1, 5)):
            writer.write(float(time), z[:, index].astype(np.float32))
        assert trajectories.Trajectories(tmp_path / f"{weight}").share_over_times() == pytest.approx(weight, abs=0.03)
    half = np.random.default_rng(1).standard_normal((100, 1, 8))  # of 200 trajectories, sorted: the first stand still
    writer = trajectories.Writer(tmp_path / "half", [0.0, 1.0], np.zeros((200, 1), np.int64), {"a": 2}, 8)
    for time in (0.0, 1.0):
        moving = (-1) ** time * half
        writer.write(time, np.concatenate([half, moving])[:, 0].astype(np.float32))
    assert trajectories.Trajectories(tmp_path / "half").share_over_times(most=100) > 0.3
    one = trajectories.Writer(tmp_path / "one", [0.0], np.zeros((4, 1), np.int64), {"a": 2}, 8)
    one.write(0.0, np.ones((4, 8), np.float32))
    assert trajectories.Trajectories(tmp_path / "one").share_over_times() is None
