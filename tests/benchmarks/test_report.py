"""The report: pages, README, targets and pictures show exactly what the results hold."""

import copy
import dataclasses
import itertools
import json
import random
import re

import pytest
import torch

from benchmarks import cases, plots, report, results, tables, targets
from benchmarks import measure as m
from benchmarks.cases import layers
from benchmarks.results import Result

H100 = "NVIDIA H100 80GB HBM3"


def a_result(device="cpu", name="operators-cpu", **facts):
    """All suites on a device, with numbers at random, so that no two are alike."""
    draw = random.Random(name)
    value = lambda: float(f"{draw.uniform(1, 99):.4g}")  # noqa: E731
    settings, rows = m.Settings(torch.device(device), torch.float32), []
    for suite, case in ((suite, case) for suite, some in cases.select(settings).items() for case in some):
        where = {"suite": suite, "case": case.name, "operator": case.operator, "shape": case.shape, **case.columns}
        unit = {}
        for one, which in itertools.product(case.alternatives, case.passes):
            row = where | {"alternative": one, "pass": which, "ms": value(), "lower_ms": 1.0, "upper_ms": 100.0}
            row |= {"extra_mib": value(), "tflops": value() / 100, "roof_share": value() / 100}
            row |= {"flop": draw.randrange(10**8, 10**10), "bytes": 10**7}
            graph = one != "gathered" and which != m.STEP
            if device == "cuda":
                row |= {"graph": graph, "eager_ms": 3 * row["ms"] if graph else row["ms"]}
            rows.append(row)
            if one == baseline_of(suite):
                unit[which] = row["ms"]
        for row in rows[-len(case.alternatives) * len(case.passes) :]:
            row["ratio"] = row["ms"] / unit[row["pass"]]
    rows += [{"suite": "layers"} | row for row in layers.sums([row for row in rows if row["suite"] == "layers"])]
    usual = {"device": f"some {device.upper()}", "device_kind": device, "precision": "float32", "threads": 2}
    usual |= {"torch": "2", "commit": "abc", "command": "x", "roofs": {"tflops": 1.5, "gbytes_per_s": 200.0}}
    usual |= {"suites": {suite: {"title": one.title, "about": one.about} for suite, one in cases.SUITES.items()}}
    usual |= {"cuda": "13", "driver": "1"} if device == "cuda" else {}
    return json_round(Result(name, usual | facts, rows))


def baseline_of(suite):
    return "phases" if suite == "upcat-rule" else m.OURS


def json_round(result):
    return Result(result.name, *json.loads(json.dumps([result.facts, result.rows])))


@pytest.fixture
def cpu():
    result = a_result()
    for row in result.find(suite="scaling", case="256×256"):
        if row["alternative"] in ("N×N matrix", "gathered"):
            for name in ("ms", "lower_ms", "upper_ms", "ratio", "extra_mib", "tflops", "roof_share", "flop", "bytes"):
                del row[name]
            row["unavailable"] = "out of memory: 16.0 GiB wanted"
    return result


def cells(text):
    """The rows of a Markdown table, without its header, by the first cell that is not empty above."""
    return [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines()[2:]]


def shows(cell, value):
    """Whether a cell is the value rounded to the cell's digits."""
    assert re.fullmatch(r"\d+(\.\d+)?%?", cell), cell
    digits = cell.rstrip("%")
    return abs(float(digits) - (100 if cell.endswith("%") else 1) * value) <= 0.5000001 * 10.0 ** -len(
        digits.partition(".")[2]
    )


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", cases.SUITES)
def test_the_table_of_ratios_has_the_baselines_time_over_every_others(cpu, suite):
    rows = cpu.find(suite=suite)
    baseline = baseline_of(suite)
    assert tables.baseline_of(rows) == baseline
    text = tables.ratio_table(rows)
    header = [cell.strip("| ") for cell in text.splitlines()[0].split(" | ")]
    by_case = {case: [row for row in rows if row["case"] == case] for case in tables.distinct(rows, "case")}
    for line, (case, own) in zip(cells(text), by_case.items(), strict=True):
        assert line[0] == f"| {case}"
        for title, cell in zip(header[2:], line[2:], strict=True):
            name = title.removeprefix(f"{baseline} / ")
            for number, which in enumerate(tables.distinct(rows, "pass")):
                of_pass = {row["alternative"]: row for row in own if row["pass"] == which}
                if name not in of_pass or ": " in title:
                    continue
                shown = cell.rstrip(" |").split(" · ")[number]
                if "ms" in of_pass[name]:
                    assert shows(shown, of_pass[baseline]["ms"] / of_pass[name]["ms"]), (case, title)
                else:
                    assert shown == tables.NOT_AVAILABLE


