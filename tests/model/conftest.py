"""A generator with a known prediction, and a small real one."""

import pytest
import torch
from torch import nn


class OneColour(nn.Module):
    """Predicts one colour everywhere, and remembers how it was called."""

    def __init__(self, colour=(0.2, 0.4, 0.8)):
        super().__init__()
        self.colour = nn.Parameter(torch.tensor(colour).reshape(1, 3, 1, 1))
        self.inner = nn.BatchNorm2d(3)  # something with a training flag of its own
        self.calls = []

    def forward(self, image, mask):
        self.calls.append((image, mask, self.training, self.inner.training))
        return self.colour.expand(image.shape)


@pytest.fixture
def one_colour():
    return OneColour


@pytest.fixture(scope="session")
def small_generator():
    from msa_model import Generator

    torch.manual_seed(0)
    return Generator(base_width=8, depth=3, attention_levels=()).eval()
