"""Every op against what it replaces, in one interleaved run on this machine, with the bar it has to meet.

A case makes named calls; one of them is ``"foveal"``, the others are what it is compared with. Nothing is timed
whose results differ. Importing this imports no torch.
"""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.bench.case import OURS, Case, Growth, Row
from foveal.errors import FovealError
from foveal.files import write_json

MATMUL_SIZE = 2048


def bench_ops(
    only: str | None = None, out: str | None = None, repeats: int = 9, threads: int | None = None
) -> bool:
    """Time every op against what it replaces and print the table of bars.

    Args:
        only: run the cases whose name contains this.
        out: also write the figures, with machine and versions, to this JSON file.
        repeats: interleaved rounds, of the gates four times as many; figures are medians.
        threads: PyTorch's threads, default as it starts.

    Returns:
        Whether every bar was met.

    Raises:
        ValueError: ``only`` matches no case.
        RuntimeError: results of two calls differ.
    """
    import torch

    from foveal.bench import attention, gate

    if threads:
        torch.set_num_threads(threads)
    cases: list[Case] = [*attention.CASES, *gate.CASES]
    growths: list[Growth] = [*attention.GROWTHS]
    wholes: dict[str, Callable[[], list[Row]]] = {**attention.WHOLES, **gate.WHOLES}
    names = [case.name for case in [*cases, *growths]] + list(wholes)
    if only and not any(only in name for name in names):
        raise FovealError(f"only must be part of a case's name, got {only!r}; cases: {'; '.join(names)}")
    wanted = [name for name in names if not only or only in name]
    rows: list[Row] = []

    def show(new: list[Row]) -> None:
        for row in new:
            print(_line(row), flush=True)
        rows.extend(new)

    environment = describe_machine()
    print(f"{environment['processor']}, {environment['threads']} threads, torch {environment['torch']}")
    for case in cases:
        if case.name in wanted:
            show(run_case(case, repeats))
    show(_group_rows([case for case in cases if case.name in wanted], rows))
    for growth in growths:
        if growth.name in wanted:
            show(run_growth(growth))
    for name, run in wholes.items():
        if name in wanted:
            show(run())
    if out:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"machine": environment, "rows": [row.as_dict() for row in rows]})
    return all(row.met for row in rows)


def run_case(case: Case, repeats: int) -> list[Row]:
    """Check that the calls agree, then time them in turn and count their memory."""
    from foveal.measure import measure_time, peak_bytes

    calls = case.make()
    _check_equal(case, calls)
    ceilings: dict[str, Callable[[], Any]] = {}
    if case.operations:
        ceilings["matmul"] = matmul(MATMUL_SIZE)
    if case.passes:
        ceilings["copy"] = copy(case.map_bytes)
    # the gates' calls of a millisecond scatter more, and cost little
    rounds = 4 * repeats if case.group else repeats
    times = measure_time({**calls, **ceilings}, repeats=rounds, warmup=1)
    peaks = {name: peak_bytes(call) for name, call in calls.items()}
    detail: dict[str, Any] = {
        "time_ms": {name: round(timing.time_ms, 3) for name, timing in times.items()},
        "peak_bytes": peaks,
    }
    floor_ms = 0.0
    if case.operations:
        floor_ms = times["matmul"].time_ms * case.operations / (2 * MATMUL_SIZE**3)
    if case.passes:
        floor_ms = max(floor_ms, times["copy"].time_ms * case.passes / 2)
    if floor_ms:
        detail["floor_ms"] = round(floor_ms, 3)
    rows = []
    for other, bar in case.bars.items():
        if bar.faster is not None:
            ratio = times[other].over(times[OURS])
            limit = times[other].time_ms / floor_ms if floor_ms else None
            least = 1.0 if case.group else bar.faster
            rows.append(Row(case.name, f"times as fast as {other}", ratio, least, True, detail, limit))
        if bar.memory is not None:
            share = peaks[OURS] / max(peaks[other], 1)
            rows.append(Row(case.name, f"peak memory, share of {other}", share, bar.memory, False, detail))
        if bar.saved is not None:
            saved = {name: saved_bytes(calls[name]) for name in (OURS, other)}
            share = saved[OURS] / max(saved[other], 1)
            detail = {**detail, "saved_bytes": saved}
            figure = f"saved for backward, share of {other}"
            limit = case.must_save / max(saved[other], 1)
            rows.append(Row(case.name, figure, share, bar.saved, False, detail, limit))
    return rows


