"""Which form the decoder operator takes: the one that is named, or the rule's."""

import pytest
import torch

from ..support.internals import decoder_form
from ..support.profiling import profiled
from ..support.upcat import FORMS, upcat
from .calls import make


@pytest.mark.parametrize("form", FORMS)
def test_the_named_form_runs(native, form):
    """Two convolutions of parts, or one of everything."""
    low, skip, weight, bias = make(device=native)
    planes = torch.ones_like(low[:, :1]), torch.ones_like(skip[:, :1])
    events = profiled(lambda: upcat(form, low, planes[0], skip, planes[1], weight, bias))
    ran = [event for event in events if event.name == "aten::convolution"]
    assert len(ran) == {"phases": 2, "concatenation": 1}[form]


@pytest.mark.parametrize(("sizes", "wins"), [((1, 1, 8, 8), True), ((1, 1, 7, 9), False), ((4, 1, 4, 4), True)])
def test_the_rule_counts_small_pixels_of_the_whole_batch(sizes, wins, monkeypatch):
    monkeypatch.setitem(decoder_form.MIN_SMALL_PIXELS, "cpu", 64)
    assert decoder_form.phases_win(torch.empty(sizes)) == wins


def test_every_device_has_its_own_threshold(native):
    small = decoder_form.MIN_SMALL_PIXELS[native]
    assert decoder_form.phases_win(torch.empty(1, 1, 1, small, device=native))
    assert not decoder_form.phases_win(torch.empty(1, 1, 1, small - 1, device=native))
