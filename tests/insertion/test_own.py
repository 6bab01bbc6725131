"""Blocks of one's own from a file: found by file and name, and run only where a person names the file."""

import io
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import foveal
from foveal.cli import main
from foveal.cli.tables import run_summary
from foveal.compare import compare
from foveal.compare.plan import plan_comparison
from foveal.insertion.own import from_file
from foveal.train import Interrupted, TrainConfig, fit
from foveal.train import run as run_module
from foveal.train.start import network_from

PAGE = Path(__file__).parents[2] / "docs" / "own-blocks.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
SCENES = {"length": 64, "size": 16, "digit_size": (8, 8)}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The page's block in a file of the working folder, which also writes down that it was run."""
    monkeypatch.chdir(tmp_path)
    text = CODE + "\nfrom pathlib import Path as _Path\n_Path('was-run').touch()\n"
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    forget()
    return tmp_path / "mine.py"


def forget():
    """As a new process: no file was run yet."""
    Path("was-run").unlink(missing_ok=True)
    for name in [name for name in sys.modules if name.startswith("foveal_own_")]:
        del sys.modules[name]


def training(**changes):
    options = {
        "data_options": SCENES,
        "insert": ["mine.py:ECA(kernel=5)@residual:3"],
        "epochs": 1,
        "workers": 0,
    }
    return TrainConfig.from_dict({**options, "accelerator": "cpu", "out": "run", **changes})


def test_a_block_is_named_by_file_and_class_and_starts_as_the_identity(mine):
    net = foveal.create_model("cifar_resnet8", num_classes=10).eval()
    x = torch.randn(2, 3, 16, 16)
    before = net(x)
    foveal.insert(net, **foveal.parse_insertion("mine.py:ECA(kernel=5)@residual:2,3"))
    assert torch.equal(net(x), before)
    assert [(one.block, one.options) for one in foveal.inserted(net)] == [("ECA", {"kernel": 5})] * 2
    with foveal.watch(net) as seen:
        net(x)
    assert seen["layer3.0.bn2"].gates.shape == (2, 64)


def test_weights_name_no_file_and_run_none(mine, capsys, monkeypatch):
    """Whoever opens the weights says where the class is; without that one line asks for it."""
    weights = fit(training(), quiet=True).weights
    assert b"mine.py" not in weights.read_bytes()
    assert Path("was-run").exists()
    forget()
    with pytest.raises(foveal.FovealError, match=r"not foveal's, 'ECA' at .*--blocks FILE\.py"):
        foveal.load(weights)
    assert main(["eval", "--weights", str(weights)]) == 2
    assert "--blocks FILE.py" in capsys.readouterr().err
    assert not Path("was-run").exists()
    assert main(["eval", "--weights", str(weights), "--blocks", "mine.py"]) == 0
    exported = []
    monkeypatch.setattr("foveal.export.export", lambda ready, *args, **options: exported.append(ready))
    assert main(["export", str(weights)]) == 2
    assert main(["export", str(weights), "--blocks", "mine.py"]) == 0
    assert [one.block for one in foveal.inserted(exported[0].net)] == ["ECA"]
    net = foveal.load(weights, blocks="mine.py")
    assert [one.block for one in foveal.inserted(net)] == ["ECA"]
    with pytest.raises(foveal.FovealError, match=r"'ECA' at .*got one that defines Other"):
        foveal.load(weights, blocks={"Other": torch.nn.Identity})


def test_what_to_type_next_names_the_file(mine):
    console = Console(width=200, file=io.StringIO())
    console.print(run_summary(fit(training(), quiet=True)))
    assert console.file.getvalue().count("best.safetensors --blocks mine.py") == 2


def test_a_plan_that_names_a_file_runs_nothing(mine):
    """A weights file from anywhere whose plan says FILE.py:NAME where the name of a class belongs."""
    net = foveal.insert(foveal.create_model("cifar_resnet8"), "mine.py:ECA", stages=(3,))
    next(iter(foveal.inserted(net))).module.foveal_insertion["block"] = "mine.py:ECA"
    foveal.save(net, "net.safetensors")
    forget()
    with pytest.raises(foveal.FovealError, match="not foveal's"):
        foveal.load("net.safetensors")
    assert not Path("was-run").exists()


def test_a_run_continues_with_the_file_that_is_named_again(mine, monkeypatch):
    finish = run_module.Run._finish_epoch

    def stop_after_the_first(self, figures):
        finish(self, figures)
        raise run_module.Stopped

    monkeypatch.setattr(run_module.Run, "_finish_epoch", stop_after_the_first)
    with pytest.raises(Interrupted, match=r"continue with: foveal train --resume run --blocks mine\.py"):
        fit(training(epochs=2), quiet=True)
    monkeypatch.undo()
    monkeypatch.chdir(mine.parent)
    forget()
    with pytest.raises(foveal.FovealError, match=r"ECA of mine\.py; name the file, which is run: --blocks"):
        fit(resume="run", quiet=True)
    assert not Path("was-run").exists()
    assert Path("run/mine.py").read_text() == mine.read_text()
    result = fit(TrainConfig(blocks=["mine.py"]), resume="run", quiet=True)
    assert len(result.rows) == 2
    mine.write_text(mine.read_text() + "\n# changed\n")
    with pytest.raises(foveal.FovealError, match=r"mine\.py must be as it was when the run in run began"):
        fit(TrainConfig(blocks=["mine.py"]), resume="run", quiet=True)


