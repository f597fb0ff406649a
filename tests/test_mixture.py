"""Laws of the mixtures: dense references, a high-order integration, limits in which they are each other, files."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import torch

from diffusion_model.data import Scaling
from diffusion_model.samplers import SAMPLERS, edm_levels, last
from linear_structure.diagonal import BASES, Diagonal
from linear_structure.gaussian import Gaussian
from linear_structure.mixture import ClassConditional, DeltaMixture, Mixture

SHAPE = (3, 2, 2)
D = 12
UNIT = Scaling((1 / 127.5,) * 3, (-1.0,) * 3)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(seed: int, rank: int, rest: float) -> Gaussian:
    """A Gaussian of known parameters in 12 dimensions."""
    U = torch.linalg.qr(random(D, D, seed=seed))[0][:, :rank]
    return Gaussian(random(D, seed=seed + 100), U, torch.linspace(1.0, 0.1, rank, dtype=torch.float64), rest)


def example(rest: float = 0.05) -> Mixture:
    """Three components of ranks 12, 4 and 0."""
    return Mixture([0.5, 0.3, 0.2], [gaussian(1, 12, 0.0), gaussian(2, 4, rest), gaussian(3, 0, rest)])


def images(count: int = 60) -> np.ndarray:
    """uint8 images, no two alike."""
    return (128 + 60 * random(count, *SHAPE, seed=5)).clamp(0, 255).to(torch.uint8).numpy()


def dense(form: Gaussian, level: float) -> torch.distributions.MultivariateNormal:
    """torch's multivariate normal of the noised data."""
    inside = form.U @ torch.diag(form.lambdas - form.rest) @ form.U.T
    return torch.distributions.MultivariateNormal(form.mu, inside + (form.rest + level**2) * torch.eye(D).double())


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error of a batch."""
    return float((found - wanted).norm() / wanted.norm())


def followed(denoise, x: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """The flow by scipy, in the level itself and far below any tolerance."""

    def slope(level: float, flat: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(flat).reshape(x.shape)
        return ((state - denoise(state, level)) / level).numpy().ravel()

    done = scipy.integrate.solve_ivp(slope, (a, b), x.numpy().ravel(), "DOP853", rtol=1e-9, atol=1e-9)
    return torch.from_numpy(done.y[:, -1].copy()).reshape(x.shape)


@pytest.mark.parametrize("level", [0.05, 1.0, 30.0])
def test_equal_to_the_dense_mixture(level: float) -> None:
    mixture = example()
    x = (random(5, D) * (1 + level)).requires_grad_()
    parts = torch.stack([dense(part, level).log_prob(x) for part in mixture.components], 1) + mixture.weights.log()
    assert torch.allclose(mixture.log_density(x, level), parts.logsumexp(1), rtol=1e-10)
    assert torch.allclose(mixture.responsibilities(x, level), parts.softmax(1), atol=1e-9)
    (wanted,) = torch.autograd.grad(parts.logsumexp(1).sum(), x)
    images = x.detach().reshape(5, *SHAPE)
    score = mixture.score(images, level)
    assert torch.allclose(score.flatten(1), wanted, rtol=1e-8, atol=1e-10)
    assert torch.allclose(mixture.denoise(images, level), images + level**2 * score, rtol=1e-9, atol=1e-9)
    (own,) = torch.autograd.grad(mixture.log_density(x, level).sum(), x)
    assert torch.allclose(own, wanted, rtol=1e-8, atol=1e-10)


def test_levels_may_differ_by_image() -> None:
    mixture, x = example(), random(3, *SHAPE)
    levels = torch.tensor([0.05, 1.0, 30.0], dtype=torch.float64)
    for name, points in itertools.product(("score", "denoise", "log_density"), (mixture, DeltaMixture(images(), UNIT))):
        together = getattr(points, name)(x, levels)
        alone = torch.cat([getattr(points, name)(x[row : row + 1], levels[row]) for row in range(3)])
        assert torch.allclose(together, alone, rtol=1e-12), name


@pytest.mark.parametrize("level", [0.0, 1e-3, 1e3])
def test_responsibilities_are_finite_and_sum_to_one(level: float) -> None:
    mixture = Mixture([0.5, 0.25, 0.25], [gaussian(1, 12, 0.0), gaussian(2, 4, 0.0), gaussian(3, 0, 0.0)])
    at_data = torch.cat([part.sample(4, torch.Generator().manual_seed(0)) for part in mixture.components])
    for x in (at_data, at_data + level * random(12, D), 1e4 * random(12, D), at_data.float()):
        shares = mixture.responsibilities(x, level)
        assert torch.allclose(shares.sum(1), torch.ones(12, dtype=torch.float64), atol=1e-12)
        assert ((shares >= 0) & (shares <= 1)).all()
        assert torch.isfinite(mixture.denoise(x, level)).all()
        points = DeltaMixture(images(), UNIT)
        weights, _ = points.nearest(x, level, 60)
        assert torch.allclose(weights.sum(1), torch.ones(12, dtype=torch.float64), atol=1e-9)
        assert torch.isfinite(points.denoise(x, level)).all()
    if level == 1e3:
        assert torch.allclose(mixture.responsibilities(at_data, level), mixture.weights, atol=1e-4)


def test_log_density_integrates_to_one_in_one_dimension() -> None:
    grid = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    line, ball = torch.ones(1, 1), torch.zeros(1, 0)
    parts = [Gaussian(torch.tensor([2.0]), line, line[0] / 2), Gaussian(torch.tensor([-1.0]), ball, ball[0], 0.01)]
    mixture = Mixture([0.3, 0.7], parts)
    for level in (0.0, 0.5):
        area = torch.trapezoid(mixture.log_density(grid[:, None], level).exp(), grid)
        assert float(area) == pytest.approx(1, abs=1e-9)
    points = DeltaMixture(np.array([0, 100, 255], np.uint8).reshape(3, 1, 1, 1), Scaling((1 / 127.5,), (-1.0,)))
    density = points.log_density(grid[:, None], 0.5)
    assert float(torch.trapezoid(density.exp(), grid)) == pytest.approx(1, abs=1e-9)
    (slope,) = torch.gradient(density, spacing=(grid,))
    assert torch.allclose(slope[1:-1], points.score(grid[1:-1, None], 0.5)[:, 0], atol=1e-4)


def test_one_component_is_its_gaussian() -> None:
    alone, x = gaussian(1, 4, 0.1), 5 * random(3, *SHAPE)
    mixture = Mixture([1.0], [alone])
    for name, levels in (("score", (0.5,)), ("denoise", (0.5,)), ("log_density", (0.5,)), ("teleport", (5.0, 0.0))):
        assert torch.allclose(getattr(mixture, name)(x, *levels), getattr(alone, name)(x, *levels), rtol=1e-12), name
    twice = Mixture([0.4, 0.6], [alone, alone])
    assert torch.allclose(twice.denoise(x, 0.5), alone.denoise(x, 0.5), rtol=1e-12)
    assert relative(twice.teleport(x, 5.0, 0.01), alone.teleport(x, 5.0, 0.01)) < 1e-6


@pytest.mark.parametrize("b", [1.0, 0.1])
def test_the_flow_is_that_of_a_high_order_integration(b: float) -> None:
    x = 4 * random(2, *SHAPE)
    for form in (example(), DeltaMixture(images(9), UNIT)):
        assert relative(form.teleport(x, 4.0, b), followed(form.denoise, x, 4.0, b)) < 1e-6


def test_the_flow_is_a_semigroup_and_ends_at_the_data() -> None:
    x = 4 * random(2, *SHAPE)
    for form in (example(), DeltaMixture(images(9), UNIT)):
        there = form.teleport(x, 4.0, 0.5)
        assert relative(form.teleport(form.teleport(x, 4.0, 1.5), 1.5, 0.5), there) < 1e-6
        assert relative(form.teleport(there, 0.5, 4.0), x) < 1e-6
    points = DeltaMixture(images(9), UNIT)
    ends = points.teleport(x, 4.0, 0.0)
    weights, rows = points.nearest(ends, 1e-3, 1)
    assert torch.allclose(weights, torch.ones(2, 1, dtype=torch.float64))
    assert torch.allclose(ends, UNIT.to_model(torch.from_numpy(images(9)))[rows[:, 0]].double(), atol=1e-6)


def test_one_point_is_the_mean_alone() -> None:
    points, x = DeltaMixture(images(1), UNIT), random(3, *SHAPE)
    mean = torch.from_numpy(images(1)).double().flatten() / 127.5 - 1
    ball = Gaussian(mean, torch.zeros(D, 0), torch.zeros(0))
    for name, levels in (("score", (0.5,)), ("denoise", (0.5,)), ("log_density", (0.5,)), ("denoise", (0.0,))):
        assert torch.allclose(getattr(points, name)(x, *levels), getattr(ball, name)(x, *levels), rtol=1e-9), name
    assert relative(points.teleport(x, 5.0, 0.5), ball.teleport(x, 5.0, 0.5)) < 1e-6


@pytest.mark.parametrize("level", [1e-3, 0.3, 1e3])
def test_points_are_components_without_variance(level: float) -> None:
    points = DeltaMixture(images(), UNIT, block=7)
    rows = torch.from_numpy(images()).double().flatten(1) / 127.5 - 1
    mixture = Mixture([1 / 60] * 60, [Gaussian(row, torch.zeros(D, 0), torch.zeros(0)) for row in rows])
    x = rows[:5].reshape(5, *SHAPE) + level * random(5, *SHAPE)
    for name in ("score", "denoise", "log_density"):
        found, wanted = getattr(points, name)(x, level), getattr(mixture, name)(x, level)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-9), name


def test_points_do_not_depend_on_the_block(tmp_path) -> None:
    np.save(tmp_path / "images.npy", images())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r", allow_pickle=False)
    x = random(4, *SHAPE)
    for level in (1e-3, 0.2, 50.0):
        whole = DeltaMixture(images(), UNIT, block=1000)
        for block in (1, 7, 59):
            parts = DeltaMixture(mapped, UNIT, block)
            assert torch.allclose(parts.denoise(x, level), whole.denoise(x, level), rtol=1e-12, atol=1e-13)
            assert torch.allclose(parts.log_density(x, level), whole.log_density(x, level), rtol=1e-12)
            for found, wanted in zip(parts.nearest(x, level, 3), whole.nearest(x, level, 3), strict=True):
                assert torch.allclose(found, wanted, rtol=1e-9)


def test_the_nearest_images_carry_the_largest_weights() -> None:
    points, x = DeltaMixture(images(), UNIT), random(4, *SHAPE)
    weights, rows = points.nearest(x, 0.4, 60)
    clean = torch.from_numpy(images()).double().flatten(1) / 127.5 - 1
    distances = (x.flatten(1)[:, None] - clean).square().sum(2)
    assert torch.equal(rows, distances.argsort(1))
    assert torch.allclose(weights, (-distances / 0.32).softmax(1).gather(1, rows))
    assert torch.allclose((weights[:, :, None] * clean[rows]).sum(1), points.denoise(x, 0.4).flatten(1))
    assert torch.allclose(points.denoise(x, 0.0).flatten(1), clean[rows[:, 0]])


@pytest.fixture(scope="module")
def flows() -> tuple:
    """Every form with a float32 start, a grid, and where the form's flow takes the start."""
    levels, x = edm_levels(24, level_min=0.3, level_max=6.0)[:-1], 6 * random(2, *SHAPE).float()
    forms = [example(), DeltaMixture(images(9), UNIT), ClassConditional(example()).given(torch.tensor([2, 0]))]
    forms += [Diagonal(random(D), random(D, seed=1).square(), SHAPE, basis) for basis in BASES]
    return x, levels, [(form, form.teleport(x, levels[0], levels[-1])) for form in forms]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_follows_every_form_to_its_flow(flows: tuple, sampler: str) -> None:
    x, levels, forms = flows
    for form, wanted in forms:
        end = last(SAMPLERS[sampler][0](form.denoise, x, levels))
        assert end.dtype == torch.float32
        assert relative(end, wanted) < (0.15 if sampler == "euler" else 0.05)


