"""Laws of the heads: what is hidden does not matter, attention is a distribution over times, sizes are the protocol's."""

import pytest
import torch
from torch import nn

from downstream_classification import mixing
from downstream_classification.mixing import HEADS

SIZES = {"mlp": {"width": 24}, "gru": {"width": 16}, "transformer": {"width": 16, "feedforward": 24}}
MIXING = [name for name, head in HEADS.items() if head.mixes]
ATTENTIVE = [name for name in MIXING if name.startswith(("weights", "transformer"))]


def head_of(name, dimension=6, outputs=5, times=None, fits=1, scramble=True):
    """A small head in evaluation mode, and the number of times it sees; no two of its parameters are equal."""
    times = times or (7 if HEADS[name].mixes else 1)
    torch.manual_seed(0)
    head = HEADS[name](dimension, outputs, times, fits, **SIZES.get(HEADS[name].options, {})).eval()
    if scramble:
        for parameter in head.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return head, times


def load(head, **parameters):
    """Set parameters of a head of one fit from torch's layouts."""
    state = head.state_dict()
    for name, value in parameters.items():
        name = name.replace("__", ".")
        state[name] = value.reshape(state[name].shape)
    head.load_state_dict(state)


@pytest.mark.parametrize(("name", "size"), [
    ("linear", 1_290), ("mlp", 71_178), ("gru", 299_018), ("transformer", 562_954), ("transformer-one", 562_954),
    ("concat-linear", 14_090), ("mean-mlp", 71_178), ("weights-linear", 1_301), ("vote-linear", 11 * 1_290),
])  # fmt: skip
def test_parameter_counts_are_the_protocols(name, size):
    head = HEADS[name](128, 10, 11 if HEADS[name].mixes else 1)
    assert sum(parameter.numel() for parameter in head.parameters()) == size


@pytest.mark.parametrize("name", HEADS)
def test_shapes_and_a_gradient_for_every_parameter(name):
    head, times = head_of(name, fits=2)
    logits, attention = head.train()(torch.randn(2, 9, times, 6))
    answers = times if name.startswith("vote") else 1
    assert logits.shape == (2, answers, 9, 5)
    assert (attention is not None) == (name.startswith(("weights", "transformer")))
    assert attention is None or (attention.shape[:2] == (2, 9) and attention.shape[3] == times)
    labels = (torch.arange(9) % 5).repeat(2 * answers)
    nn.functional.cross_entropy(logits.flatten(0, -2), labels).backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert (parameter.grad.unflatten(0, (2, -1)).flatten(1).abs().sum(1) > 0).all(), parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_fits_do_not_know_of_each_other(name):
    both, times = head_of(name, fits=2)
    z = torch.randn(2, 4, times, 6)
    logits, _ = both(z)
    for fit in range(2):
        alone, _ = head_of(name)
        alone.load_state_dict(
            {key: value.unflatten(0, (2, -1))[fit] for key, value in both.state_dict().items() if key != "places"}
        )
        torch.testing.assert_close(alone(z[fit : fit + 1])[0][0], logits[fit])


@pytest.mark.parametrize("name", HEADS)
def test_all_fits_begin_alike(name):
    head, _ = head_of(name, fits=3, scramble=False)
    assert all((value == value[:1]).all() for value in head.parameters())


