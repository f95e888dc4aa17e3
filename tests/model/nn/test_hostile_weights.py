"""Files of weights are not believed before they are compared: one line for every lie, and memory for none."""

import io
import json
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from msa_model import Generator, GeneratorConfig, load_released
from msa_model.nn import generator as generator_file
from msa_model.nn import safetensors_files, state_dicts
from msa_model.nn.vgg import VGG16Features

SMALL = {"base_width": 2, "depth": 2, "attention_levels": []}


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return Generator(**SMALL).state_dict()


@pytest.fixture
def saved(tmp_path):
    """Writes a file whose configuration and tensors need not agree."""

    def save(config, tensors):
        text = config if isinstance(config, str) else json.dumps(SMALL | config)
        path = tmp_path / "weights.safetensors"
        save_file(dict(tensors), path, {"format": generator_file.FORMAT, "config": text})
        return path

    return save


def refusal(path, load=Generator.load):
    with pytest.raises(ValueError, match=r".") as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 1500
    return message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"base_width": 1200}, "its base_width is 1200, at most 1024 is loaded"),
        ({"base_width": 2**62}, "base_width must be positive, a whole number up to 1048576, got 4611686018427387904"),
        ({"base_width": 8.0}, "base_width must be positive, a whole number"),
        ({"base_width": True}, "base_width must be positive, a whole number"),
        ({"depth": 13}, "depth must be between 2 and 12, got 13"),
        ({"radius": 10**30}, "radius must be a whole number from 0 to 65535, got 1000000000000"),
        ({"scale": "x"}, "scale must be a finite number, got 'x'"),
        ({"scale": None}, "scale must be a finite number, got None"),
        ({"scale": float("nan")}, "scale must be a finite number, got nan"),
        ({"scale": 10**400}, "scale must be a finite number, got 1000"),
        ({"se_ratio": float("inf")}, "se_ratio must be a number from 0 to 64, got inf"),
        ({"se_ratio": -1}, "se_ratio must be a number from 0 to 64, got -1"),
        ({"renormalize": "no"}, "renormalize must be true or false, got 'no'"),
        ({"variant": ["paper"]}, "variant must be 'paper' or 'released'"),
        ({"backend": "tpu"}, "backend: unknown backend 'tpu'"),
        ({"backend": {}}, "backend: unknown backend {}"),
        ({"attention_levels": [2] * 100_000}, "attention_levels must be decoder levels between 2 and depth=2, at m"),
        ({"attention_levels": "2"}, "attention_levels must be decoder levels"),
        ({"attention_levels": 2}, "attention_levels must be decoder levels"),
        ({"attention_levels": [2.0]}, "attention_levels must be decoder levels"),
        ({"width": 3}, "its configuration has an unknown option 'width'"),
        ("[" * 100_000, "its configuration cannot be read: its JSON is nested too deeply"),
        ('{"depth": ' + "9" * 5000 + "}", "its configuration cannot be read: Exceeds the limit"),
        ('{"depth": 2, "depth": 3}', "its configuration cannot be read: a key stands there twice"),
        ("[]", "its configuration cannot be read: its JSON is no object"),
        ("", "its configuration cannot be read"),
    ],
)
def test_configurations_are_checked_before_a_network_is_built(saved, tensors, monkeypatch, config, message):
    path = saved(config, tensors)
    monkeypatch.setattr(generator_file, "EncoderLayer", lambda *arguments: pytest.fail("built"))
    assert message in refusal(path)


def test_only_shapes_exist_until_the_tensors_fit(saved, tensors, monkeypatch):
    path = saved({"base_width": 1024, "depth": 12}, {"x": torch.zeros(1)})
    built = []
    init = Generator.__init__

    def spy(self, *arguments, **options):
        init(self, *arguments, **options)
        built.append({parameter.device.type for parameter in self.parameters()})

    monkeypatch.setattr(Generator, "__init__", spy)
    monkeypatch.setattr(safetensors_files.SafetensorsFile, "tensors", lambda self: pytest.fail("read"))
    assert "does not fit its configuration: missing: encoder.0.conv.weight" in refusal(path)
    assert built == [{"meta"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.0.conv.bias"), "missing: encoder.0.conv.bias"),
        (lambda t: t.update(more=torch.zeros(3)), "unknown: more"),
        (lambda t: t.update({"encoder.0.conv.bias": torch.zeros(3)}), r"encoder.0.conv.bias (3,) (wanted (2,))"),
        (lambda t: t.update({"encoder.0.conv.bias": torch.zeros(2).int()}), "of another dtype: encoder.0.conv.bias"),
        (lambda t: t.update({"encoder.0.conv.bias": torch.tensor([1.0, float("nan")])}), "weights that are not finite"),
        (lambda t: t.update({"encoder.0.conv.bias": torch.tensor([1.0, 1e300]).double()}), "not finite: encoder.0.co"),
    ],
)
def test_other_tensors_are_named(saved, tensors, change, message):
    change(tensors)
    assert message in refusal(saved({}, tensors))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_any_floating_dtype_load_with_what_the_file_says(saved, tensors, dtype):
    kept = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    state = torch.random.get_rng_state()
    generator = Generator.load(saved({}, kept))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in generator.state_dict().items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, kept[name].to(tensor.dtype))
    assert not {name for name, _ in generator.named_buffers()} - kept.keys()
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in generator.parameters())


