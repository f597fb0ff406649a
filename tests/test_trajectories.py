"""Trajectories: grids of times, round trips, interrupted stores, and missing times told with the list."""

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


def test_a_time_that_was_put_is_pending_until_it_is_recorded(tmp_path):
    first, second = writer(tmp_path / "store"), writer(tmp_path / "store")  # two ranks
    entries = [first.put(0.0, Z[0.0]), second.put(0.1, Z[0.1])]
    assert writer(tmp_path / "store").pending == TIMES
    first.record(entries)
    assert first.pending == writer(tmp_path / "store").pending == [1 / 3]
    first.write(1 / 3, Z[1 / 3])
    assert np.array_equal(trajectories.Trajectories(tmp_path / "store").select(), np.stack([Z[t] for t in TIMES], 1))


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
    with pytest.raises(ValueError, match="another origin \\(step: 7 there, 8 now\\): remove it first"):
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
    ],
)
def test_another_type_in_meta_json_is_a_sentence(store, change, sentence):
    arrays.write_json(store / "meta.json", arrays.read_json(store / "meta.json") | change)
    for reader in (trajectories.Trajectories, writer):
        with pytest.raises(ValueError, match=rf"meta\.json: {sentence}: remove .* and run"):
            reader(store)
