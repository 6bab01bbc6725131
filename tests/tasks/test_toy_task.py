"""The house takes a task it has never heard of: one object in `TASKS`, and not a line of the library changed.

The task is a regression of one number, the mean brightness of an image. It goes through training, evaluation,
prediction, comparing, looking and the command line.
"""

import ast
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import foveal
from foveal.compare import compare
from foveal.data import Scenes
from foveal.evaluate import evaluate
from foveal.files import csv_text
from foveal.tasks import TASKS, Classify, Task
from foveal.tasks.picture import captioned
from foveal.tasks.tables import plain_table
from foveal.train import TrainConfig, fit


class Brightness(Dataset):
    """Scenes with their mean brightness, from 0 to 1, as a number to learn."""

    classes, skipped, augment = ["brightness"], {}, False

    def __init__(self, split, length=64):
        self.scenes = Scenes(split, length=length, size=24)

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        image = self.scenes[index]["image"]
        return {"image": image, "value": float(image.float().mean() / 255)}


class MeanAbsoluteError:
    images, total = 0, 0.0

    def update(self, net, batch):
        self.images += len(batch["value"])
        self.total += float((net(batch["image"])[:, 0] - batch["value"]).abs().sum())

    def merge(self, other):
        self.images, self.total = self.images + other.images, self.total + other.total

    def compute(self):
        return {"loss": self.total / self.images, "error": self.total / self.images}

    def report(self):
        return {}


@dataclass(frozen=True)
class Number:
    value: float
    file: str = ""
    image: object = None

    @property
    def labels(self):
        return [("brightness", self.value)]

    def draw(self, image):
        return captioned(image.permute(1, 2, 0).numpy(), [f"{self.value:.3f}"])


@dataclass(frozen=True)
class ToyOptions:
    power: float = 2.0
    """Exponent of the error in the loss."""


@dataclass(frozen=True)
class NoOptions:
    pass


class Regress(Classify):
    """What differs from classification, whose size and transforms it borrows."""

    Options, InferenceOptions = ToyOptions, NoOptions
    metric, higher_is_better, is_share, bundled_recipes = "error", False, False, {}
    # there is no object to find: a property without a getter is as good as no attribute
    object_mask = property()

    def open(self, data, split, options):
        return Brightness(split, **options)

    def describe(self, data, options):
        return {"unit": "share"}

    def collate(self, samples):
        return [{"image": torch.stack([s["image"] for s in samples]),
                 "value": torch.tensor([s["value"] for s in samples])}]  # fmt: skip

    def losses(self, net, batch, info, options, generator):
        return {"error": (net(batch["image"])[:, 0] - batch["value"]).abs().pow(options.power).mean()}

    def new_metric(self, info, classes, inference=None):
        return MeanAbsoluteError()

    def predict(self, net, images, sizes, info, inference=None):
        return [Number(float(value)) for value in net(images)[:, 0]]

    def write(self, predictions, out, info, inference, format, unreadable):
        rows = [{"file": one.file, "brightness": one.value} for one, _ in predictions]
        return len(rows), csv_text(rows)

    def show(self, evaluation):
        return plain_table(evaluation)

    def caption(self, sample, classes):
        return f"{sample['value']:.2f}"


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    task = Regress()
    monkeypatch.setitem(TASKS, "regress", task)
    return task


@pytest.fixture
def run(tmp_path):
    config = TrainConfig.from_dict(
        {
            "task": "regress", "power": 1.0, "epochs": 3, "batch_size": 8, "lr": 0.02, "workers": 0,
            "insert": ["cbam(reduction=4)@residual:3"], "accelerator": "cpu", "out": str(tmp_path / "run"),
        }
    )  # fmt: skip
    return fit(config, quiet=True)


