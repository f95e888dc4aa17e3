"""Looks at what ran inside an operator: operators, convolutions, allocations."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")


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


def peak(function):
    """The most bytes that function() held at once, beyond what was held before, and its result at the end."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    del result
    return most


def library_ran(function):
    """Whether function() called a convolution of torch's."""
    return any(event.name.startswith("aten::convolution") for event in profiled(function))
