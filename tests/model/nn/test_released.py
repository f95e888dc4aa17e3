"""Weights of the released code: its network stated again in plain PyTorch, and ours with its weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from msa_model import Generator, free_form_mask, load_released
from msa_model.nn.released import released_keys

BASE = 4


def widths(base, depth):
    return [3, *(base * min(8, 2**i) for i in range(depth))]


def released_state(base=BASE, depth=8, seed=0):
    """A state dict of the released generator's layout , every tensor random."""
    torch.manual_seed(seed)
    state, w = {}, widths(base, depth)

    def linear(name, out, *into):
        state[f"{name}.weight"] = torch.randn(out, *into) * math.sqrt(2 / math.prod(into))
        state[f"{name}.bias"] = 0.2 * torch.randn(out)

    def batch_norm(name, width):
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(width)
        state[f"{name}.bias"] = 0.2 * torch.randn(width)
        state[f"{name}.running_mean"] = 0.2 * torch.randn(width)
        state[f"{name}.running_var"] = 0.5 + torch.rand(width)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    for i in range(1, depth + 1):
        kernel = {1: 7, 2: 5, 3: 5}.get(i, 3)
        linear(f"enc_{i}.conv", w[i], w[i - 1], kernel, kernel)
        if i > 1:
            batch_norm(f"enc_{i}.bn", w[i])
    for i in range(depth, 0, -1):
        # The input is the output of Decode_(i+1), as wide as Encode_i's, beside the output of Encode_(i-1).
        linear(f"dec_{i}.conv", w[i - 1], w[i] + w[i - 1], 3, 3)
        if i > 1:
            batch_norm(f"dec_{i}.bn", w[i - 1])
    for stage, level in (("CA_1", 4), ("CA_2", 3)):
        c = 2 * w[level - 1]
        linear(f"{stage}.SqueezeExc.blocks.0", c, c)
        linear(f"{stage}.SqueezeExc.blocks.2", c, c)
        linear(f"{stage}.combiner", c // 2, c, 1, 1)
    return state


# ---- the released network, from its description ---------------------------------------------------------------------


def partial_conv(x, mask, weight, bias, stride, padding):
    """Masks with a plane per channel, windows unfolded; NVIDIA's order of operations."""
    n, _, h, w = x.shape
    out, kernel = weight.shape[0], weight.shape[2]
    window = dict(kernel_size=kernel, stride=stride, padding=padding)
    size = [(s + 2 * padding - kernel) // stride + 1 for s in (h, w)]
    raw = (weight.flatten(1) @ F.unfold(x * mask, **window)).view(n, out, *size)
    count = F.unfold(mask, **window).sum(1).view(n, 1, *size)
    update = count.clamp(0, 1)
    ratio = weight[0].numel() / (count + 1e-8) * update
    return (raw * ratio + bias[:, None, None]) * update, update.expand(n, out, *size)


def batch_norm(x, state, name):
    mean, var, weight, bias = (
        state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def attention(features, mask):
    """The closed form, sample by sample, with every pixel of the map as a 1×1 filter."""
    result = []
    for x, m in zip(features, mask, strict=True):
        keys = (m * x + 1e-7).flatten(1)
        keys = (keys / keys.square().sum(0).sqrt()).T[:, :, None, None]  # (q, C, 1, 1)
        scores = F.conv2d(x[None], keys)
        scores = 9 * F.avg_pool2d(scores, 3, stride=1, padding=1)  # Σ over δ, key fixed
        attended = F.conv_transpose2d(scores.softmax(dim=1), keys)[0]
        result.append(m * x + (1 - m) * attended)
    return torch.stack(result)


def fusion(x, attended, state, stage):
    both = torch.cat([x, attended], 1)
    z = both.mean((2, 3))
    for i, activation in ((0, torch.relu), (2, torch.sigmoid)):
        weight, bias = (state[f"{stage}.SqueezeExc.blocks.{i}.{key}"] for key in ("weight", "bias"))
        z = activation(z @ weight.T + bias)
    return F.conv2d(both * z[:, :, None, None], state[f"{stage}.combiner.weight"], state[f"{stage}.combiner.bias"])


def released_forward(state, image, mask, depth=8):
    x, m = image * mask, mask.expand_as(image)
    levels = [(x, m)]
    for i in range(1, depth + 1):
        weight, bias = state[f"enc_{i}.conv.weight"], state[f"enc_{i}.conv.bias"]
        x, m = partial_conv(x, m, weight, bias, stride=2, padding=weight.shape[2] // 2)
        x = torch.relu(batch_norm(x, state, f"enc_{i}.bn") if i > 1 else x)
        levels.append((x, m))
    levels.pop()
    for i in range(depth, 0, -1):
        skip, skip_mask = levels.pop()
        x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], 1)
        m = torch.cat([F.interpolate(m, scale_factor=2, mode="nearest"), skip_mask], 1)
        x, m = partial_conv(x, m, state[f"dec_{i}.conv.weight"], state[f"dec_{i}.conv.bias"], stride=1, padding=1)
        if i > 1:
            x = F.leaky_relu(batch_norm(x, state, f"dec_{i}.bn"), 0.2)
        if i in (4, 3):
            stage_mask = F.interpolate(mask, size=x.shape[2:], mode="nearest")
            x = fusion(x, attention(x, stage_mask), state, {4: "CA_1", 3: "CA_2"}[i])
    return x


def save(tmp_path, content):
    path = tmp_path / "released.pth"
    torch.save(content, path)
    return path


def test_forward_is_the_released_one_to_float32_rounding(tmp_path):
    state = released_state()
    generator = load_released(save(tmp_path, {"epoch": 3, "generator": state, "optimizer": {"lr": [1e-4]}}))
    assert generator.config.variant == "released"
    assert not generator.training
    image = torch.rand(1, 3, 256, 256)
    mask = free_form_mask(256, 256, (0.4, 0.5), seed=4)[None].float()
    with torch.no_grad():
        exact = released_forward({name: t.double() for name, t in state.items()}, image.double(), mask.double())
        plain = released_forward(state, image, mask)
        ours = generator(image, mask)
        ours_exact = generator.double()(image.double(), mask)
    assert exact.std() > 0.1
    torch.testing.assert_close(ours_exact, exact, rtol=1e-7, atol=1e-7 * exact.abs().max().item())
    rounding = (plain - exact).abs().max()
    assert rounding < 1e-3 * exact.abs().max()
    assert (ours - exact).abs().max() < 2 * rounding + 1e-6


def test_every_weight_changes_the_prediction(tmp_path):
    """So that the comparison above would see a key that maps to the wrong place."""
    state = {name: t.double() for name, t in released_state(2, 4).items()}
    image, mask = torch.rand(1, 3, 32, 32).double(), (torch.rand(1, 1, 32, 32) > 0.3).double()
    with torch.no_grad():
        expected = released_forward(state, image, mask, depth=4)
        for name, tensor in state.items():
            if not name.endswith("num_batches_tracked"):
                changed = state | {name: tensor + 0.1 * torch.rand_like(tensor)}
                assert not torch.equal(released_forward(changed, image, mask, depth=4), expected), name


@pytest.mark.parametrize("case", ["bare", "module", "no counters", "half"])
def test_other_forms_of_the_same_weights(tmp_path, case):
    state = released_state(2, 5)
    wanted = Generator(base_width=2, depth=5, variant="released").eval()
    wanted.load_state_dict({ours: state[theirs] for theirs, ours in released_keys(5).items()})
    content = {
        "bare": state,
        "module": {"generator": {f"module.{name}": t for name, t in state.items()}},
        "no counters": {"generator": {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}},
        "half": {"generator": {n: t.half() if t.is_floating_point() else t for n, t in state.items()}},
    }[case]
    generator = load_released(save(tmp_path, content))
    assert generator.config == wanted.config
    tolerance = 1e-3 if case == "half" else 0
    for name, tensor in wanted.state_dict().items():
        if not (case == "no counters" and name.endswith("num_batches_tracked")):
            torch.testing.assert_close(generator.state_dict()[name], tensor, rtol=tolerance, atol=tolerance)
    path = tmp_path / "ours.safetensors"
    generator.save(path)
    assert Generator.load(path).config == generator.config


def test_the_mapping_covers_both_sides():
    keys = released_keys()
    assert set(keys) == set(released_state())
    assert set(keys.values()) == set(Generator(base_width=1, variant="released").state_dict())
    assert keys["dec_4.bn.running_var"] == "decoder.4.norm.running_var"
    assert keys["CA_2.SqueezeExc.blocks.2.bias"] == "attention.3.squeeze_excitation.blocks.2.bias"


def test_a_narrower_squeeze_and_excitation_is_seen_in_the_file(tmp_path):
    state = released_state(4, 5)
    for stage in ("CA_1", "CA_2"):
        weight = state[f"{stage}.SqueezeExc.blocks.0.weight"]
        half = len(weight) // 2
        state[f"{stage}.SqueezeExc.blocks.0.weight"] = weight[:half]
        state[f"{stage}.SqueezeExc.blocks.0.bias"] = state[f"{stage}.SqueezeExc.blocks.0.bias"][:half]
        state[f"{stage}.SqueezeExc.blocks.2.weight"] = state[f"{stage}.SqueezeExc.blocks.2.weight"][:, :half]
    assert load_released(save(tmp_path, state), backend="reference").config.se_ratio == 0.5


def without(state, *names):
    return {name: t for name, t in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "enc_3.bn.weight"), r"is not the released generator's: missing: enc_3\.bn\.weight$"),
        (lambda s: s | {"enc_9.extra": torch.zeros(1)}, r"unknown: enc_9\.extra$"),
        (
            lambda s: s | {"dec_2.conv.bias": torch.zeros(7)},
            r"of another shape: dec_2\.conv\.bias \(7,\) \(wanted \(2,\)\)$",
        ),
        (
            lambda s: without(s, "CA_2.combiner.bias") | {"spare": torch.zeros(1), "enc_2.conv.bias": torch.zeros(3)},
            r"missing: CA_2\.combiner\.bias; unknown: spare; of another shape: enc_2\.conv\.bias",
        ),
        (lambda s: {n: t for n, t in s.items() if "bn" not in n}, r"missing: .* and \d+ more$"),
        (lambda s: without(s, "enc_1.conv.weight"), r"no usable enc_1\.conv\.weight \(it has enc_1\.conv\.bias"),
        (lambda s: {"x": torch.zeros(1)}, r"no usable enc_1\.conv\.weight \(it has x \.\.\.\)"),
        (
            lambda s: {n: t for n, t in s.items() if "4" not in n and "5" not in n},
            "has 3 encoder layers, wanted 4 to 12",
        ),
        (lambda s: {"generator": {"enc_1.conv.weight": "text"}}, "does not hold a state dict"),
        (lambda s: {"generator": {}}, "does not hold a state dict"),
        (lambda s: [1, 2], "does not hold a state dict"),
    ],
)
def test_other_weights_are_named(tmp_path, change, message):
    path = save(tmp_path, change(released_state(2, 5)))
    with pytest.raises(ValueError, match=message) as caught:
        load_released(path)
    assert str(caught.value).startswith(f"msa_model.load_released: {path} ")


def test_files_of_another_kind_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^msa_model\.load_released: no weights at .*missing\.pth$"):
        load_released(tmp_path / "missing.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"^msa_model\.load_released: .*junk\.pth is not a file of weights"):
        load_released(tmp_path / "junk.pth")
