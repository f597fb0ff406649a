"""Tables as text: Markdown, LaTeX (booktabs) and CSV of one content.

A cell is a string; in it `+-` stands for plus or minus. LaTeX needs `\\usepackage{booktabs}` and nothing else.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_model import figures

SPECIAL = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
           "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}  # fmt: skip
NUMBER = r"[+-]?\d+(?:\.\d+)?"


@dataclass(frozen=True)
class Table:
    """A title, column names, rows of as many cells, and a note; the longer of rows and columns goes down the page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def upright(self) -> "Table":
        """The table itself, or turned where it has more columns than rows and more than fit a page."""
        if len(self.columns) <= 7 or len(self.columns) <= len(self.rows):
            return self
        whole = (self.columns, *self.rows)
        turned = tuple(zip(*whole, strict=True))
        return Table(self.title, turned[0], turned[1:], self.note)


def markdown(tables: Iterable[Table]) -> str:
    """The tables one below the other; bars within cells are escaped."""
    parts = []
    for table in tables:
        lines = [table.columns, ("---",) * len(table.columns), *table.rows]
        body = "\n".join("| " + " | ".join(_marked(cell) for cell in line) + " |" for line in lines)
        parts.append("\n\n".join(part for part in (f"**{table.title}**", body, table.note.replace("+-", "±")) if part))
    return "\n\n".join(parts) + "\n"


def latex(tables: Iterable[Table]) -> str:
    """The tables as `table` environments with rules of booktabs."""
    return "\n".join(_latex(table) for table in tables)


def _latex(table: Table) -> str:
    lines = [" & ".join(_typeset(cell) for cell in line) + r" \\" for line in (table.columns, *table.rows)]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{_typeset(table.title)}. {_typeset(table.note)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", r"\toprule", lines[0], r"\midrule", *lines[1:],
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def _marked(cell: str) -> str:
    return cell.replace("|", r"\|").replace("+-", "±")


def _typeset(text: str) -> str:
    """Text with LaTeX's special characters escaped and signed or uncertain numbers in mathematics."""
    parts = re.split(rf"({NUMBER} \+- {NUMBER}|(?<![\w.-])[+-]\d+(?:\.\d+)?|\+-|[<>|])", text)
    return "".join(
        "$" + part.replace("+-", r"\pm") + "$" if index % 2 else "".join(SPECIAL.get(letter, letter) for letter in part)
        for index, part in enumerate(parts)
    )


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Records as CSV: the columns of all, empty where a record lacks one."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: figures.spreadsheet(value) for name, value in row.items()} for row in rows)
    return text.getvalue()