def saved_bytes(call: Callable[[], Any]) -> int:
    """Bytes of distinct memory that autograd keeps for backward while ``call`` runs, parameters aside."""
    import torch

    storages: dict[int, int] = {}

    def pack(tensor):
        if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storages.values())


def run_growth(growth: Growth) -> list[Row]:
    """Slopes of time and of peak extra memory over the sizes, by least squares on log-log axes."""
    from foveal.measure import measure_time, peak_bytes

    calls = {str(n): growth.make(n) for n in growth.sizes}
    for call in calls.values():
        call()
    peaks = [peak_bytes(call) for call in calls.values()]
    detail: dict[str, Any] = {"sizes": list(growth.sizes), "peak_bytes": peaks}
    rows = []
    if growth.time is not None:
        times = [timing.time_ms for timing in measure_time(calls, repeats=9, warmup=1).values()]
        detail["time_ms"] = [round(time_ms, 3) for time_ms in times]
        rows.append(Row(growth.name, "slope of time", slope(growth.sizes, times), growth.time, False, detail))
    rows.append(
        Row(growth.name, "slope of peak memory", slope(growth.sizes, peaks), growth.memory, False, detail)
    )
    return rows


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(values) over log(sizes).

    Example:
        >>> round(slope([1, 10, 100], [3, 300, 30000]), 3)
        2.0
    """
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


def describe_machine() -> dict[str, Any]:
    """Processor, threads, versions, and the float32 matmul rate that every other rate is held against."""
    import torch

    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "matmul_gflops": round(matmul_rate() / 1e9, 1),
    }


def matmul(size: int) -> Callable[[], Any]:
    """A square float32 matrix product, the fastest arithmetic a processor does."""
    import torch

    a, b, c = (torch.randn(size, size) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)


def copy(size: int) -> Callable[[], Any]:
    """A copy of ``size`` bytes: each read once and written once."""
    import torch

    source, target = (torch.ones(size // 4) for _ in range(2))
    return lambda: target.copy_(source)


def matmul_rate(repeats: int = 9) -> float:
    """Median operations a second (two a multiply-add) of `matmul`."""
    from foveal.measure import measure_time

    timing = measure_time({"matmul": matmul(MATMUL_SIZE)}, repeats=repeats, warmup=1)["matmul"]
    return 2 * MATMUL_SIZE**3 / (timing.time_ms / 1000)


def _check_equal(case: Case, calls: Mapping[str, Callable[[], Any]]) -> None:
    import torch

    def tensors(result: Any) -> list:
        return [result] if isinstance(result, torch.Tensor) else list(result)

    ours = tensors(calls[OURS]())
    for name in calls:
        for mine, other in zip(ours, tensors(calls[name]()), strict=True):
            error = (mine - other).abs().max() / other.abs().max().clamp_min(1e-30)
            if not error <= case.tolerance:
                raise RuntimeError(f"bench: {case.name}: foveal and {name} differ by {error:.1e}, not timed")


def _group_rows(cases: Sequence[Case], rows: Sequence[Row]) -> list[Row]:
    """The geometric mean over each group, with the group's bar."""
    means = []
    for group in dict.fromkeys(case.group for case in cases if case.group):
        members = [case for case in cases if case.group == group]
        for other, bar in members[0].bars.items():
            figure = f"times as fast as {other}"
            ratios = [
                row.measured for row in rows if row.figure == figure and row.case in {c.name for c in members}
            ]
            if bar.faster is not None:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                means.append(Row(f"{group}, geometric mean of {len(ratios)}", figure, mean, bar.faster, True))
    return means


def _line(row: Row) -> str:
    sign = ">=" if row.at_least else "<="
    met = "met" if row.met else "NOT MET"
    if not row.met and row.limit is not None:
        met += f" (the hardware's limit: {row.limit:.3f})"
    return f"{row.case:<58} {row.figure:<42} {row.measured:>8.3f}  {sign} {row.bar:<6g} {met}"