def test_a_class_is_its_gaussian() -> None:
    form, x = ClassConditional(example()), 5 * random(4, *SHAPE)
    labels = torch.tensor([2, 0, 2, 1])
    levels = torch.tensor([0.5, 2.0, 0.1, 5.0], dtype=torch.float64)
    bound = form.given(labels)
    for name, more in (("score", ()), ("denoise", ()), ("log_density", ()), ("teleport", (0.05,))):
        found = getattr(bound, name)(x, levels, *more)
        for row, label in enumerate(labels.tolist()):
            one = getattr(form.mixture.components[label], name)(x[row : row + 1], levels[row], *more)
            assert torch.allclose(found[row], one[0], rtol=1e-12), name
        assert torch.equal(found, getattr(form, name)(x, levels, *more, labels=labels))
    alone = ClassConditional(Mixture([1.0], [gaussian(1, 4, 0.1)])).given(torch.zeros(4, dtype=torch.int64))
    assert torch.allclose(alone.denoise(x, levels), gaussian(1, 4, 0.1).denoise(x, levels), rtol=1e-12)
    drawn = bound.sample(4, torch.Generator().manual_seed(0))
    assert torch.isfinite(form.mixture.components[2].log_density(drawn[[0, 2]], 0.0)).all()


def test_mapped_and_denoised_commute() -> None:
    scaling = Scaling((1 / 127.5,) * 3, (-1.0, -0.5, 0.2))
    shift = torch.tensor(scaling.shift, dtype=torch.float64).reshape(3, 1, 1)
    parts = [Gaussian(100 + 30 * part.mu, part.U, 900 * part.lambdas, 900 * part.rest) for part in example().components]
    labels = torch.tensor([0, 1, 2])
    pixels = 127 + 50 * random(3, *SHAPE)
    mixture = Mixture([0.5, 0.3, 0.2], parts)
    forms = [mixture, DeltaMixture(images()), ClassConditional(mixture).given(labels)]
    for form, level in itertools.product(forms, (5.0, 40.0)):
        found = form.mapped(scaling, SHAPE).denoise(pixels / 127.5 + shift, level / 127.5)
        assert torch.allclose(found, form.denoise(pixels, level) / 127.5 + shift, atol=1e-9)
        density = form.mapped(scaling, SHAPE).log_density(pixels / 127.5 + shift, level / 127.5)
        assert torch.allclose(density, form.log_density(pixels, level) + D * math.log(127.5))


