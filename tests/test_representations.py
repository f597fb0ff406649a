"""Turning images into features: every source says what it must, and the stores are the same however they were made."""

import os
import shutil

import numpy as np
import pytest
import torch
from linear_world import make_data, make_run

from diffusion_model import (
    arrays,
    checkpoint,
    data,
    encoding,
    experiment,
    list_trajectories,
    locks,
    readouts,
    representations,
)
from diffusion_model.moments import Moments
from diffusion_model.trajectories import Trajectories, Writer, level_of
from downstream_classification import stores

OPTIONS = ("--granularities", 2, "--batch", 50, "--device", "cpu")
BLOCKS = ("block-down.8x8_block0", "block-middle_attention", "block-up.8x8_block1")


def call(command, *argv):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(command.main, [str(entry) for entry in argv])
    return stop.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two untrained runs, with an encoder and without, of 120 images with all sources encoded."""
    folder = tmp_path_factory.mktemp("encoded")
    split = make_data(folder / "data", count=150)
    drl, edm = make_run(folder / "drl", split, "configs/drl.py:smoke"), make_run(folder / "edm", split)
    there = ("--data", folder / "data", *OPTIONS)
    assert call(representations, drl, "--sources", "encoder", "untrained", "pixels", *BLOCKS, *there) == 0
    assert call(representations, edm, "--sources", "pca", *BLOCKS, "--components", 5, *there) == 0
    return folder


@pytest.fixture(autouse=True)
def its_data(made, monkeypatch):
    monkeypatch.setenv("DATA", str(made / "data"))


@pytest.fixture
def drl(made, tmp_path):
    """A copy of the run with an encoder, without its stores."""
    return make_run(tmp_path / "drl", data.open_split("dots", "train"), "configs/drl.py:smoke")


def store(run, source, split="test"):
    return Trajectories(run / "trajectories" / source / split)


def images():
    """Clean images of the test split in the model space of the runs."""
    return torch.from_numpy(np.array(data.open_split("dots", "test").images)).float() / 127.5 - 1


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_store_holds_what_the_encoder_says(made):
    held, model = store(made / "drl", "encoder"), checkpoint.load_score_model(made / "drl")
    assert held.times == [0.0, 0.5, 1.0] and np.array_equal(held.labels, data.open_split("dots", "test").labels)
    for time in held.times:
        assert np.allclose(held.at(time), model.encode(images(), torch.tensor(time)).mean.numpy(), atol=1e-5)


def test_controls_are_not_the_encoder(made):
    trained, untrained = store(made / "drl", "encoder"), store(made / "drl", "untrained")
    assert not np.allclose(trained.at(0.5), untrained.at(0.5), atol=1e-3)
    assert (untrained.meta["step"], trained.meta["step"]) == (0, 1)
    assert untrained.meta["weights"] != trained.meta["weights"]
    pixels = store(made / "drl", "pixels")
    assert pixels.times == [0.0] and np.allclose(pixels.at(0.0), images().flatten(1), atol=1e-6)


@pytest.mark.parametrize("run", ["drl", "edm"])
def test_activations_are_those_of_a_forward_hook_on_the_same_noised_image(made, run):
    model, seen = checkpoint.load_score_model(made / run), {}
    for name in BLOCKS:
        block = model.net.get_submodule(name.removeprefix("block-"))
        block.register_forward_hook(lambda module, inputs, output, name=name: seen.__setitem__(name, output))
    x0 = images()
    noise = experiment.sample_noise([readouts.NOISE, "test", 0], range(len(x0)), x0.shape[1:])
    for time in (0.0, 0.5, 1.0):
        level = torch.tensor(model.std * level_of(time))
        code = model.encode(x0, torch.tensor(time)).mean if run == "drl" else None
        model.denoise(x0 + level * noise, level, code)
        for name in BLOCKS:
            expected = seen[name].mean(dim=(2, 3)).numpy()
            assert np.allclose(
                store(made / run, name).at(time), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
            )


def test_activations_of_single_draws_average_and_pool(made, tmp_path):
    def encode(name, *options):
        run = make_run(tmp_path / name, data.open_split("dots", "train"))
        sources = ("--sources", BLOCKS[0], "--splits", "test", "--times", 0.3)
        assert call(representations, run, *OPTIONS, *sources, *options) == 0
        return store(run, BLOCKS[0]).at(0.3)

    model, split = checkpoint.load_score_model(made / "edm"), data.open_split("dots", "test")
    singles = []
    for draw in range(3):
        noise = readouts.noise_of("test", draw, range(len(split)), split.shape)
        level = torch.tensor(model.std * level_of(0.3))
        block = BLOCKS[0].removeprefix("block-")
        held = readouts.activations(model, images() + level * noise, level, None, [block], lambda h: h)
        singles.append(held[block].numpy())
    mean = np.mean(singles, axis=0)
    assert np.allclose(encode("one"), singles[0].mean((2, 3)), atol=1e-5)
    assert np.allclose(encode("three", "--draws", 3), mean.mean((2, 3)), atol=1e-5)
    whole = encode("whole", "--draws", 3, "--pooling", "none")
    assert np.allclose(whole, mean.reshape(len(mean), -1), atol=1e-5)


def test_the_noise_of_an_image_is_its_own():
    whole = readouts.noise_of("test", 0, range(10), (3, 8, 8))
    assert torch.equal(readouts.noise_of("test", 0, range(4, 7), (3, 8, 8)), whole[4:7])
    assert not torch.equal(readouts.noise_of("test", 1, range(10), (3, 8, 8)), whole)
    assert not torch.equal(readouts.noise_of("train", 0, range(10), (3, 8, 8)), whole)


def test_neither_batch_nor_order_changes_a_representation(made):
    model, split = checkpoint.load_score_model(made / "drl"), data.open_split("dots", "test")
    names = [name.removeprefix("block-") for name in BLOCKS]
    for readout in (readouts.Codes("encoder", model, torch.float32), readouts.Activations(names, model, torch.float32)):
        wanted = {0.5: list(readout.outputs)}
        with torch.inference_mode():
            whole = readout(readout.read(split, slice(0, 30)), wanted)
            readout.part = 7
            backwards = [readout(readout.read(split, slice(row, row + 10)), wanted) for row in (20, 10, 0)]
        for name, times in whole.items():
            pieces = torch.cat([part[name][0.5] for part in reversed(backwards)])
            assert torch.allclose(times[0.5], pieces, rtol=1e-5, atol=1e-5)
            assert np.allclose(store(made / "drl", name).at(0.5), times[0.5].numpy(), rtol=1e-5, atol=1e-5)


def test_principal_components_are_those_of_a_singular_value_decomposition(made):
    splits = (data.open_split("dots", name).images for name in data.SPLITS)
    train, test = (torch.from_numpy(np.array(held)).flatten(1).double() / 127.5 - 1 for held in splits)
    mean = train.mean(0)
    _, values, directions = torch.linalg.svd(train - mean, full_matrices=False)
    found = arrays.read_folder(made / "edm" / "moments" / "pca-5", readouts.COMPONENTS)[0]
    assert np.allclose(found["variances"], values[:5] ** 2 / (len(train) - 1), rtol=1e-9)
    for split, x in (("train", train), ("test", test)):
        expected = (x - mean) @ directions[:5].T
        z = store(made / "edm", "pca", split).at(0.0)
        assert np.allclose(np.abs(z), expected.abs(), atol=1e-5)  # a direction has no sign
    assert (found["directions"].max(axis=0) > -found["directions"].min(axis=0)).all()


def test_half_precision_is_rounded_single_precision(made, drl):
    assert call(representations, drl, *OPTIONS, "--dtype", "float16", "--splits", "test") == 0
    assert np.array_equal(store(drl, "encoder").at(0.5), store(made / "drl", "encoder").at(0.5).astype(np.float16))


def test_times_that_are_added_leave_the_others(drl):
    assert call(representations, drl, *OPTIONS) == 0
    before = {path: path.stat().st_mtime_ns for path in (drl / "trajectories").rglob("z_*.npy")}
    assert call(representations, drl, *OPTIONS, "--times", 0.5, 0.25) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert store(drl, "encoder").times == [0.0, 0.25, 0.5, 1.0]


class Killed(KeyboardInterrupt):
    """What ends an encoding between two of its writes."""


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_resuming_after_a_kill_in_the_middle_of_a_time_is_no_kill(made, drl, monkeypatch, writes):
    whole, put, seen = contents(made / "drl" / "trajectories" / "encoder"), Writer.put, []

    def dies(self, start, z):
        if len(seen) == writes:
            raise Killed
        seen.append(start)
        put(self, start, z)

    monkeypatch.setattr(Writer, "put", dies)
    assert call(representations, drl, *OPTIONS) == 130
    with pytest.raises((ValueError, FileNotFoundError), match="representations"):
        store(drl, "encoder", "train")
    again = []
    monkeypatch.setattr(Writer, "put", lambda self, start, z: (again.append(start), put(self, start, z)))
    assert call(representations, drl, *OPTIONS) == 0
    assert again == [start for start in (0, 50, 100) if start not in seen] + [0]  # what is left of train, then test
    assert contents(drl / "trajectories" / "encoder") == whole


@pytest.mark.parametrize(("writes", "split", "share"), [(1, "train", "42%"), (3, "test", "0%")])
def test_an_extension_that_is_killed_takes_no_time_away(made, drl, monkeypatch, capsys, writes, split, share):
    """While times are added and after a kill, in the first split or the second, what was whole is read as before."""
    times, (encoder, put, seen) = [0.0, 0.5, 1.0], (drl / "trajectories" / "encoder", Writer.put, [])
    shutil.copytree(made / "drl" / "trajectories" / "encoder", encoder)
    whole, more = contents(encoder / split), (*OPTIONS, "--granularities", 4)

    def dies(self, start, z):
        both = stores.Store(encoder)  # as another command opens it
        assert both.train.times == both.test.times == times
        if len(seen) == writes:
            raise Killed
        seen.append(start)
        put(self, start, z)

    monkeypatch.setattr(Writer, "put", dies)
    assert call(representations, drl, *more) == 130
    assert contents(encoder / split).items() >= whole.items() and store(drl, "encoder", split).times == times
    assert np.array_equal(store(drl, "encoder", split).select(), store(made / "drl", "encoder", split).select())
    capsys.readouterr()
    status, lines = listed(capsys, drl, "--verify")
    assert status == 0
    assert lines["encoder", split].endswith(f"whole, verified, 2 more times begun ({share} is there)")
    again = []
    monkeypatch.setattr(Writer, "put", lambda self, start, z: (again.append((start, *z)), put(self, start, z)))
    assert call(representations, drl, *more) == 0
    assert again == [(start, 0.25, 0.75) for start in (0, 50, 100, 0)[writes:]]
    assert store(drl, "encoder").times == store(drl, "encoder", "train").times == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_an_extension_is_what_its_command_asks_for(drl, monkeypatch):
    """One that was killed, of too many times for the disk perhaps, is not begun again by a command that asks for others."""
    assert call(representations, drl, *OPTIONS) == 0
    put = Writer.put

    def dies(self, start, z):
        if start:
            raise Killed
        put(self, start, z)

    monkeypatch.setattr(Writer, "put", dies)
    assert call(representations, drl, *OPTIONS, "--times", 0.1, 0.2) == 130
    monkeypatch.setattr(Writer, "put", put)
    assert call(representations, drl, *OPTIONS, "--times", 0.3) == 0
    assert store(drl, "encoder").times == store(drl, "encoder", "train").times == [0.0, 0.3, 0.5, 1.0]
    again = []
    monkeypatch.setattr(Writer, "put", lambda self, start, z: (again.append(start), put(self, start, z)))
    assert call(representations, drl, *OPTIONS, "--times", 0.1, 0.2) == 0
    assert again == [50, 100, 0]  # the rows from before the kill are believed still
    assert not list((drl / "trajectories").rglob(".rows.*")) and not list((drl / "trajectories").rglob(".*.part"))


def test_a_killed_encoding_goes_on_with_other_batches_and_more_times(made, drl, monkeypatch):
    put, seen = Writer.put, []

    def dies(self, start, z):
        if seen:
            raise Killed
        seen.append(start)
        put(self, start, z)

    monkeypatch.setattr(Writer, "put", dies)
    assert call(representations, drl, "--granularities", 1, "--batch", 50) == 130
    again = []
    monkeypatch.setattr(Writer, "put", lambda self, start, z: (again.append((start, sorted(z))), put(self, start, z)))
    assert call(representations, drl, "--granularities", 2, "--batch", 30, "--splits", "train") == 0
    assert again == [(start, [0.0, 1.0]) for start in (0, 30, 60, 90)] + [(30, [0.5]), (60, [0.5]), (90, [0.5])] or (
        again == [(30, [0.5]), (60, [0.5]), (90, [0.5])] + [(start, [0.0, 1.0]) for start in (0, 30, 60, 90)]
    )
    expected = store(made / "drl", "encoder", "train").select()
    assert np.allclose(store(drl, "encoder", "train").select(), expected, atol=1e-6)


def test_large_features_are_cut_into_small_batches(made, monkeypatch, tmp_path):
    split = data.open_split("dots", "test")
    written = Writer(tmp_path / "s", [0.0, 1.0], split.labels, split.attributes, 6, source="s")
    monkeypatch.setattr(encoding, "HELD", 4 * 12 * 10)
    (only,) = encoding.plan({"s": written}, {"s": 6}, len(split), 512)
    assert only.batches[0] == (0, 10) and only.wanted == {0.0: ["s"], 1.0: ["s"]}


def test_moments_lie_beside_the_trajectories(made):
    split = data.open_split("dots", "train")
    held = Moments.load(made / "drl" / "moments" / "images")
    flat = split.images.reshape(len(split), -1).astype(np.float64)
    assert held.count == len(split) and np.allclose(held.mean, flat.mean(0), atol=1e-9)
    z = Moments.load(made / "drl" / "moments" / "z_0.50000000")
    expected = np.cov(store(made / "drl", "encoder", "train").at(0.5).astype(np.float64), rowvar=False)
    assert np.allclose(z.covariance, expected, atol=1e-8)


def test_missing_moments_are_made_though_every_time_is_stored(drl):
    assert call(representations, drl, *OPTIONS) == 0
    before = contents(drl / "moments")
    for name in ("images", "z_0.50000000"):  # as if the command had been killed before their last file
        (drl / "moments" / name / "meta.json").unlink()
    assert call(representations, drl, *OPTIONS) == 0
    assert contents(drl / "moments") == before


def test_moments_are_made_anew_where_the_codes_are_others(drl):
    assert call(representations, drl, *OPTIONS) == 0
    before = contents(drl / "moments")
    shutil.rmtree(drl / "trajectories")
    assert call(representations, drl, *OPTIONS, "--limit", 20) == 0
    assert Moments.load(drl / "moments" / "z_0.50000000").count == 20
    shutil.rmtree(drl / "trajectories")
    assert call(representations, drl, *OPTIONS) == 0
    assert contents(drl / "moments") == before


def test_a_limit_draws_images_and_keeps_what_they_are(drl, made, capsys):
    """The rows are a sample's; labels, codes and the noise of blocks are those of the same images in the whole store."""
    assert call(representations, drl, "--sources", "encoder", BLOCKS[0], *OPTIONS, "--limit", 20) == 0
    rows = data.open_split("dots", "train").sample(20).rows
    assert not np.array_equal(np.sort(rows), np.arange(20))
    for source in ("encoder", BLOCKS[0]):
        few, whole = store(drl, source, "train"), store(made / "drl", source, "train")
        assert np.array_equal(few.labels, whole.labels[rows])
        assert np.allclose(few.at(0.5), whole.at(0.5)[rows], rtol=1e-4, atol=1e-5)
    assert call(representations, drl, "--sources", "encoder", "--times", 0.25, *OPTIONS[2:], "--limit", 20) == 0

    meta = (
        drl / "trajectories" / "encoder" / "train" / "meta.json"
    )  # a store of before took the first rows and did not say so
    arrays.write_json(meta, {name: value for name, value in arrays.read_json(meta).items() if name != "rows"})
    assert len(store(drl, "encoder", "train").at(0.5)) == 20
    capsys.readouterr()
    assert call(representations, drl, "--times", 0.75, *OPTIONS[2:], "--limit", 20) == 1
    told = "(rows: 'in the order of the split' there, 'drawn by a fixed seed from 120' now)"
    assert told in capsys.readouterr().err