def test_it_trains_and_the_lowest_error_is_the_best(run):
    assert run.metric == "val_error"
    assert run.best == min(run.rows, key=lambda row: row["val_error"])
    assert run.rows[-1]["train_loss"] < run.rows[0]["train_loss"]
    info = foveal.load(run.weights).foveal_info
    assert (info["task"], info["unit"]) == ("regress", "share")
    assert "power: 1.0" in (run.folder / "config.yaml").read_text()


def test_it_is_evaluated_predicted_and_looked_at(run, tmp_path, said):
    found = evaluate(run.weights, device="cpu")
    assert found.figures["error"] == pytest.approx(run.best["val_error"], rel=1e-5)
    one = foveal.predictor(run.weights, "cpu")(torch.full((3, 30, 30), 200, dtype=torch.uint8))
    assert isinstance(one.value, float)
    from PIL import Image

    Image.new("RGB", (30, 30), "white").save(tmp_path / "a.png")
    status, out, _ = said("predict", tmp_path / "a.png", "--weights", run.weights, "--device", "cpu")
    assert status == 0
    assert next(csv.DictReader(out.splitlines()))["file"] == str(tmp_path / "a.png")
    status, out, _ = said("eval", "--weights", run.weights, "--device", "cpu", "--out", tmp_path / "e.json")
    assert status == 0
    assert "error" in out
    assert json.loads((tmp_path / "e.json").read_text())["error"] == pytest.approx(found.figures["error"])
    status, out, _ = said("look", tmp_path / "a.png", "--weights", run.weights, "--out", tmp_path / "look")
    assert status == 0
    assert "pictures" in out


def test_the_command_line_shows_its_options_and_no_other_task_s(said):
    shown = said("train", "--task", "regress", "--help")[1]
    assert "--power" in shown
    assert "Exponent of the error" in shown
    assert "--mixup" not in shown
    assert said("train", "--power", "2")[2] == "train: --power is an option of task regress only\n"
    assert said("train", "--task", "regres")[2].startswith(
        "train: task must be one of classify, segment, detect, generate, clips, regress"
    )


def test_it_is_compared_and_lower_is_better(tmp_path, in_this_process):
    """A worker process imports the library alone, and would not know this task."""
    result = compare(
        ["se(reduction=4)@residual:3"], task="regress", seeds=6, control=False, epochs=1, batch_size=8, lr=0.02,
        data_options={"length": 32}, accelerator="cpu", out=str(tmp_path), quiet=True,
    )  # fmt: skip
    none, se = result.rows
    assert se.to_none.mean == pytest.approx(se.metric.mean - none.metric.mean, abs=1e-9)
    assert "error" in result.report.read_text(encoding="utf-8")
    if se.to_none.finding == "better":
        assert se.to_none.mean < 0


def test_the_toy_is_a_task():
    wanted = {name for name in vars(Task) if not name.startswith("_")} | set(Task.__annotations__)
    for task in TASKS.values():
        assert [name for name in wanted if not hasattr(task, name)] == []


def test_nobody_above_the_tasks_asks_which_task_it_is():
    """No comparison with a task's name, and no dictionary keyed by one, outside `tasks/`."""
    root = Path(foveal.__file__).parent
    # rooms below the tasks: readers have their own word for what a sample holds, networks a part called `classify`
    allowed = {"data", "models", "published", "tasks"}
    names = {"classify", "segment", "detect", "generate", "clips"}
    found = []
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).parts[0] in allowed:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            compared = []
            if isinstance(node, ast.Compare):
                compared = [node.left, *node.comparators]
            elif isinstance(node, ast.Dict):
                compared = [key for key in node.keys if key is not None]
            elif isinstance(node, ast.match_case):
                compared = [n for n in ast.walk(node.pattern) if isinstance(n, ast.Constant)]
            elements = [
                e
                for c in compared
                for e in (c.elts if isinstance(c, ast.Tuple | ast.List | ast.Set) else [c])
            ]
            found += [
                f"{file.relative_to(root)}:{node.lineno}"
                for e in elements
                if isinstance(e, ast.Constant) and e.value in names
            ]
    assert found == []
