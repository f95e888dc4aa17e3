"""PIC: its size and work are the known ones, its networks have the described maps, its steps train."""

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.systems.pic import PIC
from benchmarks.systems.pic_blocks import FirstBlock, ResidualBlock, SelfAttention, ShortLongAttention
from benchmarks.systems.pic_networks import Discriminator, Encoder, Gaussian, Generator
from benchmarks.systems.system import Batch, make_batch

CPU = torch.device("cpu")


def millions(*networks):
    return sum(p.numel() for network in networks for p in network.parameters()) / 1e6


def test_size_and_work_are_the_known_ones():
    system = PIC(CPU)
    networks = system.networks
    assert millions(networks["encoder"]) == pytest.approx(3.64, rel=0.02)
    assert millions(networks["generator"]) == pytest.approx(2.40, rel=0.02)
    unused = ResidualBlock(256, 128, 128)  # see pic_networks
    for path in ("generation", "reconstruction"):
        assert millions(networks[f"discriminator_{path}"], unused) == pytest.approx(1.59, rel=0.02)
    plane = torch.zeros(1, 1, 256, 256)
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        system.step(Batch(torch.zeros(1, 3, 256, 256), plane.bool(), plane, plane))
    assert counter.get_total_flops() / 1e9 == pytest.approx(138, rel=0.02)


def test_figures_are_exact_with_the_power_iterations_vectors():
    def with_vectors(*networks):
        vectors = [
            b for network in networks for name, b in network.named_buffers() if name.rpartition(".")[2] in ("_u", "_v")
        ]
        return millions(*networks) + sum(v.numel() for v in vectors) / 1e6

    assert with_vectors(Encoder()) == pytest.approx(3.64, abs=0.005)
    assert with_vectors(Generator()) == pytest.approx(2.40, abs=0.005)
    assert with_vectors(Discriminator(), ResidualBlock(256, 128, 128)) == pytest.approx(1.59, abs=0.005)


@torch.no_grad()
def test_maps_of_the_networks():
    features, prior, posterior = Encoder()(torch.zeros(2, 3, 256, 256))
    sides = (128, 64, 32, 16, 8)
    widths = (32, 64, 128, 128, 128)
    assert [tuple(f.shape) for f in features] == [(1, c, s, s) for c, s in zip(widths, sides, strict=True)]
    for latents in (prior, posterior):
        assert latents.mean.shape == latents.deviation.shape == (1, 128, 8, 8)
    images = Generator()(prior.sample(), features[-1], features[2], torch.ones(1, 1, 32, 32))
    assert [tuple(image.shape) for image in images] == [(1, 3, s, s) for s in (32, 64, 128, 256)]
    assert Discriminator()(images[-1]).shape == (1, 1, 6, 6)


def test_pooling_blocks_are_what_their_docstrings_say():
    """Pools of both branches, and 1×1 before or after the pool, are written the short way."""
    x = torch.randn(1, 4, 6, 6)
    for block in (ResidualBlock(4, 5, 6, down=True).eval(), FirstBlock(4, 6).eval()):
        start = x if isinstance(block, FirstBlock) else nn.functional.leaky_relu(x, 0.1)
        residual = block.second(nn.functional.leaky_relu(block.first(start), 0.1))
        expected = nn.AvgPool2d(2)(residual) + nn.AvgPool2d(2)(block.shortcut(x))
        torch.testing.assert_close(block(x), expected)


def test_attention_pixel_by_pixel():
    x, feature, valid = torch.randn(1, 8, 3, 4), torch.randn(1, 8, 3, 4), (torch.rand(1, 1, 3, 4) > 0.5).float()
    attention = ShortLongAttention(8).eval()
    with torch.no_grad():
        attention.gamma.fill_(0.7)
        attention.alpha.fill_(0.4)
    query = attention.query(x)[0].flatten(1)
    short, long = torch.empty_like(x), torch.empty_like(x)
    for p in range(12):
        weights = torch.softmax(torch.stack([query[:, p] @ query[:, q] for q in range(12)]), 0)
        i, j = divmod(p, 4)
        mean, mean_feature = ((t[0].flatten(1) * weights).sum(1) for t in (x, feature))
        short[0, :, i, j] = 0.7 * mean + x[0, :, i, j]
        long[0, :, i, j] = feature[0, :, i, j] if valid[0, 0, i, j] else 0.4 * mean_feature
    expected = attention.merge(torch.cat([short, long], 1))
    torch.testing.assert_close(attention(x, feature, valid), expected)
    torch.testing.assert_close(SelfAttention.forward(attention, x), short)


def test_divergence_is_torchs():
    one, other = (Gaussian(torch.randn(2, 3), torch.rand(2, 3) + 0.1) for _ in range(2))
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(*one), torch.distributions.Normal(*other))
    torch.testing.assert_close(one.divergence(other), expected.mean())


def test_a_fixed_batch_is_learnt():
    system, batch = PIC(CPU), make_batch(96, 1, CPU)
    terms = [system.step(batch) for _ in range(7)]
    for term in ("l1_reconstruction", "l1_generation", "kl_posterior", "kl_prior"):
        assert terms[-1][term] < 0.9 * terms[0][term], term
    for network in system.networks.values():
        for name, parameter in network.named_parameters():
            assert parameter.requires_grad
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_each_loss_moves_its_own_networks():
    """The discriminators' gradients are of their own loss only, though the generator's loss runs through them after."""
    system = PIC(CPU)
    batch = make_batch(96, 1, CPU)
    gradients = []
    original = system._generator_step

    def watched(*arguments):
        parameters = list(system.discriminators.parameters())
        gradients.append([p.grad.clone() for p in parameters])
        assert all(p.grad is None for p in system.generator.parameters())
        terms = original(*arguments)
        gradients.append([p.grad for p in parameters])
        return terms

    system._generator_step = watched
    system.step(batch)
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_bfloat16_step_is_finite_and_weights_stay_float32():
    system = PIC(CPU, torch.bfloat16)
    terms = system.step(make_batch(96, 1, CPU))
    assert all(math.isfinite(term.item()) for term in terms.values())
    for network in system.networks.values():
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in network.parameters())


def test_compile_takes_every_network(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compiled.append(module))
    system = PIC(CPU)
    system.compile()
    assert compiled == list(system.networks.values())


@pytest.mark.parametrize("size", [64, 100])
def test_sizes_that_do_not_fit_are_named(size):
    plane = torch.zeros(1, 1, size, size)
    with pytest.raises(ValueError, match=f"at least 96x96 with sides multiples of 32, got {size}x{size}"):
        PIC(CPU).step(Batch(torch.zeros(1, 3, size, size), plane.bool(), plane, plane))
