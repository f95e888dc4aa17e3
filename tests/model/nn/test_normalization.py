"""Region normalisation against its definition, in one process and in two."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from msa_model import Generator
from msa_model.nn.normalization import RegionNorm2d

TINY = dict(base_width=4, depth=4, attention_levels=(3, 2))


def example(n=3, c=5, h=6, w=7, dtype=torch.double, seed=0):
    """Features of different distributions in the two regions, their mask, and where there is anything at all."""
    torch.manual_seed(seed)
    mask = torch.rand(n, 1, h, w) > 0.4
    filled = mask | (torch.rand(n, 1, h, w) > 0.3)
    x = torch.randn(n, c, h, w, dtype=dtype)
    return torch.where(filled, torch.where(mask, 2 * x + 1, x - 3), 0.0), mask, filled


def layer_of(channels=5, dtype=torch.double, **options):
    layer = RegionNorm2d(channels, **options).to(dtype)
    torch.manual_seed(1)
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


def definition(x, regions, weight, bias, eps=1e-5, statistics=None):
    """Region by region and channel by channel, on the list of the region's values; differentiable."""
    y = torch.zeros_like(x)
    for r, region in enumerate(regions):
        for c in range(x.shape[1]):
            where = torch.zeros_like(x, dtype=torch.bool)
            where[:, c] = region[:, 0]
            values = x[where]
            if len(values):
                mean, var = statistics[r][c] if statistics else (values.mean(), values.var(unbiased=False))
                values = (values - mean) / (var + eps).sqrt() * weight[r, c] + bias[r, c]
                y = y.masked_scatter(where, values)
    return y


@pytest.mark.parametrize("with_filled", [False, True])
def test_output_and_gradients_follow_the_definition(with_filled):
    x, mask, filled = example()
    layer = layer_of()
    filled = filled if with_filled else None
    regions = (mask, ~mask if filled is None else ~mask & filled)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(ours, mask, filled)
    expected = definition(theirs, regions, layer.weight, layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(y)
    grads = torch.autograd.grad(y, (ours, layer.weight, layer.bias), upstream)
    wanted = torch.autograd.grad(expected, (theirs, layer.weight, layer.bias), upstream)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-10)


def test_gradcheck():
    x, mask, filled = example(n=2, c=2, h=3, w=4)
    layer = layer_of(2)
    arguments = (x.requires_grad_(), layer.weight, layer.bias)

    def call(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, mask, filled))

    assert torch.autograd.gradcheck(call, arguments)
    layer.eval()
    assert torch.autograd.gradcheck(call, arguments)


def test_running_statistics_are_those_of_the_regions_and_serve_evaluation():
    layer = layer_of(momentum=0.25)
    expected = [[(torch.tensor(0.0), torch.tensor(1.0))] * 5 for _ in range(2)]
    for seed in range(3):
        x, mask, filled = example(seed=seed)
        layer(x, mask, filled)
        for r, region in enumerate((mask, ~mask & filled)):
            for c in range(5):
                values = x[:, c][region[:, 0]]
                mean, var = expected[r][c]
                expected[r][c] = (0.75 * mean + 0.25 * values.mean(), 0.75 * var + 0.25 * values.var())
    means, variances = ([[pair[i] for pair in row] for row in expected] for i in (0, 1))
    torch.testing.assert_close(layer.running_mean, torch.tensor(means).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.running_var, torch.tensor(variances).double(), rtol=1e-6, atol=1e-6)

    layer.eval()
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    x, mask, filled = example(seed=9)
    statistics = [list(zip(layer.running_mean[r], layer.running_var[r], strict=True)) for r in range(2)]
    wanted = definition(x, (mask, ~mask & filled), layer.weight, layer.bias, statistics=statistics)
    torch.testing.assert_close(layer(x, mask, filled), wanted)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


