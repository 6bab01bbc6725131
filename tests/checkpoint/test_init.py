"""Files of weights: complete, strict, and never executed."""

import functools
import json
import os
import pickle
import struct
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import foveal
from foveal import checkpoint
from foveal.checkpoint.rebuild import as_json
from foveal.errors import FovealError
from foveal.nn import BLOCKS, CBAM


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def with_blocks(name: str = "cbam", **options) -> nn.Module:
    torch.manual_seed(0)
    net = foveal.create_model("cifar_resnet8", num_classes=4)
    foveal.insert(net, name, **{**({"reduction": 4} if name in ("se", "cbam") else {}), **options})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net.eval()


def rewritten(path, change) -> None:
    """Change the metadata of a file, as someone with bad intentions would."""
    described = checkpoint.read_info(path)
    change(described)
    save_file(load_file(path), path, metadata={"foveal": json.dumps(described)})


# --------------------------------------------------------------------------------------------- there and back


def test_a_file_in_a_folder_of_any_encoding_is_read(latin_folder, x):
    net = with_blocks()
    foveal.save(net, latin_folder / "net.safetensors")
    assert torch.equal(foveal.load(latin_folder / "net.safetensors").eval()(x), net(x))
    assert checkpoint.read_info(latin_folder / "net.safetensors")["model"]["name"] == "cifar_resnet8"


@pytest.mark.parametrize("name", BLOCKS)
def test_a_file_alone_rebuilds_the_network(name, path, x):
    net = with_blocks(name)
    foveal.save(net, path, classes=["a", "b"], mean=(0.5,), size=32)
    again = foveal.load(path).eval()
    assert torch.equal(again(x), net(x))
    assert list(again.state_dict()) == list(net.state_dict())
    assert [as_json(one) for one in foveal.inserted(again)] == [as_json(one) for one in foveal.inserted(net)]
    assert again.foveal_info == {"classes": ["a", "b"], "mean": [0.5], "size": 32}


def test_several_insertions_and_removals_come_back_in_place(path, x):
    net = with_blocks("se")
    foveal.insert(net, "se", stages=(3,), hidden=4)
    foveal.insert(net, "nonlocal", at="layer3")
    foveal.insert(net, "cbam", at="stage", reduction=4, arrangement="parallel", start="paper")
    foveal.remove(net, "layer3.0.bn2.se")
    foveal.save(net, path)
    again = foveal.load(path).eval()
    assert [one.path for one in foveal.inserted(again)] == [one.path for one in foveal.inserted(net)]
    assert torch.equal(again(x), net.eval()(x))


@pytest.mark.parametrize(
    ("model", "at"),
    [
        ("convnext_atto", "residual"),
        ("efficientnet_b0", "residual"),
        ("regnety_002", "block"),
        ("densenet121", "stage"),
        ("mobilenetv3_small_050", "stage"),
        ("resnet10t", "residual"),
    ],
)
def test_timm_networks_rebuild(model, at, path):
    net = foveal.create_model(model, num_classes=4, in_chans=1, drop_rate=0.1)
    x = torch.randn(1, 1, 64, 64)
    foveal.insert(net, "se", at=at, reduction=4, example=x)
    foveal.save(net, path)
    assert torch.equal(foveal.load(path).eval()(x), net.eval()(x))


def test_named_networks_with_blocks_of_their_own_rebuild(path, x):
    net = foveal.create_model("cifar_se_resnet20", num_classes=4)
    foveal.remove(net, "layer1.*.*")
    foveal.insert(net, "se", stages=(3,), reduction=4, start="paper")
    foveal.save(net, path)
    again = foveal.load(path).eval()
    assert [one.path for one in foveal.inserted(again)] == [one.path for one in foveal.inserted(net)]
    assert torch.equal(again(x), net.eval()(x))


def test_a_users_own_network_and_block_load_into_what_the_user_builds(path):
    def build() -> nn.Module:
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        return foveal.insert(net, Gate, at="0", example=torch.zeros(1, 3, 8, 8), start="paper")

    class Gate(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.gate = nn.Parameter(torch.randn(channels, 1, 1))

        def forward(self, x):
            return x * self.gate

    net = build()
    foveal.save(net, path)
    again = foveal.load(path, build())
    assert torch.equal(again.get_submodule("0.gate").gate, net.get_submodule("0.gate").gate)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"does not name its model.*pass net=.*Gate at 0"):
        foveal.load(path)


