"""What several test files share: gradients of a call, memory layouts, and looks at what ran inside an operator."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from msa_ops import partial_conv_upcat

CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")

#: The two forms of the decoder operator.
FORMS = {"phases": True, "concatenation": False}


def force_form(monkeypatch, form="phases"):
    """The decoder's operator in this form, whatever its rule would pick."""
    monkeypatch.setattr(partial_conv_upcat, "phases_win", lambda low, backend=None: FORMS[form])


def gradients(function, grad, *leaves):
    """The output of function(*leaves) and the gradients of the leaves for the upstream gradient `grad`."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in leaves]
    output = function(*leaves)
    return output.detach(), torch.autograd.grad(output, leaves, grad.to(output.dtype))


def _strided(x, width, dims):
    """x as every second element, along `dims`, of a map in which the others are NaN."""
    shape = [2 * s if d in dims else s for d, s in enumerate(x.shape)]
    wide = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device).to(memory_format=width)
    view = wide[tuple(slice(None, None, 2) if d in dims else slice(None) for d in range(4))]
    view.copy_(x)
    return view


def _cropped(x):
    wide = torch.full([*x.shape[:2], x.shape[2] + 2, x.shape[3] + 3], float("nan"), dtype=x.dtype, device=x.device)
    view = wide.to(memory_format=torch.channels_last)[:, :, 1:-1, 2:-1]
    view.copy_(x)
    return view


#: name -> the same numbers, laid out differently.
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "cropped_channels_last": _cropped,
    "every_second_pixel": lambda x: _strided(x, torch.contiguous_format, (2, 3)),
    "every_second_channel": lambda x: _strided(x, torch.contiguous_format, (1,)),
    "every_second_channel_of_channels_last": lambda x: _strided(x, torch.channels_last, (1,)),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}

#: Views of one another's memory: these have their own numbers.
EXPANDED = {
    "expanded_batch": lambda x: x[:1].expand_as(x),
    "expanded_channels": lambda x: x[:, :1].expand_as(x),
    "expanded_pixels": lambda x: x[:, :, :1, :1].expand_as(x),
}


class Operators(TorchDispatchMode):
    """Collects the names of the msa_ops operators that run."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "msa_ops":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def profiled(function):
    """The events of function() as torch's profiler sees them, with shapes, arguments and allocations."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=True) as profile:
        function()
    return profile.events()


def ancestors(event):
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event.name


def allocations(events, *, inside_convolutions=False):
    """Bytes of every CPU allocation, largest first: those of torch's convolutions, or all the others."""

    def counts(event):
        lineage = [event.name, *ancestors(event)]
        return event.self_cpu_memory_usage > 0 and any(n in CONVOLUTIONS for n in lineage) == inside_convolutions

    return sorted((event.self_cpu_memory_usage for event in events if counts(event)), reverse=True)


def convolutions(events):
    """(event, FLOPs of one product) of every convolution that ran: 2 × taps × outputs, from its arguments."""
    for event in events:
        if event.name == "aten::convolution":
            image, weight, arguments = event.input_shapes[0], event.input_shapes[1], event.concrete_inputs[3:6]
            pixels = image[0]
            for size, k, stride, pad, dilation in zip(image[2:], weight[2:], *arguments, strict=True):
                pixels *= len(range(0, size + 2 * pad - dilation * (k - 1), stride))
        elif event.name == "aten::convolution_backward":
            grad, weight = event.input_shapes[0], event.input_shapes[2]
            pixels = grad[0] * grad[2] * grad[3]
        else:
            continue
        yield event, 2 * pixels * weight[0] * weight[1] * weight[2] * weight[3]
