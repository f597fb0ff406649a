"""write_report: one page that needs nothing else, three claims, and what is missing named with its remedy."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from diffusion_model import arrays, experiment, figures
from qualitative_analysis import claims, page, write_report

LEVELS = [0.1, 0.5, 1.0, 5.0, 20.0, 80.0]


def difference(low=0.1):
    """A paired difference with an interval."""
    return {"difference": low + 0.05, "low": low, "high": low + 0.1}


def accuracy_summary(**changes):
    """What tabulate.py writes, for two claimed attributes and one more."""
    one = {"accuracy": 0.8, "low": 0.75, "high": 0.85, "best_time": 0.3}
    entry = {"chance": 0.1, "encoder": one, "untrained": one, "pixels": one, "mixed": {"transformer": one},
             "mixed_minus_single": {"transformer": difference(-0.1)},
             "encoder_minus_untrained": difference()}  # fmt: skip
    attributes = {name: entry | changes.get(name, {}) for name in ("foreground", "location", "shape")}
    return {
        "kind": "accuracy summary",
        "attributes": attributes,
        "protocol": {"test_images": 600},
        "command": "python tabulate.py runs/drl",
    }


def scores_summary(gaussian=(0.9, 0.5, 0.3, 0.1, 0.02, 0.001)):
    """What plot_scores.py writes."""

    def around(values):
        return {
            "mean": list(values),
            "low": [0.95 * entry for entry in values],
            "high": [1.05 * entry for entry in values],
        }

    isotropic = (0.95, 0.9, 0.8, 0.3, 0.1, 0.01)
    explained = {name: around([0.9] * len(LEVELS)) for name in ("gaussian", "isotropic")}
    return {"levels": LEVELS, "relative_error": {"gaussian": around(gaussian), "isotropic": around(isotropic)},
            "explained_variance": explained, "protocol": {"n": 64, "split": "test"}}  # fmt: skip


def sweep_summary(recommended=(4, 10.0, 9.0, 11.0), largest=(12, 40.0, 38.0, 42.0)):
    """What process_experiments_with_skips.py writes."""
    names = ("skip", "distance", "low", "high")
    return {"distance": "Frechet distance", "features": "classifier", "n": 100, "margin": 0.01, "jump": "gaussian",
            "recommended": dict(zip(names, recommended, strict=True)), "largest": dict(zip(names, largest, strict=True)),
            "floor": {"distance": 5.0}, "protocol": {"steps": 18, "sampler": "heun"}}  # fmt: skip


def draw(path, **table):
    """A figure with its numbers."""
    figure, axes = figures.panels(width=2, height=1.5)
    axes[0, 0].plot([0, 1], [0, 1])
    figures.save(figure, path, table or {"x": [1, 2], "y": [0.123456, 2.0]})


def write_run(run, mode):
    """A trained run as main.py leaves it."""
    config = {"data.name": "synthetic16", "model.mode": mode, "model.precondition": "edm"}
    arrays.write_json(run / "config.json", {
        "format": 1, "kind": "run", "config": config, "scaling": {"scale": [0.0078] * 3, "shift": [-1.0] * 3}, "shape": [3, 16, 16],
        "std": 0.5, "data": {"name": "synthetic16", "hash": "abc"},
    })  # fmt: skip
    arrays.write_json(run / "env.json", {"python": "3.x", "torch": "2.x"})
    lines = [{"step": step, "images": 64 * step, "score": 10 / step, "kl": 1e-5, "images_per_second": 50.0, "memory_mb": 500}
             for step in (1, 2, 3)]  # fmt: skip
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "ima')
    (run / "log.txt").write_text("runs/x: synthetic16, 4000 images, 123,456 parameters, step 0 of 3\n")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A whole study, small: two runs, every summary and figure."""
    tmp_path = tmp_path_factory.mktemp("study")
    drl, edm = tmp_path / "runs" / "drl", tmp_path / "runs" / "edm"
    write_run(drl, "probabilistic-drl")
    write_run(edm, "none")
    draw(tmp_path / "tables" / "accuracy_drl")
    arrays.write_json(tmp_path / "tables" / "accuracy_drl.json", accuracy_summary())
    for name in ("scores", "denoised"):
        draw(edm / "scores" / name)
    arrays.write_json(edm / "scores" / "summary.json", scores_summary())
    for name in ("distance", "samples"):
        draw(edm / "sweeps" / "default" / name)
    arrays.write_json(edm / "sweeps" / "default" / "summary.json", sweep_summary())
    for name in ("step_00000002", "step_00000010", "heun"):
        draw(edm / "samples" / name)
    for name in ("profile", "profile_classes"):
        draw(drl / "attention" / name)
    attention = {"shape": {"most_attended": 0.3, "images": 30, "seeds": [0, 1]}}
    arrays.write_json(drl / "attention" / "profile.json", {"attributes": attention, "command": "python profile"})
    draw(drl / "mutual_information" / "matrix_encoder")
    arrays.write_json(drl / "mutual_information" / "summary_encoder.json", {
        "source": "encoder", "ceiling": 5.3, "beyond_ceiling": [], "still_rising": [[0, 1]], "beyond_known": [],
        "known": [{"truth": 0.0, "nats": 0.01}, {"truth": 1.0, "nats": 0.9}], "known_up_to": 0.9, "command": "python estimate_mi.py <runs>",
        "protocol": {"width": 16, "dimension": 8, "seeds": [0], "rows": {"fit": 320, "validation": 80, "held_out": 200}},
    })  # fmt: skip
    write_report.main([str(tmp_path)])
    return tmp_path


