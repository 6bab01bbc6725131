"""Files of others are opened without running them; what cannot be opened says so in one line."""

import os
import pickle
import zipfile
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save, save_file

from foveal.errors import FovealError
from foveal.published import read
from foveal.published.reading import unwrap_state_dict

STATE = {"fc.weight": torch.arange(6.0).view(2, 3), "fc.bias": torch.zeros(2)}


def same(state) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[k], v) for k, v in STATE.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_shared_prefixes_are_taken_off(tmp_path, zipped):
    prefixed = {f"module.model.{name}": value for name, value in STATE.items()}
    for content in (
        STATE,
        prefixed,
        {"state_dict": prefixed},
        {"model": {"state_dict": prefixed}, "epoch": 3},
    ):
        torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
        assert same(read(tmp_path / "in.pth"))
    save_file(STATE, tmp_path / "in.safetensors")
    assert same(read(tmp_path / "in.safetensors"))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_in_a_folder_of_any_encoding_are_read(latin_folder, zipped):
    torch.save(STATE, latin_folder / "in.pth", _use_new_zipfile_serialization=zipped)
    (latin_folder / "in.safetensors").write_bytes(save(STATE))
    assert same(read(latin_folder / "in.pth"))
    assert same(read(latin_folder / "in.safetensors"))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "net.", "backbone.", "_orig_mod."])
def test_each_wrapper_and_prefix_of_the_page(wrapper, prefix):
    assert same(
        unwrap_state_dict({"epoch": 3, wrapper: {prefix + name: value for name, value in STATE.items()}})
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "make", [torch.Tensor.to_sparse, lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)]
)
def test_sparse_and_quantized_tensors_are_refused(make):
    with pytest.raises(ValueError, match=r"dense tensors alone, got fc\.weight \(Tensor\)"):
        unwrap_state_dict({**STATE, "fc.weight": make(torch.eye(2))})


def test_a_prefix_that_not_all_names_share_stays():
    state = {"backbone.conv1.weight": torch.zeros(1), "decode_head.bias": torch.zeros(1)}
    assert unwrap_state_dict({"meta": {}, "state_dict": state}) == state


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "named"),
    [(Runs(), r"posix\.mkdir|nt\.mkdir"), (Namespace(lr=Runs()), r"posix\.mkdir|nt\.mkdir")],
)
def test_a_checkpoint_that_needs_code_is_not_run(tmp_path, monkeypatch, content, named, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "args": content}, "in.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=rf"got ({named}) in it, .* not opened: in\.pth; .*weights_only=False"
    ):
        read("in.pth")
    assert not os.path.exists("ran")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_arguments_of_a_training_script_are_passed_over(tmp_path, zipped):
    content = {"model": STATE, "args": Namespace(lr=1e-4, nested=[1, (2, "x")], also=Namespace(x=None))}
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=zipped)
    assert same(read(tmp_path / "in.pth"))


def test_a_plain_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("in.pkl", "wb") as file:
        pickle.dump(Runs(), file)
    with pytest.raises(ValueError, match="could run code and is not opened"):
        read("in.pkl")
    assert not os.path.exists("ran")


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files_are_refused_in_one_line(tmp_path, zipped):
    path = tmp_path / "in.pth"
    torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in (10, len(whole) // 3, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"(must be (a )?whole|not opened)") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="the file must be whole"):
        read(path)


def test_what_holds_no_weights_is_refused(tmp_path):
    path = tmp_path / "in.pth"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="got an empty file"):
        read(path)
    path.write_text("no weights at all")
    with pytest.raises(ValueError, match="safetensors or a PyTorch checkpoint, got neither"):
        read(path)
    torch.save({"epoch": 3, "lr": 0.1}, path)
    with pytest.raises(ValueError, match=r"there must be a state dict, .* got the keys epoch, lr, in "):
        read(path)
    torch.save({"state_dict": {**STATE, "note": "hello"}}, path)
    with pytest.raises(ValueError, match=r"dense tensors alone, got note \(str\)"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pth")


def test_a_tensor_may_not_claim_more_than_it_holds(tmp_path):
    torch.save({"fc.weight": torch.zeros(1).expand(10**9, 2048)}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=r"dense tensors alone, got fc\.weight \(Tensor\)"):
        read(tmp_path / "in.pth")


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    torch.save(STATE, tmp_path / "in.pth")
    with (
        zipfile.ZipFile(tmp_path / "in.pth") as stored,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for name in stored.namelist():
            compressed.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match="must be stored uncompressed, got a compressed zip"):
        read(tmp_path / "small.pth")


# --------------------------------------------------------------------------- what training scripts write around it

OTHERS = {name: value + 1 for name, value in STATE.items()}


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("net", "ema_state_dict")],
)
def test_raw_and_averaged_weights_are_never_chosen_between_in_silence(raw, averaged):
    content = {"epoch": 3, raw: STATE, averaged: {f"module.{k}": v for k, v in OTHERS.items()}}
    with pytest.raises(
        FovealError, match=rf"ema must be stated.*raw weights \({raw}\).*averaged ones \({averaged}\)"
    ):
        unwrap_state_dict(content)
    taken = unwrap_state_dict(content, ema=False)
    assert same(taken)
    assert taken.notes == [f"raw weights ({raw}), not the averaged ones ({averaged})"]
    taken = unwrap_state_dict(content, ema=True)
    assert all(torch.equal(taken[k], OTHERS[k]) for k in STATE)
    assert taken.notes == [f"averaged weights ({averaged})"]


