"""classify.py: cells and attention on disk, resuming, and one sentence for each mistake."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_folders import make_run

from diffusion_model import arrays, experiment, results, trajectories
from downstream_classification import accuracies, classify
from downstream_classification.stores import Store

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "--heads", "mlp", "transformer", "--granularity", "2", "--learning-rates", "1e-2", "3e-2", "--epochs", "2",
    "--seeds", "0", "1", "--batch", "16", "--mlp-width", "8", "--gru-width", "8", "--transformer-width", "8",
    "--transformer-feedforward", "8", "--device", "cpu", "--precision", "float32",
]  # fmt: skip
ATTRIBUTES = {"colour": 3, "shape": 2}


def write_store(run, source="encoder", times=(0.0, 0.5, 1.0), counts=(120, 60), dimension=4, change=None, told=None):
    """A store whose features tell the colour at every time; `change(z, labels)` edits a split before it is written."""
    for split, count in zip(("train", "test"), counts, strict=True):
        random = np.random.default_rng([count, len(source)])
        labels = np.stack([random.integers(0, classes, count) for classes in ATTRIBUTES.values()], axis=1)
        z = random.normal(size=(count, len(times), dimension)).astype(np.float32)
        z[:, :, :3] += 4 * np.eye(3, dtype=np.float32)[labels[:, 0]][:, None]
        if change:
            z, labels = change(z, labels)
        folder = run / "trajectories" / source / split
        writer = trajectories.Writer(folder, times, labels, ATTRIBUTES, dimension, **(told or {}).get(split, {}))
        for index, time in enumerate(times):
            writer.write(time, np.ascontiguousarray(z[:, index]))
    return run / "trajectories" / source


def fails(capsys, *argv, status=1):
    """The sentence on stderr of a command that exits with this status."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(classify.main, [str(word) for word in argv])
    told = capsys.readouterr().err
    assert stop.value.code == status, told
    assert told.startswith("error: ") and told.count("\n") == 1, told
    return told


def test_cells_and_attention_are_written_as_agreed(tmp_path):
    store = write_store(tmp_path / "run")
    assert classify.main([str(store), *SMALL]) == 0
    cells = results.read_cells(tmp_path / "run" / "classify")
    assert len(cells) == 2 * 2 * (3 + 1)  # attributes, seeds, times and all
    root = tmp_path / "run" / "classify" / "source=encoder" / "attribute=colour"
    assert (root / "head=mlp" / "times=0.5" / "seed=1.json").is_file()
    mixed = results.read_cell(root / "head=transformer" / "times=all2" / "seed=0.json")
    for cell in (*cells, mixed):
        hits = np.unpackbits(np.frombuffer(bytes.fromhex(cell.value["correct"]), np.uint8), count=cell.value["count"])
        assert hits.mean() == pytest.approx(cell.value["test"]) and cell.value["count"] == 60
        assert cell.protocol["chance"] == pytest.approx(1 / cell.protocol["classes"])
        assert 0 <= cell.value["validation"] <= 1 and cell.value["learning_rate"] in (1e-2, 3e-2)
    test = trajectories.Trajectories(store / "test")
    held, meta = arrays.read_folder(
        tmp_path / "run/attention/source=encoder/attribute=colour/times=all2/seed=0", "attention"
    )
    assert held["attention"].shape == (60, 4, 3) and meta["times"] == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(held["attention"].sum(-1), 1, atol=1e-5)
    assert np.array_equal(held["labels"], test.label("colour"))
    assert (meta["attribute"], meta["classes"], meta["head"]) == ("colour", 3, "transformer")
    easy = results.read_cell(root / "head=mlp" / "times=0" / "seed=0.json")
    assert easy.value["test"] > 0.8 and easy.protocol["majority"] < 0.6


