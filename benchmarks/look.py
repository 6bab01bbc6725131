"""How long the page waits for the row of a point: asked over HTTP, after the network has seen the image.

    python benchmarks/look.py --out benchmarks/results/look.json

Every N x N mechanism, in networks with random weights on one random 224 x 224 image: the server of ``foveal serve``
runs in this process and answers ``--points`` points, one after the other and none twice, the first one included.
Exits with 1 where the slowest answer takes 100 ms or more.
"""

import argparse
import http.client
import io
import json
import random
import statistics
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import torch

import foveal
from foveal.bench import describe_machine
from foveal.inference import Predictor
from foveal.look.page.server import make_app, serving
from foveal.model_info import ModelInfo
from foveal.nn.non_local import PAIRWISE
from foveal.nn.self_attention import SIMILARITIES

BAR_MS = 100.0
SIZE = 224
# name: (model, block, its options and stages)
CASES = {
    "danet_resnet18, stride 8": ("danet_resnet18", None, {}),
    **{
        f"nonlocal {pairwise} in layer3 of resnet50": (
            "resnet50",
            "nonlocal",
            {"pairwise": pairwise, "stages": (3,)},
        )
        for pairwise in PAIRWISE
    },
    **{
        f"selfattention {similarity} in layer3 of resnet50": (
            "resnet50",
            "selfattention",
            {"similarity": similarity, "stages": (3,)},
        )
        for similarity in SIMILARITIES
    },
    "dual in layer3 of resnet50": ("resnet50", "dual", {"stages": (3,)}),
    "nonlocal embedded_gaussian in layer1 of resnet50": ("resnet50", "nonlocal", {"stages": (1,)}),
    "selfattention perceptron in layer1 of resnet50": (
        "resnet50",
        "selfattention",
        {"similarity": "perceptron", "stages": (1,)},
    ),
    "vit_small_patch16_224": ("vit_small_patch16_224", None, {}),
}


def network(model: str, block: str | None, options: dict) -> Predictor:
    torch.manual_seed(0)
    net = foveal.create_model(model, num_classes=10)
    if block is not None:
        foveal.insert(net, block, at="block", **options)
    net.eval().requires_grad_(False)
    info = ModelInfo("classify", [str(i) for i in range(10)], SIZE, (0.5,) * 3, (0.5,) * 3)
    return Predictor(net, info, "random")


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> dict:
    connection.request(method, path, body, {"X-Foveal": "1"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    if answer.status != 200:
        raise SystemExit(f"look: the server answered {answer.status}: {content}")
    return content


def measure(one: Predictor, points: int) -> dict:
    """Milliseconds of the answers at the first site with rows."""
    from PIL import Image

    file = io.BytesIO()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (256, 256, 3), dtype=torch.uint8, generator=generator)
    Image.fromarray(pixels.numpy()).save(file, "png")
    times, keys = [], 0
    with serving(make_app([one], [])) as address:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
        start = time.perf_counter()
        seen = ask(connection, "POST", "/api/images", file.getvalue())
        first_pass = time.perf_counter() - start
        site = next(site for site in seen["networks"][0]["sites"] if "query" in site)
        height, width = site["spatial"]
        cells = [(y, x) for y in range(height) for x in range(width)]
        for y, x in random.Random(0).sample(cells, min(points, len(cells))):
            path = f"/api/images/{seen['id']}/row?network=0&site={site['name']}&y={y}&x={x}"
            start = time.perf_counter()
            row = ask(connection, "GET", path)
            times.append(1000 * (time.perf_counter() - start))
            keys = row["shape"][0] * row["shape"][1]
        connection.close()
    return {
        "positions": height * width,
        "keys": keys,
        "points": len(times),
        "median_ms": round(statistics.median(times), 2),
        "worst_ms": round(max(times), 2),
        "image_ms": round(1000 * first_pass, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    arguments = parser.parse_args()
    machine = describe_machine()
    print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}")
    rows = []
    for name, case in CASES.items():
        if arguments.only in name:
            rows.append({"case": name, **measure(network(*case), arguments.points)})
            line = "{case:<52} N = {positions:>4}  median {median_ms:>6} ms  worst {worst_ms:>6} ms"
            print(line.format(**rows[-1]), flush=True)
    if arguments.out:
        document = {"machine": machine, "image": [SIZE, SIZE], "bar_ms": BAR_MS, "rows": rows}
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["worst_ms"] < BAR_MS for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
