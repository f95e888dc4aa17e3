"""Files of weights that lie: hostile configurations, other tensors, damaged headers, pickles.

A case passes if the file is refused in one line within limits of time and memory; or if it loads, and then the network
has the file's tensors and computes: its prediction has the image's shape, or is refused because it is not finite.
"""

import functools
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msa_model import Generator, cli, load_released
from msa_model.evaluate.learned_metrics import Lpips
from msa_model.nn.released import released_keys
from msa_model.nn.safetensors_files import _DTYPES
from msa_model.nn.vgg import VGG16Features

from . import boxed

Rng = np.random.Generator
MEMORY = 1 << 30  # bytes: VGG-16, the largest network here, has 0.55 GB in a file

_NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    8,
    12,
    13,
    1024,
    4000,
    100_000,
    2**31,
    2**62,
    2**63,
    2**64,
    10**30,
    10**400,
    0.5,
    1e308,
    -1e308,
]
_VALUES = [*_NUMBERS, float("inf"), float("-inf"), float("nan"), None, True, False, "", "x", "auto", "cuda", "cpu"]
_VALUES += ["triton", "reference", "\x1b[31m", "a\nb", "y" * 100_000, [], [4, 3], [2], [2] * 1000, [[2]], {}, {"a": 1}]
_OPTIONS = (
    {},
    {"attention_levels": (2,)},
    {"norm": "region", "depth": 3},
    {"variant": "released", "attention_levels": (3, 2), "depth": 3, "mask_reduction": "all_valid"},
    {"se_ratio": 0.5, "attention_levels": (2,), "radius": 0, "renormalize": True},
    {"backend": "reference"},
)


