"""``make gpu``: its parts fit into their time, its commands exist, and its steps keep their outcomes."""

import sys

import pytest
import torch

from benchmarks import cases, cuda_resources, gpu, operators, targets
from benchmarks.measure import BOTH, FORWARD, STEP
from benchmarks.results import Result


@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_is_done_in_four_minutes(part):
    assert sum(max(gpu.STEPS[name][0] for name in together) for together in gpu.steps_of([part])) <= gpu.PART_LIMIT


def test_only_what_is_not_timed_runs_at_the_same_time():
    for together in gpu.steps_of(gpu.PARTS):
        if len(together) > 1:
            assert [
                name for name in together if name.partition("-")[0] not in ("tests", "memcheck", "racecheck", "compile")
            ] == []


def chosen(step):
    """The options and the cases of a step's command."""
    arguments = operators.parser().parse_args(gpu.STEPS[step][1][3:])
    return arguments, cases.select(operators.settings_of(arguments), arguments.suite, cases=arguments.case)


def is_operators(step):
    return "benchmarks.operators" in gpu.STEPS[step][1]


def test_every_step_is_in_a_part_and_knows_its_options(monkeypatch):
    from benchmarks.table5 import __main__ as table5

    assert {name for together in gpu.steps_of(gpu.PARTS) for name in together} == set(gpu.STEPS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for step, (_, command) in gpu.STEPS.items():
        if is_operators(step):
            arguments, found = chosen(step)
            assert set(found) == set(arguments.suite)
            names = {name for some in found.values() for case in some for name in case.alternatives}
            assert any((arguments.compile_only or "") in name for name in names)
        elif "benchmarks.table5" in command:
            assert table5.parse(command[3:]).device == "cuda"


@pytest.mark.parametrize("end", ["", "-tf32"])
def test_what_the_targets_need_is_measured_and_compiled_before(end):
    """Every target finds its rows, and every alternative that compiles has a step that compiles it."""
    compiled, rows = set(), []
    for step in (f"{name}{end}" for part in ("compile", "targets", "stage", "training") for name in _steps(part)):
        if not is_operators(step) or step.startswith("networks"):
            continue
        arguments, found = chosen(step)
        for suite, some in found.items():
            for case in some:
                wanted = [name for name in case.alternatives if (arguments.compile_only or "") in name]
                if arguments.compile_only:
                    compiled |= {(suite, case.name, name) for name in wanted}
                    continue
                columns = {"suite": suite, "case": case.name, "tflops": 1.0, "extra_mib": 1.0, "ms": 1.0, "ratio": 1.0}
                for which in case.passes:
                    rows += [columns | dict(case.columns) | {"alternative": n, "pass": which} for n in wanted]
    slow = {(row["suite"], row["case"], row["alternative"]) for row in rows}
    assert {key for key in slow if "compiled" in key[2] or "Flex" in key[2]} == compiled
    assert len(compiled) == 16 + 2 + 2
    sums = [row | {"suite": "layers"} for row in cases.layers.sums([row for row in rows if row["suite"] == "layers"])]
    steps = [
        {"suite": "table5", "case": case, "alternative": name, "pass": STEP, "ms": 1.0}
        for case, name in (("ours", "fused"), ("pconv", "reference"))
    ]
    facts = {"device": "a GPU", "device_kind": "cuda", "precision": "bfloat16", "roofs": {"tflops": 1.0}}
    facts |= {"quick": False, "complete": True}
    found = targets.rows([Result("a", facts, rows + sums + steps)])
    missing = [row["what"] for row in found if row["precision"] == "bfloat16" and "value" not in row]
    assert all("half holes" in what for what in missing)  # which is a part of its own, attention
    assert {row["pass"] for row in sums} == {FORWARD, BOTH}


def _steps(part):
    return [name for together in gpu.steps_of([part])[1:] for name in together]


def test_steps_that_run_together_keep_their_outcomes(tmp_path, monkeypatch, capsys):
    commands = {
        "good": (60, [sys.executable, "-c", "print('well')"]),
        "bad": (60, [sys.executable, "-c", "import sys; sys.exit('ill')"]),
        "slow": (1, [sys.executable, "-c", "import time; time.sleep(60)"]),
        "missing": (60, ["/nowhere/to/be/found"]),
    }
    monkeypatch.setattr(gpu, "STEPS", commands)
    outcomes = {name: outcome for name, (outcome, _) in gpu.run_together(tuple(commands), tmp_path).items()}
    assert outcomes == {
        "good": "ok",
        "bad": "failed (exit 1)",
        "slow": "out of time (1 s)",
        "missing": "not available: no /nowhere/to/be/found",
    }
    assert "--- good: ok\nwell\n" in capsys.readouterr().out
    assert (tmp_path / "bad.log").read_text() == "ill\n"


@pytest.mark.parametrize("option", ["--only", "--part"])
def test_unknown_steps_and_parts_are_named(option, capsys):
    with pytest.raises(SystemExit):
        gpu.main([option, "tables5"])
    assert "(did you mean 'table5'?); known are " in capsys.readouterr().err


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
