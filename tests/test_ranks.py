"""Ranks: together they write what one would; one that fails leaves in order, and its launcher ends the job."""

import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from linear_world import make_data, make_run

from diffusion_model import arrays, experiment, ranks, representations, results, train_features
from linear_structure.gaussian import Gaussian

PROGRAM = Path(__file__).with_name("rank_program.py")


def torchrun(count: int, *argv: object) -> subprocess.CompletedProcess:
    """Run the program of these tests in `count` ranks on this machine, one thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, str(PROGRAM), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def commands(folder: Path) -> list[list[str]]:
    """A little of everything that ranks share, on the runs in `folder`."""
    sampled = ["--n", "10", "--steps", "3", "--batch", "4", "--device", "cpu"]
    sweep = ["--features", "classifier", "--n", "8", "--steps", "3", "--batch", "8", "--skips", "0", "1", "2"]
    search = ["--recommend", "--blocks", "4", "--margin", "1e9"]
    mixture = ["--kinds", "gaussian", "isotropic", "mixture", "--mixture", f"{folder}/mixture"]
    return [
        [
            "diffusion_model.representations",
            f"{folder}/drl",
            "--granularities",
            "1",
            "3",
            "--sources",
            *representations.SOURCES,
            "block-middle_block0",
            "--components",
            "4",
            "--batch",
            "20",
        ],
        ["linear_structure.get_parameters", "dots", "gaussian", f"{folder}/params"],
        ["diffusion_model.main", "--mode", "sample", "--workdir", f"{folder}/edm", *sampled],
        ["linear_structure.get_parameters", "dots", "gaussian", f"{folder}/low", "--rank", "5", "--memory", "1e-4"],
        ["linear_structure.get_parameters", "dots", "mixture", f"{folder}/mixture", "--components", "2", "--rank", "3"],
        ["linear_structure.sweep_skips", f"{folder}/edm", f"{folder}/params", *sweep, *mixture],
        ["linear_structure.sweep_skips", f"{folder}/edm", f"{folder}/params", *sweep[:-4], *search],
    ]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> tuple[Path, Path]:
    """The same commands by one process and by two ranks, on copies of the same runs; one time is encoded beforehand."""
    folder, threads = tmp_path_factory.mktemp("ranks"), torch.get_num_threads()
    before, os.environ["DATA"] = os.environ.get("DATA"), str(folder / "data")
    torch.set_num_threads(1)  # as in the ranks: the order of summation is then the same
    split = make_data(folder / "data", count=80)
    assert train_features.main(["dots", "--images", "64", "--batch", "32", "--width", "4"]) == 0
    make_run(folder / "one" / "edm", split)
    drl = make_run(folder / "one" / "drl", split, "configs/drl.py:smoke")
    assert representations.main([str(drl), "--granularities", "1", "--batch", "20"]) == 0
    shutil.copytree(folder / "one", folder / "two")
    for name, *arguments in commands(folder / "one"):
        assert importlib.import_module(name).main(arguments) == 0
    shutil.rmtree(next((folder / "data").rglob("reference-*")))
    arrays.write_json(folder / "commands.json", commands(folder / "two"))
    done = torchrun(2, "run", folder / "commands.json")
    torch.set_num_threads(threads)
    os.environ.pop("DATA") if before is None else os.environ.update(DATA=before)
    assert done.returncode == 0, done.stderr
    return folder / "one", folder / "two"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("what", ["drl/trajectories", "drl/moments", "params"])
def test_ranks_write_what_one_process_writes_byte_for_byte(worlds, what) -> None:
    one, two = (contents(world / what) for world in worlds)
    assert one.keys() == two.keys() and len(one) > 2
    assert [name for name in one if one[name] != two[name]] == []


def test_samples_are_those_of_one_process(worlds) -> None:
    one, two = (np.load(next((world / "edm" / "samples").glob("*.npy")), allow_pickle=False) for world in worlds)
    assert len(one) == 10 and np.array_equal(one, two)


def test_a_sweep_is_that_of_one_process(worlds) -> None:
    one, two = (results.read_cells(world / "edm" / "sweeps" / "default") for world in worlds)
    assert len(one) == 8  # none, two jumps of three kinds, and the real images
    for first, second in zip(one, two, strict=True):
        assert (first.key, first.protocol) == (second.key, second.protocol)
        times = {"seconds": 0, "busy_seconds": 0}
        assert first.value | times == second.value | times
        held = [arrays.read_folder(cell.path.with_suffix(""), "sweep cell")[0] for cell in (first, second)]
        assert all(np.array_equal(held[0][name], held[1][name]) for name in held[0])


def test_a_mixture_and_a_randomised_fit_are_those_of_one_process(worlds) -> None:
    one, two = (contents(world / "mixture") for world in worlds)
    assert one == two and len(one) > 5
    first, second = (Gaussian.load(world / "low") for world in worlds)
    assert torch.allclose(first.lambdas, second.lambdas, rtol=1e-6)
    assert torch.equal(first.mu, second.mu) and torch.equal(first.variance, second.variance)
    assert torch.allclose(first.U @ first.U.T, second.U @ second.U.T, atol=1e-5)


def test_a_recommendation_is_within_the_cells_of_both(worlds) -> None:
    found = [arrays.read_json(world / "edm/sweeps/recommend/recommendation.json") for world in worlds]
    for one in found:
        asked = {cell["skip"]: cell for cell in one["cells"]}
        assert one["recommended"]["skip"] in asked and set(asked) <= {0, 1, 2}
    common = [[cell["distance"] for cell in one["cells"] if cell["skip"] == 0] for one in found]
    assert common[0] == common[1]
    assert [one["recommended"]["skip"] for one in found] == [2, 2]


def ended(pids: list[int]) -> bool:
    """Whether none of these processes runs any more."""
    return not any(Path(f"/proc/{pid}/stat").exists() for pid in pids)


def test_a_rank_that_is_killed_is_named_by_torchrun_which_ends_the_others() -> None:
    done = torchrun(2, "killed")
    pids = [int(pid) for pid in re.findall(r"^pid (\d+)$", done.stdout, re.MULTILINE)]
    assert done.returncode != 0 and len(pids) == 2 and ended(pids)
    named = r"host +: \S+\n +rank +: 1 \(local_rank: 1\)\n +exitcode +: -9 .*SIGKILL"
    assert re.search(named, done.stderr), done.stderr
    # what the survivor says, unless torchrun ended it first
    said = re.findall(r"^error: .*$", done.stderr, re.MULTILINE)
    assert len(said) <= 1 and all("the ranks cannot go on together" in line for line in said)


def test_a_rank_that_fails_says_why_and_no_rank_is_finalised_in_a_session() -> None:
    """Without a launcher that would stop the survivors, as on several machines."""
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    jobs = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment = os.environ | place | {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(PROGRAM), "failed"]
        jobs.append(subprocess.Popen(command, env=environment, stdout=PIPE, stderr=PIPE, text=True))
    printed, said = zip(*(job.communicate(timeout=300) for job in jobs), strict=True)
    assert [job.returncode for job in jobs] == [1, 1], said
    assert "error: rank 1: the loss is not finite\n" in said[1]
    assert re.search(r"error: the ranks cannot go on together \(.*\): see the message of the one", said[0])
    assert not any("Traceback" in text for text in said)
    assert not any("finalised" in text for text in printed)  # where threads of the group can abort it


def placed(monkeypatch, rank: int, world: int) -> None:
    """Be this rank of so many, as far as the environment tells."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


