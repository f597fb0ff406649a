"""Who may import whom, read from the source: folders meet on disk, and at the doors of diffusion_model alone."""

import ast
import re
import sys
from pathlib import Path

import pytest

import diffusion_model

ROOT = Path(__file__).resolve().parent.parent
CONSUMERS = ("downstream_classification", "qualitative_analysis", "linear_structure")
FOLDERS = ("diffusion_model", *CONSUMERS, "benchmarks")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
DOORS = set(re.findall(r"(\w+)\*", diffusion_model.__doc__))


def tree(path):
    """The syntax tree of a file."""
    return ast.parse(path.read_text(), str(path))


def imported(path):
    """Dotted names of every module and member that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def name(path):
    """How a file is called in a test's name."""
    return str(path.relative_to(ROOT))


def test_the_map_lists_doors_that_exist():
    assert {"arrays", "results", "figures", "experiment", "data", "samplers", "trajectories"} <= DOORS
    missing = [door for door in DOORS if not (ROOT / "diffusion_model" / f"{door}.py").is_file()]
    assert not missing


def test_the_map_lists_every_module():
    words = set(re.findall(r"\w+", diffusion_model.__doc__))
    modules = {path.stem for path in (ROOT / "diffusion_model").glob("*.py")} - {"__init__"}
    assert not modules - words


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "diffusion_model")], ids=name)
def test_diffusion_model_imports_nothing_outside_itself(path):
    others = (*CONSUMERS, "configs", "benchmarks", "tests", "scripts")
    assert not [entry for entry in imported(path) if entry.partition(".")[0] in others]


@pytest.mark.parametrize("path", [path for path in FILES if path.relative_to(ROOT).parts[0] in CONSUMERS], ids=name)
def test_the_other_folders_import_doors_and_themselves(path):
    own = path.relative_to(ROOT).parts[0]
    for entry in imported(path):
        package, _, rest = entry.partition(".")
        assert package in (own, "diffusion_model") or package not in (*FOLDERS, "configs"), entry
        if package == "diffusion_model":
            assert rest.partition(".")[0] in DOORS, f"{entry} is no door of diffusion_model"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=name)
def test_configs_import_nothing_of_the_project(path):
    assert not [entry for entry in imported(path) if entry.partition(".")[0] in (*FOLDERS, "configs")]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_relative_imports_and_no_edits_of_the_path(path):
    for node in ast.walk(tree(path)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"line {node.lineno}: relative import"
        assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path"), (
            f"line {node.lineno}: sys.path"
        )


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_module_has_the_name_of_a_standard_one(path):
    # A command started by its path finds its own folder first, so statistics.py would shadow the library's.
    assert path.stem not in sys.stdlib_module_names


def is_definition(node):
    """Imports, docstrings, functions, classes, assignments, and the call of a command's main."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign)


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "configs").glob("*.py"))], ids=name)
def test_nothing_but_definitions_at_module_level(path):
    other = [f"line {node.lineno}: {ast.unparse(node)[:60]}" for node in tree(path).body if not is_definition(node)]
    assert not other


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "configs").glob("*.py"))], ids=name)
def test_no_pickle(path):
    # torch.load and allow_pickle can run what they find; the restricted reader of foreign weights cannot.
    assert not {
        entry for entry in imported(path) if entry.partition(".")[0] in ("pickle", "dill", "joblib", "cloudpickle")
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if ast.unparse(node.func) == "torch.load":
                assert options.get("weights_only") == "True", f"line {node.lineno}"
            assert ast.unparse(node.func) not in ("torch.save", "pickle.load"), f"line {node.lineno}"
            assert options.get("allow_pickle", "False") == "False", f"line {node.lineno}"
            if ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert "allow_pickle" in options, f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_module_says_what_it_is_for(path):
    assert path.stat().st_size == 0 or ast.get_docstring(tree(path))
