"""The argument `form` of partial_conv2d_upcat, and the rule behind "auto"."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from msa_ops import partial_conv2d_upcat
from msa_ops.decoder_conv import form as decoder_form

from ..support.profiling import profiled
from ..support.upcat import FORMS
from .calls import make

LARGE, SMALL = (1, 4, 8, 8), (1, 4, 1, 2)  # 64 and 2 small pixels, around the CPU's threshold


class Phases(TorchDispatchMode):
    """Collects the flag `phases` of every decoder operator that runs."""

    def __enter__(self):
        self.seen = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "msa_ops":
            names = [argument.name for argument in func._schema.arguments]
            self.seen.append(args[names.index("phases")])
        return func(*args, **(kwargs or {}))


def gradients(shape, **options):
    """Output and gradients; the flags that the operators of forward and backward got."""
    n, c, h, w = shape
    generator = torch.Generator().manual_seed(0)
    low, skip = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, (n, 3, 2 * h, 2 * w)))
    weight = torch.randn(5, c + 3, 3, 3, generator=generator, dtype=torch.float64)
    masks = [torch.rand(t[:, :1].shape, generator=generator) > 0.3 for t in (low, skip)]
    leaves = [t.requires_grad_() for t in (low, skip, weight)]
    with Phases() as ran:
        output, _ = partial_conv2d_upcat(low, masks[0], skip, masks[1], weight, **options)
        results = output.detach(), *torch.autograd.grad(output.square().sum(), leaves)
    return results, ran.seen


@pytest.mark.parametrize("shape", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize("form", ["phases", "concatenation"])
def test_forward_and_backward_take_the_form_that_is_asked_for(form, shape):
    results, flags = gradients(shape, form=form, backend="cpu")
    assert flags == [form == "phases"] * 2
    for ours, wanted in zip(results, gradients(shape, backend="reference")[0], strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_the_named_form_runs(native, form):
    """Two convolutions of parts, or one of everything."""
    low, skip, weight, bias = make(device=native)
    planes = torch.ones_like(low[:, :1]), torch.ones_like(skip[:, :1])
    events = profiled(lambda: partial_conv2d_upcat(low, planes[0], skip, planes[1], weight, bias, form=form))
    ran = [event for event in events if event.name == "aten::convolution"]
    assert len(ran) == {"phases": 2, "concatenation": 1}[form]


@pytest.mark.parametrize(("shape", "phases"), [(LARGE, True), (SMALL, False)], ids=["large", "small"])
def test_auto_follows_the_rule(shape, phases):
    assert gradients(shape, backend="cpu")[1] == [phases] * 2
    assert gradients(shape, form="auto", backend="cpu")[1] == [phases] * 2


@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
def test_the_rule_counts_small_pixels(backend):
    least = decoder_form.MIN_SMALL_PIXELS[backend]
    assert decoder_form.pick("auto", torch.empty(2, 3, 1, least // 2), backend) == "phases"
    assert decoder_form.pick("auto", torch.empty(1, 9, 1, least - 1), backend) == "concatenation"


def test_the_gradient_has_the_form_of_the_forward_except_in_triton():
    large, small = torch.empty(LARGE), torch.empty(SMALL)
    for phases in (True, False):
        for low in (large, small):
            for backend in ("cpu", "cuda"):
                assert decoder_form.gradient_uses_phases(phases, low, backend) == phases
        assert decoder_form.gradient_uses_phases(phases, large, "triton")
        assert not decoder_form.gradient_uses_phases(phases, small, "triton")


@pytest.mark.parametrize("form", ["phase", "Phases", None, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_other_forms_are_refused(form, backend):
    message = rf"^msa_ops::partial_conv2d_upcat: form must be 'auto', 'phases' or 'concatenation', got {form!r}$"
    with pytest.raises(ValueError, match=message):
        gradients(SMALL, form=form, backend=backend)
