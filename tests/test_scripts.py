"""The shell scripts, driven with a stand-in for Python that writes down what it is asked to do."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from run_folders import make_run

ROOT = Path(__file__).resolve().parent.parent
STUB = r"""#!/usr/bin/env bash
case "$1 $2" in
    "-c "*) [[ $2 == *canonical* ]] && printf '%s\n' "${@:3}" | tr 'A-Z' 'a-z'; exit 0 ;;
    *list_runs.py" .") cat "$STUB_STATES"; exit 0 ;;
    "--version "*) echo "Python 3.99" ;;
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
esac
line=$*
if [[ -n ${STUB_WAIT:-} && $line == *$STUB_WAIT* ]]; then
    trap 'echo "told to stop" >>"$STUB_LOG"; exit 130' TERM
    echo "waiting ${CUDA_VISIBLE_DEVICES:-}" >>"$STUB_LOG"
    for _ in {1..200}; do sleep 0.1; done
fi
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

    def run(script, *arguments, stub=True, background=False, **environment):
        """(status, commands the stand-in was given, stdout, stderr)"""
        log.unlink(missing_ok=True)
        own = ("PYTHON", "PYTHONPATH", "DATA", "GPUS", "CUDA_VISIBLE_DEVICES")
        inherited = {name: value for name, value in os.environ.items() if name not in own}
        environment = {
            **inherited, "PATH": f"{tools}:{os.environ['PATH']}", "STUB_LOG": str(log), "STUB_ROOT": str(project),
            "STUB_STATES": str(tmp_path / "states"),
            **({"PYTHON": str(tools / "python3")} if stub else {}), **environment,
        }  # fmt: skip
        command = ["bash", f"scripts/{script}", *arguments]
        if background:
            return subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True)  # fmt: skip
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        commands = log.read_text().splitlines() if log.is_file() else []
        return done.returncode, commands, done.stdout, done.stderr

    run.project, run.log = project, log
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
    assert (status, commands, told) == (0, ["-m pytest -n auto --dist worksteal -k one"], "")


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
    assert (status, commands, told) == (0, ["-m pytest -n auto --dist worksteal"], "")
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


def test_one_setting_is_one_folder_however_it_is_written(clone):
    _, commands, _, _ = clone("run.sh", "colored_mnist", "none", "reg-drl", "true", "1.0", "0")
    assert "--workdir runs/colored_mnist_1_none_reg-drl_True_0.0002_0 " in commands[1]
    (clone.project / "runs/colored_mnist_0.5_none_reg-drl_True_0.0002_0").mkdir(parents=True)
    assert clone("rep.sh", "colored_mnist", ".50", "2e-4")[0] == 0
    for arguments, sentence in ((["yes"], "MIXUP 'yes': expected True or False"), (["True", "wide"], "WIDEN 'wide'")):
        status, commands, _, told = clone("run.sh", "colored_mnist", "none", "reg-drl", *arguments)
        assert status == 2 and sentence in told and commands == []


@pytest.mark.parametrize("option", ["model.mode=vae-l2", "encoder.widen=2", "seed=1", "data.name=mnist"])
def test_run_takes_what_its_folder_is_named_after_as_an_argument(clone, option):
    """Behind the arguments it would train one thing in the folder of another."""
    status, commands, _, told = clone("run.sh", "synthetic", f"--config.{option}")
    assert status == 2 and not any("main.py" in command for command in commands)
    assert f"--config.{option}: the folder is named after it" in told


@pytest.mark.parametrize("script", ["run.sh", "rep.sh", "run_all.sh", "rep_all.sh"])
@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_number_of_devices_that_is_none(clone, script, number):
    status, commands, _, told = clone(script, GPUS=number)
    assert (status, commands) == (2, [])
    assert told == f"error: GPUS={number}: expected a number of devices, 1 or more\n"


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
    _, commands, _, _ = clone("rep.sh", "Synthetic", "1", "1e-4", GPUS="2")
    assert [command.split(" runs/")[0] for command in commands] == [
        "-m torch.distributed.run --standalone --nproc_per_node=2 diffusion_model/representations.py"
    ]


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


LINEAR = ["run_plot_scores.sh", "run_experiments_with_skips.sh"]


@pytest.mark.parametrize(
    "script", ["run.sh", "rep.sh", "run_all.sh", "rep_all.sh", "classify.sh", "mix.sh", "slurm/submit.sh", *LINEAR]
)
def test_help_prints_the_usage_and_runs_nothing(clone, script):
    status, commands, out, _ = clone(script, "--help")
    assert (status, commands) == (0, [])
    assert out.startswith(f"{Path(script).name} ") and "set -" not in out


