"""Laws of every SDE: the two identities that define it, the inverse of its level; and SDEs of the user's own."""

import hashlib
import math
import shutil

import pytest
import torch

from diffusion_model import checkpoint, experiment, samplers, sampling, training
from diffusion_model.sde import SDES, LinearSDE, fingerprint, from_config

COSINE = """
import math
from dataclasses import dataclass

import torch

from diffusion_model.sde import LinearSDE


@dataclass
class Cosine(LinearSDE):
    reach: float = 0.49

    def alpha(self, t: "torch.Tensor") -> "torch.Tensor":
        return torch.cos(self.reach * math.pi * t)

    def sigma(self, t: "torch.Tensor") -> "torch.Tensor":
        return torch.sin(self.reach * math.pi * t)
"""


class Derived(LinearSDE):
    """alpha and sigma of a built-in process, and nothing of its closed forms."""

    def __init__(self, closed):
        self.closed = closed

    def alpha(self, t):
        return self.closed.alpha(t)

    def sigma(self, t):
        return self.closed.sigma(t)


@pytest.fixture(params=SDES)
def closed(request):
    return SDES[request.param]()


@pytest.fixture(params=[*SDES, *(f"derived {name}" for name in SDES)])
def sde(request):
    name = request.param.removeprefix("derived ")
    return SDES[name]() if name == request.param else Derived(SDES[name]())


@pytest.fixture
def times():
    return torch.linspace(1e-4, 1, 50, dtype=torch.float64, requires_grad=True)


def derivative(value, times):
    return torch.autograd.grad(value.sum(), times)[0]


def test_drift_is_the_derivative_of_log_alpha(sde, times):
    slope = derivative(torch.log(sde.alpha(times)) + 0 * times, times)
    assert torch.allclose(slope, sde.drift(times), rtol=1e-9, atol=1e-12)


def test_diffusion_is_the_growth_of_the_squared_level(sde, times):
    slope = derivative(sde.level(times) ** 2, times)
    assert torch.allclose(slope, (sde.diffusion(times) / sde.alpha(times)) ** 2, rtol=1e-7)


def test_level_is_sigma_over_alpha(sde, times):
    assert torch.allclose(sde.level(times), sde.sigma(times) / sde.alpha(times), rtol=1e-10)


def test_time_inverts_level(sde):
    times = torch.linspace(sde.eps, 1, 200, dtype=torch.float64)
    assert torch.allclose(sde.time(sde.level(times)), times, rtol=1e-8, atol=1e-10)


def test_closed_forms_are_what_alpha_and_sigma_give(closed):
    derived, times = Derived(closed), torch.linspace(closed.eps, 1, 300, dtype=torch.float64).view(3, 100)
    for name in ("drift", "diffusion", "level"):
        assert torch.allclose(getattr(derived, name)(times), getattr(closed, name)(times), rtol=1e-7, atol=1e-12), name
    levels = torch.logspace(-1.5, 1.5, 40, dtype=torch.float64)
    assert torch.allclose(derived.time(levels), closed.time(levels), rtol=0, atol=1e-11)
    assert derived.level_range() == pytest.approx(closed.level_range(), rel=2e-4)  # VE's reaches to t = 0


def test_derived_times_beyond_the_ends_are_the_ends():
    derived = Derived(SDES["vp"]())
    levels = torch.tensor([1e-9, 1e9], dtype=torch.float64)
    assert torch.allclose(derived.time(levels), torch.tensor([derived.eps, 1.0], dtype=torch.float64), rtol=1e-10)


def test_derivatives_need_no_gradients_around_them():
    with torch.no_grad():
        t = torch.tensor([0.3], dtype=torch.float64)
        assert float(Derived(SDES["vp"]()).drift(t)) == pytest.approx(-(0.1 + 0.3 * 19.9) / 2)


def test_vp_keeps_unit_variance_and_sub_vp_its_square():
    times = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    vp, sub = SDES["vp"](), SDES["subvp"]()
    assert torch.allclose(vp.alpha(times) ** 2 + vp.sigma(times) ** 2, torch.ones_like(times), rtol=1e-12)
    assert torch.allclose(sub.sigma(times), vp.sigma(times) ** 2, rtol=1e-12)


def test_ve_matches_the_papers_grid():
    """sigma at the k = 10 grid: .01 .0234 .0549 .1287 .3017 .7071 1.657 3.884 9.103 21.33 50."""
    sigma = SDES["ve"]().sigma(torch.arange(11, dtype=torch.float64) / 10)
    paper = torch.tensor(
        [0.01, 0.0234, 0.0549, 0.1287, 0.3017, 0.7071, 1.657, 3.884, 9.103, 21.33, 50], dtype=torch.float64
    )
    assert torch.allclose(sigma, paper, rtol=2e-3)


