"""tabulate.py: validation chooses the time, differences are paired, every accuracy stands beside its controls."""

import numpy as np
import pytest

from diffusion_model import arrays, experiment, figures, results
from downstream_classification import tabulate

COUNT = 400


def write_cells(run, source, accuracies, head="mlp", attribute="shape", seeds=(0, 1), validations=None, difficulty=None,
                **protocol):  # fmt: skip
    """One cell a time and seed; an image is right where its difficulty lies below the time's accuracy."""
    if difficulty is None:
        difficulty = (np.arange(COUNT) + 0.5) / COUNT
    for times, accuracy in accuracies.items():
        for seed in seeds:
            hits = difficulty < accuracy
            validation = (validations or accuracies)[times]
            key = {"source": source, "attribute": attribute, "head": head, "times": times, "seed": seed}
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
    assert "| shape | 20.0 | 80.0 [" in text and "t = 0.5 |" in text and "+40.0 [" in text


def test_the_best_time_is_chosen_by_validation_alone(tmp_path):
    run = study(tmp_path / "drl")
    write_cells(run, "encoder", {0.0: 0.5, 0.5: 0.8, 1.0: 0.6}, validations={0.0: 0.9, 0.5: 0.1, 1.0: 0.9})
    found = summary(tmp_path, run)["attributes"]["shape"]
    assert found["encoder"]["best_time"] == 0.0 and found["encoder"]["accuracy"] == pytest.approx(0.5)


def test_an_interval_is_the_normal_one_for_many_images():
    hits = (np.arange(2000) < 1200).astype(float)
    low, high = tabulate.interval(hits, "shape")
    deviation = (0.6 * 0.4 / 2000) ** 0.5
    assert low == pytest.approx(0.6 - 1.96 * deviation, abs=0.1 * deviation + 2e-3)
    assert high == pytest.approx(0.6 + 1.96 * deviation, abs=0.1 * deviation + 2e-3)
    assert tabulate.interval(hits, "shape") == (low, high)


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


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    out = ("--out", tmp_path / "tables")
    assert "run `python downstream_classification/classify.py" in fails(capsys, tmp_path / "nothing", *out)
    run = tmp_path / "untrained-only"
    write_cells(run, "untrained", {0.0: 0.4})
    assert "no results of the trained encoder" in fails(capsys, run, *out)
    run = study(tmp_path / "drl")
    assert "no results of 'linear'" in fails(capsys, run, *out, "--head", "linear", status=2)
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


def test_help_and_a_wrong_option(capsys):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(tabulate.main, ["--help"])
    assert stop.value.code == 0 and "--out" in capsys.readouterr().out
    assert "unknown argument --outt; nearest: --out" in fails(capsys, "run", "--outt", "x", status=2)