def test_the_full_table_has_every_row_and_the_reasons(cpu):
    rows = cpu.find(suite="scaling")
    for line, row in zip(cells(tables.full_table(rows)), rows, strict=True):
        assert line[1:3] == [row["alternative"], m.FORWARD]
        if "unavailable" in row:
            assert line[3] == "not available: out of memory: 16.0 GiB wanted"
        else:
            ms, lower, upper = re.fullmatch(r"([\d.]+) \(([\d.]+) - ([\d.]+)\)", line[3]).groups()
            assert shows(ms, row["ms"])
            assert (float(lower), float(upper)) == (1.0, 100.0)
            for cell, quantity in zip(line[4:], ("tflops", "roof_share", "extra_mib"), strict=True):
                assert shows(cell.rstrip(" |"), row[quantity])


def test_on_cuda_eager_ratios_stand_in_brackets_and_eager_times_are_named():
    rows = a_result("cuda").find(suite="attention", case="64×64 30%, batch 6")
    ours, dense, gathered = (
        next(row for row in rows if (row["alternative"], row["pass"]) == (name, m.FORWARD))
        for name in (m.OURS, "N×N matrix", "gathered")
    )
    shown = re.fullmatch(r"([\d.]+) \(([\d.]+)\)", tables.ratio(ours, gathered)).groups()
    assert shows(shown[0], ours["ms"] / gathered["ms"])
    assert shows(shown[1], 3 * ours["ms"] / gathered["ms"])
    assert tables.named(gathered) == "gathered, eager"
    assert tables.named(dense) == "N×N matrix"
    steps = [{"ms": 2.0, "eager_ms": 2.0}, {"ms": 4.0, "eager_ms": 4.0}]
    assert tables.ratio(*steps) == "0.50"


@pytest.mark.parametrize(
    ("value", "count", "shown"),
    [(10360.4, 4, "10360"), (359.04, 4, "359.0"), (0.000534, 3, "0.000534"), (1.0, 3, "1.00"), (0.0, 3, "0")],
)
def test_digits_are_written_out(value, count, shown):
    assert tables.digits(value, count) == shown


# ---- targets ---------------------------------------------------------------------------------------------------------

SIXTEEN = "16 partial convolutions, forward, against bare `F.conv2d` on ready inputs"
SHARE = "attention stage, batch 1, forward, of the"


def result(rows, name="a", kind="cpu", device="some CPU", precision="float32", **facts):
    """Of rows (suite, case, alternative, pass, columns)."""
    keys = "suite", "case", "alternative", "pass"
    rows = [dict(zip(keys, row[:4], strict=True)) | row[4] for row in rows]
    where = {"device": device, "device_kind": kind, "precision": precision, "threads": 2, "roofs": {"tflops": 0.5}}
    return Result(name, where | facts, rows)


def sixteen(ours, bare=1.0):
    names = {m.OURS: ours, "bare conv": bare}
    return [("layers", "16 layers 256", n, w, {"ms": ms}) for n, ms in names.items() for w in (m.FORWARD, m.BOTH)]


def row(what, *found, kind="cpu", precision=None):
    rows = [r for r in targets.rows(found) if r["what"].startswith(what) and r["kind"] == kind]
    return next(r for r in rows if precision in (None, r["precision"]))


BEST, INFERENCE, TRAINING = "attention stage, batch 1, forward, best", "generator, batch 1", "training step"
STAGE, IMAGE = ("attention", "64×64 30%"), ("generator", "whole 256")
PLAIN, GRAPHS = "reference, compiled", "reference, compiled, reduce-overhead"
WHOLE = {"quick": False, "complete": True}


