"""python -m benchmarks.operators: what is chosen, what is refused, what is written."""

import pytest
import torch

from benchmarks import cases, operators, results
from benchmarks import measure as m

CPU = torch.device("cpu")
ROOFS = {"tflops": 1.0, "gbytes_per_s": 1.0}


def select(**chosen):
    found = cases.select(m.Settings(CPU, torch.float32), **chosen)
    return {name: [case.name for case in some] for name, some in found.items()}


def test_all_suites_have_cases_of_unique_names_and_a_gpu_more_of_them():
    here, there = (
        cases.select(m.Settings(torch.device(device), torch.float32, compiled=True)) for device in ("cpu", "cuda")
    )
    assert list(here) == list(there) == list(cases.SUITES)
    for some in (*here.values(), *there.values()):
        assert len(some) == len({case.name for case in some}) > 0
    assert len(there["layers"]) == 3 * 16
    more = {name: {case.name for case in there[name]} - {case.name for case in here[name]} for name in here}
    assert more["attention"] == {"256×256", "half holes", "64×64 30%, batch 6"}
    assert more["shift-propagation"] == {"64×64, batch 6"}
    large = cases.select(m.Settings(CPU, torch.float32, sizes=(512, 1024)), ["layers"])["layers"]
    assert [case.name for case in large[::16]] == ["Encode_1 512", "Encode_1 1024"]
    assert large[-1].shape == "2×67×1024×1024 → 3, 3×3/1"


def test_suites_operators_and_cases_are_chosen_by_name():
    assert select(cases=["Encode_2"], suites=["layers"]) == {"layers": ["Encode_2 256"]}
    assert list(select(operators=["partial_conv2d"])) == ["layers", "mask-ratios"]
    found = select(cases=["64x64"], operators=["hole_attention"])
    assert found == {"attention": ["64×64", "64×64 30%"], "shift-propagation": ["64×64"], "scaling": ["64×64"]}
    assert select(cases=["Encode_1 30%"]) == {"mask-ratios": ["Encode_1 30%"]}
    assert len(select(cases=["Encode_1"])["mask-ratios"]) == 7


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "layer"], "unknown suite 'layer' (did you mean 'layers'?); known are layers, attention, "),
        (["--operator", "hole_atention"], "unknown operator 'hole_atention' (did you mean 'hole_attention'?); known"),
        (["--suite", "layers", "--layer", "Encode_9"], "unknown case 'Encode_9' (did you mean 'Encode_"),
        (["--shape", "65x65"], "unknown case '65x65'"),
        (["--operator", "generator", "--case", "Encode_1"], "no case of generator is called Encode_1"),
        (["--size", "300"], "the layers' size must be a multiple of 256, got 300"),
        (["--suite", "training", "--batch", "1"], "the training suite needs a batch of at least 2 at size 256, got 1"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:i, got 'tpu'"),
        (["--dtype", "tf32", "--device", "cpu"], "--dtype tf32 needs a CUDA device"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--fail-under", "0.9"], "--fail-under goes with --compare"),
    ],
)
def test_what_cannot_be_is_refused_with_what_there_is(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        operators.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_the_list_shows_every_case_operator_shape_and_alternative(capsys):
    assert operators.main(["--list", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for name, some in cases.select(m.Settings(CPU, torch.float32)).items():
        assert f"{name}: {cases.SUITES[name].title}" in out
        for case in some:
            lines = [line for line in out.splitlines() if line.startswith(f"  {case.name} ")]
            assert any(case.operator in line and line.endswith(f"  {case.shape}") for line in lines)
            assert "; ".join(case.alternatives) in out


def no_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fake(name, run):
    def prepare(settings):
        return m.Prepared({m.OURS: m.Alternative(lambda: torch.ones(1)), "other": m.Alternative(run)})

    return m.Case(name, "operator", "1×1", (m.OURS, "other"), prepare, (m.FORWARD,))


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Of results; with two suites, in which one alternative finds no memory."""
    some = [fake("small", lambda: torch.ones(1)), fake("large", no_memory)]
    suites = {name: m.Suite(f"title of {name}", "about it", lambda settings: some) for name in ("first", "second")}
    monkeypatch.setattr(cases, "SUITES", suites)
    monkeypatch.setattr(m, "roofs", lambda device, dtype: ROOFS)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def test_a_run_is_written_flat_with_what_its_figures_depend_on(folder, capsys):
    assert operators.main(["--device", "cpu", "--rounds", "3"]) == 0
    (file,) = folder.iterdir()
    assert file.name == "operators-cpu.json"
    result = results.read(file)
    assert result.facts.keys() >= {"device", "threads", "torch", "python", "commit", "command", "precision"}
    assert result.facts["roofs"] == ROOFS
    assert result.facts["suites"]["first"] == {"title": "title of first", "about": "about it"}
    assert result.suites == ["first", "second"]
    assert len(result.rows) == 2 * 2 * 2
    other = result.one(suite="second", case="large", alternative="other", pass_=m.FORWARD)
    assert other["unavailable"] == "out of memory: 2.0 GiB wanted"
    assert result.one(suite="second", case="large", alternative=m.OURS)["ratio"] == 1
    assert all(not isinstance(value, dict | list) for row in result.rows for value in row.values())
    assert "| large | ours | forward |" in capsys.readouterr().out


def test_files_are_named_and_a_part_does_not_take_the_place_of_the_whole(folder, capsys):
    operators.main(["--device", "cpu", "--dtype", "bfloat16", "--name", "mine"])
    assert [file.name for file in folder.iterdir()] == ["mine-bfloat16-cpu.json"]
    assert operators.main(["--device", "cpu", "--suite", "first"]) == 0
    assert "not saved, as this is a part only" in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 1
    operators.main(["--device", "cpu", "--suite", "first", "--name", "mine"])
    assert sorted(file.name for file in folder.iterdir()) == ["mine-bfloat16-cpu.json", "mine-cpu.json"]


def test_what_was_done_stays_where_a_run_is_cut_short(folder, monkeypatch):
    def interrupted(settings):
        raise KeyboardInterrupt

    cut = m.Case("cut", "operator", "1×1", (), interrupted)
    monkeypatch.setitem(cases.SUITES, "second", m.Suite("", "", lambda settings: [cut]))
    with pytest.raises(KeyboardInterrupt):
        operators.main(["--device", "cpu"])
    (file,) = folder.iterdir()
    assert file.name == "operators-incomplete-cpu.json"
    assert results.read(file).suites == ["first"]
    assert results.committed() == []


def test_what_compiles_is_made_to_without_being_measured(folder, monkeypatch, capsys):
    calls = []
    some = [fake("small", lambda: calls.append("other") or torch.ones(1)), fake("large", no_memory)]
    monkeypatch.setitem(cases.SUITES, "first", m.Suite("", "", lambda settings: some))
    assert operators.main(["--device", "cpu", "--suite", "first", "--compile-only", "the"]) == 0
    assert calls == ["other"]
    assert not list(folder.iterdir())
    small, large = capsys.readouterr().out.splitlines()
    assert small.startswith("small, other, forward: 0.")
    assert large.endswith("s, out of memory: 2.0 GiB wanted")
    assert operators.main(["--device", "cpu", "--suite", "first", "--compile-only", "nobody"]) == 1
