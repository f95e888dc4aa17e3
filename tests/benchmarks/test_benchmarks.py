"""The measuring itself: the harness, the cases, the report, the resource reader."""

import json
import time

import pytest
import torch

from benchmarks import cuda_resources, gpu, harness, operators, report
from benchmarks.layers import layer_cases

CPU = torch.device("cpu")


def test_interleave_takes_turns_and_finds_a_known_ratio():
    order = []

    def sleeper(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)

        return run

    timing = harness.interleave({"short": sleeper("short", 0.01), "long": sleeper("long", 0.04)}, CPU, rounds=4)
    assert order == ["short", "long"] * 6
    assert 3.0 < timing["long"].median / timing["short"].median < 4.5
    assert timing["long"].lower <= timing["long"].median <= timing["long"].upper


def test_peak_counts_what_is_held_at_once():
    def chain():
        x = torch.ones(2**18)  # 1 MiB
        for _ in range(5):
            x = x + 1
        return x

    assert 2 * 2**20 <= harness.peak_extra_bytes(chain, CPU) < 3 * 2**20


def test_gate_refuses_a_result_that_is_further_off_than_plain_pytorch():
    exact = torch.linspace(-1, 1, 100, dtype=torch.float64)
    plain = exact.float()
    assert harness.agrees(plain.clone(), plain, exact)
    assert not harness.agrees(plain + 1e-4, plain, exact)
    assert not harness.agrees(torch.full_like(plain, torch.nan), plain, exact)


def test_cases_are_the_16_layers_and_their_contestants_agree():
    names = []
    for case in layer_cases(256, 1, CPU, torch.float32, (0.2, 0.3)):
        names.append(case.name)
        if case.shape.startswith(("1024", "768", "512", "384", "256")):
            continue  # wide layers: the same code, many seconds
        exact, plain = case.exact(), case.plain()
        for name in ("ours", "channel masks"):
            assert harness.agrees(case.contestants[name]().detach(), plain.detach(), exact.detach()), (case.name, name)
            gradients = torch.autograd.grad(case.contestants[name]().sum(), case.leaves[name])
            assert all(torch.isfinite(g).all() for g in gradients)
    assert names == [f"Encode_{i}" for i in range(1, 9)] + [f"Decode_{i}" for i in range(8, 0, -1)]


def example_layers(passed=True):
    row = {
        "layer": "Encode_1",
        "shape": "3×8×8 → 64, 7×7/2",
        "passed": {"ours": passed},
        "forward_ms": {"bare conv": 2.0, "ours": 1.5, "channel masks": 6.0},
        "forward_backward_ms": {"bare conv": 4.0, "ours": 5.0, "channel masks": 11.0},
        "input_bytes": 1000,
        "extra_bytes": {"bare conv": 100, "ours": 1100},
    }
    return {"size": 8, "batch": 1, "hole": (0.2, 0.3), "rows": [row], "sum": operators._sums([row])}


def test_table_shows_what_the_json_holds():
    suite = json.loads(json.dumps(example_layers()))
    lines = report.layer_table(suite).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[3:8]] == ["0.75", "1.25", "4.00", "2.20", "1.00"]
    assert "**0.75** | **1.25** | **4.00** | **2.20**" in lines[3]
    assert suite["sum"]["forward"]["ours / bare conv"] == 0.75


def test_numbers_of_a_wrong_operator_are_not_reported():
    suite = example_layers(passed=False)
    assert suite["sum"] == {"failed": ["Encode_1"]}
    assert "not reported" in report.layer_table(suite).splitlines()[-1]


def test_readme_check_sees_a_stale_table(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "README", readme)
    assert report.main(["--check"]) == 1
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")


def test_unknown_suite_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        operators.main(["--suite", "unknown"])
    assert "layers" in capsys.readouterr().err


def test_resource_report_is_read_per_kernel():
    log = """ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
ptxas info    : Compiling entry function '_Z1bv' for 'sm_80'
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers"""
    assert cuda_resources.kernels(log) == [
        {"name": "_Z1av", "registers": 32, "stack": 0, "spill": 0},
        {"name": "_Z1bv", "registers": 255, "stack": 8, "spill": 8},
    ]


def test_gpu_steps_fit_the_time_and_unknown_ones_are_named(capsys):
    apart = {name: limit for name, (limit, _) in gpu.STEPS.items() if name in gpu.APART}
    assert sum(limit for name, (limit, _) in gpu.STEPS.items() if name not in apart) <= 9 * 60
    assert gpu.STEPS["build"][0] + sum(apart.values()) <= 9 * 60
    with pytest.raises(SystemExit):
        gpu.main(["--only", "unknown"])
    assert "known are build, tests" in capsys.readouterr().err