@pytest.mark.parametrize(("count", "block", "world"), [(10, 1, 3), (10, 3, 2), (10, 4, 4), (0, 5, 2), (7, 100, 3)])
def test_every_row_and_item_belongs_to_one_rank(monkeypatch, count, block, world) -> None:
    rows, items, starts = [], [], []
    for rank in range(world):
        placed(monkeypatch, rank, world)
        mine = ranks.share(count, block)
        rows += mine
        starts += range(mine.start, mine.stop, block)
        items += ranks.deal(range(count))
        assert [entry for group in ranks.rounds(range(count)) for entry in ranks.deal(group)] == ranks.deal(
            range(count)
        )
    assert rows == list(range(count)) == sorted(items)
    assert starts == list(range(0, count, block))  # the batches are those of one process


def test_alone_nothing_is_started() -> None:
    with ranks.session(torch.device("cpu")) as device:
        assert device == torch.device("cpu") and not torch.distributed.is_initialized()
        values = torch.ones(3)
        ranks.mean_([values])
        ranks.barrier()
        rows = np.arange(4)
        assert torch.equal(values, torch.ones(3)) and ranks.gather_rows(rows) is rows
        assert ranks.collect({"a": 1}) == [{"a": 1}] and ranks.from_first([2]) == [2] and ranks.any_rank(True)
        assert ranks.share(5, 2) == range(5) and ranks.first_makes(lambda: 3) == 3 and ranks.first()


def test_ranks_without_a_launcher_are_a_sentence(monkeypatch) -> None:
    placed(monkeypatch, 0, 2)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(ValueError, match=r"WORLD_SIZE is 2 but MASTER_ADDR is not set: start the command with torchrun"),
        ranks.session(torch.device("cpu")),
    ):
        pass
    with pytest.raises(experiment.UsageError, match="--device cuda:1 names one device for 2 ranks"):
        ranks.start(torch.device("cuda:1"))
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(ValueError, match=r"local rank 99 on .* has no GPU of its own, there are \d+: pass --nproc"):
        ranks.start(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_ranks_on_gpus_exchange_by_nccl() -> None:
    done = torchrun(2, "exchange", "cuda")
    assert done.returncode == 0, done.stderr