@pytest.mark.parametrize("hide_cls", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_what_is_hidden_does_not_change_a_bit(name, hide_cls):
    head, times = head_of(name)
    hidden = torch.zeros(times, dtype=torch.bool)
    hidden[[1, 4]] = True
    z = torch.randn(1, 3, times, 6)
    logits, attention = head(z, hidden, hide_cls)
    for value in (torch.randn(2, 6) * 100, torch.full((2, 6), torch.nan)):
        changed = z.clone()
        changed[:, :, hidden] = value
        assert torch.equal(logits, head(changed, hidden, hide_cls)[0])
    assert attention is None or (attention[..., hidden] == 0).all()
    seen = z.clone()
    seen[:, :, 2] += 1
    assert not torch.equal(logits, head(seen, hidden, hide_cls)[0])


@pytest.mark.parametrize("name", MIXING)
def test_one_time_kept_is_all_that_is_seen(name):
    head, times = head_of(name)
    hidden = torch.arange(times) != 3
    z = torch.randn(1, 4, times, 6)
    noise = torch.where(hidden[:, None], torch.randn_like(z), z)
    logits, attention = head(z, hidden)
    assert torch.equal(logits, head(noise, hidden)[0])
    assert attention is None or torch.equal(attention, (~hidden).float().expand_as(attention))


@pytest.mark.parametrize("hide_cls", [False, True])
@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_is_a_distribution_over_the_times(name, hide_cls):
    head, times = head_of(name, fits=2)
    for hidden in (None, torch.arange(times) == 3):
        _, attention = head(torch.randn(2, 4, times, 6), hidden, hide_cls)
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def test_hiding_every_time_leaves_cls_alone_and_hiding_all_is_refused():
    head, times = head_of("transformer")
    every = torch.ones(times, dtype=torch.bool)
    logits, attention = head(torch.randn(1, 4, times, 6), every)
    assert logits.isfinite().all() and (logits == logits[:, :, :1]).all() and (attention == 0).all()
    with pytest.raises(ValueError, match="every time and the CLS token are hidden"):
        head(torch.randn(1, 4, times, 6), every, hide_cls=True)
    with pytest.raises(ValueError, match="every time is hidden from a vote"):
        head_of("vote-linear")[0](torch.randn(1, 4, times, 6), every)


@pytest.mark.parametrize("name", ["mlp", "mean-linear", "weights-linear", "concat-mlp", "gru"])
def test_where_every_time_is_hidden_the_answer_is_a_constant(name):
    head, times = head_of(name)
    logits, _ = head(torch.full((1, 2, times, 6), torch.nan), torch.ones(times, dtype=torch.bool))
    assert logits.isfinite().all() and torch.equal(logits[:, :, 0], logits[:, :, 1])


@pytest.mark.parametrize("readout", ["linear", "mlp"])
def test_the_mean_head_is_the_head_of_one_time_on_the_mean(readout):
    head, times = head_of(f"mean-{readout}")
    one, _ = head_of(readout)
    one.load_state_dict(head.state_dict())
    z = torch.randn(1, 4, times, 6)
    torch.testing.assert_close(head(z)[0], one(z.mean(2, keepdim=True))[0])


def test_convex_weights_begin_uniform_and_one_hot_weights_are_that_times_probe():
    head, times = head_of("weights-linear", scramble=False)
    z = torch.randn(1, 4, times, 6)
    one, _ = head_of("linear")
    one.load_state_dict({key: value for key, value in head.state_dict().items() if key != "pool.preference"})
    logits, attention = head(z)
    torch.testing.assert_close(attention, torch.full_like(attention, 1 / times))
    torch.testing.assert_close(logits, one(z.mean(2, keepdim=True))[0])
    head.pool.preference.data[0, 2] = 200.0
    logits, attention = head(z)
    torch.testing.assert_close(logits, one(z[:, :, 2:3])[0])
    assert attention[0, :, 0, 2].tolist() == [1.0] * 4


@pytest.mark.parametrize("readout", ["linear", "mlp"])
def test_a_vote_is_one_probe_at_each_time(readout):
    head, times = head_of(f"vote-{readout}")
    z = torch.randn(1, 4, times, 6)
    logits, _ = head(z)
    for time in range(times):
        one, _ = head_of(readout)
        one.load_state_dict({key: value[time : time + 1] for key, value in head.state_dict().items()})
        torch.testing.assert_close(one(z[:, :, time : time + 1])[0][:, 0], logits[:, time])


def test_the_gru_is_torchs_cell_step_by_step():
    head, times = head_of("gru")
    cell = nn.GRUCell(6, 16)
    r, u, n = cell.weight_ih.data.chunk(3)
    r_bias, u_bias, n_bias = cell.bias_ih.data.chunk(3)
    load(
        head, inputs__weight=torch.cat([n, r, u]).T, inputs__bias=torch.cat([n_bias, r_bias, u_bias]),
        state__weight=cell.weight_hh.data.T, state__bias=cell.bias_hh.data,
    )  # fmt: skip
    z = torch.randn(1, 3, times, 6, requires_grad=True)
    state = torch.zeros(3, 16)
    for time in range(times):
        state = cell(z[0, :, time], state)
    theirs = state @ head.readout.weight[0] + head.readout.bias[0]
    logits, _ = head(z)
    torch.testing.assert_close(logits[0, 0], theirs)
    towards = torch.randn(3, 5)
    expected = torch.autograd.grad(theirs, [z, cell.weight_hh, cell.bias_hh, cell.weight_ih], towards)
    found = torch.autograd.grad(logits[0, 0], [z, head.state.weight, head.state.bias, head.inputs.weight], towards)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][0].T, expected[1])
    torch.testing.assert_close(found[2][0, 0], expected[2])
    n, r, u = found[3][0].T.chunk(3)
    torch.testing.assert_close(torch.cat([r, u, n]), expected[3])


