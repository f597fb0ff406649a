"""Laws of the Gaussian: each closed form against a dense inverse, the flow against solvers, scalings, files."""

import itertools
import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_model.data import Scaling
from diffusion_model.moments import Moments
from diffusion_model.samplers import SAMPLERS, edm_levels, last
from linear_structure.gaussian import Gaussian, closed_forms

SHAPE = (3, 2, 2)
D = 12


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance_of(gaussian: Gaussian) -> torch.Tensor:
    """The dense covariance [D, D]."""
    inside = gaussian.U @ torch.diag(gaussian.lambdas) @ gaussian.U.T
    return inside + gaussian.rest * (torch.eye(gaussian.dimension, dtype=torch.float64) - gaussian.U @ gaussian.U.T)


def example(rank: int = 5, rest: float = 0.0) -> Gaussian:
    """A Gaussian of known parameters in 12 dimensions."""
    U = torch.linalg.qr(random(D, D, seed=1))[0][:, :rank]
    return Gaussian(random(D, seed=2), U, torch.linspace(2.0, 0.1, rank, dtype=torch.float64), rest)


def pixels(count: int = 400) -> torch.Tensor:
    """Correlated uint8 images."""
    rows = 128 + 20 * random(count, 6, seed=3) @ random(6, D, seed=4)
    return rows.clamp(0, 255).round().to(torch.uint8).reshape(count, *SHAPE)


@pytest.mark.parametrize("rest", [0.0, 0.3])
@pytest.mark.parametrize("rank", [0, 5, 12])
@pytest.mark.parametrize("level", [0.05, 1.0, torch.tensor([0.01, 2.0, 80.0])])
def test_score_and_denoiser_equal_the_dense_inverse(rank: int, rest: float, level) -> None:
    gaussian = example(rank, rest)
    x = 3 * random(3, *SHAPE)
    covariance = covariance_of(gaussian)
    for index, single in enumerate(torch.as_tensor(level, dtype=torch.float64).expand(3)):
        residual = x[index].flatten() - gaussian.mu
        total = covariance + single**2 * torch.eye(D, dtype=torch.float64)
        score = -torch.linalg.solve(total, residual)
        assert torch.allclose(gaussian.score(x, level)[index].flatten(), score, rtol=1e-9, atol=1e-9)
        denoised = gaussian.mu + covariance @ torch.linalg.solve(total, residual)
        assert torch.allclose(gaussian.denoise(x, level)[index].flatten(), denoised, rtol=1e-9, atol=1e-9)


def test_teleport_is_a_semigroup_and_the_identity_in_place() -> None:
    gaussian, x = example(rest=0.2), 80 * random(4, *SHAPE)
    assert torch.allclose(gaussian.teleport(x, 80, 80), x, rtol=1e-13)
    there = gaussian.teleport(gaussian.teleport(x, 80.0, 7.0), 7.0, 0.3)
    assert torch.allclose(there, gaussian.teleport(x, 80.0, 0.3), rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (-1.0, 0.5), (1.0, -1.0), (float("nan"), 1.0)])
def test_a_jump_from_level_0_or_below_it_is_refused(a: float, b: float) -> None:
    gaussian, x = example(), torch.zeros(2, example().dimension)
    for form in (gaussian, gaussian.isotropic(False)):
        with pytest.raises(ValueError, match="expected one above 0 to one not below 0"):
            form.teleport(x, a, b)


def test_teleported_noise_has_the_noised_covariance() -> None:
    gaussian = example(rest=0.2)
    start = gaussian.mu[:, None] + torch.linalg.cholesky(covariance_of(gaussian) + 9 * torch.eye(D).double())
    there = gaussian.teleport(start.T, 3.0, 0.5) - gaussian.mu
    assert torch.allclose(there.T @ there, covariance_of(gaussian) + 0.25 * torch.eye(D).double(), atol=1e-12)


@pytest.mark.parametrize(("sampler", "order"), [(name, entry[1]) for name, entry in SAMPLERS.items()])
def test_solvers_converge_to_the_teleport_at_their_order(sampler: str, order: int) -> None:
    gaussian, x = example(12), 10 * random(8, D)
    errors = []
    for steps in (32, 64, 128):
        levels = edm_levels(steps, level_min=0.05, level_max=10.0)[:-1]
        end = last(SAMPLERS[sampler][0](gaussian.denoise, x, levels))
        errors.append(float((end - gaussian.teleport(x, levels[0], levels[-1])).norm()))
    gained = sampler.startswith("unipc")  # by its corrector, until the error of its first step is the largest
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2 ** (order + gained), rel=0.15)


