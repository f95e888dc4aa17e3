"""The losses against their equations, written out slowly in float64."""

import logging
import math

import pytest
import torch

from msa_model import Discriminator, InpaintingLoss
from msa_model.nn import losses as losses_module
from msa_model.nn.losses import gram_matrix, hole_total_variation
from msa_model.nn.normalization import RegionNorm2d
from msa_model.nn.vgg import VGG16Features

TERMS = ("perceptual", "style", "adversarial", "total_variation", "hole", "valid")
WEIGHTS = (0.05, 120.0, 0.1, 0.1, 6.0, 1.0)


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return VGG16Features(None).double()


def example(n=2, h=17, w=21, hole=0.4, dtype=torch.double):
    torch.manual_seed(3)
    mask = torch.rand(n, 1, h, w) > hole
    return (
        torch.rand(n, 3, h, w, dtype=dtype),
        torch.rand(n, 3, h, w, dtype=dtype),
        mask,
        torch.randn(n, 1, 3, 2).to(dtype),
    )


# ---- the equations, slowly -----------------------------------------------------------------------------------------


def slow_comparison(vgg, image, truth):
    """Eqs. 13-15 of one image against the truth, sample by sample."""
    perceptual = style = 0.0
    for found, wanted in zip(vgg(image), vgg(truth), strict=True):
        n, c, h, w = found.shape
        for a, b in zip(found, wanted, strict=True):
            perceptual += sum((a[k] - b[k]).abs().sum().item() for k in range(c)) / (c * h * w) / n
            gram_a, gram_b = (torch.einsum("iyx,jyx->ij", t, t) / (c * h * w) for t in (a, b))
            style += (gram_a - gram_b).abs().sum().item() / (c * c) / n
    return perceptual, style


def slow_pixel_terms(prediction, truth, mask):
    """Eqs. 19-21, pixel by pixel."""
    n, c, h, w = prediction.shape
    composite = mask * truth + ~mask * prediction
    hole = valid = vertical = horizontal = 0.0
    for i in range(n):
        for k in range(c):
            for y in range(h):
                for x in range(w):
                    known = mask[i, 0, y, x]
                    error = abs(prediction[i, k, y, x] - truth[i, k, y, x]).item()
                    hole, valid = (hole, valid + error) if known else (hole + error, valid)
                    if y + 1 < h and not (known and mask[i, 0, y + 1, x]):
                        vertical += abs(composite[i, k, y + 1, x] - composite[i, k, y, x]).item()
                    if x + 1 < w and not (known and mask[i, 0, y, x + 1]):
                        horizontal += abs(composite[i, k, y, x + 1] - composite[i, k, y, x]).item()
    variation = vertical / (n * c * (h - 1) * w) + horizontal / (n * c * h * (w - 1))
    return {"total_variation": variation, "hole": hole / (n * c * h * w), "valid": valid / (n * c * h * w)}


def slow_cross_entropy(logits, label):
    """Eqs. 17, 18 of probabilities."""
    p = [1 / (1 + math.exp(-x)) for x in logits.flatten().tolist()]
    return -sum(label * math.log(q) + (1 - label) * math.log(1 - q) for q in p) / len(p)


# ---- the terms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_terms_follow_their_equations(vgg, variant):
    prediction, truth, mask, logits = example()
    loss = InpaintingLoss(vgg, variant=variant)
    total, terms = loss.generator_loss(prediction, truth, mask, logits)
    assert tuple(terms) == TERMS
    perceptual, style = slow_comparison(vgg, prediction, truth)
    if variant == "released":
        more = slow_comparison(vgg, mask * truth + ~mask * prediction, truth)
        perceptual, style = perceptual + more[0], style + more[1]
    expected = {"perceptual": perceptual, "style": style, "adversarial": slow_cross_entropy(logits, 1)}
    expected |= slow_pixel_terms(prediction, truth, mask)
    for name in TERMS:
        assert terms[name].item() == pytest.approx(expected[name], rel=1e-10), name
        assert expected[name] > 0
    assert total.item() == pytest.approx(sum(w * expected[name] for w, name in zip(WEIGHTS, TERMS, strict=True)))
    assert total.dtype == torch.double


def test_weights_are_arguments_and_terms_stay_unweighted(vgg):
    prediction, truth, mask, logits = example()
    weights = {name: 0.5 + i for i, name in enumerate(TERMS)}
    ours = InpaintingLoss(vgg, **weights)
    total, terms = ours.generator_loss(prediction, truth, mask, logits)
    unweighted = InpaintingLoss(vgg).generator_terms(prediction, truth, mask, logits)
    assert terms == unweighted
    assert total.item() == pytest.approx(sum(weights[name] * terms[name].item() for name in TERMS))
    assert ours.weights == weights
    assert InpaintingLoss(vgg).weights == dict(zip(TERMS, WEIGHTS, strict=True))


