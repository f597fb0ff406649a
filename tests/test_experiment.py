"""What commands share: sentences and statuses, presets, overrides, randomness, devices, progress."""

import json
from pathlib import Path

import ml_collections
import pytest
import torch

from diffusion_model import experiment
from diffusion_model.experiment import Above, AtLeast, Parser, UsageError

CONFIG = """
import ml_collections

PRESETS = {"small": 3, "Large": 9}


def get_config(preset):
    config = ml_collections.ConfigDict({
        "name": preset, "train": {"steps": PRESETS[preset], "rate": 0.5, "mixup": False, "widths": (1, 2), "stop": None},
        "command": {"count": PRESETS[preset], "times": (0.0, 0.5), "label": "x"},
        "broken": {"nothing": 1},
    })
    return config
"""


@pytest.fixture
def config(tmp_path):
    """Path of a file of presets."""
    path = tmp_path / "presets.py"
    path.write_text(CONFIG)
    return path


def parser(prog="command.py"):
    """A command line like those of the project."""
    parse = Parser("What it does.\n\nMore about it.", prog=prog)
    parse.add_argument("run", help="a run")
    parse.add_argument("--count", type=int, default=1, help="how many")
    parse.add_argument("--times", type=float, nargs="+", default=[0.5])
    parse.add_argument("--label", choices=["x", "yellow"], default="x")
    parse.add_argument("--resume", action="store_true", help="go on")
    parse.add_argument("--folder", required=True, help="where")
    return parse


def launched(main, argv, capsys):
    """(status, stdout, stderr)"""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(main, argv)
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


# The command line


def test_help_shows_every_option_with_its_default(capsys):
    status, out, _ = launched(lambda argv: parser().parse_args(argv), ["--help"], capsys)
    assert status == 0
    for text in (
        "What it does.",
        "More about it.",
        "how many (default: 1)",
        "--label {x,yellow}",
        "(default: [0.5])",
        "go on",
    ):
        assert text in out
    assert "default: None" not in out
    assert "default: False" not in out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["a", "--folder", "b", "--conut", "3"], "unknown argument --conut; nearest: --count"),
        (["a", "--folder", "b", "--coun=3"], "unknown argument --coun=3; nearest: --count"),
        (["a", "--folder", "b", "--label", "yelow"], "--label: 'yelow' is not known; nearest: yellow"),
        (["a", "--folder", "b", "--count", "many"], "argument --count: invalid int value: 'many'"),
        (["a", "--folder", "b", "--times", "nan"], "argument --times: nan is not a finite number"),
        (["a"], "required: --folder"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_status_2(argv, sentence, capsys):
    status, out, err = launched(lambda argv: parser().parse_args(argv), argv, capsys)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert "--help`)" in err


def test_a_preset_gives_the_defaults_and_options_win(config):
    options = parser().parse_args(["a", "--folder", "b", "--config", f"{config}:small"])
    assert (options.count, options.times, options.run) == (3, [0.0, 0.5], "a")
    options = parser().parse_args(["a", "--folder", "b", f"--config={config}:LARGE", "--count", "1"])
    assert (options.count, options.times) == (1, [0.0, 0.5])


@pytest.mark.parametrize(
    ("prog", "preset", "sentence"),
    [
        ("comand.py", "small", "has no section 'comand'; nearest: command"),
        ("broken.py", "small", "broken.nothing is no option of this command; accepted: "),
        ("command.py", "smal", "has no preset 'smal'; nearest: small"),
        ("command.py", "", "has no preset ''; accepted: Large, small"),
    ],
)
def test_a_wrong_preset(config, prog, preset, sentence, capsys):
    argv = ["a", "--folder", "b", "--config", f"{config}:{preset}"]
    status, _, err = launched(lambda argv: parser(prog).parse_args(argv), argv, capsys)
    assert status == 2
    assert sentence in err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--count", "0"], "--count 0: expected at least 1"),
        (["--all-skips", "4", "-1"], "--all-skips -1: expected at least 0 (0 skips nothing)"),
        (["--margin=-0.5"], "--margin -0.5: expected at least 0"),
        (["--count", "1.5"], "argument --count: invalid int value: '1.5'"),
        (["--margin", "inf"], "argument --margin: inf is not a finite number"),
        (["--config", "{}:small"], "--count 0: expected at least 1"),
    ],
)
def test_a_number_below_its_bound_is_one_sentence(config, argv, sentence, capsys):
    config.write_text(CONFIG.replace('"small": 3', '"small": 0'))
    parse = Parser("What it does.", prog="command.py")
    parse.add_argument("--count", type=AtLeast(1), default=1)
    parse.add_argument("--all-skips", type=AtLeast(0, "0 skips nothing"), nargs="+", default=[0])
    parse.add_argument("--margin", type=AtLeast(0.0))
    parse.add_argument("--times", type=float, nargs="+")
    parse.add_argument("--label")
    status, _, err = launched(parse.parse_args, [argument.format(config) for argument in argv], capsys)
    assert status == 2
    assert err.startswith(f"error: {sentence}") and err.count("\n") == 1
    options = parse.parse_args(["--count", "1", "--all-skips", "0", "2", "--margin", "0"])
    assert (options.count, options.all_skips, options.margin) == (1, [0, 2], 0.0)