@functools.cache
def honest(number: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Makes the configuration and the tensors of a small network."""
    torch.set_num_threads(1)  # a forked child has no pool of threads
    torch.manual_seed(number)
    options = {"base_width": 2, "depth": 2, "attention_levels": ()} | _OPTIONS[number]
    generator = Generator(**options)
    config = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(generator.config).items()}
    return config, {name: tensor.detach() for name, tensor in generator.state_dict().items()}


def safetensors(
    config: str, tensors: dict[str, torch.Tensor], change: Callable[[dict[str, Any]], object] = lambda header: None
) -> bytes:
    """Writes a file by hand, so that anything can be wrong with it."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "msa_model.Generator", "config": config}}
    data = io.BytesIO()
    for name, tensor in tensors.items():
        begin = data.tell()
        data.write(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        offsets = [begin, data.tell()]
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data.getvalue()


def hostile_config(rng: Rng, config: dict[str, Any]) -> str:
    """Draws a configuration as JSON."""
    how = rng.integers(8)
    if how < 5:
        changed = dict(config)
        for _ in range(int(rng.integers(1, 3))):
            changed[str(rng.choice(list(config)))] = _VALUES[int(rng.integers(len(_VALUES)))]
        return json.dumps(changed)
    if how == 5:
        depth = int(rng.choice([10, 900, 100_000]))
        return rng.choice(["[", '{"a":']) * depth + "1" + ("]" if rng.random() < 0.5 else "}") * depth
    if how == 6:
        return json.dumps(config)[:-1] + f', "base_width": {"9" * int(rng.integers(1, 6000))}}}'
    return str(
        rng.choice(["", "null", "[]", "3", '"x"', "{}", '{"attention_levels": [' + "2," * 10**5 + "2]}", '{"new": 1}'])
    )


def hostile_header(rng: Rng, header: dict[str, Any]) -> None:
    """Changes a header in place."""
    names = [name for name in header if name != "__metadata__"]
    name = str(rng.choice(names))
    how = rng.integers(7)
    if how == 0:
        header[name]["dtype"] = _VALUES[int(rng.integers(len(_VALUES)))] if rng.random() < 0.5 else "F8_E4M3"
    elif how == 1:
        header[name]["shape"] = rng.choice([1, 2, 0, 2**31, 2**40], int(rng.integers(0, 12))).tolist()
    elif how == 2:
        header[name]["data_offsets"] = rng.choice([0, 4, 8, -4, 2**40, 2**62], int(rng.integers(1, 4))).tolist()
    elif how == 3:
        header[name] = _VALUES[int(rng.integers(len(_VALUES)))]
    elif how == 4:
        header["__metadata__"] = [None, [], {"format": 3}, {}, "x", {"format": "msa_model.Generator"}][
            int(rng.integers(6))
        ]
    elif how == 5:
        header[str(rng.choice(["\x1b[2J", "z" * 10**6, "encoder.0.conv.weight2", ""]))] = header.pop(name)
    else:
        for number in range(int(rng.choice([10, 30_000]))):
            header[f"more.{number}"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def hostile_tensors(rng: Rng, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Draws another set of tensors."""
    changed = dict(tensors)
    for _ in range(int(rng.integers(1, 3))):
        name = str(rng.choice(list(changed)))
        tensor = changed[name]
        how = rng.integers(7)
        if how == 0:
            del changed[name]
        elif how == 1:
            changed[f"{name}.more"] = tensor
        elif how == 2:
            changed[name] = tensor.to(_DTYPES[str(rng.choice(list(_DTYPES)))])
        elif how == 3:
            changed[name] = torch.zeros([int(n) for n in rng.integers(0, 4, tensor.dim() + 1)])
        elif how == 4 and tensor.is_floating_point() and tensor.numel():
            changed[name] = tensor.clone()
            changed[name].flatten()[int(rng.integers(tensor.numel()))] = float(rng.choice([np.nan, np.inf, -np.inf]))
        elif how == 5 and tensor.is_floating_point():
            changed[name] = torch.full(tensor.shape, 1e300, dtype=torch.float64)
        else:
            changed[name] = tensor * int(rng.choice([0, 1, -1, 10**9]))
        if not changed:
            break
    return changed


def hostile_bytes(rng: Rng, content: bytes) -> bytes:
    """Damages a file: cut, longer, bits flipped, another length of its header."""
    how = rng.integers(4)
    if how == 0:
        return content[: int(rng.integers(len(content)))]
    if how == 1:
        return content + bytes(int(rng.integers(1, 100)))
    if how == 2:
        length = int(rng.choice([0, 1, 2, 100, 2**20, 2**31, 2**62, 2**63 - 1]))
        return struct.pack("<Q", length) + content[8:]
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        changed[int(rng.integers(min(len(changed), 4000)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


class _Code:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit(99)",)


def pickles(rng: Rng) -> bytes:
    """Draws a file of torch.save, or of pickle, that tries to be more than tensors."""
    tensors: dict[Any, Any] = {ours: torch.zeros(2) for ours in released_keys(4)}
    tensors["enc_1.conv.weight"] = torch.zeros(2, 3, 7, 7)
    tensors["CA_1.SqueezeExc.blocks.0.weight"] = torch.zeros(4, 4)
    tensors |= {f"features.{n}.weight": torch.zeros(64, 3, 3, 3) for n in (0, 2, 28)}
    how = rng.integers(9)
    if how == 0:
        return pickle.dumps(_Code())
    if how == 1:
        tensors["code"] = _Code()
    elif how == 2:  # believed by its shape, it would be 10^15 elements
        tensors["enc_1.conv.weight"] = torch.zeros(1).expand(2**40, 3, 7, 7)
    elif how == 3:
        tensors["CA_1.SqueezeExc.blocks.0.weight"] = torch.zeros(1).expand(2**50, 1)
    elif how == 4:
        tensors[f"enc_{'9' * int(rng.integers(1, 5000))}.conv.weight"] = torch.zeros(1)
    elif how == 5:
        tensors["enc_1.conv.weight"] = [
            torch.zeros(2, 3, 7, 7).to_sparse(),
            torch.empty(2, 3, 7, 7, device="meta"),
            torch.zeros(2, 3, 7, 7, dtype=torch.complex64),
            torch.full((2, 3, 7, 7), float("nan")),
        ][int(rng.integers(4))]
    elif how == 6:
        return _deep(int(rng.choice([10, 100_000])))
    content = io.BytesIO()
    torch.save({"generator": tensors} if rng.random() < 0.5 else tensors, content)
    if how == 7:  # packs what torch.save leaves unpacked
        packed = io.BytesIO()
        with zipfile.ZipFile(content) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                body = bytes(3 << 30) if entry.filename.endswith("data/0") and rng.random() < 0.02 else old.read(entry)
                new.writestr(entry.filename, body)
        return packed.getvalue()
    return hostile_bytes(rng, content.getvalue()) if how == 8 else content.getvalue()


def _deep(depth: int) -> bytes:
    """Pickles lists within lists, without the recursion of `pickle.dumps`."""
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def case(rng: Rng, folder: Path) -> str:
    kind = str(rng.choice(["config", "tensors", "header", "bytes", "command", "pickle"]))
    path = folder / "weights.safetensors"
    if kind == "pickle":
        path.write_bytes(pickles(rng))
        pickled(rng, path)
        return kind
    config, tensors = honest(int(rng.integers(len(_OPTIONS))))
    text = json.dumps(config)
    drawn = str(rng.choice(["config", "tensors", "header", "bytes"])) if kind == "command" else kind
    if drawn == "config":
        path.write_bytes(safetensors(hostile_config(rng, config), tensors))
    elif drawn == "tensors":
        tensors = hostile_tensors(rng, tensors)
        path.write_bytes(safetensors(text, tensors))
    elif drawn == "header":
        path.write_bytes(safetensors(text, tensors, functools.partial(hostile_header, rng)))
    else:
        path.write_bytes(hostile_bytes(rng, safetensors(text, tensors)))
    if kind == "command":
        command(folder, path)
    else:
        loaded(path, tensors if drawn in ("config", "tensors") else None)
    return kind


def loaded(path: Path, tensors: dict[str, torch.Tensor] | None) -> None:
    """Loads a file with `Generator.load` and runs it; `tensors` is what is in it, where that is known."""

    def load() -> int:
        try:
            generator = Generator.load(path)
        except ValueError as error:
            print(error)
            return 1
        state = generator.state_dict()
        for name, tensor in (tensors or {}).items():
            assert torch.equal(state[name], tensor.to(state[name].dtype)), name
        try:
            with torch.no_grad():
                result = generator(torch.rand(1, 3, 9, 7), torch.ones(1, 1, 9, 7))
        except RuntimeError as error:  # a backend that this machine does not have
            if "backend" not in str(error):
                raise
            return 0
        assert result.shape == (1, 3, 9, 7)
        return 0

    outcome = boxed.run(load, memory=MEMORY)
    assert outcome.err == "", f"wanted nothing on stderr, got {outcome.err!r}"
    if outcome.code:
        assert "weights.safetensors" in outcome.out, f"wanted the file named, got {outcome.out[:500]!r}"
        assert len(outcome.out.rstrip("\n").splitlines()) == 1, f"wanted one line, got {outcome.out[:500]!r}"


def command(folder: Path, path: Path) -> None:
    """Runs ``msa inpaint`` with a file."""
    from PIL import Image

    Image.fromarray(np.full((9, 7, 3), 99, np.uint8)).save(folder / "image.png")
    Image.fromarray(np.eye(9, 7) > 0).save(folder / "mask.png")
    arguments = ["inpaint", folder / "image.png", folder / "mask.png", "-o", folder / "out.png", "--weights", path]
    outcome = boxed.run(lambda: cli.main([*map(str, arguments), "--device", "cpu"]), memory=MEMORY)
    boxed.check_lines(outcome, "inpaint")
    done = (folder / "out.png").is_file()
    errors = [line for line in outcome.lines if ": error: " in line]
    assert (outcome.code, len(errors)) == ((0, 0) if done else (1, 1)), f"{done}, {outcome.code}: {outcome.err}"
    assert len(outcome.lines) <= 2, f"wanted at most a note and an error, got {outcome.err}"


def pickled(rng: Rng, path: Path) -> None:
    """Gives a file to everything that reads files of torch.save."""
    readers = {"released": load_released, "vgg": VGG16Features, "lpips": Lpips}
    name = str(rng.choice(list(readers)))

    def load() -> int:
        try:
            readers[name](path)
        except ValueError as error:
            print(error)
            return 1
        return 0

    outcome = boxed.run(load, memory=MEMORY)
    assert outcome.code == 1, f"{name}: wanted a refusal, got {outcome.code}: {outcome.out}"
    assert outcome.err == "", f"{name}: wanted nothing on stderr, got {outcome.err!r}"
    assert len(outcome.out.rstrip("\n").splitlines()) == 1, f"{name}: wanted one line, got {outcome.out[:500]!r}"
    assert "weights.safetensors" in outcome.out, f"{name}: wanted the file named, got {outcome.out[:500]!r}"