def test_a_run_continues_with_what_the_file_imports_as_it_was(mine):
    Path("layers").mkdir()
    Path("layers/gates.py").write_text("SCALE = 1.0\n")
    mine.write_text("from layers.gates import SCALE\n" + mine.read_text())
    fit(training(), quiet=True)
    assert Path("run/layers/gates.py").read_text() == "SCALE = 1.0\n"
    assert len(fit(TrainConfig(blocks=["mine.py"]), resume="run", quiet=True).rows) == 1
    Path("layers/gates.py").write_text("SCALE = 2.0\n")
    forget()
    with pytest.raises(
        foveal.FovealError, match=r"layers/gates\.py must be as it was .* run/layers/gates\.py is"
    ):
        fit(TrainConfig(blocks=["mine.py"]), resume="run", quiet=True)


def test_a_run_begins_from_weights_that_hold_it_where_the_file_is_named(mine):
    """With the same classes and with others; it continues with the file, and never without."""
    first = fit(training(), quiet=True)
    forget()

    def again(**changes):
        return training(insert=[], from_weights=str(first.weights), out="again", **changes)

    with pytest.raises(foveal.FovealError, match="ECA"):
        fit(again(), quiet=True)
    assert not Path("was-run").exists()
    second = fit(again(blocks=["mine.py"]), quiet=True)
    assert [one.block for one in foveal.inserted(foveal.load(second.weights, blocks="mine.py"))] == ["ECA"]
    other = network_from(again(blocks=["mine.py"]), ["0", "new"])
    assert [one.block for one in foveal.inserted(other)] == ["ECA"]
    forget()
    with pytest.raises(foveal.FovealError, match="ECA"):
        fit(resume="again", quiet=True)
    assert not Path("was-run").exists()
    assert len(fit(TrainConfig(blocks=["mine.py"]), resume="again", quiet=True).rows) == 1


def test_a_comparison_trains_anew_what_a_changed_file_changed(mine, in_this_process):
    texts = ["mine.py:ECA@residual:3", "mine.py:ECA(kernel=7)@residual:3"]
    options = {"data_options": SCENES, "epochs": 1, "accelerator": "cpu"}
    result = compare(texts, seeds=1, jobs=1, out="out", quiet=True, self_check=False, **options)
    assert [row.name for row in result.rows] == ["none", "control", "ECA", "ECA(kernel=7)"]
    assert result.rows[1].costs.parameters >= result.rows[3].costs.parameters
    before = {job.key for job in plan_comparison(texts, seeds=1, control=True, training=options).jobs}
    mine.write_text(mine.read_text().replace("self.factor = 2.0", "self.factor = 2.00"))
    after = {job.key for job in plan_comparison(texts, seeds=1, control=True, training=options).jobs}
    assert before.isdisjoint(after)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("none.py:ECA", r"must be in a Python file, got none\.py"),
        ("mine.py:Eca", r"mine\.py must define Eca, got only ECA"),
        ("broken.py:ECA", r"broken\.py must run without an error, got NameError"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_in_one_line(mine, block, message):
    Path("broken.py").write_text("x = y\n")
    with pytest.raises(foveal.FovealError, match=message):
        from_file(block)


def test_a_file_may_import_what_lies_beside_it(mine):
    Path("factors.py").write_text("HALF = 0.5\n")
    Path("other.py").write_text(
        "from factors import HALF\nfrom torch import nn\ndef make(channels):\n    return nn.Identity()\n"
    )
    assert isinstance(from_file("other.py:make")(8), torch.nn.Identity)


HELPED = """import torch
from torch import nn
from helper import WIDTH

class Helped(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        return x * (1 + self.scale.mean())
"""


def test_files_of_one_name_in_two_folders_import_each_what_lies_beside_it(tmp_path):
    for folder, width in (("one", 3), ("two", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(HELPED)
        (tmp_path / folder / "helper.py").write_text(f"WIDTH = {width}")
    widths = [
        from_file(f"{tmp_path / folder}/mine.py:Helped")(8).scale.numel() for folder in ("one", "two", "one")
    ]
    assert widths == [3, 5, 3]


def test_a_comparison_knows_the_files_that_a_block_imports_from_beside_it(tmp_path):
    (tmp_path / "mine.py").write_text(HELPED)
    (tmp_path / "helper.py").write_text("WIDTH = 3")
    plan = plan_comparison(
        [f"{tmp_path}/mine.py:Helped@residual:3"],
        seeds=1,
        control=False,
        training={"data_options": SCENES, "accelerator": "cpu"},
    )
    assert {Path(name).name for name in plan.job.settings["sources"]} == {"mine.py", "helper.py"}
