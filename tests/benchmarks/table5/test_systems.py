"""The compared systems: parameters and FLOPs are the known ones, fused and published operators compute the same, and
every step trains what it should. Networks are narrow where their size is not the question."""

import operator
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.table5.systems import SYSTEMS, Batch, make_batch, pic
from benchmarks.table5.systems.layers import VGG19Features, instance_norm, spectral_norm
from benchmarks.table5.systems.ours import Ours
from benchmarks.table5.systems.pconv import PConv, PConvUNet

CPU = torch.device("cpu")
SMALLEST = {"pic": 96, "pconv": 32, "edgeconnect-edge": 24, "edgeconnect-inpainting": 24, "ours": 32}
every_system = pytest.mark.parametrize("name", SYSTEMS)


def narrow(name, precision=torch.float32, **options):
    """A system with an eighth of its channels, and a batch for it."""
    if name in ("pconv", "ours"):
        options = {"depth": 4} | options
    system = SYSTEMS[name](CPU, precision, width=4 if name == "pic" else 8, **options)
    return system, make_batch(SMALLEST[name], 2 if name in ("pconv", "ours") else 1, CPU)


@pytest.fixture
def narrow_vgg(monkeypatch):
    monkeypatch.setattr(VGG19Features, "GROUPS", ((4, 2), (8, 2), (8, 4), (8, 4), (8, 4)))


# ---- size and work -------------------------------------------------------------------------------------------------


def millions(*networks):
    return sum(p.numel() for network in networks for p in network.parameters()) / 1e6


