"""What `insert`, `remove` and `inserted` promise."""

import copy
import functools
import io
import pickle

import pytest
import torch
import torchvision
from tests.insertion.unchanged import assert_unchanged, fingerprint
from torch import nn

import foveal
from foveal.errors import FovealError
from foveal.nn import BLOCKS, CBAM

OPTIONS = {"se": {"reduction": 4}, "cbam": {"reduction": 4}}


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return foveal.create_model("cifar_resnet8", num_classes=10).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def randomise(net: nn.Module) -> nn.Module:
    """Weights of inserted blocks away from identity, so that a lost block shows in the output."""
    with torch.no_grad():
        for one in foveal.inserted(net):
            for parameter in one.module.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return net


# -------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize(
    ("name", "at"),
    [*((name, "residual") for name in BLOCKS), ("cbam", "block"), ("nonlocal", "stage"), ("se", "conv1")],
)
def test_every_block_starts_as_identity_and_all_of_it_trains(name, at):
    # torchvision adds and activates in place, right after the site
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=4)
    image = torch.randn(4, 3, 48, 48)
    plain = copy.deepcopy(net)
    foveal.insert(
        net, name, at=at, stages=None if at == "conv1" else (2, 3), example=image[:1], **OPTIONS.get(name, {})
    )
    new = foveal.inserted(net)
    assert new
    assert torch.equal(net.train()(image), plain.train()(image))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    target = torch.tensor([0, 1, 2, 3])
    for step in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(image), target).backward()
        for one in new:
            gradients = {key: p.grad for key, p in one.module.named_parameters()}
            assert None not in gradients.values()
            moving = [key for key, g in gradients.items() if g is not None and g.abs().max() > 0]
            assert moving, f"{one.path} gets no gradient in step {step}"
            if step == 2:  # biases before a softmax or a normalisation have no gradient by construction
                weights = [key for key, p in one.module.named_parameters() if p.ndim > 1]
                assert set(weights) <= set(moving)
        optimiser.step()


@pytest.mark.parametrize(
    "act",
    [
        lambda state: foveal.insert(state, "se"),
        lambda state: foveal.plan(state, "se"),
        foveal.remove,
        foveal.inserted,
        foveal.fuse,
        lambda state: foveal.watch(state).__enter__(),
        lambda state: foveal.save(state, "never.safetensors"),
    ],
    ids=["insert", "plan", "remove", "inserted", "fuse", "watch", "save"],
)
def test_a_state_dict_is_no_network(act):
    """What torch.load returns where a person expects the network."""
    with pytest.raises(
        FovealError, match=r"must be an nn\.Module, got OrderedDict; its weights alone do not say"
    ):
        act(nn.Linear(2, 2).state_dict())


def test_start_paper_changes_the_output(x):
    net = small()
    before = net(x)
    foveal.insert(net, "se", start="paper", reduction=4)
    assert not torch.allclose(net(x), before)


# ------------------------------------------------------------------------------------- the network stays itself


