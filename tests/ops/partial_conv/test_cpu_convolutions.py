"""The CPU's own convolutions (minimal filtering, patches, the decoder's image layer) at the sizes where each is used:
whether it ran, against the definition, its gradients, its accuracy, layouts, threads and memory."""

import math

import pytest
import torch

from msa_ops import partial_conv2d, partial_conv2d_upcat

from . import definition, masks
from .helpers import EXPANDED, LAYOUTS, allocations, gradients, profiled
from .test_partial_conv_torch import (
    OPS,
    assert_fake_agrees,
    backward_arguments,
    differentiable,
    forward_arguments,
    upcat_backward_arguments,
)
from .tolerances import assert_accurate, assert_exact

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
#: name -> low (N, C1, h, w), channels of skip, C_out.
DECODERS = {
    "tiles": ((2, 17, 5, 4), 18, 19),
    "image": ((2, 17, 5, 4), 3, 3),
    "image of one long row": ((1, 16, 1, 530), 2, 1),
    "image of many rows": ((2, 16, 19, 37), 3, 3),
}
VIEWS = LAYOUTS | EXPANDED
FORMATS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["weight", "weight_cl"])
each_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)
each_decoder = pytest.mark.parametrize("name", DECODERS)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def make(name, dtype=torch.float64, weight_layout=torch.contiguous_format):
    """Leaves, and the geometry of the call."""
    shape, c_out, kernel, stride, padding = CONVOLUTIONS[name]
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(c_out, shape[1], kernel, kernel, dtype=dtype)
    geometry = {"stride": stride, "padding": padding}
    return (channels_last(x), weight.to(memory_format=weight_layout), torch.randn(c_out, dtype=dtype)), geometry


def runner(mask, geometry, backend="cpu", **options):
    return lambda x, weight, bias: partial_conv2d(x, mask, weight, bias, **geometry, backend=backend, **options)[0]


def make_decoder(name, dtype=torch.float64, weight_layout=torch.contiguous_format):
    (n, c1, h, w), c2, c_out = DECODERS[name]
    low, skip = torch.randn(n, c1, h, w, dtype=dtype), torch.randn(n, c2, 2 * h, 2 * w, dtype=dtype)
    weight = torch.randn(c_out, c1 + c2, 3, 3, dtype=dtype).to(memory_format=weight_layout)
    return channels_last(low), channels_last(skip), weight, torch.randn(c_out, dtype=dtype)


def decoder(low_mask, skip_mask, backend="cpu", **options):
    def run(low, skip, weight, bias):
        return partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, bias, backend=backend, **options)[0]

    return run


def decoder_masks(low, skip, low_name, skip_name):
    return masks.plane(low_name, low.shape[0], *low.shape[2:]), masks.plane(skip_name, skip.shape[0], *skip.shape[2:])


def library_ran(function):
    return any(event.name.startswith("aten::convolution") for event in profiled(function))


# ---- the rule ------------------------------------------------------------------------------------------------------


@each_convolution
@pytest.mark.parametrize("backward", [False, True])
def test_these_sizes_take_our_own(name, backward):
    leaves, geometry = make(name, torch.float32)
    run = runner(torch.ones(1, 1, *leaves[0].shape[2:]).expand(leaves[0].shape[0], -1, -1, -1), geometry)
    upstream = torch.randn_like(run(*leaves))
    assert not library_ran(lambda: gradients(run, upstream, *leaves) if backward else run(*leaves))


@each_decoder
def test_these_decoders_take_our_own(name):
    leaves = make_decoder(name, torch.float32)
    assert not library_ran(lambda: decoder(*decoder_masks(*leaves[:2], "all_valid", "all_valid"))(*leaves))


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


# ---- the definition ------------------------------------------------------------------------------------------------


@each_convolution
@pytest.mark.parametrize("mask_name", masks.NAMES)
def test_every_mask_equals_the_definition(name, mask_name):
    (x, weight, bias), geometry = make(name)
    mask = masks.plane(mask_name, x.shape[0], *x.shape[2:])
    output, new_mask = partial_conv2d(x, mask, weight, bias, **geometry, backend="cpu")
    stride, padding = geometry["stride"], geometry["padding"]
    exact, exact_mask = definition.partial_conv2d(x, mask, weight, bias, (stride,) * 2, (padding,) * 2)
    assert_exact(output, exact)
    assert torch.equal(new_mask, exact_mask)


