"""Table 5's run on small stand-ins for its systems: what is recorded, compared, refused, interrupted and shown."""

import json
import time
import weakref

import pytest
import torch
from torch import nn

from benchmarks import harness, table5, table5_report
from benchmarks.harness import significant
from benchmarks.precision import PRECISIONS
from benchmarks.systems import SYSTEMS, make_batch
from benchmarks.table5_contest import Contest, Variant

CPU = torch.device("cpu")
ROOFS = {"tflops": 0.5, "gbytes_per_s": 20.0}
LOADER = [{"source": "facades, brush", "images_per_s": 80.0}]


ALIVE = weakref.WeakSet()


class Small:
    """One convolution; `before` runs at the beginning of every step."""

    def __init__(
        self, device, precision=torch.float32, backend="auto", depth=0, before=lambda system: None, factor=1.0
    ):
        self.network = nn.Conv2d(3, 4, kernel_size=3, padding=1).to(device)
        self.networks = {"network": self.network}
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3)
        self.backend, self.depth, self.before, self.factor = backend, depth, before, factor
        self.is_compiled, self.steps = False, 0
        ALIVE.add(self)

    def compile(self):
        self.is_compiled = True

    def step(self, batch):
        self.before(self)
        self.steps += 1
        loss = self.network(batch.image).square().mean() * self.factor
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"total": loss.detach()}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    """Small systems, a roof that takes no time, results in a folder of the test's own."""
    for name in SYSTEMS:
        monkeypatch.setitem(SYSTEMS, name, Small)
    monkeypatch.setattr(harness, "roofs", lambda device, dtype: ROOFS)
    monkeypatch.setattr(table5.loader, "measure", lambda *arguments, **options: LOADER)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    ALIVE.clear()
    return tmp_path


def use(monkeypatch, name, **options):
    monkeypatch.setitem(SYSTEMS, name, lambda *arguments, **backend: Small(*arguments, **backend, **options))


def run(folder, *arguments, code=0):
    """The JSON of a quick run on the CPU."""
    assert table5.main(["--quick", "--size=96", "--device=cpu", *arguments]) == code
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


def by_name(content):
    return {(row["system"], row["operators"]): row for row in content["rows"]}


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has …")


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_every_system_has_its_row_and_the_file_says_how_it_was_made(stand_ins, capsys):
    content = run(stand_ins)
    assert list(by_name(content)) == [
        ("pic", "PyTorch"),
        ("pconv", "reference"),
        ("pconv", "fused"),
        ("pconv", "fused, compiled"),
        ("edgeconnect-edge", "PyTorch"),
        ("edgeconnect-inpainting", "PyTorch"),
        ("edgeconnect", "PyTorch"),
        ("ours", "reference"),
        ("ours", "fused"),
        ("ours", "fused, compiled"),
    ]
    assert [path.name for path in stand_ins.glob("*.json")] == ["table5-quick-cpu.json"]
    assert content["quick"]
    assert content["complete"]
    assert (content["size"], content["batch"]) == (96, 2)
    assert content["loader"] == {"workers": 2, "ms": {"facades, brush": 12.5}}
    printed = capsys.readouterr().out
    assert "Reduced run (--quick)" in printed
    assert "Incomplete" not in printed


def test_figures_of_a_row():
    contest = Contest(make_batch(96, 2, CPU), PRECISIONS["float32"], rounds=3)
    variants = [Variant("ours", "reference"), Variant("ours", "fused"), Variant("ours", "fused", compiled=True)]
    contest.measure(variants)
    (turns,) = contest.turns
    assert {variant: len(times) for variant, times in turns.items()} == dict.fromkeys(variants, 3)
    turns[variants[0]][:] = [30.0, 10.0, 20.0]
    turns[variants[1]][:] = [4.0, 8.0, 16.0]
    reference, fused, compiled = table5.rows(contest, variants, roof=0.5)
    # 3×3×3 products and sums per value of 4 maps, forward and again for the weights; the image needs no gradient.
    gflop = 2 * 2 * 27 * 4 * 96**2 / 1e9
    assert fused["gflop"] == compiled["gflop"] == significant(gflop)
    assert fused["ms"] == 4.0
    assert fused["quartiles_ms"] == [3.0, 6.0]
    assert fused["rounds"] == 3
    assert fused["ratio"] == {"reference": 0.4, "fused": 1.0}
    assert fused["tflops"] == significant(significant(gflop) / 4)
    assert fused["roof_share"] == significant(significant(gflop) / 4 / 0.5)
    assert fused["parameters"] == 4 * 27 + 4
    assert fused["difference"] == {"losses": 0, "gradients": 0}
    assert fused["paper"] == {"ms": 67.5, "gflop": 288, "ratio": 1}
    assert reference["ratio"] == {"reference": 1.0, "fused": 2.5}
    # The output and its square, at least.
    assert fused["extra_mib"] >= 2 * (2 * 4 * 96**2 * 4) / 2**20
    assert compiled["operators"] == "fused, compiled"


