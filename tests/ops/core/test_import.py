"""The package imports quietly, and works without its compiled part."""

import json
import os
import subprocess
import sys
import textwrap

import msa_ops

LOOK = """
    import json, sys
    import torch
    before = set(sys.modules)
    import msa_ops
    # triton is not in the list: torch's own FLOP counter, with which the operators register, imports it
    heavy = [name for name in ("matplotlib", "PIL") if name in set(sys.modules) - before]
    x, mask, weight = torch.ones(1, 2, 4, 4, requires_grad=True), torch.ones(1, 1, 4, 4), torch.ones(3, 2, 3, 3)
    output, new_mask = msa_ops.partial_conv2d(x, mask, weight, padding=1)
    output.sum().backward()
    decoded, _ = msa_ops.partial_conv2d_upcat(x[:, :1, ::2, ::2], mask[..., ::2, ::2], x[:, 1:], mask, weight)
    try:
        msa_ops.partial_conv2d(x, mask, weight, backend="cpu")
        refusal = None
    except RuntimeError as error:
        refusal = str(error)
    print(json.dumps({
        "heavy": heavy,
        "cuda": torch.cuda.is_initialized(),
        "outputs": [output[0, 0, 1, 1].item(), decoded[0, 0, 1, 1].item(), x.grad[0, 0, 1, 1].item()],
        "reasons": {b: msa_ops.not_supported_reasons("partial_conv2d", b) for b in ("reference", "cpu", "cuda")},
        "refusal": refusal,
    }))
"""


#: Of the nine windows over pixel (1, 1) of 4×4, four are full (E/s = 1), four lack a side (9/6), one a corner (9/4);
#: times three output channels.
GRADIENT_AT_1_1 = 3 * (4 * 1 + 4 * 1.5 + 2.25)


def run_apart(cwd, **environment):
    """Runs LOOK in a fresh interpreter, away from the source tree; it must print one line of JSON and nothing else."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOOK)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def test_without_the_compiled_part_the_reference_serves(tmp_path):
    seen = run_apart(tmp_path, MSA_OPS_LIBRARY_DIR=str(tmp_path))
    (reason,) = seen["reasons"]["cpu"]
    assert reason.startswith("msa_ops/_cpu.so does not load (")
    assert seen["reasons"] == {"reference": [], "cpu": [reason], "cuda": [reason]}
    assert seen["refusal"] == f"msa_ops::partial_conv2d: backend 'cpu' cannot run: {reason}"
    assert seen["outputs"] == [18.0, 18.0, GRADIENT_AT_1_1]
    assert seen["heavy"] == []
    assert not seen["cuda"]


def test_import_is_quiet_and_light(tmp_path):
    seen = run_apart(tmp_path)
    assert seen["reasons"]["cpu"] == []
    assert seen["refusal"] is None
    assert seen["heavy"] == []
    assert not seen["cuda"]


def test_public_names_are_there():
    assert set(msa_ops.__all__) >= {"not_supported_reasons", "partial_conv2d", "partial_conv2d_upcat"}
    assert all(hasattr(msa_ops, name) for name in msa_ops.__all__)