def test_the_gradient_of_the_gru_is_right_with_dropout_too():
    head = head_of("gru", dimension=2, outputs=2, times=3, fits=2)[0].double().train()
    z = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)

    def logits(z, *parameters):
        head.dropout.share(1, [torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)])
        return torch.func.functional_call(head, dict(zip(dict(head.named_parameters()), parameters, strict=True)), (z,))[0]  # fmt: skip

    parameters = [parameter.detach().requires_grad_() for parameter in head.parameters()]
    assert torch.autograd.gradcheck(logits, (z, *parameters), fast_mode=True)


def test_hidden_times_are_no_steps_of_the_gru():
    head, times = head_of("gru")
    z = torch.randn(1, 3, times, 6)
    hidden = torch.arange(times) % 2 == 1
    assert torch.equal(head(z, hidden)[0], head(z[:, :, ~hidden])[0])


@pytest.mark.parametrize("applications", [1, 2, 3])
def test_the_transformer_is_torchs_post_norm_layer_applied_again(applications):
    head, times = head_of("transformer")
    head.applications = applications
    layer = nn.TransformerEncoderLayer(16, head.heads, 24, 0.0, batch_first=True).eval()
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": head.project.weight[0].T,
            "self_attn.in_proj_bias": head.project.bias[0, 0],
            "self_attn.out_proj.weight": head.merge.weight[0].T,
            "self_attn.out_proj.bias": head.merge.bias[0, 0],
            "linear1.weight": head.inner.weight[0].T,
            "linear1.bias": head.inner.bias[0, 0],
            "linear2.weight": head.outer.weight[0].T,
            "linear2.bias": head.outer.bias[0, 0],
            "norm1.weight": head.norm_attention.scale[0, 0],
            "norm1.bias": head.norm_attention.shift[0, 0],
            "norm2.weight": head.norm_feedforward.scale[0, 0],
            "norm2.bias": head.norm_feedforward.shift[0, 0],
        }
    )
    z = torch.randn(1, 3, times, 6)
    tokens = (z[0] @ head.embed.weight[0] + head.embed.bias[0]) + head.places
    tokens = torch.cat([tokens, head.cls[0].expand(3, 1, -1)], dim=1)
    barred = torch.arange(times + 1)
    for hidden, hide_cls, bars in ((None, False, None), (torch.arange(times) == 2, False, barred == 2),
                                   (torch.arange(times) == 2, True, (barred == 2) | (barred == times))):  # fmt: skip
        padding = None if bars is None else bars.expand(3, -1)
        last = tokens
        for _ in range(applications):
            before, last = last, layer(last, src_key_padding_mask=padding)
        logits, attention = head(z, hidden, hide_cls)
        read = last[:, -1] @ head.readout.weight[0] + head.readout.bias[0]
        torch.testing.assert_close(logits[0, 0], read, atol=1e-5, rtol=1e-5)
        _, weights = layer.self_attn(before, before, before, padding, average_attn_weights=False)
        over_times = weights[:, :, -1, :-1]
        over_times = over_times / over_times.sum(-1, keepdim=True)
        torch.testing.assert_close(attention[0], over_times, atol=1e-5, rtol=1e-5)


