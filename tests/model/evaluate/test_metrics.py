"""Metrics against direct definitions, and against scikit-image where its settings agree."""

import numpy as np
import pytest
import skimage.metrics
import torch

from msa_model.evaluate import metrics


@pytest.fixture(scope="module")
def pair():
    """Two images that resemble one another, neither square, with sides of at least 51."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (60, 71, 3)).astype(np.uint8)
    truth[10:40, 20:50] = rng.integers(0, 256, 3)
    image = truth.copy()
    image[15:35, 5:45] = (image[15:35, 5:45] * 0.6 + 30).astype(np.uint8)
    return image, truth


def unit(image):
    return image.astype(np.float64) / 255


def ssim_map(a, b, weights, unbiased=False):
    """By its definition, window by window, where the window (n, n) of weights fits; a, b (H, W)."""
    n = len(weights)
    a, b = (np.lib.stride_tricks.sliding_window_view(x, (n, n)) for x in (a, b))

    def mean(x):
        return (x * weights).sum(axis=(-1, -2))

    def centred(x):
        return x - mean(x)[..., None, None]

    factor = n * n / (n * n - 1) if unbiased else 1
    va, vb, cov = (factor * mean(x) for x in (centred(a) ** 2, centred(b) ** 2, centred(a) * centred(b)))
    ma, mb = mean(a), mean(b)
    return ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))


def gaussian(n, sigma):
    line = np.exp(-0.5 * (np.arange(n) - n // 2) ** 2 / sigma**2)
    return np.outer(line, line) / line.sum() ** 2


# ---- standard ------------------------------------------------------------------------------------------------------


def test_standard_psnr_and_l1_are_their_formulas(pair):
    a, b = map(unit, pair)
    # torchmetrics takes the logarithm in float32.
    assert metrics.standard_psnr(*pair) == pytest.approx(-10 * np.log10(np.mean((a - b) ** 2)), abs=1e-5)
    assert metrics.standard_l1(*pair) == pytest.approx(np.mean(np.abs(a - b)), rel=1e-12)


def test_standard_ssim_is_its_definition(pair):
    values = []
    for channel in range(3):
        a, b = (np.pad(unit(x)[..., channel], 5, mode="reflect") for x in pair)
        values.append(ssim_map(a, b, gaussian(11, 1.5)))
    assert np.shape(values) == (3, 60, 71)
    assert metrics.standard_ssim(*pair) == pytest.approx(np.mean(values), abs=1e-5)


def test_standard_ssim_is_that_of_scikit_image_away_from_the_border(pair):
    from torchmetrics.functional.image import structural_similarity_index_measure

    tensors = [torch.from_numpy(unit(x).transpose(2, 0, 1))[None] for x in pair]
    _, ours = structural_similarity_index_measure(*tensors, data_range=1.0, return_full_image=True)
    _, theirs = skimage.metrics.structural_similarity(
        *map(unit, pair), data_range=1, channel_axis=2, gaussian_weights=True, use_sample_covariance=False, full=True
    )
    inside = (slice(5, -5), slice(5, -5))
    np.testing.assert_allclose(ours[0].permute(1, 2, 0).numpy()[inside], theirs[inside], atol=1e-9)
    assert ours.mean().item() == pytest.approx(metrics.standard_ssim(*pair), abs=1e-5)


# ---- paper ---------------------------------------------------------------------------------------------------------


def grey(image):
    """What the released script measures: cv2.imread's BGR, converted as if it were RGB."""
    bgr = unit(image)[..., ::-1]
    return 0.2125 * bgr[..., 0] + 0.7154 * bgr[..., 1] + 0.0721 * bgr[..., 2]


def test_paper_grey_gives_blue_the_weight_of_red():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    assert metrics.paper_grey(colours)[0] == pytest.approx([0.0721, 0.7154, 0.2125], abs=1e-6)


def test_paper_grey_is_the_scripts_own_call(pair):
    from skimage.color import rgb2gray

    as_opencv_loads = (pair[0][..., ::-1] / 255.0).astype(np.float32)
    np.testing.assert_allclose(metrics.paper_grey(pair[0]), rgb2gray(as_opencv_loads), atol=1e-6)


def test_paper_ssim_is_its_definition(pair):
    values = ssim_map(*map(grey, pair), np.full((51, 51), 51**-2), unbiased=True)
    assert values.shape == (10, 21)
    assert metrics.paper_ssim(*pair) == pytest.approx(values.mean(), abs=1e-5)  # float32 as in the script


def test_paper_psnr_and_l1_are_their_formulas(pair):
    a, b = map(grey, pair)
    assert metrics.paper_psnr(*pair) == pytest.approx(-10 * np.log10(np.mean((a - b) ** 2)), abs=1e-4)
    assert metrics.paper_l1(*pair) == pytest.approx(np.abs(a - b).sum() / (a + b).sum(), rel=1e-5)


def test_paper_l1_of_black_images_is_zero():
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    assert metrics.paper_l1(black, black) == 0


# ---- both ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_equal_images_have_the_best_figures(pair, protocol):
    found = {name: measure(pair[0], pair[0]) for name, measure in metrics.PROTOCOLS[protocol].items()}
    assert found == {"psnr": float("inf"), "ssim": pytest.approx(1, abs=2e-5), "l1": 0}


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_bytes_and_floats_measure_the_same(pair, protocol):
    for measure in metrics.PROTOCOLS[protocol].values():
        assert measure(*pair) == pytest.approx(measure(*map(unit, pair)), rel=1e-6)


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_an_image_smaller_than_the_window_is_refused(protocol):
    window = metrics.SMALLEST_SIDE[protocol]
    small, enough = (np.zeros((80, side, 3), dtype=np.uint8) for side in (window - 1, window))
    measure = metrics.PROTOCOLS[protocol]["ssim"]
    assert measure(enough, enough) == pytest.approx(1)
    with pytest.raises(ValueError, match=f"{window - 1}x80 pixels is smaller than SSIM's window of {window}x{window}"):
        measure(small, small)


def test_shapes_that_differ_are_refused(pair):
    with pytest.raises(ValueError, match="must both have shape"):
        metrics.standard_l1(pair[0], pair[1][:-1])
    with pytest.raises(ValueError, match="must both have shape"):
        metrics.paper_l1(pair[0][..., 0], pair[1][..., 0])
