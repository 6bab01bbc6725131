"""Hostile weight files: nothing in them is run, none is half loaded, each is refused quickly in one line."""

import json
import os
import pickle
import random
import struct

import torch

import foveal
from foveal.model_info import ModelInfo

from .conftest import trials

READER = """
import json, resource, time
import foveal, torch
from foveal.errors import FovealError
from foveal.published.verb import convert

def ready(name):
    foveal.predictor(name, "cpu")

def converted(name):
    convert(name, name + ".out.safetensors")

for name in open("files.txt").read().splitlines():
    for use in (ready, converted):
        print(json.dumps(["begin", name, use.__name__]), flush=True)
        start = time.process_time()
        try:
            use(name)
            said = None
        except (FovealError, OSError, ConnectionError) as error:
            said = str(error) or type(error).__name__
        except BaseException as error:
            said = f"CRASH {type(error).__name__}: {error}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps(["end", name, use.__name__, said, time.process_time() - start, peak]), flush=True)
"""
SECONDS, KILOBYTES = 2.0, 500_000


class Runs:
    """What pickle would run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def good_file(folder):
    torch.manual_seed(0)
    net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=2), "se", reduction=4)
    foveal.save(net, folder / "good.safetensors", **ModelInfo("classify", ["a", "b"], 24).to_dict())
    return (folder / "good.safetensors").read_bytes()


def split(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, tensors, length=None):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tensors


def pickles(folder):
    canary = folder / "canary"
    write = f"open({str(canary)!r}, 'w')"
    calls = [(os.system, f"touch {canary}"), (eval, write), (exec, write)]
    for number, call in enumerate(calls):
        for protocol in range(5):
            yield (
                f"call{number}-{protocol}.pth",
                pickle.dumps({"state_dict": {"fc.weight": Runs(*call)}}, protocol),
            )
        torch.save({"model": Runs(*call)}, folder / "zip.pth")
        yield f"zip{number}.pth", (folder / "zip.pth").read_bytes()
        torch.save({"model": Runs(*call)}, folder / "zip.pth", _use_new_zipfile_serialization=False)
        yield f"legacy{number}.pth", (folder / "zip.pth").read_bytes()
        yield f"named{number}.safetensors", pickle.dumps(Runs(*call))
    itself: dict = {}
    itself["state_dict"] = itself
    torch.save(itself, folder / "zip.pth")
    yield "itself.pth", (folder / "zip.pth").read_bytes()
    (folder / "zip.pth").unlink()


def plans(data):
    """Real tensors below a description that asks for more than they justify, or holds what it must not."""
    header, tensors = split(data)
    description = json.loads(header["__metadata__"]["foveal"])

    def with_(**changes):
        changed = {**description, **changes}
        text = json.dumps(changed)
        return joined({**header, "__metadata__": {"foveal": text}}, tensors)

    model, info = description["model"], description["info"]
    for name, kwargs in (
        ("vit_base_patch16_224", {"depth": 1_000_000}),
        ("maxvit_tiny_tf_224", {"img_size": 8000}),
        ("resnetv2_50", {"layers": [30_000, 1, 1, 1]}),
        ("resnet18", {"pretrained": True}),
        ("resnet18", {"checkpoint_path": "/etc/passwd"}),
        ("hf-hub:someone/something", {}),
        ("cifar_resnet8", {"num_classes": 10**12}),
        ("cifar_resnet8", {"name": "x"}),
        ("resnet18", {"act_layer": "os.system", "block": "eval"}),
        ("../../etc/passwd", {}),
    ):
        yield with_(model={"name": name, "kwargs": kwargs})
    for name, value in (
        ("classes", 5), ("classes", {}), ("classes", ["a"]), ("classes", ["<script>"] * 2), ("image_size", "x"),
        ("image_size", 10**9), ("mean", 5), ("std", None), ("std", [0, 0, 0]), ("mean", [1e308] * 3), ("task", ["x"]),
        ("task", "segment"), ("data_options", []), ("crop_share", -1), ("interpolation", "eval"),
    ):  # fmt: skip
        yield with_(info={**info, name: value})
    for site in ("", "no.such", "x" * 1_000_000, "\x1b[2J", "__class__", "fc.__init__"):
        yield with_(plan=[{**description["plan"][0], "site": site}])
    for options in ({"reduction": 10**9}, {"reduction": 0}, {"__class__": 1}, {"reduction": [4] * 1000}):
        yield with_(plan=[{**description["plan"][0], "options": options}])
    yield with_(plan=description["plan"] * 50_000)
    yield with_(model={**model, "kwargs": {"x": [[[[[]]]]]}})
    yield joined({**header, "__metadata__": {"foveal": "[" * 100_000}}, tensors)


def headers(data, draw):
    """Lengths, offsets, kinds and shapes that lie."""
    header, tensors = split(data)
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    match draw.randrange(8):
        case 0:
            return joined(header, tensors, length=draw.choice((0, 1, 2**31, 2**63, 2**64 - 1)))
        case 1:
            changed = {
                **entry,
                "data_offsets": draw.choice(([0, 2**63], [10, 5], [-1, 4], [0, 0], [2**40, 2**41])),
            }
            return joined({**header, name: changed}, tensors)
        case 2:
            changed = {**entry, "shape": draw.choice(([2**31, 2**31], [-1], [], [0], [1] * 1000))}
            return joined({**header, name: changed}, tensors)
        case 3:
            kind = draw.choice(("I64", "BOOL", "F8_E4M3", "X", "C64"))
            return joined({**header, name: {**entry, "dtype": kind}}, tensors)
        case 4:
            other = {**header, name: dict(draw.choice([v for k, v in header.items() if k != "__metadata__"]))}
            return joined(other, tensors)
        case 5:
            return data[: draw.randrange(len(data))]
        case 6:
            changed = bytearray(data)
            for _ in range(20):
                changed[draw.randrange(min(3000, len(changed)))] = draw.randrange(256)
            return bytes(changed)
    return joined({key: value for key, value in header.items() if key != name}, tensors)


@trials(70, 300)
def test_nothing_in_a_weights_file_is_run_and_each_is_refused_in_one_line(zygote, tmp_path, trials):
    draw = random.Random(300)
    data = good_file(tmp_path)
    files = dict(pickles(tmp_path))
    files |= {f"plan{number}.safetensors": plan for number, plan in enumerate(plans(data))}
    files |= {f"header{n}.safetensors": headers(data, draw) for n in range(max(0, trials - len(files)))}
    if trials < len(files):
        files = dict(draw.sample(sorted(files.items()), trials))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "files.txt").write_text("\n".join(["good.safetensors", *files]))
    trial = zygote.run(tmp_path, code=READER)
    assert not (tmp_path / "canary").exists(), "something in a file was run"
    told = [json.loads(line) for line in trial.out.splitlines()]
    ends = [row[1:] for row in told if row[0] == "end"]
    assert len(ends) == 2 * (len(files) + 1), f"ended in {told[-1]}: {trial.err[-300:]}"
    assert ends[0][2] is None, "the file that is right loads"
    # the first uses load libraries; what they take is not the file's
    failures = [
        row for row in ends if row[2] and (row[2].startswith("CRASH") or len(row[2]) > 4000 or "\n" in row[2])
    ]
    failures += [row for row in ends[2:] if row[3] > SECONDS or row[4] - ends[1][4] > KILOBYTES]
    assert not failures
    assert sum(1 for row in ends if row[2]) > len(files), "most of these files are refused"
    refused = {f"{row[0]}.out.safetensors" for row in ends if row[1] == "converted" and row[2]}
    assert not refused & {path.name for path in tmp_path.iterdir()}