def test_a_users_own_block_in_a_named_network_is_told_by_blocks(path, x):
    net = foveal.create_model("cifar_resnet8", num_classes=4)
    foveal.insert(net, lambda channels: CBAM(channels, reduction=4, start="identity"), stages=(3,))
    foveal.save(net, path)
    with pytest.raises(ValueError, match=r".*holds a block that is not foveal's, 'block' at layer3.0.bn2"):
        foveal.load(path)
    again = foveal.load(
        path, blocks={"block": lambda channels: CBAM(channels, reduction=4, start="identity")}
    )
    assert torch.equal(again.eval()(x), net.eval()(x))


def test_a_quantised_network_is_refused_by_save_and_load(path):
    foveal.save(nn.Sequential(nn.Linear(3, 2)), path)
    with warnings.catch_warnings(action="ignore"):
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear})
    for act in (lambda: foveal.save(quantised, path), lambda: foveal.load(path, quantised)):
        with pytest.raises(FovealError, match=r"tensors only, got dtype as 0\._packed_params"):
            act()


def test_tied_and_strided_weights_and_half_types_are_kept(path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.register_buffer("strided", torch.arange(12.0).reshape(3, 4).t())

    net = Tied().to(torch.bfloat16)
    foveal.save(net, path)
    again = foveal.load(path, Tied().to(torch.bfloat16))
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.state_dict().items())


def test_compiled_networks_save_under_their_own_names(path, x):
    net = with_blocks()
    foveal.save(torch.compile(net, backend="eager"), path)
    assert torch.equal(foveal.load(path).eval()(x), net(x))


def test_the_header_is_read_without_the_weights(path):
    foveal.save(with_blocks(), path, note="first")
    described = foveal.read_info(path)
    assert described["model"] == {"name": "cifar_resnet8", "kwargs": {"num_classes": 4, "in_chans": 3}}
    assert described["version"] == foveal.__version__
    assert described["info"] == {"note": "first"}
    assert [entry["path"] for entry in described["plan"]] == [f"layer{i}.0.bn2.cbam" for i in (1, 2, 3)]


# ------------------------------------------------------------------------------------- nothing lost in silence


def test_loading_into_a_network_without_the_plan_is_refused_with_what_would_be_lost(path):
    foveal.save(with_blocks(), path)
    plain = foveal.create_model("cifar_resnet8", num_classes=4)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    with pytest.raises(ValueError, match=r"lost") as caught:
        foveal.load(path, plain)
    for i in (1, 2, 3):
        assert f"cbam(reduction=4) at layer{i}.0.bn2" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


def test_a_plan_that_differs_in_one_option_is_refused_though_shapes_agree(path):
    foveal.save(with_blocks(arrangement="parallel"), path)
    other = with_blocks(arrangement="spatial-channel")
    with pytest.raises(
        ValueError, match=r"lacks cbam\(reduction=4, arrangement='parallel'\) at layer1.0.bn2"
    ):
        foveal.load(path, other)


def test_blocks_the_file_lacks_are_refused(path):
    foveal.save(foveal.create_model("cifar_resnet8", num_classes=4), path)
    with pytest.raises(ValueError, match=r"the file lacks cbam.*which would stay untrained"):
        foveal.load(path, with_blocks())


def test_other_weights_are_refused_by_name_and_shape(path):
    foveal.save(foveal.create_model("cifar_resnet8", num_classes=4), path)
    with pytest.raises(
        ValueError,
        match=r"must hold exactly .* got mis-shaped: fc.weight \(\(4, 64\) instead of \(5, 64\)\), fc.bias",
    ):
        foveal.load(path, foveal.create_model("cifar_resnet8", num_classes=5))
    with pytest.raises(ValueError, match=r"got missing: layer1.1.conv1.weight, .* and .* more$"):
        foveal.load(path, foveal.create_model("cifar_resnet20", num_classes=4))


def test_a_network_that_a_file_does_not_fit_keeps_every_weight(path):
    foveal.save(foveal.create_model("cifar_resnet8", num_classes=4), path)
    other = foveal.create_model("cifar_resnet8", num_classes=5)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="must hold exactly"):
        foveal.load(path, other)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