def test_a_map_of_information_says_what_its_estimator_found_of_known_answers(study):
    path = study / "runs" / "drl" / "mutual_information" / "summary_encoder.json"
    page = (study / "report.html").read_text()
    assert "Triangles: 1 pairs still rising at the end. Normals of as many features on as many rows (n = 600)" in page
    assert "0 gives 0.01, 1 gives 0.90; those up to 0.90 came back to a fifth. Circles: 0 pairs above" in page
    content = arrays.read_json(path)
    arrays.write_json(
        path, content | {"known": [{"truth": 0.0, "nats": 0.3}], "known_up_to": None, "beyond_known": [[0, 1]]}
    )
    write_report.main([str(study)])
    assert "0 gives 0.30; none came back to a fifth. Circles: 1 pairs above" in (study / "report.html").read_text()
    earlier = {
        name: value
        for name, value in content.items()
        if name not in ("still_rising", "known", "known_up_to", "beyond_known")
    }
    arrays.write_json(path, earlier)  # of a map made before known answers were kept
    write_report.main([str(study)])
    page = (study / "report.html").read_text()
    assert "pairs lie above. The diagonal is left out" in page and "Circles" not in page


def test_curves_of_accuracies_are_shown_where_they_are(study):
    draw(study / "tables" / "granularity_drl")
    write_report.main([str(study)])
    page = (study / "report.html").read_text()
    assert "Accuracy against granularity" in page and "against the granularity k, of which" in page
    assert "Accuracy against the number of labels" not in page


@pytest.fixture
def study(template, tmp_path):
    """A study of one's own."""
    return shutil.copytree(template, tmp_path / "study")


class Reader(HTMLParser):
    """Tags, attributes and text of a page; unclosed tags fail."""

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        """Attributes of every such tag."""
        return [attrs for name, attrs in self.tags if name == tag]


