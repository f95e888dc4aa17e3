"""EdgeConnect: its size and work are the known ones, its networks have the described maps, its steps train."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.systems.edgeconnect import EdgeConnectEdge, EdgeConnectInpainting
from benchmarks.systems.edgeconnect_networks import EdgeConnectGenerator, PatchDiscriminator
from benchmarks.systems.instance_norm import instance_norm
from benchmarks.systems.spectral_norm import SpectralConv2d, SpectralConvTranspose2d
from benchmarks.systems.system import Batch, make_batch
from benchmarks.systems.vgg19 import VGG19Features

CPU = torch.device("cpu")
STAGES = (EdgeConnectEdge, EdgeConnectInpainting)


def empty_batch(size):
    plane = torch.zeros(1, 1, size, size)
    return Batch(torch.zeros(1, 3, size, size), plane.bool(), plane, plane)


def millions(network):
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.mark.parametrize(
    ("stage", "generator", "discriminator", "gigaflop"),
    [(EdgeConnectEdge, 10.76, 2.76, 343), (EdgeConnectInpainting, 10.77, 2.76, 654)],
)
def test_size_and_work_are_the_known_ones(stage, generator, discriminator, gigaflop):
    system = stage(CPU)
    assert millions(system.networks["generator"]) == pytest.approx(generator, abs=0.005)
    assert millions(system.networks["discriminator"]) == pytest.approx(discriminator, abs=0.005)
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        system.step(empty_batch(256))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gigaflop, rel=0.02)


def test_maps_of_the_networks():
    with torch.device("meta"):
        generator = EdgeConnectGenerator(4, 3, squash=torch.sigmoid)
        maps = []
        for layer in generator.layers:
            layer.register_forward_hook(lambda layer, inputs, output: maps.append(tuple(output.shape[1:])))
        assert generator(torch.empty(2, 4, 256, 256)).shape == (2, 3, 256, 256)
        assert {(64, 256, 256), (128, 128, 128), (256, 64, 64)} <= set(maps)
        # At a quarter of the size: the second halving with its norm and ReLU, and eight blocks.
        assert maps.count((256, 64, 64)) == 3 + 8
        features = VGG19Features()(torch.empty(2, 3, 256, 256))
    assert len(features) == 16
    assert [tuple(features[f"relu{group}_1"].shape) for group in range(1, 6)] == [
        (2, 64, 256, 256),
        (2, 128, 128, 128),
        (2, 256, 64, 64),
        (2, 512, 32, 32),
        (2, 512, 16, 16),
    ]
    # No meta tensors here: layers with spectral norm switch autocast off, which does not know these.
    shapes = [tuple(f.shape) for f in PatchDiscriminator(2)(torch.zeros(1, 2, 128, 128))]
    assert shapes == [(1, 64, 64, 64), (1, 128, 32, 32), (1, 256, 16, 16), (1, 512, 15, 15), (1, 1, 14, 14)]


def test_spectral_norm_is_on_all_but_the_edge_generators_last_convolution():
    def normed(network):
        convolutions = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
        return [isinstance(m, (SpectralConv2d, SpectralConvTranspose2d)) for m in convolutions]

    edge, inpainting = EdgeConnectEdge(CPU).networks, EdgeConnectInpainting(CPU).networks
    assert normed(edge["generator"]) == [True] * 21 + [False]
    assert not any(normed(inpainting["generator"]))
    assert normed(edge["discriminator"]) == normed(inpainting["discriminator"]) == [True] * 5


@pytest.mark.parametrize("make", [SpectralConv2d, SpectralConvTranspose2d])
def test_spectral_weight_has_norm_one_under_autocast_and_compiles_whole(make):
    layer = make(6, 8, kernel_size=3, padding=1)
    x = torch.randn(1, 6, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(100):
            layer(x)
    layer.eval()
    out_first = layer.weight.transpose(0, 1) if make is SpectralConvTranspose2d else layer.weight
    assert torch.linalg.matrix_norm(out_first.flatten(1), 2).item() == pytest.approx(1, abs=1e-5)
    plain = make.__mro__[1](6, 8, kernel_size=3, padding=1)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    torch.testing.assert_close(layer(x), plain(x))
    layer.train()
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), plain(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
def test_instance_norm_and_its_gradient(images):
    def definition(x):
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    x = torch.randn(images, 6, 8, 9).to(memory_format=torch.channels_last)
    direction = torch.randn_like(x)
    outputs, gradients = [], []
    for norm in (instance_norm(6), definition):
        leaf = x.clone().requires_grad_()
        outputs.append(norm(leaf))
        (outputs[-1] * direction).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("stage", "falling"), [(EdgeConnectEdge, ["feature_matching"]), (EdgeConnectInpainting, ["l1", "perceptual"])]
)
def test_a_fixed_batch_is_learnt(stage, falling):
    system, batch = stage(CPU), make_batch(32, 1, CPU)
    terms = [system.step(batch) for _ in range(7)]
    for term in falling:
        assert terms[-1][term] < 0.8 * terms[0][term], term
    for network in system.networks.values():
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("stage", STAGES)
def test_the_discriminator_learns_from_its_own_loss_only(stage):
    """Its gradients are of its own loss, though the generator's loss runs through it after."""
    system, gradients = stage(CPU), []
    update = system._update

    def watched(generator_loss):
        parameters = list(system.discriminator.parameters())
        gradients.append([p.grad.clone() for p in parameters])
        assert all(p.grad is None for p in system.generator.parameters())
        update(generator_loss)
        gradients.append([p.grad for p in parameters])

    system._update = watched
    system.step(make_batch(24, 1, CPU))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