def test_variants_are_built_as_they_are_called(monkeypatch):
    built = []

    def build(device, precision, **options):
        built.append((precision, options))
        return Small(device, precision)

    monkeypatch.setitem(SYSTEMS, "ours", build)
    monkeypatch.setitem(SYSTEMS, "pic", build)
    half = torch.bfloat16
    for variant, size in [("fused", 256), ("fused", 384), ("reference", 96)]:
        Variant("ours", variant).build(CPU, half, size)
    Variant("pic", "PyTorch").build(CPU, half, 256)
    assert built == [
        (half, {"backend": "auto", "depth": 8}),
        (half, {"backend": "auto", "depth": 7}),
        (half, {"backend": "reference", "depth": 5}),
        (half, {}),
    ]


def test_systems_take_turns_and_compiled_ones_are_compiled(monkeypatch):
    order = []
    use(monkeypatch, "pic", before=lambda system: order.append("pic"))
    use(monkeypatch, "ours", before=lambda system: order.append(f"{system.backend}{' compiled' * system.is_compiled}"))
    contest = Contest(make_batch(96, 1, CPU), PRECISIONS["float32"], rounds=2)
    variants = [Variant("ours", "reference"), Variant("ours", "reference", compiled=True), Variant("pic", "PyTorch")]
    contest.measure(variants)
    names = ["reference", "pic", "reference compiled"]
    assert order == [name for name in names for _ in range(2)] + names * 2


def test_edgeconnect_is_the_sum_of_its_stages():
    contest = Contest(make_batch(96, 2, CPU), PRECISIONS["float32"], rounds=3)
    contest.measure([*table5.EDGECONNECT])
    edge, inpainting = (contest.turns[0][stage] for stage in table5.EDGECONNECT)
    edge[:], inpainting[:] = [2.0, 4.0, 8.0], [80.0, 40.0, 20.0]
    rows = table5.rows(contest, [*table5.EDGECONNECT], roof=0.5)
    assert [row["system"] for row in rows] == ["edgeconnect-edge", "edgeconnect-inpainting", "edgeconnect"]
    whole = rows[-1]
    assert whole["ms"] == 22.0  # of 82, 44 and 28 per step
    assert whole["parameters"] == 2 * rows[0]["parameters"]
    assert whole["gflop"] == significant(2 * rows[0]["gflop"])
    assert whole["paper"] == {"ms": 140.5, "gflop": 997, "ratio": 2.081}


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_variants_that_compute_something_else_are_not_reported(monkeypatch, stand_ins, factor):
    monkeypatch.setitem(
        SYSTEMS,
        "pconv",
        lambda device, precision, backend, depth: Small(
            device, backend=backend, factor=factor if backend == "auto" else 1
        ),
    )
    rows = by_name(run(stand_ins, "--system=pconv"))
    assert "ms" in rows["pconv", "reference"]
    fused = rows["pconv", "fused"]
    assert fused["unavailable"].startswith("losses differ from the reference's by")
    assert "ms" not in fused


def test_compiled_variants_need_the_count_of_the_eager_one(monkeypatch):
    """Whose own failure is not theirs to explain."""

    def fail(system):
        if system.backend == "auto" and not system.is_compiled:
            raise RuntimeError("only without the compiler")

    use(monkeypatch, "ours", before=fail)
    contest = Contest(make_batch(96, 1, CPU), PRECISIONS["float32"], rounds=1)
    compiled = Variant("ours", "fused", compiled=True)
    contest.measure([Variant("ours", "reference"), Variant("ours", "fused"), compiled])
    assert contest.facts[compiled] == {"unavailable": "not counted, as it did not run without the compiler"}


def test_compiling_ends_when_its_time_is_over(monkeypatch):
    """In the middle of it, and before it begins; the others take their turns."""

    def compile_slowly(system):
        if system.is_compiled:
            try:
                time.sleep(20)
            except TimeoutError as error:
                raise RuntimeError("the compiler's own words") from error

    use(monkeypatch, "ours", before=compile_slowly)
    contest = Contest(make_batch(96, 1, CPU), PRECISIONS["float32"], rounds=1, compile_limit=1.5)
    variants = [
        Variant("ours", operators, compiled) for operators in ("reference", "fused") for compiled in (False, True)
    ]
    begin = time.monotonic()
    contest.measure(variants)
    assert time.monotonic() - begin < 15
    late = {"unavailable": "not compiled in the 1.5 s that this run gives"}
    assert [contest.facts[variant] == late for variant in variants] == [False, True, False, True]
    assert contest.turns[0].keys() == {variants[0], variants[2]}


