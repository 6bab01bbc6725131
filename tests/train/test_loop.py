"""A run's updates are those that its options say, written out without an optimiser."""

import math

import pytest
import torch
from safetensors.torch import load_file

import foveal
from foveal.data.loader import EpochBatchSampler
from foveal.train import TrainConfig, fit
from foveal.train.network import add_blocks, build_network

DATA = {"length": 112, "size": 24}  # 7 batches of 16: with accumulate 3 the last step of an epoch has one
LR, INSERTED, MOMENTUM, DECAY, CLIP, EMA, SMOOTHING = 0.0005, 0.0002, 0.8, 0.3, 1.0, 0.9, 0.1


def by_hand(chosen: TrainConfig, weights: list[float]) -> dict[str, torch.Tensor]:
    """The state dict of the running average after the run."""
    net = add_blocks(build_network(chosen, list("abcdefghij")), chosen, 24).train()
    new = {id(p) for one in foveal.inserted(net) for p in one.module.parameters()}
    data = foveal.data.Scenes("train", **DATA).as_tensors()
    normalize = foveal.data.JointTransform([]).normalize
    average = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = ([torch.zeros_like(p) for p in net.parameters()] for _ in range(2))
    step = 0
    for epoch in range(2):
        sampler = EpochBatchSampler(112, 16, seed=0)
        sampler.start_at(epoch)
        batches = list(sampler)
        for group in (batches[:3], batches[3:6], batches[6:]):
            gradients = [torch.zeros_like(p) for p in net.parameters()]
            for batch in group:
                items = torch.tensor([i for _, i in batch])
                loss = torch.nn.functional.cross_entropy(
                    net(normalize(data["image"][items])),
                    data["label"][items],
                    weight=torch.tensor(weights),
                    label_smoothing=SMOOTHING,
                )
                found = torch.autograd.grad(loss / len(group), list(net.parameters()))
                gradients = [g + more for g, more in zip(gradients, found, strict=True)]
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            step += 1
            # a warm-up of one epoch, which is three steps, then half a cosine over the other three
            scale = step / 3 if step <= 3 else (1 + math.cos(math.pi * (step - 4) / 3)) / 2
            with torch.no_grad():
                for place, (p, g) in enumerate(zip(net.parameters(), gradients, strict=True)):
                    rate = scale * (INSERTED if id(p) in new else LR)
                    decay = DECAY if p.ndim > 1 and p.numel() > 1 else 0.0
                    g = g * min(1.0, CLIP / norm)
                    if chosen.optimizer == "sgd":
                        g = g + decay * p
                        first[place] = g if step == 1 else MOMENTUM * first[place] + g
                        p -= rate * (g + MOMENTUM * first[place])
                        continue
                    p -= rate * decay * p
                    first[place] = MOMENTUM * first[place] + (1 - MOMENTUM) * g
                    second[place] = 0.999 * second[place] + 0.001 * g.square()
                    mean = first[place] / (1 - MOMENTUM**step)
                    p -= rate * mean / ((second[place] / (1 - 0.999**step)).sqrt() + 1e-8)
            kept = min(EMA, step / (9 + step))
            for name, value in net.state_dict().items():
                average[name] = (
                    kept * average[name] + (1 - kept) * value if value.is_floating_point() else value
                )
    return average


@pytest.mark.parametrize(("optimizer", "tolerance"), [("sgd", 1e-4), ("adamw", 1e-2)])
def test_every_option_of_an_update_together(tmp_path, optimizer, tolerance):
    """To a share of what each tensor moves: AdamW divides by gradients, and so enlarges the rounding of small ones."""
    weights = [1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 0.0, 1.0, 1.5]
    chosen = TrainConfig.from_dict({
        "data_options": DATA, "insert": ["se(reduction=4)@block"], "epochs": 2, "batch_size": 16, "workers": 0,
        "accelerator": "cpu", "out": str(tmp_path / "a"), "accumulate": 3, "optimizer": optimizer, "lr": LR,
        "inserted_lr": INSERTED, "momentum": MOMENTUM, "weight_decay": DECAY, "clip_norm": CLIP, "ema": EMA,
        "warmup_epochs": 1.0, "schedule": "cosine", "label_smoothing": SMOOTHING, "class_weights": weights,
        "augment": False, "image_size": 24, "checkpoint_steps": 2,
    })  # fmt: skip
    done = fit(chosen, quiet=True)
    start = add_blocks(build_network(chosen, list("abcdefghij")), chosen, 24).state_dict()
    average = by_hand(chosen, weights)
    found = load_file(done.folder / "weights/last.safetensors")
    assert found.keys() == average.keys()
    for name, value in average.items():
        moved, wrong = ((value - other[name]).double().norm() for other in (start, found))
        assert wrong <= tolerance * moved + 1e-6, (name, float(wrong / moved))
