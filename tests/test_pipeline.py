"""The whole study at smoke size, killed once and run again: every stage, every file, every figure, one page."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from diffusion_model import arrays, checkpoint, results
from diffusion_model.trajectories import Trajectories

ROOT = Path(__file__).resolve().parent.parent


def test_the_study_survives_a_kill_and_is_whole(tmp_path):
    workdir = tmp_path / "study"
    environment = os.environ | {"PYTHON": sys.executable, "DATA": str(workdir / "data"), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "scripts" / "reproduce.sh"), "smoke", str(workdir)]

    first = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    drl, deadline = workdir / "runs" / "drl-synthetic16", time.monotonic() + 240
    while not checkpoint.steps(drl) and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)  # in the middle of a training
    first.wait()
    assert (workdir / ".stages" / "data").is_file() and not (workdir / ".stages" / "train-drl").exists()
    reached = checkpoint.steps(drl)[-1]

    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    said = second.stdout.splitlines()
    assert "skipped data" in said and any(line.startswith("done train-drl") for line in said)
    assert f"step {reached} of 40" in second.stderr  # it went on from where it was killed

    assert Trajectories(drl / "trajectories" / "encoder" / "test").times == [0.0, 0.5, 1.0]
    assert len(results.read_cells(drl / "classify")) > 12
    assert arrays.is_finished(workdir / "gaussian_params")
    summary = arrays.read_json(workdir / "runs" / "edm-synthetic16" / "sweeps" / "default" / "summary.json")
    assert "FID" not in summary["distance"]
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8 and "http://" not in page.replace("http://www.w3.org", "")

    third = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert third.returncode == 0 and third.stdout.count("skipped ") == said_stages(third.stdout) - 1


def said_stages(output):
    """Number of stages that a run of the study speaks of; the report alone is always written anew."""
    return sum(line.startswith(("done ", "skipped ")) for line in output.splitlines())
