"""Tables, README and pictures show exactly what the result files hold."""

import json
import random
import re

import pytest
import torch

from benchmarks import attention, layers, mask_ratios, network, operators_report, plots, registry, report, tables
from benchmarks import attention_cases as names
from benchmarks import contest as c
from benchmarks.shift_price import WITHOUT
from benchmarks.upcat_rule import CONCAT, PHASES

WAYS = (c.FORWARD, c.BOTH)
WAYS_OF = {"layers": WAYS, "attention": WAYS, "price-of-shift": WAYS, "training": (c.STEP,)}


def entry(draw):
    value = lambda: float(f"{draw.uniform(1, 99):.4g}")  # noqa: E731
    return {"ms": value(), "ratio": value(), "extra_mib": value(), "tflops": value() / 100, "roof_share": value() / 100}


def result_file(device):
    """Of all suites on a device, with numbers at random, so that no two are alike."""
    draw = random.Random(0)
    settings = c.Settings(torch.device(device), torch.float32, {})
    suites = {}
    for name, suite in registry.SUITES.items():
        records = {}
        for case in suite.cases(settings):
            ways = WAYS_OF.get(name, (c.FORWARD,))
            records[case.name] = {
                "operator": case.operator,
                "shape": case.shape,
                **case.facts,
                "work": {way: {"flop": draw.randrange(10**8, 10**10), "bytes": 10**7} for way in ways},
                "contestants": {one: {way: entry(draw) for way in ways} for one in case.contestants},
            }
            if device == "cuda":
                for one, entries in records[case.name]["contestants"].items():
                    for way in entries.values():
                        way |= {"graph": one != names.GATHERED and name != "training", "eager_ms": 3 * way["ms"]}
        suites[name] = {"cases": records, **suite.conclude(records, "float32")}
    environment = {
        "device": f"some {device.upper()}",
        "device_kind": device,
        "threads": 2,
        "torch": "2",
        "commit": "abc",
        "command": "x",
        **({"cuda": "13", "driver": "1"} if device == "cuda" else {}),
    }
    roofs = {"tflops": 0.5, "gbytes_per_s": 20.0}
    return {"environment": environment, "dtype": "float32", "roofs": roofs, "suites": suites}


@pytest.fixture
def content():
    """On a CPU; some numbers are missing."""
    result = result_file("cpu")
    suites = result["suites"]
    suites["attention"]["cases"]["64×64"]["contestants"][names.FLEX][c.BOTH] = {"unavailable": "no backward"}
    for name, why in ((names.DENSE, "out of memory: 16.0 GiB wanted"), (names.GATHERED, "expected to take 36 s")):
        suites["scaling"]["cases"]["256×256"]["contestants"][name][c.FORWARD] = {"unavailable": why}
    suites["layers"]["cases"]["Encode_7 256"] |= {"unavailable": "out of memory", "contestants": {}}
    return json.loads(json.dumps(result))


@pytest.fixture
def on_cuda():
    return json.loads(json.dumps(result_file("cuda")))


def rows(text):
    """Cells of a table's rows, without its header."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]


def shows(cell, value):
    """Whether a cell is the value rounded to the cell's digits."""
    assert re.fullmatch(r"\d+(\.\d+)?%?", cell), cell
    digits = cell.rstrip("%")
    unit = 10.0 ** -len(digits.partition(".")[2])
    scale = 100 if cell.endswith("%") else 1
    return abs(float(digits) - scale * value) <= 0.5000001 * unit


def check(cells, values):
    assert len(cells) == len(values)
    for cell, value in zip(cells, values, strict=True):
        assert shows(cell, value), (cell, value)


def times(record, over, under):
    return [record["contestants"][over][way]["ms"] / record["contestants"][under][way]["ms"] for way in WAYS]


def ours(record, *quantities, ways=WAYS):
    return [record["contestants"][c.OURS][way][quantity] for quantity in quantities for way in ways]


def test_layers(content):
    suite = content["suites"]["layers"]
    found = rows(tables.layer_table(suite))
    assert [row[0] for row in found] == list(suite["cases"])
    for row, record in zip(found, suite["cases"].values(), strict=True):
        assert row[1] == record["shape"]
        if "unavailable" in record:
            assert row[2:] == ["not available: out of memory"] * 4 + [""] * 6
            continue
        ratios = times(record, c.OURS, layers.BARE) + times(record, layers.CHANNEL_MASKS, c.OURS)
        check(row[2:], ratios + ours(record, "tflops", "roof_share", "extra_mib"))
    for row, record in zip(rows(tables.layer_sums(suite)), suite["sums"].values(), strict=True):
        check(row[1:], times(record, c.OURS, layers.BARE) + times(record, layers.CHANNEL_MASKS, c.OURS))


