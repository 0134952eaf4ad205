"""Times of things that run on one device: interleaved, so that drift and heat meet all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping

SPIN = """
extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles);
}
"""
SPIN_CYCLES = 3_000_000  # about 2 ms: time for the host to enqueue what is measured


class GpuClock:
    """CUDA events on the current stream; the host is kept ahead, so no launch gap is measured."""

    meaningful = True

    def __init__(self, cupy):
        self._cuda = cupy.cuda
        self._spin = cupy.RawKernel(SPIN, "spin")
        self._cycles = cupy.int64(SPIN_CYCLES)

    def __call__(self, run: Callable[[], object], times: int) -> float:
        start, end = self._cuda.Event(), self._cuda.Event()
        self._spin((1,), (1,), (self._cycles,))
        start.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return self._cuda.get_elapsed_time(start, end) / times


class HostClock:
    """For runs on the emulator, which show that a benchmark reaches its end; its times mean nothing."""

    meaningful = False

    def __call__(self, run: Callable[[], object], times: int) -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3


def medians(
    clock: GpuClock | HostClock,
    runs: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    burst_ms: float = 2.0,
) -> dict[str, float]:
    """Milliseconds of each run: the median over rounds, in every one of which all take their turn."""
    rounds = rounds if clock.meaningful else 1
    once = {}
    for name, run in runs.items():
        run()  # compiles, allocates, captures
        run()
        once[name] = clock(run, 1)
    times = {name: max(1, min(50, round(burst_ms / max(ms, 1e-3)))) for name, ms in once.items()}
    samples = {name: [] for name in runs}
    names = list(runs)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            samples[name].append(clock(runs[name], times[name]))
    return {name: statistics.median(values) for name, values in samples.items()}
