"""The shell scripts, driven with a stand-in for Python that writes down what it is asked to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STUB = r"""#!/usr/bin/env bash
case "$1 $2" in
    "-c "*) [[ $2 == *canonical* ]] && echo "${@: -1}" | tr 'A-Z' 'a-z'; exit 0 ;;
    "--version "*) echo "Python 3.99" ;;
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
esac
line=$*
echo "${line//$STUB_ROOT\//}" >>"$STUB_LOG"
[[ -z ${STUB_FAIL:-} || $line != *"$STUB_FAIL"* ]]
"""


@pytest.fixture
def clone(tmp_path):
    """A copy of the scripts in a project of their own, and a function that runs one of them there."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copytree(ROOT / "scripts", project / "scripts")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python3").write_text(STUB)
    (tools / "python3").chmod(0o755)
    log = tmp_path / "log"

    def run(script, *arguments, stub=True, **environment):
        """(status, commands the stand-in was given, stdout, stderr)"""
        log.unlink(missing_ok=True)
        inherited = {
            name: value for name, value in os.environ.items() if name not in ("PYTHON", "PYTHONPATH", "DATA", "GPUS")
        }
        environment = {
            **inherited, "PATH": f"{tools}:{os.environ['PATH']}", "STUB_LOG": str(log), "STUB_ROOT": str(project),
            **({"PYTHON": str(tools / "python3")} if stub else {}), **environment,
        }  # fmt: skip
        done = subprocess.run(
            ["bash", f"scripts/{script}", *arguments], cwd=project, env=environment, capture_output=True, text=True
        )
        commands = log.read_text().splitlines() if log.is_file() else []
        return done.returncode, commands, done.stdout, done.stderr

    run.project = project
    return run


def test_the_environment_is_made_once_and_then_silent(clone):
    status, commands, _, told = clone("test.sh", stub=False)
    assert status == 0
    assert [command.split()[:2] for command in commands] == [
        ["--version"],
        ["-m", "venv"],
        ["-m", "pip"],
        ["-m", "pytest"],
    ]
    assert "installing into" in told
    status, commands, _, told = clone("test.sh", "-k", "one", stub=False)
    assert (status, commands, told) == (0, ["-m pytest -k one"], "")


def test_an_interrupted_installation_starts_over(clone):
    status, _, _, told = clone("test.sh", stub=False, STUB_FAIL="pip")
    assert status == 1
    assert "run the same command to begin it again" in told
    (clone.project / ".venv/half").touch()
    status, commands, _, _ = clone("test.sh", stub=False)
    assert status == 0
    assert any("venv" in command for command in commands)
    assert not (clone.project / ".venv/half").exists()


