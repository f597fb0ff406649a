"""The soak's parts: what counts as the same files, when a command is killed, and what its state was."""

import json
import sys
import time

import pytest

from benchmarks import soak
from diffusion_model import arrays, experiment

ENCODING = soak.PHASES[2]


def fill(folder, **texts):
    """Files in a folder, by name with __ for a slash."""
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def metrics(**fields):
    """One line of metrics.jsonl."""
    return json.dumps({"step": 1, "score": 0.5, "images_per_second": 10, **fields}) + "\n"


def script(folder, body):
    """A Python command."""
    path = folder / "command.py"
    (folder / "side").mkdir()
    path.write_text(body)
    return [sys.executable, str(path)]


def test_equal_folders_have_no_difference(tmp_path):
    one = fill(tmp_path / "a", run__weights="1", run__log="x", run__metrics=metrics())
    other = fill(tmp_path / "b", run__weights="1", run__log="x", run__metrics=metrics())
    assert soak.difference(one, other) is None
    assert soak.files(one) == ["run/log", "run/metrics", "run/weights"]


def test_the_first_difference_is_named(tmp_path):
    one = fill(tmp_path / "a", b="1", c="2", d="3")
    other = fill(tmp_path / "b", b="1", c="2", d="3")
    (other / "c").write_text("4")
    assert soak.difference(one, other) == f"{other / 'c'} differs"
    (other / "b").unlink()
    assert soak.difference(one, other) == f"{other / 'b'} is missing"
    (other / "b").write_text("1")
    (other / "a").write_text("5")
    assert soak.difference(one, other) == f"{other / 'a'} is too much"


def test_times_and_leftovers_are_not_compared(tmp_path):
    one, other = fill(tmp_path / "a", z="1"), fill(tmp_path / "b", z="1")
    (one / "metrics.jsonl").write_text(metrics(images_per_second=3, memory_mb=1))
    (other / "metrics.jsonl").write_text(metrics(images_per_second=4, seconds_left=2))
    fill(other, **{"env.json": "here", "log.txt": "a", "state.json": "b", ".z.abc.tmp": "half", ".7.tmp__z": "half"})
    assert soak.difference(one, other) is None
    (other / "metrics.jsonl").write_text(metrics(score=0.25))
    assert soak.difference(one, other) == f"{other / 'metrics.jsonl'} differs"


def test_a_command_is_killed_with_its_children_once_it_has_begun(tmp_path):
    side, late = tmp_path / "side", tmp_path / "late"
    child = f"import time, pathlib; time.sleep(1.5); pathlib.Path({str(late)!r}).touch()"
    body = (
        "import pathlib, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"pathlib.Path({str(side)!r}, 'begun').touch()\n"
        "time.sleep(60)\n"
    )
    assert soak.run(script(tmp_path, body), side, 0.1, tmp_path / "log") is None
    assert (side / "begun").is_file()
    time.sleep(2)
    assert not late.exists()


def test_a_command_that_ends_before_its_kill_has_worked(tmp_path):
    side = tmp_path / "side"
    body = f"import pathlib, time\npathlib.Path({str(side)!r}, 'begun').touch()\ntime.sleep(0.3)\n"
    assert 0 < soak.run(script(tmp_path, body), side, 60, tmp_path / "log") < 60


def test_a_command_that_fails_is_no_kill(tmp_path):
    with pytest.raises(ValueError, match=r"command.py` ended with status 3: read the end of .*log"):
        soak.run(
            script(tmp_path, "print('why', flush=True)\nraise SystemExit(3)"), tmp_path / "side", 60, tmp_path / "log"
        )
    assert (tmp_path / "log").read_text() == "why\n"


def test_states(tmp_path):
    assert soak.state(tmp_path, ENCODING, set()) == soak.STATES[0]
    fill(tmp_path, run__trajectories__encoder__train__z_0="1")
    (tmp_path / "run/trajectories/encoder/train/z_0").rename(tmp_path / "run/trajectories/encoder/train/z_0.npy")
    assert soak.state(tmp_path, ENCODING, set()) == soak.STATES[2]
    half = fill(tmp_path, **{"run__.z_1.npy.abc.tmp": "half"}) / "run/.z_1.npy.abc.tmp"
    assert soak.state(tmp_path, ENCODING, set()) == soak.STATES[1]
    assert soak.state(tmp_path, ENCODING, {half}) == soak.STATES[2]  # of an earlier kill


def test_shares():
    assert soak.shares(200, 3) == [67, 67, 66]
    assert soak.shares(2, 3) == [1, 1, 0]


def options(workdir, *more):
    """Parsed options."""
    return soak.make_parser().parse_args([str(workdir), *more])


def test_instants_are_a_function_of_the_seed_and_lie_inside_the_work(tmp_path):
    one, other, third = (
        soak.Soak(options(tmp_path / name, "--seed", seed)) for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    for entry in (one, other, third):
        entry.record["phases"]["encoding"]["seconds"] = 10.0
    delays = [one.delay(ENCODING, number) for number in range(200)]
    assert delays == [other.delay(ENCODING, number) for number in range(200)]
    assert delays != [third.delay(ENCODING, number) for number in range(200)]
    assert min(delays) > 0 and 5 < max(delays) < 6


def test_a_soak_goes_on_with_its_own_folder_alone(tmp_path):
    first = soak.Soak(options(tmp_path / "soak"))
    first.record["phases"]["training"]["killed"].append(soak.STATES[0])
    first.save()
    assert soak.Soak(options(tmp_path / "soak")).record == first.record
    with pytest.raises(
        ValueError, match=r"holds a soak with .*'kills': 200.*, not .*'kills': 5.*: give another WORKDIR"
    ):
        soak.Soak(options(tmp_path / "soak", "--kills", "5"))
    fill(tmp_path / "mine", thesis="x")
    with pytest.raises(ValueError, match="mine is not empty and holds no soak: give a new folder"):
        soak.Soak(options(tmp_path / "mine"))
    arrays.write_json(tmp_path / "other" / "soak.json", {"format": 1, "kind": "run"})
    with pytest.raises(ValueError, match="describes run, expected soak"):
        soak.Soak(options(tmp_path / "other"))


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [("--kills", "0", "at least 1"), ("--pictures", "9", "at least 100"), ("--share", "2", "above 0 and at most 1")],
)
def test_wrong_values_are_refused(tmp_path, option, value, wanted):
    with pytest.raises(experiment.UsageError, match=rf"{option} {value}.*: expected {wanted}"):
        soak.main([str(tmp_path), option, value])


def test_help_shows_the_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        soak.main(["--help"])
    assert end.value.code == 0
    assert "(default: 200)" in capsys.readouterr().out


def test_pictures_are_a_function_of_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        soak.paint(tmp_path / name, 8, seed)
    assert soak.difference(tmp_path / "a", tmp_path / "b") is None
    assert len(soak.files(tmp_path / "a")) == 8
    assert "differs" in soak.difference(tmp_path / "a", tmp_path / "c")