class Seen(Exception):
    """Ends a step as soon as the generator is called."""


def generator_input(system, batch):
    def stop(network, inputs):
        raise Seen(inputs[0])

    hook = system.networks["generator"].register_forward_pre_hook(stop)
    with pytest.raises(Seen) as seen:
        system.step(batch)
    hook.remove()
    return seen.value.args[0]


def test_generators_see_what_is_outside_the_hole():
    """EdgeConnect's masks are ours turned over."""
    batch = make_batch(32, 1, CPU)
    noise = torch.where(batch.mask, 0.0, torch.rand_like(batch.grey))
    changed = Batch(batch.image + noise, batch.mask, batch.grey + noise, batch.edges)

    edge = generator_input(EdgeConnectEdge(CPU), batch)
    assert torch.equal(edge[:, :1][batch.mask], batch.grey[batch.mask])
    assert torch.equal(edge[:, 2:] == 0, batch.mask)
    assert torch.equal(edge, generator_input(EdgeConnectEdge(CPU), changed))

    inpainting = generator_input(EdgeConnectInpainting(CPU), batch)
    valid = batch.mask.expand(-1, 3, -1, -1)
    assert torch.equal(inpainting[:, :3][valid], batch.image[valid])
    assert torch.equal(inpainting, generator_input(EdgeConnectInpainting(CPU), changed))


def test_vgg_stays_as_it_was():
    system = EdgeConnectInpainting(CPU)
    before = {name: t.clone() for name, t in system.vgg.state_dict().items()}
    system.step(make_batch(24, 1, CPU))
    assert all(torch.equal(t, before[name]) for name, t in system.vgg.state_dict().items())
    assert all(p.grad is None for p in system.vgg.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_a_bfloat16_step_is_finite_and_weights_stay_float32(stage):
    system = stage(CPU, torch.bfloat16)
    terms = system.step(make_batch(24, 1, CPU))
    assert all(torch.isfinite(term) for term in terms.values())
    for network in system.networks.values():
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in network.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_compile_takes_every_network(stage, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: compiled.append(module))
    system = stage(CPU)
    system.compile()
    frozen = [system.vgg] if stage is EdgeConnectInpainting else []
    assert compiled == [*system.networks.values(), *frozen]
