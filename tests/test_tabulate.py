"""tabulate.py: validation chooses the time, differences are paired, every accuracy stands beside its controls."""

import shutil

import numpy as np
import pytest
from run_folders import make_run

from diffusion_model import arrays, experiment, figures, results
from downstream_classification import accuracies, tabulate
from qualitative_analysis import claims

COUNT = 400


def write_cells(run, source, accuracies, head="mlp", attribute="shape", seeds=(0, 1), validations=None, difficulty=None,
                more=None, **protocol):  # fmt: skip
    """One cell a time and seed; an image is right where its difficulty lies below the time's accuracy. `more`: of the key."""
    if difficulty is None:
        difficulty = (np.arange(COUNT) + 0.5) / COUNT
    for times, accuracy in accuracies.items():
        for seed in seeds:
            hits = difficulty < accuracy
            validation = (validations or accuracies)[times]
            key = {"source": source, "attribute": attribute, "head": head, "times": times, **(more or {}), "seed": seed}
            value = {"validation": validation, "test": float(hits.mean()), "learning_rate": 1e-3, "epoch": 2,
                     "count": COUNT, "correct": np.packbits(hits).tobytes().hex()}  # fmt: skip
            decided = {"test_images": COUNT, "test_labels": "00", "standardise": True, "validation_fraction": 0.1, "chance": 0.2,
                       "majority": 0.25, "classes": 5, "dimension": 16, **protocol}  # fmt: skip
            results.write_cell(run / "classify", key, value, decided)


def study(run, attribute="shape"):
    """All sources, at known accuracies."""
    write_cells(run, "encoder", {0.0: 0.5, 0.5: 0.8, 1.0: 0.6}, attribute=attribute)
    write_cells(run, "encoder", {"all2": 0.9}, head="transformer", attribute=attribute)
    write_cells(run, "untrained", {0.0: 0.4, 0.5: 0.3, 1.0: 0.3}, attribute=attribute)
    write_cells(run, "pixels", {0.0: 0.7}, attribute=attribute)
    return run


def summary(tmp_path, run, *options):
    tabulate.main([str(run), "--out", str(tmp_path / "tables"), *options])
    return arrays.read_json(tmp_path / "tables" / f"accuracy_{run.name}.json")


def fails(capsys, *argv, status=1):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(tabulate.main, [str(word) for word in argv])
    told = capsys.readouterr().err
    assert stop.value.code == status, told
    assert told.startswith("error: ") and told.count("\n") == 1, told
    return told


def test_the_summary_gives_back_what_the_cells_hold(tmp_path):
    found = summary(tmp_path, study(tmp_path / "drl"))["attributes"]["shape"]
    assert (found["chance"], found["majority"]) == (0.2, 0.25)
    assert found["encoder"]["best_time"] == 0.5 and found["encoder"]["accuracy"] == pytest.approx(0.8)
    assert found["untrained"]["best_time"] == 0.0 and found["untrained"]["accuracy"] == pytest.approx(0.4)
    assert found["pixels"]["accuracy"] == pytest.approx(0.7)
    assert found["mixed"]["transformer"]["accuracy"] == pytest.approx(0.9)
    assert found["mixed"]["transformer"]["times"] == "all2"
    assert found["encoder_minus_untrained"]["difference"] == pytest.approx(0.4)
    assert found["mixed_minus_single"]["transformer"]["difference"] == pytest.approx(0.1)
    for entry in (found["encoder"], found["untrained"], found["pixels"], found["mixed"]["transformer"]):
        assert entry["low"] < entry["accuracy"] < entry["high"]


def test_the_figure_stands_beside_its_numbers(tmp_path):
    run = study(study(tmp_path / "drl"), attribute="colour")
    summary(tmp_path, run)
    table = figures.read_table(tmp_path / "tables" / "accuracy_drl.csv")
    assert len(table["test"]) == 2 * (3 + 1 + 3 + 1)
    assert (tmp_path / "tables" / "accuracy_drl.png").stat().st_size > 10_000
    text = (tmp_path / "tables" / "accuracy_drl.md").read_text()
    assert "| chance | 20.0 | 20.0 |" in text and "| trained encoder: mlp | 80.0 ± 0.0 at t = 0.5 |" in text
    assert "+40.0 [" in text and "| t = 1 | 60.0 ± 0.0 |" in text
    assert (tmp_path / "tables" / "accuracy_drl.tex").read_text().count("\\begin{table}") == 3