def test_discriminator_loss_is_eq_16():
    real, fake = torch.randn(2, 1, 3, 2).double(), torch.randn(2, 1, 3, 2).double()
    found = InpaintingLoss(None).discriminator_loss(real, fake).item()
    assert found == pytest.approx(slow_cross_entropy(real, 1) + slow_cross_entropy(fake, 0))


def test_extreme_logits_have_exact_values_and_finite_gradients():
    for extreme in (1e4, -1e4):
        logits = torch.full((1, 1, 2, 2), extreme, dtype=torch.float16, requires_grad=True)
        adversarial = InpaintingLoss(None).generator_terms(*example(dtype=torch.float32)[:3], logits)["adversarial"]
        adversarial.backward()
        assert adversarial.item() == max(0.0, -torch.tensor(extreme).half().item())
        assert torch.isfinite(logits.grad).all()


def test_gradients_are_those_of_finite_differences(vgg):
    prediction, truth, mask, logits = example(n=1, h=9, w=8)
    for leaf in (prediction, logits):
        leaf.requires_grad_()
    for variant in ("paper", "released"):
        loss = InpaintingLoss(vgg, variant=variant)
        total = lambda p, f, loss=loss: loss.generator_loss(p, truth, mask, f)[0]  # noqa: E731
        assert torch.autograd.gradcheck(total, (prediction, logits), fast_mode=True)
    plain = InpaintingLoss(None)
    assert torch.autograd.gradcheck(lambda p: plain.generator_loss(p, truth, mask, None)[0], prediction)
    assert torch.autograd.gradcheck(lambda r, f: plain.discriminator_loss(r, f), (logits, 2 * logits.detach()))


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_features_of_the_truth_have_no_graph_and_all_others_come_from_one_pass(vgg, variant, monkeypatch):
    passes = []
    forward = VGG16Features.forward
    monkeypatch.setattr(
        VGG16Features, "forward", lambda s, x: passes.append((len(x), torch.is_grad_enabled())) or forward(s, x)
    )
    prediction, truth, mask, _ = example(n=2)
    terms = InpaintingLoss(vgg, variant=variant).generator_terms(prediction.requires_grad_(), truth, mask, None)
    assert sorted(passes) == [(2, False), (2 if variant == "paper" else 4, True)]
    (terms["perceptual"] + terms["style"]).backward()
    assert prediction.grad.abs().sum() > 0
    assert all(p.grad is None for p in vgg.parameters())


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_all_hole_and_no_hole_give_finite_losses(vgg, fill, variant):
    prediction, truth, mask, logits = example()
    loss = InpaintingLoss(vgg, variant=variant)
    total, terms = loss.generator_loss(prediction.requires_grad_(), truth, torch.full_like(mask, fill), logits)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(prediction.grad).all()
    assert (terms["hole"] == 0) == fill
    assert (terms["total_variation"] == 0) == fill
    assert (terms["valid"] == 0) == (not fill)


def test_a_perfect_prediction_has_total_variation_only(vgg):
    _, truth, mask, _ = example()
    terms = InpaintingLoss(vgg, variant="released").generator_terms(truth, truth, mask, None)
    assert {name for name, term in terms.items() if term != 0} == {"total_variation"}


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.bfloat16])
def test_masks_of_any_dtype_mean_the_same(kind):
    prediction, truth, mask, _ = example()
    loss = InpaintingLoss(None)
    assert loss.generator_terms(prediction, truth, mask.to(kind), None) == loss.generator_terms(
        prediction, truth, mask, None
    )


def test_variation_counts_differences_that_touch_the_hole():
    composite = torch.tensor([0.0, 1.0]).expand(1, 3, 2, 2)
    valid = torch.tensor([[[[True, False], [True, False]]]])
    # In every row one difference of 1, from top to bottom none.
    assert hole_total_variation(composite, valid) == 1.0


def test_variation_of_a_single_row_or_column():
    prediction, truth, mask, _ = example(h=1, w=5, hole=1.0)
    expected = (prediction[..., 1:] - prediction[..., :-1]).abs().mean()
    assert torch.isclose(hole_total_variation(prediction, mask), expected)
    assert torch.isclose(hole_total_variation(prediction.mT, mask.mT), expected)
    assert hole_total_variation(prediction[..., :1], mask[..., :1]) == 0
    assert torch.isfinite(InpaintingLoss(None).generator_loss(prediction, truth, mask, None)[0])


