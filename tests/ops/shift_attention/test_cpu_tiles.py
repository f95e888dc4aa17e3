"""The CPU kernels' memory is linear in the pixels: what they cut to stay within their budget, and that they do.

The budget is fixed (16 MiB of images of weights), so shapes stand for the ways of cutting: `ROWS` cuts queries and
keys, `ONE_ROW` also the shifts, into those within a map row and those to its neighbours; a huge radius cuts further.
"""

import pytest
import torch
from torch.profiler import profile

from msa_ops import hole_attention, hole_attention_map, shift_attention

from ..support.internals import attention_reference as reference

ROWS, ONE_ROW = (40, 400), (3, 1500)


def segments(size):
    """A mask of which a seventh is set, in pieces of ten pixels."""
    return (torch.rand(1, 1, size[0], size[1] // 10) < 1 / 7).repeat_interleave(10, 3)


def relative(ours, wanted):
    return ((ours.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-300)).item()


@pytest.mark.parametrize(("size", "renormalize"), [(ROWS, True), (ONE_ROW, False), (ONE_ROW, True)], ids=str)
def test_cut_tiles_give_what_the_reference_gives(size, renormalize):
    x = torch.randn(1, 2, *size)
    valid = segments(size)
    probe = torch.randn_like(x)
    results = []
    for backend in ("reference", "cpu"):
        leaf = x.clone().requires_grad_()
        output = hole_attention(leaf, valid, scale=3.0, renormalize=renormalize, backend=backend)
        results.append([output.detach(), *torch.autograd.grad(output, leaf, probe)])
    for wanted, ours in zip(*results, strict=True):
        assert relative(ours, wanted) < 1e-5


def sparse_shifted_weights(scores, rows, columns, radius):
    """s' between the pixels `rows` and `columns` (x coordinates of a map of one row), from their softmax `scores`: all
    pairs of pairs that lie the same shift apart."""
    down, right = rows[None, :] - rows[:, None], columns[None, :] - columns[:, None]
    same = (down[:, None, :, None] == right[None, :, None, :]) & (down.abs() <= radius)[:, None, :, None]
    return torch.einsum("pqrs,rs->pq", same.to(scores.dtype), scores)


@pytest.mark.parametrize(
    ("width", "radius", "dtype", "renormalize"),
    [(30000, 25000, torch.float64, True), (60000, 59999, torch.float32, False)],
)
def test_shifts_are_cut_where_the_radius_is_too_large(width, radius, dtype, renormalize):
    at = torch.arange(7, width, width // 100)  # equally far apart, so that many pairs are shifts of one another
    rows, columns = at[::3], at[torch.arange(100) % 3 > 0]
    query, key, value = (torch.randn(1, 3, 1, width, dtype=dtype).requires_grad_() for _ in range(3))
    is_query, is_key = torch.zeros(2, 1, 1, 1, width, dtype=torch.bool)
    is_query[..., rows], is_key[..., columns] = True, True
    leaves = (query, key, value)
    options = dict(scale=1.5, radius=radius)
    output = shift_attention(*leaves, is_query, is_key, renormalize=renormalize, backend="cpu", **options)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    scores = 1.5 * wide[0][0, :, 0, rows].T @ wide[1][0, :, 0, columns]
    weights = sparse_shifted_weights(scores.softmax(1), rows, columns, radius)
    total = weights.sum(1, keepdim=True) if renormalize else 1.0
    wanted = (weights / total @ wide[2][0, :, 0, columns].T).T
    probe = torch.randn_like(wanted)
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert relative(output[0, :, 0, rows], wanted) < bound
    ours = torch.autograd.grad(output[0, :, 0, rows], leaves, probe.to(dtype))
    for mine, theirs in zip(ours, torch.autograd.grad(wanted, wide, probe), strict=True):
        assert relative(mine, theirs) < bound
    found = torch.ops.msa_ops.shift_attention_argmax(*(t.detach() for t in leaves[:2]), is_query, is_key, 1.5, radius)
    assert (found >= 0).sum() == len(rows)
    chosen = weights[torch.arange(len(rows)), torch.searchsorted(columns, found[0, 0, rows])]
    torch.testing.assert_close(chosen, weights.max(1).values, rtol=10 * bound, atol=0)


@pytest.mark.parametrize("radius", [0, 1])
def test_map_of_cut_tiles_points_at_the_largest_weight(radius):
    x, valid = torch.randn(1, 3, *ONE_ROW), segments(ONE_ROW)
    ours = hole_attention_map(x, valid, scale=4.0, radius=radius)
    unit = x / x.norm(dim=1, keepdim=True)
    wanted = reference.shift_attention_argmax(unit, unit, ~valid, valid, 4.0, radius)
    assert torch.equal(ours >= 0, wanted >= 0)
    assert (ours == wanted).float().mean() > 0.999  # but for ties within rounding


def peak(run):
    with profile(profile_memory=True) as profiler:
        result = run()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    del result
    return most / 2**20


@pytest.mark.parametrize("size", [ROWS, ONE_ROW], ids=str)
def test_memory_stays_within_the_budget_where_one_map_row_does_not_fit(size):
    """Images, scores and, where shifts are cut, their sums: 16 MiB each, whatever the map. (A map row of queries with
    its halo against all keys would be 76 and 120 MiB here.)"""
    x, valid = torch.randn(1, 2, *size), torch.ones(1, 1, *size, dtype=torch.bool)
    valid[..., : size[1] * 17 // 20] = False
    assert peak(lambda: hole_attention(x, valid)) < 64
    assert peak(lambda: hole_attention_map(x, valid)) < 64
    leaf = x.requires_grad_()
    output = hole_attention(leaf, valid)
    assert peak(lambda: torch.autograd.grad(output.sum(), leaf)) < 64


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_samples_side_by_side_are_those_one_by_one(mode):
    """With two threads small samples run in one each; the caller's inference mode does not get in their way."""
    x = torch.randn(5, 4, 9, 11)
    valid = torch.stack([torch.rand(1, 9, 11) > share for share in (0.5, 0.1, 0.9, 0.4, 0.6)])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with mode():
            together = hole_attention(x, valid)
            found = hole_attention_map(x, valid)
            alone = [hole_attention(x[i : i + 1], valid[i : i + 1]) for i in range(5)]
            maps = [hole_attention_map(x[i : i + 1], valid[i : i + 1]) for i in range(5)]
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(together, torch.cat(alone))
    assert torch.equal(found, torch.cat(maps))


@pytest.mark.parametrize("shape", [(2, 0, 5, 6), (2, 3, 0, 6), (0, 3, 5, 6)], ids=str)
def test_nothing_to_attend_to(shape):
    x = torch.randn(shape).requires_grad_()
    is_query, is_key = torch.rand(2, shape[0], 1, *shape[2:]) > 0.5
    output = shift_attention(x, x, x, is_query, is_key, radius=1, backend="cpu")
    output.sum().backward()
    assert output.shape == x.grad.shape == shape
