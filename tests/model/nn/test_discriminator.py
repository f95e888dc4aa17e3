"""The discriminator against Table 3."""

import pytest
import torch
import torch.nn.functional as F

from msa_model import Discriminator


def test_layers_and_size_are_those_of_table_3():
    discriminator = Discriminator()
    found = [
        (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0])
        for layer in discriminator.layers
    ]
    assert found == [(3, 64, 4, 2, 1), (64, 128, 4, 2, 1), (128, 256, 4, 2, 1), (256, 512, 4, 1, 1), (512, 1, 4, 1, 1)]
    assert sum(p.numel() for p in discriminator.parameters()) == 2_764_737


@pytest.mark.parametrize("size", [(24, 24), (25, 40), (64, 31), (128, 128)])
def test_logits_have_an_eighth_of_the_size_less_two(size):
    h, w = size
    with torch.no_grad():
        assert Discriminator(4)(torch.rand(2, 3, h, w)).shape == (2, 1, h // 8 - 2, w // 8 - 2)


def test_logits_are_those_of_the_layers_divided_by_their_largest_singular_value():
    discriminator = Discriminator(4).double()
    image = torch.rand(2, 3, 40, 48, dtype=torch.double)
    with torch.no_grad():
        for _ in range(300):  # the power iteration converges
            discriminator(image)
        expected = image
        for i, layer in enumerate(discriminator.layers):
            weight = layer.parametrizations.weight.original
            weight = weight / torch.linalg.matrix_norm(weight.flatten(1), ord=2)
            expected = F.conv2d(expected, weight, layer.bias, stride=2 if i < 3 else 1, padding=1)
            expected = torch.maximum(expected, 0.2 * expected) if i < 4 else expected
        torch.testing.assert_close(discriminator.eval()(image), expected, rtol=1e-6, atol=1e-6)
    assert expected.min() < 0  # no sigmoid, no activation last


def test_a_logit_sees_70_pixels():
    image = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = Discriminator(4)(image)
    (gradient,) = torch.autograd.grad(logits[0, 0, 9, 9], image)
    rows = (gradient.abs().sum((0, 1, 3)) > 0).nonzero()[:, 0]
    assert rows[-1] - rows[0] + 1 == 70


def test_only_training_mode_updates_the_norms():
    discriminator = Discriminator(4).eval()
    before = {name: t.clone() for name, t in discriminator.state_dict().items()}
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(discriminator(image), discriminator(image))
    assert all(torch.equal(t, before[name]) for name, t in discriminator.state_dict().items())
    discriminator.train()(image)
    changed = {name for name, t in discriminator.state_dict().items() if not torch.equal(t, before[name])}
    # The last layer has one row, whose norm is found at once.
    assert changed == {name for name in before if name.endswith(("_u", "_v")) and not name.startswith("layers.4")}


def test_two_forwards_before_one_backward():
    discriminator = Discriminator(4)
    loss = discriminator(torch.rand(2, 3, 32, 32)).mean() - discriminator(torch.rand(2, 3, 32, 32)).mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in discriminator.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_logits_and_the_norms(dtype, device):
    exact, rounded = Discriminator(8).to(device), Discriminator(8).to(device)
    rounded.load_state_dict(exact.state_dict())
    image = torch.rand(2, 3, 32, 32, device=device)
    wanted = exact(image)
    with torch.autocast(device, dtype):
        logits = rounded(image)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), wanted, rtol=0.05, atol=0.02)
    for ours, theirs in zip(rounded.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    logits.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in rounded.parameters())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 23, 64), "image must be at least 24 pixels high and wide, got 23x64"),
        ((1, 3, 64, 8), "image must be at least 24 pixels high and wide, got 64x8"),
        ((1, 4, 64, 64), r"image must have shape \(N, 3, H, W\), got \(1, 4, 64, 64\)"),
        ((3, 64, 64), r"image must have shape \(N, 3, H, W\), got \(3, 64, 64\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=f"msa_model.Discriminator: {message}"):
        Discriminator(4)(torch.rand(shape))


def test_a_width_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"msa_model.Discriminator: base_width must be positive, got 0"):
        Discriminator(0)