def test_scales_by_channel_map_a_shared_covariance_once() -> None:
    scaling = Scaling((0.01, 0.02, 0.005), (0.0,) * 3)
    base = gaussian(1, 12, 0.0)
    mapped = Mixture([0.5, 0.5], [base, base.moved(random(D))]).mapped(scaling, SHAPE)
    scale = torch.tensor(scaling.scale, dtype=torch.float64).repeat_interleave(4)
    assert mapped.components[0].U is mapped.components[1].U
    wanted = scale[:, None] * dense(base, 0.0).covariance_matrix * scale
    for part in mapped.components:
        assert torch.allclose(dense(part, 0.0).covariance_matrix, wanted, atol=1e-12)
    assert torch.allclose(mapped.components[1].mu, random(D) * scale)


def test_draws_have_the_moments_of_the_mixture() -> None:
    mixture = example()
    drawn = mixture.sample(40_000, torch.Generator().manual_seed(0))
    means = torch.stack([part.mu for part in mixture.components])
    assert torch.allclose(drawn.mean(0), mixture.weights @ means, atol=0.03)
    points = DeltaMixture(images(), UNIT)
    assert torch.allclose(points.nearest(points.sample(5, torch.Generator()), 1e-3, 1)[0], torch.ones(5, 1).double())