def test_resuming_fills_what_is_missing_with_what_was_there(tmp_path, capsys):
    store = write_store(tmp_path / "run")
    command = [str(store), *SMALL]
    classify.main(command)
    cells = sorted((tmp_path / "run" / "classify").rglob("*.json"))
    before = {path: (path.stat().st_mtime_ns, path.read_text()) for path in cells}
    classify.main(command)
    assert "0 groups to do" in capsys.readouterr().out
    one = tmp_path / "run/classify/source=encoder/attribute=shape/head=mlp/times=0.5/seed=1.json"
    mixed = tmp_path / "run/classify/source=encoder/attribute=shape/head=transformer/times=all2/seed=0.json"
    one.unlink()
    mixed.unlink()
    (tmp_path / "run/attention/source=encoder/attribute=colour/times=all2/seed=1/meta.json").unlink()
    classify.main(command)
    assert "3 groups to do" in capsys.readouterr().out
    for path, (written, text) in before.items():
        assert path.read_text() == text
        assert (path.stat().st_mtime_ns == written) or path in (one, mixed) or "all2" in str(path)
    assert arrays.is_finished(tmp_path / "run/attention/source=encoder/attribute=colour/times=all2/seed=1")


def test_more_seeds_leave_the_old_cells(tmp_path):
    store = write_store(tmp_path / "run")
    classify.main([str(store), *SMALL, "--heads", "mlp"])
    classify.main([str(store), *SMALL, "--heads", "mlp", "--seeds", "0", "1", "2"])
    assert len(results.read_cells(tmp_path / "run" / "classify")) == 2 * 3 * 3


def test_heads_that_mix_have_rates_epochs_and_seeds_of_their_own(tmp_path):
    store = write_store(tmp_path / "run")
    own = ["--mixing-learning-rates", "3e-3", "--mixing-epochs", "1", "--mixing-seeds", "5"]
    classify.main([str(store), *SMALL, "--attributes", "colour", *own])
    cells = results.read_cells(tmp_path / "run" / "classify")
    found = {(cell.key["head"], cell.key["seed"], cell.protocol["epochs"], *cell.protocol["learning_rates"]) for cell in cells}  # fmt: skip
    assert found == {("mlp", 0, 2, 1e-2, 3e-2), ("mlp", 1, 2, 1e-2, 3e-2), ("transformer", 5, 1, 3e-3)}


def test_times_apart_from_the_granularity_and_the_linear_head(tmp_path):
    store = write_store(tmp_path / "run", times=(0.0, 0.25, 0.5, 1.0))
    classify.main([str(store), *SMALL, "--heads", "linear", "--times", "0.25", "--attributes", "colour"])
    keys = [cell.key for cell in results.read_cells(tmp_path / "run" / "classify")]
    assert [key["times"] for key in keys] == [0.25, 0.25] and {key["head"] for key in keys} == {"linear"}


def test_a_store_of_one_time_gets_the_heads_of_one_time(tmp_path, capsys):
    store = write_store(tmp_path / "run", "pixels", times=(0.0,))
    classify.main([str(store), *SMALL])
    assert "transformer left out" in capsys.readouterr().out
    assert {cell.key["head"] for cell in results.read_cells(tmp_path / "run" / "classify")} == {"mlp"}
    assert not (tmp_path / "run" / "attention").exists()


def test_the_command_line_itself_is_quiet_and_the_compiler_stays_out(tmp_path):
    """Run by path, this folder comes first on Python's path, where torch's compiler would take tabulate.py for a package."""
    store = write_store(tmp_path / "run")
    command = [sys.executable, str(ROOT / "downstream_classification" / "classify.py"), str(store), *SMALL]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--seeds", "0"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "colour             transformer  all2" in done.stdout


def test_another_protocol_or_another_store_is_refused(tmp_path, capsys):
    store = write_store(tmp_path / "run")
    classify.main([str(store), *SMALL, "--heads", "mlp"])
    told = fails(capsys, store, *SMALL, "--heads", "mlp", "--epochs", "3")
    assert "another protocol (epochs: 2 there, 3 now)" in told and "remove" in told
    other = write_store(tmp_path / "other", change=lambda z, labels: (z + 1, labels))
    (tmp_path / "run" / "trajectories").rename(tmp_path / "old")
    (other.parent).rename(tmp_path / "run" / "trajectories")
    assert "another protocol (store: " in fails(capsys, store, *SMALL, "--heads", "mlp")


