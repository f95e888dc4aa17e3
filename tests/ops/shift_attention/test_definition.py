"""Attention with shift propagation against Eqs. 6-8 written out over all pairs of pixels, and what torch asks of it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msa_ops import HoleAttention, hole_attention, hole_attention_map, shift_attention

from ..support import attention
from ..support.compare import everything
from ..support.internals import hole_attention_module
from ..support.tolerances import assert_accurate, assert_exact


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (6, 1), (1, 1)])
def test_forward_and_gradient_follow_the_equations(radius, size, backend, device):
    for share in (0.0, 0.2, 0.6, 1.0):
        x, mask = torch.randn(2, 3, *size, dtype=torch.float64), torch.rand(2, 1, *size) < share
        upstream = torch.randn_like(x)
        for renormalize in (False, True):
            options = dict(scale=7.0, radius=radius, renormalize=renormalize)
            ours = everything(
                lambda x, options=options: hole_attention(x, mask.to(device), **options, backend=backend),  # noqa: B023
                upstream.to(device),
                x.to(device),
            )
            exact = everything(lambda x, options=options: attention.hole_attention(x, mask, **options), upstream, x)  # noqa: B023
            magnitudes = attention.hole_magnitudes(x, mask, upstream, **options)
            for what, *values in zip(("output", "gradient"), ours, exact, magnitudes, strict=True):
                assert_exact(*values, what=f"{what}, {share} valid, {options}")


def operands(dtype=torch.float64, n=2, c=3, cv=4, h=4, w=5, seed=0, device="cpu"):
    torch.manual_seed(seed)
    query, key = torch.randn(2, n, c, h, w, dtype=torch.float64).to(dtype)
    value = torch.randn(n, cv, h, w, dtype=torch.float64).to(dtype)
    tensors = [query, key, value, torch.rand(n, 1, h, w) > 0.4, torch.rand(n, 1, h, w) > 0.3]
    return [t.to(device) for t in tensors]


@pytest.mark.parametrize("renormalize", [False, True])
def test_general_queries_keys_and_values(backend, device, renormalize):
    *maps, is_query, is_key = operands()
    is_key[1] = False  # a sample without keys
    planes, options = (is_query, is_key), dict(scale=2.0, radius=1, renormalize=renormalize)
    there = [t.to(device) for t in planes]
    upstream = torch.randn_like(maps[2])
    ours = everything(
        lambda *leaves: shift_attention(*leaves, *there, **options, backend=backend),
        upstream.to(device),
        *(t.to(device) for t in maps),
    )
    exact = everything(lambda *leaves: attention.shift_attention(*leaves, *planes, **options), upstream, *maps)
    magnitudes = attention.magnitudes(*maps, *planes, upstream, **options)
    for what, *values in zip(("output", "query", "key", "value"), ours, exact, magnitudes, strict=True):
        assert_exact(*values, what=what)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("radius", [0, 1, 2])
def test_gradcheck(backend, device, renormalize, radius):
    query, key, value, is_query, is_key = operands(n=1, h=3, w=4, device=device)
    leaves = [t.requires_grad_() for t in (query, key, value)]

    def run(*leaves):
        return shift_attention(
            *leaves, is_query, is_key, scale=1.5, radius=radius, renormalize=renormalize, backend=backend
        )

    assert torch.autograd.gradcheck(run, leaves, fast_mode=radius > 1)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    for variant in ("paper", "released"):
        assert torch.autograd.gradcheck(
            lambda x: hole_attention(x, is_key, scale=3.0, variant=variant, backend=backend),  # noqa: B023
            (x,),
            fast_mode=True,
        )


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_asked_for_gradients_are_computed_and_right(wanted, native):
    query, key, value, is_query, is_key = operands(device=native)
    leaves = (query, key, value)
    everything = [t.clone().requires_grad_() for t in leaves]
    some = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(leaves)]
    for tensors in (everything, some):
        shift_attention(*tensors, is_query, is_key, radius=1).square().sum().backward()
    for i, (mine, full) in enumerate(zip(some, everything, strict=True)):
        assert (mine.grad is not None) == (i in wanted)
        if i in wanted:
            torch.testing.assert_close(mine.grad, full.grad)


@pytest.mark.parametrize("height", [6, 40, 90])
def test_blocks_of_any_size_give_the_same(height, native):
    """The kernels' blocks are of fixed size, so maps of different size stand for one block and for many."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, height, 70, device=native)
    mask = torch.rand(1, 1, height, 70, device=native) > 0.5
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [hole_attention(x, mask, radius=2, backend=b) for x, b in zip(leaves, ("reference", native), strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_dtype_and_layout(dtype, memory_format, native):
    *maps, is_query, is_key = operands(dtype, c=16, cv=8, h=9, w=11, device=native)
    maps = [t.to(memory_format=memory_format) for t in maps]
    results = {}
    for name, backend, tensors in (
        ("exact", "reference", [t.double() for t in maps]),
        ("plain", "reference", maps),
        ("ours", native, maps),
    ):
        leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
        output = shift_attention(*leaves, is_query, is_key, radius=1, backend=backend)
        probe = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output)
        results[name] = [output.detach(), *torch.autograd.grad(output, leaves, probe)]
    probe = torch.linspace(-1, 1, maps[2].numel(), dtype=torch.float64).view(maps[2].shape)
    magnitudes = attention.magnitudes(*maps, is_query, is_key, probe.to(maps[2]), radius=1)
    for i, (ours, plain, exact) in enumerate(zip(results["ours"], results["plain"], results["exact"], strict=True)):
        assert_accurate(ours, plain, exact, magnitudes[i], backward=i > 0, what=("output", "query", "key", "value")[i])
    assert results["ours"][0].is_contiguous(memory_format=memory_format)


def test_float32_exponential_is_exact_to_a_few_roundings_over_its_range():
    # One channel, one query per pixel, keys 0 and -x: the weight of the second key is 1/(1 + exp(x)).
    x = torch.linspace(0, 80, 4001, dtype=torch.float64)
    query, key = torch.zeros(4001, 1, 1, 3), torch.zeros(4001, 1, 1, 3)
    query[..., 2], key[:, 0, 0, 1] = 1.0, -x.float()
    value = torch.tensor([0.0, 1.0, 0.0]).expand(4001, 1, 1, 3).contiguous()
    is_query, is_key = torch.tensor([False, False, True]), torch.tensor([True, True, False])
    masks = [m.expand(4001, 1, 1, 3) for m in (is_query, is_key)]
    weight = shift_attention(query, key, value, *masks, backend="cpu")[:, 0, 0, 2].double()
    wanted = 1 / (1 + torch.exp(x.float().double()))
    assert ((weight - wanted) / wanted).abs().max() < 1e-6


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_map_points_at_the_largest_weight(radius, share, backend, device):
    torch.manual_seed(1)
    x, mask = torch.randn(2, 3, 6, 7, dtype=torch.float64), torch.rand(2, 1, 6, 7) < share
    unit = x / x.norm(dim=1, keepdim=True)
    options = dict(scale=4.0, radius=radius, backend=backend)
    found = hole_attention_map(x.to(device), mask.to(device), **options).cpu().flatten(1)
    weights = attention.shifted_weights(unit, unit, ~mask, mask, 4.0, radius)
    largest = weights.max(2).values
    assert torch.equal(found >= 0, largest > 0)
    chosen = weights.gather(2, found.clamp_min(0)[..., None])[..., 0]
    torch.testing.assert_close(chosen[largest > 0], largest[largest > 0], rtol=1e-12, atol=0)


def test_opcheck(native):
    query, key, value, is_query, is_key = operands(torch.float32, device=native)
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = [t.to(memory_format=layout).requires_grad_() for t in (query, key, value)]
        torch.library.opcheck(
            torch.ops.msa_ops.shift_attention_forward, (*maps, is_query, is_key, 1.5, 1, True), rtol=1e-3, atol=1e-4
        )
    torch.library.opcheck(torch.ops.msa_ops.shift_attention_argmax, (query, key, is_query, is_key, 1.5, 1))


def test_compiles_without_a_graph_break(native):
    x, mask = torch.randn(2, 4, 6, 5, device=native), torch.rand(2, 1, 6, 5, device=native) > 0.5
    compiled = torch.compile(hole_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [f(leaf, mask) for f, leaf in zip((hole_attention, compiled), leaves, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_masks_of_a_batch_are_its_samples_own(native):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 8, 8, device=native)
    mask = torch.stack([torch.rand(1, 8, 8, device=native) > share for share in (0.02, 0.5, 0.98)])
    together = hole_attention(x, mask)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], hole_attention(x[i : i + 1], mask[i : i + 1]))


def test_memory_of_the_kernels_does_not_hold_the_scores_of_all_queries():
    from torch.profiler import profile

    x, mask = torch.randn(1, 8, 96, 96), torch.rand(1, 1, 96, 96) > 0.5
    with profile(profile_memory=True) as profiler:
        hole_attention(x, mask)
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    scores = int((mask == 0).sum()) * int(mask.sum()) * 4  # 85 MB
    assert peak < 0.6 * scores


def test_second_order_is_refused(native):
    x = torch.randn(1, 3, 5, 5, device=native, requires_grad=True)
    mask = torch.rand(1, 1, 5, 5, device=native) > 0.5
    (grad,) = torch.autograd.grad(hole_attention(x, mask).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"(shift|hole)_attention: second-order gradients are not supported"):
        grad.sum().backward()


def test_released_variant_is_attention_with_box_filtered_queries():
    torch.manual_seed(0)
    x, mask = torch.randn(1, 4, 5, 6, dtype=torch.float64), torch.rand(1, 1, 5, 6) > 0.5
    keys = ((x * mask) + 1e-7)[0].reshape(4, -1).T
    keys = keys / keys.norm(dim=1, keepdim=True)
    padded = torch.nn.functional.pad(x[0], (1, 1, 1, 1))
    queries = sum(padded[:, dy : dy + 5, dx : dx + 6] for dy in range(3) for dx in range(3)).reshape(4, -1).T
    attended = ((queries @ keys.T).softmax(1) @ keys).T.reshape(1, 4, 5, 6)
    torch.testing.assert_close(hole_attention(x, mask, variant="released"), torch.where(mask, x, attended))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_radius_larger_than_the_map_reaches_all_of_it(variant, backend, device):
    x, mask = torch.randn(2, 3, 4, 5, device=device), torch.rand(2, 1, 4, 5, device=device) > 0.5
    options = dict(variant=variant, backend=backend)
    wanted = hole_attention(x, mask, radius=5, **options)
    torch.testing.assert_close(hole_attention(x, mask, radius=2**31 - 1, **options), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("amplitude", [0.0, 1e-8, 1.0, 1e4])
def test_extreme_features_stay_finite(dtype, amplitude, native):
    torch.manual_seed(0)
    x = (torch.randn(2, 16, 9, 7) * amplitude).to(native, dtype).requires_grad_()
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        output = hole_attention(x, (torch.rand(2, 1, 9, 7) < share).to(native))
        (gradient,) = torch.autograd.grad(output.float().sum(), x)
        assert output.dtype == dtype
        assert torch.isfinite(output).all()
        assert torch.isfinite(gradient).all()


def test_empty_batch_and_refusals():
    assert hole_attention(torch.empty(0, 3, 4, 4), torch.empty(0, 1, 4, 4)).shape == (0, 3, 4, 4)
    x, mask = torch.randn(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    for options, message in (
        ({"radius": -1}, "radius must be an integer of at least 0, got -1"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"variant": "other"}, "variant must be one of 'paper', 'released', got 'other'"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"eps": None}, "eps must be a number, got NoneType"),
        ({"scale": "10"}, "scale must be a number, got str"),
        ({"scale": torch.ones(2)}, "scale must be a number, got Tensor"),
        ({"scale": 1j}, "scale must be a number, got complex"),
        ({"radius": 10**30}, f"radius must be at most 2147483647, got {10**30}"),
        ({"renormalize": torch.ones(2)}, "renormalize must be True or False, got Tensor"),
        ({"renormalize": "yes"}, "renormalize must be True or False, got str"),
    ):
        with pytest.raises(ValueError, match=f"msa_ops::hole_attention: {message}"):
            hole_attention(x, mask, **options)
    with pytest.raises(ValueError, match=r"mask must have shape \(N, 1, H, W\) with N=1, H=4, W=4"):
        hole_attention(x, mask[..., :3])
    with pytest.raises(RuntimeError, match="it runs on cuda tensors, got one on cpu"):
        hole_attention(x, mask, backend="cuda")
    with pytest.raises(RuntimeError, match=r"it has no kernel for torch\.float64"):
        hole_attention(x.double(), mask, backend="triton")
    for arguments, message in (
        ((x, x[:, :2], x), r"key must have the shape of query, \(1, 3, 4, 4\), got \(1, 2, 4, 4\)"),
        ((x, x, x[..., :3]), "value must have batch and size of query"),
        ((x, x.double(), x), "key must have the dtype of query"),
        ((x, x, x.to(torch.complex64)), "value must have a real floating-point dtype"),
        ((x, x, x, mask[..., :2]), "query_mask must have shape"),
        (([1.0], [1.0], [1.0]), "query must be a tensor, got list"),
    ):
        with pytest.raises(ValueError, match=f"msa_ops::shift_attention: {message}"):
            shift_attention(*arguments)


def test_module_is_the_function():
    x, mask = torch.randn(1, 3, 6, 6), torch.rand(1, 1, 6, 6) > 0.5
    assert torch.equal(HoleAttention(scale=4.0, radius=2)(x, mask), hole_attention(x, mask, scale=4.0, radius=2))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_strides_are_read_in_place(memory_format, native):
    *maps, is_query, is_key = operands(torch.float32, h=8, w=10, device=native)
    wanted = shift_attention(*(t[:, :, 1:7, ::2].contiguous() for t in maps), is_query[:, :, 1:7, ::2].contiguous(),
                             is_key[:1, :, 1:7, ::2].repeat(2, 1, 1, 1), radius=1)  # fmt: skip
    maps = [t.to(memory_format=memory_format)[:, :, 1:7, ::2] for t in maps]
    masks = is_query[:, :, 1:7, ::2], is_key[:1, :, 1:7, ::2].expand(2, -1, -1, -1)
    torch.testing.assert_close(shift_attention(*maps, *masks, radius=1), wanted)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1, 2)])
