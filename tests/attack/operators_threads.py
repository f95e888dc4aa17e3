"""Calls every operator from several Python threads at once, each with several threads of its own, on shared inputs:
``python -m tests.attack.operators_threads``. Every result must have the bits of the first; `make sanitize-threads` runs
it under ThreadSanitizer.
"""

import argparse
import sys
import threading
import time

import torch

from msa_ops import hole_attention, hole_attention_map, partial_conv2d, partial_conv2d_upcat


def calls():
    """Name -> a function that makes one call with its gradient, for two threads each, and returns all results."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        x = torch.randn(shape, generator=generator)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    x, weight, bias = numbers(2, 32, 40, 40), numbers(32, 32, 3, 3), numbers(32)
    low, deep, image = numbers(2, 32, 20, 20), numbers(16, 64, 3, 3), numbers(3, 35, 3, 3)
    skip = numbers(2, 3, 40, 40)
    mask = torch.rand(2, 1, 40, 40, generator=generator) > 0.3
    low_mask = torch.rand(2, 1, 20, 20, generator=generator) > 0.3
    channels = torch.rand(2, 32, 40, 40, generator=generator) > 0.3
    features = numbers(2, 16, 24, 24)
    holes = torch.rand(2, 1, 24, 24, generator=generator) > 0.3

    def with_gradient(function, *leaves):
        def call():
            mine = [t.detach().requires_grad_() for t in leaves]
            output = function(*mine)
            output = output[0] if isinstance(output, tuple) else output
            return [output.detach(), *torch.autograd.grad(output.sum(), mine)]

        return call

    return {
        "plane": with_gradient(lambda x, w, b: partial_conv2d(x, mask, w, b, padding=1), x, weight, bias),
        "channels": with_gradient(lambda x, w, b: partial_conv2d(x, channels, w, b, 2, 1), x, weight, bias),
        "library": with_gradient(
            lambda x, w, b: partial_conv2d(x, mask, w, b, padding=1), x.contiguous(), weight.contiguous(), bias
        ),
        "upcat": with_gradient(lambda a, b, w: partial_conv2d_upcat(a, low_mask, b, mask, w), low, x, deep),
        "image": with_gradient(lambda a, b, w: partial_conv2d_upcat(a, low_mask, b, mask, w), low, skip, image),
        "attention": with_gradient(lambda x: hole_attention(x, holes), features),
        "map": lambda: [hole_attention_map(features, holes)],
    }


def run(seconds: float, threads: int, intra: int) -> int:
    """Calls everything in `threads` threads for `seconds`; returns the number of calls."""
    torch.set_num_threads(intra)
    functions = calls()
    wanted = {name: function() for name, function in functions.items()}
    end, errors, counts = time.monotonic() + seconds, [], []
    start = threading.Barrier(threads)

    def work(first: int) -> None:
        torch.set_num_threads(intra)
        names, count = list(functions), 0
        start.wait()
        while not errors and (count < len(names) or time.monotonic() < end):
            name = names[(first + count) % len(names)]
            for got, right in zip(functions[name](), wanted[name], strict=True):
                if not torch.equal(got, right):
                    errors.append(f"{name}: a call beside others gives other bits")
            count += 1
        counts.append(count)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors or len(counts) != threads:
        raise AssertionError("; ".join(dict.fromkeys(errors)) or "a thread ended with an exception")
    return sum(counts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.operators_threads", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int, default=4, help="Python threads")
    parser.add_argument("--intra", type=int, default=2, help="threads of one operator")
    options = parser.parse_args()
    print(f"{run(options.seconds, options.threads, options.intra)} calls, all with the same bits", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
