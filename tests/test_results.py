"""Result cells: the path is the key, a sweep resumes by filling what is missing, protocols never mix."""

import pytest

from diffusion_model import arrays, results

KEY = {"head": "mlp", "times": 0.3, "seed": 0}
PROTOCOL = {"epochs": 10, "rates": [0.1, 0.2]}


def test_the_path_lists_the_key(tmp_path):
    assert results.cell_path(tmp_path, **KEY) == tmp_path / "head=mlp" / "times=0.3" / "seed=0.json"
    assert results.cell_path(tmp_path, name="a/b c", x=1e-05).relative_to(tmp_path).parts == (
        "name=a%2Fb%20c",
        "x=1e-05.json",
    )


def test_round_trip(tmp_path):
    path = results.write_cell(tmp_path, KEY, {"test": 0.5}, PROTOCOL)
    assert results.read_cell(path) == results.Cell(KEY, {"test": 0.5}, PROTOCOL, path)
    assert results.read_cells(tmp_path) == [results.read_cell(path)]


def test_a_sweep_resumes_by_filling_what_is_missing(tmp_path):
    assert results.finished(tmp_path, KEY, PROTOCOL) is None
    results.write_cell(tmp_path, KEY, {"test": 0.5}, PROTOCOL)
    assert results.finished(tmp_path, KEY, PROTOCOL).value == {"test": 0.5}
    assert results.finished(tmp_path, KEY, {"epochs": 10, "rates": (0.1, 0.2)}) is not None
    assert results.finished(tmp_path, {**KEY, "seed": 1}, PROTOCOL) is None


def test_a_failed_cell_is_tried_again_and_kept_out_of_tables(tmp_path):
    results.write_cell(tmp_path, KEY, {"error": "the fit diverged"}, PROTOCOL)
    assert results.read_cell(results.cell_path(tmp_path, **KEY)).failed
    assert results.finished(tmp_path, KEY, PROTOCOL) is None
    with pytest.raises(FileNotFoundError, match=r"no results in .*: run classify"):
        results.read_cells(tmp_path, "run classify")
    results.write_cell(tmp_path, {**KEY, "seed": 1}, {"test": 1.0}, PROTOCOL)
    assert [cell.key["seed"] for cell in results.read_cells(tmp_path)] == [1]


def test_two_protocols_never_share_a_table(tmp_path):
    results.write_cell(tmp_path, KEY, {"test": 0.5}, PROTOCOL)
    with pytest.raises(ValueError, match="epochs: 10 there, 20 now") as refused:
        results.finished(tmp_path, KEY, {**PROTOCOL, "epochs": 20})
    assert "rates" not in str(refused.value)
    with pytest.raises(ValueError, match="another protocol"):
        results.finished(tmp_path, KEY, {"epochs": 10})


def test_numbers_are_finite(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        results.write_cell(tmp_path, KEY, {"test": float("nan")}, PROTOCOL)
    assert results.finished(tmp_path, KEY, PROTOCOL) is None


@pytest.mark.parametrize("how", ["truncated", "kind", "fields"])
def test_altered_cells(tmp_path, how):
    path = results.write_cell(tmp_path, KEY, {"test": 0.5}, PROTOCOL)
    content = arrays.read_json(path)
    if how == "truncated":
        path.write_text(path.read_text()[:-9])
    elif how == "kind":
        arrays.write_json(path, {**content, "kind": "images"})
    else:
        arrays.write_json(path, {name: value for name, value in content.items() if name != "protocol"})
    with pytest.raises(
        ValueError, match=r"truncated or altered|describes images, expected cell|lacks the field protocol"
    ):
        results.read_cells(tmp_path)


def test_other_files_are_no_cells(tmp_path):
    results.write_cell(tmp_path, KEY, {"test": 0.5}, PROTOCOL)
    arrays.write_json(tmp_path / "summary.json", {"kind": "summary"})
    assert len(results.read_cells(tmp_path)) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"value": None}, "value is null, expected an object"),
        ({"key": [1]}, r"key is \[1\], expected an object"),
        ({"value": {"test": "high"}}, 'value.test is "high", expected a number'),
        ({"value": {}}, "lacks the field value.test"),
    ],
)
def test_another_type_is_a_sentence_that_names_file_and_field(tmp_path, change, sentence):
    path = results.write_cell(tmp_path, KEY, {"test": 0.5}, PROTOCOL)
    shape = {"value": {"test": float}}
    assert len(results.read_cells(tmp_path, shape=shape)) == 1
    arrays.write_json(path, arrays.read_json(path) | change)
    with pytest.raises(ValueError, match=rf"seed=0\.json.* {sentence}: remove it and run"):
        results.read_cells(tmp_path, shape=shape)
    arrays.write_json(path, arrays.read_json(path) | {"key": KEY, "value": {"error": "diverged"}})
    assert results.read_cell(path, shape).failed