def test_the_blocks_are_listed_with_their_shapes(made, capsys):
    assert call(representations, made / "edm", "--list-blocks") == 0
    lines = capsys.readouterr().out.split("\n")
    model = checkpoint.load_score_model(made / "edm")
    assert lines[0].split() == ["block-down.8x8_in", f"{model.config['model']['features']}x8x8"]
    assert {name.removeprefix("block-") for name in BLOCKS} <= set(readouts.block_shapes(model))


def test_bad_input_is_one_sentence(made, drl, tmp_path, capsys):
    def says(status, run, *argv):
        assert call(representations, run, *argv) == status
        return capsys.readouterr().err

    assert "has model.mode none and no encoder" in says(1, made / "edm")
    assert "--granularities 0: expected at least 1" in says(2, drl, "--granularities", 0)
    assert "--times 1.5: expected a time from 0 to 1" in says(2, drl, "--times", 1.5)
    assert "'block-middle' is not known; nearest: block-middle_block" in says(2, drl, "--sources", "block-middle")
    assert "no checkpoint at step 7 (stored: [1])" in says(1, drl, "--step", 7)
    assert "no run in" in says(1, tmp_path)
    assert "--components 120: dots has at most 119" in says(2, drl, "--sources", "pca", "--components", 120)
    decoder = make_run(tmp_path / "vae", data.open_split("dots", "train"), "configs/drl.py:smoke", "vae-l2")
    assert "has model.mode vae-l2: it reconstructs and has no score network" in says(1, decoder, "--sources", "blocks")
    there = ("--sources", BLOCKS[0], "--times", 0.5)
    assert "draws: 1 there, 2 now" in says(1, made / "edm", *there, "--draws", 2)
    assert "pooling: 'mean' there, 'none' now" in says(1, made / "edm", *there, "--pooling", "none")
    assert "count: 120 there, 20 now" in says(1, made / "edm", *there, "--limit", 20)


