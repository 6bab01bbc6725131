"""Time and memory of the CUDA kernels against the literal equations and PyTorch's own, in one interleaved run.

    python benchmarks/gpu_ops.py --out benchmarks/results/gpu_ops.json

Every result is checked against the literal equation first; nothing is timed if one differs.
"""

import argparse
import json
import platform
import statistics

import torch
import triton

from foveal.ops import attention, reference
from foveal.ops.kernels import triton_gate

SIZES = [  # name, batch, positions, key width, value width
    ("self-attention 32 -> 256, 96 x 96", 1, 96 * 96, 32, 256),
    ("self-attention 32 -> 256, 64 x 64, batch 8", 8, 64 * 64, 32, 256),
    ("DANet position 64 -> 512, 128 x 256", 1, 128 * 256, 64, 512),
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def interleaved_ms(functions: dict, repeats: int = 15) -> dict[str, float]:
    """Median of device-event times, one call of each in turn."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mib(function) -> float:
    """Memory above what is allocated before the call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.float() - want.float()).norm() / want.float().norm()).item()


def attention_rows() -> list[dict]:
    rows = []
    for name, b, n, d, e in SIZES:
        for dtype in (torch.bfloat16, torch.float32):
            torch.manual_seed(0)
            # feature maps (b, c, n), seen as (b, n, c), as the blocks pass them
            q, k, v = (torch.randn(b, c, n, device="cuda", dtype=dtype).transpose(1, 2) for c in (d, d, e))
            inputs = [t.requires_grad_() for t in (q, k, v)]
            dy = torch.randn_like(v)
            scale = d**-0.5

            def forward(backend, inputs=inputs, scale=scale):
                with torch.no_grad():
                    return attention.softmax_attention(*inputs, scale=scale, backend=backend)

            def step(backend, inputs=inputs, scale=scale, dy=dy):
                y = attention.softmax_attention(*inputs, scale=scale, backend=backend)
                return torch.autograd.grad(y, inputs, dy)

            backends = ["reference", "streamed", "sdpa", "triton"]
            want = step(
                "streamed", inputs=[t.detach().float().requires_grad_() for t in inputs], dy=dy.float()
            )
            errors = {m: max(map(error, step(m), want)) for m in backends}
            bad = {m: x for m, x in errors.items() if not x < TOLERANCE[dtype]}
            if bad:
                raise SystemExit(f"{name}, {dtype}: gradients differ from the equation: {bad}")
            forward_ms = interleaved_ms({m: lambda m=m: forward(m) for m in backends})
            step_ms = interleaved_ms({m: lambda m=m: step(m) for m in backends})
            rows.append(
                {
                    "size": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "auto": attention.explain(*inputs).backend,
                    "gradient_error": errors,
                    "forward_ms": forward_ms,
                    "forward_backward_ms": step_ms,
                    "forward_peak_mib": {m: peak_mib(lambda m=m: forward(m)) for m in backends},
                    "forward_backward_peak_mib": {m: peak_mib(lambda m=m: step(m)) for m in backends},
                    "triton_tflops_forward": 2 * b * n * n * (d + e) / forward_ms["triton"] / 1e9,
                }
            )
            row = rows[-1]
            print(name, row["dtype"], "auto:", row["auto"])
            for key in ("forward_ms", "forward_backward_ms", "forward_backward_peak_mib"):
                print(f"  {key:26}", {m: round(x, 3) for m, x in row[key].items()}, flush=True)
    return rows


def gate_rows() -> list[dict]:
    rows = []
    for layout in ("contiguous", "channels_last"):
        for shape in ((32, 256, 56, 56), (1, 256, 56, 56)):
            for dtype in (torch.bfloat16, torch.float32):
                x = torch.randn(shape, device="cuda", dtype=dtype)
                if layout == "channels_last":
                    x = x.to(memory_format=torch.channels_last)
                gate = torch.rand(shape[:2], device="cuda", dtype=dtype)
                mask = torch.rand(shape[0], 1, *shape[2:], device="cuda", dtype=dtype)
                pairs = {
                    "squeeze mean and max": (
                        lambda x=x: (x.mean((2, 3)), x.amax((2, 3))),
                        lambda x=x: triton_gate.squeeze(x)[:2],
                    ),
                    "spatial statistics of the gated map": (
                        lambda x=x, g=gate: (reference.spatial_statistics(x, g),),
                        lambda x=x, g=gate: triton_gate.spatial_statistics(x, g)[:1],
                    ),
                    "both gates times the map": (
                        lambda x=x, g=gate, m=mask: (reference.dual_scale(x, g, m),),
                        lambda x=x, g=gate, m=mask: (triton_gate.dual_scale(x, g, m),),
                    ),
                }
                for name, (eager, fused) in pairs.items():
                    worst = max(map(error, fused(), eager()))
                    if not worst < TOLERANCE[dtype]:
                        raise SystemExit(f"{name}, {dtype}: differs from the equation by {worst}")
                    # what a call costs with an idle GPU, launch included, and what it costs on the device alone
                    called = interleaved_ms({"eager": eager, "triton": fused}, repeats=40)
                    bench = triton.testing.do_bench_cudagraph
                    device = {
                        "eager": bench(eager, return_mode="median"),
                        "triton": bench(fused, return_mode="median"),
                    }
                    rows.append(
                        {
                            "op": name,
                            "shape": shape,
                            "layout": layout,
                            "dtype": str(dtype).removeprefix("torch."),
                        }
                        | {"call_ms": called, "device_ms": device}
                    )
                    ratios = [t["eager"] / t["triton"] for t in (called, device)]
                    print(
                        f"{name:36} {layout:14} {shape[0]:3} {dtype!s:15} "
                        f"call {ratios[0]:.2f}x device {ratios[1]:.2f}x ({device['triton'] * 1000:.1f} us)",
                        flush=True,
                    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="JSON file to write")
    out = parser.parse_args().out
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(2**27, device="cuda")
    y = torch.empty_like(x)
    ceilings = interleaved_ms({"matmul": lambda: a @ a, "copy": lambda: y.copy_(x)})
    result = {
        "device": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
        },
        "command": "python benchmarks/gpu_ops.py --out benchmarks/results/gpu_ops.json",
        "bf16_matmul_tflops": 2 * 8192**3 / ceilings["matmul"] / 1e9,
        "copy_gb_per_s": 2 * x.numel() * 4 / ceilings["copy"] / 1e6,
    }
    print(result)
    del a, x, y
    result["gates"] = gate_rows()
    result["attention"] = attention_rows()
    with open(out, "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