def test_each_process_takes_its_own_fields_of_one_section():
    section = {"sigma_min": 0.02, "sigma_max": 30.0, "beta_min": 0.2, "beta_max": 10.0}
    ve = from_config({"name": "ve", **section}, unit=2.0)
    assert ve.level_range() == (0.02 * 2.0, 30.0 * 2.0)
    vp = from_config({"name": "vp", **section}, unit=2.0)
    assert vp.level_range()[1] == pytest.approx(math.sqrt(math.expm1((0.2 + 10) / 2)))
    assert from_config({"name": "subvp"}) == SDES["subvp"]()


def test_a_meta_device_around_does_not_matter(tmp_path):
    with torch.device("meta"):
        assert named(own(tmp_path)).level_range()[0] > 0


# SDEs of one's own


def own(folder, text=COSINE, kind="Cosine"):
    (folder / "cosine.py").write_text(text)
    return f"{folder / 'cosine.py'}:{kind}"


def named(name, **fields):
    """The process of a file that the command line itself names."""
    section = checkpoint.unflatten(fingerprint(name))["sde"]
    return from_config({"name": name, **section, **fields}, process=name)


def test_a_class_with_alpha_and_sigma_is_a_process(tmp_path):
    """tan(c t) is the cosine process's level: drift -c tan(c t), g^2 = cos^2 d tan^2 / dt = 2 c tan(c t)."""
    process, c = named(own(tmp_path), sigma_min=0.01, reach=0.4), 0.4 * math.pi
    t = torch.linspace(process.eps, 1, 50, dtype=torch.float64)
    assert torch.allclose(process.level(t), torch.tan(c * t))
    assert torch.allclose(process.drift(t), -c * torch.tan(c * t))
    assert torch.allclose(process.diffusion(t) ** 2, 2 * c * torch.tan(c * t))
    assert torch.allclose(process.time(torch.tan(c * t)), t)


def test_a_file_is_found_from_here_and_known_by_its_hash(tmp_path, monkeypatch):
    own(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert named("cosine.py:Cosine").reach == 0.49
    digest = hashlib.sha256((tmp_path / "cosine.py").read_bytes()).hexdigest()
    assert fingerprint("cosine.py:Cosine") == {"sde.sha256": digest} and fingerprint("vp") == {}
    recorded = {"name": "cosine.py:Cosine", "sha256": digest}
    (tmp_path / "elsewhere.py").write_text(COSINE)  # the same file under another name is the same process
    assert from_config(recorded, process="elsewhere.py:Cosine").reach == 0.49
    (tmp_path / "cosine.py").write_text(COSINE.replace("0.49", "0.48"))
    with pytest.raises(ValueError, match=r"has changed since the run began .* put the old file back"):
        from_config(recorded, process="cosine.py:Cosine")
    assert named("cosine.py:Cosine").reach == 0.48


def test_a_file_is_run_only_where_the_caller_names_it(tmp_path, monkeypatch):
    touching = COSINE + "from pathlib import Path\nPath('executed').touch()\n"
    own(tmp_path, touching)
    monkeypatch.chdir(tmp_path)
    name, recorded = (
        "cosine.py:Cosine",
        {"name": "cosine.py:Cosine", **checkpoint.unflatten(fingerprint("cosine.py:Cosine"))["sde"]},
    )
    for section, process, sentence in (
        (recorded, None, "is a Python file of whoever made the run, .* add --process cosine.py:Cosine"),
        ({"name": "a b.py:P"}, None, "add --process 'a b.py:P'"),
        ({"name": name}, name, "without sde.sha256"),
        (recorded | {"sha256": "0" * 64}, name, "has changed since the run began"),
        (recorded, "cosine.py:Other", "the noise process here is cosine.py:Cosine; name that class"),
        (recorded, "gone.py:Cosine", "there is no file gone.py"),
        ({"name": "vp"}, name, "the noise process here is the built-in 'vp'; leave --process out"),
    ):
        with pytest.raises(ValueError, match=sentence):
            from_config(section, process=process)
    assert not (tmp_path / "executed").exists()
    assert from_config(recorded, process=name).reach == 0.49
    assert (tmp_path / "executed").exists()


def test_a_class_of_the_callers_own_stands_for_the_file(tmp_path):
    class Cosine(Derived):
        def __init__(self):
            super().__init__(SDES["vp"]())

    assert isinstance(from_config({"name": "gone.py:Cosine"}, process=Cosine), Cosine)


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        (COSINE, "Cosin", "no subclass of LinearSDE called 'Cosin'; nearest: Cosine"),
        ("x = 1", "Cosine", "no subclass of LinearSDE called 'Cosine'; it has none"),
        ("class Cosine:\n    pass", "Cosine", "no subclass of LinearSDE called 'Cosine'"),
        ("import nothing_of_the_kind", "Cosine", "cannot be run as Python (ModuleNotFoundError"),
        ("def f(:", "Cosine", "cannot be run as Python (SyntaxError"),
        ("raise SystemExit(3)", "Cosine", "cannot be run as Python (SystemExit: 3"),
        (COSINE.replace("def sigma", "def noise"), "Cosine", "Cosine lacks sigma; expected alpha(t) and sigma(t)"),
        (COSINE.replace("reach: float = 0.49", "far: float"), "Cosine", "cannot be made from the section sde (TypeError"),
        (COSINE.replace("torch.cos", "-torch.cos"), "Cosine", "alpha is -1 at t = 1e-05; expected finite numbers above 0"),
        (COSINE.replace("0.49", "0.51"), "Cosine", "alpha is -0."),
        (COSINE.replace("0.49", "0.5"), "Cosine", "sigma / alpha is 1.63312e+16 at t = 1; expected at most 100000"),
        (COSINE.replace("torch.sin(", "torch.sqrt(0.5 - "), "Cosine", "sigma is nan at t = "),
        (COSINE.replace("torch.sin(", "torch.exp(-2 * "), "Cosine", "sigma / alpha does not grow at t = "),
        (COSINE.replace("torch.sin(self.reach * math.pi * t)", "1.0"), "Cosine", "sigma(t) gives float for t float64"),
        (COSINE.replace("math.pi * t)", "math.pi * t).float()"), "Cosine", "gives torch.float32 [77, 13]"),
        (COSINE.replace("torch.sin", "math.sin"), "Cosine", "sigma(t) fails ("),
        (COSINE.replace("    reach", "    eps: float = 2.0\n    reach"), "Cosine", "eps is 2.0; expected above 0 and below 1"),
    ],
)  # fmt: skip
def test_what_is_no_process_is_refused_in_a_sentence(tmp_path, text, kind, sentence):
    with pytest.raises(ValueError) as refusal:
        named(own(tmp_path, text, kind))
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_unknown_names_and_files_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"sde.name 'subpv' is not known; nearest: subvp, or FILE.py:CLASS"):
        from_config({"name": "subpv"})
    with pytest.raises(ValueError, match=r"there is no file gone.py, seen from here or from the project's root"):
        from_config({"name": "gone.py:Cosine"}, process="gone.py:Cosine")


