"""SAGAN with and without attention, six seeds, on CIFAR-10: is the Fréchet distance smaller?

    python benchmarks/generation.py --data path/to/cifar10-jpeg --folder runs/generation \\
        --out benchmarks/results/generation.json

One classifier is trained first; in its features generated images are compared with real ones. Then `foveal compare`
trains every seed of both networks: a run is one JSON file in the folder, and the same command continues where it was
stopped. Beside the distances stand their floor, real training images against real test images, and their ceiling, an
untrained generator. As it comes the popular form of half its width is trained, hours on two cores and minutes on a GPU;
--model sagan_32 --width 64 is mmagic's network for these images, for a GPU.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from foveal.compare import compare
from foveal.data import open_dataset
from foveal.files import write_json
from foveal.machine import choose_device, environment
from foveal.models import create_model
from foveal.tasks.generate.features import feature_network, frechet_distance
from foveal.tasks.generate.prediction import noise_of
from foveal.train import TrainConfig, fit

SIZE, BATCH = 32, 250
CLASSIFIER = "cifar_resnet20"


def classifier(data: str, folder: Path, epochs: int) -> Path:
    """Weights of the network to measure with, trained once."""
    weights = folder / "classifier" / "weights" / "best.safetensors"
    done = folder / "classifier.json"
    if not done.exists():
        options: dict[str, Any] = {
            "data": data,
            "model": CLASSIFIER,
            "image_size": SIZE,
            "epochs": epochs,
            "batch_size": 128,
        }
        recipe = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "out": str(folder / "classifier")}
        result = fit(TrainConfig.from_dict({**options, **recipe}), resume="auto")
        write_json(done, {"model": CLASSIFIER, "val_accuracy": result.best["val_accuracy"], **options})
    return weights


@torch.no_grad()
def bounds(data: str, weights: Path, model: str, options: dict[str, Any], count: int) -> dict[str, float]:
    """Fréchet distance of so many training images, and of an untrained generator's, from as many test images."""
    device = choose_device("auto")
    test, train = (open_dataset(data, part) for part in ("test", "train"))
    features = feature_network(str(weights), train)
    count = min(count, len(test), len(train))

    def of_real(images: Any) -> torch.Tensor:
        taken = [i * len(images) // count for i in range(count)]
        parts = [
            torch.stack([images[i]["image"] for i in taken[n : n + BATCH]]) for n in range(0, count, BATCH)
        ]
        return torch.cat([features(part.to(device).float() / 255)[0] for part in parts])

    torch.manual_seed(0)
    net: Any = create_model(model, num_classes=len(train.classes), **options).eval().to(device)
    made = []
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        noise = torch.stack([noise_of(0, number, net.latent) for number in numbers]).to(device)
        labels = torch.tensor([number % len(train.classes) for number in numbers], device=device)
        made.append(features(net.generate(noise, labels) / 2 + 0.5)[0])
    real = of_real(test)
    return {
        "images": count,
        "floor": frechet_distance(of_real(train), real),
        "ceiling": frechet_distance(torch.cat(made), real),
    }


def main() -> None:
    """Train the classifier, compare, and write everything into one JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/generation"), help="where runs are kept")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--model", default="sagan_dcgan_32")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--lr", type=float, default=2e-4, help="the generator's; the discriminator has twice that"
    )
    parser.add_argument("--classifier-epochs", type=int, default=20)
    parser.add_argument("--jobs", type=int, help="runs at a time")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    weights = classifier(given.data, given.folder, given.classifier_epochs)
    options = {"width": given.width, "conditional": True}
    result = compare(
        models=[f"{given.model}(attention=none)", given.model],
        task="generate",
        data=given.data,
        split="test",
        image_size=SIZE,
        model_options=options,
        feature_weights=str(weights),
        seeds=given.seeds,
        tune=0,
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=given.lr,
        ema=0.999,
        control=False,
        jobs=given.jobs,
        out=str(given.folder / "compare"),
    )
    found = json.loads((result.folder / "results.json").read_text(encoding="utf-8"))
    limits = bounds(given.data, weights, given.model, options, count=10_000)
    print(result.conclusion)
    print(f"floor {limits['floor']:.3g}, ceiling {limits['ceiling']:.3g} of {limits['images']} images")
    if given.out is not None:
        settings = {name: str(value) for name, value in vars(given).items() if name not in ("folder", "out")}
        settings["data"] = Path(given.data).name
        measured = json.loads((given.folder / "classifier.json").read_text(encoding="utf-8"))
        measured["data"] = settings["data"]
        write_json(
            given.out,
            {
                "settings": settings,
                "classifier": measured,
                "bounds": limits,
                "results": found,
                "environment": environment(),
            },
        )


if __name__ == "__main__":
    main()
