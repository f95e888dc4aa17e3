"""The targets: values are the result files', verdicts the bounds', devices and precisions are never mixed."""

import json

import pytest

from benchmarks import report, targets
from benchmarks.contest import BOTH, FORWARD, OURS
from benchmarks.layers import BARE, COMPILED
from benchmarks.network import COMPILED as COMPILED_NETWORK
from benchmarks.network import COMPILED_GRAPHS

H100 = "NVIDIA H100 80GB HBM3"


def sums(ours, bare, compiled=None):
    """Of layers: milliseconds forward and backward."""
    names = {OURS: ours, BARE: bare, **({COMPILED: compiled} if compiled else {})}
    ways = {name: {FORWARD: {"ms": ms[0]}, BOTH: {"ms": ms[1]}} for name, ms in names.items()}
    return {"16 layers 256": {"contestants": ways}, "Encode_1 + Decode_1 256": {"contestants": ways}}


def content(kind="cpu", device="some CPU", dtype="float32", **suites):
    suites = {name: value if "sums" in value else {"cases": value} for name, value in suites.items()}
    environment = {"device": device, "device_kind": kind, "threads": 2}
    return {"environment": environment, "dtype": dtype, "roofs": {"tflops": 0.5}, "suites": suites}


def layers(*milliseconds, **where):
    return content(layers={"cases": {}, "sums": sums(*milliseconds)}, **where)


def table5(ours, pconv, quick=False, complete=True):
    environment = {"device": "some CPU", "device_kind": "cpu", "threads": 2}
    rows = [
        {"system": "ours", "operators": "reference", "ms": 9.0},
        {"system": "ours", "operators": "fused", **ours},
        {"system": "pconv", "operators": "reference", **pconv},
    ]
    return {"environment": environment, "precision": "float32", "quick": quick, "complete": complete, "rows": rows}


def row(what, files, kind="cpu"):
    (found,) = [one for one in targets.rows(files, kind) if one["what"].startswith(what)]
    return found


SIXTEEN = "16 partial convolutions, forward, "


@pytest.mark.parametrize(("ms", "met"), [(0.799, True), (0.8, True), (0.801, False)])
def test_a_bound_from_above(ms, met):
    found = row(SIXTEEN, {"a": layers((ms, 1.0), (1.0, 1.0))})
    assert found == {
        "what": "16 partial convolutions, forward, against bare `F.conv2d` on ready inputs",
        "target": "≤ 0.8",
        "value": ms,
        "met": met,
        "file": "a",
    }


@pytest.mark.parametrize(("ms", "met"), [(2.49, False), (2.5, True), (3.0, True)])
def test_a_bound_from_below(ms, met):
    found = row("channel masks", {"a": layers((1.0, 1.0), (1.0, 1.0), (9.0, ms))})
    assert (found["target"], found["value"], found["met"]) == ("≥ 2.5", ms, met)


def test_a_gpus_bounds_are_its_own():
    files = {"a": layers((0.85, 1.0), (1.0, 1.0), kind="cuda", device=H100, dtype="bfloat16")}
    assert row(SIXTEEN, files, "cuda")["met"]
    assert not row(SIXTEEN, files, "cpu")["met"]


def test_what_no_file_has_is_not_measured():
    assert row(SIXTEEN, {}) == {"what": row(SIXTEEN, {})["what"], "target": "≤ 0.8"}
    assert "value" not in row("channel masks", {"a": layers((1.0, 1.0), (1.0, 1.0))})


def test_the_operators_file_comes_first_then_others_by_name_and_those_with_a_reason_last():
    without = layers((1.0, 1.0), (1.0, 1.0))
    without["suites"]["layers"]["sums"]["16 layers 256"]["contestants"][OURS][FORWARD] = {"unavailable": "why"}
    files = {"b": layers((0.2, 1.0), (1.0, 1.0)), "c": layers((0.3, 1.0), (1.0, 1.0)), "a": without}
    assert row(SIXTEEN, files)["file"] == "b"
    assert row(SIXTEEN, files | {"operators-x": layers((0.4, 1.0), (1.0, 1.0))})["value"] == 0.4
    found = row(SIXTEEN, {"a": without})
    assert (found["unavailable"], found["file"]) == (f"{OURS}: why", "a")
    assert "met" not in found


