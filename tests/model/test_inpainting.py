"""`inpaint` and the modes of PIL images: what is kept, to the bit, and what is filled in."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from msa_model.inpainting import inpaint

COLOUR = (0.2, 0.4, 0.8)  # what OneColour predicts
RGB, GREY = (51, 102, 204), 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.8

# ---- tensors -------------------------------------------------------------------------------------------------------


def random_case(n=2, h=5, w=7, dtype=torch.float32):
    return torch.rand(n, 3, h, w).to(dtype), torch.rand(n, 1, h, w) > 0.4


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float32, torch.float64, torch.float16])
def test_valid_pixels_are_kept_to_the_bit_and_holes_filled(one_colour, mask_dtype):
    image, mask = random_case()
    valid = mask.expand_as(image)
    image[valid] = torch.randn(int(valid.sum()))  # beyond [0, 1], too: nothing of the input is clamped
    image[0, 0][mask[0, 0]] = -0.0
    image[1, 1][mask[1, 0]] = torch.nan
    result = inpaint(one_colour(), image, mask.to(mask_dtype))
    assert torch.equal(bits(result[valid]), bits(image[valid]))
    expected = torch.tensor(COLOUR).reshape(1, 3, 1, 1).expand_as(image)
    assert torch.equal(result[~valid], expected[~valid])


def test_the_prediction_is_clamped(one_colour):
    image, mask = random_case()
    result = inpaint(one_colour((-0.5, 0.5, 1.5)), image, torch.zeros_like(mask))
    assert torch.equal(result[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))


def test_values_in_holes_never_reach_the_generator(one_colour):
    image, mask = random_case()
    image = torch.where(mask, image, torch.nan)
    generator = one_colour()
    assert inpaint(generator, image, mask).isfinite().all()
    seen, seen_mask = generator.calls[0][:2]
    assert torch.equal(seen, torch.where(mask, image, 0))
    assert torch.equal(seen_mask, mask.float())


def test_a_prediction_of_nan_at_valid_pixels_does_not_leak():
    class NanWhereValid(nn.Module):
        def forward(self, image, mask):
            return torch.where(mask != 0, torch.nan, 0.5).expand(image.shape)

    image, mask = random_case()
    result = inpaint(NanWhereValid(), image, mask)
    assert torch.equal(result, torch.where(mask, image, 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_image_and_the_generator_its_own(one_colour, dtype):
    image, mask = random_case(dtype=dtype)
    generator = one_colour()
    result = inpaint(generator, image, mask)
    assert result.dtype == dtype
    assert torch.equal(result[mask.expand_as(image)], image[mask.expand_as(image)])
    assert generator.calls[0][0].dtype == torch.float32
    half = one_colour().half()
    assert inpaint(half, image, mask).dtype == dtype
    assert half.calls[0][0].dtype == half.calls[0][1].dtype == torch.float16


def test_training_flags_are_restored(one_colour):
    image, mask = random_case()
    generator = one_colour().train()
    generator.inner.eval()  # frozen, as in fine-tuning
    inpaint(generator, image, mask)
    assert generator.calls[0][2:] == (False, False)
    assert (generator.training, generator.inner.training) == (True, False)


def test_training_flags_are_restored_after_an_error():
    class Fails(nn.Module):
        def forward(self, image, mask):
            raise RuntimeError("no")

    generator = Fails().train()
    with pytest.raises(RuntimeError, match="no"):
        inpaint(generator, *random_case())
    assert generator.training


def test_the_result_is_an_ordinary_tensor_without_gradients(one_colour):
    image, mask = random_case()
    result = inpaint(one_colour(), image.requires_grad_(), mask)
    assert not result.requires_grad
    (result * torch.ones(1, requires_grad=True)).sum().backward()  # an inference tensor would refuse this


def test_invert_mask_of_tensors(one_colour):
    image, mask = random_case()
    assert torch.equal(inpaint(one_colour(), image, mask, invert_mask=True), inpaint(one_colour(), image, ~mask))


def test_empty_batch(one_colour):
    assert inpaint(one_colour(), torch.rand(0, 3, 4, 4), torch.ones(0, 1, 4, 4)).shape == (0, 3, 4, 4)


IMAGE = torch.rand(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (IMAGE[0], torch.ones(2, 1, 4, 5), r"image must have shape \(N, 3, H, W\), got \(3, 4, 5\)"),
        (IMAGE[:, :1], torch.ones(2, 1, 4, 5), r"image must have shape \(N, 3, H, W\), got \(2, 1, 4, 5\)"),
        (IMAGE.to(torch.uint8), torch.ones(2, 1, 4, 5), "image must have a floating-point dtype.*got torch.uint8"),
        (IMAGE, torch.ones(2, 3, 4, 5), r"mask must have shape .* N=2, H=4, W=5, got \(2, 3, 4, 5\)"),
        (IMAGE, torch.ones(2, 1, 5, 4), r"mask must have shape .* N=2, H=4, W=5, got \(2, 1, 5, 4\)"),
        (IMAGE, torch.ones(1, 1, 4, 5), r"mask must have shape .* got \(1, 1, 4, 5\)"),
        (IMAGE, torch.ones(2, 1, 4, 5).long(), "mask must be bool, uint8 or floating-point, got torch.int64"),
        (
            Image.new("RGB", (5, 4)),
            torch.ones(1, 1, 4, 5),
            "both be tensors or both be PIL images, got Image and Tensor",
        ),
        (IMAGE, Image.new("L", (5, 4)), "both be tensors or both be PIL images, got Tensor and Image"),
        (Image.new("RGB", (5, 4)), Image.new("L", (4, 5)), r"mask must have the size.*\(5, 4\), got \(4, 5\)"),
        (Image.new("LAB", (5, 4)), Image.new("L", (5, 4)), "mode LAB is not supported"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(one_colour, image, mask, message):
    with pytest.raises(ValueError, match=f"msa_model.inpaint: .*{message}"):
        inpaint(one_colour(), image, mask)


def test_a_generator_must_be_a_module_that_returns_an_image(one_colour):
    with pytest.raises(ValueError, match=r"generator must be a torch\.nn\.Module, got function"):
        inpaint(lambda image, mask: image, *random_case())

    class OneChannel(nn.Module):
        def forward(self, image, mask):
            return image[:, :1]

    with pytest.raises(ValueError, match=r"generator must return shape \(2, 3, 5, 7\), got \(2, 1, 5, 7\)"):
        inpaint(OneChannel(), *random_case())


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (13, 30)])
def test_the_real_generator_takes_any_size(small_generator, size):
    image, mask = random_case(1, *size)
    result = inpaint(small_generator, image, mask)
    with torch.no_grad():
        prediction = small_generator(image, mask.float()).clamp(0, 1)
    assert torch.equal(result, torch.where(mask, image, prediction))


@pytest.mark.gpu
def test_the_generator_runs_on_its_device_and_the_result_returns_to_the_images(one_colour):
    image, mask = random_case()
    generator = one_colour().cuda()
    result = inpaint(generator, image, mask)
    assert generator.calls[0][0].is_cuda
    assert torch.equal(result, inpaint(one_colour(), image, mask))


# ---- PIL images ----------------------------------------------------------------------------------------------------

W, H = 9, 6


def random_hole():
    return np.random.default_rng(1).random((H, W)) < 0.4


def mask_of(hole):
    return Image.fromarray(hole.astype(np.uint8) * 255)


def random_image(mode):
    rng = np.random.default_rng(2)
    if mode == "1":
        return Image.fromarray(rng.random((H, W)) < 0.5)
    if mode == "I":
        return Image.fromarray(rng.integers(0, 65536, (H, W), dtype=np.int32))
    if mode == "F":
        return Image.fromarray(rng.random((H, W), dtype=np.float32))
    if mode == "P":
        image = Image.frombytes("P", (W, H), rng.integers(0, 4, W * H, dtype=np.uint8).tobytes())
        image.putpalette([255, 0, 0, 60, 100, 200, 0, 0, 0, 250, 250, 250])
        return image
    if mode == "PA":
        return Image.merge("PA", (random_image("P").convert("L"), random_image("L")))
    if mode in ("La", "RGBa"):
        return random_image({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    count = len(Image.new(mode, (W, H)).tobytes())
    return Image.frombytes(mode, (W, H), rng.integers(0, 256, count, dtype=np.uint8).tobytes())


def pixels(image):
    """Each pixel's bytes as a row: what a mode really stores."""
    if image.mode == "1":
        image = image.convert("L")
    return np.frombuffer(image.tobytes(), np.uint8).reshape(H, W, -1)