def test_what_is_not_there_is_named(tmp_path, capsys):
    store = write_store(tmp_path / "run")
    assert "no attribute 'size'" in (told := fails(capsys, store, *SMALL, "--attributes", "size"))
    assert "colour, shape" in told
    assert "time 0.1 is not stored" in (told := fails(capsys, store, "--granularity", "10"))
    assert "stored: 0, 0.5, 1" in told
    assert "time 0.3 is not stored" in fails(capsys, store, *SMALL, "--times", "0.3")
    assert "representations.py" in fails(capsys, tmp_path / "run" / "trajectories" / "untrained", *SMALL)
    told = fails(capsys, tmp_path / "run", *SMALL, status=2)
    assert "expected RUN/trajectories/SOURCE; its stores: encoder" in told


@pytest.mark.parametrize(("option", "words"), [
    (("--heads", "mpl"), "'mpl' is not known; nearest: mlp"),
    (("--epochs", "0"), "--epochs 0: expected at least 1"),
    (("--mixing-epochs", "0"), "--mixing-epochs 0: expected at least 1"),
    (("--validation-fraction", "1.5"), "--validation-fraction 1.5: expected between 0 and 1"),
    (("--learning-rates", "-1"), "--learning-rates -1: expected above 0"),
    (("--mixing-learning-rates", "0"), "--mixing-learning-rates 0: expected above 0"),
    (("--dropout", "1"), "--dropout 1: expected at least 0 and below 1"),
    (("--transformer-width", "10"), "--transformer-width 10: expected a multiple of its 4 heads"),
    (("--granularity", "0"), "--granularity 0: expected at least 1"),
    (("--sed", "0"), "unknown argument --sed; nearest: --seeds"),
])  # fmt: skip
def test_a_wrong_option_or_value_is_a_sentence_with_status_2(tmp_path, capsys, option, words):
    assert words in fails(capsys, tmp_path, *option, status=2)


