"""Trainers with a narrow discriminator; the paper's takes most of the time of a small run."""

import functools

import pytest

from msa_model import Discriminator
from msa_model.train import trainer


@pytest.fixture(autouse=True)
def narrow_discriminator(monkeypatch):
    monkeypatch.setattr(trainer, "Discriminator", functools.partial(Discriminator, base_width=4))