def test_the_best_time_is_chosen_by_validation_alone(tmp_path):
    run = study(tmp_path / "drl")
    write_cells(run, "encoder", {0.0: 0.5, 0.5: 0.8, 1.0: 0.6}, validations={0.0: 0.9, 0.5: 0.1, 1.0: 0.9})
    found = summary(tmp_path, run)["attributes"]["shape"]
    assert found["encoder"]["best_time"] == 0.0 and found["encoder"]["accuracy"] == pytest.approx(0.5)


def test_pairing_sharpens_a_difference_and_equal_sides_differ_by_nothing(tmp_path):
    run = tmp_path / "drl"
    write_cells(run, "encoder", {0.0: 0.55})
    write_cells(run, "untrained", {0.0: 0.5})
    paired = summary(tmp_path, run)["attributes"]["shape"]["encoder_minus_untrained"]
    shuffled = np.random.default_rng(0).permutation((np.arange(COUNT) + 0.5) / COUNT)
    write_cells(run, "untrained", {0.0: 0.5}, difficulty=shuffled)
    apart = summary(tmp_path, run)["attributes"]["shape"]["encoder_minus_untrained"]
    assert paired["difference"] == pytest.approx(apart["difference"]) == pytest.approx(0.05)
    assert paired["low"] > 0 > apart["low"]
    write_cells(run, "untrained", {0.0: 0.55})
    assert summary(tmp_path, run)["attributes"]["shape"]["encoder_minus_untrained"] == {
        "difference": 0.0,
        "low": 0.0,
        "high": 0.0,
    }


def test_controls_that_are_missing_are_named_and_left_out(tmp_path, capsys):
    run = tmp_path / "drl"
    write_cells(run, "encoder", {0.0: 0.5, 1.0: 0.6})
    found = summary(tmp_path, run)["attributes"]["shape"]
    assert "encoder_minus_untrained" not in found and found["mixed"] == {}
    told = capsys.readouterr().out
    assert "no results for untrained encoder: run classify.py" in told and "no results for pixels" in told


def test_seeds_that_some_times_lack_are_left_out_aloud(tmp_path, capsys):
    run = study(tmp_path / "drl")
    write_cells(run, "encoder", {0.5: 0.8}, seeds=(7,))
    assert summary(tmp_path, run)["attributes"]["shape"]["encoder"]["seeds"] == [0, 1]
    assert "seeds [7] are not finished at every time and left out" in capsys.readouterr().out


def test_fits_of_two_protocols_are_not_averaged(tmp_path, capsys):
    runs = [make_run(tmp_path / f"drl-{seed}", seed=seed) for seed in (0, 1)]
    for run, epochs in zip(runs, (1, 100), strict=True):
        write_cells(run, "encoder", {0.0: 0.5, 1.0: 0.6}, epochs=epochs)
    assert "differ in epochs and cannot be compared" in fails(capsys, *runs, "--out", tmp_path / "tables")
    run = tmp_path / "images"
    write_cells(run, "encoder", {0.0: 0.5}, train_images=100)
    write_cells(run, "pixels", {0.0: 0.5}, train_images=200)
    assert "differ in train_images and cannot be compared" in fails(capsys, run, "--out", tmp_path / "tables")