def test_other_weights_of_the_same_step_are_refused(drl, capsys):
    assert call(representations, drl, *OPTIONS) == 0
    record = checkpoint.read_run(drl)
    torch.manual_seed(1)
    state = checkpoint.build(record).state_dict()
    average = {name: tensor for name, tensor in state.items() if name.startswith("net.")}
    checkpoint.save(drl, 1, {"model": state, "average": average}, keep=1)
    assert call(representations, drl, *OPTIONS) == 1
    assert "holds trajectories of another origin (weights: " in capsys.readouterr().err


def test_a_diverged_run_is_a_sentence(drl, capsys):
    state = checkpoint.read(drl, 1, ["model", "average"])[0]
    state["model"]["encoder.stem.bias"][0] = float("nan")
    checkpoint.save(drl, 1, state, keep=1)
    assert call(representations, drl, *OPTIONS) == 1
    assert "are not finite: the run has diverged" in capsys.readouterr().err


def test_two_commands_on_one_run_are_refused(drl, capsys):
    with locks.held(drl / "trajectories", "encoded"):
        assert call(representations, drl, *OPTIONS) == 1
    assert f"is being encoded by process {os.getpid()} on " in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# What there is


def listed(capsys, *argv):
    status = call(list_trajectories, *argv)
    out = capsys.readouterr().out.strip().split("\n")
    return status, {tuple(line.split()[:2]): line for line in out[1:]}


