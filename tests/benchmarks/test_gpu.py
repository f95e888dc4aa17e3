"""``make gpu``: its parts fit into their time, its commands exist, and its steps keep their outcomes."""

import sys

import pytest
import torch

from benchmarks import cases, cuda_resources, gpu, operators, targets
from benchmarks.measure import STEP
from benchmarks.results import Result

ALL_PARTS = [*gpu.PARTS, *(f"{name}-tf32" for name in gpu.PARTS)]


@pytest.mark.parametrize("part", ALL_PARTS)
def test_every_part_is_done_in_four_minutes_and_what_is_timed_runs_alone(part):
    steps = [{"build": gpu.named("build")}, *gpu.steps_of(part)]
    assert sum(max(limit for limit, _ in together.values()) for together in steps) <= gpu.PART_LIMIT
    for together in steps:
        if len(together) > 1:
            kinds = {name.partition("-")[0] for name in together}
            assert kinds <= {"tests", "memcheck", "racecheck", "compile"}


def chosen(command):
    """The options and the cases of a command of benchmarks.operators."""
    arguments = operators.parser().parse_args(command[3:])
    return arguments, cases.select(operators.settings_of(arguments), arguments.suite, cases=arguments.case)


def commands(part):
    return {name: command for together in gpu.steps_of(part) for name, (_, command) in together.items()}


def test_every_step_is_in_a_part_and_knows_its_options(monkeypatch):
    from benchmarks.table5 import __main__ as table5

    assert {"build", *(name for part in gpu.PARTS for name in commands(part))} == set(gpu.COMMANDS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for command in (command for part in ALL_PARTS for command in commands(part).values()):
        if "benchmarks.operators" in command:
            arguments, found = chosen(command)
            assert set(found) == set(arguments.suite)
            names = {name for some in found.values() for case in some for name in case.alternatives}
            assert any((arguments.compile_only or "") in name for name in names)
        elif "benchmarks.table5" in command:
            assert table5.parse(command[3:]).device == "cuda"


def test_what_the_targets_need_is_measured_and_compiled_before():
    """Every target finds its rows, and every alternative that compiles has a step that compiles it."""
    compiled, rows = set(), []
    steps = {name: one for part in ("compile", "targets", "stage") for name, one in commands(part).items()}
    for arguments, found in map(chosen, steps.values()):
        for suite, case in ((suite, case) for suite, some in found.items() for case in some):
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


def test_steps_that_run_together_keep_their_outcomes(tmp_path, capsys):
    commands = {
        "good": (60, [sys.executable, "-c", "print('well')"]),
        "bad": (60, [sys.executable, "-c", "import sys; sys.exit('ill')"]),
        "slow": (1, [sys.executable, "-c", "import time; time.sleep(60)"]),
        "missing": (60, ["/nowhere/to/be/found"]),
    }
    outcomes = {name: outcome for name, (outcome, _) in gpu.run_together(commands, tmp_path).items()}
    assert outcomes == {
        "good": "ok",
        "bad": "failed (exit 1)",
        "slow": "out of time (1 s)",
        "missing": "not available: no /nowhere/to/be/found",
    }
    assert "--- good: ok\nwell\n" in capsys.readouterr().out
    assert (tmp_path / "bad.log").read_text() == "ill\n"


@pytest.mark.parametrize("part", ["tables5", "table5-float8"])
def test_an_unknown_part_is_named(part, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--part", part])
    assert "(did you mean 'table5'?); known are " in capsys.readouterr().err


def test_resource_report_is_read_per_source_and_architecture():
    kernel = """ptxas info    : Compiling entry function '{}' for '{}'
    {} bytes stack frame, {} bytes spill stores, {} bytes spill loads
ptxas info    : Used {} registers, used 0 barriers
"""
    one, other = ("[1/9] compile /a folder/csrc.a.b.cu.o\n", "[2/9] compile /a folder/csrc.a.c.cu.o\n")
    old = kernel.format("_Z1av", "sm_80", 0, 0, 0, 32) + kernel.format("_Z1bv", "sm_80", 8, 4, 4, 255)
    log = one + old + kernel.format("_Z1av", "sm_90", 0, 0, 0, 40) + other + kernel.format("_Z1cv", "sm_90", 8, 0, 0, 9)
    assert cuda_resources.summaries(log) == (
        [
            "csrc.a.b.cu sm_80: 2 kernels, at most 255 registers, 1 with a stack frame, 1 spill",
            "csrc.a.b.cu sm_90: 1 kernels, at most 40 registers, 0 with a stack frame, 0 spill",
            "csrc.a.c.cu sm_90: 1 kernels, at most 9 registers, 1 with a stack frame, 0 spill",
        ],
        ["_Z1bv"],
    )
