"""settings.py: runs that differ in their seed alone are one setting."""

import pytest
from run_folders import make_run

from diffusion_model import experiment
from downstream_classification import settings


def test_seeds_are_runs_of_one_setting_and_modes_are_settings(tmp_path):
    runs = [
        make_run(tmp_path / f"cifar10_{widen}_none_{mode}_{seed}", **{"model.mode": mode, "encoder.widen": widen, "seed": seed,
                                                                    "logging.every": 1 + seed})
        for mode in ("reg-drl", "probabilistic-drl") for widen in (1.0, 2.0) for seed in (0, 1, 2)
    ]  # fmt: skip
    found = settings.group(runs)
    assert [setting.label for setting in found] == [
        "reg-drl, widen 1", "reg-drl, widen 2", "probabilistic-drl, widen 1", "probabilistic-drl, widen 2"
    ]  # fmt: skip
    assert found[0].runs == tuple(runs[:3]) and found[0].name == "cifar10_1.0_none_reg-drl"
    assert found[0].beside("encoder.widen") == found[1].beside("encoder.widen") != found[2].beside("encoder.widen")
    alone = settings.group(runs[:1])
    assert (alone[0].label, alone[0].name) == (runs[0].name, runs[0].name)


def test_runs_without_a_configuration_are_settings_of_their_own(tmp_path):
    for name in ("a/one", "b/one"):
        (tmp_path / name).mkdir(parents=True)
    found = settings.group([tmp_path / "a/one", tmp_path / "b/one"])
    assert [setting.name for setting in found] == ["one-1", "one-2"]
    assert len({setting.label for setting in found}) == 2


def test_settings_that_differ_in_no_axis_are_numbered(tmp_path):
    runs = [make_run(tmp_path / name, images=images) for name, images in (("a", 10), ("b", 20))]
    assert [setting.label for setting in settings.group(runs)] == ["a", "b"]


def test_a_run_given_twice_is_refused(tmp_path):
    run = make_run(tmp_path / "a")
    with pytest.raises(experiment.UsageError, match="is given twice"):
        settings.group([run, tmp_path / "b" / ".." / "a"])


def test_no_two_settings_share_a_name():
    assert settings.numbered(["a", "a", "a-1", "b", "a-2"], "{}-{}") == ["a-3", "a-4", "a-1", "b", "a-2"]
    assert settings.numbered(["", "", "b"], "{} ({})") == [" (1)", " (2)", "b"]
