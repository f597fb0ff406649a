"""A cell of the grid under a real Slurm: interrupted at its time limit, queued again, and equal to one that was not.

It uses the cluster at hand, and runs only where `sinfo` answers. One machine makes a cluster of its own, without root:

    apt install slurm-wlm munge
    bash scripts/slurm/local_cluster.sh start /tmp/cluster
    SLURM_CONF=/tmp/cluster/slurm.conf bash scripts/test.sh tests/test_slurm.py
    bash scripts/slurm/local_cluster.sh stop /tmp/cluster

The folder of the tests must be one that the cluster's nodes see: --basetemp gives another. A task that is queued again
waits for about two minutes, which is Slurm's own rule, so the file takes some minutes.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffusion_model import checkpoint

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parent.parent
CELL = ["--datasets", "Synthetic", "--modes", "reg-drl", "--widens", "0.0625", "--rates", "2e-4", "--seeds", "0"]
NAME = "synthetic_0.0625_none_reg-drl_False_0.0002_0"
SMALL = [
    "--config.training.batch=8", "--config.model.features=8", "--config.model.multipliers=[1,1]", "--config.model.blocks=1",
    "--config.model.attention=[]", "--config.logging.every=8", "--config.logging.checkpoint_every=80",
    "--config.logging.sample_every=100000000",
]  # fmt: skip
STEPS = 100


def call(folder, *command, **environment):
    """Standard output of a command that succeeds."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATA", "GPUS")}
    done = subprocess.run([str(entry) for entry in command], cwd=folder, text=True, capture_output=True,
                          env={**inherited, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps(run):
    """Steps of the records so far."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line)["step"] for line in lines]


def wait_for(what, condition, seconds=600):
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds} s"
        time.sleep(0.5)


def submit(folder, *options):
    """The job's number, the run and the file of the task's output."""
    told = call(folder, "bash", ROOT / "scripts/slurm/submit.sh", "run_all", *CELL, *SMALL, *options)
    job = told.split()[-1]
    return job, folder / "runs" / NAME, folder / f"runs/.jobs/slurm-{job}_{index_of(folder)}.txt"


def test_a_task_stopped_before_its_limit_is_queued_again_and_equals_an_uninterrupted_run(tmp_path):
    length = f"--config.training.images={8 * STEPS}"
    job, run, output = submit(tmp_path, length, "--time=20")
    try:
        wait_for("training", lambda: len(steps(run)) >= 5)
        call(tmp_path, "scancel", "--signal=USR1", "--batch", job)  # as Slurm does before the limit
        wait_for("the requeue", lambda: "queued again" in output.read_text())
        stopped = checkpoint.steps(run)[-1]
        assert 5 <= stopped < STEPS
        assert json.loads((run / "state.json").read_text())["state"] == "stopped"
        wait_for("the end", lambda: f"done {NAME}" in output.read_text())
    finally:
        subprocess.run(["scancel", job])
    text = output.read_text()
    assert "start 0" in text and "start 1" in text
    assert steps(run) == list(range(1, STEPS + 1))
    assert "nothing to submit" in call(tmp_path, "bash", ROOT / "scripts/slurm/submit.sh", "run_all", *CELL)
    alone = tmp_path / "alone"
    alone.mkdir()
    call(alone, "bash", ROOT / "scripts/run_all.sh", *CELL, *SMALL, length)
    assert steps(alone / "runs" / NAME) == steps(run)
    same(run, alone / "runs" / NAME)


def index_of(folder):
    """The cell's number in the grid."""
    return call(folder, "bash", ROOT / "scripts/run_all.sh", *CELL, "--dry-run").split()[0]


def same(first, second):
    """Both runs end in the same bits."""
    groups = [checkpoint.read(run, STEPS, ["model", "average", "optimizer"])[0] for run in (first, second)]
    for name in groups[0]:
        assert groups[0][name].keys() == groups[1][name].keys()
        for key, tensor in groups[0][name].items():
            assert torch.equal(tensor, groups[1][name][key]), f"{name}.{key}"


def test_slurms_own_signal_before_the_limit_stops_the_task(tmp_path):
    job, run, output = submit(tmp_path, "--config.training.images=80000000", "--time=2", "--signal=B:USR1@60")
    try:
        wait_for("the requeue", lambda: output.is_file() and "queued again" in output.read_text())
    finally:
        subprocess.run(["scancel", job])
    assert steps(run) == list(range(1, checkpoint.steps(run)[-1] + 1))
