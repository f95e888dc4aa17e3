"""Means over images of composites, and networks as fills."""

import numpy as np
import pytest
from PIL import Image

import msa_model
from msa_model.evaluate import metrics, paper_figures, report
from msa_model.evaluate.fills import FILLS
from msa_model.evaluate.measure import evaluate_bin, network_fill

SIZE = 64
BIN = (0.1, 0.2)


def noise(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def hole(rows, size=SIZE):
    """The top rows are hole."""
    valid = np.ones((size, size), dtype=bool)
    valid[:rows] = False
    return valid


def test_means_over_images_of_the_composites():
    pairs = [(noise(i), hole(7 + i)) for i in range(3)]
    seen = []

    def grey(image, valid):
        seen.append((image.copy(), valid))
        return np.full_like(image, 100)  # in valid pixels too: they must not count

    rows = evaluate_bin({"grey": grey, "mean-colour": FILLS["mean-colour"]}, BIN, pairs)
    assert [(row.method, row.low, row.high, row.images) for row in rows] == [
        ("grey", *BIN, 3),
        ("mean-colour", *BIN, 3),
    ]
    composites = [np.where(valid[..., None], truth, np.uint8(100)) for truth, valid in pairs]
    for protocol, measures in metrics.PROTOCOLS.items():
        for name, measure in measures.items():
            wanted = np.mean([measure(c, truth) for c, (truth, _) in zip(composites, pairs, strict=True)])
            assert rows[0].figures[protocol][name] == pytest.approx(wanted, rel=1e-12)
    assert all((image[~valid] == 0).all() for image, valid in seen)  # no method gets the truth


def test_results_equal_to_the_truth_are_counted_and_left_out_of_the_psnr():
    flat = np.full((SIZE, SIZE, 3), 90, dtype=np.uint8)
    (row,) = evaluate_bin(
        {"mean-colour": FILLS["mean-colour"]}, BIN, [(flat, hole(8)), (noise(), hole(8))], protocols=["standard"]
    )
    (alone,) = evaluate_bin({"mean-colour": FILLS["mean-colour"]}, BIN, [(noise(), hole(8))], protocols=["standard"])
    assert row.equal == 1
    assert row.figures["standard"]["psnr"] == alone.figures["standard"]["psnr"]
    assert row.figures["standard"]["l1"] == pytest.approx(alone.figures["standard"]["l1"] / 2)
    (none_left,) = evaluate_bin({"mean-colour": FILLS["mean-colour"]}, BIN, [(flat, hole(8))])
    assert none_left.figures["paper"]["psnr"] is None
    assert "equal" in report.table([none_left], ["standard", "paper"])


def test_no_pair_gives_no_row():
    assert evaluate_bin({"mean-colour": FILLS["mean-colour"]}, BIN, []) == []


def test_a_network_fill_equals_inpaint(small_generator):
    image, valid = noise(), hole(20)
    filled = network_fill(small_generator)(np.where(valid[..., None], image, np.uint8(0)), valid)
    mask = Image.fromarray(~valid)
    assert np.array_equal(filled, np.asarray(msa_model.inpaint(small_generator, Image.fromarray(image), mask)))


def test_a_prediction_that_is_not_finite_is_refused(one_colour):
    with pytest.raises(FloatingPointError, match="not finite"):
        network_fill(one_colour((0.5, float("nan"), 0.5)))(noise(), hole(8))


def test_table_4_as_printed():
    """Spot checks, one per data set and metric."""
    assert paper_figures.table_4("paris", 0.1, 0.2)["Ours"] == {"ssim": 0.9327, "psnr": 31.08, "l1": 0.00890}
    assert paper_figures.table_4("celeba", 0.3, 0.4)["PConv"] == {"ssim": 0.8533, "psnr": 26.41, "l1": 0.02277}
    assert paper_figures.table_4("places2", 0.5, 0.6)["EdgeConnect"] == {"ssim": 0.6352, "psnr": 20.18, "l1": 0.05465}
    assert list(paper_figures.table_4("places2", 0.5, 0.6)) == ["PIC", "PConv", "EdgeConnect", "Ours"]
    assert paper_figures.table_4("paris", 0.2, 0.3) == paper_figures.table_4("synthetic", 0.1, 0.2) == {}
