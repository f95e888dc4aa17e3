"""Wrong arguments: the public functions refuse them with one sentence, the operators behind them with an exception."""

import torch

import msa_ops

from .operators_draw import choice

OPS = torch.ops.msa_ops


FUNCTIONS = (
    "PartialConv2d",
    "partial_conv2d",
    "partial_conv2d_upcat",
    "shift_attention",
    "hole_attention",
    "hole_attention_map",
)


def t(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def _wrong_tensors(like):
    """Tensors that no argument takes in place of this one, and what is no tensor."""
    wrong = [like[None], like[0], t(), like.to(torch.complex64), like.long(), like.to(torch.float8_e4m3fn)]
    if like.dtype.is_floating_point:
        wrong += [like.double(), like > 0]
    for d in range(like.dim()):
        wrong.append(torch.cat([like, like.narrow(d, 0, 1)], dim=d))
    return [*wrong, 1, "a tensor", 2.5, [like, like], (1, 2), {}, float("nan"), like.numpy()]


NOT_SIZES = (-1, 2**70, -(2**70), 1.5, "3", None, (1, 2, 3), (), [1, "a"], float("nan"), t(2), (2**70, 1), [-1, 1])
NOT_NUMBERS = ("x", None, float("nan"), float("inf"), [1], t(2), 1j)
NOT_NAMES = ("x", "", None, 3, b"auto", ["auto"], "auto\n")
NOT_BOOLS = ("yes", None, 3.5, [True], t(2), (), {})


def _call(name):
    """A legal call's arguments, and per argument what is wrong in its place."""
    x, plane = t(2, 4, 6, 5), t(2, 1, 6, 5).bool()
    if name == "partial_conv2d":
        arguments = dict(
            input=x, mask=plane, weight=t(8, 4, 3, 3), bias=t(8), stride=1, padding=1, dilation=1, groups=1,
            scale="window", input_is_masked=False, backend="auto",
        )  # fmt: skip
        wrong = {
            "stride": (*NOT_SIZES, 0), "padding": (*NOT_SIZES, "full", 2**40),
            "dilation": (*NOT_SIZES, 0, 2**31, 2**62),
            "groups": (0, -1, 3, 2**70, 1.5, "1", None, t(1), (1, 1)), "scale": NOT_NAMES,
        }  # fmt: skip
        grouped = [[], [(4, plane), (1, plane)], [(2**70, plane)], [(-1, plane), (5, plane)], [(4,)], [(4, "x")], "ab"]
        wrong["mask"] = [*_wrong_tensors(plane), *grouped, [(1.5, plane)], [(4, plane[:1])], {4: plane}, None]
    elif name == "PartialConv2d":
        return dict(input=x, mask_in=plane), {"input": _wrong_tensors(x), "mask_in": _wrong_tensors(plane)}
    elif name == "partial_conv2d_upcat":
        arguments = dict(
            low=t(2, 3, 4, 5), low_mask=t(2, 1, 4, 5).bool(), skip=t(2, 2, 8, 10), skip_mask=t(2, 1, 8, 10).bool(),
            weight=t(8, 5, 3, 3), bias=t(8), scale="window", low_is_masked=False, skip_is_masked=False, form="auto",
            backend="auto",
        )  # fmt: skip
        wrong = {"scale": NOT_NAMES, "form": NOT_NAMES}
    elif name == "shift_attention":
        arguments = dict(
            query=x, key=x, value=t(2, 3, 6, 5), query_mask=plane, key_mask=plane, scale=1.0, radius=1,
            renormalize=False, backend="auto",
        )  # fmt: skip
        wrong = {"scale": NOT_NUMBERS, "radius": NOT_SIZES}
    else:
        arguments = dict(features=x, mask=plane, scale=10.0, radius=1, variant="paper", eps=1e-6, backend="auto")
        wrong = {
            "scale": NOT_NUMBERS, "radius": NOT_SIZES, "variant": NOT_NAMES,
            "eps": ("x", None, float("nan"), 0.0, -1, [1], t(2), 1j),
        }  # fmt: skip
        if name == "hole_attention":
            arguments["renormalize"] = False
    wrong["backend"] = (*NOT_NAMES, "cuda")
    for argument, value in arguments.items():
        if isinstance(value, torch.Tensor):
            # Not of the operators behind, whose fakes a meta tensor calls.
            wrong[argument] = [*wrong.get(argument, _wrong_tensors(value)), value.to("meta")]
        if isinstance(value, bool):
            wrong[argument] = NOT_BOOLS
    return arguments, wrong


def public(rng):
    """Replaces one argument of a legal call of a public function."""
    name = choice(
        rng, ("partial_conv2d", "partial_conv2d_upcat", "shift_attention", "hole_attention", "hole_attention_map")
    )
    arguments, wrong = _call(name)
    argument = choice(rng, sorted(wrong))
    value = wrong[argument][int(rng.integers(len(wrong[argument])))]
    if _may_fit(name, argument, value):
        return "refused: left out"
    told = f"{name}({argument}={_brief(value)})"
    function = getattr(msa_ops, name)
    if name == "PartialConv2d":
        function = function(4, 8, 3, padding=1)
    error = _error_of(function, arguments | {argument: value})
    assert error is not None, f"{told} returned; it must be refused"
    is_right_kind = isinstance(error, (ValueError, TypeError, RuntimeError))
    assert is_right_kind, f"{told}: wanted a ValueError, got {type(error).__name__}: {error}"
    text = str(error)
    is_sentence = text and "\n" not in text and len(text) < 500
    assert is_sentence, f"{told}: wanted one sentence, got {text[:300]!r}"
    assert "msa_ops" in text or "backend" in text, f"{told}: wanted the operator's name, got {text!r}"
    return "refused by a public function"


def _error_of(function, arguments):
    try:
        function(**arguments)
    except Exception as error:
        return error
    return None


def _may_fit(name, argument, value):
    """Whether the changed argument is legal after all: values or features of other channels, features of another
    floating-point dtype, a larger kernel."""
    if not isinstance(value, torch.Tensor) or value.dim() != 4 or value.is_meta:
        return False
    n, c, h, w = value.shape
    if not (value.dtype.is_floating_point if argument == "features" else value.dtype == torch.float32):
        return False
    if argument == "weight":
        return name.startswith("partial_conv2d") and "upcat" not in name and (n, c) == (8, 4)
    return argument in ("value", "features") and (n, h, w) == (2, 6, 5)


def _brief(value):
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} on {value.device}"
    return repr(value)[:60]


