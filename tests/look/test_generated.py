"""A generated image is looked at as any other: each site of the generator, by a point of the image."""

import pytest
import torch

import foveal
from foveal.errors import FovealError
from foveal.inference import Predictor
from foveal.look.generated import GeneratedImages, see_generated
from foveal.model_info import ModelInfo


def generator(attention: str = "selfattention") -> Predictor:
    torch.manual_seed(0)
    net = foveal.create_model(
        "sagan_dcgan_32", num_classes=3, width=8, conditional=True, attention=attention
    ).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1.0)
    half = (0.5, 0.5, 0.5)
    info = ModelInfo(
        task="generate", model="sagan_dcgan_32", classes=["a", "b", "c"], image_size=32, mean=half, std=half
    )
    return Predictor(net, info, "g.safetensors")


def test_the_recording_is_of_the_image_that_predict_makes():
    ready = generator()
    seen = see_generated(ready, seed=4, number=5)
    inference = ready.task.InferenceOptions(seed=4, count=6)
    made = list(ready.task.sample(ready.net, ready.info, inference))
    assert seen.name == made[5][0].file == "0005-c.png"
    assert (
        seen.view.int() - made[5][1].int()
    ).abs().max() <= 1  # one image alone is rounded otherwise than among six
    names = [name for name, one in ready.net.named_modules() if hasattr(one, "attention")]
    assert list(seen.recordings) == [name for name in names if name.startswith("generator.")]


def test_rows_are_those_of_the_point_and_sum_to_one():
    seen = see_generated(generator(), seed=0)
    for site, recording in seen.recordings.items():
        assert recording.image_size == (32, 32)
        cell = recording.cell((16, 9))
        step = 32 // recording.spatial[0]
        assert cell == (16 // step, 9 // step)
        row = recording.rows(cell)
        assert row.sum() == pytest.approx(1.0, abs=1e-5), site


def test_images_come_one_after_the_other_and_a_class_can_be_asked_for():
    ready = generator()
    assert [one.name for one in GeneratedImages(ready, "seed:7", 4)] == [
        "0000-a.png", "0001-b.png", "0002-c.png", "0003-a.png",
    ]  # fmt: skip
    assert see_generated(ready, seed=7, label="c").answer.labels == [("c", 1.0)]


@pytest.mark.parametrize("source", ["photo.jpg", "seed:", "seed:-1", "seed:x", "scenes"])
def test_another_source_is_refused_with_the_form_that_is_right(source):
    with pytest.raises(FovealError, match=f"looked at by a seed, such as seed:0, got {source}"):
        GeneratedImages(generator(), source, 1)


def test_a_generator_without_attention_is_said_to_have_none():
    with pytest.raises(FovealError, match="must have an attention site"):
        see_generated(generator("none"), seed=0)
