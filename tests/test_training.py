"""Training is a function of (configuration, data): batches, averages, resuming, stopping, ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_world import make_data, make_run

from diffusion_model import arrays, checkpoint, data, experiment, main, run_state, samplers, sampling, training
from diffusion_model.ema import Average

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "--config.training.images=160", "--config.training.batch=16", "--config.logging.every=16",
    "--config.logging.checkpoint_every=32", "--config.logging.sample_every=100000",
]  # fmt: skip


def run(*argv):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(main.main, [str(entry) for entry in argv])
    return stop.value.code


def train(workdir, *more, config="configs/drl.py:smoke"):
    return run("--mode", "train", "--config", config, "--workdir", workdir, "--device", "cpu", *SMALL, *more)


def tensors(workdir):
    groups, _ = checkpoint.read(workdir, checkpoint.steps(workdir)[-1], ["model", "average", "optimizer"])
    return {f"{group}.{name}": tensor for group, held in groups.items() for name, tensor in held.items()}


def same(first, second):
    first, second = tensors(first), tensors(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    before = os.environ.get("DATA")
    os.environ["DATA"] = str(folder / "data")
    assert train(folder / "run") == 0
    if before is not None:
        os.environ["DATA"] = before
    return folder / "run"


def test_an_epoch_shows_every_image_once():
    steps = [training.batch_indices(0, step, 8, 24) for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(np.concatenate(epoch)) == list(range(24))
    assert not np.array_equal(np.concatenate(steps[:3]), np.concatenate(steps[3:]))
    across = training.batch_indices(0, 1, 16, 24)  # a batch over the end of an epoch
    assert np.array_equal(across, np.concatenate([steps[2], steps[3]]))


def test_the_average_is_the_closed_form():
    """With constant decay d after the ramp: a_n = d a_(n-1) + (1 - d) w_n; of equal weights it is those weights."""
    layer = torch.nn.BatchNorm1d(2)
    average = Average(layer, 0.5)
    expected = average.tensors["weight"].clone()
    for update in range(20):
        with torch.no_grad():
            layer.weight.fill_(update)
            layer.running_mean.fill_(update)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
        average.update()
    assert torch.allclose(average.tensors["weight"], expected)
    assert "running_mean" in average.tensors and "num_batches_tracked" not in average.tensors


def test_losses_fall_and_are_logged_by_name(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert {"score", "l1", "images_per_second", "memory_mb", "seconds_left"} <= lines[0].keys()
    assert lines[-1]["score"] < lines[0]["score"]


def test_resumed_equals_uninterrupted_bit_for_bit(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(whole.parent / "data"))
    assert train(tmp_path / "run", "--config.training.images=64") == 0
    assert checkpoint.steps(tmp_path / "run")[-1] == 4
    assert train(tmp_path / "run") == 0
    assert same(whole, tmp_path / "run")
    lines = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 11))


def test_killed_inside_a_checkpoint_write_and_resumed_equals_uninterrupted(whole, tmp_path):
    """SIGKILL while the optimiser's file of step 6 is being written; then the same command."""
    script = f"""
import os, signal, sys
from diffusion_model import arrays, experiment, main
write = arrays.write_tensors
def killed(path, tensors, **meta):
    if path.parent.name == ".6.tmp" and path.name == "optimizer.safetensors":
        path.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, tensors, **meta)
arrays.write_tensors = killed
import torch
torch.set_num_threads({torch.get_num_threads()})
experiment.launch(main.main, sys.argv[1:])
"""
    command = [
        "--mode",
        "train",
        "--config",
        "configs/drl.py:smoke",
        "--workdir",
        str(tmp_path / "run"),
        "--device",
        "cpu",
        *SMALL,
    ]
    environment = os.environ | {"DATA": str(whole.parent / "data"), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", script, *command], env=environment, cwd=ROOT, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert checkpoint.steps(tmp_path / "run") == [2, 4] and (tmp_path / "run" / "checkpoints" / ".6.tmp").exists()
    os.environ["DATA"] = str(whole.parent / "data")
    assert train(tmp_path / "run") == 0
    assert same(whole, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_writes_a_checkpoint_after_the_step_and_leaves_resumable(whole, tmp_path, monkeypatch, capsys, number):
    """The signal comes inside step 3; the run that goes on is the uninterrupted one."""
    monkeypatch.setenv("DATA", str(whole.parent / "data"))
    advance = training.Trainer.advance

    def signalled(trainer):
        if trainer.step == 2:
            os.kill(os.getpid(), number)
        return advance(trainer)

    monkeypatch.setattr(training.Trainer, "advance", signalled)
    assert train(tmp_path / "run") == 130
    assert "run the same command" in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / "run")[-1] == 3
    assert run_state.state_of(tmp_path / "run").name == "stopped"
    monkeypatch.setattr(training.Trainer, "advance", advance)
    assert train(tmp_path / "run") == 0
    assert same(whole, tmp_path / "run") and run_state.state_of(tmp_path / "run").name == "finished"


def test_a_full_disk_leaves_the_last_good_checkpoint_and_a_sentence(whole, tmp_path):
    """Files of the process may not grow beyond 100 kB from step 5 on: the optimiser's does not fit. Then the same command."""
    script = f"""
import resource, signal, sys
from diffusion_model import experiment, main, training
import torch
torch.set_num_threads({torch.get_num_threads()})
save = training.Trainer.save
def full(trainer):
    if trainer.step > 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    save(trainer)
training.Trainer.save = full
experiment.launch(main.main, sys.argv[1:])
"""
    command = ["--mode", "train", "--config", "configs/drl.py:smoke", "--device", "cpu", *SMALL]
    command += ["--workdir", str(tmp_path / "run")]
    environment = os.environ | {"DATA": str(whole.parent / "data"), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", script, *command], env=environment, cwd=ROOT, capture_output=True)
    said = ended.stderr.decode()
    assert ended.returncode == 1 and "Traceback" not in said
    assert "checkpoint 6 of" in said and "the last good checkpoint is step 4: make room" in said
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["2", "4"]
    os.environ["DATA"] = str(whole.parent / "data")
    assert train(tmp_path / "run") == 0
    assert same(whole, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA", str(whole.parent / "data"))
    advance = training.Trainer.advance

    def diverging(trainer):
        terms = advance(trainer)
        return {name: value * (float("nan") if trainer.step == 6 else 1) for name, value in terms.items()}

    monkeypatch.setattr(training.Trainer, "advance", diverging)
    assert train(tmp_path / "run") == 1
    assert checkpoint.steps(tmp_path / "run") == [2, 4]
    said = capsys.readouterr().err
    assert (
        "error: the loss term 'score' is not finite before step 6" in said
        and "the last good checkpoint is step 4" in said
    )


NONE = ("--config.training.images=64", "--config.data.augmentation=flip")  # of mode none, dropout 0


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    before = os.environ.get("DATA")
    os.environ["DATA"] = str(folder / "data")
    assert train(folder / "run", *NONE, config="configs/edm.py:smoke") == 0
    if before is not None:
        os.environ["DATA"] = before
    return folder / "run"


def close(first, second):
    """Weights of the score net and logged losses agree to rounding."""
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (first, second)]
    assert np.allclose(*([line["score"] for line in run] for run in lines), rtol=1e-4)
    first, second = tensors(first), tensors(second)
    for name in first:
        if name.startswith("model."):
            assert torch.allclose(first[name], second[name], rtol=1e-3, atol=2e-5), name


def test_two_ranks_train_what_one_trains_and_one_may_go_on(one_rank, tmp_path, monkeypatch, capsys):
    """Losses and weights of the score net agree to rounding (mode none, dropout 0), augmented images included."""
    environment = {"DATA": str(one_rank.parent / "data"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["--mode", "train", "--config", "configs/edm.py:smoke", "--device", "cpu", *SMALL, *NONE]
    pair = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*pair, "-m", "diffusion_model.main", *arguments, "--workdir", str(tmp_path / "two")]
    subprocess.run(command, env=os.environ | environment, cwd=ROOT, check=True, capture_output=True)
    close(one_rank, tmp_path / "two")
    monkeypatch.setenv("DATA", str(one_rank.parent / "data"))
    assert train(tmp_path / "two", *NONE, "--config.training.images=80", config="configs/edm.py:smoke") == 0
    assert "resumed with 1 ranks, 2 before" in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / "two")[-1] == 5


SLOW_STOP = """
import os, signal, sys, time
from diffusion_model import experiment, main, training
save, advance = training.Trainer.save, training.Trainer.advance
def slow(trainer):
    if experiment.rank() == 0:
        time.sleep(3)
    save(trainer)
def signalled(trainer):
    if trainer.step == 2 and experiment.rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return advance(trainer)
training.Trainer.save, training.Trainer.advance = slow, signalled
experiment.launch(main.main, sys.argv[1:])
"""


def test_ranks_that_stop_wait_for_the_last_checkpoint(one_rank, tmp_path):
    (tmp_path / "stop.py").write_text(SLOW_STOP)
    environment = {"DATA": str(one_rank.parent / "data"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        tmp_path / "stop.py",
    ]
    command += ["--mode", "train", "--config", "configs/edm.py:smoke", "--device", "cpu", *SMALL, *NONE]
    ended = subprocess.run(
        [*command, "--workdir", tmp_path / "run"], env=os.environ | environment, cwd=ROOT, capture_output=True
    )
    assert ended.returncode != 0 and checkpoint.steps(tmp_path / "run") == [2, 3], ended.stderr.decode()
    assert run_state.state_of(tmp_path / "run").name == "stopped"


def test_accumulated_gradients_are_those_of_the_whole_batch(one_rank, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(one_rank.parent / "data"))
    assert train(tmp_path / "run", *NONE, "--config.training.accumulate=4", config="configs/edm.py:smoke") == 0
    close(one_rank, tmp_path / "run")


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path, capsys):
    assert train(tmp_path / "run", "--config.training.accumulate=3") == 1
    assert "training.batch 16 is not divisible by 1 processes times training.accumulate 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # the folder is still free for the command as it should have been


def test_images_too_small_for_the_encoder_or_an_augmentation_are_refused(tmp_path, monkeypatch, capsys):
    """Batch-norm of one value a channel is refused; two images, or a model without an encoder, have no such need."""
    np.savez(tmp_path / "tiny.npz", images=np.random.default_rng(0).integers(0, 256, (20, 4, 4), np.uint8))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    data.prepare("tiny", tmp_path / "data", tmp_path / "tiny.npz")
    tiny = ("--config.data.name=tiny", "--config.model.multipliers=[1]", "--config.training.images=32")
    assert train(tmp_path / "run", *tiny, "--config.training.accumulate=16") == 1
    assert "choose training.batch of at least 32" in capsys.readouterr().err
    assert train(tmp_path / "run", *tiny, "--config.data.augmentation=simclr") == 1
    assert "augmentation simclr needs images of at least 8 pixels a side, these have 4" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train(tmp_path / "run", *tiny, "--config.training.accumulate=8", "--config.data.augmentation=flip") == 0
    alone = ("--config.training.accumulate=16", "--config.model.mode=none")
    assert train(tmp_path / "alone", *tiny, *alone, config="configs/edm.py:smoke") == 0


def test_mixup_and_augmentation_do_not_depend_on_how_a_batch_is_cut(whole, tmp_path, monkeypatch):
    """What the loss is given, an image a row: the same in one part and in four."""
    monkeypatch.setenv("DATA", str(whole.parent / "data"))
    config = experiment.load_config(
        "configs/drl.py:smoke", ["--config.training.mixup=True", "--config.data.augmentation=laplace_strong"]
    )
    split = data.open_split("synthetic16", "train")
    given = {}
    for parts in (1, 4):
        config.training.accumulate = parts
        record = main.describe_run(experiment.flatten(config), split)
        trainer, rows = training.Trainer(tmp_path / str(parts), record, split, torch.device("cpu")), []
        monkeypatch.setattr(
            trainer.model,
            "loss",
            lambda x0, draws, rows=rows, loss=trainer.model.loss: rows.append({"x0": x0, **draws}) or loss(x0, draws),
        )
        trainer.advance()
        given[parts] = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    assert {"x0", "other", "share", "level", "noise", "code_noise"} == given[1].keys()
    for name, values in given[1].items():
        assert torch.equal(values, given[4][name]), name
    assert not torch.equal(given[1]["x0"], given[1]["other"])


@pytest.mark.parametrize("mode", ["vae-l2", "ae-bce"])
def test_modes_that_reconstruct_show_pictures_of_it(whole, tmp_path, monkeypatch, capsys, mode):
    monkeypatch.setenv("DATA", str(whole.parent / "data"))
    run_folder = tmp_path / "run"
    assert train(run_folder, f"--config.model.mode={mode}", "--config.training.images=800") == 0
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    halves = [np.mean([line["reconstruction"] for line in part]) for part in (lines[:25], lines[25:])]
    assert halves[1] < halves[0] and ("kl" in lines[0]) == (mode == "vae-l2")
    assert [path.name for path in (run_folder / "samples").iterdir()] == ["step_00000050.png"]
    assert run("--mode", "sample", "--workdir", run_folder, "--n", 3, "--images", "test", "--batch", 2) == 0
    made = np.load(run_folder / "samples" / "reconstructions_test_n3.npy", allow_pickle=False)
    assert made.shape == (3, 3, 3, 16, 16) and made.dtype == np.uint8
    model, given = checkpoint.load_score_model(run_folder), data.open_split("synthetic16", "test").sample(3).images
    expected = sampling.reconstruct_images(model, given, (0.0, 0.5, 1.0), 3).astype(int)
    assert np.abs(expected - made).max() <= 1  # of a sample of the split, not of its first images
    assert run("--mode", "eval", "--workdir", run_folder) == 0
    assert "reconstruction" in arrays.read_json(run_folder / "eval.json")["loss"]


def test_another_configuration_is_refused_naming_the_fields(whole, capsys, monkeypatch):
    monkeypatch.setenv("DATA", str(whole.parent / "data"))
    assert train(whole, "--config.encoder.widen=0.125") == 1
    assert "encoder.widen: 0.0625 there, 0.125 now" in capsys.readouterr().err
    assert train(whole) == 0


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--config.encoder.widn=1", "has no field 'encoder.widn'; nearest: encoder.widen"),
        ("--config.seed=one", "expected a value of type int"),
        ("--config.model=none", "'model' is a section"),
        ("--config.data.augmentation=simcrl", "data.augmentation: 'simcrl' is not known; nearest: simclr"),
        ("--config.training.accumulate=0", "training.accumulate=0: expected from 1 to"),
        (
            "--config.training.precision=half",
            "training.precision: 'half' is not known; accepted: auto, bfloat16, float32",
        ),
        (
            "--config.training.compile=max",
            "training.compile: 'max' is not known; accepted: auto, default, graphs, none",
        ),
        ("--config.objective.lambda_z=-1", "objective.lambda_z=-1: expected None or a number of at least 0"),
        ("--config.sde.beta_min=30", "sde.beta_min=30.0: expected below sde.beta_max, 20.0"),
        ("--config.sde.name=vpp", "sde.name 'vpp' is not known; nearest: "),
        ("--config.training.batch=0", "expected from 1 to"),
        ("--config.optimiser.learning_rate=-1", "expected above 0"),
        ("--config.objective.weight=esm", "objective.weight: 'esm' is not known; nearest: edm, dsm"),
        ("--config.optimiser.beta1=2", "optimiser.beta1=2.0: expected at least 0 and below 1"),
        ("--config.encoder.widen=-1", "encoder.widen=-1.0: expected 0 or from 0.0625 to 64"),
        ("--config.model.features=7", "model.features=7: expected a multiple of 4"),
        ("--config.model.multipliers=[0,1]", "model.multipliers=[0, 1]: expected 1 to 8 integers from 1"),
        ("--config.model.unit=-1", "model.unit"),
        ("--config.sde.sigma_min=100", "sde.sigma_min=100.0: expected below sde.sigma_max, 50.0"),
        ("--config.logging.keep=0", "logging.keep=0: expected from 1 to"),
        ("--worker=3", "unknown argument --worker=3; nearest: --workdir"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(tmp_path, override, sentence, capsys):
    assert train(tmp_path / "run", override) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_other_images_under_the_name_of_the_run_s_are_refused(whole, tmp_path, monkeypatch, capsys):
    """Also of the same shape, where nothing else would tell."""
    other = np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16), np.uint8)
    for split in data.SPLITS:
        arrays.write_array(tmp_path / "data" / "synthetic16" / split / "images.npy", other)
        arrays.write_array(tmp_path / "data" / "synthetic16" / split / "labels.npy", np.zeros((20, 0), np.int64))
        arrays.seal_folder(
            tmp_path / "data" / "synthetic16" / split, data.KIND, ["images", "labels"], attributes={}, count=20,
            shape=[3, 16, 16], hash="another", source="",
        )  # fmt: skip
    options = ("--workdir", whole, "--data", tmp_path / "data", "--device", "cpu")
    for mode in (("eval",), ("sample", "--images", "test", "--n", "2", "--steps", "2")):
        assert run("--mode", *mode, *options) == 1
        assert "holds other images than the run was trained on (SHA-256 another, then" in capsys.readouterr().err
    assert not (whole / "eval.json").exists() and not (whole / "samples").exists()


def test_samples_from_either_split_lie_beside_each_other(whole, capsys, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    for split in data.SPLITS:
        options = (
            "--mode",
            "sample",
            "--workdir",
            tmp_path / "run",
            "--data",
            whole.parent / "data",
            "--device",
            "cpu",
        )
        assert run(*options, "--images", split, "--n", "2", "--steps", "2") == 0
    names = sorted(path.name for path in (tmp_path / "run" / "samples").glob("*.npy"))
    assert names == ["heun2_seed0_test_n2.npy", "heun2_seed0_train_n2.npy"]
    assert run(*options, "--steps", "1") == 2
    assert "--steps 1: expected at least 2" in capsys.readouterr().err


@pytest.mark.parametrize("variable", [{}, {"CXX": "/no/such/compiler"}])
def test_compiling_without_a_compiler_is_a_sentence(whole, tmp_path, monkeypatch, capsys, variable):
    monkeypatch.setenv("DATA", str(whole.parent / "data"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    assert train(tmp_path / "run", "--config.training.compile=default") == 1
    said = capsys.readouterr().err
    assert "training.compile default needs a C++ compiler: apt install g++, set CXX to one" in said
    assert "Traceback" not in said
    assert train(tmp_path / "run", "--config.training.images=16") == 0  # the same folder, not compiled


def test_mixup_without_an_encoder_is_refused(tmp_path, capsys):
    assert train(tmp_path / "run", "--config.model.mode=none", "--config.training.mixup=True") == 2
    assert "mixup mixes what the encoder sees, and model.mode none has no encoder" in capsys.readouterr().err


def test_a_mode_that_does_not_exist_names_its_neighbours(tmp_path, capsys):
    assert train(tmp_path / "run", "--config.model.mode=reg-dlr") == 2
    assert "model.mode: 'reg-dlr' is not known; nearest: reg-drl" in capsys.readouterr().err


def test_dry_run_prints_sizes_and_writes_nothing(tmp_path, capsys):
    assert train(tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().out
    for word in ("encoder.widen", "parameters", "memory, estimated", "disk, estimated", "steps"):
        assert word in said
    assert not (tmp_path / "run").exists()


def test_dry_run_needs_no_data_of_a_known_shape(tmp_path, capsys):
    arguments = ["--mode", "train", "--workdir", str(tmp_path / "run"), "--data", str(tmp_path / "data"), "--dry-run"]
    assert main.main([*arguments, "--config", "configs/drl.py:celeba"]) == 0
    said = capsys.readouterr().out
    assert "images (3, 64, 64); not prepared" in said and "h on one GPU" in said and not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no data set 'mine'"):
        main.main([*arguments, "--config", "configs/drl.py:celeba", "--config.data.name=mine"])


def test_samples_are_a_function_of_the_seed_whatever_the_batch(tmp_path, monkeypatch):
    """Start noise bit-equal, states equal to 1e-3 at batch 1 and 7, and seed 3 alone is image 3 of many."""
    shape = (3, 16, 16)
    together = experiment.sample_noise("start", range(7), shape)
    for seed in range(7):
        assert torch.equal(together[seed], experiment.sample_noise("start", [seed], shape)[0])
    assert train(tmp_path / "run", config="configs/edm.py:smoke") == 0
    model = checkpoint.load_score_model(tmp_path / "run")
    levels = samplers.edm_levels(5)
    states = {}
    for batch in (1, 7):
        pieces = []
        for start in range(0, 7, batch):
            x = levels[0].float() * together[start : start + batch]
            pieces.append(samplers.last(samplers.SAMPLERS["heun"][0](model.denoise, x, levels)))
        states[batch] = torch.cat(pieces)
    assert torch.allclose(states[1], states[7], atol=1e-3)
    assert np.array_equal(*(sampling.sample_images(model, seeds, "heun", levels, 4)[-1] for seeds in (range(4), [3])))


@pytest.mark.parametrize("mode", ["probabilistic-drl", "vae-l2"])
def test_the_batch_changes_an_evaluation_by_rounding_alone(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    folder, found = make_run(tmp_path / mode, make_data(tmp_path / "data", count=60), "configs/drl.py:smoke", mode), []
    for batch in (100, 5):
        assert run("--mode", "eval", "--workdir", folder, "--batch", batch, "--device", "cpu") == 0
        found.append(arrays.read_json(folder / "eval.json")["loss"])
    assert found[0].keys() == found[1].keys() and len(found[0]) == 2
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5), name


def test_a_run_is_not_made_shorter_than_it_is(whole, monkeypatch, capsys):
    """What it has seen it has seen: config.json goes on saying so."""
    monkeypatch.setenv("DATA", str(whole.parent / "data"))
    before, newest = (whole / "config.json").read_bytes(), checkpoint.steps(whole)[-1]
    assert train(whole, "--config.training.images=16") == 1
    told = capsys.readouterr().err
    assert f"has seen {newest * 16:,} images, more than training.images=16: a run can be made longer" in told
    assert (whole / "config.json").read_bytes() == before and run_state.state_of(whole).name == "finished"


def test_eval_and_sample_of_a_finished_run(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA", str(whole.parent / "data"))
    assert run("--mode", "eval", "--workdir", whole) == 0
    assert arrays.read_json(whole / "eval.json")["loss"].keys() == {"score", "l1"}
    assert run("--mode", "sample", "--workdir", whole, "--n", 4, "--steps", 2) == 2
    assert "pass --images train or --images test" in capsys.readouterr().err
    assert run("--mode", "sample", "--workdir", whole, "--n", 4, "--steps", 2, "--images", "test") == 0
    assert len(list((whole / "samples").glob("heun2*.npy"))) == 1
    assert run("--mode", "eval", "--workdir", tmp_path / "nothing") == 1
    assert "no run in" in capsys.readouterr().err


def test_published_weights_give_the_same_model_to_half_precision(whole, tmp_path, capsys):
    published = tmp_path / "small"
    assert run("--mode", "publish", "--workdir", whole) == 2
    assert run("--mode", "publish", "--workdir", whole, "--out", published) == 0
    assert sorted(path.name for path in published.iterdir()) == ["config.json", "weights.safetensors"]
    small, full = checkpoint.load_score_model(published), checkpoint.load_score_model(whole)
    assert small.step == full.step
    for name, tensor in full.state_dict().items():
        assert torch.allclose(small.state_dict()[name].float(), tensor.float(), rtol=1e-3, atol=1e-4), name
    assert run("--mode", "publish", "--workdir", whole, "--out", published) == 0  # the same once more
    before = (published / "weights.safetensors").read_bytes()
    (published / "weights.safetensors").write_bytes(before[:-1] + b"?")
    assert run("--mode", "publish", "--workdir", whole, "--out", published) == 1
    assert f"{published} holds another run or other files: remove it" in capsys.readouterr().err
    assert (published / "weights.safetensors").read_bytes() == before[:-1] + b"?"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".small")) == []
    shutil.rmtree(published)


def test_a_network_that_cannot_be_built_leaves_nothing(tmp_path, capsys):
    assert train(tmp_path / "run", "--config.model.multipliers=[1,2,2,2,2,2]") == 1
    assert "images of 16 pixels cannot be halved 5 times" in capsys.readouterr().err
    assert train(tmp_path / "run", "--config.model.multipliers=[1,18]") == 1
    assert "layers of 144 channels: expected a multiple of 4, and of 32 above 128" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_preset_of_a_study_configures_no_run(tmp_path, capsys):
    assert run("--mode", "train", "--config", "configs/study.py:smoke", "--workdir", tmp_path / "run") == 2
    assert "does not configure a run (it has no data.augmentation)" in capsys.readouterr().err


def test_publishing_into_a_run_is_refused(whole, capsys):
    before = (whole / "config.json").read_bytes()
    assert run("--mode", "publish", "--workdir", whole, "--out", whole) == 1
    assert "holds a run of its own" in capsys.readouterr().err
    assert (whole / "config.json").read_bytes() == before and not (whole / "weights.safetensors").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("compilation", ["none", "default", "graphs"])
def test_a_gpu_trains_with_resident_images_and_half_products_and_resumes(tmp_path, monkeypatch, compilation):
    """bfloat16 by default, every way of compiling; a run in two parts has the losses of one in a piece, to rounding."""
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    options = [*SMALL, "--config.optimiser.learning_rate=1e-5", f"--config.training.compile={compilation}"]

    def losses(name, device, *more):
        command = ["--mode", "train", "--config", "configs/drl.py:smoke", "--workdir", tmp_path / name]
        assert run(*command, "--device", device, *options, *more) == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["score"] for line in lines]

    whole = losses("gpu", "cuda")
    assert np.isfinite(whole).all() and "bfloat16" in (tmp_path / "gpu" / "log.txt").read_text()
    losses("parts", "cuda", "--config.training.images=64")
    assert np.allclose(losses("parts", "cuda"), whole, rtol=0.02)
