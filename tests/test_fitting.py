"""Laws of fitting: batched equals alone, validation alone chooses, what can be learned is learned and nothing else."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from downstream_classification import fitting
from downstream_classification.fitting import Adam, Binary, CrossEntropy, Fits, Several
from downstream_classification.mixing import HEADS

SIZES = {"mlp": {"width": 16}, "gru": {"width": 16}, "transformer": {"width": 16, "feedforward": 16, "dropout": 0.1}}
LEARNS = {"mlp": (3e-2, 6), "linear": (1e-1, 6), "transformer": (1e-2, 5)}  # learning rate and epochs that suffice
MIXED = ["concat-mlp", "mean-linear", "weights-linear", "vote-mlp", "gru", "transformer"]


def signal(count=400, times=3, dimension=5, classes=4, strength=3.0, seed=0, where=1):
    """z [N, T, D] whose times `where` tell the class (at strength 3 without doubt), the others being noise; labels [N]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    z = random.normal(size=(count, times, dimension)).astype(np.float32)
    told = np.broadcast_to(np.eye(classes, dtype=np.float32)[labels][:, None], (count, times, classes))
    z[:, where, :classes] += strength * 3 * told[:, where]
    return torch.from_numpy(z), labels


def fitted(head, z, labels, epochs, criterion=None, rates=(1e-2,), seeds=(0,), **options):
    """Fits after so many epochs, in float32 if not asked otherwise."""
    sizes = SIZES.get(HEADS[head].options, {})
    options = {"batch": 32, "sizes": sizes, "precision": "float32", **options}
    fits = Fits(head, z, labels, criterion or CrossEntropy(4), rates, seeds, **options)
    for _ in range(epochs):
        fits.epoch()
    return fits


def weights_of(fits):
    """Every weight [L, S, V, P] of fits that are one chunk."""
    (chunk,) = fits.chunks
    return chunk.weights.view(*fits.best_accuracy.shape, -1)