@pytest.mark.parametrize("form", masks.FORMS)
@pytest.mark.parametrize("scale", ["window", "sum"])
@pytest.mark.parametrize("name", ["3×3", "patches"])
def test_every_form_of_mask_equals_the_definition(name, form, scale):
    (x, weight, bias), geometry = make(name)
    mask, full = masks.in_form(form, masks.plane("mixed", x.shape[0], *x.shape[2:]), x.shape[1])
    output, _ = partial_conv2d(x, mask, weight, bias, **geometry, scale=scale, backend="cpu")
    assert_exact(output, definition.partial_conv2d(x, full, weight, bias, padding=(1, 1), scale=scale)[0])


@each_decoder
@pytest.mark.parametrize(
    ("low_name", "skip_name"),
    [(name, name) for name in masks.NAMES] + [("all_valid", "all_hole"), ("all_hole", "all_valid")],
)
def test_every_decoder_mask_equals_the_definition(name, low_name, skip_name):
    leaves = make_decoder(name)
    low_mask, skip_mask = decoder_masks(*leaves[:2], low_name, skip_name)
    low, skip, *rest = leaves
    output, new_mask = partial_conv2d_upcat(low, low_mask, skip, skip_mask, *rest, backend="cpu")
    exact, exact_mask = definition.partial_conv2d_upcat(low, low_mask, skip, skip_mask, *rest)
    assert_exact(output, exact)
    assert torch.equal(new_mask, exact_mask)


# ---- gradients -----------------------------------------------------------------------------------------------------


@FORMATS
@each_convolution
@pytest.mark.parametrize("mask_name", ["mixed", "right_half", "one_valid_pixel"])
def test_gradients_are_those_of_the_reference(name, mask_name, layout):
    leaves, geometry = make(name, weight_layout=layout)
    mask = masks.plane(mask_name, leaves[0].shape[0], *leaves[0].shape[2:])
    upstream = torch.randn_like(runner(mask, geometry)(*leaves))
    ours = gradients(runner(mask, geometry), upstream, *leaves)
    wanted = gradients(runner(mask, geometry, "reference"), upstream, *leaves)
    assert_exact(ours[0], wanted[0])
    for what, got, want in zip(("input", "weight", "bias"), ours[1], wanted[1], strict=True):
        assert_exact(got, want, what=f"gradient of {what}")


@FORMATS
@each_decoder
@pytest.mark.parametrize(("low_name", "skip_name"), [("mixed", "checkerboard"), ("right_half", "one_hole_row")])
def test_decoder_gradients_are_those_of_the_reference(name, low_name, skip_name, layout):
    leaves = make_decoder(name, weight_layout=layout)
    planes = decoder_masks(*leaves[:2], low_name, skip_name)
    upstream = torch.randn_like(decoder(*planes)(*leaves))
    ours = gradients(decoder(*planes), upstream, *leaves)
    wanted = gradients(decoder(*planes, "reference"), upstream, *leaves)
    assert_exact(ours[0], wanted[0])
    for what, got, want in zip(("low", "skip", "weight", "bias"), ours[1], wanted[1], strict=True):
        assert_exact(got, want, what=f"gradient of {what}")


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


def test_decoder_gradcheck():
    leaves = make_decoder("tiles")
    run = decoder(*decoder_masks(*leaves[:2], "mixed", "checkerboard"))
    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in leaves], fast_mode=True)


#: name -> (N, C, H, W), C_out: more tiles than a block holds; the last in rows of more tiles than that.
LARGE = {"3 images": ((3, 64, 62, 35), 70), "wide": ((1, 40, 3, 2600), 33)}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mask_name", ["all_valid", "mixed", "right_half"])
@pytest.mark.parametrize("name", LARGE)
def test_several_blocks_give_the_numbers_of_the_reference(name, mask_name, stride):
    """Sums over blocks, rows that two blocks share, blocks across images and without a valid output."""
    shape, c_out = LARGE[name]
    leaves = channels_last(torch.randn(shape).double()), torch.randn(c_out, shape[1], 3, 3).double(), None
    mask = masks.plane(mask_name, shape[0], *shape[2:])
    run, plain = (runner(mask, {"stride": stride, "padding": 1}, backend) for backend in ("cpu", "reference"))
    upstream = torch.randn_like(run(*leaves))
    ours = gradients(lambda x, w: run(x, w, None), upstream, *leaves[:2])
    wanted = gradients(lambda x, w: plain(x, w, None), upstream, *leaves[:2])
    for got, want in zip([ours[0], *ours[1]], [wanted[0], *wanted[1]], strict=True):
        assert_exact(got, want)


