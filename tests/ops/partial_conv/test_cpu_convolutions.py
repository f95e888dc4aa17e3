"""The CPU's own convolutions (minimal filtering, patches) at the sizes where each is used: whether it ran, its numbers
and gradients, layouts, threads and memory."""

import itertools
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from msa_ops import partial_conv2d

from ..support import definition, masks
from ..support.compare import assert_call_accurate, everything, gradients
from ..support.layouts import LAYOUTS, VIEWS
from ..support.profiling import allocations, library_ran, profiled
from ..support.raw import OPS, assert_fake_agrees, backward_arguments, forward_arguments
from ..support.tolerances import assert_exact
from .calls import NAMES

#: name -> (N, C, H, W), C_out, kernel, stride, padding. No extent is even where an odd one is possible.
CONVOLUTIONS = {
    "3×3": ((2, 17, 13, 16), 19, 3, 1, 1),
    "3×3 unpadded": ((2, 17, 13, 16), 19, 3, 1, 0),
    "3×3/2": ((3, 17, 34, 31), 19, 3, 2, 1),
    "5×5/2": ((2, 17, 27, 26), 19, 5, 2, 2),
    "5×5/2 padded by 4": ((2, 17, 27, 23), 19, 5, 2, 4),
    "patches": ((2, 17, 5, 4), 19, 3, 1, 1),
    "patches, 4×4/3": ((2, 17, 9, 7), 19, 4, 3, 2),
}
each_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def make(name, dtype=torch.float64, weight_layout=torch.contiguous_format):
    """Leaves, and the geometry of the call."""
    shape, c_out, kernel, stride, padding = CONVOLUTIONS[name]
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(c_out, shape[1], kernel, kernel, dtype=dtype)
    geometry = {"stride": stride, "padding": padding}
    return (channels_last(x), weight.to(memory_format=weight_layout), torch.randn(c_out, dtype=dtype)), geometry


def runner(mask, geometry, backend="cpu", **options):
    return lambda x, weight, bias=None: partial_conv2d(x, mask, weight, bias, **geometry, backend=backend, **options)[0]


def assert_like_the_reference(leaves, mask, geometry, upstream=None, names=NAMES):
    def run(backend):
        return runner(mask, geometry, backend)

    upstream = torch.randn_like(run("cpu")(*leaves)) if upstream is None else upstream
    return assert_call_accurate(run, upstream, leaves, names, "cpu", across_pixels=True)


@each_convolution
@pytest.mark.parametrize("backward", [False, True])
def test_these_sizes_take_our_own(name, backward):
    leaves, geometry = make(name, torch.float32)
    run = runner(torch.ones(1, 1, *leaves[0].shape[2:]).expand(leaves[0].shape[0], -1, -1, -1), geometry)
    upstream = torch.randn_like(run(*leaves))
    assert not library_ran(lambda: gradients(run, upstream, *leaves) if backward else run(*leaves))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x, w: (x.contiguous(), w, {}), "channels apart"),
        (lambda x, w: (x[:, :12], w[:, :12], {}), "few channels"),
        (lambda x, w: (x, w[:12], {}), "few output channels"),
        (lambda x, w: (x, w, {"dilation": 2}), "dilated"),
        (lambda x, w: (x[:, :16], w[:16, :8], {"groups": 2}), "groups"),
        (lambda x, w: (x.bfloat16(), w.bfloat16(), {}), "bfloat16"),
        (lambda x, w: (x, w, {"stride": (1, 2)}), "two strides"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_these_are_the_librarys(change, why):
    (x, weight, _), _ = make("3×3", torch.float32)
    x, weight, options = change(torch.cat([x, x], dim=3), weight)
    assert library_ran(
        lambda: partial_conv2d(x, torch.ones_like(x[:, :1]), weight, padding=1, backend="cpu", **options)
    )


@each_convolution
@pytest.mark.parametrize("mask_name", masks.NAMES)
def test_every_mask(name, mask_name):
    """Against the reference, which test_definition holds to the definition for every mask."""
    for weight_layout in (torch.contiguous_format, torch.channels_last):
        leaves, geometry = make(name, weight_layout=weight_layout)
        mask = masks.plane(mask_name, leaves[0].shape[0], *leaves[0].shape[2:])
        assert_like_the_reference(leaves, mask, geometry)
    _, new_mask = partial_conv2d(leaves[0], mask, *leaves[1:], **geometry, backend="cpu")
    assert torch.equal(new_mask, partial_conv2d(leaves[0], mask, *leaves[1:], **geometry, backend="reference")[1])


@each_convolution
def test_the_definition(name):
    (x, weight, bias), geometry = make(name)
    mask = masks.plane("mixed", x.shape[0], *x.shape[2:])
    output, new_mask = partial_conv2d(x, mask, weight, bias, **geometry, backend="cpu")
    stride, padding = geometry["stride"], geometry["padding"]
    exact = definition.partial_conv2d(x, mask, weight, bias, (stride,) * 2, (padding,) * 2)
    assert_exact(output, exact.output, exact.magnitude, across_pixels=True)
    assert torch.equal(new_mask, exact.new_mask)


@pytest.mark.parametrize("form", masks.FORMS)
@pytest.mark.parametrize("name", ["3×3", "patches"])
def test_every_form_of_mask(name, form):
    leaves, geometry = make(name)
    mask, _ = masks.in_form(form, masks.plane("mixed", leaves[0].shape[0], *leaves[0].shape[2:]), leaves[0].shape[1])
    for scale in ("window", "sum"):

        def run(backend, scale=scale):
            return runner(mask, geometry, backend, scale=scale)

        upstream = torch.randn_like(run("cpu")(*leaves))
        assert_call_accurate(run, upstream, leaves, NAMES, "cpu", across_pixels=True)


@pytest.mark.parametrize("name", ["3×3", "5×5/2", "patches"])
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_a_wanted_gradient_is_the_same_alone(name, wanted):
    leaves, geometry = make(name)
    run = runner(masks.plane("mixed", leaves[0].shape[0], *leaves[0].shape[2:]), geometry)
    upstream = torch.randn_like(run(*leaves))
    (index,) = [i for i, flag in enumerate(wanted) if flag]
    together = gradients(run, upstream, *leaves)[1][index]
    chosen = [t.detach().requires_grad_(flag) for t, flag in zip(leaves, wanted, strict=True)]
    run(*chosen).backward(upstream)
    assert_exact(chosen[index].grad, together)


@pytest.mark.parametrize("name", ["3×3", "5×5/2", "patches"])
def test_gradcheck(name):
    """Along random directions (fast mode), as there are thousands of elements."""
    leaves, geometry = make(name)
    run = runner(masks.plane("mixed", leaves[0].shape[0], *leaves[0].shape[2:]), geometry)
    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in leaves], fast_mode=True)


