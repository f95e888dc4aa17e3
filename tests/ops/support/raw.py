"""Arguments of the operators behind the public functions, and what torch asks of them."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from . import masks

OPS = torch.ops.msa_ops


def forward_arguments(x, mask, c_out=5, kernel=3, padding=1, stride=1, layout=torch.contiguous_format, has_bias=True):
    """Arguments of partial_conv2d_forward for a mask of one plane or of one per channel."""
    channels = x.shape[1]
    weight = torch.randn(c_out, channels, kernel, kernel, dtype=x.dtype, device=x.device).to(memory_format=layout)
    bias = torch.randn(c_out, dtype=x.dtype, device=x.device) if has_bias else None
    covered = [channels] if mask.shape[1] == 1 else [1] * channels
    geometry = [stride, stride], [padding, padding], [1, 1], 1
    return x, mask, weight, bias, covered, *geometry, kernel * kernel * channels, False


def backward_arguments(forward, needed=(True, True, True)):
    x, mask, weight, _, covered, stride, padding, dilation, groups, _, is_masked = forward
    output, _, ratio = OPS.partial_conv2d_forward(*forward)
    geometry = covered, stride, padding, dilation, groups
    return torch.randn_like(output), x, mask, weight, ratio, *geometry, is_masked, list(needed)


def upcat_arguments(low, skip, low_mask, skip_mask, layout=torch.contiguous_format, phases=True):
    channels = low.shape[1] + skip.shape[1]
    weight = torch.randn(4, channels, 3, 3, dtype=low.dtype, device=low.device).to(memory_format=layout)
    bias = torch.randn(4, dtype=low.dtype, device=low.device)
    return low, low_mask, skip, skip_mask, weight, bias, 9 * channels, False, False, phases


def upcat_backward_arguments(forward, needed=(True, True, True, True)):
    low, low_mask, skip, skip_mask, weight, _, _, *flags = forward
    output, _, ratio = OPS.partial_conv2d_upcat_forward(*forward)
    return torch.randn_like(output), low, low_mask, skip, skip_mask, weight, ratio, *flags, list(needed)


def differentiable(arguments):
    """The arguments with floating tensors that want gradients; detached views keep their strides."""
    wants = [isinstance(a, torch.Tensor) and a.dtype.is_floating_point for a in arguments]
    return tuple(a.detach().requires_grad_() if want else a for a, want in zip(arguments, wants, strict=True))


#: name -> mask (n, 1, h, w).
MASKS = {
    "holes": lambda n, h, w: masks.plane("mixed", n, h, w),
    "all_valid": lambda n, h, w: masks.plane("all_valid", n, h, w),
    "expanded": lambda n, h, w: masks.plane("checkerboard", 1, h, w).expand(n, -1, -1, -1),
}
#: What torch.library.opcheck tests: everything, and all but the test that traces the operator with dynamic shapes,
#: which takes ten times as long as the others together and sees no strides.
OPCHECK_STATIC = ("test_schema", "test_autograd_registration", "test_faketensor")
OPCHECK = (*OPCHECK_STATIC, "test_aot_dispatch_dynamic")

#: (view, mask): each view and each mask once.
INPUTS = [
    ("contiguous", "holes"),
    ("channels_last", "expanded"),
    ("channels_last", "all_valid"),
    ("every_second_pixel", "holes"),
    ("expanded_batch", "expanded"),
]


def significant_strides(tensor):
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def assert_fake_agrees(operator, arguments, mode=None):
    """Asserts that fake tensors have the shape, dtype and device of the real results, and their strides in the
    dimensions that hold more than one element."""
    with mode or FakeTensorMode() as mode:
        fake = operator(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    for real, imagined in zip(operator(*arguments), fake, strict=True):
        assert (real is None) == (imagined is None)
        if real is not None:
            assert (real.shape, real.dtype, real.device) == (imagined.shape, imagined.dtype, imagined.device)
            assert significant_strides(real) == significant_strides(imagined)