def test_a_run_of_ones_own_process_trains_loads_and_samples(tmp_path, monkeypatch):
    """Smoke-sized, on four images: a finite loss, samples between the ends of the process, and a changed file refused."""
    name, run = own(tmp_path), tmp_path / "run"
    config = experiment.flatten(experiment.load_config("configs/edm.py:smoke"))
    config |= {"sde.name": name, "model.precondition": "sde", "model.fourier_scale": 0.02} | fingerprint(name)
    config |= {"objective.levels": "uniform-time", "objective.weight": "likelihood", "training.batch": 4}
    config |= {"training.images": 12}
    record = {
        "config": config, "scaling": {"scale": [1 / 127.5] * 3, "shift": [-1.0] * 3}, "shape": [3, 16, 16], "std": 0.5,
        "data": {"name": "four", "hash": "-"},
    }  # fmt: skip
    record = checkpoint.write_run(run, record)
    trainer = training.Trainer(run, record, Four(), torch.device("cpu"), name)
    assert all(math.isfinite(float(trainer.advance()["score"])) for _ in range(3))
    trainer.save()
    for group in ("optimizer", "average"):  # a checkpoint that lacks a part is one sentence where training would go on
        whole, folder = checkpoint.read(run, 3, ["model", "average", "optimizer"])[0], run / "checkpoints/3"
        lacking = {**whole, group: dict(list(whole[group].items())[1:])}
        kept = shutil.copytree(folder, tmp_path / "kept")
        checkpoint.save(run, 3, lacking, 1, updates=3, world=1)
        with pytest.raises(ValueError, match=r"the weights of .* do not fit its config.json .*None stored"):
            training.Trainer(run, record, Four(), torch.device("cpu"), name)
        shutil.rmtree(folder)
        kept.rename(folder)
    with pytest.raises(ValueError, match="is run only where you name it"):
        checkpoint.load_score_model(run)
    model = checkpoint.load_score_model(run, process=name)
    ends = model.sde.level_range()
    assert ends == pytest.approx((math.tan(0.49 * math.pi * 1e-5), math.tan(0.49 * math.pi)))
    pixels = sampling.sample_images(model, range(2), "heun", samplers.edm_levels(4, *ends), 2)
    assert pixels.shape == (2, 3, 16, 16)
    (tmp_path / "cosine.py").write_text(COSINE + "\n")
    with pytest.raises(ValueError, match="has changed since the run began"):
        checkpoint.load_score_model(run, process=name)
    (tmp_path / "cosine.py").unlink()
    with pytest.raises(ValueError, match="there is no file"):
        checkpoint.load_score_model(run, process=name)


class Four:
    """A split of four images."""

    name, split, hash, shape = "four", "train", "-", (3, 16, 16)
    images = torch.randint(
        0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy()

    def __len__(self):
        return 4