def test_a_learning_rate_that_is_no_number(clone):
    status, _, _, told = clone("rep.sh", "synthetic16", "1", "fast")
    assert (status, told) == (2, "error: learning rate 'fast': expected a number such as 2e-4\n")


@pytest.mark.parametrize("mode", ["none", "noreg-drl", "vae-l2", "vae-bce", "ae-l2", "ae-bce", "reg-drl"])
def test_run_takes_every_mode(clone, mode):
    _, commands, _, _ = clone("run.sh", "synthetic", "none", mode)
    assert f"--workdir runs/synthetic_1_none_{mode}_False_0.0002_0 " in commands[1]
    assert f"--config.model.mode={mode}" in commands[1].split()


ONE = ("--datasets", "CIFAR10", "--modes", "reg-drl", "--widens", "1,2", "--seeds", "0,1")  # four cells of the grid
NAMES = [f"cifar10_{widen}_none_reg-drl_False_0.0002_{seed}" for seed in (0, 1) for widen in (1, 2)]


def trained(commands):
    """Names of the runs that main.py was told to train."""
    return [Path(part).name for line in commands if "main.py" in line for part in line.split() if "runs/" in part]


def set_states(clone, **states):
    """What list_runs.py says of the four cells: state_lacks."""
    (clone.project.parent / "states").write_text(
        "".join(f"{NAMES[int(key[1:])]}\t{value}\n" for key, value in states.items())
    )
    (clone.project / "runs/x").mkdir(parents=True, exist_ok=True)


def test_the_grid_is_the_papers(clone):
    status, commands, out, _ = clone("run_all.sh", "--dry-run")
    cells = [line.split() for line in out.splitlines()]
    assert (status, commands) == (0, [])
    assert [int(cell[0]) for cell in cells] == list(range(534))
    assert {cell[1] for cell in cells} == {"absent"}
    names = {cell[3] for cell in cells}
    assert len(names) == 534
    for name in ("cifar100_0_none_reg-drl_False_0.0002_2", "miniimagenet_2_none_probabilistic-drl_False_0.0002_0",
                 "synthetic_0.0625_none_reg-drl_False_0.0001_9", "coloredmnist_0.25_none_reg-drl_False_0.0005_0"):  # fmt: skip
        assert name in names
    assert [cell[3].rsplit("_", 1)[1] for cell in cells] == sorted(cell[3].rsplit("_", 1)[1] for cell in cells)
    encoded = [line.split() for line in clone("rep_all.sh", "--dry-run")[2].splitlines()]
    assert names - {cell[3] for cell in encoded} == {
        f"{data}_0_none_{mode}_False_0.0002_{seed}" for data in ("cifar10", "cifar100", "miniimagenet")
        for mode in ("reg-drl", "probabilistic-drl") for seed in range(3)
    }  # fmt: skip


def test_run_all_trains_what_is_not_finished_and_goes_on_after_a_failure(clone):
    set_states(clone, c0="finished\t9\t9\t-", c1="stopped\t3\t9\ttraining", c2="running\t3\t9\ttraining")
    status, commands, out, told = clone("run_all.sh", *ONE, "--config.training.images=9", STUB_FAIL=f"runs/{NAMES[1]}")
    assert trained(commands) == [NAMES[1], NAMES[3]]
    assert all("--config.training.images=9" in line for line in commands if "main.py" in line)
    assert f"skipped {NAMES[0]}: finished" in out and f"skipped {NAMES[2]}: running" in out
    assert f"done {NAMES[3]}" in out
    assert status == 1
    assert f"{NAMES[1]} (failed)" in told and NAMES[3] not in told
    assert (clone.project / f"runs/.jobs/{NAMES[1]}.txt").is_file()
    assert clone("run_all.sh", *ONE)[0] == 0


def test_each_device_has_a_job_of_its_own(clone):
    for variables, expected in (
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, {"4", "5"}),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6", "GPUS": "2"}, {"4,5"}),
        ({"CUDA_VISIBLE_DEVICES": ""}, {"auto"}),
    ):
        status, commands, out, _ = clone("run_all.sh", *ONE, **variables)
        assert status == 0
        assert sorted(trained(commands)) == sorted(NAMES)
        assert {line.split("device ")[1][:-1] for line in out.splitlines() if "device" in line} == expected
    _, commands, _, _ = clone("run_all.sh", *ONE, "--devices", "cpu")
    assert all("--device=cpu" in line.split() for line in commands if "main.py" in line)
    assert clone("run_all.sh", *ONE, "--devices", "0", GPUS="2")[0] == 2


