"""What a run will cost: shapes alone give what the real step does."""

import pytest
import torch

from diffusion_model import checkpoint, experiment, footprint

ROW = {"scaling": {"scale": [1 / 127.5] * 3, "shift": [-1.0] * 3}, "shape": [3, 16, 16], "std": 0.5}


def record(*overrides):
    """config.json of the smoke preset."""
    return ROW | {"config": experiment.flatten(experiment.load_config("configs/drl.py:smoke", overrides))}


@pytest.mark.parametrize("mode", ["none", "probabilistic-drl", "vae-bce"])
def test_a_step_without_content_counts_what_a_real_one_does(mode):
    described = record(f"--config.model.mode={mode}", "--config.training.batch=4")
    flops, kept = footprint._step(checkpoint.build(described), 4)
    measured = footprint.measure(described)
    images, weights = described["config"]["training.images"], sum(measured.parameters.values())
    # the one attention of this network is another kernel without content
    assert measured.flops == pytest.approx(flops / 4 * images, rel=0.05)
    assert measured.memory - footprint.KEPT_PER_WEIGHT * weights == pytest.approx(kept, rel=0.08)
    assert weights == sum(weight.numel() for weight in checkpoint.build(described).parameters())


def test_flops_of_the_first_convolution_are_in_the_count():
    """Two for each product of a weight with a pixel; a wider network costs what its convolutions cost."""
    one, two = (footprint.measure(record(f"--config.training.images={images}")).flops for images in (1_280, 2_560))
    assert two == pytest.approx(2 * one)
    model = checkpoint.build(record())
    flops, _ = footprint._step(model, 1)
    pixels = 16 * 16
    first = 2 * pixels * model.net.down["16x16_in"].weight.numel()  # forward, at least as much backward
    assert flops > 2 * first


def test_parts_of_a_batch_take_less_memory_and_as_much_arithmetic():
    whole, parts = (footprint.measure(record(f"--config.training.accumulate={parts}")) for parts in (1, 4))
    assert parts.flops == pytest.approx(whole.flops, rel=0.01) and parts.memory < whole.memory
    assert parts.disk == whole.disk == 2 * 4 * 4 * sum(whole.parameters.values())


def test_nothing_is_computed_and_the_global_generator_stays(monkeypatch):
    before = torch.get_rng_state()
    footprint.measure(record())
    assert torch.equal(before, torch.get_rng_state())
