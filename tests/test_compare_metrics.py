"""Two results side by side: numbers that agree with the files, and refusals that name what differs."""

from pathlib import Path

import pytest

from diffusion_model import arrays, experiment, results
from linear_structure import compare_metrics

PROTOCOL = {"n": 1000, "features": "classifier", "weights": "0a", "sampler": "heun", "distance": "Frechet distance"}


def run(*argv: object) -> int:
    """Exit status of the command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(compare_metrics.main, [str(entry) for entry in argv])
    return stop.value.code


def write(folder: Path, distances: dict[int, float], **other: object) -> Path:
    """A sweep of one kind with these distances by skip."""
    for skip, distance in distances.items():
        value = {"distance": distance, "evaluations": 35 - 2 * skip, "seconds": 1.5, "note": "x"}
        key = {"kind": "gaussian", "skip": skip}
        results.write_cell(folder, key, value, {name: v for name, v in (PROTOCOL | other).items() if v is not None})
    return folder


def summary(path: Path, distances: dict[int, float], **other: object) -> Path:
    """A sweep's summary with these distances by skip."""
    cells = [
        {"jump": "gaussian", "skip": skip, "distance": value, "increase": {"value": 0.5}}
        for skip, value in distances.items()
    ]
    content = {"format": 1, "kind": "sweep summary", "distance": "Frechet distance", "cells": cells}
    floor = {"distance": 3.0, "images": "40 test images"}
    arrays.write_json(path, content | {"floor": floor, "protocol": PROTOCOL | other})
    return path