def test_skipping_by_teleport_changes_a_gaussian_sample_by_the_solvers_error_only() -> None:
    gaussian, x = example(12), 80 * random(8, D)
    levels = edm_levels(40)
    heun = SAMPLERS["heun"][0]
    whole = last(heun(gaussian.denoise, x, levels))
    for skip in (1, 10, 20):
        jumped = last(heun(gaussian.denoise, gaussian.teleport(x, levels[0], levels[skip]), levels[skip:]))
        assert float((jumped - whole).norm() / whole.norm()) < 0.01


def test_rank_0_is_isotropic() -> None:
    gaussian = example(rest=0.2)
    mean, isotropic, whole = closed_forms(gaussian).values()
    trace = float(torch.trace(covariance_of(gaussian)))
    assert (mean.rank, mean.rest) == (0, 0.0)
    assert (isotropic.rank, isotropic.rest) == (0, pytest.approx(trace / D))
    assert whole is gaussian
    x = random(2, D)
    assert torch.allclose(mean.score(x, 2.0), (mean.mu - x) / 4)
    assert torch.allclose(mean.denoise(x, 2.0), mean.mu.expand(2, D))
    assert torch.allclose(
        isotropic.teleport(x, 5.0, 1.0) - mean.mu, (x - mean.mu) * ((trace / D + 1) / (trace / D + 25)) ** 0.5
    )


def test_level_0_is_the_data_itself() -> None:
    gaussian = example()
    x = gaussian.mu + random(3, 5) @ gaussian.U.T
    assert torch.allclose(gaussian.denoise(x, 0.0), x, atol=1e-12)
    assert torch.isfinite(gaussian.teleport(random(3, D), 3.0, 0.0)).all()


