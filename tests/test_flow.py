"""Laws of the integrated flow against the closed one, and of the jump in front of any denoiser."""

import pytest
import torch

from diffusion_model.samplers import edm_levels, heun, last
from linear_structure import flow
from linear_structure.flow import Teleport, integrate
from linear_structure.gaussian import Gaussian

D = 12


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(rest: float = 0.0) -> Gaussian:
    """A Gaussian of known parameters in 12 dimensions, with directions from wide to narrow."""
    U = torch.linalg.qr(random(D, D, seed=1))[0][:, :8]
    return Gaussian(random(D, seed=2), U, torch.logspace(1, -6, 8, dtype=torch.float64), rest)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest relative error of an image."""
    return float(((found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)).max())


class Counting:
    """A denoiser that counts the images it is asked for."""

    def __init__(self, form: Gaussian) -> None:
        self.form, self.seen = form, 0

    def __call__(self, x: torch.Tensor, level: torch.Tensor, **conditions: object) -> torch.Tensor:
        self.seen += len(x)
        return self.form.denoise(x, level)


@pytest.mark.parametrize("rest", [0.0, 0.1])
@pytest.mark.parametrize(("a", "b"), [(80.0, 0.002), (80.0, 7.0), (0.5, 40.0), (3.0, 3.0), (80.0, 0.0), (1e-6, 0.0)])
def test_the_integrated_flow_is_the_closed_one(a: float, b: float, rest: float) -> None:
    gaussian = example(rest)
    x = gaussian.mu + a * random(4, D)
    # the last step to 0 is the denoiser's, off by up to LEAST / 4 in the directions that are as narrow
    bound = 1e-6 if b else 5e-6
    assert relative(integrate(gaussian.denoise, x, a, b), gaussian.teleport(x, a, b)) < bound


def test_images_have_levels_and_steps_of_their_own() -> None:
    gaussian, x = example(0.1), random(3, 3, 2, 2)
    a, b = torch.tensor([80.0, 2.0, 0.1]), torch.tensor([0.5, 0.0, 5.0])
    together = integrate(gaussian.denoise, x, a, b)
    assert relative(together, gaussian.teleport(x, a, b)) < 5e-6
    alone = torch.cat([integrate(gaussian.denoise, x[row : row + 1], a[row], b[row]) for row in range(3)])
    assert torch.allclose(together, alone, rtol=1e-12)
    assert integrate(gaussian.denoise, x.float(), 3.0, 1.0).dtype == torch.float32


def test_what_cannot_be_integrated_is_a_sentence(monkeypatch) -> None:
    gaussian, x = example(), random(2, D)
    with pytest.raises(ValueError, match="from level 0 to 1: expected one above 0"):
        integrate(gaussian.denoise, x, 0.0, 1.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        integrate(gaussian.denoise, x / 0, 2.0, 1.0)
    monkeypatch.setattr(flow, "MAX_STEPS", 20)
    with pytest.raises(FloatingPointError, match="give a larger tolerance"):
        integrate(lambda y, level: y + random(*y.shape, seed=int(1e9 * float(level[0])) % 2**31), x, 2.0, 1.0)


def test_a_jump_then_the_grids_tail() -> None:
    gaussian, levels = example(0.1), edm_levels(18)
    network, x = Counting(gaussian), 80 * random(4, D)
    jump = Teleport(network, gaussian, level=20.0)
    start, rest = jump.start(x, levels)
    assert torch.equal(rest, levels[4:])
    assert torch.equal(start, gaussian.teleport(x, levels[0], levels[4]))
    images = last(heun(jump, start, rest))
    wanted = last(heun(gaussian.denoise, start, rest))
    assert torch.equal(images, wanted)
    assert network.seen == 4 * (35 - 2 * 4)


def test_in_a_loop_of_its_own_it_answers_above_the_level_by_the_closed_form() -> None:
    gaussian, levels = example(0.1), edm_levels(18)
    network, x = Counting(gaussian), 80 * random(4, D)
    *states, _ = heun(Teleport(network, gaussian, level=20.0), x, levels)
    assert network.seen == 4 * (35 - 2 * 4 + 1)  # the step across the level looks once below it
    # there the states are the solver's, near the flow and not on it
    assert 1e-9 < relative(states[4], gaussian.teleport(x, levels[0], levels[4])) < 0.05


def test_levels_of_a_batch_on_both_sides() -> None:
    gaussian = example(0.1)
    network, x = Counting(example()), random(4, 3, 2, 2)
    jump = Teleport(network, gaussian, level=1.0)
    levels = torch.tensor([2.0, 0.5, 1.0, 7.0])
    found = jump(x, levels)
    assert network.seen == 2
    assert torch.allclose(found[[0, 3]], gaussian.denoise(x, levels)[[0, 3]])
    assert torch.allclose(found[[1, 2]], example().denoise(x, levels)[[1, 2]])
    assert torch.equal(jump(x, 0.5, labels=1), example().denoise(x, 0.5))


def test_jumps_that_lead_nowhere_are_sentences() -> None:
    gaussian, x = example(), random(2, D)
    with pytest.raises(ValueError, match="expected a level above 0"):
        Teleport(gaussian.denoise, gaussian, level=0.0)
    jump = Teleport(gaussian.denoise, gaussian, level=1.0)
    with pytest.raises(ValueError, match="the grid ends above it, at 2"):
        jump.start(x, torch.tensor([80.0, 2.0]))
    with pytest.raises(ValueError, match="that do not decrease"):
        jump.start(x, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="on both sides of the jump takes no conditions"):
        jump(x, torch.tensor([2.0, 0.5]), labels=1)
    same, levels = jump.start(x, torch.tensor([0.5, 0.1]))
    assert same is x
    assert levels.tolist() == pytest.approx([0.5, 0.1])