def attention(rate, best):
    contestants = {OURS: {way: {"ms": 1.0, "tflops": rate} for way in (FORWARD, BOTH)}}
    return {"contestants": contestants, "best": {FORWARD: best, BOTH: {"unavailable": "no other is"}}}


def test_attention_is_set_beside_the_matrix_product_and_the_best_of_the_others():
    files = {"a": content(attention={"64×64 30%": attention(0.2, {"of": "x", "ratio": 2.9})})}
    share = row("attention stage, batch 1, forward, of the", files)
    assert (share["value"], share["met"], share["target"]) == (0.4, True, "≥ 40 %")
    best = row("attention stage, batch 1, forward, best", files)
    assert (best["value"], best["met"]) == (2.9, False)
    assert row("attention stage, batch 1, forward + backward, best", files)["unavailable"] == "no other is"
    assert not any("batch 6" in one["what"] for one in targets.rows(files, "cpu"))
    six = {"a": content(attention={"64×64 30%, batch 6": attention(0.175, {"ratio": 3.0})})}
    assert row("attention stage, batch 6, forward, of the", six, "cuda")["met"]
    assert "value" not in row("attention stage, batch 1, forward, of the", six, "cuda")


def test_large_holes_are_of_the_three_layers_summed():
    def record(ours, without):
        return {"contestants": {"ours": {FORWARD: {"ms": ours}}, "ours, no hole": {FORWARD: {"ms": without}}}}

    shares = {f"Encode_{i} {share}": record(i, 2 * i) for i in (1, 2, 3) for share in ("50%", "60%")}
    shares["Encode_3 60%"] = record(9.0, 6.0)
    found = row("50-60 % hole", {"a": content(**{"mask-ratios": shares})})
    assert found["value"] == pytest.approx((1 + 2 + 3 + 1 + 2 + 9) / 24)
    del shares["Encode_2 50%"]
    assert "value" not in row("50-60 % hole", {"a": content(**{"mask-ratios": shares})})


def generator(batch=1, **others):
    names = {"ours": {"ms": 2.0}, "reference": {"ms": 3.0}, **others}
    return content(
        generator={"whole 256": {"batch": batch, "contestants": {n: {FORWARD: e} for n, e in names.items()}}}
    )


def test_inference_is_against_the_faster_of_what_is_compiled():
    both = {COMPILED_NETWORK: {"ms": 8.0}, COMPILED_GRAPHS: {"ms": 5.0}}
    assert row("generator, batch 1", {"a": generator(**both)})["value"] == 2.5
    assert "value" not in row("generator, batch 1", {"a": generator(batch=2, **both)})
    assert "value" not in row("generator, batch 1", {"a": generator()})
    both[COMPILED_GRAPHS] = {"unavailable": "why"}
    assert row("generator, batch 1", {"a": generator(**both)})["value"] == 4.0
    assert "unavailable" in row("generator, batch 1", {"a": generator(**{COMPILED_NETWORK: {"unavailable": "why"}})})


def test_memory_is_in_gib():
    record = {"whole 1024": {"contestants": {OURS: {FORWARD: {"ms": 1.0, "extra_mib": 3584.0}}}}}
    found = row("1024×1024", {"a": content(memory=record)})
    assert (found["value"], found["met"], found["target"]) == (3.5, False, "≤ 3 GiB")
    assert row("1024×1024", {"a": content(memory=record)}, "cuda")["met"]


def test_the_training_step_is_of_whole_runs():
    good = table5({"ms": 3.0}, {"ms": 4.0})
    assert row("training step", {"table5": good})["value"] == 0.75
    for other in (table5({"ms": 3.0}, {"ms": 4.0}, quick=True), table5({"ms": 3.0}, {"ms": 4.0}, complete=False)):
        assert "value" not in row("training step", {"table5": other})
    assert row("training step", {"t": table5({"unavailable": "why"}, {"ms": 4.0})})["unavailable"] == "ours, fused: why"


# ---- devices ---------------------------------------------------------------------------------------------------------


