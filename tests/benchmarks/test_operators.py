"""python -m benchmarks.operators: what is chosen, what is refused, what is written; the suites of whole networks."""

import functools
import json

import pytest
import torch

from benchmarks import contest as c
from benchmarks import harness, memory, network, operators, registry, suites, training, upcat_rule
from msa_model.generator import Generator, GeneratorConfig

CPU = torch.device("cpu")
ROOFS = {"tflops": 1.0, "gbytes_per_s": 1.0}
SETTINGS = c.Settings(CPU, torch.float32, ROOFS, sizes=(32,), batch=2, rounds=1)


def select(**chosen):
    found = registry.select(c.Settings(CPU, torch.float32, {}), **chosen)
    return {name: [case.name for case in cases] for name, cases in found.items()}


def test_all_suites_have_cases_of_unique_names():
    found = select()
    assert list(found) == list(registry.SUITES)
    for names in found.values():
        assert len(names) == len(set(names)) > 0


def test_suites_operators_and_cases_are_chosen_by_name():
    assert select(shapes=["Encode_2"], suites=["layers"]) == {"layers": ["Encode_2 256"]}
    assert list(select(operators=["partial_conv2d"])) == ["layers", "mask-ratios"]
    assert select(shapes=["64x64"], operators=["hole_attention"]).keys() == {"attention", "price-of-shift", "scaling"}
    assert select(shapes=["Encode_1 30%"]) == {"mask-ratios": ["Encode_1 30%"]}
    assert len(select(shapes=["Encode_1"])["mask-ratios"]) == 7


def test_sizes_and_devices_make_cases():
    large = registry.select(c.Settings(CPU, torch.float32, {}, sizes=(512, 1024)), ["layers"])["layers"]
    assert [case.name for case in large[::16]] == ["Encode_1 512", "Encode_1 1024"]
    on_cuda = registry.select(c.Settings(torch.device("cuda"), torch.float32, {}), ["layers"])["layers"]
    assert len(on_cuda) == 3 * 16
    assert large[-1].shape == "2×67×1024×1024 → 3, 3×3/1"


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