def test_saved_bit_for_bit(tmp_path) -> None:
    base = gaussian(1, 4, 0.1)
    parts = [base, base.moved(random(D)), gaussian(2, 12, 0.0), gaussian(3, 0, 0.5)]
    mixture = Mixture([0.1, 0.2, 0.3, 0.4], parts, {"method": "em"})
    x = random(3, *SHAPE)
    for loaded in (
        Mixture.load(mixture.save(tmp_path / "mixture", dataset="dots")),
        ClassConditional.load(ClassConditional(mixture).save(tmp_path / "classes", dataset="dots")).mixture,
    ):
        assert torch.equal(loaded.weights, mixture.weights)
        assert loaded.meta == {"method": "em", "dataset": "dots"}
        assert loaded.components[0].U is loaded.components[1].U
        for one, other in zip(loaded.components, mixture.components, strict=True):
            for name in ("mu", "U", "lambdas", "variance"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            assert one.rest == other.rest
        assert torch.allclose(loaded.denoise(x, 0.5), mixture.denoise(x, 0.5), rtol=1e-13)
    points = DeltaMixture(images(), UNIT, meta={"dataset": "dots"})
    loaded = DeltaMixture.load(points.save(tmp_path / "points"))
    assert (loaded.images == points.images).all()
    assert (loaded.scaling, loaded.meta) == (UNIT, {"dataset": "dots"})
    with pytest.raises(ValueError, match="describes gaussian mixture, expected class-conditional gaussian"):
        ClassConditional.load(tmp_path / "mixture")


def test_bad_input_is_a_sentence() -> None:
    one, two = gaussian(1, 4, 0.1), gaussian(2, 4, 0.0)
    with pytest.raises(ValueError, match=r"weights sum to 0\.9, expected 1"):
        Mixture([0.5, 0.4], [one, two])
    with pytest.raises(ValueError, match=r"components \[1\] are empty"):
        Mixture([1.0, 0.0], [one, two])
    with pytest.raises(ValueError, match="one weight a component"):
        Mixture([1.0], [one, two])
    with pytest.raises(ValueError, match=r"of \[3, 12\] dimensions"):
        Mixture([0.5, 0.5], [one, Gaussian(random(3), torch.zeros(3, 0), torch.zeros(0))])
    mixture, x = Mixture([0.5, 0.5], [one, two]), random(2, D)
    with pytest.raises(ValueError, match="no density at level 0: 8 of the 12"):
        mixture.log_density(x, 0.0)
    with pytest.raises(ValueError, match="of 9 numbers"):
        mixture.denoise(random(2, 9), 1.0)
    classes = ClassConditional(mixture)
    with pytest.raises(ValueError, match="label 2: expected a class from 0 to 1"):
        classes.denoise(x, 1.0, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"labels \[3\] for 2 images"):
        classes.given(torch.tensor([0, 1, 1])).score(x, 1.0)
    points = DeltaMixture(images(), UNIT)
    with pytest.raises(ValueError, match="no density at level 0: the data are points"):
        points.log_density(x, 0.0)
    with pytest.raises(ValueError, match="of 9 numbers"):
        points.denoise(random(2, 9), 1.0)
    with pytest.raises(ValueError, match=r"expected at least one, uint8 \[N, C, H, W\]"):
        DeltaMixture(images().astype(np.float32))
    with pytest.raises(ValueError, match=r"expected \[3, 1, 4\]"):
        points.mapped(UNIT, (3, 1, 4))
    with pytest.raises(ValueError, match="expected 1 to 60"):
        points.nearest(x, 1.0, 61)
    with pytest.raises(ValueError, match="blocks of 0 images"):
        DeltaMixture(images(), block=0)
