"""How the Triton kernels of attention cut their scratch, and that the cuts do not show in the results."""

from itertools import pairwise

import pytest
import torch

from msa_ops import hole_attention_map

from ..support.internals import MISSING, triton
from .test_triton import DEVICE, assert_like_the_reference, operands

pytestmark = pytest.mark.skipif(MISSING["triton"] is not None, reason=f"no Triton: {MISSING['triton']}")
planning = triton("attention_planning") if MISSING["triton"] is None else None

#: What is cut -> a shape of which that is true, and the columns of scratch that a tile of 32 float32 queries and its
#: halo on both sides then have (small_plans).
SHAPES = {"queries": ((11, 7), 128), "queries and keys": ((6, 31), 256)}


def plan_of(shape, radius=1, samples=1, size=4, copies=2):
    layout = planning.Layout.of(torch.Size((samples, 1, *shape)), radius)
    return layout, planning.plan(layout, copies * size, size * copies // 2, planning.scratch_bytes(samples, size))


@pytest.fixture
def small(request, monkeypatch, small_plans):
    """A shape that the budget cuts as its name says, forward and backward."""
    shape, columns = SHAPES[request.param]
    budget_of_forward = (3 + 1) * 32 * columns * 4
    monkeypatch.setattr(planning, "SCRATCH_BYTES", {4: budget_of_forward})
    monkeypatch.setattr(planning, "SCRATCH_BYTES_PER_SAMPLE", 0)
    for budget, copies in ((1.0, 2), (planning.BACKWARD_SCRATCH, 4)):
        layout = planning.Layout.of(torch.Size((1, 1, *shape)), 1)
        plan = planning.plan(
            layout, copies * 4, copies * 2, int(budget * budget_of_forward), 1.6 if copies == 4 else 1.0
        )
        assert len(plan.bands) > 1
        assert (len(plan.bands[0]) > 1) == (request.param != "queries")
    return shape


@pytest.mark.parametrize("small", SHAPES, indirect=True)
def test_cut_scratch_gives_the_same(small):
    *maps, is_query, is_key = operands(*small, c=3, cv=4, n=1)
    is_query &= is_query.flatten().cumsum(0).view_as(is_query) <= planning.ROWS + 8
    assert is_query.sum() > planning.ROWS  # so that more than one band has queries, and not many
    assert_like_the_reference(maps, (is_query, is_key), scale=1.5, radius=1, renormalize=True)


@pytest.mark.parametrize("small", SHAPES, indirect=True)
def test_cut_scratch_gives_the_same_map(small):
    x, mask = torch.randn(1, 3, *small, device=DEVICE), (torch.rand(1, 1, *small) < 0.6).to(DEVICE)
    maps = [hole_attention_map(x, mask, backend=backend) for backend in ("triton", "reference")]
    assert (maps[0] == maps[1]).float().mean() > 0.99


@pytest.mark.parametrize("dtype_bytes", [2, 4])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 64), (128, 128), (256, 256), (40, 1000), (512, 512)], ids=str)
@pytest.mark.parametrize("samples", [1, 6])
@pytest.mark.parametrize("radius", [0, 1])
def test_plans_cover_everything_once_within_the_budget(dtype_bytes, shape, samples, radius):
    layout, plan = plan_of(shape, radius, samples, dtype_bytes)
    budget = planning.scratch_bytes(samples, dtype_bytes)
    scratch = (plan.scratch_rows + plan.tiles * planning.ROWS) * plan.pitch * dtype_bytes
    assert scratch <= budget
    assert [step[0].first_tile for step in plan.bands] == list(range(0, layout.tiles, plan.tiles))
    assert sum(band[0].tiles for band in plan.bands) == layout.tiles
    for band in plan.bands:
        covered = []
        for step in band:
            assert step.first_column >= 0
            assert step.first_column + plan.pitch <= layout.length
            assert 0 < step.tiles <= plan.tiles
            covered.append((step.first_column + step.begin, step.first_column + step.end))
            if len(band) > 1:  # every shift of a pixel lies within
                assert step.begin >= layout.halo
                assert step.end + layout.halo <= plan.pitch
        assert covered[0][0] <= layout.halo
        assert covered[-1][1] >= layout.halo + layout.h * layout.width
        assert all(a[1] == b[0] for a, b in pairwise(covered))
    assert len(plan.bands) == 1 or plan.halo_tiles * planning.ROWS >= min(
        radius * (shape[1] + 1), layout.size, (layout.tiles - 1) * planning.ROWS
    )


def test_common_sizes_take_few_steps():
    for shape, samples, most in (((64, 64), 1, 2), ((64, 64), 6, 8), ((32, 32), 6, 1)):
        _, plan = plan_of(shape, samples=samples, size=2)
        assert len(plan.bands) * len(plan.bands[0]) <= most, (shape, samples)


def test_steps_divide_what_they_walk_over():
    """Sums over queries step through whole tiles, and blocks of pixels (128 in the map's kernel) through whole rows of
    scratch."""
    for launch in planning.LAUNCH.values():
        assert planning.ROWS % launch["columns"]["DEPTH"] == 0
        blocks = [128, *(parameters["BLOCK"] for parameters in launch.values() if "BLOCK" in parameters)]
        assert not any(planning.COLUMNS % block for block in blocks)
