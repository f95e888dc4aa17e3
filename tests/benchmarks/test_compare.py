"""Two results side by side: what is shown, what counts as a regression, what is no comparison."""

import pytest

from benchmarks import operators, results


def content():
    """Two cases and their sum, each with ours and another alternative."""
    facts = {"device": "some CPU", "threads": 2, "commit": "aaa", "precision": "float32"}
    rows = [
        {"suite": "layers", "case": case, "alternative": name, "pass": "forward", "ms": 10.0 * ratio, "ratio": ratio}
        | ({} if case == "sum" else {"shape": case})
        for case, other in (("first", 2.0), ("second", 4.0), ("sum", 3.0))
        for name, ratio in (("ours", 1.0), ("other", other))
    ]
    return {"facts": facts, "rows": rows}


def row(content, case, name):
    return next(row for row in content["rows"] if (row["case"], row["alternative"]) == (case, name))


@pytest.fixture
def run(tmp_path, capsys):
    """Compares two contents as the command does: exit code, output, errors."""

    def compared(old, new, *options):
        files = [tmp_path / name for name in ("old.json", "new.json")]
        for file, one in zip(files, (old, new), strict=True):
            file.write_text(one if isinstance(one, str) else results.as_text(**one))
        code = operators.main(["--compare", *map(str, files), *options])
        return code, *capsys.readouterr()

    return compared


def test_every_time_and_ratio_is_shown_with_its_change(run):
    new = content()
    new["facts"]["commit"] = "bbb"
    row(new, "first", "other").update(ms=30.0, ratio=1.5)
    new["rows"].append(row(new, "second", "other") | {"case": "third"})
    code, out, _ = run(content(), new)
    assert code == 0
    assert "aaa → bbb" in out
    lines = [line.split() for line in out.splitlines() if line.startswith("layers")]
    found = {(words[1], words[2]): words[4:10] for words in lines}
    assert len(found) == 7
    assert found["first", "other"] == ["20", "30", "1.5", "2", "1.5", "0.75"]
    assert found["sum", "ours"] == ["10", "10", "1", "1", "1", "1"]
    assert found["third", "other"] == ["-", "40", "-", "-", "4", "-"]


@pytest.mark.parametrize(("ratio", "code"), [(3.7, 0), (3.6, 0), (3.59, 1), (8.0, 0)])
@pytest.mark.parametrize("case", ["second", "sum"])
def test_a_ratio_may_fall_to_the_share_but_not_below_and_times_alone_are_no_regression(run, case, ratio, code):
    old, new = content(), content()
    row(old, case, "other")["ratio"] = 4.0
    row(new, case, "other").update(ratio=ratio, ms=1e6)
    result, _, errors = run(old, new, "--fail-under", "0.9")
    assert result == code
    assert (f"layers: {case}: other, forward: ratio 4.0 → 3.59" in errors) == bool(code)
    assert errors.count("\n") == code


@pytest.mark.parametrize(("name", "code"), [("ours", 1), ("other", 0)])
def test_ours_must_not_go_missing_but_others_may(run, name, code):
    new = content()
    one = row(new, "second", name)
    del one["ms"], one["ratio"]
    one["unavailable"] = "no memory"
    result, out, errors = run(content(), new, "--fail-under", "0.9")
    assert result == code
    assert "no memory" in out
    assert ("layers: second: ours, forward: ratio 1.0 → nan" in errors) == bool(code)
    new["rows"].remove(one)
    assert run(content(), new, "--fail-under", "0.9")[0] == code


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda new: new["facts"].update(device="other CPU"), "differ in device: some CPU and other CPU"),
        (lambda new: new["facts"].update(threads=8), "differ in threads: 2 and 8"),
        (lambda new: new["facts"].update(precision="tf32"), "differ in precision: float32 and tf32"),
        (lambda new: new["rows"].append({"suite": "a"}), "differ in suites: ['layers'] and ['a', 'layers']"),
        (lambda new: new["rows"][0].update(shape="9"), "differ in the shape of layers, first: first and 9"),
        (lambda new: new.clear(), "new.json: is no result of these benchmarks"),
    ],
)
def test_what_is_no_comparison_is_refused_by_name(run, change, said):
    new = content()
    change(new)
    code, _, errors = run(content(), new if new else "{}")
    assert code == 2
    assert said in errors


def test_files_that_cannot_be_read(run, tmp_path, capsys):
    assert "new.json: is not JSON" in run(content(), "{")[2]
    assert operators.main(["--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "a.json: cannot be read: No such file" in capsys.readouterr().err
