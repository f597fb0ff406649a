"""The skipping sweep: oracles with the Gaussian's own denoiser, paired intervals, resuming, and the figures' numbers."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_world import SHAPE, make_data, make_run

from diffusion_model import arrays, data, experiment, features, figures, results, train_features
from diffusion_model.data import Scaling
from diffusion_model.fid import factor
from diffusion_model.moments import Moments
from diffusion_model.samplers import SAMPLERS, edm_levels, last
from linear_structure import get_parameters, intervals, process_experiments_with_skips, summaries, sweep_skips, sweeps
from linear_structure.gaussian import Gaussian, closed_forms

LEVELS = edm_levels(18)


def run(main, *argv: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(main, [str(entry) for entry in argv])
    return stop.value.code


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@functools.cache
def example() -> Gaussian:
    """A full-rank Gaussian of images of 8 x 8 in [-1, 1]."""
    dimension = int(np.prod(SHAPE))
    U = torch.linalg.qr(normal(dimension, dimension))[0]
    return Gaussian(0.1 * normal(dimension, seed=1), U, torch.linspace(1.0, 0.001, dimension, dtype=torch.float64))


def drawn(jump: Gaussian, skip: int, batch: int = 8, denoise=None) -> torch.Tensor:
    """Eight samples of the Gaussian's own denoiser after a jump."""
    made = sweeps.draw(denoise or example().denoise, jump, "heun", LEVELS[0], LEVELS[skip:], range(8), SHAPE, batch)
    return torch.cat(list(made))


def edm_grid(steps: int, first: float | None = None) -> torch.Tensor:
    """EDM's levels from a first one."""
    return edm_levels(steps, level_max=80.0 if first is None else first)


def corner(images: torch.Tensor) -> torch.Tensor:
    """Four pixels as features."""
    return images.float().flatten(1)[:, :4]


PIXELS = Scaling((1 / 127.5,) * 3, (-1.0,) * 3)


def make_sweep(folder: Path, n: int = 6, grid=edm_grid, reference: features.Reference | None = None) -> sweeps.Sweep:
    """A sweep of small images with four of their pixels as features."""
    moments = Moments(4).update(normal(40, 4))
    reference = reference or features.Reference(moments, factor(moments.covariance))
    return sweeps.Sweep(folder, {"shape": list(SHAPE)}, grid, range(n), 3, reference)


def test_a_gaussian_denoiser_gains_by_the_gaussian_jump_and_loses_by_the_isotropic() -> None:
    forms = closed_forms(example())
    start = LEVELS[0].float() * experiment.sample_noise("start", range(8), SHAPE)
    exact = forms["gaussian"].teleport(start, LEVELS[0], 0.0)
    errors = {name: float((drawn(form, 12) - exact).norm() / exact.norm()) for name, form in forms.items()}
    plain = float((drawn(None, 0) - exact).norm() / exact.norm())
    assert errors["gaussian"] < plain < 0.1 < errors["isotropic"] < errors["mean"]


def test_samples_belong_to_seeds_whatever_the_batch() -> None:
    jump = example()
    assert torch.allclose(drawn(jump, 3, batch=1), drawn(jump, 3, batch=7), atol=1e-3)


def test_the_jackknife_covers_and_pairing_sharpens() -> None:
    rows = normal(400, 6).float().numpy()
    moments = Moments(6).update(normal(5000, 6, seed=2) + 0.3)
    reference = features.Reference(moments, factor(moments.covariance))
    first = intervals.distances(rows, reference, 20)
    assert first.low < first.value < first.high
    assert first.low < 6 * 0.3**2 < first.high
    second = intervals.distances(rows * 1.02, reference, 20)
    change = intervals.increase(second, first)
    assert change.high - change.low < 0.2 * (first.high - first.low) / first.value
    assert intervals.increase(first, first).as_dict() == {"value": 0, "low": 0, "high": 0}
    with pytest.raises(ValueError, match="300 blocks of 400 samples: expected from 2 to 200"):
        intervals.distances(rows, reference, 300)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = normal(50).numpy()
    without = np.array([np.delete(values, index).mean() for index in range(50)])
    found = intervals.jackknife(values.mean(), without)
    assert (found.high - found.value) / (values.std(ddof=1) / 50**0.5) == pytest.approx(2.0096, rel=1e-3)