def gigaflop(run):
    """Of the operations that `run` asks for, without computing them."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def step_gigaflop(system, images=1):
    """Per image of 256×256. To save time, spectral norm and Adam are left out: torch's counter counts neither the
    products of a matrix and a vector nor elementwise work."""
    for layer in nn.ModuleDict(system.networks).modules():
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")
    plane = torch.zeros(images, 1, 256, 256)
    batch = Batch(torch.zeros(images, 3, 256, 256), plane.bool(), plane, plane)
    with mock.patch.object(torch.optim.Adam, "step"):
        return gigaflop(lambda: system.step(batch)) / images


@pytest.mark.parametrize(
    ("name", "generator", "known_gigaflop"),
    [("edgeconnect-edge", 10.76, 343), ("edgeconnect-inpainting", 10.77, 654)],
)
def test_size_and_work_of_edgeconnect_are_the_known_ones(name, generator, known_gigaflop):
    system = SYSTEMS[name](CPU)
    assert millions(system.generator) == pytest.approx(generator, abs=0.005)
    assert millions(system.discriminator) == pytest.approx(2.76, abs=0.005)
    assert step_gigaflop(system) == pytest.approx(known_gigaflop, rel=0.02)


def test_size_and_work_of_pic_are_the_known_ones():
    """The known sizes count the vectors of the power iterations, and a block that the discriminator does not run."""
    system = SYSTEMS["pic"](CPU)

    def with_vectors(*networks):
        vectors = [b for n in networks for key, b in n.named_buffers() if key.rpartition(".")[2] in ("_u", "_v")]
        return millions(*networks) + sum(v.numel() for v in vectors) / 1e6

    assert with_vectors(system.encoder) == pytest.approx(3.64, abs=0.005)
    assert with_vectors(system.generator) == pytest.approx(2.40, abs=0.005)
    unused = pic.residual_block(256, 128, 128)
    for discriminator in system.discriminators.values():
        assert with_vectors(discriminator, unused) == pytest.approx(1.59, abs=0.005)
    assert step_gigaflop(system) == pytest.approx(138, abs=0.5)


def test_size_and_work_of_pconv_and_ours_are_the_known_ones():
    """PConv's 201 GFLOP are those of 8 levels and C-channel masks. The 288 of Ours are those of the released
    formulation, which differs from ours in this, added here:

    - its 16 convolutions are those of the published PConv, on C-channel masks and built concatenations: what PConv's
      step takes more on them than on the fused operators;
    - the discriminator's weights get gradients from the generator's loss too, which nothing reads;
    - its attention keeps the scores; ours computes them again in the backward, which the counter adds to the step.

    The masks of fake tensors hold nothing, so that the attention's formula counts every pair of pixels, as the released
    attention does."""
    assert millions(PConv(CPU).generator) == pytest.approx(25.8, rel=0.02)
    published = step_gigaflop(PConv(CPU, backend="reference", depth=8), images=2)  # batch norm wants two
    assert published == pytest.approx(201, rel=0.02)

    ours = Ours(CPU, variant="released")
    generator, discriminator = ours.networks.values()
    assert millions(generator) == pytest.approx(33.69, rel=0.02)
    assert millions(discriminator) == pytest.approx(2.76, rel=0.02)
    masks_and_concatenations = published - step_gigaflop(PConv(CPU, depth=8), images=2)

    def backward(learns):
        image = torch.zeros(1, 3, 256, 256, requires_grad=True)
        discriminator.requires_grad_(learns)
        discriminator(image).sum().backward()

    unread_gradients = gigaflop(lambda: backward(True)) - gigaflop(lambda: backward(False))
    scores_again = sum(2 * side**4 * channels for side, channels in ((32, 256), (64, 128))) / 1e9
    released = step_gigaflop(ours, images=2) + masks_and_concatenations + unread_gradients - scores_again
    assert released == pytest.approx(288, rel=0.02)
    # None of them is small enough to hide in the tolerance.
    assert min(masks_and_concatenations, unread_gradients, scores_again) > 4.5


# ---- networks and layers -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_maps_of_pic():
    maps, prior, posterior = pic.Encoder(8)(torch.zeros(2, 3, 96, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, s, s) for c, s in zip((8, 16, 32, 32, 32), (48, 24, 12, 6, 3), strict=True)
    ]
    assert prior.shape == posterior.shape == (1, 64, 3, 3)
    latents = pic.latents_of(prior)
    assert latents.mean.shape == latents.stddev.shape == (1, 32, 3, 3)
    images = pic.Generator(8)(latents.sample(), maps[-1], maps[2], torch.ones(1, 1, 12, 12))
    assert [tuple(image.shape) for image in images] == [(1, 3, s, s) for s in (12, 24, 48, 96)]
    assert pic.make_discriminator(8)(images[-1]).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("name", ["pic", "edgeconnect-edge", "edgeconnect-inpainting"])
def test_spectral_norm_is_where_it_should_be(name):
    """On all convolutions but the edge generator's last one and the inpainting generator's."""
    for key, network in narrow(name)[0].networks.items():
        convolutions = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
        expected = [(name, key) != ("edgeconnect-inpainting", "generator")] * len(convolutions)
        if (name, key) == ("edgeconnect-edge", "generator"):
            assert len(convolutions) == 22
            expected[-1] = False
        assert [parametrize.is_parametrized(layer) for layer in convolutions] == expected


@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
def test_spectral_weight_has_norm_one_under_autocast_and_compiles_whole(make):
    layer = spectral_norm(make(6, 8, kernel_size=3, padding=1))
    x = torch.randn(1, 6, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(100):
            layer(x)
    layer.eval()
    weight = layer.weight.detach()
    out_first = weight.transpose(0, 1) if make is nn.ConvTranspose2d else weight
    assert torch.linalg.matrix_norm(out_first.flatten(1), 2).item() == pytest.approx(1, abs=1e-5)
    layer.train()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, layer(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
def test_instance_norm_and_its_gradient(images):
    def definition(x):
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    x = torch.randn(images, 6, 8, 9).to(memory_format=torch.channels_last)
    direction = torch.randn_like(x)
    results = []
    for norm in (instance_norm(6), definition):
        leaf = x.clone().requires_grad_()
        output = norm(leaf)
        results.append([output, *torch.autograd.grad(output, leaf, direction)])
    torch.testing.assert_close(*results)


def test_attention_of_pic_pixel_by_pixel():
    x, feature, valid = torch.randn(1, 8, 3, 4), torch.randn(1, 8, 3, 4), (torch.rand(1, 1, 3, 4) > 0.5).float()
    attention = pic.ShortLongAttention(8).eval()
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
    torch.testing.assert_close(pic.SelfAttention.forward(attention, x), short)


@pytest.mark.parametrize("hole", ["brush", "all", "none"])
def test_fused_pconv_computes_what_the_published_one_does(hole):
    batch = make_batch(32, 2, CPU)
    mask = {"brush": batch.mask, "all": torch.zeros_like(batch.mask), "none": torch.ones_like(batch.mask)}[hole]
    published, fused = (PConvUNet(depth=3, backend=backend, width=8).double() for backend in ("reference", "auto"))
    fused.load_state_dict(published.state_dict())
    results = []
    for network in (published, fused):
        image = batch.image.double().requires_grad_()
        output = network(image, mask)
        gradients = torch.autograd.grad(output.square().sum(), [image, *network.parameters()])
        results.append([output, *gradients])
    # The published ratio has E / (s + 1e-8).
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6 * results[0][0].abs().max().item())


# ---- steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "falling"),
    [
        ("pic", 6, ["l1_reconstruction", "l1_generation", "kl_posterior", "kl_prior"]),
        ("pconv", 4, ["total"]),
        ("edgeconnect-edge", 6, ["feature_matching"]),
        ("edgeconnect-inpainting", 6, ["l1", "perceptual"]),
        ("ours", 4, ["total"]),
    ],
)
def test_a_fixed_batch_is_learnt(name, steps, falling):
    """Every weight takes part in it, but those of the frozen features."""
    system, batch = narrow(name)
    frozen = [p.clone() for features in system.features for p in features.parameters()]
    terms = [system.step(batch) for _ in range(steps)]
    for term in falling:
        assert terms[-1][term] < 0.97 * terms[0][term], term
    for network in system.networks.values():
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key
    after = [p for features in system.features for p in features.parameters()]
    assert all(p.grad is None and torch.equal(p, before) for p, before in zip(after, frozen, strict=True))


@pytest.mark.parametrize("name", ["pic", "edgeconnect-edge", "edgeconnect-inpainting"])
def test_discriminators_learn_from_their_own_loss_only(name, narrow_vgg, monkeypatch):
    """Their gradients are the same where the generator's loss, which runs through them, is 0."""
    gradients = []
    for is_zero in (False, True):
        torch.manual_seed(0)
        system, batch = narrow(name)
        if is_zero:
            owner = pic if name == "pic" else system
            monkeypatch.setattr(owner, "WEIGHTS", dict.fromkeys(owner.WEIGHTS, 0))
        system.step(batch)
        discriminators = [network for key, network in system.networks.items() if key.startswith("discriminator")]
        gradients.append([p.grad for network in discriminators for p in network.parameters()])
        generators = [network for key, network in system.networks.items() if not key.startswith("discriminator")]
        assert is_zero != any(p.grad.any() for network in generators for p in network.parameters())
    assert gradients[0]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("make", [PConv, Ours])
