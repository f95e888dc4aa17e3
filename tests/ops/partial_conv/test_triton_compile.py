"""The Triton kernels of the partial convolution compiled for GPUs that are not here: the interpreter takes more than
the compiler does, and sizes of one are compile-time constants."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from ..support.internals import MISSING, triton_import

pytestmark = pytest.mark.skipif(MISSING["triton"] is not None, reason=f"no Triton: {MISSING['triton']}")

IMPORTS = triton_import("image_layer", "partial_conv", "decoder_conv")
COMPILE = """
    import json
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    TYPES = {torch.float16: "*fp16", torch.float32: "*fp32", torch.bool: "*i1", torch.uint8: "*u8"}
    seen = {}

    def compile(kernel, *args, grid=None, warmup=False, num_warps=4, num_stages=3, **kwargs):
        signature, constants, attributes = {}, {}, {}
        values = dict(zip(kernel.arg_names, args)) | kwargs
        for i, parameter in enumerate(kernel.params):
            name, value = parameter.name, values[parameter.name]
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                signature[name], constants[(i,)] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name], attributes[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32"
                if value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        for capability in (80, 90) if is_usual else (90,):
            options = {"num_warps": num_warps, "num_stages": num_stages}
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            multiplies = any(word in compiled.asm["ptx"] for word in ("mma.sync", "wgmma"))
            seen[f"{case} {kernel.__name__} sm_{capability}"] = compiled.metadata.shared, multiplies

    JITFunction.run = compile
    %IMPORTS%

    def map_(n, c, h, w):
        return torch.empty(n, c, h, w, dtype=torch.float16).to(memory_format=torch.channels_last)

    def plane(n, h, w):
        return torch.empty(n, 1, h, w, dtype=torch.bool)

    for n, c, h, o, k, s in ((1, 512, 2, 512, 3, 2), (1, 3, 32, 64, 7, 2), (2, 64, 64, 128, 5, 2), (1, 16, 1, 1, 1, 1)):
        case, is_usual = f"conv {n} {c} {h}", n > 1
        partial_conv.forward(
            map_(n, c, h, h), plane(n, h, h), map_(o, c, k, k), torch.empty(o, dtype=torch.float16), [c], [s, s],
            [k // 2, k // 2], [1, 1], 1, k * k * c, False,
        )
    for n, c1, c2, h, o, phases in (
        (1, 512, 512, 1, 512, False), (1, 64, 3, 64, 3, True), (1, 1, 1, 1, 1, True), (6, 128, 64, 64, 64, True),
    ):
        case, is_usual = f"upcat {n} {c1} {h}", n > 1
        low, skip = map_(n, c1, h, h), map_(n, c2, 2 * h, 2 * h)
        low_mask, skip_mask = plane(n, h, h), plane(n, 2 * h, 2 * h)
        weight = map_(o, c1 + c2, 3, 3)
        arguments = low, low_mask, skip, skip_mask, weight
        _, _, ratio = decoder_conv.forward(*arguments, None, 9, False, False, phases)
        if image_layer.takes(low, skip, weight, [True, False, True, True]):
            grad = map_(n, o, 2 * h, 2 * h)
            image_layer.backward(grad, *arguments, ratio, False, [True, False, True, True])
    print(json.dumps(seen))
"""


def test_kernels_compile_for_gpus_that_are_not_here():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(COMPILE).replace("%IMPORTS%", IMPORTS)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    seen = json.loads(result.stdout)
    assert {name.split()[-2] for name in seen} == {
        "conv_kernel", "finish_kernel", "upcat_kernel", "phase_weight_kernel", "gradients_kernel", "fold_kernel"
    }  # fmt: skip
    for name, (shared_bytes, multiplies) in seen.items():
        assert shared_bytes <= 227 * 1024 if "sm_90" in name else 163 * 1024, name
        assert multiplies == any(kernel in name for kernel in ("conv_kernel", "upcat_kernel", "gradients_kernel")), name
