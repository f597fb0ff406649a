"""Laws of the heads: what is hidden does not matter, attention is a distribution over times, sizes are the protocol's."""

import pytest
import torch
from torch import nn

from downstream_classification import mixing
from downstream_classification.mixing import HEADS

SIZES = {"linear": {}, "mlp": {"width": 24}, "transformer": {"width": 16, "feedforward": 24}}
MIXING = [name for name, head in HEADS.items() if head.mixes]


def head_of(name, dimension=6, classes=5, times=None):
    """A small head in evaluation mode, and the number of times it sees."""
    times = times or (7 if HEADS[name].mixes else 1)
    torch.manual_seed(0)
    return HEADS[name](dimension, classes, times, **SIZES[name]).eval(), times


@pytest.mark.parametrize(("name", "dimension", "classes", "size"),
    [("linear", 128, 10, 1_290), ("mlp", 128, 10, 71_178), ("transformer", 128, 10, 562_954)])  # fmt: skip
def test_parameter_counts_are_the_protocols(name, dimension, classes, size):
    head = HEADS[name](dimension, classes, 11 if HEADS[name].mixes else 1)
    assert sum(parameter.numel() for parameter in head.parameters()) == size


@pytest.mark.parametrize("name", HEADS)
def test_shapes_and_a_gradient_for_every_parameter(name):
    head, times = head_of(name)
    logits, attention = head.train()(torch.randn(9, times, 6))
    assert logits.shape == (9, 5)
    assert attention is None or attention.shape == (9, head.heads, times)
    nn.functional.cross_entropy(logits, torch.arange(9) % 5).backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("hide_cls", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_what_is_hidden_does_not_change_a_bit(name, hide_cls):
    head, times = head_of(name)
    hidden = torch.zeros(times, dtype=torch.bool)
    hidden[[1, 4]] = True
    z = torch.randn(3, times, 6)
    logits, attention = head(z, hidden, hide_cls)
    for value in (torch.randn(3, 2, 6) * 100, torch.full((3, 2, 6), torch.nan)):
        changed = z.clone()
        changed[:, hidden] = value
        other, _ = head(changed, hidden, hide_cls)
        assert torch.equal(logits, other)
    assert (attention[:, :, hidden] == 0).all()
    seen = z.clone()
    seen[:, 2] += 1
    assert not torch.equal(logits, head(seen, hidden, hide_cls)[0])


@pytest.mark.parametrize("hide_cls", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_attention_is_a_distribution_over_the_times(name, hide_cls):
    head, times = head_of(name)
    for hidden in (None, torch.arange(times) == 3):
        _, attention = head(torch.randn(4, times, 6), hidden, hide_cls)
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(-1), torch.ones(4, head.heads))


def test_hiding_every_time_leaves_cls_alone_and_hiding_all_is_refused():
    head, times = head_of("transformer")
    every = torch.ones(times, dtype=torch.bool)
    logits, attention = head(torch.randn(4, times, 6), every)
    assert logits.isfinite().all() and (logits == logits[:1]).all() and (attention == 0).all()
    with pytest.raises(ValueError, match="every time and the CLS token are hidden"):
        head(torch.randn(4, times, 6), every, hide_cls=True)


def test_a_single_time_may_be_hidden_from_heads_of_one_time():
    head, _ = head_of("mlp")
    z = torch.full((2, 1, 6), torch.nan)
    assert torch.equal(head(z, torch.tensor([True]))[0], head(torch.zeros(2, 1, 6))[0])


def test_the_transformer_is_torchs_post_norm_layer_applied_twice():
    head, times = head_of("transformer")
    layer = nn.TransformerEncoderLayer(16, head.heads, 24, 0.0, batch_first=True).eval()
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": head.project.weight,
            "self_attn.in_proj_bias": head.project.bias,
            "self_attn.out_proj.weight": head.merge.weight,
            "self_attn.out_proj.bias": head.merge.bias,
            "linear1.weight": head.inner.weight,
            "linear1.bias": head.inner.bias,
            "linear2.weight": head.outer.weight,
            "linear2.bias": head.outer.bias,
            "norm1.weight": head.norm_attention.weight,
            "norm1.bias": head.norm_attention.bias,
            "norm2.weight": head.norm_feedforward.weight,
            "norm2.bias": head.norm_feedforward.bias,
        }
    )
    z = torch.randn(3, times, 6)
    tokens = torch.cat([head.embed(z) + head.places, head.cls.expand(3, 1, -1)], dim=1)
    for hidden, barred in ((None, None), (torch.arange(times) == 2, torch.arange(times + 1) == 2)):
        padding = None if barred is None else barred.expand(3, -1)
        once = layer(tokens, src_key_padding_mask=padding)
        twice = layer(once, src_key_padding_mask=padding)
        logits, attention = head(z, hidden)
        torch.testing.assert_close(logits, head.readout(twice[:, -1]), atol=1e-5, rtol=1e-5)
        _, weights = layer.self_attn(once, once, once, padding, average_attn_weights=False)
        over_times = weights[:, :, -1, :-1]
        torch.testing.assert_close(attention, over_times / over_times.sum(-1, keepdim=True), atol=1e-5, rtol=1e-5)


def test_places_tell_the_times_apart():
    places = mixing.sinusoids(75, 256)
    assert places.shape == (75, 256) and places[0, 0] == 0 and places[0, 1] == 1
    torch.testing.assert_close(places[5, 0], torch.tensor(5.0).sin())
    assert torch.cdist(places, places).fill_diagonal_(1).min() > 0.1


def test_a_width_that_the_heads_do_not_divide_is_a_sentence():
    with pytest.raises(ValueError, match="width 18: expected an even multiple of its 4 heads"):
        HEADS["transformer"](6, 5, 7, width=18)
