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


NAMES = (
    "hair colour", "hair-colour", "hair/colour", "hair%20colour", "\u8272", "\u5f62", "-", "", ".", "..", "~", "%7E", "a=b", "x",
    "x.json", "x%2Ejson", "n" * 160, "n" * 161, "n" * 300, "n" * 299 + "m", "\u8272" * 90, "\u8272" * 91,
    0.1234567, 0.1234568, 0.123457, "None", "a\udc80",
)  # fmt: skip


def test_no_two_keys_share_a_path(tmp_path):
    paths = {results.cell_path(tmp_path, attribute=name, seed=0) for name in NAMES}
    last = {results.cell_path(tmp_path, attribute=name) for name in NAMES}
    assert len(paths) == len(last) == len(NAMES)
    assert not {results.folder_beside(path) for path in last} & last
    for path in (*paths, *last):
        assert all(len(part) < 200 and part.isascii() for part in path.relative_to(tmp_path).parts)
        assert len(path.relative_to(tmp_path).parts) == (2 if path in paths else 1)
    results.write_cell(tmp_path, {"attribute": NAMES[0]}, {"x": 1}, {})
    assert results.finished(tmp_path, {"attribute": NAMES[1]}, {}) is None
    assert results.text_of(results.cell_path(tmp_path, a="h \u8272", b=0).parent.name) == "h \u8272"


def test_keys_that_a_file_system_takes_for_one_are_refused(tmp_path):
    path = results.write_cell(tmp_path, {"attribute": "Shape"}, {"x": 1}, {})
    path.rename(results.cell_path(tmp_path, attribute="shape"))  # as "shape" finds "Shape" where case is ignored
    for ask in (results.finished, lambda root, key, protocol: results.write_cell(root, key, {"x": 2}, protocol)):
        with pytest.raises(ValueError, match=r"the result of another key \(attribute: 'Shape' there, 'shape' now"):
            ask(tmp_path, {"attribute": "shape"}, {})


def test_two_results_of_one_key_are_no_table(tmp_path):
    path = results.write_cell(tmp_path, KEY, {"x": 1}, {})
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"holds two results with the key head mlp, times 0\.3, seed 0"):
        results.read_cells(tmp_path)


def test_a_file_keeps_the_protocol_it_was_made_under(tmp_path):
    path = tmp_path / "samples" / "heun18.npy"
    for text in ("a", "b"):  # the same protocol may be made again
        results.write_file(path, {"n": 2, "times": (0.0, 1.0)}, lambda place, text=text: place.write_text(text))
    with pytest.raises(ValueError, match=r"another protocol \(n: 2 there, 3 now\): move or remove it"):
        results.write_file(path, {"n": 3, "times": (0.0, 1.0)}, lambda place: place.write_text("c"))
    assert path.read_text() == "b"
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"no heun18\.json beside it says how it was made: move or remove it"):
        results.check_file(path, {"n": 2})