def test_a_compiled_competitor_has_columns_of_its_own(content):
    suite = content["suites"]["layers"]
    record = suite["cases"]["Encode_1 256"]
    record["contestants"][layers.COMPILED] = {way: {"ms": 5.0} for way in WAYS}
    (row,) = rows(tables.layer_table({"cases": {"Encode_1 256": record}}))
    check(row[6:8], times(record, layers.COMPILED, c.OURS))


def without_target(cell):
    return re.sub(r" \([≥≤] [\d.]+\)", "", cell)


def test_attention(content):
    suite = content["suites"]["attention"]
    found = iter(rows(tables.attention_table(suite)))
    for record in suite["cases"].values():
        label = record["shape"]
        for name, ways in record["contestants"].items():
            row = next(found)
            assert row[:2] == [label, name]
            label = ""
            for i, way in enumerate(WAYS):
                one = ways[way]
                cells = [without_target(row[column + i]) for column in (2, 4, 6, 8)]
                if "unavailable" in one:
                    assert cells == ["not available: no backward", "", "", ""]
                else:
                    check(cells, [one[quantity] for quantity in ("ratio", "tflops", "roof_share", "extra_mib")])
    assert next(found, None) is None
    for row, record in zip(rows(tables.attention_summary(suite)), suite["cases"].values(), strict=True):
        assert row[0] == record["shape"]
        for cell, way in zip(row[1:3], WAYS, strict=True):
            best = record["best"][way]
            if "unavailable" in best:
                assert cell == "not available: no other is"
            else:
                number, _, whose = cell.partition(", ")
                check([number], [best["ratio"]])
                assert whose == best["of"]
        check(row[3:], ours(record, "tflops", "roof_share", "extra_mib"))


def test_targets_stand_beside_the_values_they_are_for(content):
    suite = content["suites"]["attention"]
    shown = re.findall(r"[≥≤] [\d.]+", tables.attention_table(suite) + tables.growth_table(suite))
    bounds = [b for _, *both in attention.TARGETS["float32"].values() for b in both if b is not None]
    assert sorted(float(text[2:]) for text in shown) == sorted(bounds)
    dense = next(row for row in rows(tables.attention_table(suite)) if row[1] == names.DENSE)
    assert dense[2].endswith("(≥ 10)")
    large = rows(tables.attention_table(suite))[-1]
    assert large[8].endswith("(≤ 64)")
    for row, ways in zip(rows(tables.growth_table(suite)), suite["growth"].values(), strict=True):
        check(map_(without_target, row[1:]), [ways[way]["growth"] for way in WAYS])


def map_(function, cells):
    return [function(cell) for cell in cells]


def test_price_of_shift(content):
    suite = content["suites"]["price-of-shift"]
    for row, record in zip(rows(tables.price_table(suite)), suite["cases"].values(), strict=True):
        assert row[0] == record["shape"]
        check(row[1:], times(record, c.OURS, WITHOUT) + ours(record, "tflops", "roof_share"))


def test_mask_ratios(content):
    suite = content["suites"]["mask-ratios"]
    found = {row[0]: row[1:] for row in rows(tables.mask_ratio_table(suite))}
    assert len(found) == 2 * 4
    forward = {
        name: {n: ways[c.FORWARD]["ms"] for n, ways in r["contestants"].items()} for name, r in suite["cases"].items()
    }
    for family in mask_ratios.LAYERS:
        for title, under in (("ours / bare conv", layers.BARE), ("ours / ours without hole", mask_ratios.NO_HOLE)):
            of_share = [forward[f"{family} {share:.0%}"] for share in mask_ratios.RATIOS]
            check(found[f"{family}: {title}"], [ms[c.OURS] / ms[under] for ms in of_share])
    of_share = [forward[f"{mask_ratios.ATTENTION} {share:.0%}"] for share in mask_ratios.RATIOS]
    check(found[f"{mask_ratios.ATTENTION}: ms"], [ms[c.OURS] for ms in of_share])
    check(found[f"{mask_ratios.ATTENTION}: gathered / ours"], [ms[names.GATHERED] / ms[c.OURS] for ms in of_share])