def test_looking_at_a_network_leaves_it_as_it_was(x):
    net = torchvision.models.resnet18(num_classes=4).train()
    net.layer1.eval()  # frozen by its user
    before = fingerprint(net)
    random_state = torch.get_rng_state()
    foveal.sites(net, "block", example=x)
    foveal.plan(net, "cbam", example=x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert_unchanged(net, before)


def test_names_and_values_stay_and_new_names_sit_under_the_site(x):
    net = small()
    before = net.state_dict()
    state = {key: value.clone() for key, value in before.items()}
    foveal.insert(net, "nonlocal", at="residual", stages=(2,))
    after = net.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    new = set(after) - set(state)
    assert new
    # "nonlocal" is a Python keyword, and generated code writes names as attributes
    assert all(key.startswith("layer2.0.bn2.nonlocal_.") for key in new)


def test_calls_compose_in_order_and_come_out_one_by_one(x):
    net = small()
    plain = net(x)
    before = fingerprint(net)
    foveal.insert(net, "se", stages=(2, 3), reduction=4)
    foveal.insert(net, "cbam", stages=(3,), reduction=4)
    foveal.insert(net, "se", stages=(3,), reduction=8)
    foveal.insert(net, "nonlocal", at="stage")
    assert [one.path for one in foveal.inserted(net)] == [
        "layer1.0.nonlocal_",
        "layer2.0.bn2.se",
        "layer2.0.nonlocal_",
        "layer3.0.bn2.se",
        "layer3.0.bn2.cbam",
        "layer3.0.bn2.se_2",
        "layer3.0.nonlocal_",
    ]
    assert torch.equal(net(x), plain)
    calls = []
    for one in foveal.inserted(net):
        one.module.register_forward_hook(lambda *_, path=one.path: calls.append(path))
    net(x)
    assert [c for c in calls if c.startswith("layer3")] == [
        "layer3.0.bn2.se",
        "layer3.0.bn2.cbam",
        "layer3.0.bn2.se_2",
        "layer3.0.nonlocal_",
    ]
    foveal.remove(net, "**.cbam")
    foveal.remove(net, "layer[12].0.bn2")
    assert [one.path for one in foveal.inserted(net) if "bn2" in one.path] == [
        "layer3.0.bn2.se",
        "layer3.0.bn2.se_2",
    ]
    foveal.remove(net)
    assert_unchanged(net, before)
    assert torch.equal(net(x), plain)


def test_inserted_blocks_are_no_sites_themselves(x):
    net = small()
    before = [site.name for site in foveal.sites(net)], [site.name for site in foveal.sites(net, "block")]
    foveal.insert(net, "nonlocal", at="block")  # adds its input in its own forward
    assert (
        [site.name for site in foveal.sites(net)],
        [site.name for site in foveal.sites(net, "block")],
    ) == before
    with pytest.raises(ValueError, match=r"got 'layer1\.0\.nonlocal_\.\*'"):
        foveal.sites(net, "layer1.0.nonlocal_.*")


def test_hooks_of_the_user_stay_and_see_what_the_site_returns_to_the_network(x):
    net = small()
    seen = []
    site = net.get_submodule("layer3.0.bn2")
    site.register_forward_hook(lambda module, args, output: seen.append(output))
    foveal.insert(net, "se", stages=(3,), reduction=4)
    seen.clear()
    net(x)
    assert len(seen) == 1
    foveal.remove(net)
    seen.clear()
    net(x)
    assert len(seen) == 1
    assert len(site._forward_hooks) == 1


def test_removal_from_a_copy_leaves_the_original(x):
    net = randomise(foveal.insert(small(), "se", reduction=4))
    y = net(x)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), y)
    foveal.remove(twin)
    assert not torch.equal(twin(x), y)
    assert torch.equal(net(x), y)


@pytest.mark.parametrize("at", ["residual", "block", "stage", "layer3", "layer3.0.bn1"])
def test_pickle_and_torch_save_round_trip(x, at):
    net = randomise(foveal.insert(small(), "cbam", at=at, reduction=4))
    y = net(x)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), y)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again(x), y)
    assert [one.path for one in foveal.inserted(again)] == [one.path for one in foveal.inserted(net)]


def test_modes_and_types_reach_inserted_blocks(x):
    net = foveal.insert(small().train(), "cbam", reduction=4, variant="timm")
    blocks = [one.module for one in foveal.inserted(net)]
    assert all(block.training for block in blocks)
    net.eval()
    assert not any(m.training for block in blocks for m in block.modules())
    net.double()
    assert net(x.double()).dtype == torch.float64
    assert {p.dtype for block in blocks for p in block.parameters()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_new_blocks_take_the_type_of_the_site(dtype, x):
    net = small().to(dtype)
    before = net(x.to(dtype))
    foveal.insert(net, "cbam", reduction=4)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert torch.equal(net(x.to(dtype)), before)


def test_new_blocks_take_the_device_of_the_site():
    net = foveal.insert(small().to("meta"), "selfattention")
    assert all(p.is_meta for p in net.parameters())


# ------------------------------------------------------------------------------------------ kinds of sites


def test_a_sequential_runs_the_block_itself_as_its_last_child(x):
    net = small()
    plain = net(x)
    foveal.insert(net, "se", at="layer3", reduction=4)
    assert list(dict(net.layer3.named_children())) == ["0", "se"]
    assert not net.layer3._forward_hooks
    assert torch.equal(net(x), plain)
    assert not torch.equal(randomise(net)(x), plain)
    foveal.remove(net)
    assert list(dict(net.layer3.named_children())) == ["0"]
    assert torch.equal(net(x), plain)


class Walker(nn.Sequential):
    """A container whose forward walks over its children and then does something of its own."""

    def forward(self, x):
        for module in self:
            x = module(x)
        return x + 1


def test_a_container_with_its_own_forward_keeps_the_block_out_of_its_way():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Walker(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))).eval()
    x = torch.randn(2, 3, 12, 12)
    plain = net(x)
    foveal.insert(net, "se", at="1", example=x, reduction=4)
    (one,) = foveal.inserted(net)
    assert (one.site, one.path) == ("1", "1.1.se")
    given = []
    one.module.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    assert torch.equal(net(x), plain)
    assert torch.equal(given[0], plain)  # after the addition of 1, not before
    assert not foveal.remove(net).get_submodule("1")._forward_hooks
    assert torch.equal(net(x), plain)