@pytest.mark.parametrize("scale", [(2 / 255, 2 / 255, 2 / 255), (0.016, 0.011, 0.02)])
def test_pixel_statistics_mapped_equal_the_statistics_of_mapped_pixels(scale: tuple) -> None:
    scaling = Scaling(scale, (-1.0, -0.7, -1.2))
    images = pixels()
    mapped = Gaussian.fit(Moments(D).update(images)).mapped(scaling, SHAPE)
    direct = Gaussian.fit(
        Moments(D).update(images.double() * torch.tensor(scale, dtype=torch.float64).reshape(3, 1, 1)), cut_off=1e-12
    )
    assert torch.allclose(covariance_of(mapped), covariance_of(direct), atol=1e-9)
    assert torch.allclose(mapped.U.T @ mapped.U, torch.eye(mapped.rank, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(mapped.mu, scaling.to_model(images).double().flatten(1).mean(0), atol=1e-5)
    assert mapped.isotropic().rest == pytest.approx(float(direct.variance.mean()))


def test_low_rank_drops_or_spreads_what_it_leaves_out() -> None:
    moments = Moments(D).update(pixels())
    trace = float(moments.covariance.trace())
    dropped, spread = Gaussian.fit(moments, rank=3), Gaussian.fit(moments, rank=3, spread=True)
    assert dropped.rank == spread.rank == 3
    assert dropped.rest == 0
    assert float(spread.lambdas.sum()) + 9 * spread.rest == pytest.approx(trace)
    assert dropped.isotropic().rest == pytest.approx(trace / D)
    assert spread.mapped(Scaling((0.5,) * 3, (0.0,) * 3), SHAPE).rest == pytest.approx(spread.rest / 4)


def test_float32_agrees_with_float64() -> None:
    gaussian, x = example(rest=0.1), 80 * random(4, *SHAPE)
    for found in (gaussian.teleport, lambda y, a, b: gaussian.denoise(y, a)):
        assert torch.allclose(found(x.float(), 80.0, 1.0).double(), found(x, 80.0, 1.0), rtol=1e-4, atol=1e-4)
    assert gaussian.denoise(x.float(), 1.0).dtype == torch.float32


class Allocated(TorchDispatchMode):
    """Bytes of every memory that operators made."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            memory = found.untyped_storage()
            self.sizes[memory.data_ptr()] = memory.nbytes()
        return found


def test_a_jump_makes_nothing_larger_than_its_batch() -> None:
    dimension, batch = 200, 4
    gaussian = Gaussian(random(dimension), torch.eye(dimension), torch.ones(dimension), rest=0.1)
    x = random(batch, dimension).float()
    gaussian.teleport(x, 80.0, 1.0)
    with Allocated() as seen:
        gaussian.teleport(x, 80.0, 1.0)
    own = {gaussian.U.data_ptr(), gaussian.mu.data_ptr(), *(held.data_ptr() for held in gaussian._held(x))}
    sizes = [size for memory, size in seen.sizes.items() if memory not in own]
    assert max(sizes) == 4 * batch * dimension
    assert sum(sizes) < 4 * 4 * batch * dimension + 100 * dimension


def test_saved_bit_for_bit(tmp_path) -> None:
    gaussian = example(rest=0.2)
    gaussian.save(tmp_path / "params", dataset="dots")
    loaded = Gaussian.load(tmp_path / "params")
    for name in ("mu", "U", "lambdas", "variance"):
        assert torch.equal(getattr(loaded, name), getattr(gaussian, name))
    assert (loaded.rest, loaded.meta) == (0.2, {"dataset": "dots"})


def test_wrong_folders_and_shapes_are_sentences(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gaussian was expected there.*get_parameters"):
        Gaussian.load(tmp_path / "none")
    folder = example().save(tmp_path / "params")
    meta = json.loads((folder / "meta.json").read_text())
    del meta["rest"]
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"lacks the field rest"):
        Gaussian.load(folder)
    Moments(3).update(random(4, 3)).save(tmp_path / "moments")
    with pytest.raises(ValueError, match="describes moments, expected gaussian"):
        Gaussian.load(tmp_path / "moments")
    with pytest.raises(ValueError, match="of 9 numbers, the statistics have 12"):
        example().denoise(random(2, 9), 1.0)
    with pytest.raises(ValueError, match=r"expected \[D\], \[D, R\] and \[R\]"):
        Gaussian(random(3), random(4, 2), random(2))
    with pytest.raises(ValueError, match="variances below 0"):
        Gaussian(random(3), torch.eye(3), torch.tensor([1.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match="statistics of 12 pixels, expected 27"):
        example().mapped(Scaling((1.0,), (0.0,)), (3, 3, 3))


def density_reference(gaussian: Gaussian, x: torch.Tensor, level: float) -> torch.Tensor:
    """torch's multivariate normal, dense."""
    total = covariance_of(gaussian) + level**2 * torch.eye(gaussian.dimension, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(gaussian.mu, total).log_prob(x.flatten(1))


@pytest.mark.parametrize("rest", [0.0, 0.3])
@pytest.mark.parametrize("rank", [0, 5, 12])
def test_log_density_equals_the_dense_one_and_its_gradient_is_the_score(rank: int, rest: float) -> None:
    gaussian = example(rank, rest)
    x = (gaussian.mu + random(3, D)).reshape(3, *SHAPE).requires_grad_()
    for level in (0.05, 1.0, 80.0) + (() if rest == 0 and rank < D else (0.0,)):
        found = gaussian.log_density(x, level)
        assert torch.allclose(found, density_reference(gaussian, x, level), rtol=1e-10)
        if level:
            (gradient,) = torch.autograd.grad(found.sum(), x)
            assert torch.allclose(gradient, gaussian.score(x, level), rtol=1e-10)
            tweedie = x + level**2 * gaussian.score(x, level)
            assert torch.allclose(gaussian.denoise(x, level), tweedie, rtol=1e-9, atol=1e-9)
    each = gaussian.log_density(x, torch.tensor([0.05, 1.0, 80.0]))
    assert torch.allclose(each[1], gaussian.log_density(x, 1.0)[1])


def test_log_density_integrates_to_one_in_one_dimension() -> None:
    grid = torch.linspace(-60, 60, 200_001, dtype=torch.float64)[:, None]
    ball, point = torch.zeros(1, 0), Gaussian(random(1), torch.zeros(1, 0), torch.zeros(0))
    for form in (
        Gaussian(random(1), torch.ones(1, 1), torch.tensor([2.0])),
        Gaussian(random(1), ball, ball[0], 3.0),
        point,
    ):
        assert float(torch.trapezoid(form.log_density(grid, 0.7).exp(), grid[:, 0])) == pytest.approx(1, abs=1e-10)


def test_what_has_no_density_says_so() -> None:
    for gaussian, flat in ((example(), 7), (example().isotropic(False), 12)):
        with pytest.raises(ValueError, match=f"no density at level 0: {flat} of the 12 directions have variance 0"):
            gaussian.log_density(random(2, D), 0.0)
    gaussian = Gaussian(random(D), torch.eye(D), torch.tensor([1.0] * 11 + [0.0]))
    with pytest.raises(ValueError, match="no density at level 0: 1 of the 12"):
        gaussian.log_density(random(2, D), 0.0)
    assert torch.isfinite(gaussian.log_density(random(2, D), 1e-3)).all()


def test_draws_have_the_covariance() -> None:
    gaussian = example(rest=0.2)
    drawn = gaussian.sample(40_000, torch.Generator().manual_seed(0)) - gaussian.mu
    assert torch.allclose(drawn.T @ drawn / len(drawn), covariance_of(gaussian), atol=0.05)


def test_a_moved_gaussian_is_the_same_around_another_mean() -> None:
    gaussian, x = example(rest=0.2), random(3, *SHAPE)
    moved = gaussian.moved(gaussian.mu + 1)
    assert torch.allclose(moved.denoise(x + 1, 0.5), gaussian.denoise(x, 0.5) + 1)
    assert moved.U is gaussian.U
