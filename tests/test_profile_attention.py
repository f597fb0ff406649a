"""profile_attention: means over images, heads and seeds; figures beside their numbers; what is refused."""

import json

import numpy as np
import pytest

from diffusion_model import arrays, experiment, figures
from qualitative_analysis import profile_attention

TIMES = [0.0, 0.5, 1.0]


def write_attention(run, attribute="shape", seed=0, times=TIMES, attention=None, classes=3, labels=None):
    """One attention folder as the classifier writes it."""
    draws = np.random.default_rng(seed)
    if attention is None:
        attention = draws.dirichlet(np.ones(len(times)), (30, 4))
    labels = np.arange(len(attention)) % 2 if labels is None else labels  # class 2 has no image
    folder = run / "attention" / "source=encoder" / f"attribute={attribute}" / f"seed={seed}"
    arrays.write_folder(
        folder, "attention", {"attention": attention.astype(np.float32), "labels": labels.astype(np.int64)},
        times=times, attribute=attribute, classes=classes, head="transformer", test=0.5,
    )  # fmt: skip
    return attention, labels


def refused(argv, capsys):
    """Status and sentence of a command that is refused."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(profile_attention.main, [str(entry) for entry in argv])
    return stop.value.code, capsys.readouterr().err


def test_profiles_are_means_over_images_heads_and_seeds(tmp_path, capsys):
    written = [write_attention(tmp_path, seed=seed) for seed in (0, 1, 10)]
    write_attention(tmp_path, attribute="colour")
    assert profile_attention.main([str(tmp_path)]) == 0
    assert "most attended time" in capsys.readouterr().out
    root = tmp_path / "attention"
    found = json.loads((root / "profile.json").read_text())["attributes"]
    expected = np.mean([attention.mean((0, 1)) for attention, _ in written], axis=0)
    assert found["shape"]["mean"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found["shape"]["seeds"] == [0, 1, 10] and found["colour"]["seeds"] == [0]
    assert sum(found["shape"]["mean"]) == pytest.approx(1, abs=1e-5)
    low, mean, high = (np.array(found["shape"][name]) for name in ("low", "mean", "high"))
    assert (low <= mean).all() and (mean <= high).all()

    table = figures.read_table(root / "profile.csv")
    assert len(table["mean"]) == 2 * len(TIMES) and (root / "profile.png").is_file()
    classes = figures.read_table(root / "profile_classes.csv")
    mine = [float(value) for name, label, value in zip(classes["attribute"], classes["class"], classes["mean"], strict=True)
            if (name, label) == ("shape", "1")]  # fmt: skip
    by_hand = np.mean([attention[labels == 1].mean((0, 1)) for attention, labels in written], axis=0)
    assert mine == pytest.approx(by_hand.tolist(), abs=1e-6)
    assert (root / "profile_classes.png").is_file()


def test_attention_over_few_times_is_found_below_its_attribute(tmp_path):
    folder = tmp_path / "attention" / "source=encoder" / "attribute=shape"
    for count in (2, 4):
        write_attention(tmp_path, times=list(np.linspace(0, 1, count + 1)))
        (folder / f"times=all{count}").mkdir()
        (folder / "seed=0").rename(folder / f"times=all{count}" / "seed=0")
    assert profile_attention.main([str(tmp_path)]) == 0
    assert len(arrays.read_json(tmp_path / "attention" / "profile.json")["attributes"]["shape"]["times"]) == 5


def test_only_the_attributes_asked_for(tmp_path):
    write_attention(tmp_path)
    write_attention(tmp_path, attribute="colour", times=[0.0, 1.0])
    assert profile_attention.main([str(tmp_path), "--attributes", "colour"]) == 0
    assert set(figures.read_table(tmp_path / "attention" / "profile.csv")["attribute"]) == {"colour"}


def test_sentences(tmp_path, capsys):
    status, sentence = refused([tmp_path], capsys)
    assert status == 1 and "no attention in" in sentence and "classify.py" in sentence
    write_attention(tmp_path)
    status, sentence = refused([tmp_path, "--attributes", "size"], capsys)
    assert status == 1 and "no attention for attribute 'size'" in sentence and "there is: shape" in sentence
    status, sentence = refused([tmp_path, "--attribute", "size"], capsys)
    assert status == 2 and "nearest: --attributes" in sentence
    write_attention(tmp_path, attribute="colour", times=[0.0, 1.0])
    status, sentence = refused([tmp_path], capsys)
    assert status == 1 and "colour: 2 times; shape: 3 times" in sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"attention": np.full((30, 4, 3), 0.5)}, "must be shares of 1"),
        ({"attention": np.full((30, 4, 3), np.nan)}, "must be shares of 1"),
        ({"attention": np.full((30, 4, 2), 0.5)}, r"expected \[N, H, 3\]"),
        ({"attention": np.full(30, 0.5)}, r"expected numbers \[N, H, T\]"),
        ({"classes": {"a": 1}}, "classes is .*, expected an integer: remove it and run .python"),
        ({"labels": np.arange(30)}, "labels run from 0 to 29, expected 0 to 2"),
        ({"classes": 4}, "has classes 4, the seeds before it 3"),
    ],
)
def test_bad_attention_is_refused(tmp_path, change, sentence):
    write_attention(tmp_path)
    write_attention(tmp_path, seed=1, **change)
    with pytest.raises(ValueError, match=sentence):
        profile_attention.main([str(tmp_path)])


def test_truncated_or_half_written_attention_is_refused(tmp_path, capsys):
    write_attention(tmp_path)
    folder = tmp_path / "attention" / "source=encoder" / "attribute=shape" / "seed=0"
    content = (folder / "attention.npy").read_bytes()
    (folder / "attention.npy").write_bytes(content[:-40])
    status, sentence = refused([tmp_path], capsys)
    assert status == 1 and "attention.npy" in sentence
    (folder / "meta.json").unlink()
    status, sentence = refused([tmp_path], capsys)
    assert status == 1 and "is not finished" in sentence and "classify.py" in sentence
