"""Rendered facades: the same everywhere, all different, and pictures rather than noise."""

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from msa_model.data.facades import render_facade


def digest(seeds, size):
    return hashlib.sha256(b"".join(render_facade(size, seed).tobytes() for seed in seeds)).hexdigest()


@pytest.mark.parametrize("size", [16, 17, 64, 100, 256, 384])
def test_shape_dtype_and_repetition(size):
    first = render_facade(size, 5)
    assert first.shape == (size, size, 3)
    assert first.dtype == np.uint8
    render_facade(size, 6)  # something in between that uses the same caches
    assert np.array_equal(first, render_facade(size, 5))


def test_the_same_on_a_processor_with_fewer_instructions_and_in_another_process():
    code = (
        "import hashlib; from msa_model.data.facades import render_facade;"
        "print(hashlib.sha256(b''.join(render_facade(96, seed).tobytes() for seed in range(12))).hexdigest())"
    )
    features = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4"
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": features, "PYTHONHASHSEED": "7", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == digest(range(12), 96), result.stderr


def test_seeds_differ_in_colour_light_and_content():
    small = np.stack([render_facade(64, seed) for seed in range(40)]).astype(float)
    assert len({picture.tobytes() for picture in small}) == 40
    means = small.mean(axis=(1, 2))
    assert means.std(axis=0).min() > 15  # colours vary between pictures
    assert small.std(axis=(1, 2, 3)).min() > 12  # none is flat
    assert 60 < means.mean() < 190  # neither black nor white on the whole
    differences = [np.abs(a - b).mean() for a, b in itertools.pairwise(small)]
    assert min(differences) > 15


def test_windows_repeat():
    """Along the rows of at least some pictures, the autocorrelation has a second peak: the distance between bays."""
    strengths = []
    for seed in range(24):
        grey = render_facade(128, seed).mean(axis=2)
        profile = grey.mean(axis=0) - grey.mean()
        trend = np.polyval(np.polyfit(np.arange(128), profile, 2), np.arange(128))
        profile -= trend
        spectrum = np.abs(np.fft.rfft(profile))[2:24] ** 2
        strengths.append(spectrum.max() / spectrum.sum())
    assert np.mean(strengths) > 0.3  # 22 frequencies: noise has its strongest at about 0.17
    noise = np.random.default_rng(0).normal(size=(24, 128))
    spectra = np.abs(np.fft.rfft(noise))[:, 2:24] ** 2
    assert np.mean(strengths) > 1.5 * np.mean(spectra.max(1) / spectra.sum(1))


def test_edges_are_not_black():
    """The camera never looks past the canvas, and every part of it is painted."""
    for seed in range(60):
        picture = render_facade(48, seed)
        black = (picture.max(axis=2) < 4).mean()
        assert black < 0.02, seed


@pytest.mark.parametrize(("size", "seed"), [(15, 0), (64, -1)])
def test_impossible_sizes_and_seeds(size, seed):
    with pytest.raises(ValueError, match=r"^msa_model\.render_facade: size must be 16 or more and seed 0 or more"):
        render_facade(size, seed)