def rows(text: str) -> list[list[str]]:
    """The cells of the printed table below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[entry.strip() for entry in line.strip("|").split("|")] for line in lines[2:]]


def test_two_folders_side_by_side(tmp_path, capsys) -> None:
    one, other = write(tmp_path / "a", {0: 10.0, 4: 12.0, 8: 30.0}), write(tmp_path / "b", {0: 10.0, 4: 9.0})
    assert run(one, other, "--metrics", "distance", "evaluations") == 0
    said = capsys.readouterr()
    assert rows(said.out) == [
        ["kind gaussian, skip 0", "distance", "10", "10", "+0", "1"],
        ["kind gaussian, skip 0", "evaluations", "35", "35", "+0", "1"],
        ["kind gaussian, skip 4", "distance", "12", "9", "-3", "0.75"],
        ["kind gaussian, skip 4", "evaluations", "27", "27", "+0", "1"],
    ]
    assert "distance: Frechet distance" in said.out
    assert "protocols differ" not in said.out
    assert f"only in {one}: kind gaussian, skip 8" in said.err
    assert run(one, other) == 0
    assert {row[1] for row in rows(capsys.readouterr().out)} == {"distance", "evaluations", "seconds"}


def test_two_cells_of_one_sweep(tmp_path, capsys) -> None:
    folder = write(tmp_path / "a", {0: 10.0, 4: 12.0}) / "kind=gaussian"
    assert run(folder / "skip=0.json", folder / "skip=4.json", "--metrics", "distance") == 0
    assert "kind gaussian, skip 0 | kind gaussian, skip 4" in capsys.readouterr().out


def test_other_protocols_are_refused_unless_asked(tmp_path, capsys) -> None:
    one = write(tmp_path / "a", {0: 10.0, 4: 12.0})
    other = write(tmp_path / "b", {0: 10.0, 4: 9.0}, n=500, sampler="dpm", weights=None)
    assert run(one, other) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out
    assert (
        'different protocols (n: 1000 in A, 500 in B, sampler: "heun" in A, "dpm" in B, weights: "0a" in A, absent'
        in (said.err)
    )
    assert "--vary n sampler weights if that is what you compare, or --anyway" in said.err
    assert run(one, other, "--vary", "sampler", "weights") == 1
    said = capsys.readouterr().err
    assert "(n: 1000 in A, 500 in B)" in said and "sampler" not in said
    for asked in (["--anyway"], ["--vary", "sampler", "n", "weights"]):
        assert run(one, other, *asked) == 0
        said = capsys.readouterr().out
        assert "protocols differ: n: 1000 in A, 500 in B" in said
        assert len(rows(said)) == 6


def test_one_cell_of_another_protocol_is_enough(tmp_path, capsys) -> None:
    one, other = write(tmp_path / "a", {0: 10.0, 4: 12.0}), write(tmp_path / "b", {0: 10.0})
    write(other, {4: 9.0}, features="inception")
    assert run(one, other) == 1
    assert '(features: "classifier" in A, "inception" in B)' in capsys.readouterr().err


def test_summaries_and_a_summary_beside_its_cells(tmp_path, capsys) -> None:
    one, other = summary(tmp_path / "a.json", {0: 10.0, 4: 12.0}), summary(tmp_path / "b.json", {0: 10.0, 4: 9.0})
    assert run(one, other, "--metrics", "distance", "increase.value") == 0
    found = rows(capsys.readouterr().out)
    assert ["kind gaussian, skip 4", "distance", "12", "9", "-3", "0.75"] in found
    assert ["kind real, skip 0", "distance", "3", "3", "+0", "1"] in found
    assert run(one, write(tmp_path / "cells", {4: 12.0}), "--metrics", "distance") == 0
    assert rows(capsys.readouterr().out) == [["kind gaussian, skip 4", "distance", "12", "12", "+0", "1"]]
    assert run(one, summary(tmp_path / "c.json", {0: 1.0}, margin=0.02)) == 1
    assert "(margin: absent in A, 0.02 in B)" in capsys.readouterr().err


def test_a_summary_of_several_solvers_has_the_keys_of_its_cells(tmp_path, capsys) -> None:
    solver = {"sampler": "heun", "steps": 18, "jump": "gaussian", "skip": 4, "level": 9.5}
    cells = [solver | {"by": "skip", "distance": 1.0}, solver | {"by": "level", "distance": 2.0}]
    content = {"format": 1, "kind": "recommended skip", "distance": "Frechet distance", "cells": cells}
    arrays.write_json(tmp_path / "recommendation.json", content | {"protocol": PROTOCOL})
    for where, value in (({"skip": 4}, 1.0), ({"level": 9.5}, 2.0)):
        key = {"sampler": "heun", "steps": 18, "kind": "gaussian", **where}
        results.write_cell(tmp_path / "cells", key, {"distance": value}, PROTOCOL)
    assert run(tmp_path / "recommendation.json", tmp_path / "cells") == 0
    assert sorted(row[2:4] for row in rows(capsys.readouterr().out)) == [["1", "1"], ["2", "2"]]


def test_cells_that_differ_in_their_key_are_paired_when_asked(tmp_path, capsys) -> None:
    for name, sampler, factor in (("a", "heun", 1.0), ("b", "dpmpp-2m", 0.5)):
        for skip in (0, 4):
            key = {"sampler": sampler, "steps": 18, "kind": "gaussian", "skip": skip}
            results.write_cell(tmp_path / name, key, {"distance": factor * (10 + skip)}, {"n": 40})
        results.write_cell(tmp_path / name, {"kind": "real", "skip": 0}, {"distance": 3.0}, {"n": 40})
    both = tmp_path / "a", tmp_path / "b"
    assert run(*both, "--vary", "sampler") == 0
    assert sorted(rows(capsys.readouterr().out)) == [
        ["kind real, skip 0", "distance", "3", "3", "+0", "1"],
        ["steps 18, kind gaussian, skip 0", "distance", "10", "5", "-5", "0.5"],
        ["steps 18, kind gaussian, skip 4", "distance", "14", "7", "-7", "0.5"],
    ]
    assert run(*both, "--vary", "skip") == 1
    assert "differ in nothing but skip" in capsys.readouterr().err
    parts = [path / f"sampler={name}" for path, name in zip(both, ("heun", "dpmpp-2m"), strict=True)]
    assert run(*parts) == 1
    assert "no cell in common" in (said := capsys.readouterr().err) and "pass --vary sampler" in said
    assert run(*parts, "--vary", "sampler") == 0


def test_mistakes_are_sentences(tmp_path, capsys) -> None:
    good = write(tmp_path / "a", {0: 10.0, 4: 12.0})
    elsewhere = tmp_path / "far"
    results.write_cell(elsewhere, {"seed": 1}, {"accuracy": 0.5}, PROTOCOL)
    results.write_cell(elsewhere, {"seed": 2}, {"accuracy": 0.5}, PROTOCOL)
    other = tmp_path / "other.json"
    arrays.write_json(other, {"format": 1, "kind": "run"})
    broken = tmp_path / "broken.json"
    arrays.write_atomically(broken, lambda temporary: temporary.write_text("{"))
    failed = results.write_cell(tmp_path / "failed", {"skip": 0}, {"error": "no memory"}, PROTOCOL)
    write(tmp_path / "twice" / "one", {0: 1.0})
    write(tmp_path / "twice" / "two", {0: 1.0})
    (tmp_path / "empty").mkdir()
    cases = [
        ((good, tmp_path / "none"), 1, "no such file or folder; give a folder of result cells"),
        ((good, tmp_path / "empty"), 1, "no results in"),
        ((good, other), 1, "neither a result cell nor a sweep's summary"),
        ((good, broken), 1, "is truncated or altered"),
        ((good, failed), 1, "holds no result but an error (no memory)"),
        ((good, tmp_path / "twice"), 1, "holds two results with the key kind gaussian, skip 0"),
        ((good, elsewhere), 1, "no cell in common: 2 such as kind gaussian, skip 0 there, 2 such as seed 1 here"),
        ((good, good, "--vary", "samplr"), 2, "--vary samplr: no field of the protocols; nearest: sampler"),
        ((good, good, "--metrics", "distanc"), 2, "--metrics distanc: not a number of both; nearest: distance"),
        ((good,), 2, "arguments are required: B"),
    ]
    for argv, status, sentence in cases:
        assert run(*argv) == status
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    lone = results.write_cell(tmp_path / "lone", {"seed": 1}, {"accuracy": 0.5}, PROTOCOL)
    assert run(write(tmp_path / "single", {0: 1.0}), lone) == 1
    assert "no number in common" in capsys.readouterr().err
