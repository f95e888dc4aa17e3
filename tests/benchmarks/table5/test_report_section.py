"""The section of a result of Table 5: its cells are the result's figures, its notes compare them with the paper's."""

import pytest

from benchmarks.results import Result
from benchmarks.table5 import report


def row(case, alternative, ms, gflop):
    columns = {"suite": "table5", "case": case, "alternative": alternative, "pass": "step", "gflop": gflop}
    columns |= {"parameters": 25_784_276, "extra_mib": 512.5, "tflops": 0.25, "roof_share": 0.5}
    times = {"ms": ms, "lower_ms": ms - 1, "upper_ms": ms + 1, "rounds": 5}
    return columns | times | {"ratio_reference": ms / 200, "ratio_fused": ms / 160}


@pytest.fixture
def result():
    facts = {"device": "A CPU", "torch": "2.13", "threads": 2, "commit": "abc", "command": "python -m x"}
    facts |= {"complete": True, "quick": False, "size": 256, "batch": 6, "hole": [0.2, 0.3], "precision": "float32"}
    unavailable = {"unavailable": "out of memory: 3.0 GiB wanted"}
    return Result(
        "table5-cpu",
        facts | {"roofs": {"tflops": 0.5, "gbytes_per_s": 20.0}, "loader_workers": 2},
        [
            row("pic", "PyTorch", 100.0, 138.0),
            row("pconv", "reference", 150.0, 180.0),
            row("pconv", "fused", 90.0, 160.0),
            {"suite": "table5", "case": "pconv", "alternative": "fused, compiled", "pass": "step"} | unavailable,
            row("ours", "reference", 200.0, 240.0),
            row("ours", "fused", 160.0, 200.0),
            {"suite": "loader", "case": "facades, brush", "images_per_s": 80.0},
        ],
    )


def cells(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_cells_are_the_figures_of_the_rows_and_notes_compare_with_the_paper(result):
    text = report.section(result)
    shown = cells(text)
    assert shown[0] == report.HEADER
    rest = ["0.25", "0.5", "512.5", "25.78"]
    assert shown[2:] == [
        ["PIC", "PyTorch", "100 (99-101)", "0.5", "0.625", "0.09333 (6.3)", "138", *rest],
        ["PConv", "reference", "150 (149-151)", "0.75", "0.9375", "0.4852 (32.75)", "180", *rest],
        ["", "fused", "90 (89-91)", "0.45", "0.5625", "", "160", *rest],
        ["", "fused, compiled", "not available", *[""] * 8],
        ["Ours", "reference", "200 (199-201)", "1", "1.25", "1 (67.5)", "240", *rest],
        ["", "fused", "160 (159-161)", "0.8", "1", "", "200", *rest],
    ]
    for words in (
        "## Table 5 on A CPU, float32\n\n`python -m x` at commit abc; torch 2.13, 2 threads. Full training steps at",
        "PConv, fused, compiled, is not available: out of memory: 3.0 GiB wanted.",
        "6.3 ms for PIC cannot be a whole training step at this size: 138 GFLOP in that time are 22 TFLOP/s",
        # 0.75 of the time for 180/240 of the work; the paper: 32.75/67.5 for 201/288.
        "PConv: 0.75 of the time of Ours on reference operators, 0.75 of its work at 1.00 times its rate. ",
        "The paper: 0.49 of the time, 0.70 of the work, so 1.44 times the rate.",
        "Ours takes 240 GFLOP per image on reference operators; its released code, 288 at 256×256, also",
        "PConv, time over that on reference operators: fused 0.60.",
        "Loader, 2 workers, ms per image beside the step: 12.5 (facades, brush).",
    ):
        assert words in text


def test_an_incomplete_or_reduced_run_says_so_and_shows_what_there_is(result):
    result.facts.update(complete=False, quick=True)
    timed = ("ms", "lower_ms", "upper_ms", "tflops", "roof_share", "ratio_reference", "ratio_fused", "rounds")
    rows = [{name: value for name, value in row.items() if name not in timed} for row in result.rows[:-1]]
    text = report.section(Result(result.name, result.facts, rows))
    assert "Incomplete: the run was interrupted. Reduced run (--quick)" in text
    assert cells(text)[2] == ["PIC", "PyTorch", "", "", "", "0.09333 (6.3)", "138", "", "", "512.5", "25.78"]
    assert "time of Ours" not in text
