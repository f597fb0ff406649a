"""The README names only what exists, and its ten lines of use as a library run."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
FILES = sorted(
    set(re.findall(r"(?:python|bash) ([\w/]+\.(?:py|sh))", TEXT)) | set(re.findall(r"\((docs/[^)]+)\)", TEXT))
)


@pytest.mark.parametrize("path", FILES)
def test_what_the_readme_names_exists(path):
    assert (ROOT / path).is_file()


def test_the_lines_of_use_as_a_library_run(monkeypatch, tmp_path):
    from diffusion_model import checkpoint
    from diffusion_model.data import Scaling
    from linear_structure.gaussian import Gaussian

    class Model:
        """A model whose denoiser is exact for one image."""

        scaling, shape = Scaling((1 / 127.5,), (-1.0,)), (1, 2, 2)

        def denoise(self, x, level):
            return torch.full_like(x, 0.5)

    mean = torch.full((4,), 0.75 * 255, dtype=torch.float64)
    Gaussian(mean, torch.zeros(4, 0), torch.zeros(0)).save(tmp_path / "gaussian_params")
    monkeypatch.setattr(checkpoint, "load_score_model", lambda run: Model())
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    held = {}
    exec(first, held)
    start = held["x"]
    exec(second, held)
    assert 0 < held["levels"][0] <= 20 and held["x"].shape == start.shape and not torch.equal(held["x"], start)
    assert held["pixels"].shape == (16, 1, 2, 2)
    assert (held["pixels"].float() - 191).abs().max() <= 1