def test_plan_and_its_refusals() -> None:
    cell = functools.partial(sweeps.Cell, "heun", 18)
    assert sweep_skips.plan({"heun": [18]}, ["isotropic", "gaussian"], [4, 0, 2], [2]) == [
        cell(), cell("gaussian", 2), cell("gaussian", 4), cell("isotropic", 2),
    ]  # fmt: skip
    assert sweep_skips.plan({"heun": [18]}, ["mean"], None, None, [5.0, 20.0]) == [
        cell(), cell("mean", level=20.0), cell("mean", level=5.0),
    ]  # fmt: skip
    few = sweep_skips.plan({"euler": [3]}, ["gaussian"], sweep_skips.SKIPS, given=False)
    assert [one.skip for one in few] == [0, 1, 2]
    with pytest.raises(experiment.UsageError, match="--skips 18: a solver of 18 steps can skip from 0 to 17"):
        sweep_skips.plan({"heun": [18]}, ["gaussian"], [18])


def test_budgets_are_the_most_steps_within_so_many_evaluations() -> None:
    assert sweep_skips.budgets(["heun", "dpmpp-2m"], [18], [5, 6, 8, 35]) == {
        "heun": [3, 4, 18], "dpmpp-2m": [5, 6, 8, 35],
    }  # fmt: skip
    with pytest.raises(experiment.UsageError, match="--evaluations: a budget of 2 evaluations: heun needs at least 3"):
        sweep_skips.budgets(["heun"], [18], [2])


def test_levels_outside_the_grid_are_refused_and_its_first_is_the_plain_solver() -> None:
    cells = sweep_skips.plan({"heun": [4]}, ["gaussian"], None, None, [80.0, 5.0])
    assert sweep_skips.within_levels(cells, 0.002, 80.0) == [cells[0], cells[2]]
    for level in (0.002, 81.0):
        with pytest.raises(
            experiment.UsageError, match=f"--to-levels {level:g}: expected levels above 0.002 and up to 80"
        ):
            sweep_skips.within_levels([sweeps.Cell("heun", 4, "mean", level=level)], 0.002, 80.0)


def test_one_folder_holds_one_protocol_and_one_reference(tmp_path) -> None:
    plain = sweeps.Cell("heun", 4)
    results.write_cell(tmp_path, plain.key, {"distance": 1.0}, {"n": 8})
    sweeps.refuse_others(tmp_path, {"n": 8})
    with pytest.raises(ValueError, match="made under another protocol"):
        sweeps.refuse_others(tmp_path, {"n": 9})
    rows = normal(20, 3)
    np.savez(tmp_path / "theirs.npz", mu=np.ones(3), sigma=np.eye(3))
    sweeps.keep_reference(tmp_path, reference_of(rows), tmp_path / "theirs.npz")
    for other in (rows, rows + 1):  # what a sweep that was killed before its first cell has left is not taken
        sweeps.keep_reference(tmp_path, reference_of(other))
        assert torch.allclose(sweeps.kept_reference(tmp_path, "").moments.mean, other.double().mean(0))


def reference_of(rows: torch.Tensor) -> features.Reference:
    """The reference that rows of features make."""
    moments = Moments(rows.shape[1]).update(rows.numpy())
    return features.Reference(moments, factor(moments.covariance))


@pytest.mark.parametrize("name", SAMPLERS)
def test_skip_0_is_the_plain_solver_bit_for_bit(name) -> None:
    x = 80.0 * experiment.sample_noise("start", range(3), SHAPE)
    plain = last(SAMPLERS[name].run(example().denoise, x, LEVELS))
    (found,) = sweeps.draw(example().denoise, None, name, LEVELS[0], LEVELS, range(3), SHAPE, 3)
    assert torch.equal(found, plain)