@pytest.mark.parametrize("row", [0, 1])
def test_with_one_region_it_is_batch_norm(row):
    x, mask, _ = example()
    ours, theirs = RegionNorm2d(5).double(), nn.BatchNorm2d(5).double()
    for mode in (True, False):
        found = ours.train(mode)(x, torch.full_like(mask, row == 0))
        torch.testing.assert_close(found, theirs.train(mode)(x))
    torch.testing.assert_close(ours.running_mean[row], theirs.running_mean)
    torch.testing.assert_close(ours.running_var[row], theirs.running_var)
    assert torch.equal(ours.running_mean[1 - row], torch.zeros(5).double())  # nothing was seen of the other
    assert torch.equal(ours.running_var[1 - row], torch.ones(5).double())


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32, torch.bfloat16])
def test_masks_of_any_dtype_mean_the_same(kind):
    x, mask, filled = example()
    assert torch.equal(layer_of()(x, mask.to(kind), filled.to(kind)), layer_of()(x, mask, filled))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("valid", [0, 1, 2, 41, 42])
@pytest.mark.parametrize("empty", [False, True])
def test_empty_and_single_pixel_regions_give_finite_results(dtype, valid, empty):
    x = (100 * torch.randn(1, 3, 6, 7)).to(dtype).requires_grad_()
    mask = (torch.randperm(42) < valid).view(1, 1, 6, 7)
    filled = mask & False if empty else None
    layer = layer_of(3, torch.float32)
    y = layer(x, mask, filled)
    (y.float() * torch.randn(1, 3, 6, 7)).sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    for t in (y, x.grad, layer.weight.grad, layer.bias.grad, *layer.buffers(), layer.eval()(x, mask, filled)):
        assert torch.isfinite(t).all()
    if valid == 1 and not empty:
        torch.testing.assert_close(y[0, :, mask[0, 0]][:, 0], layer.bias[0].to(dtype))
        assert torch.equal(layer.running_var[0], torch.ones(3))  # one value tells nothing of a variance
    if valid == 0:
        assert not layer.weight.grad[0].any()
        assert not layer.bias.grad[0].any()
    if empty:
        assert not y.any()
        assert not x.grad.any()


def test_values_at_unfilled_positions_are_ignored():
    x, mask, filled = example()
    layer = layer_of()
    expected = layer(x, mask, filled)
    for junk in (float("nan"), float("inf")):
        dirty = torch.where(filled, x, junk).requires_grad_()
        y = layer(dirty, mask, filled)
        assert torch.equal(y, expected)
        y.square().sum().backward()
        assert torch.isfinite(dirty.grad).all()
        assert torch.isfinite(layer.weight.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_half_precision_inputs_are_float32(dtype):
    """A mean far from zero, of more values than half precision counts."""
    x = (torch.randn(4, 2, 64, 64) + 50).to(dtype)
    mask = torch.rand(4, 1, 64, 64) > 0.5
    y = RegionNorm2d(2)(x, mask)
    expected = definition(x.double(), (mask, ~mask), torch.ones(2, 2), torch.zeros(2, 2))
    assert (y.double() - expected).abs().max() < 4 * torch.finfo(dtype).eps
    assert y.dtype == dtype


def test_a_mean_far_above_the_deviation_leaves_the_variance_right():
    x, mask, _ = example(dtype=torch.float32)
    x = x + 3000
    expected = definition(x.double(), (mask, ~mask), torch.ones(2, 5), torch.zeros(2, 5))
    assert (RegionNorm2d(5)(x, mask) - expected).abs().max() < 1e-3


def test_channels_last_stays_channels_last():
    x, mask, filled = example()
    last = x.contiguous(memory_format=torch.channels_last)
    for layer in (layer_of(), layer_of().eval()):
        y = layer(last, mask, filled)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, layer(x, mask, filled))


