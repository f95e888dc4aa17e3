"""The device's time of a call on CUDA: a CUDA graph of several such calls, replayed.

At the generator's sizes an H100 computes a layer in 15 to 90 µs, while the host takes 50 to 150 µs to call it from
Python, so that a host's clock shows Python. The time of a replay is what the kernels take, and what a user of CUDA
graphs or of ``torch.compile(mode="reduce-overhead")`` gets. All calls of a graph read the same inputs, which stay in
the device's cache where they fit: for every contestant alike.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import statistics
import warnings
from collections.abc import Callable, Iterator

import torch

#: Calls before a capture, which plan, compile, and allocate workspaces for the stream.
WARMUP = 3
#: A replay takes about so many milliseconds, of at most so many calls: the events resolve half a microsecond.
REPLAY_MS, CALLS_LIMIT = 1.0, 64
#: Cycles that the device waits before a replay, in which the host enqueues all of it: else its launch would count.
HEAD_START = 400_000


class Graph:
    """`calls` calls of `run` in one graph, with memory of its own until `free`. Results are let go.

    Raises:
        Exception: what the call or CUDA says. The device can be worked with as before.
    """

    def __init__(self, run: Callable[[], object], calls: int, device: torch.device) -> None:
        self.calls, self._device = calls, device
        self._graph = torch.cuda.CUDAGraph()
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.current_stream(device)
        first: BaseException | None = None
        try:
            with _no_collection(), torch.cuda.graph(self._graph, pool=pool, stream=_stream(device)):
                try:
                    for _ in range(calls):
                        run()
                except BaseException as error:
                    first = error
                    raise
        except BaseException as error:
            self._graph = None
            _recover(device, stream, pool)
            raise first or error from None  # the end of a capture that failed fails too, and says less

    def milliseconds(self) -> float:
        """Of one call, by a replay."""
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
    """A graph of as many calls as a replay needs to be timed, replayed once.

    Raises:
        Exception: why there can be none. One that waits for the device is not tried, as a capture that fails leaves
            more behind than a call that does.
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
    """On the stream of the capture, as torch's documentation wants it: backward too then runs there, and the libraries'
    workspaces for it do not come out of the graph's memory."""
    stream, current = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            for _ in range(WARMUP - 1):
                run()
            with _no_synchronisation():
                run()
    finally:
        current.wait_stream(stream)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures of a device, since libraries keep a workspace for every stream that they have seen."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _no_synchronisation() -> Iterator[None]:
    """What waits for the device raises an error."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode does not see everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector off: what it finds may hold device memory, whose release ends a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _recover(device: torch.device, stream: torch.cuda.Stream, pool: tuple[int, int]) -> None:
    """Undoes what a capture that failed leaves: torch ends it in the driver first, and where that fails goes no
    further. The capture's stream then stays the current one, the allocator still counts a capture, which keeps it from
    handing memory back, and the random number generator still expects one and refuses to draw."""
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]

    def close_pool() -> None:
        torch._C._cuda_endAllocateToPool(index, pool)  # refused where torch has done it, and then the pool is the
        torch._C._cuda_releasePool(index, pool)  # graph's to release: once, as the allocator counts

    _stream.cache_clear()
    steps = (
        lambda: torch.cuda.set_stream(stream),
        lambda: torch.cuda.synchronize(device),
        close_pool,
        lambda: generator.graphsafe_set_state(generator.clone_state()),
        gc.collect,
        torch.cuda.empty_cache,
    )
    for step in steps:  # each for itself, whatever the others say
        with contextlib.suppress(Exception):
            step()