def in_mode(mode):
    """The predicted colour in a mode without alpha, one pixel's bytes."""
    return list(Image.new("RGB", (1, 1), RGB).convert(mode).tobytes())


FILLED = {
    "1": [0],
    "L": [98],
    "LA": [98],
    "P": [1],
    "RGB": [*RGB],
    "RGBA": [*RGB],
    "RGBX": [*RGB],
    "CMYK": [204, 153, 51, 0],
    "YCbCr": in_mode("YCbCr"),
    "HSV": in_mode("HSV"),
    "I;16": list(round(GREY * 65535).to_bytes(2, "little")),
    "I;16B": list(round(GREY * 65535).to_bytes(2, "big")),
    "I": list(np.int32(round(GREY * 65535)).tobytes()),
}


@pytest.mark.parametrize("mode", FILLED)
def test_every_mode_keeps_valid_bytes_and_alpha_and_is_filled(one_colour, mode):
    image, hole = random_image(mode), random_hole()
    before = image.tobytes()
    result = inpaint(one_colour(), image, mask_of(hole))
    assert (result.mode, result.size, image.tobytes()) == (mode, image.size, before)
    assert np.array_equal(pixels(result)[~hole], pixels(image)[~hole])
    expected = pixels(image)[hole].copy()
    expected[:, : len(FILLED[mode])] = FILLED[mode]  # what follows the colours is alpha, or RGBX's fourth byte
    assert np.array_equal(pixels(result)[hole], expected)
    if mode == "P":
        assert result.getpalette() == image.getpalette()