def test_second_order_is_refused():
    x, mask, _ = example()
    layer = layer_of()
    (grad,) = torch.autograd.grad(layer(x.requires_grad_(), mask).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_inputs_that_do_not_fit_are_refused():
    x, mask, _ = example()
    layer = layer_of()
    with pytest.raises(
        ValueError, match=r"msa_model.RegionNorm2d: x must have shape \(N, 5, H, W\), got \(3, 4, 6, 7\)"
    ):
        layer(x[:, :4], mask)
    with pytest.raises(ValueError, match=r"RegionNorm2d: mask must have shape \(3, 1, 6, 7\), got \(3, 1, 6, 6\)"):
        layer(x, mask[..., :6])
    with pytest.raises(ValueError, match=r"RegionNorm2d: filled must have shape \(3, 1, 6, 7\), got \(1, 1, 6, 7\)"):
        layer(x, mask, mask[:1])
    with pytest.raises(ValueError, match="RegionNorm2d: channels must be positive, got 0"):
        RegionNorm2d(0)


def test_compiles_without_graph_breaks():
    x, mask, filled = example(dtype=torch.float32)
    layer = layer_of(dtype=torch.float32)
    compiled = torch.compile(layer_of(dtype=torch.float32), backend="aot_eager", fullgraph=True)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for network, leaf in zip((layer, compiled), inputs, strict=True):
        network(leaf, mask, filled).square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(compiled.running_var, layer.running_var)


# ---- two processes -------------------------------------------------------------------------------------------------

#: Which samples of the joined batch each process has; in the second case the second process has the all-hole one.
SPLITS = {"even": (slice(0, 2), slice(2, 4)), "uneven": (slice(0, 3), slice(3, 4))}


def run_layer(x, mask, filled, upstream, **options):
    """Output, gradients and statistics of one training step."""
    layer = layer_of(**options)
    x = x.clone().requires_grad_()
    y = layer(x, mask, filled)
    y.backward(upstream)
    return dict(
        y=y.detach(),
        x=x.grad,
        weight=layer.weight.grad,
        bias=layer.bias.grad,
        mean=layer.running_mean,
        var=layer.running_var,
    )


def joined_batch():
    x, mask, filled = example(n=4)
    mask[3] = False
    return x, mask, filled, torch.randn(x.shape, dtype=torch.double)


def generator_batch():
    torch.manual_seed(5)
    return torch.rand(4, 3, 32, 32, dtype=torch.double), torch.rand(4, 1, 32, 32) > 0.4


def run_generator(wrap, image, mask):
    torch.manual_seed(2)
    generator = Generator(**TINY, norm="region").double()
    network = wrap(generator)  # by name: DistributedDataParallel averages gradients only while it lives
    network(image, mask).square().mean().backward()
    return {name: p.grad for name, p in generator.named_parameters()} | dict(generator.named_buffers())


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        results = {}
        for name, parts in SPLITS.items():
            results[name] = run_layer(*(t[parts[rank]] for t in joined_batch()))
            results[f"{name} alone"] = run_layer(*(t[parts[rank]] for t in joined_batch()), sync=False)
        image, mask = (t[SPLITS["even"][rank]] for t in generator_batch())
        results["generator"] = run_generator(nn.parallel.DistributedDataParallel, image, mask)
        # One value per channel at the bottleneck, but the other process has one too.
        results["one each"] = Generator(**TINY, norm="region").double()(image[:1, :, :16, :16], mask[:1, :, :16, :16])
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_share_statistics_and_gradients(tmp_path):
    """With `sync` two processes compute what one does with the joined batch, without it each has its own statistics.

    A generator under DistributedDataParallel learns as one process does. All this is one test because the processes
    take long to start.
    """
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    expected = run_layer(*joined_batch())
    for split in SPLITS:
        found = [results[split] for results in both]
        for name in ("y", "x"):
            torch.testing.assert_close(torch.cat([f[name] for f in found]), expected[name], rtol=1e-9, atol=1e-10)
        for name in ("weight", "bias"):  # each process has its own share
            torch.testing.assert_close(found[0][name] + found[1][name], expected[name], rtol=1e-9, atol=1e-10)
        for name in ("mean", "var"):
            assert torch.equal(found[0][name], found[1][name])
            torch.testing.assert_close(found[0][name], expected[name])

    for rank, part in enumerate(SPLITS["uneven"]):
        torch.testing.assert_close(both[rank]["uneven alone"], run_layer(*(t[part] for t in joined_batch())))

    expected = run_generator(lambda generator: generator, *generator_batch())
    for results in both:
        assert results["generator"].keys() == expected.keys()
        for name, wanted in expected.items():
            torch.testing.assert_close(results["generator"][name], wanted, rtol=1e-7, atol=1e-10, msg=name)
        assert torch.isfinite(results["one each"]).all()
