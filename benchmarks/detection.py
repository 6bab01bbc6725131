"""One image through the detectors, batch 1, against transformers' DETR with the same weights and torchvision's.

    OMP_NUM_THREADS=2 python benchmarks/detection.py --out benchmarks/results/detection.json

Random weights, ResNet-50 everywhere, eval mode, all detectors of a size in turn in every round. `foveal` and
`transformers` are held to equal outputs first; `fused` is `foveal.fuse` of the same network. The second part is the
peak memory of DETR-DC5's encoder, whose weights of n x n positions would alone take what is printed beside it.
"""

import argparse
import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import foveal
from foveal.bench import describe_machine
from foveal.files import write_json
from foveal.measure import measure_time, peak_bytes
from foveal.models.transformer import Memory
from foveal.published import convert

SIZES = ((640, 640), (800, 1333))


def transformers_detr() -> Any:
    from transformers import DetrConfig, DetrForObjectDetection, TimmBackboneConfig

    body = TimmBackboneConfig(backbone="resnet50", use_pretrained_backbone=False, out_indices=[4])
    return DetrForObjectDetection(DetrConfig(backbone_config=body, use_timm_backbone=False)).eval()


def in_foveal(peer: Any) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return convert(load_file(f"{folder}/model.safetensors"), dc5=False).eval()


def detectors() -> dict[str, Any]:
    from torchvision.models import detection

    peer = transformers_detr()
    ours = in_foveal(peer)
    # convolutions of maps in channels-last order find their weights in it
    ordered = copy.deepcopy(ours)
    ordered.get_submodule("backbone").to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    plain = {"weights": None, "weights_backbone": None}
    fcos = detection.fcos_resnet50_fpn(**plain).eval()
    faster = detection.fasterrcnn_resnet50_fpn(**plain).eval()
    sparse = foveal.create_model(
        "sparse_rcnn_resnet50", frozen_norm=True, zero_deltas=True, start_boxes="grid"
    ).eval()

    def torchvisions(net: Any):
        def run(x: torch.Tensor):
            # the image as it is, not resized to 800
            net.transform.min_size, net.transform.max_size = (min(x.shape[-2:]),), max(x.shape[-2:])
            return net(list(x))

        return run

    return {
        "foveal detr": ours,
        "foveal detr, weights in channels-last order": ordered,
        "foveal detr, fused": foveal.fuse(ours, torch.randn(1, 3, 320, 320)),
        "transformers detr": lambda x: peer(
            pixel_values=x, pixel_mask=torch.ones(1, *x.shape[-2:], dtype=torch.long)
        ),
        "foveal sparse_rcnn": sparse,
        "foveal sparse_rcnn, fused": foveal.fuse(sparse, torch.randn(1, 3, 320, 320)),
        "torchvision fcos": torchvisions(fcos),
        "torchvision fasterrcnn": torchvisions(faster),
    }


@torch.no_grad()
def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    nets = detectors()
    for h, w in SIZES:
        x = torch.randn(1, 3, h, w)
        difference = (nets["foveal detr"](x)["logits"] - nets["transformers detr"](x).logits).abs().max()
        if difference > 1e-4:
            raise RuntimeError(f"outputs differ by {float(difference):.1e}, not timed")
        calls = {name: (lambda net=net, x=x: net(x)) for name, net in nets.items()}
        for name, timing in measure_time(calls, repeats=options.repeats, warmup=1).items():
            print(f"{h} x {w:5} {name:24} {timing.time_ms:8.0f} ms", flush=True)
            rows.append({"height": h, "width": w, "detector": name, "time_ms": timing.time_ms})
    net = foveal.create_model("detr_dc5_resnet50", frozen_norm=True).eval()
    memory = []
    for h, w in SIZES:
        tokens = torch.randn(1, -(-h // 16) * -(-w // 16), 256)
        layer: Any = net.encoder[0]  # pyright: ignore[reportIndexIssue]
        memory_in = Memory(tokens, tokens, None, (-(-h // 16), -(-w // 16)))
        peak = peak_bytes(lambda layer=layer, memory_in=memory_in: layer(memory_in))
        weights = 8 * tokens.shape[1] ** 2 * 4
        print(
            f"{h} x {w:5} one encoder layer of DC5 {peak / 1e6:8.0f} MB, its n x n weights {weights / 1e6:6.0f} MB"
        )
        memory.append({"height": h, "width": w, "peak_bytes": peak, "weights_bytes": weights})
    if options.out:
        write_json(options.out, {"machine": describe_machine(), "rows": rows, "memory": memory})


if __name__ == "__main__":
    main()