@pytest.mark.parametrize("mode", ["F", "PA", "La", "RGBa"])
def test_rarer_modes_keep_valid_bytes_and_alpha(one_colour, mode):
    image, hole = random_image(mode), random_hole()
    result = inpaint(one_colour(), image, mask_of(hole))
    assert result.mode == mode
    assert np.array_equal(pixels(result)[~hole], pixels(image)[~hole])
    assert not np.array_equal(pixels(result)[hole], pixels(image)[hole])
    if mode == "F":
        assert np.allclose(np.asarray(result)[hole], GREY, atol=1e-6)
    else:
        assert np.array_equal(pixels(result)[..., -1], pixels(image)[..., -1])


def test_bilevel_images_are_thresholded_at_a_half(one_colour):
    hole = random_hole()
    result = inpaint(one_colour((0.5, 0.5, 0.5 + 1e-3)), random_image("1"), mask_of(hole))
    assert np.asarray(result)[hole].all()


@pytest.mark.parametrize(("mode", "bad"), [("I", 65536), ("I", -1), ("F", 1.5), ("F", float("nan"))])
def test_deep_grey_out_of_range_is_refused_outside_the_hole(one_colour, mode, bad):
    image, hole = random_image(mode), random_hole()
    image.paste(bad, mask=mask_of(hole).convert("1"))
    inpaint(one_colour(), image, mask_of(hole))  # in the hole it does not count
    with pytest.raises(ValueError, match=rf"mode {mode} must hold values in \[0, "):
        inpaint(one_colour(), image, mask_of(~hole))


def test_palette_pixels_stay_as_transparent_as_they_were(one_colour):
    """Index 0 has the very colour predicted but is transparent: only pixels that were transparent may become it."""
    image = Image.frombytes("P", (4, 1), bytes([0, 1, 2, 3]))
    image.putpalette([*RGB, 255, 255, 255, 60, 100, 200, *RGB])
    image.info["transparency"] = bytes([0, 255, 255, 128])
    result = inpaint(one_colour(), image, Image.new("L", (4, 1), 255))
    assert list(result.tobytes()) == [0, 2, 2, 3]


def test_mask_threshold_and_inversion(one_colour):
    mask = Image.frombytes("L", (4, 1), bytes([0, 127, 128, 255]))
    image = Image.new("L", (4, 1), 7)
    assert list(inpaint(one_colour(), image, mask).tobytes()) == [7, 7, 98, 98]
    assert list(inpaint(one_colour(), image, mask, invert_mask=True).tobytes()) == [98, 98, 7, 7]


def test_without_a_hole_the_generator_does_not_run(one_colour):
    generator, image = one_colour(), random_image("RGB")
    result = inpaint(generator, image, Image.new("L", (W, H), 0))
    assert result is not image
    assert result.tobytes() == image.tobytes()
    assert not generator.calls


def test_a_pil_prediction_that_is_not_finite_is_refused(one_colour):
    with pytest.raises(FloatingPointError, match="prediction is not finite"):
        inpaint(one_colour((0.0, float("nan"), 0.0)), random_image("RGB"), mask_of(random_hole()))


def test_a_pil_image_and_its_tensor_give_the_same_result(small_generator):
    image, hole = random_image("RGB"), random_hole()
    result = inpaint(small_generator, image, mask_of(hole))
    tensor = torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1)[None]
    expected = inpaint(small_generator, tensor, torch.from_numpy(~hole)[None, None])[0].permute(1, 2, 0)
    assert np.array_equal(np.asarray(result), (expected * 255).round().to(torch.uint8).numpy())