def test_hits_that_were_cut_are_refused(tmp_path, capsys):
    run = tmp_path / "run"
    write_cells(run, "encoder", {0.0: 0.5}, seeds=(0,))
    (path,) = (run / "classify").rglob("*.json")
    cell = arrays.read_json(path)
    cell["value"]["correct"] = cell["value"]["correct"][:10]
    arrays.write_json(path, cell)
    assert "holds hits of 40 test images, expected 400" in fails(capsys, run, "--out", tmp_path / "tables")


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    out = ("--out", tmp_path / "tables")
    assert "run `python downstream_classification/classify.py" in fails(capsys, tmp_path / "nothing", *out)
    run = study(tmp_path / "drl")
    assert "no results of 'linear'" in fails(capsys, run, *out, "--head", "linear", status=2)
    shutil.rmtree(run / "classify" / "source=pixels")
    write_cells(run, "pixels", {0.0: 0.7}, standardise=False)
    assert "differ in standardise and cannot be compared" in fails(capsys, run, *out)
    run = tmp_path / "split"
    write_cells(run, "encoder", {0.0: 0.4}, seeds=(0,))
    write_cells(run, "encoder", {1.0: 0.4}, seeds=(1,))
    assert "no seed of encoder, shape, mlp is finished at every time" in fails(capsys, run, *out)


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("key", {"times": None}, "key.times is null, expected a number or a string"),
        ("key", {"seed": [0]}, "key.seed is [0], expected an integer"),
        ("value", {"correct": 7}, "value.correct is 7, expected a string"),
        ("value", {"validation": "best"}, 'value.validation is "best", expected a number'),
        ("protocol", {"chance": {}}, "protocol.chance is {}, expected a number"),
    ],
)
def test_a_cell_of_another_type_is_a_sentence(tmp_path, capsys, part, change, sentence):
    run = study(tmp_path / "drl")
    path = next((run / "classify").rglob("seed=0.json"))
    content = arrays.read_json(path)
    arrays.write_json(path, content | {part: content[part] | change})
    assert f"{path}: {sentence}: remove it and run" in fails(capsys, run, "--out", tmp_path / "tables")


def write_trials(run, seed, trials, times=0.0):
    """A cell that holds every learning rate: {rate: (validation, test accuracy)}; its own choice is the best of them."""
    difficulty = (np.arange(COUNT) + 0.5) / COUNT
    held = {
        rate: {"validation": validation, "epoch": 1, "correct": np.packbits(difficulty < test).tobytes().hex()}
        for rate, (validation, test) in trials.items()
    }
    own = max(held, key=lambda rate: held[rate]["validation"])
    value = {"validation": held[own]["validation"], "test": trials[own][1], "learning_rate": float(own), "epoch": 1,
             "count": COUNT, "correct": held[own]["correct"], "trials": held}  # fmt: skip
    key = {"source": "encoder", "attribute": "shape", "head": "mlp", "times": times, "seed": seed}
    protocol = {"test_images": COUNT, "test_labels": "00", "standardise": True, "validation_fraction": 0.1, "chance": 0.2,
                "majority": 0.25, "classes": 5, "dimension": 16}  # fmt: skip
    results.write_cell(run / "classify", key, value, protocol)


def test_the_learning_rate_is_the_one_of_the_best_mean_validation_over_the_seeds(tmp_path):
    run = tmp_path / "drl"
    write_trials(run, 0, {"0.001": (0.9, 0.3), "0.0001": (0.8, 0.6)})
    write_trials(run, 1, {"0.001": (0.4, 0.9), "0.0001": (0.8, 0.7)})
    (score,) = accuracies.read([run])
    assert score.validation == pytest.approx(0.8)
    assert score.tests[0] == pytest.approx([0.6, 0.7])
    write_trials(run, 1, {"0.001": (0.8, 0.9)})  # the other rate diverged for this seed
    (score,) = accuracies.read([run])
    assert score.tests[0] == pytest.approx([0.3, 0.9])


