"""A training run that is as small as possible."""

import torch
from safetensors.torch import load_file

from msa_model.train import checkpoints
from msa_model.train.config import parse

TINY = [
    *("--preset", "synthetic", "--data.size", "32", "--generator.base_width", "4", "--generator.depth", "4"),
    *("--batch", "2", "--data.workers", "0", "--device", "cpu", "--log_every", "1", "--images_every", "0"),
]


def config(out, *more):
    return parse([*TINY, "--out", str(out), *more])


def batch(count=2, size=32):
    return torch.rand(count, 3, size, size), torch.rand(count, 1, size, size) > 0.3


def weights(out, step, name="generator"):
    return load_file(checkpoints.path_of(out, step) / f"{name}.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
