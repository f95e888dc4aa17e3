"""The Triton kernels of attention compiled for GPUs that are not here: the interpreter takes more than the compiler."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from ..support.internals import MISSING, triton_import

pytestmark = pytest.mark.skipif(MISSING["triton"] is not None, reason=f"no Triton: {MISSING['triton']}")

KERNELS = [f"attention_{name}_kernels" for name in ("layout", "score", "product", "hole")]
IMPORTS = triton_import("attention_planning", *KERNELS)
COMPILE = """
    import json
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    %IMPORTS%

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
        constants = {**FLAGS, "ROWS": attention_planning.ROWS, "SAMPLES": 8, "DEPTH": 32, "PITCH": 128, "BLOCK": 64,
                     "PRECISION": "ieee", "RADIUS_Y": 1, "RADIUS_X": 1, "PIXELS_LAST": True, **flags}
        options = {"num_warps": 4, "num_stages": 1}
        if name in TABLE:
            constants |= attention_planning.LAUNCH[{"bf16": 2, "fp32": 4}[dtype]][TABLE[name]]
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
    for module in (%KERNELS%):
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
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        textwrap.dedent(COMPILE).replace("%IMPORTS%", IMPORTS).replace("%KERNELS%", ", ".join(KERNELS)),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    seen = json.loads(result.stdout)
    assert len(seen) == 15 + 6 + 4 + 2
    products = ("statistics", "pair", "rows_product", "columns_product")
    for name, (shared_bytes, tensor_cores) in seen.items():
        # What an H100 grants, and the smallest chip of compute capability 8.
        assert shared_bytes <= (227 if "sm_90" in name else 99) * 1024, name
        assert tensor_cores == (name.startswith(products) and "bf16" in name), name
