"""Laws of the fitted mixtures: clusters that are there are found, statistics are the images' own, likelihood rises."""

import itertools

import numpy as np
import pytest
import torch

from diffusion_model import arrays, passes
from diffusion_model.moments import Moments
from linear_structure import clusters
from linear_structure.clusters import fit
from linear_structure.gaussian import Gaussian

SHAPE = (1, 3, 4)
D = 12
CENTRES = (60, 128, 200)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def three(count: int = 300, apart: float = 1.0) -> tuple[np.ndarray, torch.Tensor]:
    """uint8 images around three greys, each group with directions of its own, and their groups."""
    groups = torch.arange(count) % 3
    centre = 128 + apart * (torch.tensor(CENTRES, dtype=torch.float64)[groups] - 128)
    bases = torch.stack([random(4, D, seed=group) for group in range(3)])
    rows = centre[:, None] + 4 * torch.einsum("nk,nkd->nd", random(count, 4, seed=9), bases[groups])
    return rows.round().clamp(0, 255).to(torch.uint8).reshape(-1, *SHAPE).numpy(), groups


def covariance_of(gaussian: Gaussian) -> torch.Tensor:
    """The dense covariance [D, D]."""
    return (
        gaussian.U @ torch.diag(gaussian.lambdas - gaussian.rest) @ gaussian.U.T + gaussian.rest * torch.eye(D).double()
    )


def test_clusters_that_are_there_are_found_with_their_own_statistics() -> None:
    images, groups = three()
    mixture = fit(images, 3, seed=1, floor=0.5)
    found = mixture.responsibilities(torch.from_numpy(images).double(), 0.0).argmax(1)
    assert len({(int(one), int(other)) for one, other in zip(found, groups, strict=True)}) == 3
    assert torch.allclose(mixture.weights, torch.ones(3).double() / 3)
    for index, part in enumerate(mixture.components):
        own = torch.from_numpy(images).double().flatten(1)[found == index]
        assert torch.allclose(part.mu, own.mean(0))
        assert torch.allclose(covariance_of(part), own.T.cov() + 0.5 * torch.eye(D).double(), atol=1e-8)


def test_low_rank_clusters_keep_the_trace() -> None:
    images, _ = three()
    whole, low = fit(images, 3, seed=1, floor=0.5), fit(images, 3, rank=2, seed=1, floor=0.5)
    for one, other in zip(whole.components, low.components, strict=True):
        assert other.rank == 2
        assert torch.allclose(other.lambdas, one.lambdas[:2])
        assert float(other.variance.sum()) == pytest.approx(float(one.variance.sum()))


@pytest.mark.parametrize("method", clusters.METHODS)
def test_one_component_is_the_gaussian_of_all_images(method: str) -> None:
    images, _ = three(apart=0.1)
    (part,) = fit(images, 1, method=method, floor=0.5).components
    moments = Moments(D).update(images)
    share = (len(images) - 1) / len(images) if method == "em" else 1.0
    assert torch.allclose(part.mu, moments.mean)
    assert torch.allclose(covariance_of(part), share * moments.covariance + 0.5 * torch.eye(D).double(), atol=1e-8)


def test_a_fit_depends_on_the_seed_alone(monkeypatch) -> None:
    images, _ = three(apart=0.2)
    one = fit(images, 4, seed=3)
    monkeypatch.setattr(clusters, "BATCH", 37)
    other = fit(images, 4, seed=3)
    assert torch.allclose(one.weights, other.weights)
    for first, second in zip(one.components, other.components, strict=True):
        assert torch.allclose(covariance_of(first), covariance_of(second), atol=1e-8)


@pytest.mark.parametrize("shared", [False, True])
def test_em_climbs_from_k_means(shared: bool) -> None:
    images, _ = three(600, apart=0.05)
    rows = torch.from_numpy(images).double().flatten(1)

    def likelihood(rounds: int) -> float:
        mixture = fit(images, 3, seed=1, method="em", shared=shared, floor=0.01, rounds=rounds)
        return float(mixture.log_density(rows, 0.0).mean())

    reached = [likelihood(rounds) for rounds in (1, 2, 4, 8)]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(reached))
    assert reached[-1] > reached[0] + 0.01