@pytest.mark.parametrize(
    ("raw", "averaged", "beside"),
    [
        ("model.", "ema_model.", {}),
        ("online_model.", "ema_model.", {"step": torch.tensor(3), "initted": torch.tensor(True)}),
        ("", "model_ema.module.", {"model_ema.decay": torch.tensor(0.9)}),
    ],
)
def test_one_state_dict_that_holds_raw_and_averaged_weights(raw, averaged, beside):
    content = {raw + k: v for k, v in STATE.items()} | {averaged + k: v for k, v in OTHERS.items()} | beside
    with pytest.raises(
        FovealError, match=rf"ema must be stated.*raw weights \({raw}.*averaged ones \(\w+\.\)"
    ):
        unwrap_state_dict({"state_dict": content})
    assert same(unwrap_state_dict(content, ema=False))
    taken = unwrap_state_dict(content, ema=True)
    assert taken.keys() == STATE.keys()
    assert all(torch.equal(taken[k], OTHERS[k]) for k in STATE)
    assert taken.notes[0] == f"averaged weights ({averaged.partition('.')[0]}.)"
    alone = {name: value for name, value in content.items() if not raw or not name.startswith(raw)}
    if raw:
        assert unwrap_state_dict(alone).notes[0] == taken.notes[0]


def test_the_weights_that_are_taken_of_several_are_named():
    taken = unwrap_state_dict({"model": STATE, "weights": OTHERS})
    assert same(taken)
    assert taken.notes == ["the weights under model, not those under weights"]
    assert same(unwrap_state_dict({"checkpoint": {"module": {f"module.{k}": v for k, v in STATE.items()}}}))


def test_averaged_weights_alone_are_taken_and_named():
    taken = unwrap_state_dict({"ema": STATE})
    assert same(taken)
    assert taken.notes == ["averaged weights (ema)"]
    with pytest.raises(FovealError, match="there must be raw weights with ema=False"):
        unwrap_state_dict({"ema": STATE}, ema=False)
    with pytest.raises(FovealError, match="there must be averaged weights with ema=True"):
        unwrap_state_dict({"state_dict": STATE}, ema=True)


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("module.", {"n_averaged": torch.tensor(3)}),
        ("model.", {"criterion.pos_weight": torch.ones(5)}),
        ("model.", {"loss_fn.weight": torch.ones(5), "train_acc.total": torch.zeros(())}),
        ("backbone.model.", {"metrics.total": torch.zeros(())}),
        ("module.encoder_q.", {"module.queue": torch.zeros(2, 3), "module.queue_ptr": torch.zeros(1)}),
    ],
)
def test_what_training_leaves_beside_the_weights_is_left_out_and_named(prefix, beside):
    taken = unwrap_state_dict({**beside, **{prefix + name: value for name, value in STATE.items()}})
    assert same(taken)
    (note,) = taken.notes
    assert note.startswith(f"left out {len(beside)} that are no weights of a network: ")
    assert all(name.removeprefix("module.") in note for name in beside)


def test_names_beside_unprefixed_weights_stay_for_the_table_to_refuse():
    assert "criterion.weight" in unwrap_state_dict({**STATE, "criterion.weight": torch.ones(1)})


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "ema"])
def test_a_dictionary_that_holds_itself_is_refused(wrapper, tmp_path):
    held: dict = {"epoch": 1}
    held[wrapper] = held
    torch.save(held, tmp_path / "self.pth")
    with pytest.raises(FovealError, match=r"got a dictionary that holds itself, in .*self\.pth"):
        read(tmp_path / "self.pth")