class ChildrenTwice(nn.Module):
    """An ordinary module that walks over all its children; a new one would run twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


def test_a_module_that_would_run_the_block_twice_is_refused_and_restored():
    net = nn.Sequential(ChildrenTwice(), nn.Flatten()).eval()
    before = fingerprint(net)
    with pytest.raises(ValueError, match="must call the block at 0 once, got 2 calls"):
        foveal.insert(net, "se", at="0", example=torch.randn(1, 3, 8, 8), hidden=2)
    assert_unchanged(net, before)


def test_where_paths_are_dropped_the_block_sees_them_undropped():
    import timm

    torch.manual_seed(0)
    net = timm.create_model("convnext_atto", drop_path_rate=0.9, num_classes=4)
    image = torch.randn(8, 3, 64, 64)
    foveal.insert(net, "se", stages=(4,), example=image[:1], reduction=4)
    seen = []
    for one in foveal.inserted(net):
        assert one.site.endswith("drop_path")
        assert one.before
        one.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.train()(image)
    assert len(seen) == 2
    assert all((row != 0).any() for x in seen for row in x)  # a dropped path is all zeros
    assert torch.equal(foveal.remove(net).eval()(image), net(image))


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_dimensional_networks_through_patterns(dims):
    conv, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
    net = nn.Sequential(
        conv(2, 8, 3, padding=1), norm(8), nn.ReLU(), conv(8, 8, 3, padding=1), nn.Flatten(2)
    ).eval()
    x = torch.randn(2, 2, *[6] * dims)
    plain = net(x)
    for name in ("se", "cbam", "nonlocal"):
        foveal.insert(net, name, at="[03]", example=x, **OPTIONS.get(name, {}))
    assert len(foveal.inserted(net)) == 6
    assert torch.equal(net(x), plain)
    with pytest.raises(ValueError, match=f"got Conv{dims}d; pass example="):
        foveal.sites(net, "block")


class Own(nn.Module):
    """A user's own network: additions in its own forward, several inputs, an unused and a shared module."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.act = nn.ReLU()
        self.unused = nn.Conv2d(8, 8, 1)
        self.pair = nn.ModuleDict({"a": nn.Identity()})
        self.head = nn.Linear(8, 2)

    def forward(self, x, *, scale):
        x = self.act(self.stem(x)) * scale
        x = self.act(x + self.first(x))
        x = self.act(self.second(x) + x)
        return {"logits": self.head(x.mean((2, 3)))}


def test_a_users_own_network_with_keyword_inputs_and_additions_in_its_forward():
    net = Own().eval()
    given = {"x": torch.randn(2, 3, 9, 7), "scale": torch.tensor(0.5)}
    plain = net(**given)["logits"]
    foveal.insert(net, "cbam", example=given, reduction=4)
    assert [one.path for one in foveal.inserted(net)] == ["first.cbam", "second.cbam"]
    assert torch.equal(net(**given)["logits"], plain)


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ("act", "forward calls it 3 times, and one block cannot serve 3 places"),
        ("unused", "forward never calls it"),
        ("head", r"its output must be one feature map \(b, c, \*spatial\), got shape \(2, 2\)"),
    ],
)
def test_a_site_that_cannot_take_a_block_says_why(at, reason):
    net = Own().eval()
    before = fingerprint(net)
    given = {"x": torch.randn(2, 3, 9, 7), "scale": torch.tensor(0.5)}
    with pytest.raises(ValueError, match=f"{at}: {reason}"):
        foveal.insert(net, "se", at=at, example=given, reduction=4)
    assert_unchanged(net, before)


# ------------------------------------------------------------------------------------------- blocks of any kind


def test_a_name_a_class_and_a_factory_are_one(x):
    for block, name in [
        ("cbam", "cbam"),
        (CBAM, "cbam"),
        (functools.partial(CBAM, reduction=4), "cbam"),
        (lambda channels: nn.Identity(), "block"),
        (lambda channels, start: CBAM(channels, reduction=4, start=start), "block"),
    ]:
        options = {"reduction": 4} if block in ("cbam", CBAM) else {}
        net = foveal.insert(small(), block, stages=(3,), **options)
        (one,) = foveal.inserted(net)
        assert (one.block, one.path, one.channels) == (name, f"layer3.0.bn2.{name}", 64)