RAW = {
    "partial_conv2d_forward": dict(
        input=t(2, 4, 6, 5), mask=t(2, 2, 6, 5).bool(), weight=t(8, 4, 3, 3), bias=t(8), plane_channels=[1, 3],
        stride=[1, 1], padding=[1, 1], dilation=[1, 1], groups=1, numerator=36, input_is_masked=False,
    ),
    "partial_conv2d_backward": dict(
        grad_output=t(2, 8, 6, 5), input=t(2, 4, 6, 5), mask=t(2, 2, 6, 5).bool(), weight=t(8, 4, 3, 3),
        ratio=t(2, 1, 6, 5), plane_channels=[1, 3], stride=[1, 1], padding=[1, 1], dilation=[1, 1], groups=1,
        input_is_masked=False, needed=[True, True, True],
    ),
    "partial_conv2d_upcat_forward": dict(
        low=t(2, 3, 4, 5), low_mask=t(2, 1, 4, 5).bool(), skip=t(2, 2, 8, 10), skip_mask=t(2, 1, 8, 10).bool(),
        weight=t(8, 5, 3, 3), bias=t(8), numerator=45, low_is_masked=False, skip_is_masked=False, phases=True,
    ),
    "partial_conv2d_upcat_backward": dict(
        grad_output=t(2, 8, 8, 10), low=t(2, 3, 4, 5), low_mask=t(2, 1, 4, 5).bool(), skip=t(2, 2, 8, 10),
        skip_mask=t(2, 1, 8, 10).bool(), weight=t(8, 5, 3, 3), ratio=t(2, 1, 8, 10), low_is_masked=False,
        skip_is_masked=False, phases=False, needed=[True] * 4,
    ),
    "shift_attention_forward": dict(
        query=t(2, 4, 6, 5), key=t(2, 4, 6, 5), value=t(2, 3, 6, 5), query_mask=t(2, 1, 6, 5).bool(),
        key_mask=t(2, 1, 6, 5).bool(), scale=1.0, radius=1, renormalize=False,
    ),
    "shift_attention_backward": dict(
        grad_output=t(2, 3, 6, 5), query=t(2, 4, 6, 5), key=t(2, 4, 6, 5), value=t(2, 3, 6, 5),
        query_mask=t(2, 1, 6, 5).bool(), key_mask=t(2, 1, 6, 5).bool(), output=t(2, 3, 6, 5), statistics=t(2, 30, 3),
        scale=1.0, radius=1, renormalize=False, needed=[True] * 3,
    ),
    "shift_attention_argmax": dict(
        query=t(2, 4, 6, 5), key=t(2, 4, 6, 5), query_mask=t(2, 1, 6, 5).bool(), key_mask=t(2, 1, 6, 5).bool(),
        scale=1.0, radius=1,
    ),
}  # fmt: skip
RAW_WRONG = {
    "plane_channels": ([], [4], [1, 4], [-1, 5], [2**63 - 1, 2**63 - 1, 6], [2**70], [0, 4], "x", None),
    "stride": ([0, 1], [1], [-1, 1], [1, 1, 1], [2**63 - 1, -1], [2**70, 1], None),
    "padding": ([-1, 0], [], [2**62, 2**62], [2**31, 2**31], [2**31 - 1, 2**31 - 1], None),
    "dilation": ([0, 1], [2**62, 1], [1, 2**61], [-1, -1], [9, 1], None),
    "groups": (0, -1, 3, 2**63 - 1, -(2**63), 2**70, None),
    "needed": ([True], [], [True] * 9, None),
    "radius": (-1, -(2**63), 2**70, "x", None),
}


def raw(rng):
    """Replaces one argument of a legal call of an operator behind the public functions."""
    name = choice(rng, sorted(RAW))
    arguments = RAW[name]
    can = [a for a, v in arguments.items() if a in RAW_WRONG or isinstance(v, torch.Tensor)]
    argument = choice(rng, can)
    value = arguments[argument]
    wrong = _wrong_tensors(value) if isinstance(value, torch.Tensor) else RAW_WRONG[argument]
    value = wrong[int(rng.integers(len(wrong)))]
    if name.endswith("forward") and _may_fit(name, argument, value):
        return "refused: left out"
    error = _error_of(getattr(OPS, name), arguments | {argument: value})
    assert error is not None, f"{name}({argument}={_brief(value)}) returned; it must be refused"
    return "refused by an operator"
