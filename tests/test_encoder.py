"""The encoder's sizes are the paper's, its posterior's KL is torch's, and every parameter learns."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffusion_model import folded
from diffusion_model.encoder import Block, Encoder, Posterior, widths
from diffusion_model.folded import FoldedEncoder

ROOT = Path(__file__).resolve().parent.parent

# Parameters of the original deterministic encoder, which carries an unused classifier (64k * 10 + 10) and one scalar.
ORIGINAL = {
    0: 384_405,
    0.0625: 10_381,
    0.125: 16_845,
    0.25: 38_311,
    0.5: 115_395,
    1: 405_899,
    2: 1_534_155,
    4: 5_975_851,
}


@pytest.mark.parametrize("widen", ORIGINAL)
def test_parameter_count_is_the_originals_without_its_unused_classifier(widen):
    dimension = widths(widen)[-1]
    with torch.device("meta"):
        model = Encoder(3, widen, probabilistic=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == ORIGINAL[widen] - (dimension * 10 + 10) - 1


def test_probabilistic_adds_one_linear_layer():
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in Encoder(3, 2, probabilistic).parameters()) for probabilistic in (False, True)]
    assert sizes[1] - sizes[0] == 1_567_179 - 1_534_155


def test_kl_equals_torch_distributions():
    mean, logvar = torch.randn(5, 4), torch.randn(5, 4)
    mine = Posterior(mean, logvar).kl()
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, torch.exp(logvar / 2)), torch.distributions.Normal(0.0, 1.0)
    ).sum(1)
    assert torch.allclose(mine, theirs, rtol=1e-5)


def test_the_representation_depends_on_time_and_image():
    torch.manual_seed(0)
    model = Encoder(3, 0.125, probabilistic=True).eval()
    images = torch.randn(2, 3, 16, 16)
    early, late = (model(images, torch.full((2,), time)).mean for time in (0.1, 0.9))
    assert not torch.allclose(early, late, atol=1e-4)
    assert not torch.allclose(early[0], early[1], atol=1e-4)


def test_gradients_reach_every_parameter():
    model = Encoder(1, 0.0625, probabilistic=True)
    posterior = model(torch.randn(4, 1, 8, 8), torch.rand(4))
    (posterior.kl().sum() + posterior.sample(torch.randn(4, 4)).sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_the_skip_is_a_convolution_with_stride():
    block = Block(4, 8, 2, 64)
    x = torch.randn(2, 4, 6, 6)
    strided = F.conv2d(x, block.skip.weight, block.skip.bias, stride=2)
    torch.testing.assert_close(block.skip(x[:, :, ::2, ::2]), strided)
    assert block(x, torch.randn(2, 64)).shape == strided.shape


def test_the_time_is_added_at_full_size_and_moves_the_start_as_the_papers_does():
    """Blocks halve in the second convolution; over t the shift spreads by .17 to .20 (.03 with nn.Linear's own start)."""
    spreads = []
    for seed in range(3):
        torch.manual_seed(seed)
        encoder = Encoder(3, 1, probabilistic=False)
        strides = [(block.conv0.stride, block.conv1.stride) for block in encoder.blocks.values()]
        halving = [index for index, (first, second) in enumerate(strides) if first != (1, 1) or second != (1, 1)]
        assert halving == [4, 8] and all(strides[index] == ((1, 1), (2, 2)) for index in halving)
        log_sigma = math.log(0.01) + torch.linspace(0, 1, 101) * math.log(5000)
        embedding = F.silu(encoder.time_embedding(log_sigma))
        shifts = torch.cat([block.shift(embedding) for block in encoder.blocks.values()], dim=1)
        spreads.append(shifts.std(0).mean().item())
        assert all((layer.bias == 0).all() for layer in (encoder.time_embedding[1], encoder.time_embedding[3]))
    assert 0.15 < np.mean(spreads) < 0.22
    assert encoder.norm.momentum == 0.9


def test_gradients_of_narrow_encoders_stay_within_their_memory():
    """In a process of its own, which glibc aborts where the memory beside a block was written over."""
    script = """
import torch
from diffusion_model.encoder import Encoder
for widen in (0.0625, 0.25, 0.5):
    encoder = Encoder(3, widen, True).to(memory_format=torch.channels_last)
    for _ in range(3):
        encoder(torch.randn(8, 3, 64, 64), torch.rand(8)).mean.square().sum().backward()
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def trained(widen, probabilistic=True, channels=3, least=0.3):
    """An encoder with normalisations as training leaves them, of scales from `least` on."""
    torch.manual_seed(0)
    encoder = Encoder(channels, widen, probabilistic).eval().to(memory_format=torch.channels_last)
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, least, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    return encoder.requires_grad_(False)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("widen", "probabilistic", "channels"), [(0, False, 1), (0.0625, True, 3), (1, True, 3)])
def test_folded_is_unfolded(monkeypatch, widen, probabilistic, channels, fused):
    if not fused:
        monkeypatch.setattr(folded, "fuses", lambda dtype: False)
    encoder = trained(widen, probabilistic, channels)
    x0 = torch.randn(5, channels, 16, 16)
    mine = FoldedEncoder(encoder)
    assert all(block.relu.map is None for block in mine.blocks)
    begun = mine.begin(x0)
    for time in (0.0, 0.3, 1.0):
        expected = encoder(x0, torch.full((5,), time)).mean
        assert torch.allclose(mine.finish(begun, mine.biases(time)), expected, rtol=1e-5, atol=1e-5)
    again = mine.finish(begun, mine.biases(0.0))  # what all times share was not overwritten
    assert torch.equal(again, mine.finish(mine.begin(x0), mine.biases(0.0)))


def test_scales_that_cannot_be_folded_are_kept():
    encoder = trained(0.25, least=-0.5)
    encoder.blocks["group1_block2"].norm0.weight[0] = 0.0
    mine, x0 = FoldedEncoder(encoder), torch.randn(3, 3, 16, 16)
    assert mine.blocks[6].relu.map is not None and any(block.relu.map is None for block in mine.blocks)
    found = mine.finish(mine.begin(x0), mine.biases(0.4))
    assert torch.allclose(found, encoder(x0, torch.full((3,), 0.4)).mean, rtol=1e-5, atol=1e-5)


def test_folded_in_half_precision_is_near():
    encoder = trained(1)
    mine, x0 = FoldedEncoder(encoder, torch.bfloat16), torch.randn(8, 3, 16, 16)
    found, expected = mine.finish(mine.begin(x0), mine.biases(0.4)), encoder(x0, torch.full((8,), 0.4)).mean
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.02 * expected.norm()