def test_em_finds_the_groups_that_differ_by_covariance_alone() -> None:
    images, groups = three(900, apart=0.0)
    mixture = fit(images, 3, seed=0, method="em", floor=0.5, rounds=100)
    found = mixture.responsibilities(torch.from_numpy(images).double(), 0.0).argmax(1)
    table = torch.zeros(3, 3).index_put_((found, groups), torch.tensor(1.0), accumulate=True)
    assert float(table.amax(0).sum()) / 900 > 0.95


def test_em_in_a_subspace_has_the_images_mean_and_variance_outside() -> None:
    images, _ = three()
    mixture = fit(images, 3, rank=4, method="em", floor=0.5)
    moments = Moments(D).update(images)
    space = Gaussian.fit(moments, 4, spread=True)
    for part in mixture.components:
        assert part.rank == 4
        assert torch.allclose(part.U.T @ part.U, torch.eye(4).double(), atol=1e-10)
        assert torch.allclose(space.U @ (space.U.T @ part.U), part.U, atol=1e-10)
        assert part.rest == pytest.approx(space.rest + 0.5)
    mean = sum(weight * part.mu for weight, part in zip(mixture.weights, mixture.components, strict=True))
    assert torch.allclose(mean, moments.mean, atol=1e-6)


@pytest.mark.parametrize("method", clusters.METHODS)
def test_a_shared_covariance_is_the_pooled_one(method: str) -> None:
    images, groups = three()
    mixture = fit(images, 3, seed=1, method=method, shared=True, floor=0.5)
    assert len({id(part.U) for part in mixture.components}) == 1
    rows = torch.from_numpy(images).double().flatten(1)
    within = sum(rows[groups == group].T.cov(correction=0) for group in range(3)) / 3
    share = 1.0 if method == "em" else 300 / 299
    assert torch.allclose(covariance_of(mixture.components[0]), within * share + 0.5 * torch.eye(D).double(), atol=1e-6)


class Killed(Exception):
    """The end of a process."""


@pytest.mark.parametrize("method", clusters.METHODS)
@pytest.mark.parametrize("shared", [False, True])
def test_a_killed_fit_goes_on_bit_for_bit(method: str, shared: bool, tmp_path, monkeypatch) -> None:
    images, _ = three(apart=0.2)
    options = {"rank": 4, "method": method, "shared": shared, "floor": 0.5, "rounds": 6}
    monkeypatch.setattr(clusters, "SETTLED", 0.0)
    whole = fit(images, 4, **options)
    monkeypatch.setattr(passes, "EVERY", 0.0)
    real = arrays.write_json
    for kill in (2, 1, 2, 1, 1):  # states left until the kill
        left = iter(range(kill))

        def write(*given: object, left=left) -> None:
            if next(left, None) is None:
                raise Killed
            real(*given)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(arrays, "write_json", write)
            fit(images, 4, folder=tmp_path / "fit", key={"data": "a"}, **options)
    with pytest.raises(ValueError, match="unfinished fit of other images or options"):
        fit(images, 4, folder=tmp_path / "fit", key={"data": "b"}, **options)
    found = fit(images, 4, folder=tmp_path / "fit", key={"data": "a"}, **options)
    assert torch.equal(found.weights, whole.weights)
    for one, other in zip(found.components, whole.components, strict=True):
        for name in ("mu", "U", "lambdas", "variance"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_clusters_smaller_than_the_image_and_single_images_are_components() -> None:
    images, _ = three(6)
    mixture = fit(images, 6, floor=0.5)
    assert [part.rank for part in mixture.components] == [0] * 6
    x = torch.from_numpy(images).double()
    assert torch.allclose(mixture.denoise(x, 0.1), x)
    assert all(part.rank < 3 for part in fit(images, 3, floor=0.5).components)


def test_bad_input_is_a_sentence() -> None:
    images, _ = three(30)
    with pytest.raises(ValueError, match="31 components for 30 images"):
        fit(images, 31)
    with pytest.raises(ValueError, match="method 'ward': expected one of kmeans, em"):
        fit(images, 2, method="ward")
    with pytest.raises(ValueError, match="a floor of 0"):
        fit(images, 2, floor=0)
    with pytest.raises(ValueError, match="3 clusters for 2 distinct images of 4: ask for fewer"):
        fit(images[[0, 0, 1, 1]], 3)
    with pytest.raises(ValueError, match="do not differ"):
        fit(images[[0, 0, 0]], 2, method="em")
    with pytest.raises(ValueError, match="uint8"):
        fit(images.astype(float), 2)
