"""The closed forms set beside a network: names are unique and say what lies in a folder."""

import numpy as np
import pytest
import torch
from linear_world import make_data, make_run

from diffusion_model import experiment
from linear_structure import closed_forms, get_parameters, inputs
from linear_structure.mixture import Mixture


def test_forms_are_named_by_what_they_hold_and_are_in_model_space(tmp_path) -> None:
    split = make_data(tmp_path / "data")
    folders = [tmp_path / name for name in ("params", "low", "mixture", "other", "classes")]
    options = [[], ["--rank", "5"], ["--components", "2"], ["--components", "2", "--seed", "1"], []]
    options[-1] = ["--class-conditional", "place"]
    for folder, chosen in zip(folders, options, strict=True):
        kind = "mixture" if "--components" in chosen else "gaussian"
        assert get_parameters.main(["dots", kind, str(folder), *chosen]) == 0
    given = inputs.open_inputs(make_run(tmp_path / "run", split), folders[0], tmp_path / "data", None, "cpu")
    found = closed_forms.gather(given, folders[1:], delta=True)
    assert list(found) == [
        "mean", "isotropic", "gaussian", "gaussian-rank-5", "mixture-2", "mixture-2-other", "classes-4", "delta"
    ]  # fmt: skip
    assert isinstance(found["classes-4"].form, Mixture)
    assert len({entry.colour for entry in found.values()}) == len({entry.label for entry in found.values()}) == 8
    assert len({entry.origin for name, entry in found.items() if name not in ("mean", "isotropic")}) == 6
    mean = given.model.scaling.to_model(torch.from_numpy(np.array(split.images))).mean(0)
    x = 1e4 * torch.randn(2, *split.shape, generator=torch.Generator().manual_seed(0))
    for name, entry in found.items():
        assert torch.allclose(entry.form.denoise(x, 1e4), mean.expand_as(x), atol=0.02), name
    with pytest.raises(experiment.UsageError, match="a folder of that name and kind is given already"):
        closed_forms.gather(given, [folders[2], folders[2], folders[2]])


def test_diagonals_and_labels_stand_beside_on_request_and_looks_are_read_back(tmp_path) -> None:
    split = make_data(tmp_path / "data")
    for name, options in (("params", []), ("classes", ["--class-conditional", "place"])):
        assert get_parameters.main(["dots", "gaussian", str(tmp_path / name), *options]) == 0
    given = inputs.open_inputs(make_run(tmp_path / "run", split), tmp_path / "params", tmp_path / "data", None, "cpu")
    found = closed_forms.gather(given, [tmp_path / "classes"], diagonals=True, labelled=True)
    further = ["classes-4", "classes-4-labelled", "diagonal-pixel", "diagonal-fourier"]
    assert list(found) == ["mean", "isotropic", "gaussian", *further]
    x = torch.randn(8, *split.shape, generator=torch.Generator().manual_seed(0))
    pixel = found["gaussian"].form.variance
    wiener = found["gaussian"].form.mu + pixel / (pixel + 0.25) * (x.flatten(1).double() - found["gaussian"].form.mu)
    assert torch.allclose(found["diagonal-pixel"].form.denoise(x, 0.5).flatten(1), wiener.float(), atol=1e-4)
    assert found["classes-4-labelled"].form.mixture is found["classes-4"].form
    looks = closed_forms.looks({name: entry.label for name, entry in found.items()})
    assert [label for label, _ in looks.values()] == [entry.label for entry in found.values()]
    assert looks["classes-4-labelled"][1] == looks["classes-4"][1]