def test_every_cell_costs_what_it_says_and_jumps_shrink_no_budget(tmp_path) -> None:
    spent = []

    def denoise(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        spent.append(len(x))
        return example().denoise(x, level)

    for name in SAMPLERS:
        sweep, plain = make_sweep(tmp_path / name, n=3), sweeps.Cell(name, 5)
        costs = {}
        for cell in (plain, plain._replace(kind="gaussian", skip=2), plain._replace(kind="gaussian", level=3.0)):
            spent.clear()
            sweep.make(cell, denoise, example() if cell.kind != "none" else None, PIXELS, corner, "cpu")
            value = results.read_cell(results.cell_path(sweep.folder, **cell.key)).value
            assert value["evaluations"] == len(spent)
            costs[cell] = len(spent), value["skip"]
        cost = SAMPLERS[name].cost
        assert list(costs.values()) == [(5 * cost - (cost - 1), 0), (3 * cost - (cost - 1), 2), (costs[plain][0], 2)]


def test_the_search_finds_the_largest_safe_skip_with_few_cells() -> None:
    for limit in range(18):
        for probes in (1, 3):
            asked = []

            def change(skips: list[int], asked=asked, limit=limit) -> list[intervals.Estimate]:
                asked.extend(skips)
                return [intervals.Estimate(0.0, 0.0, float(skip > limit), np.zeros(2)) for skip in skips]

            found = sweep_skips.search(change, range(1, 18), 0.01, probes)
            assert max([skip for skip, one in found.items() if one.high <= 0.01], default=0) == limit
            assert len(asked) == len(set(asked)) <= (5 if probes == 1 else 9)


def test_the_spread_is_the_standard_error_of_an_unpaired_distance() -> None:
    moments = Moments(3).update(normal(3000, 3, seed=1))
    reference = features.Reference(moments, factor(moments.covariance))
    draws = [intervals.distances(normal(200, 3, seed=seed).numpy() * 1.5, reference, 10) for seed in range(3, 23)]
    told = np.mean([intervals.accepted("spread", one) * one.value for one in draws])
    assert told == pytest.approx(np.std([one.value for one in draws], ddof=1), rel=0.4)
    assert intervals.accepted(0.02, draws[0]) == 0.02


def test_rows_and_moments_give_one_distance() -> None:
    rows, known = normal(12, 12).numpy(), Moments(12).update(normal(500, 12, seed=1))
    reference = features.Reference(known, factor(known.covariance))
    few = intervals.distances(rows, reference, 4)
    moments = Moments(12).update(rows)
    assert few.value == pytest.approx(intervals.distance(moments, reference), rel=1e-9)
    assert few.without[0] == pytest.approx(
        intervals.distance(moments.remove(Moments(12).update(rows[:3])), reference), rel=1e-7
    )


@pytest.mark.parametrize("name", ["", "../other", "/elsewhere", "a/b", ".."])
@pytest.mark.parametrize("command", [sweep_skips, process_experiments_with_skips])
def test_a_name_that_leads_elsewhere_is_refused(command, name, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        experiment.launch(command.main, ["no-run", "--name", name])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert f"argument --name: {name!r} is no name" in said


def test_a_failing_cell_is_recorded_and_the_others_are_made(tmp_path) -> None:
    sweep, forms, plain = make_sweep(tmp_path), closed_forms(example()), sweeps.Cell("heun", 18)
    broken = Gaussian(forms["mean"].mu * float("nan"), forms["mean"].U, forms["mean"].lambdas)
    cells = [plain, plain._replace(kind="gaussian", skip=4), plain._replace(kind="mean", skip=4)]
    of_mean = results.cell_path(tmp_path, **cells[2].key)
    failed = sweep.run(cells, forms["gaussian"].denoise, forms | {"mean": broken}, PIXELS, corner)
    said = "the solver left the finite numbers for seeds from 0"
    assert failed == [f"sampler heun, steps 18, kind mean, skip 4: {said}"]
    assert results.read_cell(of_mean).failed
    value = results.read_cell(results.cell_path(tmp_path, **cells[1].key)).value
    assert value["evaluations"] == 27
    drift = arrays.read_folder(sweep.beside(cells[1].key), "sweep cell")[0]["drift"]
    assert 0 < value["drift"] < 0.5 and value["drift"] == pytest.approx(drift.mean())
    assert sweep.run(cells, forms["gaussian"].denoise, forms, PIXELS, corner) == []
    assert not results.read_cell(of_mean).failed


def test_cells_whose_plain_solver_failed_are_not_made(tmp_path) -> None:
    def grid(steps: int, first: float | None = None) -> torch.Tensor:
        return edm_grid(steps, first) if steps == 6 else LEVELS * float("inf")

    sweep = make_sweep(tmp_path, grid=grid)
    cells = sweep_skips.plan({"euler": [5, 6]}, ["gaussian"], [1])
    failed = sweep.run(cells, example().denoise, closed_forms(example()), PIXELS, corner)
    assert len(failed) == 1 and failed[0].startswith("sampler euler, steps 5, kind none, skip 0: ")
    made = {tuple(cell.key.items())[1:] for cell in results.read_cells(tmp_path)}
    assert made == {
        (("steps", 6), ("kind", "none"), ("skip", 0)), (("steps", 6), ("kind", "gaussian"), ("skip", 1)),
    }  # fmt: skip


def test_a_gaussian_denoiser_may_skip_all_that_is_offered_for_every_sampler(tmp_path) -> None:
    pixels = PIXELS.to_pixels(example().sample(2000, torch.Generator().manual_seed(1)).reshape(-1, *SHAPE))
    moments = Moments(4).update(corner(pixels) + 60)  # the model has an error of its own
    reference = features.Reference(moments, factor(moments.covariance), corner(pixels).numpy())
    sweep = make_sweep(tmp_path, 100, reference=reference)
    sweep.protocol |= {"distance": "Frechet distance", "features": "corner", "n": 100, "kernel_subset": 25}
    sweep.batch = 100
    cells = sweep_skips.plan({"heun": [30], "dpmpp-2m": [30]}, ["gaussian"], [4, 12, 29])
    assert sweep.run(cells, example().denoise, closed_forms(example()), PIXELS, corner) == []
    moments.save(tmp_path / "reference")
    rows = summaries.read_sweep(tmp_path, 10, "")
    summary = summaries.summarise(rows, 0.01, 10)
    assert [(line["sampler"], line["recommended"]["skip"]) for line in summary["lines"]] == [
        ("heun", 29),
        ("dpmpp-2m", 29),
    ]
    far = sweep.measure(sweep.codes(cells[0]) + 60)["kernel_distance"]
    assert all(abs(cell["kernel_distance"]) < 0.2 * far for cell in summary["cells"])
    told = summaries.sentence(summary, summary["lines"][0])
    assert told.startswith(
        "recommended (heun, 30 steps, n = 100): skip 29 of 30 steps by a gaussian jump to level 0.002: "
    )
    assert "1 evaluations in place of 59 (98% saved" in told
    assert told.endswith("nothing beyond it was tried")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run and statistics of its data, with a classifier."""
    root = tmp_path_factory.mktemp("world")
    split = make_data(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA", str(root / "data"))
        assert run(train_features.main, "dots", "--images", 64, "--batch", 32, "--width", 4) == 0
        assert run(get_parameters.main, "dots", "gaussian", root / "params") == 0
    make_run(root / "run", split)
    return root


@pytest.fixture
def world(made, tmp_path) -> tuple[Path, Path]:
    """A copy of it for one test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run", tmp_path / "params"


def test_sweep_resume_and_figures(world, capsys) -> None:
    folder, params = world
    options = ["--features", "classifier", "--n", 20, "--steps", 4, "--batch", 20, "--other-skips", 1]
    assert run(sweep_skips.main, folder, params, *options, "--skips", 0, 1) == 0
    sweep = folder / "sweeps" / "default"
    first = {path: path.read_bytes() for path in sweep.rglob("*.json")}
    assert run(sweep_skips.main, folder, params, *options, "--skips", 0, 1, 3) == 0
    assert "5 cells finished" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in first.items())
    assert run(sweep_skips.main, folder, params, *options[:2], "--n", 21, *options[4:], "--skips", 0) == 1
    assert "made under another protocol (n: 20 there, 21 now)" in capsys.readouterr().err

    assert run(process_experiments_with_skips.main, folder, "--blocks", 8, "--margin", "spread") == 0
    summary = json.loads((sweep / "summary.json").read_text())
    assert summary["protocol"]["margin"] == "spread" and 0 < summary["margin"] < 1
    assert [(cell["jump"], cell["skip"], cell["evaluations"]) for cell in summary["cells"]] == [
        ("none", 0, 7), ("gaussian", 1, 5), ("gaussian", 3, 1), ("isotropic", 1, 5),
    ]  # fmt: skip
    assert summary["largest"]["skip"] == 3
    assert summary["distance"] == "Frechet distance (classifier features)"
    assert "FID" not in (sweep / "summary.json").read_text()
    assert summary["floor"]["images"].startswith("20 of 48 test images")
    for cell in summary["cells"]:
        assert cell["low"] <= cell["distance"] <= cell["high"]
    table = figures.read_table(sweep / "distance.csv")
    assert table["jump"] == ["none", "gaussian", "gaussian", "isotropic", "real"]
    assert set(table["sampler"]) == {"heun", ""} and all(table["kernel_distance"])
    assert (sweep / "samples.png").is_file()
    assert run(process_experiments_with_skips.main, folder, "--blocks", 8, "--margin", 1e9) == 0
    assert json.loads((sweep / "summary.json").read_text())["recommended"]["skip"] == 3


def test_budgets_levels_and_all_images(world, capsys) -> None:
    folder, params = world
    options = [
        "--features",
        "classifier",
        "--n",
        16,
        "--batch",
        16,
        "--samplers",
        "euler",
        "unipc-bh2",
        "--grid",
        "log",
    ]
    options += ["--evaluations", 3, 4, "--to-levels", 5, 80, "--kinds", "gaussian", "--save-images"]
    assert run(sweep_skips.main, folder, params, *options) == 0
    assert "9 cells finished" in capsys.readouterr().out
    sweep = folder / "sweeps" / "default"
    cells = {tuple(cell.key.values()): cell for cell in results.read_cells(sweep)}
    assert {key[:2] for key in cells if key[0] != "real"} == {
        (name, steps) for name in ("euler", "unipc-bh2") for steps in (3, 4)
    }
    cell = cells["euler", 4, "gaussian", 5.0]
    assert (cell.value["level"], cell.value["evaluations"]) == (5.0, 4)
    images = arrays.read_folder(cell.path.with_suffix(""), "sweep cell")[0]["images"]
    assert images.shape == (16, *SHAPE)
    assert run(process_experiments_with_skips.main, folder, "--blocks", 8) == 0
    summary = json.loads((sweep / "summary.json").read_text())
    assert [(line["sampler"], line["steps"], line["by"]) for line in summary["lines"]] == [
        ("euler", 4, "level"), ("euler", 3, "level"), ("unipc-bh2", 4, "level"), ("unipc-bh2", 3, "level"),
    ]  # fmt: skip
    table = figures.read_table(sweep / "levels.csv")
    assert all(
        line["recommended"]["distance"]
        == min(
            cell["distance"]
            for cell in summary["cells"]
            if (cell["sampler"], cell["steps"]) == (line["sampler"], line["steps"])
        )
        for line in summary["lines"]
    )
    assert len(table["level"]) == 8 and set(table["level"]) == {"80.0", "5.0"}
    assert not (sweep / "distance.png").exists()


def test_recommend_says_one_thing_and_makes_the_statistics(world, capsys) -> None:
    folder, params = world
    options = ["--features", "classifier", "--n", 12, "--steps", 4, "--batch", 12, "--recommend", "--blocks", 6]
    assert run(sweep_skips.main, folder, params.with_name("new"), *options) == 0
    said = capsys.readouterr().out
    assert (
        said.count("recommended (heun, 4 steps, n = 12): skip ") == 1 and (params.with_name("new") / "mu.npy").is_file()
    )
    found = json.loads((folder / "sweeps" / "recommend" / "recommendation.json").read_text())
    skips = [cell["skip"] for cell in found["cells"]]
    assert skips[0] == 0 and found["recommended"]["skip"] in skips and len(skips) <= 4
    assert run(sweep_skips.main, folder, params.with_name("new"), *options, "--skips", 1, "--margin", 1e9) == 0
    assert "skip 1 of 4 steps by a gaussian jump" in capsys.readouterr().out or 3 in skips


def test_a_reference_of_others(world, tmp_path, capsys) -> None:
    folder, params = world
    split = data.open_split("dots", "train", tmp_path / "data")
    extractor = features.open_extractor("classifier", split, tmp_path / "data")
    codes = np.concatenate([features.extract(extractor, split.images, "test"), normal(9, extractor.dimension).numpy()])
    file = tmp_path / "theirs.npz"
    np.savez(file, mu=codes.mean(0), sigma=np.cov(codes.T.astype(np.float64)))
    options = ["--features", "classifier", "--n", 8, "--steps", 3, "--batch", 8, "--skips", 1, "--kinds", "gaussian"]
    assert run(sweep_skips.main, folder, params, *options, "--reference", file) == 1
    assert "say it with --extractor NAME" in capsys.readouterr().err
    assert run(sweep_skips.main, folder, params, *options, "--extractor", "classifier") == 2
    assert "--extractor goes with --reference" in capsys.readouterr().err
    named = ["--reference", file, "--extractor", "classifier"]
    assert run(sweep_skips.main, folder, params, *options, *named) == 0
    file.unlink()
    assert run(process_experiments_with_skips.main, folder, "--blocks", 4) == 0
    assert run(process_experiments_with_skips.main, folder, "--blocks", 999) == 2
    summary = json.loads((folder / "sweeps" / "default" / "summary.json").read_text())
    assert summary["protocol"]["reference"].startswith("theirs.npz ")
    for cell in results.read_cells(folder / "sweeps" / "default"):
        theirs = features.Reference(Moments(codes.shape[1]).update(codes), factor(torch.from_numpy(np.cov(codes.T))))
        held = arrays.read_folder(cell.path.with_suffix(""), "sweep cell")[0]["features"]
        assert cell.value["distance"] == pytest.approx(intervals.measure(held, theirs), rel=1e-6)
    assert "kernel_distance" not in summary["cells"][0]


def test_mistakes_are_sentences(world, tmp_path, capsys) -> None:
    folder, params = world
    other = make_data(tmp_path / "data", "other", seed=1)
    assert run(get_parameters.main, "other", "gaussian", tmp_path / "other") == 0
    drl = make_run(tmp_path / "drl", other, "configs/drl.py:smoke")
    classifier = ("--features", "classifier")
    cases = [
        (sweep_skips.main, (tmp_path / "none", params), 1, "no run in"),
        (sweep_skips.main, (folder, tmp_path / "none"), 1, "get_parameters.py dots gaussian"),
        (sweep_skips.main, (folder, tmp_path / "other"), 1, "has statistics of other, the run was trained on dots"),
        (sweep_skips.main, (drl, tmp_path / "other"), 1, "no unconditional score"),
        (
            sweep_skips.main,
            (folder, params, "--skips", 18),
            2,
            "--skips 18: a solver of 18 steps can skip from 0 to 17",
        ),
        (sweep_skips.main, (folder, params, "--other-skips", 19), 2, "--other-skips 19: a solver of 18 steps can skip"),
        (sweep_skips.main, (folder, params, *classifier, "--to-levels", 90), 2, "expected levels above"),
        (sweep_skips.main, (folder, params, "--kinds", "mixture"), 2, "pass its statistics with --mixture DIR"),
        (sweep_skips.main, (folder, params, "--recommend", "--steps", 4, 5), 2, "--recommend finds one number"),
        (sweep_skips.main, (folder, params, "--recommend", "--n", 20), 2, "20 samples make 2 to 10 blocks"),
        (sweep_skips.main, (folder, params, "--evaluations", 1), 2, "heun needs at least 3"),
        (sweep_skips.main, (folder, params, "--n", 1), 2, "--n 1: expected at least 4"),
        (sweep_skips.main, (folder, params, "--kinds", "gausian"), 2, "nearest: gaussian"),
        (sweep_skips.main, (folder, params, *classifier, "--weights", "x"), 1, "--weights is for Inception"),
        (
            sweep_skips.main,
            (folder, params, *classifier, "--level-max", 1e9),
            2,
            "--level-max 1e+09: the run has levels",
        ),
        (
            sweep_skips.main,
            (folder, params, *classifier, "--level-min", 5, "--level-max", 3),
            2,
            "--level-min 5 and --level-max 3: expected the lower one first",
        ),
        (process_experiments_with_skips.main, (folder,), 1, "run `python linear_structure/sweep_skips.py"),
        (process_experiments_with_skips.main, (folder, "--margin", -1), 2, "--margin -1: expected at least 0"),
        (process_experiments_with_skips.main, (folder, "--blocks", 1), 2, "--blocks 1: expected at least 2"),
    ]
    for main, argv, status, text in cases:
        assert run(main, *argv) == status
        assert text in capsys.readouterr().err