def test_a_missing_configuration_file():
    with pytest.raises(UsageError, match=r"no configuration file configs/no\.py; "):
        experiment.load_config("configs/no.py:a")


# How a command ends


def test_status_of_a_command(capsys):
    assert launched(lambda argv: None, [], capsys)[0] == 0
    assert launched(lambda argv: 3, [], capsys)[0] == 3


def test_an_interruption(capsys):
    def main(argv):
        raise KeyboardInterrupt

    status, _, err = launched(main, [], capsys)
    assert status == 130
    assert "run the same command to go on" in err


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, FloatingPointError])
def test_a_mistake_of_the_user_is_one_sentence(kind, capsys):
    def main(argv):
        raise kind("no such run")

    status, _, err = launched(main, [], capsys)
    assert (status, err) == (1, "error: no such run\n")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("file/folder", "a file lies where a folder is needed"), ("no/such", "no such file or directory")],
)
def test_what_the_system_refuses_is_one_sentence(path, sentence, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, _, err = launched(lambda argv: (tmp_path / path).mkdir(), [], capsys)
    assert (status, err.count("\n")) == (1, 1)
    assert sentence in err and str(tmp_path) in err


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.md", "text", "expected a Python file such as configs/edm.py"),
        ("a.py", "this is no python", "cannot be read as Python (SyntaxError: "),
        ("a.py", "PRESETS = {}", "expected PRESETS and get_config"),
    ],
)
def test_a_file_that_is_no_configuration(name, content, sentence, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as refused:
        experiment.load_config(f"{tmp_path / name}:small")
    assert sentence in str(refused.value)


def test_a_mistake_of_ours_shows_where(capsys):
    status, _, err = launched(lambda argv: json.loads("{"), [], capsys)
    assert status == 1
    assert "Traceback" in err


# Configurations


def test_a_fraction_may_begin_with_its_point(config):
    assert experiment.load_config(f"{config}:small", ["--config.train.rate=.0625"]).train.rate == 0.0625


def test_overrides_keep_the_type_of_the_field(config):
    overrides = ["--config.train.steps=7", "--config.train.rate=1", "--config.train.mixup=True", "--config.name=7up",
                 "--config.train.widths=[3, 4]", "--config.train.stop=0.5"]  # fmt: skip
    held = experiment.load_config(f"{config}:small", overrides)
    assert held.train.to_dict() == {"steps": 7, "rate": 1.0, "mixup": True, "widths": (3, 4), "stop": 0.5}
    assert isinstance(held.train.rate, float)
    assert held.name == "7up"
    with pytest.raises(AttributeError):
        held.train.new = 1


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--config.train.stesp=7", "no field 'train.stesp'; nearest: train.steps"),
        ("--config.rate=7", "no field 'rate'"),
        ("--config.train.steps.more=7", "no field 'train.steps.more'"),
        ("--config.train.steps=many", "expected a value of type int, such as 3"),
        ("--config.train.steps=7.5", "expected a value of type int"),
        ("--config.train.mixup=1", "expected a value of type bool"),
        ("--config.train.rate=NaN", "--config.train.rate=NaN: expected a finite number"),
        ("--config.train.widths=[3, 1.5]", "expected entries of type int"),
        ("--config.train=7", "'train' is a section; its fields are mixup, rate, steps"),
        ("--config.train.steps", "write --config.section.field=value"),
        ("train.steps=7", "write --config.section.field=value"),
    ],
)
def test_wrong_overrides(config, override, sentence):
    with pytest.raises(UsageError) as refused:
        experiment.load_config(f"{config}:small", [override])
    assert sentence in str(refused.value)