# ---- mixed precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_autocast_is_finite_where_half_precision_would_overflow(dtype, variant, device):
    torch.manual_seed(0)
    vgg = VGG16Features(None).to(device)
    with torch.no_grad():  # the size of features of trained weights: in the hundreds
        for layer in vgg.features:
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
        vgg.features[0].weight *= 100
    prediction, truth, mask, logits = (t.to(device) for t in example(h=16, w=16, dtype=torch.float32))
    loss = InpaintingLoss(vgg, variant=variant)
    exact = loss.generator_terms(prediction, truth, mask, logits)
    assert max((f.flatten(2) @ f.flatten(2).mT).max() for f in vgg(truth)) > torch.finfo(torch.float16).max
    for half in (prediction, prediction.to(dtype)):  # autocast's own generator gives the second
        half = half.detach().requires_grad_()
        with torch.autocast(device, dtype):
            total, terms = loss.generator_loss(half, truth, mask, logits.to(dtype))
        total.backward()
        assert torch.isfinite(half.grad).all()
        assert total.dtype == torch.float32
        for name, term in terms.items():
            assert term.item() == pytest.approx(exact[name].item(), rel=0.05), name


def test_half_precision_terms_are_not_rounded_to_half():
    _, truth, mask, logits = example(h=64, w=64, dtype=torch.float32)
    prediction, logits = truth.half(), logits.half()
    loss = InpaintingLoss(None)
    found = loss.generator_terms(prediction, truth, mask, logits)
    exact = loss.generator_terms(prediction.double(), truth.double(), mask, logits.double())
    for name in ("hole", "valid", "adversarial"):  # the first two from differences far below half precision's step
        assert found[name].item() == pytest.approx(exact[name].item(), rel=1e-5 if name == "adversarial" else 1e-4)
    found, exact = (loss.discriminator_loss(t, -t).item() for t in (logits, logits.double()))
    assert found == pytest.approx(exact, rel=1e-5)


@pytest.mark.gpu
def test_a_step_waits_for_no_gpu():
    vgg, discriminator = VGG16Features(None).cuda(), Discriminator(8).cuda()
    norm, loss = RegionNorm2d(3).cuda(), InpaintingLoss(vgg, variant="released")
    prediction, truth, mask, _ = (t.cuda() for t in example(h=32, w=32, dtype=torch.float32))

    def step():
        made = norm(prediction, mask)
        total, _ = loss.generator_loss(made, truth, mask, discriminator(made))
        (total + loss.discriminator_loss(discriminator(truth), discriminator(made.detach()))).backward()

    step()  # libraries set themselves up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- without VGG; what is refused ----------------------------------------------------------------------------------


def test_without_features_two_terms_are_left_out_and_that_is_logged_once(caplog):
    losses_module._warn_once.cache_clear()
    prediction, truth, mask, logits = example()
    with caplog.at_level(logging.WARNING):
        losses = [InpaintingLoss(None) for _ in range(3)]
        _, terms = losses[0].generator_loss(prediction, truth, mask, logits)
    assert [record.getMessage() for record in caplog.records] == [
        "msa_model.InpaintingLoss: no VGG-16 features: the perceptual and style terms are left out"
    ]
    assert tuple(terms) == TERMS[2:]
    assert losses[0].missing_terms == TERMS[:2]
    assert InpaintingLoss(VGG16Features(None)).missing_terms == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "other"}, "variant must be 'paper' or 'released', got 'other'"),
        ({"style": -1.0}, "style must be a finite weight >= 0, got -1.0"),
        ({"hole": math.nan}, "hole must be a finite weight >= 0, got nan"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"msa_model.InpaintingLoss: {message}"):
        InpaintingLoss(None, **options)


def test_shapes_that_do_not_fit_are_refused(vgg):
    prediction, truth, mask, _ = example(n=2, h=8, w=8)
    loss = InpaintingLoss(vgg)
    with pytest.raises(ValueError, match=r"InpaintingLoss: truth must have the shape of prediction, \(2, 3, 8, 8\)"):
        loss.generator_terms(prediction, truth[:1], mask, None)
    with pytest.raises(ValueError, match=r"InpaintingLoss: mask must have shape \(2, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        loss.generator_terms(prediction, truth, mask.expand(-1, 3, -1, -1), None)
    with pytest.raises(ValueError, match=r"InpaintingLoss: prediction must have shape \(N, 3, H, W\)"):
        loss.generator_terms(prediction[:, :1], truth, mask, None)
    with pytest.raises(ValueError, match=r"VGG16Features: .* H and W at least 8, got \(2, 3, 8, 7\)"):
        loss.generator_terms(prediction[..., :7], truth[..., :7], mask[..., :7], None)
    with pytest.raises(ValueError, match=r"InpaintingLoss: mask must have shape \(2, 1, 8, 8\), got \(1, 1, 8, 8\)"):
        loss.generator_terms(prediction, truth, mask[:1], None)


def test_gram_matrix_of_one_sample():
    features = torch.randn(2, 3, 4, 5, dtype=torch.double)
    expected = sum(torch.outer(features[1, :, y, x], features[1, :, y, x]) for y in range(4) for x in range(5)) / 60
    torch.testing.assert_close(gram_matrix(features)[1], expected)