def test_scaling(content):
    suite = content["suites"]["scaling"]
    for row, record in zip(rows(tables.scaling_table(suite)), suite["cases"].values(), strict=True):
        for cell, ways in zip(row[1:], record["contestants"].values(), strict=True):
            one = ways[c.FORWARD]
            if "unavailable" in one:
                assert cell == one["unavailable"]
            else:
                ms, mib = re.fullmatch(r"([\d.]+) ms, ([\d.]+) MiB", cell).groups()
                check([ms, mib], [one["ms"], one["extra_mib"]])


@pytest.mark.parametrize("name", ["generator", "training"])
def test_networks(content, name):
    suite = content["suites"][name]
    (way,) = WAYS_OF.get(name, (c.FORWARD,))
    for row, (case, record) in zip(rows(tables.network_table(suite)), suite["cases"].items(), strict=True):
        assert row[:2] == [f"{case}, {record['shape']}", network.REFERENCE]
        one, other = (record["contestants"][n][way] for n in (c.OURS, network.REFERENCE))
        check(row[2:], [other["ms"] / one["ms"], one["ms"], one["extra_mib"], other["ms"], other["extra_mib"]])


def test_memory_of_one_large_image(content):
    suite = content["suites"]["memory"]
    (row,) = rows(tables.memory_table(suite))
    (record,) = suite["cases"].values()
    check(row[1:], [record["contestants"][c.OURS][c.FORWARD]["extra_mib"] / 1024])
    record |= {"unavailable": "out of memory", "contestants": {}}
    assert rows(tables.memory_table(suite))[0][1:] == ["not available: out of memory"]


def test_the_decoders_rule(content):
    suite = content["suites"]["upcat-rule"]
    for row, record in zip(rows(tables.rule_table(suite)), suite["cases"].values(), strict=True):
        check(row[:3], [record["channels"], record["small_pixels"], record["contestants"][CONCAT][c.FORWARD]["ratio"]])
        assert row[3] in (PHASES, CONCAT)
        assert row[3] == record["rule_picks"]


@pytest.mark.parametrize(
    ("value", "count", "shown"),
    [(10360.4, 4, "10360"), (359.04, 4, "359.0"), (0.000534, 3, "0.000534"), (1.0, 3, "1.00")],
)
def test_digits_are_written_out(value, count, shown):
    assert tables.digits(value, count) == shown


# ---- on CUDA ---------------------------------------------------------------------------------------------------------


def test_eager_times_stand_beside_those_of_graphs(on_cuda):
    suite = on_cuda["suites"]["layers"]
    for row, record in zip(rows(tables.layer_sums(suite)), suite["sums"].values(), strict=True):
        check(row[5:], [quotient_of(record, way, "eager_ms") for way in WAYS])
        check(row[1:3], [quotient_of(record, way, "ms") for way in WAYS])
    suite = on_cuda["suites"]["generator"]
    for row, record in zip(rows(tables.network_table(suite)), suite["cases"].values(), strict=True):
        one, other = (record["contestants"][name][c.FORWARD] for name in (c.OURS, network.REFERENCE))
        check(row[3:], [e[name] for e in (one, other) for name in ("ms", "eager_ms", "extra_mib")])


def quotient_of(record, way, key):
    return record["contestants"][c.OURS][way][key] / record["contestants"][layers.BARE][way][key]


def test_of_attention_times_are_shown_and_whose_are_eager(on_cuda):
    suite = on_cuda["suites"]["attention"]
    found = rows(tables.attention_table(suite))
    records = [(name, ways) for record in suite["cases"].values() for name, ways in record["contestants"].items()]
    for row, (name, ways) in zip(found, records, strict=True):
        assert row[1] == (f"{name}, eager" if name == names.GATHERED else name)
        check(row[10:], [ways[way][key] for key in ("ms", "eager_ms") for way in WAYS])


def test_training_steps_are_eager_all_and_have_no_columns_for_it(on_cuda):
    header = tables.network_table(on_cuda["suites"]["training"]).splitlines()[0]
    assert "eager" not in header
    assert "eager ms" in tables.network_table(on_cuda["suites"]["generator"]).splitlines()[0]