def test_block_and_time_are_chosen_by_validation_together(tmp_path):
    run = tmp_path / "edm"
    write_cells(run, "block-down.0", {0.0: 0.3, 1.0: 0.9}, validations={0.0: 0.3, 1.0: 0.2})
    write_cells(run, "block-up.0", {0.0: 0.5, 1.0: 0.6}, validations={0.0: 0.8, 1.0: 0.7})
    write_cells(run, "block-up.0", {"all1": 0.7}, head="gru", validations={"all1": 0.8})
    write_cells(run, "block-down.0", {"all1": 0.9}, head="gru", validations={"all1": 0.7})
    found = summary(tmp_path, run)
    assert found["source"] == "blocks"
    blocks = found["attributes"]["shape"]["blocks"]
    assert (blocks["source"], blocks["best_time"], blocks["accuracy"]) == ("block-up.0", 0.0, 0.5)
    gain = found["attributes"]["shape"]["mixed_minus_single"]["gru"]
    assert gain["difference"] == pytest.approx(0.2)
    assert "| block-down.0 | 30.0 ± 0.0 at t = 0 |" in (tmp_path / "tables/accuracy_edm.md").read_text()
    drawn = figures.read_table(tmp_path / "tables/blocks_edm.csv")
    assert list(zip(drawn["source"], drawn["times"], map(float, drawn["test"]), strict=True)) == [
        ("block-down.0", "0", 0.3), ("block-up.0", "0", 0.5), ("block-down.0", "1", 0.9), ("block-up.0", "1", 0.6)
    ]  # fmt: skip


def test_the_map_of_blocks_is_of_the_head_that_most_of_them_have(tmp_path):
    run = tmp_path / "edm"
    for block, accuracy in (("block-down.0", 0.4), ("block-up.0", 0.5)):
        write_cells(run, block, {0.0: accuracy, 1.0: 0.3}, head="linear")
    write_cells(run, "block-up.0", {0.0: 0.6, 1.0: 0.5})
    summary(tmp_path, run)
    drawn = figures.read_table(tmp_path / "tables/blocks_edm.csv")
    assert set(drawn["head"]) == {"linear"} and sorted(map(float, drawn["test"])) == [0.3, 0.3, 0.4, 0.5]
    text = (tmp_path / "tables/accuracy_edm.md").read_text()
    assert "mlp at single times" in text and "| t = 0 | 60.0" in text
    assert "linear at single times" in text and "| block-down.0 | 40.0 ± 0.0 at t = 0 |" in text


def test_blocks_stand_in_the_order_of_the_network():
    order = ["block-down.16x16_in", "block-down.16x16_block0", "block-down.8x8_down", "block-down.8x8_pyramid",
             "block-down.8x8_block0", "block-middle_block0", "block-middle_attention", "block-middle_block1", "block-up.8x8_block0",
             "block-up.16x16_up", "block-up.16x16_block0", "block-other"]  # fmt: skip
    assert sorted(sorted(order), key=accuracies.in_network_order) == order


def test_a_run_without_an_encoder_claims_nothing_of_it(tmp_path):
    study(tmp_path / "drl")
    write_cells(tmp_path / "edm", "block-a", {0.0: 0.3})
    for name in ("drl", "edm"):
        summary(tmp_path, tmp_path / name)
    assert claims.encoder_learns(tmp_path).holds
    (tmp_path / "tables/accuracy_drl.json").unlink()
    alone = claims.encoder_learns(tmp_path)
    assert not alone.holds and "is of an encoder: run" in alone.failures[0]


def test_runs_of_several_seeds_are_encoders_of_one_setting(tmp_path):
    runs = []
    for seed, accuracy in enumerate((0.4, 0.5, 0.6)):
        run = make_run(tmp_path / f"drl_{seed}", seed=seed)
        write_cells(run, "encoder", {0.0: accuracy, 1.0: 0.2})
        write_cells(run, "encoder", {"all1": accuracy + 0.1}, head="gru")
        runs.append(str(run))
    tabulate.main([*runs, "--out", str(tmp_path)])
    found = arrays.read_json(tmp_path / "accuracy_drl.json")["attributes"]["shape"]
    single, gain = found["encoder"], found["mixed_minus_single"]["gru"]
    assert (single["encoders"], single["accuracy"], single["deviation"]) == (3, pytest.approx(0.5), pytest.approx(0.1))
    assert single["high"] - single["low"] > 0.15  # over the encoders; of one encoder and as many images it is 0.1
    assert gain["difference"] == pytest.approx(0.1) and 0.05 < gain["low"] < 0.1 < gain["high"] < 0.15
    assert "50.0 ± 10.0 at t = 0" in (tmp_path / "accuracy_drl.md").read_text()