def test_a_changed_requirement_updates_the_environment(clone):
    clone("test.sh", stub=False)
    with (clone.project / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    status, commands, _, told = clone("test.sh", stub=False)
    assert status == 0
    assert "updating" in told
    assert [command.split()[1] for command in commands] == ["pip", "pytest"]


def test_python_is_used_as_it_is(clone):
    status, commands, _, told = clone("test.sh")
    assert (status, commands, told) == (0, ["-m pytest"], "")
    assert not (clone.project / ".venv").exists()
    status, _, _, told = clone("test.sh", PYTHON="/no/python")
    assert status == 1
    assert "PYTHON is set but is no program" in told


def test_without_a_fit_python_one_sentence(clone):
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        tool = clone.project.parent / "tools" / name
        tool.write_text("#!/bin/sh\nexit 1\n")
        tool.chmod(0o755)
    status, _, _, told = clone("test.sh", stub=False)
    assert status == 1
    assert "no Python of at least 3.11 with venv is on the path" in told


def test_run_has_the_originals_arguments_and_defaults(clone):
    status, commands, _, _ = clone("run.sh")
    assert status == 0
    assert commands[0] == "diffusion_model/prepare_data.py synthetic"
    assert commands[1].startswith(
        "diffusion_model/main.py --mode train --config configs/drl.py:synthetic "
        "--workdir runs/synthetic_1_none_probabilistic-drl_False_0.0002_0 "
    )
    status, commands, _, _ = clone(
        "run.sh", "CIFAR10", "simclr", "reg-drl", "True", "2", "7", "--config.training.steps=9"
    )
    assert status == 0
    options = commands[1].split()
    assert options[options.index("--workdir") + 1] == "runs/cifar10_2_simclr_reg-drl_True_0.0002_7"
    for option in ("data.augmentation=simclr", "model.mode=reg-drl", "training.mixup=True", "encoder.widen=2", "seed=7",
                   "optimiser.learning_rate=0.0002", "training.steps=9"):  # fmt: skip
        assert f"--config.{option}" in options


def test_run_names_its_folder_after_the_learning_rate(clone):
    _, commands, _, _ = clone("run.sh", "synthetic", "--config.optimiser.learning_rate=1e-4")
    assert "_False_0.0001_0 " in commands[1]
    assert clone("run.sh", *"abcdefg")[0] == 2


def test_run_on_several_devices(clone):
    _, commands, _, _ = clone("run.sh", GPUS="2")
    assert commands[1].startswith(
        "-m torch.distributed.run --standalone --nproc_per_node=2 diffusion_model/main.py --mode train"
    )


def test_rep_encodes_every_seed_of_both_modes(clone):
    runs = clone.project / "runs"
    names = ["synthetic_1_none_probabilistic-drl_False_0.0002_0", "synthetic_1_none_probabilistic-drl_False_0.0002_1",
             "synthetic_1_none_reg-drl_True_0.0002_0"]  # fmt: skip
    others = ["synthetic_1_simclr_reg-drl_False_0.0002_0", "synthetic_2_none_reg-drl_False_0.0002_0",
              "synthetic_1_none_reg-drl_False_0.0001_0", "synthetic_1_none_vae-l2_False_0.0002_0"]  # fmt: skip
    for name in names + others:
        (runs / name).mkdir(parents=True)
    status, commands, _, _ = clone("rep.sh")
    assert status == 0
    assert commands == [f"diffusion_model/representations.py runs/{name}" for name in names]
    status, commands, _, _ = clone("rep.sh", "Synthetic", "1", "1e-4")
    assert commands == ["diffusion_model/representations.py runs/synthetic_1_none_reg-drl_False_0.0001_0"]
    assert clone("rep.sh", STUB_FAIL="False_0.0002_1")[0] == 1


def test_rep_without_a_run_says_what_to_run(clone):
    status, _, _, told = clone("rep.sh", "cifar10", "2")
    assert status == 1
    assert "run `bash scripts/run.sh cifar10 none probabilistic-drl False 2 0` first" in told


def test_the_two_scripts_of_the_linear_structure(clone):
    assert clone("run_experiments_with_skips.sh")[1] == [
        "linear_structure/sweep_skips.py runs/edm-cifar10 gaussian_params"
    ]
    assert clone("run_plot_scores.sh", "runs/a", "params", "--device", "cpu")[1] == [
        "linear_structure/compare_scores.py runs/a params --device cpu",
        "linear_structure/plot_scores.py runs/a",
    ]


def stages(printed, word):
    """Names of the stages that were `done` or `skipped`."""
    return [line.split()[1] for line in printed.splitlines() if line.startswith(word + " ")]


def test_reproduce_resumes_where_it_stopped(clone):
    status, commands, printed, told = clone("reproduce.sh", STUB_FAIL="tabulate.py")
    assert status == 1
    assert "stopped in tabulate: run the same command" in told
    first = stages(printed, "done")
    representing = ["train-drl", "representations", "classify", "classify-untrained", "classify-pixels"]
    sampling = ["train-edm", "features", "gaussian", "sweep", "skips", "scores", "plot-scores"]
    assert first[0] == "data" and "report" not in first
    for lane in (representing, sampling):  # the lanes run side by side, each in its order
        assert [name for name in first if name in lane] == lane
    status, commands, printed, _ = clone("reproduce.sh")
    assert status == 0
    assert sorted(stages(printed, "skipped")) == sorted(first)
    assert stages(printed, "done") == ["tabulate", "information", "attention", "report"]
    assert "tabulate.py" in commands[0]
    status, commands, printed, _ = clone("reproduce.sh")
    assert stages(printed, "done") == ["report"]
    assert commands == ["qualitative_analysis/write_report.py . --config configs/study.py:embedded"]


def test_a_stage_that_is_done_again_takes_the_later_ones_with_it(clone):
    clone("reproduce.sh", "smoke", "here")
    (clone.project / "here/.stages/scores").unlink()
    _, _, printed, _ = clone("reproduce.sh", "smoke", "here")
    assert stages(printed, "done") == ["scores", "plot-scores", "report"]


def test_reproduce_explains_itself(clone):
    status, commands, printed, _ = clone("reproduce.sh", "--help")
    assert status == 0 and not commands
    assert "FashionMNIST" in printed and "WORKDIR" in printed


def test_a_folder_holds_one_study(clone):
    clone("reproduce.sh", "smoke", "here")
    status, _, _, told = clone("reproduce.sh", "FashionMNIST", "here")
    assert status == 1
    assert "holds the study smoke: give FashionMNIST a folder of its own" in told
    status, _, _, told = clone("reproduce.sh", "fashion")
    assert status == 2
    assert "accepted: embedded, FashionMNIST, smoke" in told


def test_continuous_integration_is_the_test_script():
    assert (ROOT / ".ci/run").read_text().strip() == "bash scripts/test.sh"


@pytest.mark.parametrize("script", ["run.sh", "rep.sh"])
def test_help_prints_the_usage_and_runs_nothing(clone, script):
    status, commands, out, _ = clone(script, "--help")
    assert (status, commands) == (0, [])
    assert out.startswith(f"{script} [DATASET]") and "set -" not in out


def test_a_learning_rate_that_is_no_number(clone):
    status, _, _, told = clone("rep.sh", "synthetic16", "1", "fast")
    assert (status, told) == (2, "error: learning rate 'fast': expected a number such as 2e-4\n")
