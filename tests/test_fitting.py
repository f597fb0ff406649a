"""Laws of fitting: batched equals alone, validation alone chooses, what can be learned is learned and nothing else."""

import numpy as np
import pytest
import torch

from downstream_classification import fitting
from downstream_classification.fitting import Adam, Fits

SIZES = {"mlp": {"width": 16}, "transformer": {"width": 16, "feedforward": 16, "dropout": 0.1}, "linear": {}}
LEARNS = {"mlp": (3e-2, 6), "linear": (1e-1, 6), "transformer": (1e-2, 5)}  # learning rate and epochs that suffice


def signal(count=400, times=3, dimension=5, classes=4, strength=3.0, seed=0, where=1):
    """z [N, T, D] whose times `where` tell the class (at strength 3 without doubt), the others being noise; labels [N]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    z = random.normal(size=(count, times, dimension)).astype(np.float32)
    told = np.broadcast_to(np.eye(classes, dtype=np.float32)[labels][:, None], (count, times, classes))
    z[:, where, :classes] += strength * 3 * told[:, where]
    return torch.from_numpy(z), labels


def fitted(head, z, labels, epochs, classes=4, rates=(1e-2,), seed=0, **options):
    fits = Fits(head, z, labels, classes, rates, seed, **{"batch": 32, "sizes": SIZES[head], **options})
    for _ in range(epochs):
        fits.epoch()
    return fits


@pytest.mark.parametrize("head", ["mlp", "linear", "transformer"])
def test_what_is_separable_is_learned_and_noise_is_not(head):
    where = slice(None) if head == "transformer" else 1
    z, labels = signal(where=where)
    fresh, fresh_labels = signal(seed=1, where=where)
    rate, epochs = LEARNS[head]
    outcomes = fitted(head, z, labels, epochs, rates=(rate,)).outcomes(fresh, fresh_labels)
    told = outcomes[0] if head == "transformer" else outcomes[1]
    assert told.test == 1.0 and told.validation == 1.0
    if head != "transformer":
        chance, deviation = 1 / 4, (1 / 4 * 3 / 4 / 400) ** 0.5
        assert all(abs(outcomes[time].test - chance) < 4 * deviation for time in (0, 2))


@pytest.mark.parametrize("head", ["mlp", "transformer"])
def test_random_labels_stay_at_chance(head):
    z, _ = signal()
    labels = np.random.default_rng(7).integers(0, 4, 400)
    fresh, _ = signal(seed=1)
    for outcome in fitted(head, z, labels, 3).outcomes(fresh, np.random.default_rng(8).integers(0, 4, 400)):
        assert abs(outcome.test - 1 / 4) < 4 * (1 / 4 * 3 / 4 / 400) ** 0.5


def test_the_mixing_head_attends_and_its_attention_is_that_of_the_module():
    z, labels = signal(times=3)
    fits = fitted("transformer", z, labels, 4)
    (outcome,) = fits.outcomes(z[:50], labels[:50])
    assert outcome.attention.shape == (50, 4, 3)
    np.testing.assert_allclose(outcome.attention.sum(-1), 1, atol=1e-5)
    shapes = fits.shapes
    parts = fits.best[0].split([int(np.prod(shape)) for shape in shapes.values()])
    fits.module.load_state_dict(
        {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
    )
    with torch.no_grad():
        logits, attention = fits.module.eval()((z[:50] - fits.mean) / fits.deviation)
    np.testing.assert_allclose(outcome.attention, attention.numpy(), atol=1e-5)
    assert (logits.argmax(-1).numpy() == labels[:50]).mean() == outcome.test


@pytest.mark.parametrize("head", ["mlp", "transformer"])
def test_a_fit_alone_is_the_fit_in_a_batch(head):
    z, labels = signal()
    together = fitted(head, z, labels, 2, rates=(1e-3, 1e-2))
    alone = fitted(head, z, labels, 2, rates=(1e-2,))
    torch.testing.assert_close(together.weights[together.views :], alone.weights, atol=1e-4, rtol=0)
    if head == "mlp":
        one_time = fitted(head, z[:, 1:2], labels, 2, rates=(1e-2,))
        torch.testing.assert_close(together.weights[[4]], one_time.weights, atol=1e-4, rtol=0)


def test_every_fit_starts_as_the_single_module_of_its_seed():
    z, labels = signal()
    fits = fitted("mlp", z, labels, 0, rates=(1e-3, 1e-2))
    module = fitting.build("mlp", 5, 4, 1, seed=0, width=16)
    flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    assert (fits.weights == flat).all() and fits.weights.shape == (6, len(flat))
    assert not torch.equal(fitted("mlp", z, labels, 0, seed=1).weights[0], flat)


def test_the_same_call_gives_the_same_bits_whatever_the_callers_generator():
    z, labels = signal()
    torch.manual_seed(1)
    once = fitted("mlp", z, labels, 2)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(once.weights, fitted("mlp", z, labels, 2).weights)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_adam_is_torchs_row_by_row():
    torch.manual_seed(0)
    start, rates = torch.randn(3, 7), [1e-3, 1e-2, 1e-1]
    rows = [start[index].clone().requires_grad_() for index in range(3)]
    theirs = torch.optim.Adam([{"params": [row], "lr": rate} for row, rate in zip(rows, rates, strict=True)], weight_decay=0.1)  # fmt: skip
    ours = Adam(start.clone(), torch.tensor(rates), decay=0.1)
    for _ in range(20):
        gradient = torch.randn(3, 7)
        for row, part in zip(rows, gradient, strict=True):
            row.grad = part.clone()
        theirs.step()
        ours.step(gradient)
    torch.testing.assert_close(ours.weights, torch.stack([row.detach() for row in rows]), atol=1e-6, rtol=1e-5)


def test_the_gradient_of_each_fit_is_clipped_by_its_own_norm():
    z, labels = signal(strength=100.0)
    fits = fitted("transformer", z, labels, 0, rates=(1e-3, 1e-2), standardise=False)
    seen = []
    fits.adam.step = seen.append
    fits._step(fits.training[:32])
    norms = seen[0].norm(dim=1)
    assert fits.clip == 1.0 and (norms <= 1 + 1e-5).all() and norms.max() > 0.9


def test_the_earliest_best_epoch_and_rate_are_chosen_by_validation():
    z, labels = signal()
    fits = fitted("mlp", z, labels, 5, rates=(1e-6, 1e-2))
    outcome = fits.outcomes(z, labels)[1]
    assert outcome.learning_rate == 1e-2 and outcome.trials[1e-2][0] > outcome.trials[1e-6][0]
    assert outcome.epoch < 5  # 1.0 is reached early; a later epoch as good does not replace it
    assert (outcome.validation, outcome.epoch) == outcome.trials[1e-2]


def test_a_rate_that_diverges_loses_and_if_all_do_there_is_no_outcome():
    z, labels = signal()
    z[:, 0] = 3e38  # the largest float32: sums overflow
    outcomes = fitted("mlp", z, labels, 2, standardise=False).outcomes(z, labels)
    assert outcomes[0] is None and outcomes[1] is not None
    assert outcomes[1].test > 0.9


def test_the_split_is_stratified_disjoint_and_by_seed():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    training, validation = fitting.split(labels, 0.1, seed=0)
    assert len(validation) == 100 and sorted([*training, *validation]) == list(range(1000))
    assert np.abs(np.bincount(labels[validation]) - [60, 30, 10]).max() <= 1
    assert not np.array_equal(validation, fitting.split(labels, 0.1, seed=1)[1])
    assert np.array_equal(validation, fitting.split(labels, 0.1, seed=0)[1])


def test_a_split_that_leaves_nothing_is_a_sentence():
    with pytest.raises(ValueError, match=r"a validation fraction of 0\.01 leaves 20 of 20 images to train on and 0"):
        fitting.split(np.zeros(20, int), 0.01, seed=0)


def test_standardisation_uses_the_images_trained_on_and_leaves_constants_alone():
    z, labels = signal()
    z[:, :, 4] = 7.0
    fits = fitted("mlp", z, labels, 0)
    used = (z[fits.training] - fits.mean) / fits.deviation
    torch.testing.assert_close(used[:, :, :4].mean(0), torch.zeros(3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(used[:, :, :4].std(0), torch.ones(3, 4), atol=1e-4, rtol=0)
    assert used[:, :, 4].abs().max() < 1e-3


def test_standardised_fits_do_not_depend_on_the_unit():
    z, labels = signal(strength=1.0)
    once = fitted("mlp", z, labels, 2).outcomes(z, labels)
    scaled = fitted("mlp", z * 1e4 + 3e4, labels, 2).outcomes(z * 1e4 + 3e4, labels)
    assert [outcome.test for outcome in once] == pytest.approx([outcome.test for outcome in scaled], abs=0.02)