def test_a_head_in_the_table_has_the_mean_of_its_cells(tmp_path):
    run = study(tmp_path / "drl")
    for seed, accuracy in enumerate((0.61, 0.64)):
        write_cells(run, "encoder", {"all2": accuracy}, head="weights-linear", seeds=(seed,))
    summary(tmp_path, run)
    cells = results.read_cells(run / "classify/source=encoder/attribute=shape/head=weights-linear")
    mean = np.mean([cell.value["test"] for cell in cells])
    table = figures.read_table(tmp_path / "tables/accuracy_drl_table.csv")
    row = table["head"].index("weights-linear")
    assert float(table["accuracy"][row]) == pytest.approx(mean)
    assert float(table["minus_single_difference"][row]) == pytest.approx(mean - 0.8)
    text = (tmp_path / "tables/accuracy_drl.md").read_text()
    assert f"| trained encoder: weights-linear | {100 * mean:.1f} ± " in text


def test_a_head_that_mixes_is_compared_with_a_single_time_of_its_own_read_out(tmp_path):
    run = study(tmp_path / "drl")
    write_cells(run, "encoder", {0.0: 0.3, 0.5: 0.4}, head="linear")
    write_cells(run, "encoder", {"all2": 0.6}, head="vote-linear")
    write_cells(run, "encoder", {0.0: 0.85}, head="transformer-one")
    found = summary(tmp_path, run, "--head", "mlp")["attributes"]["shape"]["sources"]["encoder"]
    gains = {method: (gain["head"], gain["difference"]) for method, gain in found["minus_alike"].items()}
    assert gains == {
        "vote-linear": ("linear", pytest.approx(0.2)),
        "transformer": ("transformer-one", pytest.approx(0.05)),
    }
    assert found["minus_single"]["vote-linear"]["difference"] == pytest.approx(-0.2)
    assert "| trained encoder: vote-linear, minus linear | +20.0 [" in (tmp_path / "tables/accuracy_drl.md").read_text()


def test_the_best_single_time_is_that_of_every_head_and_mixing_gets_one_verdict(tmp_path, capsys):
    run = study(tmp_path / "drl")
    write_cells(run, "encoder", {0.0: 0.3, 0.5: 0.95}, head="linear", validations={0.0: 0.3, 0.5: 0.9})
    write_cells(run, "encoder", {"all2": 0.99}, head="gru", validations={"all2": 0.5})  # validation cannot see it
    found = summary(tmp_path, run)["attributes"]["shape"]
    assert (found["encoder"]["head"], found["encoder"]["best_time"], found["best_mixed"]) == (
        "linear",
        0.5,
        "transformer",
    )
    assert found["mixed_minus_single"]["transformer"]["difference"] == pytest.approx(-0.05)
    assert found["untrained"]["head"] == "mlp"
    text = (tmp_path / "tables/accuracy_drl.md").read_text()
    assert "| trained encoder: best single time | linear at t = 0.5 |" in text
    told = capsys.readouterr().out
    assert "shape: transformer 90.0 +- 0.0 at k = 2, best single time 95.0 +- 0.0 at t = 0.5 (linear): -5.0 [" in told
    assert told.count(" points, mixing hurts") + told.count(" points, no difference can be told") == 1


def test_a_single_time_is_no_mixture(tmp_path):
    run = study(tmp_path / "drl")
    write_cells(run, "encoder", {"all1": 0.95}, head="transformer")
    write_cells(run, "encoder", {"all1": 0.7}, head="gru")
    mixed = summary(tmp_path, run)["attributes"]["shape"]["mixed"]
    assert {method: entry["times"] for method, entry in mixed.items()} == {"transformer": "all2", "gru": "all1"}