def test_a_signal_reaches_every_job_and_ends_the_grid(clone):
    process = clone("run_all.sh", *ONE, background=True, STUB_WAIT="main.py", CUDA_VISIBLE_DEVICES="0,1")
    while not clone.log.is_file() or clone.log.read_text().count("waiting") < 2:
        time.sleep(0.02)
    assert {"waiting 0", "waiting 1"} <= set(clone.log.read_text().splitlines())
    process.send_signal(signal.SIGUSR1)
    out, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert clone.log.read_text().count("told to stop") == 2
    assert out.count("started") == out.count("stopped") == 2
    assert "run the same command to go on" in told


def test_one_cell_by_its_number(clone):
    numbers = [line.split() for line in clone("run_all.sh", *ONE, "--dry-run")[2].splitlines()]
    assert [name for *_, name in numbers] == NAMES
    set_states(clone, c2="running\t3\t9\ttraining")
    _, commands, _, _ = clone("run_all.sh", "--index", numbers[2][0])
    assert trained(commands) == [NAMES[2]]  # Slurm started it again: whoever was said to run it has left
    status, _, _, told = clone("run_all.sh", "--index", "534")
    assert (status, told) == (2, "error: --index: no cell of the grid has 534; accepted: 0 to 533\n")


def test_rep_all_encodes_what_is_trained_and_not_yet_encoded(clone):
    set_states(clone, c0="finished\t9\t9\ttrajectories,classify", c1="finished\t9\t9\tclassify",
               c2="stopped\t3\t9\ttraining,trajectories")  # fmt: skip
    status, commands, out, told = clone("rep_all.sh", *ONE, "--", "--granularities", "10")
    assert commands == [f"diffusion_model/representations.py runs/{NAMES[0]} --granularities 10"]
    assert f"skipped {NAMES[1]}: finished" in out
    assert status == 1
    assert f"{NAMES[2]} (untrained: run `bash scripts/run_all.sh` first)" in told and NAMES[3] in told


def encoded(clone, index, text="a"):
    """The representations of one of the four cells, as far as their meta.json goes."""
    for split in ("train", "test"):
        path = clone.project / "runs" / NAMES[index] / "trajectories/encoder" / split / "meta.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_classify_is_the_paper_s_grid(clone):
    status, commands, out, _ = clone("classify.sh", "--dry-run")
    names = {line.split()[3] for line in out.splitlines()}
    assert (status, commands, len(names)) == (0, [], 36)
    assert {name.split("_")[0] for name in names} == {"cifar10", "cifar100", "miniimagenet"}
    assert {name.split("_")[1] for name in names} == {"1", "2"} and {name[-1] for name in names} == {"0", "1", "2"}


def test_classify_takes_what_is_encoded_and_skips_what_it_has_done(clone):
    set_states(
        clone, c0="finished\t9\t9\tclassify", c1="finished\t9\t9\ttrajectories,classify", c2="stopped\t3\t9\ttraining"
    )
    encoded(clone, 0)
    status, commands, _, told = clone("classify.sh", *ONE, "--devices", "cpu", "--", "--seeds", "0")
    store = f"runs/{NAMES[0]}/trajectories/encoder"
    assert commands == [
        f"downstream_classification/classify.py {store} --granularity 1 2 5 7 10 17 25 37 50 --device=cpu --seeds 0"
    ]
    assert status == 1
    assert f"{NAMES[1]} (unencoded: run `bash scripts/rep_all.sh` first)" in told
    assert f"{NAMES[2]} (untrained: run `bash scripts/run_all.sh` first)" in told

    set_states(clone, c0="finished\t9\t9\t-")  # the cells are there now
    one = ("--datasets", "CIFAR10", "--modes", "reg-drl", "--widens", "1", "--seeds", "0")
    status, commands, out, _ = clone("classify.sh", *one, "--", "--seeds", "0")
    assert (status, commands, out) == (0, [], f"skipped {NAMES[0]}: finished\n")
    assert len(clone("classify.sh", *one)[1]) == 1  # with other options
    encoded(clone, 0, "of another checkpoint")
    assert clone("classify.sh", *one, "--dry-run")[2].split()[1] == "pending"
    clone("classify.sh", *one, STUB_FAIL="classify.py")
    assert clone("classify.sh", *one, "--dry-run")[2].split()[1] == "pending"


