"""The Triton kernels of attention against the reference: interpreted without a GPU, on it where there is one."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from msa_ops import hole_attention, hole_attention_map, native, not_supported_reasons, shift_attention

from .tolerances import assert_accurate

pytestmark = [
    pytest.mark.skipif(native.MISSING["triton"] is not None, reason=f"no Triton: {native.MISSING['triton']}"),
    pytest.mark.usefixtures("small_plans"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def operands(h, w, dtype=torch.float32, n=2, c=5, cv=4):
    query, key = torch.randn(2, n, c, h, w).to(dtype)
    tensors = [
        query,
        key,
        torch.randn(n, cv, h, w).to(dtype),
        torch.rand(n, 1, h, w) > 0.4,
        torch.rand(n, 1, h, w) > 0.3,
    ]
    return [t.to(DEVICE) for t in tensors]


def run(backend, maps, masks, **options):
    """Output and the gradients of query, key and value."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in maps]
    output = shift_attention(*leaves, *masks, backend=backend, **options)
    probe = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, probe)]


def assert_like_the_reference(maps, masks, **options):
    exact = run("reference", [t.double() for t in maps], masks, **options)
    plain, ours = (run(backend, maps, masks, **options) for backend in ("reference", "triton"))
    for i, name in enumerate(("output", "query", "key", "value")):
        assert_accurate(ours[i], plain[i], exact[i], backward=i > 0, what=name)
    return ours


@pytest.mark.parametrize(
    ("size", "radius", "renormalize"),
    [
        *(((5, 7), radius, renormalize) for radius in (0, 1) for renormalize in (False, True)),
        ((1, 6), 1, False),
        ((6, 1), 2, True),
        ((1, 1), 1, False),
        ((13, 12), 1, False),
    ],
)
def test_forward_and_gradients(size, radius, renormalize):
    """13 × 12 needs several tiles of queries and of keys."""
    *maps, is_query, is_key = operands(*size)
    is_key[1] = is_key[1] & (size != (5, 7))  # a sample without keys
    is_query[0, :, 4:9] = False  # of the large map fewer queries in the first sample, for the interpreter's sake
    assert_like_the_reference(maps, (is_query, is_key), scale=1.5, radius=radius, renormalize=renormalize)


def test_a_radius_larger_than_the_map():
    *maps, is_query, is_key = operands(3, 4, n=1)
    assert_like_the_reference(maps, (is_query, is_key), radius=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dtypes_and_layouts(dtype, memory_format):
    *maps, is_query, is_key = operands(8, 11, dtype, c=16, cv=8)
    maps = [t.to(memory_format=memory_format) for t in maps]
    ours = assert_like_the_reference(maps, (is_query, is_key), radius=1)
    assert all(t.is_contiguous(memory_format=memory_format) for t in ours)


@pytest.mark.parametrize("channels", [(1, 1), (70, 130)])
def test_channels_beyond_a_block(channels):
    *maps, is_query, is_key = operands(4, 5, n=1, c=channels[0], cv=channels[1])
    assert_like_the_reference(maps, (is_query, is_key), scale=0.3, radius=1)


def test_large_scores_need_the_running_maximum():
    *maps, is_query, is_key = operands(10, 10, n=1)
    assert_like_the_reference(maps, (is_query, is_key), scale=300.0)


def test_only_asked_for_gradients():
    *maps, is_query, is_key = operands(4, 5, n=1)
    everything = run("triton", maps, (is_query, is_key), radius=1)[1:]
    for i in range(3):
        leaves = [t.clone().requires_grad_(j == i) for j, t in enumerate(maps)]
        output = shift_attention(*leaves, is_query, is_key, radius=1, backend="triton")
        probe = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output)
        (grad,) = torch.autograd.grad(output, leaves[i], probe)
        torch.testing.assert_close(grad, everything[i])


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_map_is_the_references(radius, share):
    x, mask = torch.randn(2, 3, 9, 10, device=DEVICE), (torch.rand(2, 1, 9, 10) < share).to(DEVICE)
    maps = [hole_attention_map(x, mask, radius=radius, backend=backend) for backend in ("triton", "reference")]
    assert (maps[0] == maps[1]).float().mean() > 0.99  # neighbours in rank may swap by a rounding
    assert torch.equal(maps[0] >= 0, maps[1] >= 0)


def test_hole_attention_in_both_variants_and_of_empty_batches():
    x, mask = torch.randn(2, 3, 6, 7, device=DEVICE), (torch.rand(2, 1, 6, 7) > 0.5).to(DEVICE)
    for variant in ("paper", "released"):
        outputs = [hole_attention(x, mask, variant=variant, backend=b) for b in ("triton", "reference")]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    assert hole_attention(x[:0], mask[:0], backend="triton").shape == (0, 3, 6, 7)


