"""The measuring itself: the harness, the gate, the steps of `make gpu`, the resource reader."""

import resource
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import cuda_resources, gate, gpu, harness
from benchmarks.names import unknown
from benchmarks.precision import PRECISIONS
from msa_model.commands.common import is_out_of_memory
from msa_ops import shift_attention

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


def test_rounds_end_early_when_time_is_over():
    calls = []
    harness.interleave({"a": lambda: calls.append(1)}, CPU, rounds=50, warmup=1, limit=0.0)
    assert len(calls) == 4


def test_peak_counts_what_is_held_at_once():
    def chain():
        x = torch.ones(2**18)  # 1 MiB
        for _ in range(5):
            x = x + 1
        return x

    assert 2 * 2**20 <= harness.peak_extra_bytes(chain, CPU) < 3 * 2**20


def test_peak_counts_the_scratch_of_compiled_kernels():
    x = torch.randn(1, 1, 32, 32)
    mask = torch.rand(x.shape) > 0.25
    peak = harness.peak_extra_bytes(lambda: shift_attention(x, x, x, ~mask, mask, radius=1), CPU)
    assert peak > 10 * (4 * x.numel() * 4)  # its results: the output and three statistics


def test_a_commit_is_dirty_by_its_code_and_not_by_what_benchmarks_write(tmp_path, monkeypatch):
    monkeypatch.delenv("MSA_COMMIT", raising=False)

    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    files = [tmp_path / name for name in ("code.py", "README.md", "docs/plot.png", "benchmarks/results/a.json")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=b", "commit", "-m", "c")
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    clean = harness.environment(CPU)["commit"]
    for file in files[1:]:
        file.write_text("after")
    assert harness.environment(CPU)["commit"] == clean
    assert len(clean) == 12
    files[0].write_text("after")
    assert harness.environment(CPU)["commit"] == f"{clean}-dirty"


def test_gate_refuses_a_result_that_is_further_off_than_plain_pytorch():
    exact = torch.linspace(-1, 1, 100, dtype=torch.float64)
    plain = exact.float()
    assert gate.agrees(plain.clone(), plain, exact)
    assert not gate.agrees(plain + 1e-4, plain, exact)
    assert not gate.agrees(torch.full_like(plain, torch.nan), plain, exact)


def test_a_first_call_that_takes_too_long_is_refused():
    begin = time.monotonic()
    assert gate.refusal(lambda: time.sleep(5), lambda _: True, 0.1, CPU) == "not ready after 0 s"
    assert time.monotonic() - begin < 2
    assert gate.refusal(lambda: 3, lambda result: result == 3, 1.0, CPU) is None
    assert gate.refusal(lambda: 3, lambda result: result == 4, 1.0, CPU) == gate.DIFFERS


def test_the_reason_is_the_root_of_what_the_compiler_wraps():
    def run():
        try:
            raise RuntimeError("raised exception NotImplementedError('No backward on CPU. Please …')")
        except RuntimeError as error:
            raise ValueError("Observed exception\n  Explanation: …") from error

    assert gate.refusal(run, lambda _: True, 10, CPU) == "No backward on CPU"
    assert gate.reason(KeyError()) == "KeyError"
    assert gate.reason(MemoryError()) == gate.OUT_OF_MEMORY
    assert len(gate.reason(RuntimeError("word " * 100))) <= 100


def test_memory_that_is_not_there_is_refused_instead_of_promised():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with gate.memory_limit(CPU, share=0.05), pytest.raises(RuntimeError) as raised:
        torch.empty(int(0.5 * gate.free_memory(CPU)), dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_tf32_is_on_in_its_precision_alone():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    for name, precision in PRECISIONS.items():
        before = [switch.allow_tf32 for switch in switches]
        with precision.active():
            assert [switch.allow_tf32 for switch in switches] == [name == "tf32"] * 2
        assert [switch.allow_tf32 for switch in switches] == before


def test_an_unknown_name_is_met_with_the_nearest_and_all_the_others():
    assert unknown("suite", "layer", ["layers", "attention"]) == (
        "unknown suite 'layer' (did you mean 'layers'?); known are layers, attention"
    )
    assert unknown("suite", "xyz", ["layers", "attention"]) == "unknown suite 'xyz'; known are layers, attention"


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


def test_the_commit_can_be_named_where_there_is_no_history(monkeypatch):
    monkeypatch.setenv("MSA_COMMIT", "abc123")
    assert harness.environment(CPU)["commit"] == "abc123"


@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_of_make_gpu_is_done_in_nine_minutes(part):
    assert sum(max(gpu.STEPS[name][0] for name in together) for together in gpu.steps_of(part)) <= 9 * 60


def test_only_what_is_not_timed_runs_at_the_same_time():
    for part in gpu.PARTS:
        for together in gpu.steps_of(part):
            if len(together) > 1:
                timed = [name for name in together if not {name, name.partition("-")[0]} & {*gpu.CHECKS, "compile"}]
                assert timed == []


def test_every_step_of_make_gpu_is_in_a_part_and_knows_its_arguments(monkeypatch):
    """All but some in TF32."""
    from benchmarks import operators, registry, table5

    in_parts = {name for part in gpu.PARTS for together in gpu.steps_of(part) for name in together}
    assert {name for name in gpu.STEPS if name not in in_parts} <= {name for name in gpu.STEPS if "tf32" in name}
    for _, command in gpu.STEPS.values():
        module, words = command[command.index("-m") + 1] if "-m" in command else "", command[3:]
        if module == "benchmarks.operators":
            arguments = operators.parser().parse_args(words)
            found = registry.select(operators.settings_of(arguments), arguments.suite, shapes=arguments.case)
            assert set(found) == set(arguments.suite)
            if arguments.compile_only:
                names = {name for cases in found.values() for case in cases for name in case.contestants}
                assert any(arguments.compile_only in name for name in names)
        elif module == "benchmarks.table5":
            monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
            assert table5.parse(words).device == "cuda"


@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
def test_what_the_targets_need_is_measured_and_compiled_before(dtype):
    """Every row of the targets finds its case, and every competitor that compiles has a step that compiles it."""
    from benchmarks import operators, registry, targets

    compiled, measured = set(), {}
    for name in (*gpu.COMPILE[dtype], *gpu.TARGETS[dtype]):
        command = gpu.STEPS[name][1]
        if "benchmarks.operators" not in command:
            continue
        arguments = operators.parser().parse_args(command[3:])
        settings = operators.settings_of(arguments)
        for suite, cases in registry.select(settings, arguments.suite, shapes=arguments.case).items():
            for case in cases:
                for contestant in case.contestants:
                    if arguments.compile_only is None:
                        measured[suite, case.name, contestant] = None
                    elif arguments.compile_only in contestant:
                        compiled.add((suite, case.name, contestant))
    slow = {key for key in measured if "compiled" in key[2] or "Flex" in key[2]}
    assert slow == compiled
    assert len(slow) == 16 + 2 + 2
    suites = {
        "layers": {
            "sums": {name: fake_record(measured, "layers") for name in ("16 layers 256", "Encode_1 + Decode_1 256")}
        }
    }
    for suite, case, _ in measured:
        suites.setdefault(suite, {}).setdefault("cases", {})[case] = fake_record(measured, suite, case)
    step = {"quick": False, "complete": True, "rows": [row("ours", "fused"), row("pconv", "reference")]}
    content = {"suites": suites, "roofs": {"tflops": 1.0}}
    rows = targets.rows({"operators": content, "table5": step}, targets.CUDA)
    assert [one["what"] for one in rows if "value" not in one] == []


def fake_record(measured, suite, case=""):
    """With every contestant that the suite has in that case, or in any."""
    figure = dict.fromkeys(("ms", "tflops", "extra_mib", "ratio"), 1.0)
    figures = {"forward": figure, "forward_backward": figure}
    names = [key[2] for key in measured if key[0] == suite and case in ("", key[1])]
    return {"batch": 1, "best": figures, "contestants": dict.fromkeys(names, figures)}


def row(system, operators):
    return {"system": system, "operators": operators, "ms": 1.0}


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
    shown = capsys.readouterr().out
    assert "--- good: ok\nwell\n" in shown
    assert (tmp_path / "bad.log").read_text() == "ill\n"


@pytest.mark.parametrize("option", ["--only", "--part"])
def test_unknown_steps_and_parts_of_make_gpu_are_named(option, capsys):
    with pytest.raises(SystemExit):
        gpu.main([option, "tables5"])
    error = capsys.readouterr().err
    assert "(did you mean 'table5'?); known are " in error