def test_several_blocks_of_a_decoder_give_the_numbers_of_the_reference():
    low, skip, weight = torch.randn(2, 64, 33, 31), torch.randn(2, 48, 66, 62), torch.randn(40, 112, 3, 3)
    leaves = channels_last(low.double()), channels_last(skip.double()), weight.double(), torch.randn(40).double()
    planes = decoder_masks(low, skip, "mixed", "right_half")
    upstream = torch.randn_like(decoder(*planes)(*leaves))
    ours, wanted = (gradients(decoder(*planes, backend), upstream, *leaves) for backend in ("cpu", "reference"))
    for got, want in zip([ours[0], *ours[1]], [wanted[0], *wanted[1]], strict=True):
        assert_exact(got, want)


# ---- accuracy ------------------------------------------------------------------------------------------------------


@each_convolution
@pytest.mark.parametrize("mask_name", ["all_valid", "mixed", "one_valid_pixel", "checkerboard"])
def test_float32_is_as_accurate_as_plain_pytorch(name, mask_name):
    leaves, geometry = make(name, torch.float32)
    mask = masks.plane(mask_name, leaves[0].shape[0], *leaves[0].shape[2:])
    upstream = torch.randn_like(runner(mask, geometry)(*leaves))
    ours, plain = (gradients(runner(mask, geometry, backend), upstream, *leaves) for backend in ("cpu", "reference"))
    exact = gradients(runner(mask, geometry, "reference"), upstream, *(t.double() for t in leaves))
    assert_accurate(ours[0], plain[0], exact[0])
    for what, values in zip(("input", "weight", "bias"), zip(ours[1], plain[1], exact[1], strict=True), strict=True):
        assert_accurate(*values, backward=True, what=f"gradient of {what}")