def test_opcheck():
    *maps, is_query, is_key = operands(2, 3, n=1, c=2, cv=2)
    maps = [t.requires_grad_() for t in maps]
    forward = torch.ops.msa_ops.shift_attention_triton_forward
    torch.library.opcheck(forward, (*maps, is_query, is_key, 1.5, 1, True), rtol=1e-3, atol=1e-4)
    arguments = (maps[0].detach(), maps[1].detach(), is_query, is_key, 1.5, 1)
    argmax = torch.ops.msa_ops.shift_attention_triton_argmax
    torch.library.opcheck(argmax, arguments, test_utils=("test_schema", "test_faketensor"))


def test_second_order_is_refused():
    *maps, is_query, is_key = operands(2, 3, n=1)
    maps = [t.requires_grad_() for t in maps]
    output = shift_attention(*maps, is_query, is_key, backend="triton")
    (grad,) = torch.autograd.grad(output.sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match="shift_attention: second-order gradients are not supported"):
        grad.sum().backward()


def test_float64_is_refused_with_the_reason():
    x = torch.randn(1, 3, 4, 4, device=DEVICE)
    assert not_supported_reasons("shift_attention", "triton", x) == []
    assert not_supported_reasons("shift_attention", "triton", x.double()) == ["it has no kernel for torch.float64"]


COMPILE = """
    import json
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from msa_ops.triton import attention_holes, attention_layout, attention_plan, attention_products, attention_scores

    POINTERS = {
        **dict.fromkeys(("query_mask", "key_mask", "valid", "keys"), "*u8"),
        **dict.fromkeys(("pixels", "rank", "counts"), "*i32"),
        **dict.fromkeys(("statistics", "offsets", "partial", "sums", "parts", "largest"), "*fp32"), "best": "*i64",
        **dict.fromkeys(("unit_gradient", "value_gradient"), "*fp32"),
    }
    MAPS = ("query", "key", "map_", "image", "rows", "left", "right", "scores", "source", "weights", "target",
            "gradient", "other", "grad", "result", "unit", "value")
    TABLE = {"statistics_kernel": "statistics", "pair_kernel": "pair", "propagate_kernel": "propagate",
             "score_gradient_kernel": "propagate", "rows_product_kernel": "rows", "columns_product_kernel": "columns"}
    FLAGS = dict.fromkeys(("SKEWED", "MASKED", "WRITES_KEYS", "RENORMALIZED", "RENORMALIZE", "WITH_SUMS", "SOFTMAX",
                           "WITH_OFFSETS", "GRADIENT", "SUMS", "ADDS"), True)
    OTHER = {"pair_kernel": "SOFTMAX", "propagate_kernel": "GRADIENT"}  # both of these flags' branches are compiled

    def compiled(name, kernel, dtype, target, flags):
        constants = {**FLAGS, "ROWS": attention_plan.ROWS, "SAMPLES": 8, "DEPTH": 32, "PITCH": 128, "BLOCK": 64,
                     "PRECISION": "ieee", "RADIUS_Y": 1, "RADIUS_X": 1, "PIXELS_LAST": True, **flags}
        options = {"num_warps": 4, "num_stages": 1}
        if name in TABLE:
            constants |= attention_plan.LAUNCH[{"bf16": 2, "fp32": 4}[dtype]][TABLE[name]]
            options = {key: constants.pop(key) for key in options}
        constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
        kinds = POINTERS | dict.fromkeys(MAPS, "*" + dtype) | {"scale": "fp32", "eps": "fp32"}
        if name in ("columns_product_kernel", "spread_kernel"):
            kinds["image"] = "*fp32"
        signature = {a: "constexpr" if a in constants else kinds.get(a, "i32") for a in kernel.arg_names}
        # What launches find to be multiples of 16, without which nothing is loaded ahead into shared memory.
        aligned = ("length", "columns", "span")
        attributes = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(kernel.arg_names)
                      if signature[a].startswith("*") or a in aligned}
        source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
        result = compile(source, target=GPUTarget("cuda", target, 32), options=options)
        return [result.metadata.shared, "mma" in result.asm["ptx"]]

    seen = {}
    for module in (attention_layout, attention_scores, attention_products, attention_holes):
        for name, kernel in vars(module).items():
            if not name.endswith("_kernel") or kernel.fn.__module__ != module.__name__:
                continue
            cases = [("bf16", 86)]
            if name in TABLE:
                cases.append(("fp32", 86))
            if TABLE.get(name, "propagate") != "propagate":  # the products
                cases.append(("bf16", 90))
            for dtype, target in cases:
                seen[f"{name} {dtype} sm_{target}"] = compiled(name, kernel, dtype, target, {})
            if name in OTHER:
                seen[f"{name} bf16 {OTHER[name]}"] = compiled(name, kernel, "bf16", 86, {OTHER[name]: False})
    print(json.dumps(seen))
"""


@pytest.mark.slow
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """The interpreter takes more than the compiler does."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(COMPILE)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    seen = json.loads(result.stdout)
    assert len(seen) == 15 + 6 + 4 + 2
    products = ("statistics", "pair", "rows_product", "columns_product")
    for name, (shared_bytes, tensor_cores) in seen.items():
        # What an H100 grants, and the smallest chip of compute capability 8.
        assert shared_bytes <= (227 if "sm_90" in name else 99) * 1024, name
        assert tensor_cores == (name.startswith(products) and "bf16" in name), name