def test_flops_are_those_of_the_products(needed, native):
    maps = [t.requires_grad_(i in needed) for i, t in enumerate(operands(torch.float32, device=native)[:3])]
    *_, is_query, is_key = operands(device=native)
    with FlopCounterMode(display=False) as counter:
        output = shift_attention(*maps, is_query, is_key, radius=1)
        forward = counter.get_total_flops()
        output.sum().backward()
    pairs = sum(int(is_query[i].sum()) * int(is_key[i].sum()) for i in range(2))
    c, cv = maps[0].shape[1], maps[2].shape[1]
    assert forward == 2 * pairs * (c + cv)
    products = {(0,): 2 * c + cv, (1,): 2 * c + cv, (2,): c + cv, (0, 1, 2): 3 * c + 2 * cv}[needed]
    assert counter.get_total_flops() - forward == 2 * pairs * products


def test_flops_of_meta_tensors_count_every_pixel():
    x, mask = torch.empty(2, 3, 4, 5, device="meta"), torch.empty(2, 1, 4, 5, dtype=torch.bool, device="meta")
    arguments = (x, x, x, mask, mask, 1.0, 1, False)
    with FlopCounterMode(display=False) as counter:
        torch.ops.msa_ops.shift_attention_forward(*arguments)
    assert counter.get_total_flops() == 2 * 2 * 20 * 20 * 6


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_autocast(variant, native):
    x, mask = torch.randn(1, 4, 6, 6, device=native), torch.rand(1, 1, 6, 6, device=native) > 0.5
    with torch.autocast(native, torch.bfloat16):
        assert hole_attention(x, mask, variant=variant).dtype == torch.float32
        assert shift_attention(x, x, x, mask).dtype == torch.bfloat16
        halved = hole_attention(x.bfloat16(), mask, variant=variant)
    assert halved.dtype == torch.bfloat16
    outside = hole_attention(x.bfloat16(), mask, variant=variant)
    assert torch.equal(halved, outside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_halves_err_as_much_as_the_halves(dtype, native, monkeypatch):
    """What the tensor cores are given on CUDA, on every device."""
    x, mask = torch.randn(2, 16, 9, 11, device=native).to(dtype), torch.rand(2, 1, 9, 11, device=native) > 0.4
    results = []
    for operands in (dtype, torch.float32):
        monkeypatch.setattr(hole_attention_module, "_operand_dtype", lambda features, variant, dtype=operands: dtype)
        leaf = x.clone().requires_grad_()
        output = hole_attention(leaf, mask, scale=3.0)
        results.append([output.detach(), *torch.autograd.grad(output.float().square().sum(), leaf)])
    for narrow, wide in zip(*results, strict=True):
        assert narrow.dtype == dtype
        error = (narrow.double() - wide.double()).norm() / wide.double().norm()
        assert error < 4 * torch.finfo(dtype).eps


def test_meta_tensors_give_shapes():
    x, mask = torch.empty(2, 3, 4, 5, device="meta"), torch.empty(2, 1, 4, 5, device="meta")
    assert hole_attention(x, mask).shape == x.shape
    assert hole_attention_map(x, mask).shape == (2, 4, 5)