def test_the_list_shows_every_case_operator_shape_and_contestant(capsys):
    assert operators.main(["--list", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for name, cases in registry.select(c.Settings(CPU, torch.float32, {})).items():
        assert f"{name}: {registry.SUITES[name].summary}" in out
        for case in cases:
            line = next(line for line in out.splitlines() if line.startswith(f"  {case.name} "))
            assert case.operator in line
            assert "; ".join(case.contestants) in out


def fake(name, run):
    def prepare(settings):
        contestants = {c.OURS: c.Contestant(c.Call(lambda: torch.ones(1))), "other": c.Contestant(c.Call(run))}
        return c.Contest(contestants, {c.FORWARD: None})

    return suites.Case(name, "operator", "1×1", (c.OURS, "other"), prepare)


def no_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def with_fakes(monkeypatch, tmp_path):
    """Two suites; in the first, one contestant finds no memory."""
    cases = [fake("small", lambda: torch.ones(1)), fake("large", no_memory)]
    fakes = {name: suites.Suite(name, lambda settings: cases) for name in ("first", "second")}
    monkeypatch.setattr(registry, "SUITES", fakes)
    monkeypatch.setattr(operators, "TABLES", dict.fromkeys(fakes, lambda suite: ", ".join(suite["cases"])))
    monkeypatch.setattr(harness, "roofs", lambda device, dtype: ROOFS)
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path


def test_a_run_is_written_with_what_its_figures_depend_on(with_fakes, capsys):
    assert operators.main(["--device", "cpu", "--rounds", "3"]) == 0
    (file,) = with_fakes.iterdir()
    assert file.name == "operators-cpu.json"
    content = json.loads(file.read_text())
    assert content.keys() == {"environment", "dtype", "roofs", "suites"}
    assert content["environment"].keys() >= {"device", "threads", "torch", "python", "commit", "command"}
    assert content["roofs"] == ROOFS
    assert list(content["suites"]) == ["first", "second"]
    large = content["suites"]["second"]["cases"]["large"]["contestants"]
    assert large["other"]["forward"] == {"unavailable": "out of memory: 2.0 GiB wanted"}
    assert large["ours"]["forward"]["ratio"] == 1
    assert "first, float32\nsmall, large" in capsys.readouterr().out


def test_other_precisions_have_files_of_their_own(with_fakes):
    operators.main(["--device", "cpu", "--dtype", "bfloat16", "--name", "mine"])
    assert [file.name for file in with_fakes.iterdir()] == ["mine-bfloat16-cpu.json"]


def test_a_part_does_not_take_the_place_of_the_whole(with_fakes, capsys):
    assert operators.main(["--device", "cpu", "--suite", "first"]) == 0
    assert not list(with_fakes.iterdir())
    assert "not saved, as this is a part only" in capsys.readouterr().err
    operators.main(["--device", "cpu", "--suite", "first", "--name", "mine"])
    assert [file.name for file in with_fakes.iterdir()] == ["mine-cpu.json"]


def test_no_save(with_fakes):
    assert operators.main(["--device", "cpu", "--no-save"]) == 0
    assert not list(with_fakes.iterdir())


def test_what_was_done_stays_where_a_run_is_cut_short(with_fakes, monkeypatch):
    def interrupted(settings):
        raise KeyboardInterrupt

    cut = suites.Case("cut", "operator", "1×1", (), interrupted)
    monkeypatch.setitem(registry.SUITES, "second", suites.Suite("", lambda settings: [cut]))
    with pytest.raises(KeyboardInterrupt):
        operators.main(["--device", "cpu"])
    (file,) = with_fakes.iterdir()
    assert file.name == "operators-incomplete-cpu.json"
    assert list(json.loads(file.read_text())["suites"]) == ["first"]


def test_what_compiles_is_made_to_without_being_measured(with_fakes, monkeypatch, capsys):
    calls = []
    cases = [fake("small", lambda: calls.append("other") or torch.ones(1)), fake("large", no_memory)]
    monkeypatch.setitem(registry.SUITES, "first", suites.Suite("", lambda settings: cases))
    assert operators.main(["--device", "cpu", "--suite", "first", "--compile-only", "the"]) == 0
    assert calls == ["other"]
    assert not list(with_fakes.iterdir())
    small, large = capsys.readouterr().out.splitlines()
    assert small.startswith("small, other, forward: 0.")
    assert large.endswith("s, out of memory: 2.0 GiB wanted")
    assert operators.main(["--device", "cpu", "--suite", "first", "--compile-only", "nobody"]) == 1


# ---- whole networks, small -------------------------------------------------------------------------------------------


def test_the_generators_contestants_agree(monkeypatch):
    monkeypatch.setattr(network, "Generator", functools.partial(Generator, base_width=4, depth=4))
    for levels in network.NETWORKS.values():
        contest = network.prepare(levels, 32, SETTINGS)
        assert not any(c.judged(contest, CPU).values())
        call, *rest = contest.contestants[c.OURS]
        contest.contestants[c.OURS] = c.Contestant(c.Call(lambda run=call.run: run() + 0.01), *rest)
        assert c.judged(contest, CPU)[c.OURS]


def test_compiled_generators_take_part_where_asked_for_and_graphs_of_their_own_on_cuda():
    contestants = {
        device: network.cases(c.Settings(torch.device(device), torch.float32, {}, compiled=True))[0].contestants
        for device in ("cpu", "cuda")
    }
    assert contestants["cpu"] == (c.OURS, network.REFERENCE, network.COMPILED)
    assert contestants["cuda"] == (*contestants["cpu"], network.COMPILED_GRAPHS)


def test_memory_is_of_one_image_whatever_the_batch(monkeypatch):
    monkeypatch.setattr(network, "Generator", functools.partial(Generator, base_width=4, depth=4))
    monkeypatch.setattr(memory, "SIZE", 64)
    (case,) = memory.cases(SETTINGS)
    record = suites.measure_case(case, SETTINGS)
    assert (record["shape"], record["batch"]) == ("1×3×64×64", 1)
    assert list(record["contestants"]) == [c.OURS]
    held = record["contestants"][c.OURS][c.FORWARD]["extra_mib"] * 2**20
    assert held >= 2 * 4 * 64 * 64  # a layer's output alone


@pytest.fixture
def small_trainer(monkeypatch):
    monkeypatch.setattr(training, "GeneratorConfig", functools.partial(GeneratorConfig, base_width=4, depth=4))


def test_a_training_step_on_both_operators(small_trainer):
    record = c.measure(training.prepare(32, SETTINGS), SETTINGS)
    assert record["gradient_difference"] < 1e-2
    for ways in record["contestants"].values():
        assert ways[c.STEP].keys() == {"ms", "quartiles_ms", "ratio", "extra_mib"}


def test_a_training_step_with_other_gradients_is_not_reported(small_trainer, monkeypatch):
    monkeypatch.setattr(training, "relative_difference", lambda a, b: float("nan"))
    entries = c.measure(training.prepare(32, SETTINGS), SETTINGS)["contestants"]
    assert entries[c.OURS][c.STEP] == {"unavailable": "its gradients differ from the reference's"}
    assert "ratio" not in entries[network.REFERENCE][c.STEP]


def test_both_forms_of_the_decoders_rule_run(monkeypatch):
    seen = []
    original = upcat_rule.partial_conv_upcat.phases_win
    monkeypatch.setattr(
        upcat_rule.partial_conv_upcat, "phases_win", lambda *call: seen.append(original(*call)) or seen[-1]
    )
    contest = upcat_rule.prepare(4, 3, SETTINGS)
    assert not any(c.judged(contest, CPU).values())
    assert seen == [True, False]
    record = c.measure(contest, SETTINGS)
    assert record["contestants"][upcat_rule.PHASES][c.FORWARD]["ratio"] == 1
    assert (upcat_rule.rule_picks(2, 4, 4), upcat_rule.rule_picks(2, 4, 3)) == (upcat_rule.PHASES, upcat_rule.CONCAT)