def test_gradients_are_compared_too(monkeypatch, stand_ins):
    def bent(system):
        if system.backend == "auto":
            system.network.weight.register_hook(lambda grad: grad * 1.1)

    use(monkeypatch, "ours", before=bent)
    rows = by_name(run(stand_ins, "--system=ours"))
    assert rows["ours", "fused"]["unavailable"].startswith("gradients differ from the reference's by 0.")


def test_below_float32_the_reference_sets_the_tolerance(monkeypatch):
    """The reference in bfloat16 is off by 1 %, so that ours may be off by 2 % and a tenth more, and no further."""

    def build(device, precision, backend, depth, off):
        error = 0.0 if precision == torch.float32 else (0.01 if backend == "reference" else off)
        return Small(device, factor=1 + error)

    for off, agree in ((0.02, True), (0.04, False)):
        monkeypatch.setitem(SYSTEMS, "ours", lambda *a, off=off, **b: build(*a, **b, off=off))
        contest = Contest(make_batch(96, 1, CPU), PRECISIONS["bfloat16"], rounds=1)
        fused = Variant("ours", "fused")
        contest.measure([Variant("ours", "reference"), fused])
        assert ("difference" in contest.facts[fused]) == agree
        if agree:
            assert contest.facts[fused]["difference"]["losses"] == pytest.approx(off, rel=0.01)


def test_what_torch_cannot_run_is_named_with_the_reason(monkeypatch, stand_ins):
    def fail(system):
        if system.backend == "reference":
            raise NotImplementedError("no such kernel on this device. See …")

    use(monkeypatch, "pconv", before=fail)
    rows = by_name(run(stand_ins, "--system=pconv", "--system=pic"))
    assert rows["pconv", "reference"]["unavailable"] == "no such kernel on this device"
    assert rows["pconv", "fused"]["unavailable"] == "not compared, as the reference did not run"
    assert "ms" in rows["pic", "PyTorch"]


@pytest.mark.parametrize("at_step", [0, 3])
def test_out_of_memory_is_recorded_and_the_run_goes_on(monkeypatch, stand_ins, capsys, at_step):
    """Whether the first step or a timed one finds none, beside the others and apart."""
    use(monkeypatch, "edgeconnect-edge", before=lambda system: system.steps < at_step or out_of_memory())
    content = run(stand_ins)
    rows = by_name(content)
    assert rows["edgeconnect-edge", "PyTorch"]["unavailable"] == "out of memory: 3.0 GiB wanted"
    assert ("edgeconnect", "PyTorch") not in rows
    assert all("ms" in row for (system, _), row in rows.items() if system != "edgeconnect-edge")
    assert content["complete"]
    assert "PyTorch, is not available: out of memory: 3.0 GiB wanted." in capsys.readouterr().out


def test_what_finds_no_memory_beside_the_others_runs_apart(monkeypatch):
    """With the baselines for company, to which its ratio then is, and with all else let go."""

    def wide(system):
        if len(ALIVE) > 3:
            out_of_memory()

    use(monkeypatch, "edgeconnect-edge", before=wide)
    contest = Contest(make_batch(96, 1, CPU), PRECISIONS["float32"], rounds=1)
    baselines = [Variant("ours", "reference"), Variant("ours", "fused")]
    others = [Variant(name, "PyTorch") for name in ("pic", "edgeconnect-inpainting")]
    edge = Variant("edgeconnect-edge", "PyTorch")
    contest.measure([*baselines, *others, edge])
    assert [set(turns) for turns in contest.turns] == [{*baselines, *others}, {*baselines, edge}]
    contest.turns[0][baselines[0]][:] = [7.0]
    contest.turns[1][baselines[0]][:] = [5.0]
    contest.turns[1][edge][:] = [10.0]
    pic, row = table5.rows(contest, [others[0], edge], roof=0.5)
    assert row["ratio"]["reference"] == 2.0
    assert (pic["apart"], row["apart"]) == (False, True)
    assert "EdgeConnect, edge, PyTorch, took turns with Ours alone" in table5_report.section(example(rows=[pic, row]))