def damage(content, how):
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    if how == "cut":
        return content[:-5]
    if how == "longer":
        return content + b"more"
    if how in ("empty", "short"):
        return b"" if how == "empty" else content[:7]
    if how == "huge header":
        return (1 << 40).to_bytes(8, "little") + content[8:]
    if how == "long header":
        header["x" * (1 << 20)] = header[name]
    elif how == "overlap":
        header["again"] = header[name]
    elif how == "shape":
        header[name]["shape"] = [2**47, 2**47]
    elif how == "negative":
        header[name]["data_offsets"] = [-4, 4]
    elif how == "dtype":
        header[name]["dtype"] = "F8_E5M2"
    elif how == "metadata":
        header["__metadata__"] = {"format": 3}
    text = json.dumps(header).encode()
    if how == "twice":
        text = b'{"__metadata__": {}, ' + text[1:]
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "the file has"),
        ("longer", "the file has"),
        ("empty", "does not begin with the length of a header"),
        ("short", "does not begin with the length of a header"),
        ("huge header", "does not begin with the length of a header"),
        ("long header", "at most 1048576 are read"),
        ("overlap", "do not follow those before them"),
        ("shape", "which its dtype and shape do not give"),
        ("negative", "are no pair of numbers"),
        ("dtype", "is not one of F64"),
        ("metadata", "its metadata is not text"),
        ("twice", "a key stands there twice"),
    ],
)
def test_damaged_headers_are_named(saved, tensors, how, message):
    path = saved({}, tensors)
    path.write_bytes(damage(path.read_bytes(), how))
    said = refusal(path)
    assert "is not a readable safetensors file" in said
    assert message in said


def test_published_options_stay_allowed():
    GeneratorConfig()
    GeneratorConfig(base_width=1024, depth=12, attention_levels=tuple(range(2, 13)), radius=0, scale=0, se_ratio=0)
    GeneratorConfig(variant="released", mask_reduction="all_valid", norm="region", renormalize=True, se_ratio=2)
    for backend in ("auto", "reference", "cpu", "cuda", "triton"):
        assert GeneratorConfig(backend=backend, attention_levels=[4, 3]).attention_levels == (4, 3)


class Code:
    def __reduce__(self):
        return pytest.fail, ("code was run",)


def saved_by_torch(tensors):
    content = io.BytesIO()
    torch.save(tensors, content)
    return content.getvalue()


def packed(content):
    """The same zip file, compressed, with a tensor of 64 MB zeros in a few kB."""
    again = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            body = old.read(entry)
            new.writestr(entry.filename, bytes(1 << 26) if entry.filename.endswith("data/0") else body)
    return again.getvalue()


@pytest.mark.parametrize("load", [load_released, lambda path: VGG16Features(path)])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: pickle.dumps(Code()), "is not a file of weights that torch.load reads"),
        (lambda: saved_by_torch({"x": Code()}), "is not a file of weights that torch.load reads"),
        (lambda: packed(saved_by_torch({"x": torch.zeros(1)})), "bytes packed into a file of"),
        (lambda: b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "is not a file of weights|state dict"),
        (lambda: saved_by_torch({"x": torch.zeros(1).expand(2**40)}), "does not hold a state dict"),
        (lambda: saved_by_torch({"x": torch.zeros(2).to_sparse()}), "does not hold a state dict"),
        (lambda: saved_by_torch({"x": torch.empty(2, device="meta")}), "does not hold a state dict"),
        (lambda: saved_by_torch({f"enc_{'9' * 4500}.conv.weight": torch.zeros(1)}), "released generator|VGG-16"),
    ],
)
def test_files_of_torch_save_hold_tensors_only(tmp_path, load, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_finite_tensors_are_named():
    tensors = {"a": torch.ones(2), "b": torch.tensor([float("inf")]), "c": torch.ones(1).long()}
    assert state_dicts.not_finite(tensors) == "b"