def test_curves_against_granularity_and_labels(tmp_path):
    run = study(tmp_path / "drl")
    write_cells(run, "encoder", {"all1": 0.7, "all4": 0.95}, head="transformer")
    for count, accuracy in ((100, 0.3), (500, 0.4)):
        write_cells(run, "encoder", {0.0: accuracy, 0.5: 0.2}, more={"labels": count}, train_images=3000)
        write_cells(run, "encoder", {"all2": accuracy + 0.1}, head="transformer", more={"labels": count})
    assert summary(tmp_path, run)["attributes"]["shape"]["encoder"]["accuracy"] == pytest.approx(0.8)
    drawn = figures.read_table(tmp_path / "tables/granularity_drl.csv")
    found = {(head, x): float(test) for head, x, test in zip(drawn["head"], drawn["x"], drawn["test"], strict=True)}
    assert found == {("mlp", "1"): 0.8, ("mlp", "2"): 0.8, ("mlp", "4"): 0.8, ("transformer", "1"): 0.7,
                     ("transformer", "2"): 0.9, ("transformer", "4"): 0.95}  # fmt: skip
    drawn = figures.read_table(tmp_path / "tables/labels_drl.csv")
    rows = zip(drawn["head"], drawn["labels"], drawn["test"], strict=True)
    found = {(head, count): float(test) for head, count, test in rows}
    assert found == {("mlp", "100"): 0.3, ("mlp", "500"): 0.4, ("mlp", ""): 0.8, ("transformer", "100"): 0.4,
                     ("transformer", "500"): 0.5, ("transformer", ""): 0.95}  # fmt: skip


def test_settings_stand_side_by_side(tmp_path):
    runs = []
    for mode in ("reg-drl", "probabilistic-drl"):
        for widen in (1.0, 2.0):
            run = make_run(tmp_path / f"{mode}{widen}", **{"model.mode": mode, "encoder.widen": widen})
            write_cells(run, "encoder", {0.0: 0.5, 1.0: 0.4 + 0.1 * widen}, dimension=int(64 * widen))
            write_cells(run, "encoder", {"all1": 0.8}, head="gru", dimension=int(64 * widen))
            runs.append(str(run))
    tabulate.main([*runs, "--out", str(tmp_path), "--name", "all"])
    latent = figures.read_table(tmp_path / "latent_all.csv")
    assert sorted(set(latent["panel"])) == ["probabilistic-drl, shape", "reg-drl, shape"]
    found = {(head, x): float(test) for head, x, test in zip(latent["head"], latent["x"], latent["test"], strict=True)}
    assert found == {("mlp", "64"): 0.5, ("mlp", "128"): 0.6, ("gru", "64"): 0.8, ("gru", "128"): 0.8}
    modes = figures.read_table(tmp_path / "modes_all.csv")
    assert len(set(modes["panel"])) == 4 and len(modes["test"]) == 4 * 3
    text = (tmp_path / "comparison_all.md").read_text()
    assert "| gru | +30.0 [" in text and "probabilistic-drl, widen 2" in text
    rows = figures.read_table(tmp_path / "comparison_all.csv")
    assert len(rows["setting"]) == 4 * 2


def test_what_was_hidden_makes_another_head_and_joint_fits_stand_apart(tmp_path, capsys):
    run = study(tmp_path / "drl")
    write_cells(run, "encoder", {"all2": 0.6}, head="transformer", more={"cls": "hidden", "hidden": "0.5"})
    mixed = summary(tmp_path, run)["attributes"]["shape"]["mixed"]
    assert mixed["transformer (t = 0.5 hidden; CLS hidden)"]["accuracy"] == pytest.approx(0.6)
    write_cells(run, "encoder", {0.0: 0.1}, more={"joint": "all"})
    assert summary(tmp_path, run)["attributes"]["shape"]["encoder"]["accuracy"] == pytest.approx(0.8)
    assert summary(tmp_path, run, "--joint", "all")["attributes"]["shape"]["encoder"]["accuracy"] == pytest.approx(0.1)
    assert "no joint fit 'a'" in fails(capsys, run, "--joint", "a", "--out", tmp_path)
    assert "no results of attribute 'size'" in fails(capsys, run, "--attributes", "size", "--out", tmp_path)


def test_help_and_a_wrong_option(capsys):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(tabulate.main, ["--help"])
    assert stop.value.code == 0 and "--out" in capsys.readouterr().out
    assert "unknown argument --outt; nearest: --out" in fails(capsys, "run", "--outt", "x", status=2)
