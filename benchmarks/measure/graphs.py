"""Measures the device's time of a call on CUDA: a CUDA graph of several such calls, replayed.

At the generator's sizes an H100 computes a layer in 15 to 90 µs, while the host takes 50 to 150 µs to call it from
Python, so that a host's clock shows Python. The time of a replay is what the kernels take, and what a user of CUDA
graphs or of ``torch.compile(mode="reduce-overhead")`` gets. All calls of a graph read the same inputs, which stay in
the device's cache where they fit: for every alternative alike. ``triton.testing.do_bench_cudagraph`` replays one
function to its end before the next; here graphs take turns.
"""

from __future__ import annotations

import functools
import gc
import math
import statistics
import warnings
from collections.abc import Callable

import torch

#: Calls before a capture; they plan, compile, and allocate workspaces for the stream.
WARMUP = 3
#: A replay takes about this many milliseconds, with at most this many calls: events resolve half a microsecond.
REPLAY_MS, CALLS_LIMIT = 1.0, 64
#: Cycles that the device waits before a replay, while the host enqueues all of it; else the launch would count.
HEAD_START = 400_000


class Graph:
    """Holds `calls` calls of `run` in one graph, with memory of its own until `free`. Results are let go."""

    def __init__(self, run: Callable[[], object], calls: int, device: torch.device) -> None:
        self.calls, self._device = calls, device
        self._graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        gc.disable()  # collecting may free device memory, which would end the capture
        try:
            with torch.cuda.graph(self._graph, pool=pool, stream=_stream(device)):
                for _ in range(calls):
                    run()
        finally:
            gc.enable()

    def milliseconds(self) -> float:
        """Replays the graph and returns the time of one call."""
        with torch.cuda.device(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(HEAD_START)
            start.record()
            self._graph.replay()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / self.calls

    def free(self) -> None:
        self._graph.reset()
        self._graph = None
        torch.cuda.empty_cache()


def captured(run: Callable[[], object], device: torch.device) -> Graph:
    """Returns a graph of as many calls as a replay needs to be timed, replayed once.

    Raises:
        Exception: why there can be none. A call that waits for the device is not captured, as a failed capture leaves
            torch unable to draw random numbers or to hand back memory, so that no further case can be measured.
    """
    with torch.cuda.device(device):
        _warm_up(run, device)
        graph = Graph(run, 1, device)
        graph.milliseconds()
        single = statistics.median(graph.milliseconds() for _ in range(3))
        calls = math.ceil(REPLAY_MS / max(single, REPLAY_MS / CALLS_LIMIT))
        if calls > 1:
            graph.free()
            graph = Graph(run, calls, device)
            graph.milliseconds()
    return graph


def _warm_up(run: Callable[[], object], device: torch.device) -> None:
    """Runs on the stream of the capture, as torch's documentation asks: the backward then runs there too, and the
    libraries' workspaces for it do not come out of the graph's memory. The last call must not wait for the device."""
    stream, current = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    before = torch.cuda.get_sync_debug_mode()
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARMUP - 1):
                run()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the warning that the mode does not see everything
                torch.cuda.set_sync_debug_mode("error")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
        current.wait_stream(stream)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns one stream for all captures of a device, since libraries keep a workspace for every stream they see."""
    return torch.cuda.Stream(device)
