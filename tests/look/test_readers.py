"""Gates and rows of other libraries' modules are what those modules used."""

import pytest
import timm
import torch

from foveal.look.watching import watch


def test_gates_of_timm_se_are_what_it_multiplied_by() -> None:
    net = timm.create_model("seresnet18", num_classes=4).eval()
    with watch(net) as seen:
        net(torch.rand(2, 3, 64, 64))
    record = seen["layer3.0"]
    module = net.get_submodule(record.name)
    torch.testing.assert_close(module(record.input), record.input * record.gates[:, :, None, None])


def test_gates_and_mask_of_timm_cbam_are_what_it_multiplied_by() -> None:
    net = timm.create_model("resnet18", num_classes=4, block_args={"attn_layer": "cbam"}).eval()
    with watch(net) as seen:
        net(torch.rand(2, 3, 64, 64))
    record = seen["layer3.0"]
    expected = record.input * record.gates[:, :, None, None] * record.mask
    torch.testing.assert_close(net.get_submodule(record.name)(record.input), expected)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_100", "ecaresnet26t", "regnety_002"])
def test_other_gated_networks_of_timm_are_read(name: str) -> None:
    net = timm.create_model(name, num_classes=4).eval()
    with watch(net) as seen:
        net(torch.rand(1, 3, 64, 64))
    for record in seen.values():
        module = net.get_submodule(record.name)
        torch.testing.assert_close(module(record.input), record.input * record.gates[:, :, None, None])


def test_gates_of_torchvision_are_read() -> None:
    import torchvision

    net = torchvision.models.mobilenet_v3_small(num_classes=4).eval()
    with watch(net) as seen:
        net(torch.rand(1, 3, 64, 64))
    record = next(iter(seen.values()))
    module = net.get_submodule(record.name)
    torch.testing.assert_close(module(record.input), record.input * record.gates[:, :, None, None])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_rows_of_a_plain_transformer_are_exact(name: str) -> None:
    net = timm.create_model(name, num_classes=4, img_size=64).eval()
    attention = net.blocks[3].attn
    attention.fused_attn = False  # the plain path leaves its weights behind at the dropout
    kept = []
    handle = attention.attn_drop.register_forward_hook(lambda _m, _a, output: kept.append(output))
    with watch(net, "blocks.3") as seen:
        net(torch.rand(2, 3, 64, 64))
    handle.remove()
    prefix = net.num_prefix_tokens
    expected = kept[0].mean(1)[:, prefix + 4 * 2 + 3, prefix:].reshape(2, 4, 4)
    torch.testing.assert_close(seen["blocks.3"].rows((2, 3))[:, 0], expected)
    assert seen["blocks.3"].rows((2, 3)).sum() < 2


def test_attention_that_cannot_be_read_exactly_is_listed_and_not_drawn() -> None:
    net = timm.create_model("swin_tiny_patch4_window7_224", num_classes=4)
    with (
        pytest.raises(
            ValueError,
            match=r"with none .*; 12 cannot be read, such as layers.0.*WindowAttention has no",
        ),
        watch(net),
    ):
        pass