@pytest.mark.parametrize("channels", [64, 256])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_long_sums_of_float32_are_as_accurate_as_plain_pytorch(channels, kernel, stride):
    """As in the layers of the network: sums of thousands of products, features of one sign."""
    x, weight = (
        channels_last(torch.rand(1, channels, 17 * stride, 28 * stride)),
        torch.randn(32, channels, kernel, kernel),
    )
    geometry = {"stride": stride, "padding": kernel // 2}
    mask = masks.random_plane(0.7, 1, *x.shape[2:])
    run, plain = runner(mask, geometry), runner(mask, geometry, "reference")
    leaves = x, weight, torch.zeros(32)
    upstream = torch.randn_like(run(*leaves))
    ours, wanted = gradients(run, upstream, *leaves), gradients(plain, upstream, *leaves)
    exact = gradients(plain, upstream, *(t.double() for t in leaves))
    assert_accurate(ours[0], wanted[0], exact[0])
    for what, i in (("input", 0), ("weight", 1)):
        assert_accurate(ours[1][i], wanted[1][i], exact[1][i], backward=True, what=f"gradient of {what}")


@each_decoder
def test_float32_decoder_is_as_accurate_as_plain_pytorch(name):
    leaves = make_decoder(name, torch.float32)
    planes = decoder_masks(*leaves[:2], "mixed", "checkerboard")
    upstream = torch.randn_like(decoder(*planes)(*leaves))
    ours, plain = (gradients(decoder(*planes, backend), upstream, *leaves) for backend in ("cpu", "reference"))
    exact = gradients(decoder(*planes, "reference"), upstream, *(t.double() for t in leaves))
    assert_accurate(ours[0], plain[0], exact[0])
    for what, values in zip(
        ("low", "skip", "weight", "bias"), zip(ours[1], plain[1], exact[1], strict=True), strict=True
    ):
        assert_accurate(*values, backward=True, what=f"gradient of {what}")


# ---- what lies under a hole, or under no valid window --------------------------------------------------------------


@each_convolution
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_lies_under_a_hole_does_not_leak(name, poison):
    (x, weight, bias), geometry = make(name)
    mask = masks.plane("mixed", x.shape[0], *x.shape[2:])
    run = runner(mask, geometry)
    upstream = torch.randn_like(run(x, weight, bias))
    clean = gradients(run, upstream, torch.where(mask, x, 0.0), weight, bias)
    empty = ~partial_conv2d(x, mask, weight, bias, **geometry)[1]
    dirty = gradients(run, torch.where(empty, poison, upstream), torch.where(mask, x, poison), weight, bias)
    assert torch.equal(clean[0], dirty[0])
    for want, got in zip(clean[1], dirty[1], strict=True):
        assert torch.equal(want, got)
    assert not dirty[1][0][~mask.expand_as(x)].any()


@each_decoder
def test_what_lies_under_a_decoders_holes_does_not_leak(name):
    low, skip, weight, bias = make_decoder(name)
    low_mask, skip_mask = decoder_masks(low, skip, "mixed", "checkerboard")
    run = decoder(low_mask, skip_mask)
    clean = run(torch.where(low_mask, low, 0.0), torch.where(skip_mask, skip, 0.0), weight, bias)
    dirty = run(torch.where(low_mask, low, math.nan), torch.where(skip_mask, skip, math.nan), weight, bias)
    assert torch.equal(clean, dirty)


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
    assert torch.equal(output[hit == 0], clean[hit == 0])


def test_an_empty_batch_gives_zero_gradients():
    (x, weight, bias), geometry = make("3×3")
    leaves = [t.requires_grad_() for t in (x[:0], weight, bias)]
    partial_conv2d(leaves[0], torch.ones(0, 1, 13, 16), *leaves[1:], **geometry, backend="cpu")[0].sum().backward()
    assert not any(t.grad.any() for t in leaves)


# ---- layouts, threads, fake tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize("upstream_layout", LAYOUTS)
@pytest.mark.parametrize("view", ["channels_last", "cropped_channels_last"])
@pytest.mark.parametrize("name", ["3×3", "5×5/2", "patches"])
def test_any_layout_gives_the_same_numbers(name, view, upstream_layout):
    (x, weight, bias), geometry = make(name)
    run = runner(masks.plane("mixed", x.shape[0], *x.shape[2:]), geometry)
    upstream = torch.randn_like(run(x, weight, bias))
    wanted = gradients(run, upstream, x, weight, bias)
    leaves = [t.detach().requires_grad_() for t in (LAYOUTS[view](x), LAYOUTS["every_second_channel"](weight), bias)]
    output = run(*leaves)
    output.backward(LAYOUTS[upstream_layout](upstream))
    assert_exact(output, wanted[0])
    for leaf, want in zip(leaves, wanted[1], strict=True):
        assert_exact(leaf.grad, want)


@pytest.mark.parametrize("view", ["channels_last", "cropped_channels_last"])
@pytest.mark.parametrize("name", DECODERS)
def test_any_layout_of_a_decoder_gives_the_same_numbers(name, view):
    low, skip, weight, bias = make_decoder(name)
    run = decoder(*decoder_masks(low, skip, "mixed", "checkerboard"))
    wanted = gradients(run, torch.ones_like(run(low, skip, weight, bias)), low, skip, weight, bias)
    leaves = [t.detach().requires_grad_() for t in (LAYOUTS[view](low), LAYOUTS[view](skip), weight, bias)]
    run(*leaves).sum().backward()
    for leaf, want in zip(leaves, wanted[1], strict=True):
        assert_exact(leaf.grad, want)


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


@FORMATS
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["3×3", "5×5/2", "patches", "patches of one pixel"])
def test_fake_tensors_agree(name, view, is_masked, layout):
    """Where a view has the channel as its fastest dimension but is no channels_last map to torch, too."""
    shape, c_out, kernel, stride, padding = (CONVOLUTIONS | {"patches of one pixel": ((2, 17, 1, 1), 19, 3, 1, 1)})[
        name
    ]
    x = VIEWS[view](torch.randn(shape))
    mask = masks.plane("mixed", shape[0], *shape[2:])
    forward = (*forward_arguments(x, mask, c_out, kernel, padding, stride, layout)[:-1], is_masked)
    assert_fake_agrees(OPS.partial_conv2d_forward, forward)
    for needed in ((True, True, True), (True, False, False), (False, True, False)):
        assert_fake_agrees(OPS.partial_conv2d_backward, backward_arguments(forward, needed))


@each_decoder
def test_opcheck_of_decoders(name):
    low, skip, weight, bias = make_decoder(name, torch.float32)
    forward = low, *decoder_masks(low, skip, "mixed", "mixed")[:1], skip, decoder_masks(low, skip, "mixed", "mixed")[1]
    forward = *forward, weight, bias, 9 * weight.shape[1], False, False, True
    torch.library.opcheck(OPS.partial_conv2d_upcat_forward.default, differentiable(forward))
    torch.library.opcheck(OPS.partial_conv2d_upcat_backward.default, upcat_backward_arguments(forward))


# ---- what is allocated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 128])
def test_tiles_need_a_fixed_block_and_the_transformed_weight_but_no_copy_of_the_input(side):
    x, weight = channels_last(torch.randn(1, 64, side, side)), torch.randn(32, 64, 3, 3)
    run = runner(masks.plane("right_half", 1, side, side), {"padding": 1})
    made = allocations(profiled(lambda: run(x, weight, torch.zeros(32))))
    output, planes, transformed = 4 * 32 * side * side, 9 * side * side, 16 * 4 * 32 * 64
    assert sum(made) <= output + planes + 1.1 * transformed + (4 << 20)