#: name -> (N, C, H, W), C_out: more tiles than a block holds; the last in rows of more tiles than that.
LARGE = {"3 images": ((3, 64, 62, 35), 70), "wide": ((1, 40, 3, 2600), 33)}


@pytest.mark.parametrize(
    ("name", "mask_name", "stride"),
    [("3 images", "all_valid", 1), ("3 images", "mixed", 1), ("3 images", "right_half", 1), ("3 images", "mixed", 2),
     ("wide", "right_half", 1), ("wide", "right_half", 2)],
)  # fmt: skip
def test_several_blocks(name, mask_name, stride):
    """Sums over blocks, rows that two blocks share, blocks across images and without a valid output."""
    shape, c_out = LARGE[name]
    leaves = channels_last(torch.randn(shape).double()), torch.randn(c_out, shape[1], 3, 3).double()
    mask = masks.plane(mask_name, shape[0], *shape[2:])
    assert_like_the_reference(leaves, mask, {"stride": stride, "padding": 1}, names=NAMES[:2])


@each_convolution
@pytest.mark.parametrize("mask_name", ["all_valid", "mixed", "one_valid_pixel", "checkerboard"])
def test_float32(name, mask_name):
    leaves, geometry = make(name, torch.float32)
    assert_like_the_reference(leaves, masks.plane(mask_name, leaves[0].shape[0], *leaves[0].shape[2:]), geometry)