def rows_of(where, which, quantity, **values):
    """Rows of one case by alternative; a text says why there is no value."""
    shown = lambda value: {"unavailable" if isinstance(value, str) else quantity: value}  # noqa: E731
    return [(*where, name.replace("_", " "), which, shown(value)) for name, value in values.items()]


def image(batch=1, **others):
    rows = rows_of(IMAGE, m.FORWARD, "ms", ours=2.0, reference=3.0, **others)
    return [(*row[:4], row[4] | {"batch": batch}) for row in rows]


def steps(fused):
    ours = rows_of(("table5", "ours"), m.STEP, "ms", reference=9.0, fused=fused)
    return ours + rows_of(("table5", "pconv"), m.STEP, "ms", reference=4.0)


@pytest.mark.parametrize(
    ("what", "rows", "facts", "wanted"),
    [
        (SIXTEEN, sixteen(0.799), {}, {"value": 0.799, "met": True, "target": "≤ 0.8", "file": "a"}),
        (SIXTEEN, sixteen(0.8), {}, {"value": 0.8, "met": True}),
        (SIXTEEN, sixteen(0.801), {}, {"value": 0.801, "met": False}),
        (
            SHARE,
            rows_of(STAGE, m.FORWARD, "tflops", ours=0.199),
            {},
            {"value": 0.398, "met": False, "target": "≥ 40 %"},
        ),
        (SHARE, rows_of(STAGE, m.FORWARD, "tflops", ours=0.2), {}, {"value": 0.4, "met": True}),
        (BEST, rows_of(STAGE, m.FORWARD, "ratio", ours=1.0, SDPA=2.9, dense=9.0, flex="why"), {}, {"value": 2.9}),
        (BEST, rows_of(STAGE, m.FORWARD, "ratio", ours=1.0, SDPA="why"), {}, {"unavailable": "SDPA: why"}),
        (INFERENCE, image(**{PLAIN: 8.0, GRAPHS: 5.0}), {}, {"value": 2.5}),
        (INFERENCE, image(**{PLAIN: 8.0, GRAPHS: "why"}), {}, {"value": 4.0}),
        (INFERENCE, image(**{PLAIN: "why"}), {}, {"unavailable": f"{PLAIN}: why"}),
        (INFERENCE, image(batch=2, **{PLAIN: 8.0}), {}, {}),
        (INFERENCE, image(), {}, {}),
        ("1024×1024", rows_of(("memory", "x"), m.FORWARD, "extra_mib", ours=3584.0), {}, {"value": 3.5, "met": False}),
        (TRAINING, steps(3.0), WHOLE, {"value": 0.75}),
        (TRAINING, steps("why"), WHOLE, {"unavailable": "fused: why"}),
        (TRAINING, steps(3.0), WHOLE | {"quick": True}, {}),
        (TRAINING, steps(3.0), WHOLE | {"complete": False}, {}),
    ],
)
def test_a_targets_value(what, rows, facts, wanted):
    found = row(what, result(rows, **facts))
    assert found.items() >= wanted.items()
    assert ("value" in found, "unavailable" in found) == ("value" in wanted, "unavailable" in wanted)


def test_growth_is_of_ours_and_large_holes_are_of_the_three_layers_summed():
    rows = [("attention", c, m.OURS, m.BOTH, {"ms": ms}) for c, ms in (("64×64", 10.0), ("128×128", 151.0))]
    assert row("hole attention, forward + backward, growth of time", result(rows))["value"] == 15.1
    rows = []
    for i, share in itertools.product((1, 2, 3), ("50%", "60%")):
        where = ("mask-ratios", f"Encode_{i} {share}")
        ours = 9.0 if (i, share) == (3, "60%") else 1.0 * i
        rows += rows_of(where, m.FORWARD, "ms", **{m.OURS: ours, "ours, no hole": 2.0 * i})
    assert row("50-60 % hole", result(rows))["value"] == pytest.approx((1 + 2 + 3 + 1 + 2 + 9) / 24)
    assert "value" not in row("50-60 % hole", result(rows[2:]))