def test_flatten():
    config = ml_collections.ConfigDict({"a": 1, "b": {"c": (1, 2), "d": {"e": None}}})
    assert experiment.flatten(config) == {"a": 1, "b.c": [1, 2], "b.d.e": None}


# Randomness


def test_a_seed_is_a_function_of_its_key():
    assert experiment.seed_of("start", 17) == 725957183975946027
    assert len({experiment.seed_of(*key) for key in [("a", 1), ("a", 2), ("b", 1), ("a", "1"), (1, "a")]}) == 5
    one, two = (torch.rand(4, generator=experiment.generator("x", 3)) for _ in range(2))
    assert one.equal(two)


def test_rows_of_noise_depend_on_their_seed_alone():
    noise = experiment.sample_noise("run", range(5), (2, 3))
    assert noise.shape == (5, 2, 3)
    assert experiment.sample_noise("run", [4, 2], (2, 3)).equal(noise[[4, 2]])
    assert not experiment.sample_noise("other", range(5), (2, 3)).equal(noise)


# Devices, progress, logs


def test_devices(monkeypatch):
    assert experiment.choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="'gpu0' is not known; accepted: auto, cpu, cuda, cuda:N"):
        experiment.choose_device("gpu0")
    with pytest.raises(UsageError, match="'meta' is not known"):
        experiment.choose_device("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no CUDA device here; pass --device cpu"):
        experiment.choose_device("cuda")