# ---- interruption --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_step", [0, 2, 4])
def test_ctrl_c_keeps_what_is_done(monkeypatch, stand_ins, capsys, at_step):
    """In the first step, the first round, and the last round of the third system."""

    def stop(system):
        if system.steps == at_step:
            raise KeyboardInterrupt

    use(monkeypatch, "edgeconnect-edge", before=stop)
    complete = stand_ins / "table5-quick-cpu.json"
    content = run(stand_ins, code=130)
    assert not complete.exists()  # which an earlier run may have written
    assert not content["complete"]
    assert "loader" not in content
    rows = by_name(content)
    assert ("edgeconnect-edge", "PyTorch") in rows or at_step == 0
    assert rows["ours", "fused"]["gflop"] > 0
    assert rows["pic", "PyTorch"].get("rounds", 0) == max(0, at_step - 1)
    printed = capsys.readouterr()
    assert "Incomplete: the run was interrupted." in printed.out
    assert "interrupted" in printed.err


# ---- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--system", "pcnov"],
            "unknown system 'pcnov' (did you mean 'pconv'?); known are pic, pconv, edgeconnect-edge",
        ),
        (["--size", "100"], "--size must be a multiple of 32 from 96 on, got 100"),
        (["--size", "64"], "--size must be a multiple of 32 from 96 on, got 64"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--rounds", "-1"], "--rounds must be at least 1, got -1"),
        (["--device", "gpu"], "--device must be cpu, cuda or cuda:i, got 'gpu'"),
        (["--device", "cpu", "--precision", "tf32"], "--precision tf32 needs a CUDA device"),
        (["--precision", "float16"], "invalid choice: 'float16'"),
    ],
)
def test_wrong_arguments_are_named(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        table5.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_sizes_are_the_papers_unless_said_otherwise():
    def settings(*arguments):
        parsed = table5.parse(["--device=cpu", *arguments])
        return parsed.size, parsed.batch, parsed.rounds

    assert settings() == (256, 6, 5)
    assert settings("--quick") == (128, 2, 3)
    assert settings("--quick", "--batch=4", "--rounds=9") == (128, 4, 9)
    assert settings("--size=512") == (512, 6, 5)


def test_a_run_without_the_loader_is_complete(monkeypatch, stand_ins):
    monkeypatch.setattr(table5.loader, "measure", lambda *arguments, **options: pytest.fail("measured"))
    content = run(stand_ins, "--system=pic", "--no-loader")
    assert content["complete"]
    assert "loader" not in content


def test_a_loader_that_fails_costs_no_steps(monkeypatch, stand_ins, capsys):
    def fail(*arguments, **options):
        raise RuntimeError("DataLoader worker is killed by signal: Bus error. It is possible …")

    monkeypatch.setattr(table5.loader, "measure", fail)
    content = run(stand_ins, "--system=pic")
    assert content["complete"]
    assert "ms" in content["rows"][0]
    assert (
        "Loader, 2 workers, not available: DataLoader worker is killed by signal: Bus error." in capsys.readouterr().out
    )


def test_chosen_systems_and_no_save(stand_ins, capsys):
    assert table5.main(["--quick", "--device=cpu", "--size=96", "--system=ours", "--system=pic", "--no-save"]) == 0
    assert not [*stand_ins.iterdir()]
    printed = capsys.readouterr().out
    assert "Ours" in printed
    assert "PIC" in printed
    assert "PConv" not in printed


def test_what_is_compiled(stand_ins, capsys):
    def compiled(*arguments):
        table5.main(["--size=96", "--batch=1", "--rounds=1", "--device=cpu", "--system=pconv", "--no-save", *arguments])
        printed = capsys.readouterr().out
        return [operators for operators in ("reference", "fused") if f"{operators}, compiled" in printed]

    assert compiled() == ["reference", "fused"]
    assert compiled("--quick") == ["fused"]
    assert compiled("--no-compile") == compiled("--quick", "--no-compile") == []


# ---- what is shown -------------------------------------------------------------------------------------------------


def example(**changes):
    """A result file's content with plain figures."""

    def row(system, operators, ms, gflop, **more):
        published = table5.PUBLISHED[system]
        return {
            "system": system,
            "operators": operators,
            "paper": published | {"ratio": significant(published["ms"] / 67.5)},
            "parameters": 25_784_276,
            "gflop": gflop,
            "difference": {"losses": 0.0, "gradients": 0.0},
            "extra_mib": 512.5,
            "ms": ms,
            "quartiles_ms": [ms - 1, ms + 1],
            "rounds": 5,
            "tflops": 0.25,
            "roof_share": 0.5,
            "ratio": {"reference": ms / 200, "fused": ms / 160},
        } | more

    content = {
        "environment": {"device": "A CPU", "torch": "2.13", "threads": 2, "commit": "abc", "command": "python -m x"},
        "complete": True,
        "quick": False,
        "size": 256,
        "batch": 6,
        "hole": [0.2, 0.3],
        "precision": "float32",
        "roofs": ROOFS,
        "rows": [
            row("pic", "PyTorch", 100.0, 138.0),
            row("pconv", "reference", 150.0, 180.0),
            row("pconv", "fused", 90.0, 160.0),
            {"system": "pconv", "operators": "fused, compiled", "paper": {"ratio": 0.4852, "ms": 32.75}}
            | {"unavailable": "out of memory: 3.0 GiB wanted"},
            row("ours", "reference", 200.0, 240.0),
            row("ours", "fused", 160.0, 200.0),
        ],
        "loader": {"workers": 2, "ms": {"facades, brush": 12.5}},
    }
    return json.loads(json.dumps(content | changes))


def cells(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_section_shows_what_the_json_holds():
    shown = cells(table5_report.section(example()))
    assert shown[0] == table5_report.HEADER
    rest = ["0.25", "0.5", "512.5", "25.78"]
    assert shown[2:] == [
        ["PIC", "PyTorch", "100 (99-101)", "0.5", "0.625", "0.09333 (6.3)", "138", *rest],
        ["PConv", "reference", "150 (149-151)", "0.75", "0.9375", "0.4852 (32.75)", "180", *rest],
        ["", "fused", "90 (89-91)", "0.45", "0.5625", "", "160", *rest],
        ["", "fused, compiled", "not available", *[""] * 8],
        ["Ours", "reference", "200 (199-201)", "1", "1.25", "1 (67.5)", "240", *rest],
        ["", "fused", "160 (159-161)", "0.8", "1", "", "200", *rest],
    ]


def test_no_figure_of_a_row_is_made_up_or_left_out():
    """Changing any of them, and nothing but that, changes what is shown."""
    before = table5_report.section(example())
    names = ["parameters", "gflop", "extra_mib", "ms", "tflops", "roof_share"]
    for index, row in enumerate(example()["rows"]):
        for name in names if "ms" in row else ["unavailable"]:
            content = example()
            value = content["rows"][index][name]
            content["rows"][index][name] = value + "!" if isinstance(value, str) else value * 1.5
            assert table5_report.section(content) != before, (row["system"], name)
    for name, keys in {"quartiles_ms": (0, 1), "ratio": ("reference", "fused"), "paper": ("ratio", "ms")}.items():
        for key in keys:
            content = example()
            content["rows"][0][name][key] *= 1.5
            assert table5_report.section(content) != before, (name, key)


def test_terminal_shows_the_same_cells_in_columns():
    printed = table5_report.terminal(example()).splitlines()
    head = next(i for i, line in enumerate(printed) if line.startswith("system"))
    starts = [printed[head].index(name) for name in table5_report.HEADER]
    for line, expected in zip(printed[head + 1 :], cells(table5_report.section(example()))[2:], strict=False):
        assert [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] == expected


def test_notes_compare_with_the_paper():
    text = table5_report.section(example())
    assert "PConv, fused, compiled, is not available: out of memory: 3.0 GiB wanted." in text
    assert "6.3 ms for PIC cannot be a whole training step at this size: 138 GFLOP in that time are 22 TFLOP/s" in text
    # 0.75 of the time for 180/240 of the work; the paper: 32.75/67.5 for 201/288.
    assert "PConv: 0.75 of the time of Ours on reference operators, 0.75 of its work at 1.00 times its rate. " in text
    assert "The paper: 0.49 of the time, 0.70 of the work, so 1.44 times the rate." in text
    assert "PConv, time over that on reference operators: fused 0.60." in text
    assert "Ours, time over that on reference operators: fused 0.80." in text
    assert "Loader, 2 workers, ms per image beside the step: 12.5 (facades, brush)." in text


def test_an_incomplete_or_reduced_run_says_so_and_shows_what_there_is():
    content = example(complete=False, quick=True)
    del content["loader"]
    for row in content["rows"]:
        for name in ("ms", "quartiles_ms", "tflops", "roof_share", "ratio", "rounds"):
            row.pop(name, None)
    text = table5_report.section(content)
    assert "Incomplete: the run was interrupted." in text
    assert "Reduced run (--quick)" in text
    assert cells(text)[2] == ["PIC", "PyTorch", "", "", "", "0.09333 (6.3)", "138", "", "", "512.5", "25.78"]
    assert "time of Ours" not in text