def test_a_store_that_cannot_be_classified_is_refused(tmp_path, capsys):
    one_class = write_store(tmp_path / "a", change=lambda z, labels: (z, labels * [1, 0]))
    assert "'shape' has one class only" in fails(capsys, one_class, *SMALL)
    outside = write_store(tmp_path / "b", change=lambda z, labels: (z, labels + np.array([1, 0])))
    assert "run from 1 to 3, expected 0 to 2" in fails(capsys, outside, *SMALL)
    few = write_store(tmp_path / "c", counts=(2, 60), change=lambda z, labels: (z, np.eye(len(labels), 2, dtype=int)))
    assert "2 images, fewer than the 3 classes of 'colour'" in fails(capsys, few, *SMALL)
    tiny = write_store(
        tmp_path / "d", counts=(4, 60), change=lambda z, labels: (z, np.arange(2 * len(z)).reshape(-1, 2) // 2 % 2)
    )
    assert "a validation fraction of 0.1 leaves 4 of 4 images" in fails(capsys, tiny, *SMALL, "--attributes", "shape")


def test_a_damaged_or_unfinished_store_is_refused(tmp_path, capsys):
    store = write_store(tmp_path / "a")
    path = store / "test" / "z_0.50000000.npy"
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    assert "was altered" in fails(capsys, store, *SMALL)

    store = write_store(tmp_path / "b")
    labels = np.array(trajectories.Trajectories(store / "train").labels)
    shutil.rmtree(store / "train")
    trajectories.Writer(store / "train", (0.0, 0.1, 0.5, 1.0), labels, ATTRIBUTES, 4)
    assert "still being written" in fails(capsys, store, *SMALL)

    store = write_store(tmp_path / "c")
    train = trajectories.Trajectories(store / "train")
    z = np.array(train.at(0.5))
    z[3, 2] = np.nan
    np.save(store / "train" / "z_0.50000000.npy", z)
    meta = arrays.read_json(store / "train" / "meta.json")
    meta["stored"]["0.50000000"]["crc32"] = arrays.file_checksum(store / "train" / "z_0.50000000.npy")
    arrays.write_json(store / "train" / "meta.json", meta)
    assert "not finite" in fails(capsys, store, *SMALL)


def test_train_and_test_must_be_of_one_kind(tmp_path, capsys):
    store = write_store(tmp_path / "a")
    other = write_store(tmp_path / "b", dimension=5)
    (store / "test").rename(tmp_path / "aside")
    (other / "test").rename(store / "test")
    assert "train and test differ in dimension (4 and 5)" in fails(capsys, store, *SMALL)
    store = write_store(tmp_path / "c")
    shutil.rmtree(store / "test")
    (write_store(tmp_path / "d", times=(0.1, 0.2)) / "test").rename(store / "test")
    assert "train and test differ in times ([0.0, 0.5, 1.0] and [0.1, 0.2])" in fails(capsys, store, *SMALL)


def test_a_fit_that_diverges_is_recorded_and_tried_again(tmp_path, capsys):
    store = write_store(tmp_path / "run")
    command = [str(store), *SMALL, "--heads", "mlp", "--seeds", "0", "--attributes", "colour", "--learning-rates"]
    assert classify.main([*command, "1e39"]) == 1
    assert "times=0.5/seed=0.json: every learning rate diverged" in capsys.readouterr().err
    assert classify.main([*command, "1e39", "1e-2"]) == 0
    cells = results.read_cells(tmp_path / "run" / "classify")
    assert len(cells) == 3 and all(list(cell.value["trials"]) == ["0.01"] for cell in cells)


def test_several_granularities_and_stores_at_once(tmp_path, capsys):
    stores = [
        write_store(tmp_path / "run", source, times=(0.0, 0.25, 0.5, 0.75, 1.0)) for source in ("block-a", "block-b")
    ]
    command = [*map(str, stores), *SMALL, "--attributes", "colour", "--seeds", "0", "--granularity", "1", "2", "4"]
    classify.main(command)
    keys = [cell.key for cell in results.read_cells(tmp_path / "run" / "classify")]
    for source in ("block-a", "block-b"):
        views = [key["times"] for key in keys if key["source"] == source]
        assert sorted(map(str, views)) == sorted(["0.0", "0.25", "0.5", "0.75", "1.0", "all1", "all2", "all4"])
    attention = tmp_path / "run/attention/source=block-a/attribute=colour/times=all4"
    meta = arrays.read_meta(attention / "seed=0", "attention", "")
    assert meta["times"] == [0.0, 0.25, 0.5, 0.75, 1.0]  # of the largest granularity
    capsys.readouterr()
    classify.main(command)
    assert capsys.readouterr().out.count("0 groups to do") == 2
    before = (attention / "seed=0" / "attention.npy").read_bytes()
    classify.main([*command[:-1], "2"])  # that of other times has a place of its own
    assert (attention / "seed=0" / "attention.npy").read_bytes() == before
    assert arrays.is_finished(attention.with_name("times=all2") / "seed=0")


def test_of_several_stores_the_first_head_chooses_where_the_others_are_fitted(tmp_path, capsys):
    def of_shape(z, labels):  # tells the shape in place of the colour
        z = z.copy()
        z[..., :3] += 4 * (np.eye(3)[labels[:, 1]] - np.eye(3)[labels[:, 0]])[:, None]
        return z, labels

    run = tmp_path / "run"
    stores = [
        write_store(run, "block-a"),
        write_store(run, "block-b", change=of_shape),
        write_store(run, "block-c", (0.0,)),
    ]
    command = [
        *map(str, stores),
        *SMALL,
        "--best-store",
        "--epochs",
        "5",
        "--heads",
        "mlp",
        "transformer",
        "transformer-one",
    ]
    assert classify.main(command) == 0
    keys = [cell.key for cell in results.read_cells(run / "classify")]
    single = {(key["source"], key["attribute"]) for key in keys if key["head"] == "mlp"}
    assert single == {(store.name, attribute) for store in stores for attribute in ATTRIBUTES}
    mixed = {(key["source"], key["attribute"]) for key in keys if key["head"] == "transformer"}
    assert mixed == {("block-a", "colour"), ("block-b", "shape")}
    for attribute, source in (("colour", "block-a"), ("shape", "block-b")):  # the control: at the best time alone
        ours = [score for score in accuracies.read([run]) if (score.attribute, score.source) == (attribute, source)]
        (control,) = (score for score in ours if score.method == "transformer-one")
        assert control.times == accuracies.best(score for score in ours if score.method == "mlp").times
    capsys.readouterr()
    assert classify.main(command) == 0
    told = capsys.readouterr().out
    assert told.count("0 groups to do") == 5 and "1 groups to do" not in told
    other = write_store(tmp_path / "other", "block-c")  # of another run, which has a best store of its own
    assert classify.main([*command[:1], str(other), *command[1:]]) == 0
    keys = [cell.key for cell in results.read_cells(tmp_path / "other" / "classify")]
    assert {key["attribute"] for key in keys if key["head"] == "transformer"} == {*ATTRIBUTES}
    capsys.readouterr()
    for wrong, words in (
        (("--heads", "gru", "mlp"), "gru is no head of one time"),
        (("--joint",), "--joint chooses for no attribute"),
    ):
        told = fails(capsys, *command, *wrong, status=2)
        assert "the first of --heads chooses the store" in told and words in told


def test_fewer_labels_are_nested_and_held_out_in_proportion(tmp_path):
    store = write_store(tmp_path / "run")
    command = [str(store), *SMALL, "--heads", "linear", "--attributes", "colour", "--times", "0.5"]
    classify.main([*command, "--labels", "20", "40"])
    classify.main(command)
    for seed in (0, 1):
        parts = {}
        for count in (20, 40, None):
            labels = f"labels={count}" if count else ""
            folder = tmp_path / "run/classify/source=encoder/attribute=colour/head=linear/times=0.5"
            cell = results.read_cell(folder / labels / f"seed={seed}.json")
            assert cell.key.get("labels") == count
            parts[count], meta = arrays.read_folder(tmp_path / "run/splits" / cell.protocol["split"], "split")
            assert (meta["seed"], meta["labels"], meta["fraction"]) == (seed, count, 0.1)
        assert [len(parts[count]["training"]) for count in parts] == [18, 36, 108]
        assert [len(parts[count]["validation"]) for count in parts] == [2, 4, 12]
        for part in ("training", "validation"):
            few, more, every = (set(parts[count][part].tolist()) for count in parts)
            assert few < more < every
        assert not set(parts[None]["training"].tolist()) & set(parts[None]["validation"].tolist())


@pytest.mark.parametrize(("labels", "words"), [
    ("2", "--labels 2: fewer than the 3 classes of 'colour'"), ("121", "--labels 121: the store has 120 labelled images"),
    ("4", "--labels 4: a validation fraction of 0.1 holds out 0 of them"), ("1", "--labels 1: expected at least 2"),
])  # fmt: skip
def test_numbers_of_labels_that_cannot_be(tmp_path, capsys, labels, words):
    store = write_store(tmp_path / "run")
    assert words in fails(capsys, store, *SMALL, "--attributes", "colour", "--labels", labels, status=2)


def test_attributes_together(tmp_path, capsys):
    store = write_store(tmp_path / "run", change=lambda z, labels: (z, labels))
    classify.main([str(store), *SMALL, "--joint", "--heads", "mlp", "vote-linear", "--epochs", "4"])
    cells = results.read_cells(tmp_path / "run" / "classify")
    assert {cell.key["joint"] for cell in cells} == {"all"} and len(cells) == 2 * 2 * (3 + 1)
    assert {cell.protocol["loss"] for cell in cells} == {"Several"}
    by_attribute = {
        name: [cell.value["test"] for cell in cells if cell.key["attribute"] == name and cell.key["head"] == "mlp"]
        for name in ATTRIBUTES
    }
    assert min(by_attribute["colour"]) > 0.7 > max(by_attribute["shape"])  # only the colour is in the features
    assert "--joint needs several attributes" in fails(
        capsys, store, *SMALL, "--joint", "--attributes", "shape", status=2
    )


def test_attributes_that_are_there_or_not_share_binary_cross_entropy(tmp_path):
    store = write_store(tmp_path / "run", change=lambda z, labels: (z, np.minimum(labels, 1)))
    for split in ("train", "test"):
        path = store / split / "meta.json"
        arrays.write_json(path, arrays.read_json(path) | {"attributes": {"colour": 2, "shape": 2}})
    classify.main([str(store), *SMALL, "--joint", "--heads", "linear", "--epochs", "20"])
    cells = results.read_cells(tmp_path / "run" / "classify")
    assert {cell.protocol["loss"] for cell in cells} == {"Binary"}
    assert all(cell.value["test"] > 0.9 for cell in cells if cell.key["attribute"] == "colour")


def test_what_is_hidden_stands_in_the_key(tmp_path, capsys):
    def only_at_half(z, labels):
        z[:, [0, 2]] = 0
        return z, labels

    store = write_store(tmp_path / "run", change=only_at_half)
    command = [str(store), *SMALL, "--attributes", "colour", "--seeds", "0", "--epochs", "10", "--heads"]
    classify.main([*command, "concat-linear", "mlp", "--hide", "0.5"])
    assert "mlp left out, what is hidden changes nothing" in capsys.readouterr().out
    classify.main([*command, "concat-linear", "transformer", "--keep", "0.5"])
    classify.main([*command, "transformer", "concat-linear", "--hide-cls"])
    cells = {
        (cell.key["head"], cell.key.get("hidden"), cell.key.get("kept"), cell.key.get("cls")): cell.value["test"]
        for cell in results.read_cells(tmp_path / "run" / "classify")
    }
    assert set(cells) == {("concat-linear", "0.5", None, None), ("concat-linear", None, 0.5, None),
                          ("transformer", None, 0.5, None), ("transformer", None, None, "hidden")}  # fmt: skip
    assert cells["concat-linear", "0.5", None, None] < 0.6 < 0.9 < cells["concat-linear", None, 0.5, None]
    held, _ = arrays.read_folder(
        tmp_path / "run/attention/source=encoder/attribute=colour/times=all2/kept=0.5/seed=0", "attention"
    )
    assert np.array_equal(held["attention"], np.broadcast_to([0, 1, 0], held["attention"].shape))
    capsys.readouterr()
    assert "time 0.3 is not among those that the head sees: 0, 0.5, 1" in fails(
        capsys, *command, "gru", "--hide", "0.3"
    )
    assert "every time is hidden" in fails(capsys, *command, "gru", "--hide", "0", "0.5", "1")
    assert "exclude each other" in fails(capsys, *command, "gru", "--hide", "0", "--keep", "1", status=2)


def test_a_cell_holds_every_learning_rate_and_its_own_choice(tmp_path):
    store = write_store(tmp_path / "run")
    classify.main([str(store), *SMALL, "--heads", "mlp"])
    for cell in results.read_cells(tmp_path / "run" / "classify"):
        trials = cell.value["trials"]
        assert list(trials) == ["0.01", "0.03"]
        own = max(trials, key=lambda rate: trials[rate]["validation"])
        assert cell.value["learning_rate"] == float(own)
        for name in ("validation", "test", "epoch", "correct"):
            assert cell.value[name] == trials[own][name]
        for trial in trials.values():
            hits = np.unpackbits(np.frombuffer(bytes.fromhex(trial["correct"]), np.uint8), count=cell.value["count"])
            assert hits.mean() == pytest.approx(trial["test"])


def test_a_store_of_other_images_is_refused(tmp_path, capsys):
    store = write_store(tmp_path / "a", told={"train": {"dataset": "mnist"}, "test": {"dataset": "cifar10"}})
    assert "train and test differ in dataset (mnist and cifar10)" in fails(capsys, store, *SMALL)
    store = write_store(tmp_path / "b", told={"train": {"split": "test"}, "test": {"split": "test"}})
    assert "holds the images of the split 'test'" in fails(capsys, store, *SMALL)
    run = make_run(tmp_path / "c", **{"data.name": "a"})
    store = write_store(run, told={split: {"dataset": "mnist"} for split in ("train", "test")})
    assert (
        "of another run: its dataset is mnist, that of" in (told := fails(capsys, store, *SMALL)) and " is a: " in told
    )
    store = write_store(tmp_path / "d", told={split: {"source": "untrained"} for split in ("train", "test")})
    assert "holds the images of the source 'untrained'" in fails(capsys, store, *SMALL)
    store = write_store(tmp_path / "e", told={"train": {"draws": 1}, "test": {"draws": 4}})
    assert "train and test differ in draws (1 and 4)" in fails(capsys, store, *SMALL)


def test_help_is_true(capsys):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(classify.main, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--heads", "--granularity", "--no-standardise", "default: 256"))


def test_joint_fits_of_other_attributes_have_other_names(tmp_path):
    write_store(tmp_path / "run")
    store = Store(tmp_path / "run" / "trajectories" / "encoder")
    lists = (["a+b", "c"], ["a", "b+c"], ["a", "b", "c"], ["a", "b"], ["a%2Bb", "c"])
    assert len({store._joint_name(names) for names in lists}) == len(lists)
    assert store._joint_name(["a", "b"]) == "a+b"