def test_a_gpus_bounds_are_its_own_and_devices_and_precisions_are_kept_apart():
    on_gpu = dict(kind="cuda", device=H100, precision="bfloat16")
    found = [
        result(sixteen(0.85), name="operators-cpu"),
        result(sixteen(0.86), name="operators-bfloat16", **on_gpu),
        result(sixteen(0.95), name="operators-tf32", **on_gpu | {"precision": "tf32"}),
        result(sixteen(0.11), name="operators-float16", **on_gpu | {"precision": "float16"}),
        result(sixteen(0.77), name="operators-h200", **on_gpu | {"device": "NVIDIA H200"}),
    ]
    rows = {(r["device"], r["precision"]): r for r in targets.rows(found) if r["what"] == SIXTEEN}
    assert {key: (r.get("value"), r.get("met")) for key, r in rows.items()} == {
        ("some CPU, 2 threads", "float32"): (0.85, False),
        (H100, "bfloat16"): (0.86, True),
        (H100, "tf32"): (0.95, None),
        ("NVIDIA H200", "bfloat16"): (0.77, True),
        ("NVIDIA H200", "tf32"): (None, None),
    }
    cpu, h100, h200 = (line for line in targets.section(targets.rows(found)).splitlines() if SIXTEEN in line)
    assert cpu.endswith("| ≤ 0.8 | 0.850 | **missed** | `operators-cpu.json` |")
    assert h100.endswith("| ≤ 0.9 | 0.860 | 0.950 | met | `operators-bfloat16.json`, `operators-tf32.json` |")
    assert h200.endswith("| ≤ 0.9 | 0.770 | not measured | met | `operators-h200.json` |")


def test_the_operators_result_comes_first_then_others_by_name_and_those_with_a_reason_last():
    without = result(
        [
            ("layers", "16 layers 256", m.OURS, m.FORWARD, {"unavailable": "why"}),
            ("layers", "16 layers 256", "bare conv", m.FORWARD, {"ms": 1.0}),
        ]
    )
    assert row(SIXTEEN, result(sixteen(0.2), name="b"), result(sixteen(0.3), name="c"), without)["file"] == "b"
    assert row(SIXTEEN, result(sixteen(0.2), name="b"), result(sixteen(0.4), name="operators-x"))["value"] == 0.4
    found = row(SIXTEEN, without)
    assert (found["unavailable"], found["file"]) == (f"{m.OURS}: why", "a")
    assert not {"met", "value"} & found.keys()
    assert not {"met", "value", "file"} & row(SIXTEEN, kind="cuda").keys()


def test_a_device_has_no_row_for_what_only_another_of_its_kind_has_measured():
    memory = result([("memory", "whole 1024", m.OURS, m.FORWARD, {"extra_mib": 512.0})], device="A")
    text = targets.section(targets.rows([memory, result(sixteen(0.9), name="b", device="B")]))
    first, second, gpu = text.split("\n\n**")[1:]
    assert first.startswith("B, 2 threads.**")
    assert second.startswith("A, 2 threads.**")
    assert "| 0.500 GiB | met | `a.json` |" in second
    assert "1024×1024" not in first
    assert "16 partial convolutions, forward," not in second
    assert all("| ≥ 2.5 | not measured |  |  |" in part for part in (first, second))
    assert gpu.startswith("H100.**")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch, cpu):
    """A repository with a README and one result."""
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    (tmp_path / "docs").mkdir()
    results.RESULTS.mkdir()
    save(cpu)
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return tmp_path


def save(result):
    (results.RESULTS / f"{result.name}.json").write_text(results.as_text(result.facts, result.rows))


def test_what_is_written_passes_the_check_and_what_is_stale_does_not(root, capsys, cpu):
    assert report.main(["--check"]) == 1
    assert "README.md does not show the committed results: run python -m benchmarks.report" in capsys.readouterr().err
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    readme = (root / "README.md").read_text()
    assert readme.startswith(f"before\n{report.BEGIN}\n\n| ours / alternative |")
    assert readme.endswith(f"{report.END}\nafter\n")
    page = (root / "docs/measurements.md").read_text()
    for one in cases.SUITES.values():
        assert one.about in page
    shown = re.findall(r"!\[.+?\]\((.+?)\)", page)
    assert shown == ["measurements/scaling-operators-cpu.png", "measurements/roofline-operators-cpu.png"]
    for path in shown:
        assert (root / "docs" / path).read_bytes().startswith(b"\x89PNG")
    assert json.loads((root / "docs/targets.json").read_text()) == targets.rows([cpu])
    for name in ("docs/targets.json", "docs/measurements.md"):
        (root / name).write_text("[]\n")
        assert report.main(["--check"]) == 1
        assert f"{name} does not show" in capsys.readouterr().err


