"""Figures: a PNG with its numbers beside it."""

import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from PIL import Image

from diffusion_model import figures


def test_a_figure_has_its_numbers_beside_it(tmp_path):
    figure, axes = figures.panels(1, 2)
    assert axes.shape == (1, 2)
    axes[0, 0].plot([0, 1], [2, 3])
    figures.band(axes[0, 1], [0, 1], [0, 1], [1, 2], figures.COLOURS[0])
    path = figures.save(figure, tmp_path / "a", {"x": [0, 1], "y": [2.5, 3.25]}, pdf=True)
    assert path == tmp_path / "a.png"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.csv", "a.pdf", "a.png"]
    assert Image.open(path).width > 400
    assert figures.read_table(tmp_path / "a.csv") == {"x": ["0", "1"], "y": ["2.5", "3.25"]}


def test_a_figure_is_the_same_bytes_each_time(tmp_path):
    written = []
    for name in "ab":
        figure, axes = figures.panels()
        axes[0, 0].plot([0, 1], [2, 3])
        written.append(figures.save(figure, tmp_path / name, {"x": [0]}).read_bytes())
    assert written[0] == written[1]


def test_columns_have_one_length(tmp_path):
    with pytest.raises(ValueError, match=r"one length, got \{'a': 1, 'b': 2\}"):
        figures.write_table(tmp_path / "t.csv", {"a": [1], "b": [1, 2]})
    assert list(tmp_path.iterdir()) == []


def test_tables_keep_commas_and_lines(tmp_path):
    table = {"name, unit": ["a,b", 'c"d', "e\nf"]}
    figures.write_table(tmp_path / "t.csv", table)
    assert figures.read_table(tmp_path / "t.csv") == table


@pytest.mark.parametrize("size", [3, 20])
def test_a_heat_map_writes_its_values_where_they_fit(size):
    figure, axes = figures.panels()
    matrix = np.arange(size**2, dtype=float).reshape(size, size)
    matrix[0, 0] = np.nan
    figures.heat_map(figure, axes[0, 0], matrix, [str(index) for index in range(size)], "title", "nats")
    assert len(axes[0, 0].texts) == (size**2 - 1 if size == 3 else 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_grid_shows_every_pixel(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 8, 8), dtype=np.uint8)
    path = figures.image_grid(images, 3, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(path))[4::8, 4::8]  # enlarged eight times
    assert sheet.shape == (2 * 9 - 1, 3 * 9 - 1, 3)
    for index, image in enumerate(images):
        top, left = index // 3 * 9, index % 3 * 9
        expected = np.broadcast_to(image.transpose(1, 2, 0), (8, 8, 3))
        assert np.array_equal(sheet[top : top + 8, left : left + 8], expected)


def test_a_name_is_drawn_as_it_is_written(tmp_path):
    names = ["$x$", "$\\frac{", "\\$x\\$", "$$", "_a\x1b[2Jb", "n" * 5000]
    figure, axes = figures.panels()
    axis = axes[0, 0]
    for index, name in enumerate(names):
        axis.plot([0, 1], [1, 10], label=figures.legend_name(name))
        axis.text(0, index, name)
    axis.set_title(names[1])
    axis.set_xticks(range(len(names)), names)
    axis.set_yscale("log")
    axis.legend()
    figures.save(figure, tmp_path / "a.png", {"x": [1]})
    seen = ["$x$", "$\\frac{", "\\$x\\$", "$$", " _a\\x1b[2Jb", f"{'n' * 197}..."]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == seen
    assert not any(text.get_parse_math() for text in (axis.title, *axis.texts, *axis.get_legend().get_texts()))
    ticks = [label.get_text() for label in axis.get_xticklabels()]
    assert not any(is_math_text(label) for label in ticks) and len(ticks[-1]) == 60
    assert "mathdefault" in axis.get_yticklabels()[1].get_text()  # matplotlib's own numbers stay mathematics


FORMULAS = {
    "=1+1": "'=1+1", "@sum(a)": "'@sum(a)", "+cmd|'/c calc'!A1": "'+cmd|'/c calc'!A1", "-2+3": "'-2+3", "\t=1": "'\t=1",
    "-0.5": "-0.5", "+1e-3": "+1e-3", "-": "'-", "a=1": "a=1", "\x1b[2J": "\\x1b[2J", "-inf": "-inf",
}  # fmt: skip


def test_no_cell_is_a_formula(tmp_path):
    figures.write_table(tmp_path / "t.csv", {"=A1": list(FORMULAS), "n": [-0.5] * len(FORMULAS)})
    assert figures.read_table(tmp_path / "t.csv") == {"'=A1": list(FORMULAS.values()), "n": ["-0.5"] * len(FORMULAS)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"a,b\n1\n",
        b"a\n1,2\n",
        b"a,a\n1,2\n",
        b'a\n"open',
        b"a\n" + b"x" * 200_000,
        b"\xff\xfe",
        b'a\n"x"y\n',
    ],
)
def test_a_broken_table_is_one_sentence(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.csv (is no table|has rows of different lengths)"):
        figures.read_table(tmp_path / "t.csv")
