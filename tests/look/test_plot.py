"""`recording.plot()`: one figure with what a site shows, that a notebook shows without being told."""

import numpy as np
import pytest
import torch

from foveal.look.recording import Recordings
from foveal.look.watching import watch
from foveal.nn import BLOCKS

from .conftest import IMAGES, random_block, small_net


@pytest.fixture
def seen() -> Recordings:
    blocks = [random_block(name) for name in ("nonlocal", "cbam", "se", "channel")]
    with watch(net := small_net(*blocks), weights="best.safetensors") as seen:
        net(IMAGES)
    return seen


@pytest.mark.parametrize(
    ("site", "title"),
    [("2", "Attention row"), ("3", "Spatial mask"), ("4", "Channel gates"), ("5", "Channel attention")],
)
def test_a_site_draws_what_it_has(seen: Recordings, site: str, title: str) -> None:
    figure = seen[site].plot(index=1)
    assert figure.get_suptitle().startswith(title)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_all_sites_are_drawn_side_by_side_with_their_names(seen: Recordings) -> None:
    figure = seen.plot(IMAGES)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split("\n")[0] for title in titles] == ["2", "3", "4", "5"]
    assert "best.safetensors" in figure.get_supxlabel()
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_values_drawn_are_those_of_the_image_that_was_asked_for(seen: Recordings) -> None:
    for index in (0, 1):
        drawn = seen["3"].plot(IMAGES, index=index).axes[1].get_images()[-1].get_array()
        np.testing.assert_allclose(drawn[::2, ::2], seen["3"].mask[index, 0], rtol=1e-6)


def test_an_image_lies_under_the_map_whatever_its_type(seen: Recordings) -> None:
    def under(image: torch.Tensor | None) -> np.ndarray:
        return np.asarray(seen["3"].plot(image).axes[0].get_images()[0].get_array())

    bytes_ = (IMAGES * 255).round().to(torch.uint8)
    assert np.array_equal(under(bytes_[0]), under(IMAGES[0]))
    assert np.array_equal(under(IMAGES[0]), under(IMAGES))
    normalised = (IMAGES[0] - IMAGES[0].min()) / (IMAGES[0].max() - IMAGES[0].min()) * 6 - 3
    stretched = under(normalised).astype(int)
    assert stretched.min() == 0
    assert stretched.max() == 255
    assert (under(None) == 128).all()


def test_a_query_is_marked_and_only_asked_of_rows(seen: Recordings) -> None:
    (line, _) = seen["2"].plot(pixel=(3, 5)).axes[0].get_lines()
    assert (line.get_ydata()[0], line.get_xdata()[0]) == (3, 5)
    with pytest.raises(ValueError, match=r"pixel must be left out for a site without rows, got '4'"):
        seen["4"].plot(pixel=(3, 5))


def test_an_image_of_another_kind_is_refused(seen: Recordings) -> None:
    with pytest.raises(ValueError, match=r"such as \(3, 14, 18\), got \(14, 18\)"):
        seen["2"].plot(IMAGES[0, 0])


def test_a_clip_shows_its_frames() -> None:
    torch.manual_seed(0)
    block = BLOCKS["nonlocal"](3, dims=3, inner=2)
    clip = torch.rand(1, 3, 5, 8, 8)
    with watch(block) as seen:
        block(clip)
    figure = seen[""].plot(clip, pixel=(2, 3, 4))
    assert "t=2, y=3, x=4" in figure.get_suptitle()
    assert [len(axes.get_lines()) for axes in figure.axes[:5]] == [0, 0, 2, 0, 0]
    assert seen.plot(clip)._repr_png_().startswith(b"\x89PNG")


def test_a_site_that_cannot_be_read_says_why_in_its_panel(seen: Recordings) -> None:
    seen["2"].module.theta.weight.data.mul_(2)
    figure = seen.plot()
    assert "nothing to show" in figure.axes[0].get_title()
    assert "must be as it was recorded" in " ".join(figure.axes[0].texts[0].get_text().split())
