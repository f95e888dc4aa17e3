"""Two result files side by side: what is shown, what counts as a regression, what is no comparison."""

import copy
import json

import pytest

from benchmarks import compare, operators

OURS, OTHER = "ours", "other"


def content():
    def entries(**ratios):
        return {name: {"forward": {"ms": 10 * ratio, "ratio": ratio}} for name, ratio in ratios.items()}

    return {
        "environment": {"device": "some CPU", "threads": 2, "commit": "aaa"},
        "dtype": "float32",
        "suites": {
            "layers": {
                "cases": {
                    "first": {"shape": "1", "contestants": entries(ours=1.0, other=2.0)},
                    "second": {"shape": "2", "contestants": entries(ours=1.0, other=4.0)},
                },
                "sums": {"all": {"contestants": entries(ours=1.0, other=3.0)}},
            }
        },
    }


def entry(result, case, contestant, part="cases"):
    return result["suites"]["layers"][part][case]["contestants"][contestant]["forward"]


@pytest.fixture
def run(tmp_path, capsys):
    """Compares two contents as the command does: exit code, output, errors."""

    def compared(old, new, *options):
        files = [tmp_path / name for name in ("old.json", "new.json")]
        for file, one in zip(files, (old, new), strict=True):
            file.write_text(one if isinstance(one, str) else json.dumps(one))
        code = operators.main(["--compare", *map(str, files), *options])
        return code, *capsys.readouterr()

    return compared


def test_every_time_and_ratio_is_shown_with_its_change(run):
    old, new = content(), content()
    new["environment"]["commit"] = "bbb"
    entry(new, "first", OTHER).update(ms=30.0, ratio=1.5)
    code, out, _ = run(old, new)
    assert code == 0
    lines = {
        line.partition("forward")[0].strip(" ,"): line.split("forward")[1].split() for line in out.splitlines()[2:]
    }
    assert "aaa → bbb" in out
    assert lines == {
        "layers: first: ours": ["10", "10", "1.00", "1", "1", "1.00"],
        "layers: first: other": ["20", "30", "1.50", "2", "1.5", "0.75"],
        "layers: second: ours": ["10", "10", "1.00", "1", "1", "1.00"],
        "layers: second: other": ["40", "40", "1.00", "4", "4", "1.00"],
        "layers: all: ours": ["10", "10", "1.00", "1", "1", "1.00"],
        "layers: all: other": ["30", "30", "1.00", "3", "3", "1.00"],
    }


@pytest.mark.parametrize(("ratio", "code"), [(3.7, 0), (3.6, 0), (3.59, 1), (8.0, 0)])
def test_a_ratio_may_fall_to_the_share_but_not_below(run, ratio, code):
    new = content()
    entry(new, "second", OTHER)["ratio"] = ratio
    result, _, errors = run(content(), new, "--fail-under", "0.9")
    assert result == code
    assert ("layers: second: other, forward: ratio 4 → 3.59, 0.90 of it" in errors) == bool(code)
    assert errors.count("\n") == code


def test_times_alone_are_no_regression(run):
    new = content()
    for case in ("first", "second"):
        for name in (OURS, OTHER):
            entry(new, case, name)["ms"] *= 5
    assert run(content(), new, "--fail-under", "0.9")[0] == 0


def test_a_sum_counts_too(run):
    new = content()
    entry(new, "all", OTHER, "sums")["ratio"] = 1.0
    code, _, errors = run(content(), new, "--fail-under", "0.9")
    assert code == 1
    assert "layers: all: other" in errors


def test_ours_must_not_go_missing_but_competitors_may(run):
    new = content()
    new["suites"]["layers"]["cases"]["second"]["contestants"][OTHER]["forward"] = {"unavailable": "no memory"}
    code, out, _ = run(content(), new, "--fail-under", "0.9")
    assert code == 0
    assert "not available: no memory" in out
    new["suites"]["layers"]["cases"]["second"]["contestants"][OURS]["forward"] = {"unavailable": "it is wrong"}
    code, _, errors = run(content(), new, "--fail-under", "0.9")
    assert code == 1
    assert "layers: second: ours, forward: it is wrong" in errors
    new["suites"]["layers"]["cases"]["second"] = {"shape": "2", "unavailable": "out of memory", "contestants": {}}
    assert "layers: second: ours, forward: out of memory" in run(content(), new, "--fail-under", "0.9")[2]
    del new["suites"]["layers"]["cases"]["second"]
    assert "layers: second: ours, forward: not in the new file" in run(content(), new, "--fail-under", "0.9")[2]


def test_a_new_case_is_shown(run):
    new = content()
    new["suites"]["layers"]["cases"]["third"] = copy.deepcopy(new["suites"]["layers"]["cases"]["second"])
    code, out, _ = run(content(), new, "--fail-under", "0.9")
    assert code == 0
    assert ["-", "40", "-", "4"] in [
        line.split("forward")[1].split() for line in out.splitlines() if "third: other" in line
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda new: new["environment"].update(device="other CPU"), "differ in device: some CPU and other CPU"),
        (lambda new: new["environment"].update(threads=8), "differ in threads: 2 and 8"),
        (lambda new: new.update(dtype="tf32"), "differ in dtype: float32 and tf32"),
        (lambda new: new["suites"].update(attention={}), "differ in suites: layers and attention, layers"),
        (
            lambda new: new["suites"]["layers"]["cases"]["first"].update(shape="9"),
            "differ in the shape of layers, first: 1 and 9",
        ),
    ],
)
def test_what_is_no_comparison_is_refused_by_name(run, change, said):
    new = content()
    change(new)
    code, _, errors = run(content(), new)
    assert code == 2
    assert said in errors


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON"), ("{}", "is no result of benchmarks.operators")])
def test_files_of_another_kind(run, text, said):
    code, _, errors = run(content(), text)
    assert code == 2
    assert f"new.json: {said}" in errors


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert compare.main(str(tmp_path / "a.json"), str(tmp_path / "b.json"), None) == 2
    assert "a.json: cannot be read: No such file" in capsys.readouterr().err
