"""Encoders, heads and losses give what the code of From Points to Functions gave for the same weights and inputs.

tests/fixtures/parity.json holds its outputs; `python benchmarks/parity.py --original DIR --write` makes it from a checkout.
"""

import json

import numpy as np
import pytest

from benchmarks import parity


@pytest.fixture(scope="module")
def outputs():
    return parity.our_outputs()


@pytest.mark.parametrize("name", json.loads(parity.FIXTURES.read_text()))
def test_ours_is_the_originals(outputs, name):
    theirs = np.array(json.loads(parity.FIXTURES.read_text())[name])
    assert parity.difference(outputs[name], theirs) < (2e-4 if "encoder" in name else 1e-5)


def test_every_case_has_its_fixture(outputs):
    assert list(outputs) == list(json.loads(parity.FIXTURES.read_text()))
