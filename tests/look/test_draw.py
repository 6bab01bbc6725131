"""Drawing: every picture says what it shows, and shows exactly the weights."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from foveal.look import canvas, draw
from foveal.look.recording import SiteRecording
from foveal.look.watching import watch
from foveal.nn import BLOCKS
from foveal.palette import palette

IMAGE = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def record(name: str, **options: object) -> SiteRecording:
    torch.manual_seed(0)
    block = BLOCKS[name](8, **options)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    net = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), block).eval()
    with watch(net, weights="best.safetensors") as seen:
        net(IMAGE[None].float() / 255)
    return seen["1"]


def words(figure: Figure) -> str:
    axes = [text for one in figure.axes for text in (one.get_title(), one.get_ylabel(), one.get_xlabel())]
    return " ".join([figure.get_suptitle(), figure.get_supxlabel(), *axes]).replace("\n", " ")


def maps(figure: Figure) -> list[np.ndarray]:
    """Data of the heat maps (the images under them are three-dimensional)."""
    found = [image.get_array() for axes in figure.axes for image in axes.get_images()]
    return [np.asarray(data) for data in found if data is not None and data.ndim == 2]


def test_every_picture_says_site_block_options_weights_and_has_a_legend() -> None:
    figures = [
        draw.draw_gates(record("se", reduction=2)),
        draw.draw_mask(record("cbam", reduction=2), IMAGE),
        draw.draw_rows(record("nonlocal"), IMAGE, [(3, 4)]),
        draw.draw_row_grid(record("nonlocal"), IMAGE, grid=2),
        draw.draw_channels(record("channel")),
        draw.draw_grad_cam(record("se", reduction=2), IMAGE, torch.rand(8, 12), "7"),
    ]
    blocks = [
        "SqueezeExcite",
        "CBAM",
        "NonLocal(pairwise='embedded_gaussian'",
        "NonLocal",
        "ChannelAttention",
        "",
    ]
    for figure, block in zip(figures, blocks, strict=True):
        text = words(figure)
        assert "site 1" in text
        assert block in text
        assert "weights: best.safetensors" in text
        assert "gate (factor" in text or "uniform" in text or "factor on" in text or "evidence" in text
        figure.canvas.draw()


def test_rows_drawn_are_the_rows_in_units_of_uniform_attention() -> None:
    site = record("nonlocal")
    figure = draw.draw_rows(site, IMAGE, [(3, 4), (15, 23)])
    drawn = maps(figure)
    expected = site.rows((1, 2), (7, 11))[0] * 96
    for data, row in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(data[::2, ::2], row, rtol=1e-5)
    assert "y=3, x=4" in words(figure)
    assert "y=15, x=23" in words(figure)


def test_the_query_is_marked_where_it_is() -> None:
    figure = draw.draw_rows(record("nonlocal"), IMAGE, [(3, 4)])
    marks = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in figure.axes[0].get_lines()}
    assert marks == {(4.0, 3.0)}


def test_bars_are_the_gates_sorted() -> None:
    site = record("se", reduction=2)
    bars = [patch.get_height() for patch in draw.draw_gates(site).axes[0].patches]
    np.testing.assert_allclose(bars, site.gates[0].sort(descending=True).values, rtol=1e-6)


def test_a_mask_tells_mean_and_spread_of_mask_and_gate() -> None:
    site = record("cbam", reduction=2)
    text = words(draw.draw_mask(site, IMAGE))
    assert f"mean {site.mask.mean():.3f}" in text
    assert f"mean {site.gates.mean():.3f}, spread {site.gates.std(unbiased=False):.3f}" in text


def test_maps_are_never_smoothed() -> None:
    figure = draw.draw_rows(record("nonlocal"), IMAGE, [(3, 4)])
    assert {image.get_interpolation() for image in figure.axes[0].get_images()} == {"nearest"}
    assert len(np.unique(maps(figure)[0])) <= 96


def test_signed_weights_get_two_colours_around_zero() -> None:
    figure = draw.draw_rows(record("nonlocal", pairwise="dot_product"), IMAGE, [(3, 4)])
    heat = figure.axes[0].get_images()[-1]
    assert heat.get_cmap().name == canvas.SIGNED
    assert heat.norm(0.0) == pytest.approx(0.5)


class Planted(nn.Module):
    """A block whose mask is what the caller plants in the image's first channel."""

    def attention(self, x: torch.Tensor, positions: object = None) -> dict[str, torch.Tensor]:
        return {"spatial_mask": x[:, :1]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def planted(mask: torch.Tensor) -> SiteRecording:
    with watch(block := Planted()) as seen:
        block(mask.expand(1, 3, *mask.shape))
    return seen[""]


@pytest.mark.parametrize("level", [1.0, 0.5, 0.003, 7.0])
def test_rounding_noise_is_drawn_flat(level: float) -> None:
    """A block that still passes everything on has a mask of one value and the noise of float32."""
    noise = torch.rand(8, 12, generator=torch.Generator().manual_seed(0)) * 1e-6 * level
    figure = draw.draw_mask(planted(level + noise), IMAGE)
    heat = figure.axes[1].get_images()[-1]
    shares = heat.norm(np.asarray(heat.get_array()))
    assert shares.max() - shares.min() < 1e-5


def test_a_mask_that_differs_is_seen_to_differ() -> None:
    mask = torch.full((8, 12), 0.2)
    mask[:4] = 0.9
    heat = draw.draw_mask(planted(mask), IMAGE).axes[1].get_images()[-1]
    shares = heat.norm(np.asarray(heat.get_array()))
    assert shares.max() - shares.min() == pytest.approx(0.7, abs=1e-6)


def test_clips_show_their_frames_side_by_side_with_the_query_in_its_own() -> None:
    torch.manual_seed(0)
    block = BLOCKS["nonlocal"](3, dims=3, inner=2)
    frames = torch.randint(0, 256, (3, 5, 8, 8), dtype=torch.uint8)
    with watch(block) as seen:
        block(frames[None].float() / 255)
    figure = draw.draw_clip_rows(seen[""], frames, (2, 3, 4))
    assert [len(axes.get_lines()) for axes in figure.axes[:5]] == [0, 0, 2, 0, 0]
    assert "t=2, y=3, x=4" in words(figure)
    row = seen[""].rows((2, 3, 4))[0, 0]
    np.testing.assert_allclose(maps(figure)[1], row[1] * row.numel(), rtol=1e-5)


def test_gate_profile_has_a_line_a_class_and_the_mean() -> None:
    profile = {"layer1.se": torch.rand(3, 6), "layer2.se": torch.rand(3, 12)}
    figure = draw.draw_gate_profile(profile, ["cat", "dog", "owl"], "best.safetensors")
    assert [len(axes.get_lines()) for axes in figure.axes] == [4, 4]
    assert "best.safetensors" in words(figure)
    figure.canvas.draw()


def test_segmentation_names_the_classes_that_occur_in_their_colours() -> None:
    class_map = torch.zeros(16, 24, dtype=torch.uint8)
    class_map[:4] = 2
    figure = draw.draw_segmentation(IMAGE, class_map, ["road", "sky", "tree"], "best.safetensors")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["road, 75%", "tree, 25%"]
    drawn = figure.axes[1].get_images()[-1].get_array()
    assert drawn[0, 0].tolist() == palette(["road", "sky", "tree"])[2].tolist()
    assert "best.safetensors" in words(figure)
    figure.canvas.draw()


def test_a_site_without_the_asked_attention_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'1' \(NonLocal\) has no spatial mask"):
        draw.draw_mask(record("nonlocal"), IMAGE)
    with pytest.raises(ValueError, match="'1'"):
        draw.draw_rows(record("se", reduction=2), IMAGE, [(0, 0)])