def test_gpus_come_after_all_cpus_and_results_that_were_cut_short_are_not_shown(root, cpu):
    save(a_result("cuda", name="attention-a-gpu"))
    save(dataclasses.replace(cpu, name="zeta-cpu"))
    save(dataclasses.replace(cpu, name="other-incomplete-cpu"))
    text = report.written(results.committed())[root / "docs/measurements.md"]
    assert re.findall(r"## Operators on (.+), float32", text) == ["some CPU", "some CPU", "some CUDA"]


def test_the_readmes_table_has_eager_times_first_and_marks_where_ours_is_slower():
    def sums(ours, bare, **more):
        rows = {m.OURS: ours, "bare conv": bare}
        where = ("layers", "16 layers 256")
        return result([(*where, n, w, c) for n, c in rows.items() for w in (m.FORWARD, m.BOTH)], **more)

    gpu = dict(kind="cuda", device=H100, precision="bfloat16")
    found = [
        sums({"ms": 1.0}, {"ms": 2.0}),
        sums({"ms": 1.0, "eager_ms": 4.0}, {"ms": 2.0, "eager_ms": 2.0}, name="b", **gpu),
    ]
    assert cells(report.key_ratios(found)) == [
        ["| the paper's 16 partial convolutions / plain `F.conv2d`", "2 CPU cores, float32", "0.50", "0.50 |"],
        ["| the paper's 16 partial convolutions / plain `F.conv2d`", "H100, bfloat16, eager", "**2.00**", "**2.00** |"],
        ["|", "H100, bfloat16, device", "0.50", "0.50 |"],
    ]


def test_what_the_report_cannot_use_is_named(root):
    (results.RESULTS / "attention-cpu.json").write_text("{}")
    with pytest.raises(ValueError, match=r"attention-cpu\.json: is no result of these benchmarks: run it again"):
        report.main(["--check"])
    (results.RESULTS / "attention-cpu.json").unlink()
    (root / "README.md").write_text("no place")
    with pytest.raises(ValueError, match=r"README\.md has no line"):
        report.main(["--check"])


def test_committed_results_are_flat_and_can_all_be_shown():
    found = results.committed()
    assert {"operators-cpu", "operators-bfloat16-nvidia-h100-80gb-hbm3"} <= {one.name for one in found}
    for one in found:
        assert one.facts.keys() >= {"device", "device_kind", "precision", "commit", "command", "torch", "threads"}
        assert all(isinstance(value, float | int | str | None) for row in one.rows for value in row.values())
    assert len(list(report.sections(found))) == len(found)


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [plots.scaling, plots.roofline], ids=lambda picture: picture.__name__)
def test_pictures_are_the_same_bytes_for_the_same_data_alone(cpu, picture):
    first = picture(cpu)
    assert first == picture(json_round(cpu))
    assert not re.search(b"Software|tIME", first)
    other = copy.deepcopy(cpu)
    other.one(suite="scaling", case="64×64", alternative=m.OURS)["ms"] *= 2
    other.one(suite="layers", case="Encode_2 256", alternative=m.OURS)["tflops"] *= 2
    assert first != picture(other)


def test_points_of_the_roofline_are_our_layers_and_attention_cases(cpu):
    found = {(label, case): (x, y) for x, y, label, case in plots.achieved(cpu, m.BOTH)}
    rows = {
        row["case"]: row for s in ("layers", "attention") for row in cpu.find(suite=s, alternative=m.OURS, pass_=m.BOTH)
    }
    assert {case for _, case in found} == {case for case, row in rows.items() if "tflops" in row}
    assert ("D4", "Decode_4 256") in found
    assert ("A1", "64×64") in found
    for (_, case), point in found.items():
        assert point == (rows[case]["flop"] / rows[case]["bytes"], rows[case]["tflops"])
    assert plots.pictures(dataclasses.replace(cpu, rows=cpu.find(suite="generator"))) == {}