# ----------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": "cbma"}, "^block must be one of se, cbam, .*, got 'cbma'; did you mean 'cbam'"),
        ({"block": nn.Identity()}, "got one Identity instance"),
        ({"block": 3}, "got int"),
        ({"block": "se", "at": "layer9.*"}, "a pattern that matches a module of CifarResNet, got 'layer9"),
        ({"block": "se", "at": "residul"}, "got 'residul'; did you mean 'residual'"),
        ({"block": "se", "at": "residul", "stages": (3,)}, "did you mean 'residual'"),
        ({"block": "se", "stages": (4,)}, r"stages must be among \[1, 2, 3\], got \(4,\)"),
        ({"block": "se", "stages": ()}, r"stages must be among \[1, 2, 3\], got \(\)"),
        ({"block": "se", "at": "layer3.*", "stages": (1,)}, "stages must be left out .* got the pattern"),
        ({"block": "se", "start": "zero"}, "start must be 'identity' or 'paper', got 'zero'"),
        ({"block": "se", "reducton": 4}, "its own options .*reduction.*got 'reducton'"),
        (
            {"block": "se", "reduction": 1000},
            "^se of 16 channels: reduction .*, at layer1.0.bn2",
        ),
        ({"block": lambda channels: "conv"}, "must make an nn.Module, got str"),
        ({"block": lambda channels: nn.Conv2d(channels, 2 * channels, 1)}, "must return the shape and dtype"),
        ({"block": "se", "example": torch.zeros(1, 4, 32, 32)}, "got RuntimeError on input .1, 4, 32, 32."),
        ({"block": "se", "example": "image.png"}, "example must be a tensor"),
    ],
)
def test_a_mistake_is_one_clear_line_and_changes_nothing(arguments, message):
    net = small()
    before = fingerprint(net)
    options = {"reduction": 4} if arguments["block"] == "se" else {}
    with pytest.raises(ValueError, match=message) as caught:
        foveal.insert(net, **{**options, **arguments})
    assert "\n" not in str(caught.value)
    assert_unchanged(net, before)


def test_removing_what_is_not_there_is_refused():
    net = foveal.insert(small(), "se", reduction=4)
    with pytest.raises(ValueError, match=r"must match an inserted block \(layer1.0.bn2.se, .*got 'layer9"):
        foveal.remove(net, "layer9")
    assert len(foveal.inserted(net)) == 3
    assert foveal.remove(small()) is not None


def test_a_block_whose_site_was_replaced_is_reported_not_forgotten():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(foveal.insert(small(), "se", reduction=4))
    with pytest.raises(
        ValueError, match=r"layer1.0.bn2.se must be applied by its site, got layer1.0.bn2 replaced"
    ):
        foveal.inserted(net)
    foveal.remove(net)
    assert foveal.inserted(net) == []


# ------------------------------------------------------------------------------------------------ compiled networks


def wrapped() -> nn.Module:
    return torch.compile(small(), backend="eager")  # type: ignore[return-value]


def in_place() -> nn.Module:
    net = small()
    net.compile(backend="eager")
    return net


def in_part() -> nn.Module:
    net = small()
    net.layer2.compile(backend="eager")  # type: ignore[operator]
    return net


@pytest.mark.parametrize("compiled", [wrapped, in_place, in_part])
def test_a_compiled_network_is_looked_at_but_not_changed(compiled, x):
    net = compiled()
    assert [s.name for s in foveal.sites(net)] == [s.name for s in foveal.sites(small())]
    assert (
        foveal.plan(net, "se", reduction=4).parameters == foveal.plan(small(), "se", reduction=4).parameters
    )
    with pytest.raises(
        FovealError, match=r"before the network is compiled, got .* compiled by torch.compile"
    ):
        foveal.insert(net, "se", reduction=4)
    assert foveal.inserted(net) == []
    torch.compiler.reset()


def test_blocks_cannot_be_taken_from_under_compiled_code():
    net = foveal.insert(small(), "se", reduction=4)
    with pytest.raises(FovealError, match="before the network is compiled"):
        foveal.remove(torch.compile(net, backend="eager"))  # type: ignore[arg-type]
    assert len(foveal.inserted(net)) == 3


def test_inference_mode_around_insertion_leaves_blocks_that_train(x):
    with torch.inference_mode():
        net = foveal.insert(small(), "cbam", reduction=4, example=x[:1].clone())
    assert not any(p.is_inference() for one in foveal.inserted(net) for p in one.module.parameters())
