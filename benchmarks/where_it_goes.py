"""Where the time of an operation goes, by function and by whose function it is.

The profiler makes each call dearer, Python's own more than the kernel's, so its times add up to more than the real
one: read them as shares. It knows nothing of what is profiled.
"""

import cProfile
import pstats
from collections import defaultdict
from pathlib import Path

from benchmarks.interleaved import Contestant, Stopwatch

_SHOWN = 30
_PACKAGES = {"trio_daq", "trio", "outcome", "pyvisa", "pyvisa_py", "benchmarks"}


async def print_profile(contestant: Contestant, count: int) -> None:
    """Run *contestant* plainly, then under the profiler, *count* times each, and print what each function took."""
    async with contestant() as block:
        plain, watch = Stopwatch(), Stopwatch()
        await block(count // 10, plain)
        await block(count, plain)
        profile = cProfile.Profile()
        profile.enable()
        await block(count, watch)
        profile.disable()
    print(f"plainly: {plain.wall / count / 1e3:.1f} µs wall, {plain.cpu / count / 1e3:.1f} µs CPU;", end=" ")
    print(f"profiled: {watch.wall / count / 1e3:.1f} µs wall, {watch.cpu / count / 1e3:.1f} µs CPU\n")
    groups: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    lines = []
    for (file, number, name), (_, calls, own, _, _) in pstats.Stats(profile).stats.items():
        group = _whose(file, name)
        groups[group][0] += calls / count
        groups[group][1] += own / count * 1e6
        if calls >= count / 2:
            lines.append((own / count * 1e6, calls / count, group, _place(file, number, name)))
    total = sum(own for _, own in groups.values())
    print(f"{'whose':12} {'calls':>6} {'µs':>6} {'share':>6}")
    for group, (calls, own) in sorted(groups.items(), key=lambda item: -item[1][1]):
        print(f"{group:12} {calls:6.1f} {own:6.1f} {own / total:6.1%}")
    print(f"\n{'µs':>6} {'calls':>5}  whose        function")
    for own, calls, group, place in sorted(lines, reverse=True)[:_SHOWN]:
        print(f"{own:6.2f} {calls:5.1f}  {group:12} {place}")


def _whose(file: str, name: str) -> str:
    if file == "~":
        system = ("posix.", "select.", "'poll' of", "fcntl.", "_socket.")
        return "the system" if any(part in name for part in system) else "built-in"
    # From the inside out: a checkout is likely to be called trio_daq too, with Trio somewhere below it.
    return next((part for part in reversed(Path(file).parts) if part in _PACKAGES), "Python")


def _place(file: str, number: int, name: str) -> str:
    return name if file == "~" else f"{Path(file).parent.name}/{Path(file).name}:{number} {name}"
