"""The order of the images."""

import itertools

import numpy as np
import pytest

from msa_model import data as d


def test_an_epoch_takes_every_image_once_and_epochs_differ():
    sampler = d.StepSampler(24, 4, seed=3, steps=18)
    assert len(sampler) == 18
    batches = list(sampler)
    epochs = [list(itertools.chain(*batches[6 * e : 6 * e + 6])) for e in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(index for index, _ in epoch) == list(range(24))
        assert {draw for _, draw in epoch} == {number}
    orders = {
        tuple(index for index, _ in epoch) for epoch in [*epochs, list(itertools.chain(*d.StepSampler(24, 4, steps=6)))]
    }
    assert len(orders) == 4  # another order each epoch, and with another seed


def test_images_that_do_not_fill_a_batch_are_left_out_of_the_epoch():
    batches = list(d.StepSampler(11, 4, steps=400))
    assert all(len({index for index, _ in batches[i] + batches[i + 1]}) == 8 for i in range(0, 400, 2))
    counts = np.bincount([index for index, _ in itertools.chain(*batches)], minlength=11)
    assert counts.min() > 110  # of 200 epochs, 8/11 each


@pytest.mark.parametrize("start", [0, 1, 5, 6, 17, 1000])
def test_resuming_goes_on_with_the_same_batches(start):
    whole = d.StepSampler(25, 4, seed=8)  # endless
    wanted = list(itertools.islice(whole, start, start + 9))
    assert list(d.StepSampler(25, 4, seed=8, start_step=start, steps=start + 9)) == wanted
    with pytest.raises(TypeError):
        len(whole)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_make_the_batch_of_one_process(world):
    ranks = [d.StepSampler(50, 4, 2, 3, 20, rank, world) for rank in range(world)]
    one = d.StepSampler(50, 4 * world, 2, 3, 20)
    assert len(one) == 17
    for parts, whole in zip(zip(*ranks, strict=True), one, strict=True):
        assert list(itertools.chain(*parts)) == whole