def test_mix_takes_every_source_that_a_run_has(clone):
    runs = clone.project / "runs"
    for mode in ("none", "reg-drl"):
        make_run(runs / mode, **{"model.mode": mode})
    for block in ("a", "b"):
        (runs / "none" / "trajectories" / f"block-{block}").mkdir(parents=True)
    status, commands, _, _ = clone("mix.sh", "runs/reg-drl/")
    store, protocol = "runs/reg-drl/trajectories", "--config configs/mixing.py:protocol"
    classify = f"downstream_classification/classify.py {protocol}"
    assert status == 0
    assert commands == [
        f"diffusion_model/representations.py runs/reg-drl {protocol} --sources encoder untrained pixels pca",
        f"{classify} {store}/untrained {store}/pixels {store}/pca --heads mlp linear",
        f"{classify} {store}/encoder --best-store",
        "downstream_classification/tabulate.py runs/reg-drl",
    ]
    status, commands, _, _ = clone("mix.sh", "runs/none", "cores", GPUS="2")
    assert commands[0].startswith("-m torch.distributed.run --standalone --nproc_per_node=2 ")
    assert commands[0].endswith("runs/none --config configs/mixing.py:cores --sources blocks pixels pca")
    assert commands[2].endswith("runs/none/trajectories/block-a runs/none/trajectories/block-b --best-store")
    _, commands, _, _ = clone("mix.sh", "runs/reg-drl", "--", "--attributes", "digit")
    assert all(line.endswith(" --attributes digit") for line in commands[1:3])
    refused = (
        ((), 2, "takes RUN [PRESET]"), (("runs/none", "cores", "more"), 2, "got: runs/none cores more"),
        (("runs/none", "--epochs"), 2, "-- OPTIONS"), (("runs/absent",), 1, "runs/absent is no run"),
    )  # fmt: skip
    for arguments, code, words in refused:
        status, commands, _, told = clone("mix.sh", *arguments)
        assert (status, commands) == (code, []) and words in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--seeds", "11"], "--seeds: no cell of the grid has 11; accepted: 0 1 2"), (["--modes=drl"], "accepted: probab"),
     (["--rates", "fast"], "--rates 'fast': expected a number"), (["--index"], "--index needs a value"),
     (["--seed", "1"], "unknown argument"),
     (["--datasets", "CIFAR10", "--seeds", "5"], "no cell of the grid has all of these"), (["x"], "unknown argument x"),
     (["--config.seed=3"], "choose cells with")],
)  # fmt: skip
def test_a_wrong_choice_of_cells_is_one_sentence(clone, arguments, sentence):
    status, commands, _, told = clone("run_all.sh", *arguments)
    assert (status, commands) == (2, [])
    assert told.startswith("error: ") and sentence in told and told.count("\n") == 1


def test_submit_asks_slurm_for_what_is_not_done(clone):
    sbatch = clone.project.parent / "tools/sbatch"
    sbatch.write_text('#!/bin/sh\necho "$@"\n')
    sbatch.chmod(0o755)
    numbers = [line.split()[0] for line in clone("run_all.sh", *ONE, "--dry-run")[2].splitlines()]
    set_states(clone, c0="finished\t9\t9\t-", c2="running\t3\t9\ttraining")
    status, _, out, _ = clone("slurm/submit.sh", "run_all", *ONE, "--time=5", "--config.training.images=9")
    options = out.split()
    assert status == 0
    assert f"--array={numbers[1]},{numbers[3]}" in options
    assert {"--requeue", "--signal=B:USR1@120", "--time=5"} <= set(options)
    task = next(index for index, option in enumerate(options) if option.endswith("/task.sh"))
    assert options.index("--time=5") < task  # what follows the script's name is the task's
    assert options[task + 2 :] == ["run_all", *ONE, "--config.training.images=9"]
    listed = clone("slurm/submit.sh", "run_all", *ONE, "--dry-run", "--time=5")[2]
    assert [line.split()[0] for line in listed.splitlines()] == [numbers[1], numbers[3]]
    whole = clone("slurm/submit.sh", "run_all", "--datasets", "CIFAR100", "--seeds", "1")[2]
    assert whole.split()[0].count("-") == 3  # --array=FIRST-LAST
    set_states(clone, **{f"c{index}": "finished\t9\t9\t-" for index in range(4)})
    assert clone("slurm/submit.sh", "run_all", *ONE)[2].startswith("nothing to submit: 4 finished")
    assert clone("slurm/submit.sh", "all")[0] == 2