@pytest.mark.parametrize("channels", [64, 256])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_long_sums_of_float32(channels, kernel, stride):
    """As in the layers of the network: sums of thousands of products, features of one sign."""
    x = channels_last(torch.rand(1, channels, 17 * stride, 28 * stride))
    leaves = x, torch.randn(32, channels, kernel, kernel), torch.zeros(32)
    mask = masks.random_plane(0.7, 1, *x.shape[2:])
    assert_like_the_reference(leaves, mask, {"stride": stride, "padding": kernel // 2})


@each_convolution
def test_what_lies_under_a_hole_does_not_leak(name):
    (x, weight, bias), geometry = make(name)
    mask = masks.plane("mixed", x.shape[0], *x.shape[2:])
    run = runner(mask, geometry)
    upstream = torch.randn_like(run(x, weight, bias))
    clean = everything(run, upstream, torch.where(mask, x, 0.0), weight, bias)
    assert not clean[1][~mask.expand_as(x)].any()
    empty = ~partial_conv2d(x, mask, weight, bias, **geometry)[1]
    for poison in (float("nan"), float("inf")):
        leaves = torch.where(mask, x, poison), weight, bias
        dirty = everything(run, torch.where(empty, poison, upstream), *leaves)
        for want, got in zip(clean, dirty, strict=True):
            assert torch.equal(want, got)


@pytest.mark.parametrize("name", ["3×3", "3×3/2", "5×5/2", "patches"])
def test_a_valid_nan_reaches_its_windows_only(name):
    """Sums over tiles must not carry what is not finite to a neighbour whose window it is outside of."""
    (x, weight, bias), geometry = make(name)
    mask = torch.ones_like(x[:, :1])
    clean = runner(mask, geometry)(x, weight, bias)
    impulse = torch.zeros_like(x)
    impulse[0, 3, 3, 2] = 1
    hit = torch.nn.functional.conv2d(impulse, torch.ones_like(weight), **geometry)
    x = x.clone(memory_format=torch.preserve_format)
    x[0, 3, 3, 2] = math.nan
    output = runner(mask, geometry)(x, weight, bias)
    assert output[hit != 0].isnan().all()
    # Not to the bit: what holds a NaN is computed again by the library.
    torch.testing.assert_close(output[hit == 0], clean[hit == 0], rtol=0, atol=1e-13)


def test_an_empty_batch_gives_zero_gradients():
    (x, weight, bias), geometry = make("3×3")
    leaves = [t.requires_grad_() for t in (x[:0], weight, bias)]
    partial_conv2d(leaves[0], torch.ones(0, 1, 13, 16), *leaves[1:], **geometry, backend="cpu")[0].sum().backward()
    assert not any(t.grad.any() for t in leaves)


@pytest.mark.parametrize("view", ["channels_last", "cropped_channels_last"])
@pytest.mark.parametrize("name", ["3×3", "5×5/2", "patches"])
def test_any_layout(name, view):
    (x, weight, bias), geometry = make(name)
    mask = masks.plane("mixed", x.shape[0], *x.shape[2:])
    upstream = torch.randn_like(runner(mask, geometry)(x, weight, bias))
    leaves = LAYOUTS[view](x), LAYOUTS["every_second_channel"](weight), bias
    for change in LAYOUTS.values():
        assert_like_the_reference(leaves, mask, geometry, change(upstream))


@pytest.mark.parametrize(
    ("shape", "c_out"), [((3, 64, 62, 35), 70), ((2, 512, 4, 4), 512)], ids=["tiles of several blocks", "patches"]
)
def test_the_number_of_threads_does_not_show(shape, c_out):
    leaves = channels_last(torch.randn(shape)), torch.randn(c_out, shape[1], 3, 3), torch.randn(c_out)
    run = runner(masks.plane("mixed", shape[0], *shape[2:]), {"padding": 1})
    upstream, before, results = torch.randn_like(run(*leaves)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 16):
            torch.set_num_threads(threads)
            output, grads = gradients(run, upstream, *leaves)
            results.append([output, *grads])
    finally:
        torch.set_num_threads(before)
    for one, two, many in zip(*results, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, many)


@pytest.mark.parametrize("name", ["3×3", "5×5/2", "patches", "patches of one pixel"])
def test_fake_tensors_agree(name):
    """Where a view has the channel as its fastest dimension but is no channels_last map to torch, too."""
    shape, c_out, kernel, stride, padding = (CONVOLUTIONS | {"patches of one pixel": ((2, 17, 1, 1), 19, 3, 1, 1)})[
        name
    ]
    mask, mode = masks.plane("mixed", shape[0], *shape[2:]), FakeTensorMode()
    for view, layout in itertools.product(VIEWS, (torch.contiguous_format, torch.channels_last)):
        x = VIEWS[view](torch.randn(shape))
        is_masked = layout == torch.channels_last
        forward = (*forward_arguments(x, mask, c_out, kernel, padding, stride, layout)[:-1], is_masked)
        assert_fake_agrees(OPS.partial_conv2d_forward, forward, mode)
        for needed in ((True, True, True), (True, False, False), (False, True, False)):
            assert_fake_agrees(OPS.partial_conv2d_backward, backward_arguments(forward, needed), mode)


@pytest.mark.parametrize("side", [64, 128])
def test_tiles_need_a_fixed_block_and_the_transformed_weight_but_no_copy_of_the_input(side):
    x, weight = channels_last(torch.randn(1, 64, side, side)), torch.randn(32, 64, 3, 3)
    run = runner(masks.plane("right_half", 1, side, side), {"padding": 1})
    made = allocations(profiled(lambda: run(x, weight, torch.zeros(32))))
    output, planes, transformed = 4 * 32 * side * side, 9 * side * side, 16 * 4 * 32 * 64
    assert sum(made) <= output + planes + 1.1 * transformed + (4 << 20)
