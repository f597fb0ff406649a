"""texts.py: one content as Markdown, LaTeX and CSV."""

import csv
import io
import re

from downstream_classification.texts import Table, comma_separated, latex, markdown

TABLE = Table(
    "runs_a & 50 %",
    ("test accuracy, %", "shape_1", "col|our"),
    (("mlp", "80.0 +- 1.2 at t = 0.5", "-"), ("gru - mlp", "+1.0 [-0.5, +2.5]", "~x^2 {#1} \\ $")),
    "Mean +- deviation.",
)


def test_markdown_has_a_row_a_line_of_equal_length():
    lines = [line for line in markdown([TABLE]).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert "80.0 ± 1.2 at t = 0.5" in lines[2] and "Mean ± deviation." in markdown([TABLE])


def test_latex_is_balanced_and_escaped():
    text = latex([TABLE, TABLE])
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert begun == ["table", "tabular"] * 2 and ended == ["tabular", "table"] * 2
    bare = text.replace(r"\textbackslash{}", "").replace(r"\textasciitilde{}", "").replace(r"\textasciicircum{}", "")
    bare = re.sub(r"\\[&%_#${}]", "", bare)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert not re.search(r"[%_#~^]", bare)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 2
    rows = [line for line in bare.splitlines() if line.endswith(r"\\")]
    assert {row.count("&") for row in rows} == {2}
    assert r"{lrr}" in text
    assert r"$80.0 \pm 1.2$ at t = 0.5" in text and "$+1.0$ [$-0.5$, $+2.5$]" in text and "gru - mlp" in text


def test_a_table_of_many_columns_is_turned():
    wide = Table(
        "many", ("method", *(f"a{index}" for index in range(40))), (("mlp", *["1"] * 40), ("gru", *["2"] * 40))
    )
    turned = wide.upright()
    assert turned.columns == ("method", "mlp", "gru") and turned.rows[3] == ("a3", "1", "2") and len(turned.rows) == 40
    assert turned.upright() == turned


def test_records_with_other_fields_share_a_table():
    rows = list(csv.DictReader(io.StringIO(comma_separated([{"a": 1, "b": "x,y"}, {"a": 2, "c": None}]))))
    assert rows == [{"a": "1", "b": "x,y", "c": ""}, {"a": "2", "b": "", "c": ""}]


def test_no_cell_of_a_table_is_a_formula():
    rows = list(csv.reader(io.StringIO(comma_separated([{"attribute": "=1+1", "minus": "-0.5", "n": -1}]))))
    assert rows == [["attribute", "minus", "n"], ["'=1+1", "-0.5", "-1"]]