def several():
    on_gpu = dict(kind="cuda", device=H100)
    return {
        "operators-cpu": layers((0.61, 1.0), (1.0, 1.0)),
        "operators-bfloat16-nvidia-h100": layers((0.88, 1.0), (1.0, 1.0), dtype="bfloat16", **on_gpu),
        "operators-tf32-nvidia-h100": layers((0.95, 1.0), (1.0, 1.0), dtype="tf32", **on_gpu),
        "operators-float16-nvidia-h100": layers((0.11, 1.0), (1.0, 1.0), dtype="float16", **on_gpu),
        "operators-bfloat16-nvidia-h200": layers(
            (0.77, 1.0), (1.0, 1.0), kind="cuda", device="NVIDIA H200", dtype="bfloat16"
        ),
    }


def test_devices_and_precisions_are_kept_apart():
    found = {(e["device"], e["precision"]): e["rows"][0] for e in targets.as_json(several())}
    values = {key: one.get("value") for key, one in found.items()}
    assert values == {
        ("some CPU, 2 threads", "float32"): 0.61,
        (H100, "bfloat16"): 0.88,
        (H100, "tf32"): 0.95,
        ("NVIDIA H200", "bfloat16"): 0.77,
        ("NVIDIA H200", "tf32"): None,
    }
    assert {key for key, one in found.items() if "met" in one} == {key for key in values if key[1] != "tf32"}


def lines_of(text):
    return [line for line in text.splitlines() if line.startswith(f"| {SIXTEEN}")]


def test_every_device_has_a_table_with_its_own_values():
    text = targets.section(several())
    cpu, h100, h200 = lines_of(text)
    assert cpu.endswith("| ≤ 0.8 | 0.610 | met | `operators-cpu.json` |")
    files = "`operators-bfloat16-nvidia-h100.json`, `operators-tf32-nvidia-h100.json`"
    assert h100.endswith(f"| ≤ 0.9 | 0.880 | 0.950 | met | {files} |")
    assert h200.endswith("| ≤ 0.9 | 0.770 | not measured | met | `operators-bfloat16-nvidia-h200.json` |")
    places = [text.index(f"**{device}.**") for device in ("some CPU, 2 threads", H100, "NVIDIA H200")]
    assert places == sorted(places)


def test_what_one_cpu_has_measured_is_not_missed_on_another_but_what_none_has():
    record = {"whole 1024": {"contestants": {OURS: {FORWARD: {"ms": 1.0, "extra_mib": 512.0}}}}}
    files = {"a": content(device="A", memory=record), "b": layers((0.9, 1.0), (1.0, 1.0), device="B")}
    first, second, _ = targets.section(files).split("\n\n**")[1:]
    assert first.startswith("B, 2 threads.**")
    assert second.startswith("A, 2 threads.**")
    assert "| 0.500 GiB | met | `a.json` |" in second
    assert "1024×1024" not in first
    assert "16 partial" not in second
    for text in (first, second):
        assert "| ≥ 2.5 | not measured |  |  |" in text


def test_a_gpu_that_was_never_at_hand_is_said_to_be_so():
    text = targets.section({"operators-cpu": layers((0.9, 1.0), (1.0, 1.0))})
    cpu, gpu = lines_of(text)
    assert cpu.endswith("| ≤ 0.8 | 0.900 | **missed** | `operators-cpu.json` |")
    assert gpu.endswith("| ≤ 0.9 | not measured | not measured |  |  |")
    assert "**H100.**" in text


def test_the_terminal_shows_what_was_measured_of_one_kind():
    text = targets.terminal(several(), targets.CUDA)
    assert "some CPU" not in text
    assert "NVIDIA H200, tf32: not measured" in text
    line = next(line for line in text.splitlines() if "16 partial convolutions, forward, " in line)
    assert line.split()[-2:] == ["0.880", "met"]


def test_the_targets_file_is_checked_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(report, "draw", lambda: None)
    report.RESULTS.mkdir()
    report.README.write_text(f"{report.BEGIN}\n{report.END}\n")
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    file = tmp_path / "docs" / "targets.json"
    assert json.loads(file.read_text()) == targets.as_json({})
    file.write_text("[]\n")
    assert report.main(["--check"]) == 1
    assert "docs/targets.json does not show the committed results" in capsys.readouterr().err