@pytest.mark.parametrize("head", ["mlp", "linear", "transformer"])
def test_what_is_separable_is_learned_and_noise_is_not(head):
    where = slice(None) if head == "transformer" else 1
    z, labels = signal(where=where)
    fresh, fresh_labels = signal(seed=1, where=where)
    rate, epochs = LEARNS[head]
    (outcomes,) = fitted(head, z, labels, epochs, rates=(rate,)).outcomes(fresh, fresh_labels)
    told = outcomes[0] if head == "transformer" else outcomes[1]
    assert told.test == 1.0 and told.validation == 1.0
    if head != "transformer":
        chance, deviation = 1 / 4, (1 / 4 * 3 / 4 / 400) ** 0.5
        assert all(abs(outcomes[time].test - chance) < 4 * deviation for time in (0, 2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", MIXED)
def test_every_head_that_mixes_learns_in_both_precisions(head, precision):
    z, labels = signal(where=slice(None))
    fits = fitted(head, z, labels, 8, rates=(1e-2, 3e-2), seeds=(0, 1), precision=precision)
    for seed in fits.outcomes(*signal(seed=1, where=slice(None))):
        assert seed[0].test > 0.95
    assert (fits.losses[-1] < fits.losses[0]).all()


@pytest.mark.parametrize("head", ["mlp", "gru", "transformer", "vote-linear"])
def test_random_labels_stay_at_chance(head):
    z, _ = signal()
    labels = np.random.default_rng(7).integers(0, 4, 400)
    fresh, _ = signal(seed=1)
    for outcome in fitted(head, z, labels, 3).outcomes(fresh, np.random.default_rng(8).integers(0, 4, 400))[0]:
        assert abs(outcome.test - 1 / 4) < 4 * (1 / 4 * 3 / 4 / 400) ** 0.5


def test_the_mixing_head_attends_and_its_attention_is_that_of_the_module():
    z, labels = signal(times=3)
    fits = fitted("transformer", z, labels, 4)
    ((outcome,),) = fits.outcomes(z[:50], labels[:50])
    assert outcome.attention.shape == (50, 4, 3)
    np.testing.assert_allclose(outcome.attention.sum(-1), 1, atol=1e-5)
    seen = (z[:50] - fits.images.mean[0]) / fits.images.deviation[0]
    with torch.no_grad():
        logits, attention = functional_call(
            fits.modules[0].eval(), fits.chunks[0].unpack(fits.chunks[0].best), (seen[None],)
        )
    np.testing.assert_allclose(outcome.attention, attention[0].numpy(), atol=1e-5)
    assert (logits[0, 0].argmax(-1).numpy() == labels[:50]).mean() == outcome.test


@pytest.mark.parametrize("head", ["linear", "mlp", *MIXED, "transformer-one"])
def test_a_fit_alone_is_the_fit_in_a_batch(head):
    z, labels = signal()
    together = fitted(head, z, labels, 2, rates=(1e-3, 1e-2), seeds=(0, 1))
    alone = fitted(head, z, labels, 2, rates=(1e-2,), seeds=(1,))
    np.testing.assert_allclose(np.array(together.losses)[:, 1:, 1:], np.array(alone.losses), atol=1e-4, rtol=0)
    if head.startswith("transformer"):  # its keys' biases have gradient 0, whose rounding Adam blows up
        return
    torch.testing.assert_close(weights_of(together)[1:, 1:], weights_of(alone), atol=1e-4, rtol=0)
    if not HEADS[head].mixes:
        one_time = fitted(head, z[:, 1:2], labels, 2, rates=(1e-2,), seeds=(1,))
        torch.testing.assert_close(weights_of(together)[1:, 1:, 1:2], weights_of(one_time), atol=1e-4, rtol=0)


@pytest.mark.parametrize("head", ["mlp", "gru"])
def test_the_order_of_rates_and_seeds_does_not_matter(head):
    z, labels = signal()
    once = fitted(head, z, labels, 2, rates=(1e-3, 3e-3, 1e-2), seeds=(4, 0))
    turned = fitted(head, z, labels, 2, rates=(1e-2, 1e-3, 3e-3), seeds=(0, 4))
    torch.testing.assert_close(weights_of(once), weights_of(turned)[[1, 2, 0]][:, [1, 0]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("head", ["mlp", "gru", "vote-linear"])
def test_chunks_change_nothing(head):
    z, labels = signal()
    options = {"rates": (1e-3, 3e-3, 1e-2), "seeds": (0, 1)}
    whole = fitted(head, z, labels, 2, **options)
    for fits in (1, 2, 4):
        cut = fitted(head, z, labels, 2, memory=fits * whole.footprint(), **options)
        assert max(np.zeros_like(cut.best_accuracy)[chunk.index].size for chunk in cut.chunks) <= fits
        assert len(cut.chunks) >= whole.best_accuracy.size / fits
        np.testing.assert_allclose(np.array(cut.losses), np.array(whole.losses), atol=1e-5)
        ours, theirs = ([one for seed in each.outcomes(z, labels) for one in seed] for each in (cut, whole))
        for own, other in zip(ours, theirs, strict=True):
            assert (own.seed, own.view, own.trials) == (other.seed, other.view, other.trials)
            assert np.array_equal(own.hits, other.hits)


def test_a_fit_takes_the_memory_that_is_told():
    z, labels = signal()
    small, large = (fitted("mlp", z, labels, 0, sizes={"width": width}) for width in (16, 1600))
    weights = 5 * 16 + 16 + 16 * 4 + 4
    assert small.footprint() > 5 * 4 * weights and 50 < large.footprint() / small.footprint() < 110


def test_every_fit_starts_as_the_single_module_of_its_seed():
    z, labels = signal()
    fits = fitted("mlp", z, labels, 0, rates=(1e-3, 1e-2), seeds=(0, 1))
    for index, seed in enumerate((0, 1)):
        module = fitting.build("mlp", 5, 4, 1, seed=seed, width=16)
        flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        assert (weights_of(fits)[:, index] == flat).all()
    assert not torch.equal(weights_of(fits)[:, 0], weights_of(fits)[:, 1])


def test_a_vote_is_its_single_probes_fitted_by_themselves():
    z, labels = signal(where=slice(None), strength=0.3)
    fresh, fresh_labels = signal(seed=1, where=slice(None), strength=0.3)
    probes = fitted("mlp", z, labels, 3)
    vote = fitted("vote-mlp", z, labels, 3)
    ours, theirs = (fits.chunks[0].unpack(fits.chunks[0].weights) for fits in (vote, probes))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)
    probes.best_accuracy[:] = 1  # the last epoch of all, to be compared with
    vote.best_accuracy[:] = 1
    probes.chunks[0].best, vote.chunks[0].best = probes.chunks[0].weights, vote.chunks[0].weights
    chosen = np.zeros((1, 3), dtype=int)
    tested = probes.chunks[0].test(chosen, probes.best_accuracy, fresh, probes.hiding)
    singles = torch.stack([logits for _, logits, _ in tested])
    right = singles.softmax(-1).mean(0).argmax(-1).numpy() == fresh_labels
    ((outcome,),) = vote.outcomes(fresh, fresh_labels)
    assert (outcome.hits == right).mean() > 0.99


@pytest.mark.parametrize("criterion", [CrossEntropy(5), Binary(5), Several([2, 3])])
def test_a_vote_of_equal_answers_is_that_answer(criterion):
    logits = torch.randn(2, 1, 7, 5)
    average = criterion.average(logits.expand(-1, 4, -1, -1))
    labels = torch.zeros({CrossEntropy: (7,), Binary: (7, 5), Several: (7, 2)}[type(criterion)], dtype=torch.long)
    assert torch.equal(criterion.hits(average, labels), criterion.hits(logits[:, 0], labels))
    probability = torch.sigmoid if isinstance(criterion, Binary) else lambda x: x[..., :2].softmax(-1)
    torch.testing.assert_close(probability(average), probability(logits[:, 0]))


def test_a_vote_averages_probabilities():
    logits = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])[None, :, None]  # [1, 2, 1, 2]
    expected = logits.softmax(-1).mean(1)
    torch.testing.assert_close(CrossEntropy(2).average(logits).softmax(-1), expected)
    torch.testing.assert_close(Binary(2).average(logits).sigmoid(), logits.sigmoid().mean(1))


def test_losses_are_torchs():
    logits, labels = torch.randn(3, 6, 5), torch.randint(0, 5, (3, 6))
    expected = torch.stack([nn.functional.cross_entropy(*one) for one in zip(logits, labels, strict=True)])
    torch.testing.assert_close(CrossEntropy(5).loss(logits, labels), expected)
    there = torch.randint(0, 2, (3, 6, 5))
    expected = [nn.functional.binary_cross_entropy_with_logits(*one) for one in zip(logits, there.float(), strict=True)]
    torch.testing.assert_close(Binary(5).loss(logits, there), torch.stack(expected))
    both = torch.stack([torch.randint(0, 2, (3, 6)), torch.randint(0, 3, (3, 6))], dim=-1)
    expected = CrossEntropy(2).loss(logits[..., :2], both[..., 0]) + CrossEntropy(3).loss(logits[..., 2:], both[..., 1])
    torch.testing.assert_close(Several([2, 3]).loss(logits, both), expected)
    assert torch.equal(Several([5]).hits(logits, labels[..., None])[..., 0], CrossEntropy(5).hits(logits, labels))


@pytest.mark.parametrize("head", ["linear", "vote-linear", "transformer"])
def test_many_attributes_are_learned_at_once(head):
    z, labels = signal(where=slice(None))
    fresh, fresh_labels = signal(seed=1, where=slice(None))
    ours, theirs = (np.stack([part % 2, part // 2, part == 3], axis=1) for part in (labels, fresh_labels))
    for criterion in (Binary(3), Several([2, 2, 2])):
        fits = fitted(head, z, ours, 8, criterion, rates=(3e-2,))
        outcome = fits.outcomes(fresh, theirs)[0][0]
        assert outcome.hits.shape == (400, 3) and outcome.hits.mean(0).min() > 0.97
        assert outcome.validation > 0.97


def test_several_attributes_of_which_one_is_all_is_that_one():
    z, labels = signal(strength=0.5)
    one = fitted("mlp", z, labels, 2)
    all_of_it = fitted("mlp", z, labels[:, None], 2, Several([4]))
    np.testing.assert_allclose(np.array(one.losses), np.array(all_of_it.losses), atol=1e-6)


def test_the_same_call_gives_the_same_bits_whatever_the_callers_generator():
    z, labels = signal()
    torch.manual_seed(1)
    once = fitted("mlp", z, labels, 2)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(weights_of(once), weights_of(fitted("mlp", z, labels, 2)))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_adam_is_torchs_rate_by_rate():
    torch.manual_seed(0)
    start, rates = torch.randn(6, 7), [1e-3, 1e-2, 1e-1]
    blocks = [block.clone().requires_grad_() for block in start.chunk(3)]
    groups = [{"params": [block], "lr": rate} for block, rate in zip(blocks, rates, strict=True)]
    theirs = torch.optim.Adam(groups, weight_decay=0.1)
    ours = start.clone()
    adam = Adam(ours, rates, decay=0.1)
    for _ in range(20):
        gradient = torch.randn(6, 7)
        for block, part in zip(blocks, gradient.chunk(3), strict=True):
            block.grad = part.clone()
        theirs.step()
        adam.step(gradient)
    torch.testing.assert_close(ours, torch.cat([block.detach() for block in blocks]), atol=1e-6, rtol=1e-5)


def test_the_gradient_of_each_fit_is_clipped_by_its_own_norm():
    z, labels = signal(strength=100.0)
    fits = fitted("transformer", z, labels, 0, rates=(1e-3, 1e-2), seeds=(0, 1), standardise=False)
    seen = []
    (chunk,) = fits.chunks
    chunk.adam.step = seen.append
    chunk.share_masks(0)
    chunk.step(fits.images.training[:, :32])
    norms = seen[0].norm(dim=1)
    assert fits.clip == 1.0 and (norms <= 1 + 1e-5).all() and norms.max() > 0.9


def test_the_earliest_best_epoch_and_rate_are_chosen_by_validation():
    z, labels = signal()
    fits = fitted("mlp", z, labels, 5, rates=(1e-6, 1e-2))
    outcome = fits.outcomes(z, labels)[0][1]
    assert outcome.learning_rate == 1e-2 and outcome.trials[1e-2][0] > outcome.trials[1e-6][0]
    assert outcome.epoch < 5  # 1.0 is reached early; a later epoch as good does not replace it
    assert (outcome.validation, outcome.epoch) == outcome.trials[1e-2]


def test_a_rate_that_diverges_loses_and_if_all_do_there_is_no_outcome():
    z, labels = signal()
    z[:, 0] = 3e38  # the largest float32: sums overflow
    (outcomes,) = fitted("mlp", z, labels, 2, standardise=False).outcomes(z, labels)
    assert outcomes[0] is None and outcomes[1] is not None
    assert outcomes[1].test > 0.9


def test_hidden_times_are_hidden_in_training_and_can_be_hidden_in_the_test_alone():
    z, labels = signal(where=1)
    hidden = torch.tensor([False, True, False])
    blind = fitted("gru", z, labels, 4, hidden=hidden)
    changed = torch.where(hidden[:, None], torch.randn_like(z), z)
    again = fitted("gru", changed, labels, 4, hidden=hidden)
    assert np.array_equal(np.array(blind.losses), np.array(again.losses))
    seeing = fitted("gru", z, labels, 6, rates=(3e-2,))
    assert seeing.outcomes(z, labels)[0][0].test > 0.95
    assert seeing.outcomes(z, labels, hidden=hidden)[0][0].test < 0.45
    attending = fitted("transformer", z, labels, 1)
    outcome = attending.outcomes(z, labels, hidden=hidden, hide_cls=True)[0][0]
    assert (outcome.attention[:, :, 1] == 0).all()


def test_the_split_is_stratified_disjoint_and_by_seed():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    training, validation = fitting.split(labels, 0.1, seed=0)
    assert len(validation) == 100 and sorted([*training, *validation]) == list(range(1000))
    assert np.abs(np.bincount(labels[validation]) - [60, 30, 10]).max() <= 1
    assert not np.array_equal(validation, fitting.split(labels, 0.1, seed=1)[1])
    assert np.array_equal(validation, fitting.split(labels, 0.1, seed=0)[1])


def test_a_split_of_several_attributes_is_stratified_by_their_combinations():
    labels = np.stack([np.repeat([0, 1], 500), np.tile([0, 1, 2, 3], 250)], axis=1)
    _, validation = fitting.split(labels, 0.1, seed=0)
    for column, share in ((0, 50), (1, 25)):
        assert np.abs(np.bincount(labels[validation, column]) - share).max() <= 2


def test_a_split_that_leaves_nothing_is_a_sentence():
    with pytest.raises(ValueError, match=r"a validation fraction of 0\.01 leaves 20 of 20 images to train on and 0"):
        fitting.split(np.zeros(20, int), 0.01, seed=0)


def test_subsets_are_nested_stratified_and_by_seed():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5], [400, 300, 200, 100]))
    before: set[int] = set()
    for count in (4, 10, 100, 500, 1000):
        rows = fitting.subset(labels, count, seed=3)
        assert len(set(rows)) == count and before <= set(rows)
        before = set(rows)
        shares = np.array([0.4, 0.3, 0.2, 0.1]) * count
        assert np.abs(np.bincount(labels[rows], minlength=6)[[0, 1, 2, 5]] - shares).max() <= 1
        assert np.array_equal(rows, fitting.subset(labels, count, seed=3))
    assert not np.array_equal(fitting.subset(labels, 100, seed=3), fitting.subset(labels, 100, seed=4))
    balanced = np.repeat(np.arange(10), 50)
    assert (np.bincount(balanced[fitting.subset(balanced, 100, seed=0)]) == 10).all()


def test_a_subset_of_more_than_there_are_is_a_sentence():
    for count in (0, 21):
        with pytest.raises(ValueError, match=f"{count} labels of 20 images to train on: expected 1 to 20"):
            fitting.subset(np.zeros(20, int), count, seed=0)


def test_fewer_labels_hold_out_the_same_part_and_both_parts_are_nested():
    z, labels = signal()
    few, more, whole = (fitted("mlp", z, labels, 1, count=count, seeds=(0, 1)) for count in (50, 100, None))
    fraction = whole.images.validation.shape[1] / len(z)
    assert few.images.validation.shape == (2, round(50 * fraction))
    assert few.images.training.shape == (2, 50 - round(50 * fraction))
    for part in ("training", "validation"):
        for small, large in ((few, more), (more, whole)):
            for seed in range(2):
                inside, around = (set(getattr(fits.images, part)[seed].tolist()) for fits in (small, large))
                assert inside < around


def test_the_hits_of_every_learning_rate_are_those_of_that_rate_alone():
    z, labels = signal()
    both = fitted("mlp", z, labels, 2, rates=(1e-3, 1e-2)).outcomes(z, labels)[0]
    for rate in (1e-3, 1e-2):
        alone = fitted("mlp", z, labels, 2, rates=(rate,)).outcomes(z, labels)[0]
        for ours, theirs in zip(both, alone, strict=True):
            assert (ours.hits_by_rate[rate] == theirs.hits).mean() > 0.99  # to rounding
            assert ours.trials[rate][0] == pytest.approx(theirs.trials[rate][0], abs=0.05)
    assert all(np.array_equal(outcome.hits, outcome.hits_by_rate[outcome.learning_rate]) for outcome in both)


def test_a_precision_that_is_not_known_is_a_sentence():
    with pytest.raises(ValueError, match="precision 'half': expected one of auto, float32, bfloat16"):
        fitting.choose_precision("half", torch.device("cpu"))


def test_standardisation_uses_the_images_trained_on_and_leaves_constants_alone():
    z, labels = signal()
    z[:, :, 4] = 7.0
    fits = fitted("mlp", z, labels, 0, seeds=(0, 1))
    used = fits.chunks[0].seen(fits.images.z, fits.images.training).squeeze(3)  # [S, V, n, D]
    torch.testing.assert_close(used[..., :4].mean(2), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(used[..., :4].std(2), torch.ones(2, 3, 4), atol=1e-4, rtol=0)
    assert used[..., 4].abs().max() < 1e-3


def test_standardised_fits_do_not_depend_on_the_unit():
    z, labels = signal(strength=1.0)
    once = fitted("mlp", z, labels, 2).outcomes(z, labels)[0]
    scaled = fitted("mlp", z * 1e4 + 3e4, labels, 2).outcomes(z * 1e4 + 3e4, labels)[0]
    assert [outcome.test for outcome in once] == pytest.approx([outcome.test for outcome in scaled], abs=0.02)