def test_a_gpu_that_torch_cannot_use_is_told_with_the_remedy(monkeypatch, tmp_path):
    version = tmp_path / "version"
    version.write_text("NVRM version: 470.1\nGCC\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(experiment, "Path", lambda *parts: version)
    with pytest.raises(ValueError, match=r"a GPU is present \(NVRM version: 470\.1\) but torch .* pass --device cpu"):
        experiment.choose_device("auto")


def test_progress_is_told_with_speed_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(experiment, "REPORT_EVERY", 0.0)
    assert list(experiment.progress(iter("abc"), "letters", "letter", total=3)) == ["a", "b", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("letters: 1/3 letter, ")
    assert lines[0].endswith("s left")


def test_the_environment_is_json():
    assert json.loads(json.dumps(experiment.environment()))["torch"] == torch.__version__


def test_half_written_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[]\n{"other": 1}\n{"step": 2}\n{"step": 1, \xff')
    experiment.truncate_lines(path, "step", 1)
    assert path.read_text() == '{"step": 1}\n'


# What no command should be asked


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--count", "1000001"], "--count 1000001: expected at most 1,000,000"),
        (["--times", "1001"], "--times 1001: expected at most 1,000"),
        (["--count", str(2**63)], "argument --count: 9223372036854775808 is beyond 64 bits"),
        (["--seed", f"-{'9' * 99}"], f"argument --seed: -{'9' * 39} is beyond 64 bits"),
        (["--rate", "0"], "--rate 0: expected above 0"),
        (["--rate=-1e-3"], "--rate -0.001: expected above 0"),
        (["--rate", "nan"], "argument --rate: nan is not a finite number"),
        (["--workdir", ""], "argument --workdir: '' is no path; the folder at hand is ."),
        (["--workdir", "a\0b"], "a\\x00b holds characters that cannot be seen: rename what it names"),
        *((["--name", name], f"argument --name: {name!r} is no name") for name in ("", ".", "..", "../x", "/abs", "a/b", "x" * 101)),
        (["--name", "a\x1b[2J"], "a\\x1b[2J holds characters that cannot be seen"),
        (["--config", ""], "no configuration file "),
    ],
)  # fmt: skip
def test_values_that_no_command_can_serve(argv, sentence, capsys):
    parse = Parser("What it does.", prog="command.py")
    parse.add_argument("--count", type=AtLeast(1), default=1)
    parse.add_argument("--times", type=AtLeast(1, most=1000))
    parse.add_argument("--rate", type=Above(0.0))
    parse.add_argument("--seed", type=int)
    parse.add_argument("--workdir", type=Path)
    parse.add_argument("--name", type=experiment.file_name)
    status, _, err = launched(parse.parse_args, argv, capsys)
    assert status == 2 and err.startswith(f"error: {sentence}") and err.count("\n") == 1


def test_a_quantity_has_no_upper_bound_of_its_own():
    parse = Parser("What it does.", prog="command.py")
    parse.add_argument("--margin", type=AtLeast(0.0))
    assert parse.parse_args(["--margin", "1e9"]).margin == 1e9


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ('"count": "many"', "command.count: invalid int value: 'many'"),
        ('"count": (1, 2)', "command.count is (1, 2), expected a single value"),
        ('"count": True', "command.count is True, expected a single value"),
        ('"times": 0.5', "command.times is 0.5, expected a list"),
        ('"times": (0.5, float("nan"))', "command.times: nan is not a finite number"),
        ('"resume": "yes"', "command.resume is 'yes', expected True or False"),
        ('"label": "z"', "--label: 'z' is not known"),
    ],
)
def test_a_preset_is_held_to_what_the_options_take(config, section, sentence, capsys):
    config.write_text(CONFIG.replace('"count": PRESETS[preset], "times": (0.0, 0.5), "label": "x"', section))
    argv = ["run", "--folder", "here", "--config", f"{config}:small"]
    status, _, err = launched(parser().parse_args, argv, capsys)
    assert status == 2 and sentence in err and err.count("\n") == 1


def test_overrides_may_be_written_as_python_writes_them(config):
    held = experiment.load_config(f"{config}:small", ["--config.train.widths=(3, 4, 5)", "--config.train.mixup=True"])
    assert held.train.widths == (3, 4, 5) and held.train.mixup is True
    assert experiment.load_config(f"{config}:small", ["--config.name='a b'"]).name == "a b"
    for text in ("[" * 99_999, "(" * 99_999):
        with pytest.raises(UsageError, match="expected a value of type tuple"):
            experiment.load_config(f"{config}:small", [f"--config.train.widths={text}"])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("Unable to allocate 8.00 PiB"), "this needs more memory than there is (Unable to allocate 8.00 PiB)"),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: 8 EB\nmore"), "(can't allocate memory: 8 EB): ask for less"),
        (RecursionError("maximum depth"), "nested too deep to be read"),
        (OSError(28, "No space left on device", "a/b.npy"), "a/b.npy: no space left on device: make room there"),
        (OSError(36, "File name too long", "xxx"), "xxx: file name too long: give a shorter name"),
        (OSError(5, "Input/output error", "a.npy"), "a.npy: input/output error\n"),
        (PermissionError(13, "Permission denied", "a"), "a: permission denied: give a place that can be read and written"),
        (ValueError("\x1b[2J\u202eevil.json is broken"), "error: \\x1b[2J\\u202eevil.json is broken"),
    ],
)  # fmt: skip
def test_what_ends_a_command_is_one_sentence(error, sentence, capsys):
    def main(argv):
        raise error

    status, _, err = launched(main, [], capsys)
    assert status == 1 and sentence in err and err.count("\n") == 1