# -------------------------------------------------------------------------------------------- writing safely


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(path, x, monkeypatch):
    net = with_blocks()
    foveal.save(net, path)
    content = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left"):
        foveal.save(with_blocks("se"), path)
    assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        foveal.save(with_blocks(), tmp_path / "none" / "net.safetensors")
    assert not (tmp_path / "none").exists()


def test_what_is_no_json_is_refused_before_anything_is_written(path):
    with pytest.raises(ValueError, match=r"must be JSON values"):
        foveal.save(with_blocks(), path, classes={1, 2})
    with pytest.raises(ValueError, match=r"must be JSON values"):
        foveal.save(with_blocks(), path, loss=float("nan"))
    assert not path.exists()


def test_files_have_the_users_usual_permissions(path):
    foveal.save(with_blocks(), path)
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


# ------------------------------------------------------------------------------------------- files of others


class Trap:
    """A pickle that, were it opened, would leave a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
def test_a_pickle_is_never_opened(kind, tmp_path):
    path, mark = tmp_path / "weights.pth", tmp_path / "mark"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(mark)))
    else:
        torch.save(Trap(mark), path, _use_new_zipfile_serialization=kind == "torch")
    for opening in (foveal.load, foveal.read_info):
        with pytest.raises(
            ValueError, match=r"got a pickle in .*weights.pth.*torch.load\(path, weights_only=True\)"
        ):
            opening(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"hello, this is no weights file",
        b"\xff" * 64,
        struct.pack("<Q", 2**62) + b"{}",  # a header larger than the file
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 9) + b"not json!",
    ],
)
def test_a_corrupt_file_is_one_clear_line(content, path):
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"expected a safetensors file written by foveal.save.*got"
    ) as caught:
        foveal.load(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(path):
    foveal.save(with_blocks(), path)
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 100, 9):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"expected a safetensors file"):
            foveal.load(path)


def test_a_foreign_safetensors_file_is_refused(path):
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"got no foveal metadata"):
        foveal.load(path)
    save_file({"weight": torch.zeros(2)}, path, metadata={"foveal": "[1]"})
    with pytest.raises(ValueError, match=r"got metadata of another kind"):
        foveal.load(path)


def test_missing_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        foveal.load(tmp_path / "none.safetensors")


def test_sizes_are_checked_before_memory_is_taken(path):
    foveal.save(with_blocks(), path)
    rewritten(path, lambda d: d["model"]["kwargs"].update(num_classes=10**13))  # 2.5 petabytes
    with pytest.raises(ValueError, match=r"mis-shaped: fc.weight"):
        foveal.load(path)


def test_a_file_cannot_make_the_library_open_or_fetch_others(path, tmp_path):
    trap = tmp_path / "trap.pth"
    torch.save(Trap(tmp_path / "mark"), trap)
    foveal.save(foveal.create_model("resnet10t", num_classes=4), path)
    for key, value in {
        "checkpoint_path": str(trap),
        "pretrained_cfg": {"file": str(trap)},
        "pretrained": True,
    }.items():
        rewritten(path, lambda d, key=key, value=value: d["model"]["kwargs"].update({key: value}))
        with pytest.raises(ValueError, match=r"may not make the library open other files"):
            foveal.load(path)
        rewritten(path, lambda d, key=key: d["model"]["kwargs"].pop(key))
    for name in ("hf-hub:some/model", "local-dir:/tmp"):
        rewritten(path, lambda d, name=name: d["model"].update(name=name))
        with pytest.raises(ValueError, match="name must be a model's, got"):
            foveal.load(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["plan"][0].update(site="layer9"),
        lambda d: d["plan"][0].update(block="exec"),
        lambda d: d["plan"][0].update(options={"evil": 1}),
        lambda d: d["plan"][0].update(options=[]),
        lambda d: d["plan"][0].update(channels=10**12),
        lambda d: d["plan"][0].update(channels="many"),
        lambda d: d["plan"][0].update(path="layer1.0.bn2.weight"),
        lambda d: d["plan"][0].update(path=""),
        lambda d: d["plan"][0].update(site=3),
        lambda d: d["plan"][0].pop("before"),
        lambda d: d["plan"].append(d["plan"][0]),
        lambda d: d["plan"].pop(),
        lambda d: d.update(plan=None),
        lambda d: d.update(model={"name": "cifar_resnet8"}),
        lambda d: d.update(model="cifar_resnet8"),
        lambda d: d.update(model={"name": ["x"], "kwargs": {}}),
        lambda d: d["model"]["kwargs"].update(surprise=1),
        lambda d: d.update(format=2),
        lambda d: d.update(info=None),
        lambda d: d["model"].pop("name"),
        lambda d: d["model"].update(name=3),
        lambda d: d["plan"][0].update(site=["layer1"]),
        lambda d: d["plan"][0].update(options={"reduction": []}),
        lambda d: d["plan"][0].update(before=1),
        lambda d: d["plan"].insert(0, list(d["plan"][0])),
        lambda d: d.update(changed={}),
        lambda d: d.update(changed=[{"module": 1, "saved": "a", "built": "b"}]),
        lambda d: d["model"]["kwargs"].update({"x" * 10**5: 1}),
    ],
)
def test_a_plan_tampered_with_is_one_clear_line(change, path):
    foveal.save(with_blocks(), path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=r"must|expected|may not|could not|that is not foveal's") as caught:
        foveal.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_metadata_nested_without_end_is_one_clear_line(path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"foveal": "[" * 10**5})
    with pytest.raises(FovealError, match="metadata of another kind"):
        foveal.load(path)


# ------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_rebuilt_network_has_the_dtype_it_was_saved_in(dtype, path, x):
    net = with_blocks().to(dtype)
    foveal.save(net, path)
    again = foveal.load(path).eval()
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert torch.equal(again(x.to(dtype)), net(x.to(dtype)))


def test_a_network_of_several_dtypes_comes_back_so(path):
    net = with_blocks()
    net.layer2.to(torch.bfloat16)
    net.fc.to(torch.float64)
    foveal.save(net, path)
    again = foveal.load(path)
    assert {k: v.dtype for k, v in again.state_dict().items()} == {
        k: v.dtype for k, v in net.state_dict().items()
    }
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in again.state_dict().items())


def test_a_network_one_gives_keeps_its_own_dtype(path):
    foveal.save(with_blocks().to(torch.bfloat16), path)
    assert foveal.load(path, with_blocks()).fc.weight.dtype == torch.float32  # type: ignore[union-attr]


def test_weights_of_another_kind_and_weights_that_are_no_numbers_are_refused(path):
    foveal.save(with_blocks(), path)
    metadata = {"foveal": json.dumps(foveal.read_info(path))}
    state = load_file(path)
    for name, value, message in [
        ("fc.bias", torch.zeros(4, dtype=torch.int64), r"fc.bias \(integer instead of float\)"),
        ("fc.bias", torch.zeros(4, dtype=torch.complex64), r"fc.bias \(complex instead of float\)"),
        ("bn1.num_batches_tracked", torch.tensor(1.5), r"tracked \(float instead of integer\)"),
        (
            "fc.bias",
            torch.tensor([0.0, float("nan"), 0, 0]),
            r"must be finite numbers, got others in fc.bias",
        ),
        (
            "fc.bias",
            torch.tensor([0.0, float("inf"), 0, 0]),
            r"must be finite numbers, got others in fc.bias",
        ),
    ]:
        save_file({**state, name: value}, path, metadata=metadata)
        with pytest.raises(FovealError, match=message):
            foveal.load(path)


def test_a_block_of_ones_own_class_is_asked_for_by_its_name(path, x):
    class Doubling(nn.Module):
        def __init__(self, channels, factor=1.0):
            super().__init__()
            self.factor = factor
            self.scale = nn.Parameter(torch.ones(channels, 1, 1))

        def forward(self, x):
            return x * self.scale * self.factor

    net = foveal.create_model("cifar_resnet8", num_classes=4)
    foveal.insert(net, functools.partial(Doubling, factor=2.0), start="paper")
    foveal.save(net, path)
    assert torch.equal(foveal.load(path, blocks={"Doubling": Doubling}).eval()(x), net.eval()(x))
    with pytest.raises(FovealError, match="not foveal's, 'Doubling'"):
        foveal.load(path)


def test_saving_and_loading_warn_of_nothing(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foveal.save(with_blocks(), path)
        foveal.load(path)