def test_layers_begin_as_torchs_do():
    torch.manual_seed(0)
    dense, theirs = mixing.Dense(1, 400, 300), nn.Linear(400, 300)
    for ours, other in ((dense.weight, theirs.weight), (dense.bias, theirs.bias)):
        assert ours.abs().max() <= 0.05 and other.abs().max() <= 0.05
        assert ours.std().item() == pytest.approx(other.std().item(), rel=0.1)
    gru, cell = HEADS["gru"](100, 5, 3, width=300), nn.GRUCell(100, 300)
    assert gru.inputs.weight.std().item() == pytest.approx(cell.weight_ih.std().item(), rel=0.02)
    assert gru.state.weight.std().item() == pytest.approx(cell.weight_hh.std().item(), rel=0.02)
    head = HEADS["transformer"](
        6, 5, 3, width=64
    )  # torch.nn.Linear for queries, keys and values, not Xavier's 64 -> 192
    assert head.project.weight.std().item() == pytest.approx((1 / 64 / 3) ** 0.5, rel=0.02)
    assert 0.1 < head.project.bias.abs().max() <= 1 / 8 and 0.1 < head.merge.bias.abs().max() <= 1 / 8
    assert head.cls.abs().max() <= (3 / 64) ** 0.5 and head.cls.std().item() == pytest.approx(1 / 8, rel=0.2)


def test_nothing_of_the_transformers_attention_is_dropped():
    """Without dropout after the embedding and in the feed-forward part, training is evaluation."""
    head, times = head_of("transformer")
    z = torch.randn(1, 3, times, 6)
    expected = head.eval()(z)[0]
    head.train()
    seen = []
    head.dropout.forward = lambda x: seen.append(tuple(x.shape[1:])) or x
    assert torch.equal(head(z)[0], expected)
    width, inner = head.cls.shape[-1], head.inner.weight.shape[-1]
    tokens = 3 * (times + 1)
    assert seen == [(3, times, width), (tokens, inner), (tokens, width), (3, inner), (3, width)]


def test_a_mask_is_shared_by_the_fits_of_a_seed_and_keeps_the_mean():
    dropout = mixing.Dropout(0.3).train()
    dropout.share(2, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
    out = dropout(torch.ones(2 * 2 * 3, 100, 70)).view(2, 2, 3, 100, 70)  # rates, seeds, views
    assert (out == out[:1, :, :1]).all() and not torch.equal(out[0, 0], out[0, 1])
    kept = (out[0, :, 0] > 0).float()
    assert abs(kept.mean().item() - 0.7) < 4 * (0.3 * 0.7 / 14_000) ** 0.5
    assert set(out.unique().tolist()) == {0.0, out.max().item()} and out.max().item() == pytest.approx(1 / 0.7)
    assert torch.equal(dropout.eval()(out), out)


def test_the_logistic_form_of_tanh_is_tanh():
    x = torch.linspace(-6, 6, 1001).bfloat16()
    torch.testing.assert_close(mixing.hyperbolic_tangent_(x.clone()), x.tanh(), atol=2**-7, rtol=2**-7)


def test_places_tell_the_times_apart():
    places = mixing.sinusoids(75, 256)
    assert places.shape == (75, 256) and places[0, 0] == 0 and places[0, 1] == 1
    torch.testing.assert_close(places[5, 0], torch.tensor(5.0).sin())
    assert torch.cdist(places, places).fill_diagonal_(1).min() > 0.1


def test_a_width_that_the_heads_do_not_divide_is_a_sentence():
    with pytest.raises(ValueError, match="width 18: expected an even multiple of its 4 heads"):
        HEADS["transformer"](6, 5, 7, width=18)