def test_steps_from_the_same_weights_agree(make):
    batch = make_batch(32, 2, CPU)
    losses, weights = [], []
    for backend in ("reference", "auto"):
        torch.manual_seed(3)
        system = make(CPU, backend=backend, depth=4, width=8)
        weights.append({name: t.clone() for name, t in system.networks["generator"].state_dict().items()})
        losses.append(system.step(batch))
    assert all(torch.equal(weights[0][name], t) for name, t in weights[1].items())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


def test_pconv_has_all_its_losses_and_no_discriminator():
    system, batch = narrow("pconv")
    assert set(system.networks) == {"generator"}
    terms = system.step(batch)
    weights = {"perceptual": 0.05, "style": 120, "total_variation": 0.1, "hole": 6, "valid": 1}
    assert set(terms) == {"total", *weights}
    torch.testing.assert_close(terms["total"], sum(weight * terms[name] for name, weight in weights.items()))
    assert system.loss.variant == "released"  # the composite's features too


@pytest.mark.parametrize("name", ["edgeconnect-edge", "edgeconnect-inpainting"])
def test_generators_of_edgeconnect_see_what_is_outside_the_hole(name, narrow_vgg):
    """Its masks are ours inverted."""
    system, batch = narrow(name)
    noise = torch.where(batch.mask, 0.0, torch.rand_like(batch.grey))
    changed = Batch(batch.image + noise, batch.mask, batch.grey + noise, batch.edges)
    inputs = []
    system.generator.register_forward_pre_hook(lambda network, arguments: inputs.append(arguments[0]))
    system.step(batch)
    system.step(changed)
    seen = inputs[0]
    images = batch.grey if name == "edgeconnect-edge" else batch.image
    valid = batch.mask.expand_as(images)
    assert torch.equal(seen[:, : images.shape[1]][valid], images[valid])
    assert torch.equal(*inputs)
    if name == "edgeconnect-edge":
        assert torch.equal(seen[:, 2:] == 0, batch.mask)


@every_system
def test_a_bfloat16_step_is_finite_and_weights_stay_float32(name, narrow_vgg):
    system, batch = narrow(name, torch.bfloat16)
    terms = system.step(batch)
    assert all(torch.isfinite(term) for term in terms.values())
    for network in system.networks.values():
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in network.parameters())


@every_system
def test_compile_takes_every_network(name, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda network, **options: compiled.append((network, options)))
    system, _ = narrow(name)
    system.compile()
    features = {"pconv": "loss.vgg", "ours": "trainer.loss.vgg", "edgeconnect-inpainting": "vgg"}
    frozen = [operator.attrgetter(features[name])(system)] if name in features else []
    # A second batch size is a second graph, and not a slower one for all sizes.
    assert compiled == [(network, {"dynamic": False}) for network in (*system.networks.values(), *frozen)]


@pytest.mark.parametrize("size", [64, 100])
def test_sizes_that_do_not_fit_pic_are_named(size):
    plane = torch.zeros(1, 1, size, size)
    with pytest.raises(ValueError, match=f"at least 96x96 with sides multiples of 32, got {size}x{size}"):
        narrow("pic")[0].step(Batch(torch.zeros(1, 3, size, size), plane.bool(), plane, plane))


def test_batch_is_what_it_says():
    batch = make_batch(96, 3, CPU)
    assert len(batch) == 3
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.image.shape == (3, 3, 96, 96)
    assert batch.mask.shape == batch.grey.shape == batch.edges.shape == (3, 1, 96, 96)
    assert batch.mask.dtype == torch.bool
    holes = (~batch.mask).flatten(1).float().mean(1)
    assert ((holes >= 0.2) & (holes <= 0.3)).all()
    assert 0 <= batch.image.min() < batch.image.max() <= 1
    assert set(batch.edges.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(batch.image, make_batch(96, 3, CPU).image)
    colours, grey = batch.image.permute(0, 2, 3, 1).reshape(-1, 3), batch.grey.reshape(-1, 1)
    luma = torch.linalg.lstsq(colours, grey).solution.flatten()
    torch.testing.assert_close(luma, torch.tensor([0.299, 0.587, 0.114]), rtol=0, atol=1e-3)