def test_every_suite_and_picture_of_a_gpu_can_be_shown(on_cuda):
    section = operators_report.section(on_cuda, {})
    assert "some CUDA, float32" in section
    assert "CUDA graph" in section
    assert "CUDA graph" not in operators_report.section(result_file("cpu"), {})
    pictures = operators_report.pictures_of(on_cuda)
    assert list(pictures) == ["scaling", "roofline"]
    for picture in pictures.values():
        assert picture(on_cuda).startswith(b"\x89PNG")


# ---- the README ------------------------------------------------------------------------------------------------------


def test_every_suite_has_a_table_and_a_place_in_the_readme(content):
    assert tables.TABLES.keys() == operators_report.SUITES.keys() == registry.SUITES.keys()
    section = operators_report.section(content, {})
    for name, suite in content["suites"].items():
        for text in operators_report.SUITES[name](suite):
            assert text in section
        for line in tables.TABLES[name](suite).splitlines():
            assert line in section


@pytest.fixture
def readme(tmp_path, monkeypatch, content):
    """A README in a folder of its own, with one result file."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    report.RESULTS.mkdir()
    (report.RESULTS / "operators-cpu.json").write_text(json.dumps(content))
    report.README.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return report.README


def test_the_check_sees_a_stale_readme(readme, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda: None)
    assert report.main(["--check"]) == 1
    assert "run python -m benchmarks.report" in capsys.readouterr().err
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    assert readme.read_text().startswith("before\n")
    assert readme.read_text().endswith("after\n")
    assert f"{report.BEGIN}\nold" not in readme.read_text()


def test_pictures_are_where_the_readme_shows_them(readme):
    report.main([])
    shown = re.findall(r"!\[.+?\]\((.+?)\)", readme.read_text())
    assert shown == ["docs/scaling-operators-cpu.png", "docs/roofline-operators-cpu.png"]
    for path in shown:
        assert (readme.parent / path).read_bytes().startswith(b"\x89PNG")


def test_gpus_come_after_all_that_is_a_cpus_and_have_targets_of_their_own(readme, on_cuda, content):
    (report.RESULTS / "attention-a-gpu.json").write_text(json.dumps(on_cuda))
    (report.RESULTS / "zeta-cpu.json").write_text(json.dumps(content))
    text = report.rendered(readme.read_text())
    titles = re.findall(r"### Operators on (.+), float32", text)
    assert titles == ["some CPU", "some CPU", "some CUDA"]
    assert re.findall(r"^\*\*(some .+?)\.\*\*", text, re.MULTILINE)[:1] == ["some CPU, 2 threads"]


def test_results_that_were_cut_short_are_not_shown(readme, content):
    wanted = report.rendered(readme.read_text())
    (report.RESULTS / "other-incomplete-cpu.json").write_text(json.dumps(content))
    assert report.rendered(readme.read_text()) == wanted


def test_a_result_in_another_layout_is_named(readme):
    (report.RESULTS / "attention-cpu.json").write_text("{}")
    with pytest.raises(ValueError, match=r"attention-cpu\.json is no result of .* run it again"):
        report.main(["--check"])


# ---- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [plots.scaling, plots.roofline], ids=lambda picture: picture.__name__)
def test_pictures_are_the_same_bytes_for_the_same_data_alone(content, picture):
    first = picture(content)
    assert first == picture(json.loads(json.dumps(content)))
    assert not re.search(b"Software|tIME", first)
    content["suites"]["scaling"]["cases"]["64×64"]["contestants"][c.OURS][c.FORWARD]["ms"] *= 2
    content["suites"]["layers"]["cases"]["Encode_2 256"]["contestants"][c.OURS][c.FORWARD]["tflops"] *= 2
    assert first != picture(content)


def test_points_of_the_roofline(content):
    records = content["suites"]["layers"]["cases"] | content["suites"]["attention"]["cases"]
    found = {label: (x, y) for x, y, label, _ in plots.achieved(content, c.BOTH)}
    short = {f"{name[0]}{name[7]}": name for name in content["suites"]["layers"]["cases"]}
    assert found.keys() == (short.keys() | content["suites"]["attention"]["cases"].keys()) - {"E7"}
    for label, point in found.items():
        record = records[short.get(label, label)]
        work = record["work"][c.BOTH]
        assert point == (work["flop"] / work["bytes"], record["contestants"][c.OURS][c.BOTH]["tflops"])


def test_a_file_without_their_suites_has_no_pictures(content):
    content["suites"] = {"generator": content["suites"]["generator"]}
    assert operators_report.pictures_of(content) == {}