def test_the_stores_of_a_run_are_listed(made, capsys):
    for options in ((), ("--verify",)):
        status, lines = listed(capsys, made / "drl", *options)
        assert status == 0 and len(lines) == 2 * 6
        assert "0.01 to 50" in lines["encoder", "train"] and "clean" in lines["pixels", "test"]
        assert all(line.endswith("whole, verified" if options else "whole") for line in lines.values())


def test_unfinished_and_old_stores_are_told(drl, capsys, monkeypatch):
    put, seen = Writer.put, []

    def dies(self, start, z):
        if seen:
            raise Killed
        seen.append(start)
        put(self, start, z)

    monkeypatch.setattr(Writer, "put", dies)
    assert call(representations, drl, *OPTIONS) == 130
    capsys.readouterr()
    status, lines = listed(capsys, drl)
    assert status == 0 and lines["encoder", "train"].endswith("unfinished, 42% is there")  # 50 of 120 rows
    monkeypatch.setattr(Writer, "put", put)
    assert call(representations, drl, *OPTIONS) == 0
    checkpoint.save(drl, 2, checkpoint.read(drl, 1, ["model", "average"])[0], keep=2)
    capsys.readouterr()
    status, lines = listed(capsys, drl)
    assert status == 0 and lines["encoder", "test"].endswith("whole, of step 1 (the run is at 2)")


def test_broken_stores_are_told(drl, capsys):
    assert call(representations, drl, *OPTIONS) == 0
    path = drl / "trajectories" / "encoder" / "train" / "z_0.50000000.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    assert listed(capsys, drl)[0] == 0
    status, lines = listed(capsys, drl, "--verify")
    assert status == 1 and "broken: " in lines["encoder", "train"] and "altered" in lines["encoder", "train"]
    path.unlink()
    meta = drl / "trajectories" / "encoder" / "test" / "meta.json"
    arrays.write_json(meta, arrays.read_json(meta) | {"dataset": "other"})
    status, lines = listed(capsys, drl)
    assert status == 1 and "is missing" in lines["encoder", "train"]
    assert "of another data set than the run" in lines["encoder", "test"]
    assert call(list_trajectories, drl / "trajectories") == 1
    assert "no run in" in capsys.readouterr().err


def test_no_stores_say_what_to_run(drl, capsys):
    assert call(list_trajectories, drl) == 1
    assert "no trajectories in" in (told := capsys.readouterr().err) and "representations.py" in told