def refused(argv, capsys):
    """Status and stderr of a command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(write_report.main, [str(entry) for entry in argv])
    return stop.value.code, capsys.readouterr().err


def test_one_page_that_needs_nothing_else(study):
    assert write_report.main([str(study), "--check"]) == 0
    content = (study / "report.html").read_text()
    reader = Reader(content)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in reader.tags}
    assert not re.search(r"https?://|url\(|@import", content)
    images = reader.all("img")
    assert len(images) == 12 and all(
        entry["src"].startswith("data:image/png;base64,") and entry["alt"] for entry in images
    )
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in reader.all("meta")
    assert "@media print" in content
    targets = {entry["href"].removeprefix("#") for entry in reader.all("a")}
    assert targets == {entry["id"] for entry in reader.all("section")}
    assert content.count('<div class="scroll"') == content.count("<table>") > 10
    text = "".join(reader.text)
    assert "Missing:" not in text and "123,456" in text and "0.1235" in text
    assert "80.0 [75.0, 85.0] at t = 0.3" in text and "-5.0 [-10.0, +0.0]" in text  # with losses as with gains
    assert "python estimate_mi.py <runs>" in text  # escaped, and read back as it was
    assert (study / "runs" / "edm" / "loss.png").is_file()
    assert figures.read_table(study / "runs" / "edm" / "loss.csv")["images"] == ["64", "128", "192"]


def test_the_last_grid_of_the_training_and_every_other_is_shown(study):
    shown = [path.stem for path in write_report.sample_grids(study / "runs" / "edm")]
    assert shown == ["step_00000010", "heun"]


def test_recorded_commands_come_first(study):
    (study / "commands.txt").write_text("python diffusion_model/main.py --mode train\n")
    write_report.main([str(study)])
    text = "".join(Reader((study / "report.html").read_text()).text)
    assert "python diffusion_model/main.py --mode train\n" in text and "python tabulate.py runs/drl" not in text


def test_claims_that_hold_say_their_numbers(study):
    judged = claims.judge(study)
    assert [claim.holds for claim in judged] == [True, True, True] and not any(claim.failures for claim in judged)
    assert len(judged[0].numbers) == 2 and "foreground: +0.150 [+0.100, +0.200]" in judged[0].numbers[0]
    assert "real against real 5" in judged[2].numbers[0] and "n = 100" in judged[2].numbers[0]


WRONG = {
    "encoder": ("tables/accuracy_drl.json", accuracy_summary(location={"encoder_minus_untrained": difference(-0.01)}),
                "does not beat the untrained one on location: +0.040 [-0.010, +0.090]"),
    "isotropic closer": ("runs/edm/scores/summary.json", scores_summary((0.9, 0.5, 0.3, 0.35, 0.02, 0.001)),
                         "0.35 is not below the isotropic one's 0.3 at level 5 "),
    "rises between": ("runs/edm/scores/summary.json", scores_summary((0.9, 0.5, 0.3, 0.01, 0.02, 0.001)),
                      "rises from 0.01 at level 5 to 0.02 at level 20, by more than their intervals"),
    "does not fall": ("runs/edm/scores/summary.json", scores_summary((0.9, 0.5, 0.3, 0.009, 0.009, 0.009)),
                      "does not fall towards high noise"),
    "overlap": ("runs/edm/sweeps/default/summary.json", sweep_summary(largest=(12, 11.0, 10.5, 12.0)),
                "do not differ by more than their intervals"),
    "lacks a field": ("runs/edm/sweeps/default/summary.json", {"recommended": {"skip": 4}},
                      "summary.json lacks the field recommended.distance: run `python linear_structure/sweep_skips.py"),
    "lacks untrained": ("tables/accuracy_drl.json", {"attributes": {"label": {"chance": 0.1}}, "protocol": {"test_images": 9}},
                        "accuracy_drl.json lacks the field attributes.label.encoder_minus_untrained: run `python downstream_class"),
    "unequal columns": ("runs/edm/scores/summary.json", scores_summary((0.9, 0.5)), "columns of different length"),
    "no summary": ("tables/accuracy_drl.json", [1], "accuracy_drl.json holds [1], expected an object: run"),
    "no attributes": ("tables/accuracy_drl.json", accuracy_summary() | {"attributes": None}, "attributes is null, expected an object"),
    "a text as a number": ("runs/edm/scores/summary.json", scores_summary() | {"levels": ["0.1"]},
                           'levels.0 is "0.1", expected a number'),
    "a number as an object": ("runs/edm/sweeps/default/summary.json", sweep_summary() | {"largest": 12},
                              "largest is 12, expected an object"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_claim_that_fails_gives_status_1_and_a_sentence(study, capsys, name):
    path, content, sentence = WRONG[name]
    arrays.write_json(study / path, content)
    status, told = refused([study, "--check"], capsys)
    assert status == 1 and sentence in told and all(line.startswith("error: ") for line in told.splitlines())
    assert "Does not hold." in (study / "report.html").read_text()


def test_falling_is_judged_from_the_middle_up_only(study):
    path = study / "runs" / "edm" / "scores" / "summary.json"
    arrays.write_json(path, scores_summary((0.1, 2.0, 0.99, 0.1, 0.0999, 0.001)))
    assert claims.gaussian_at_high_noise(study).holds


def test_without_check_a_failed_claim_is_reported_only(study, capsys):
    arrays.write_json(study / "tables" / "accuracy_drl.json", WRONG["encoder"][1])
    assert write_report.main([str(study)]) == 0
    assert "does not hold: The trained encoder" in capsys.readouterr().out
    assert write_report.main([str(study), "--check", "--claims-attributes", "shape"]) == 0
    assert write_report.main([str(study), "--check", "--no-check"]) == 0
    status, told = refused([study, "--check", "--claims-attributes", "size"], capsys)
    assert status == 1 and "has no attribute 'size'; there are: foreground, location, shape" in told


def test_the_preset_says_whether_the_check_decides(study, capsys):
    arrays.write_json(study / "tables" / "accuracy_drl.json", WRONG["encoder"][1])
    assert write_report.main([str(study), "--config", "configs/study.py:FashionMNIST"]) == 0
    assert write_report.main([str(study), "--config", "configs/study.py:embedded"]) == 1
    status, told = refused([study, "--config", "configs/study.py:embeded"], capsys)
    assert status == 2 and "nearest: embedded" in told


def test_what_is_missing_is_named_with_its_command(tmp_path, capsys):
    write_run(tmp_path / "runs" / "edm", "none")
    (tmp_path / "runs" / "edm" / "metrics.jsonl").unlink()
    status, told = refused([tmp_path, "--check"], capsys)
    assert status == 1 and len(told.splitlines()) == 3
    assert "no tables/accuracy_*.json in" in told and "run `python downstream_classification/tabulate.py RUN`" in told
    text = "".join(Reader((tmp_path / "report.html").read_text()).text)
    for what in (
        "accuracy_",
        "profile.png",
        "profile_classes",
        "matrix_",
        "scores.png",
        "distance.png",
        "samples",
        "metrics.jsonl",
    ):
        assert re.search(rf"Missing: [^.]*{what}", text), what
    assert "python linear_structure/compare_scores.py" in text and "estimate_mi.py RUN/trajectories/encoder" in text


def test_a_figure_without_numbers_or_protocol_is_still_shown(study):
    (study / "runs" / "edm" / "scores" / "scores.csv").unlink()
    (study / "runs" / "drl" / "attention" / "profile.json").unlink()
    write_report.main([str(study)])
    text = "".join(Reader((study / "report.html").read_text()).text)
    assert (
        "Missing: the numbers of scores.png" in text
        and "Missing: the protocol of runs/drl/attention/profile.png" in text
    )


@pytest.mark.parametrize(
    ("path", "content", "sentence"),
    [
        ("tables/accuracy_drl.json", {"attributes": [1]}, "attributes is [1], expected an object"),
        (
            "runs/drl/attention/profile.json",
            {"attributes": {"shape": None}},
            "attributes.shape is null, expected an object",
        ),
        ("runs/drl/attention/profile.json", {"attributes": {}}, "profile.json holds no attribute"),
        ("runs/drl/mutual_information/summary_encoder.json", [], "summary_encoder.json holds [], expected an object"),
        (
            "runs/edm/sweeps/default/summary.json",
            sweep_summary() | {"margin": "1 %"},
            'margin is "1 %", expected a number',
        ),
        ("runs/edm/scores/summary.json", scores_summary() | {"protocol": None}, "protocol is null, expected an object"),
    ],
)
def test_a_protocol_of_another_type_is_named_in_its_place(study, path, content, sentence):
    arrays.write_json(study / path, content)
    write_report.main([str(study)])
    text = "".join(Reader((study / "report.html").read_text()).text)
    assert re.search(rf"Missing: the protocol of [^ ]* \([^)]*{re.escape(sentence)}", text)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("env.json", "[1]", "env.json holds [1], expected an object"),
        ("metrics.jsonl", "3\n", "metrics.jsonl: line 1 is 3, expected an object"),
        ("metrics.jsonl", '{"images": null}\n', "metrics.jsonl: line 1.images is null, expected an integer"),
        ("metrics.jsonl", '{"images": 1, "score": "x"}\n', 'line 1.score is "x", expected a number or null'),
    ],
)
def test_a_run_of_another_type_is_a_sentence(study, capsys, name, content, sentence):
    (study / "runs" / "edm" / name).write_text(content)
    status, told = refused([study], capsys)
    assert status == 1 and sentence in told and told.count("\n") == 1


def test_sentences(study, tmp_path, capsys):
    empty = tmp_path / "empty"
    status, told = refused([empty], capsys)
    assert status == 1 and "nothing to report in" in told and "bash scripts/reproduce.sh" in told
    status, told = refused([study, "--chek"], capsys)
    assert status == 2 and "nearest: --check" in told
    lines = (study / "runs" / "edm" / "metrics.jsonl").read_text().splitlines()
    (study / "runs" / "edm" / "metrics.jsonl").write_text("\n".join([lines[0][:20], *lines[1:]]))
    status, told = refused([study], capsys)
    assert status == 1 and "metrics.jsonl: line 1 is no JSON" in told
    (study / "runs" / "edm" / "config.json").write_text("{")
    status, told = refused([study], capsys)
    assert status == 1 and "config.json is truncated or altered" in told


def test_text_is_escaped_and_numbers_are_short():
    assert page.text("<b> & 1") == "&lt;b&gt; &amp; 1" and page.text(0.123456) == "0.1235"
    assert [page.number(entry) for entry in ("12345678", "0.000123456", "all10", "1e-7", "level")] == [
        "12345678", "0.0001235", "all10", "1e-07", "level",
    ]  # fmt: skip
