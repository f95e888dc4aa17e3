"""PConv and Ours: size and work are the known ones, fused and published operators compute the same, steps train."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.systems import SYSTEMS
from benchmarks.systems.ours import Ours
from benchmarks.systems.pconv import PConv, PConvUNet
from benchmarks.systems.system import Batch, make_batch

CPU = torch.device("cpu")


def millions(network):
    return sum(p.numel() for p in network.parameters()) / 1e6


def gigaflop(run):
    """Of the operations that `run` asks for, without doing them."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def step_gigaflop(system, images=2):
    """Per image of 256×256; batch norm wants two."""
    plane = torch.zeros(images, 1, 256, 256)
    batch = Batch(torch.zeros(images, 3, 256, 256), plane.bool(), plane, plane)
    return gigaflop(lambda: system.step(batch)) / images


@pytest.fixture(scope="module")
def published_gigaflop():
    """Of PConv's step with 8 levels and C-channel masks, which convolutions with kernels of ones count."""
    return step_gigaflop(PConv(CPU, backend="reference", depth=8))


def test_sizes_are_the_known_ones():
    assert millions(PConv(CPU).networks["generator"]) == pytest.approx(25.8, rel=0.02)
    ours = Ours(CPU).networks
    assert millions(ours["generator"]) == pytest.approx(33.69, rel=0.02)
    assert millions(ours["discriminator"]) == pytest.approx(2.76, rel=0.02)


def test_work_of_pconv_is_the_known_one(published_gigaflop):
    assert published_gigaflop == pytest.approx(201, rel=0.02)


def test_work_of_ours_is_the_known_one(published_gigaflop):
    """288 GFLOP are those of the released formulation, which differs from ours in this, added here:

    - its 16 convolutions are those of the published PConv, on C-channel masks and built concatenations: what PConv's
      step takes more on them than on the fused operators;
    - the discriminator's weights get gradients from the generator's loss too, which nothing reads;
    - its attention keeps the scores; ours makes them again in the backward, which is counted with the step.

    The masks of fake tensors hold nothing, for which the attention's formula counts every pair of pixels, as the
    released attention does."""
    ours = Ours(CPU, variant="released")
    masks_and_concatenations = published_gigaflop - step_gigaflop(PConv(CPU, depth=8))
    discriminator = ours.networks["discriminator"]

    def backward(learns):
        image = torch.zeros(1, 3, 256, 256, requires_grad=True)
        discriminator.requires_grad_(learns)
        discriminator(image).sum().backward()

    unread_gradients = gigaflop(lambda: backward(True)) - gigaflop(lambda: backward(False))
    scores_again = sum(2 * side**4 * channels for side, channels in ((32, 256), (64, 128))) / 1e9
    released = step_gigaflop(ours) + masks_and_concatenations + unread_gradients - scores_again
    assert released == pytest.approx(288, rel=0.02)
    # Each of them matters: none hides in the tolerance.
    assert min(masks_and_concatenations, unread_gradients, scores_again) > 4.5


@pytest.mark.parametrize("hole", ["brush", "all", "none"])
def test_fused_pconv_computes_what_the_published_one_does(hole):
    batch = make_batch(64, 2, CPU)
    mask = {"brush": batch.mask, "all": torch.zeros_like(batch.mask), "none": torch.ones_like(batch.mask)}[hole]
    published, fused = (PConvUNet(depth=3, backend=backend).double() for backend in ("reference", "auto"))
    fused.load_state_dict(published.state_dict())
    results = []
    for network in (published, fused):
        image = batch.image.double().requires_grad_()
        output = network(image, mask)
        gradients = torch.autograd.grad(output.square().sum(), [image, *network.parameters()])
        results.append([output, *gradients])
    # The published ratio has E / (s + 1e-8).
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6 * results[0][0].abs().max().item())


@pytest.mark.parametrize("make", [PConv, Ours])
def test_steps_from_the_same_weights_agree(make):
    batch = make_batch(32, 2, CPU)
    losses, weights = [], []
    for backend in ("reference", "auto"):
        torch.manual_seed(3)
        system = make(CPU, backend=backend, depth=4)
        weights.append({name: t.clone() for name, t in system.networks["generator"].state_dict().items()})
        losses.append(system.step(batch))
    assert all(torch.equal(weights[0][name], t) for name, t in weights[1].items())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [PConv, Ours])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_losses_fall(make, backend):
    batch = make_batch(32, 2, CPU)
    system = make(CPU, backend=backend, depth=4)
    totals = [system.step(batch)["total"].item() for _ in range(5)]
    assert totals[-1] < 0.9 * totals[0]


def test_pconv_has_all_its_losses_and_no_discriminator():
    system = PConv(CPU, depth=2)
    assert set(system.networks) == {"generator"}
    terms = system.step(make_batch(32, 2, CPU))
    assert set(terms) == {"total", "perceptual", "style", "total_variation", "hole", "valid"}
    weights = {"perceptual": 0.05, "style": 120, "total_variation": 0.1, "hole": 6, "valid": 1}
    expected = sum(weight * terms[name] for name, weight in weights.items())
    torch.testing.assert_close(terms["total"], expected)
    assert system.loss.variant == "released"  # the composite's features too


@pytest.mark.parametrize("name", ["pconv", "ours"])
def test_a_half_precision_step_is_finite_and_leaves_weights_float32(name):
    system = SYSTEMS[name](CPU, torch.bfloat16, depth=4)
    terms = system.step(make_batch(32, 2, CPU))
    assert all(torch.isfinite(term) for term in terms.values())
    assert {p.dtype for network in system.networks.values() for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["pconv", "ours"])
def test_compile_covers_networks_and_features(name, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append((self, options)))
    system = SYSTEMS[name](CPU, depth=4)
    system.compile()
    features = (system.loss if name == "pconv" else system.trainer.loss).vgg
    assert [network for network, _ in compiled] == [*system.networks.values(), features]
    # A second batch size is a second graph, and not a slower one for all sizes.
    assert all(options == {"dynamic": False} for _, options in compiled)


def test_batch_is_what_it_says():
    batch = make_batch(96, 3, CPU)
    assert len(batch) == 3
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.image.shape == (3, 3, 96, 96)
    assert batch.mask.dtype == torch.bool
    holes = (~batch.mask).flatten(1).float().mean(1)
    assert ((holes >= 0.2) & (holes <= 0.3)).all()
    assert batch.image.min() >= 0
    assert batch.image.max() <= 1
    assert set(batch.edges.unique().tolist()) == {0.0, 1.0}
    assert batch.mask.shape == batch.grey.shape == batch.edges.shape == (3, 1, 96, 96)
    assert torch.equal(batch.image, make_batch(96, 3, CPU).image)
    colours, grey = batch.image.permute(0, 2, 3, 1).reshape(-1, 3), batch.grey.reshape(-1, 1)
    luma = torch.linalg.lstsq(colours, grey).solution.flatten()
    torch.testing.assert_close(luma, torch.tensor([0.299, 0.587, 0.114]), rtol=0, atol=1e-3)
