"""Images made from noise: a generator and a discriminator, SAGAN."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from foveal.errors import FovealError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from rich.console import RenderableType
    from torch import Tensor, nn

    from foveal.data import JointTransform
    from foveal.model_info import ModelInfo
    from foveal.tasks import Checked
    from foveal.tasks.generate.metric import GenerationQuality
    from foveal.tasks.generate.prediction import GeneratedImage

# from the spread of real features, below which generated images are all alike
COLLAPSED_BELOW = 0.3
# scenes are the default of every task; of this one they are digits alone
BUNDLED_NAMES = ("scenes", "digits")

RECIPE: dict[str, Any] = {"epochs": 3}
"""Of comparisons on the bundled digits."""


@dataclass(frozen=True)
class GenerateOptions:
    """Options of training that only generation has."""

    attention: Literal["none", "se", "cbam", "nonlocal", "selfattention", "dual", "position", "channel"] = (
        "selfattention"
    )
    """The block at the published places of both networks, or none."""
    discriminator_lr: float | None = None
    """Learning rate of the discriminator. Default: twice that of the generator, to which lr belongs; as large for the
    bundled digits and their network."""
    discriminator_steps: int = 1
    """Steps of the discriminator for each of the generator, on the same images with new noise."""
    beta1: float = 0.0
    """Of Adam, for both networks, as published."""
    beta2: float = 0.9
    """Of Adam, for both networks, as published."""
    feature_weights: str | None = None
    """Weights of a classifier, which `foveal train` trained on the same data; in the space of its features generated
    images are compared with real ones. Default: for the bundled digits a classifier of them. For FID Inception weights
    as torch-fidelity publishes them, a .pth file."""

    def __post_init__(self) -> None:
        if self.discriminator_steps < 1:
            raise FovealError(f"discriminator_steps must be at least 1, got {self.discriminator_steps}")
        if self.discriminator_lr is not None and not self.discriminator_lr > 0:
            raise FovealError(f"discriminator_lr must be above 0, got {self.discriminator_lr}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise FovealError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class GenerateInference:
    """Options of evaluating and predicting that only generation has."""

    count: int = 64
    """How many images to make."""
    seed: int = 0
    """Fixes the noise, and with it the images."""
    label: str | None = None
    """A class, where the network knows any. Default: one after the other."""
    first: int = 0
    """Number of the first image of the seed: image 7 is the same whether it is made alone or among 64."""
    feature_weights: str | None = None
    """As in training."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise FovealError(f"count must be at least 1, got {self.count}")
        if self.first < 0:
            raise FovealError(f"first must be at least 0, got {self.first}")


class Generate:
    """The task of making images like those of the data. See `foveal.tasks.Task` for what each function is for."""

    Options: ClassVar[type] = GenerateOptions
    InferenceOptions: ClassVar[type] = GenerateInference
    default_model: ClassVar[str] = "sagan_dcgan_32"
    default_batch_size: ClassVar[int] = 64
    metric: ClassVar[str] = "frechet"
    higher_is_better: ClassVar[bool] = False
    curves_beside: ClassVar[tuple[str, ...]] = ("spread", "gamma", "confirmed")
    pipeline_tag: ClassVar[str] = "unconditional-image-generation"
    is_share: ClassVar[bool] = False
    writes_folder: ClassVar[bool] = True
    # the last layer ends in tanh
    preprocessing: ClassVar[dict[str, Any]] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    bundled_recipes: ClassVar[dict[str, dict[str, Any]]] = dict.fromkeys(BUNDLED_NAMES, RECIPE)

    def settle_training(self, config: Any) -> dict[str, Any]:
        """The recipe of the bundled digits, found by trial; for other data the published rates."""
        if config.precision != "float32":
            raise FovealError(f"precision must be float32 for task generate, got {config.precision}")
        if config.accumulate != 1 or config.devices != 1 or config.nodes != 1:
            raise FovealError("task generate takes one device and accumulate=1: its step has two optimisers")
        network: dict[str, Any] = {"attention": config.task_options["attention"]}
        common = {"schedule": "constant", "warmup_epochs": 0.0, "weight_decay": 0.0, "optimizer": "adamw"}
        if config.data not in BUNDLED_NAMES:
            return {**common, "lr": 1e-4, "epochs": 100, "model_options": network}
        if not self._is_first_try(config):
            return {**common, "lr": 1e-3, "epochs": 12, "ema": 0.99, "model_options": network}
        small = {"conditional": True, "width": 16}
        return {**common, "lr": 4e-3, "epochs": 8, "ema": 0.99, "model_options": {**network, **small}}

    def _is_first_try(self, config: Any) -> bool:
        """Whether it is the digits with their own network, whose rates were found by trial."""
        return config.data in BUNDLED_NAMES and config.model == self.default_model

    def compared(self, model: str | None) -> dict[str, Any]:
        """The paper's own comparison: without attention at the published places, and with it."""
        name = model or self.default_model
        return {"models": [f"{name}(attention=none)", name]}

    def open(self, data: str, split: str, options: Mapping[str, Any]) -> Any:
        from foveal.data import open_dataset

        return open_dataset("digits" if data in BUNDLED_NAMES else data, split, task="classify", **options)

    def describe(self, data: Mapping[str, Any], options: GenerateOptions) -> dict[str, Any]:
        from foveal.tasks.generate.features import feature_network

        features = feature_network(options.feature_weights, data["train"])
        return {"feature_weights": options.feature_weights, "features": features.name}

    def default_image_size(self, data: Any) -> int:
        return 32

    def build(self, model: str, num_classes: int, **options: Any) -> nn.Module:
        from foveal.models import create_model
        from foveal.models.sagan import SAGAN

        if not model.startswith("sagan_"):
            raise FovealError(f"task generate needs one of sagan_128, sagan_64, sagan_32, ..., got {model}")
        net = create_model(model, num_classes=num_classes, **options)
        assert isinstance(net, SAGAN)
        return net

    def train_transform(
        self, data: Any, info: ModelInfo, options: GenerateOptions, augment: bool
    ) -> JointTransform:
        from foveal.data import train_transform

        flip = 0.5 if augment and getattr(data, "augment", True) and getattr(data, "mirror", True) else 0.0
        return train_transform(info.image_size, crop="none", flip=flip, mean=info.mean, std=info.std)

    def eval_transform(self, info: ModelInfo, inference: Any = None) -> JointTransform:
        from foveal.data import eval_transform

        return eval_transform(info.image_size, mean=info.mean, std=info.std)

    def collate(self, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        from foveal.data.loader import collate_by_size

        return collate_by_size([{k: s[k] for k in ("image", "label")} for s in samples])

    def make_optimizers(self, net: Any, config: Any) -> list[torch.optim.Optimizer]:
        """Adam for the generator, and for the discriminator with a rate of its own (Heusel et al. 2017)."""
        import torch

        options = config.options
        # Adam wants floats, and a person may have written 0
        betas = (float(options.beta1), float(options.beta2))
        # on the digits both networks learn the classes soonest at one rate
        rate = options.discriminator_lr or config.lr * (1 if self._is_first_try(config) else 2)
        return [
            torch.optim.Adam(net.generator.parameters(), lr=config.lr, betas=betas),
            torch.optim.Adam(net.discriminator.parameters(), lr=rate, betas=betas),
        ]

    def step(self, training: Any, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        from foveal.tasks.generate.step import adversarial_step

        return adversarial_step(training, batch, generator)

    def losses(
        self,
        net: nn.Module,
        batch: dict[str, Any],
        info: ModelInfo,
        options: GenerateOptions,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Those of both networks, which `step` minimises in turn; together they are what a step costs."""
        from foveal.tasks.generate.step import adversarial_losses

        return adversarial_losses(net, batch, generator)

    def new_metric(
        self, info: ModelInfo, classes: Sequence[str], inference: GenerateInference | None = None
    ) -> GenerationQuality:
        from foveal.tasks.generate.features import feature_network
        from foveal.tasks.generate.metric import GenerationQuality

        # while training the config says which; a weights file of others may not make us open another file
        weights = info.extra.get("feature_weights") if inference is None else inference.feature_weights
        return GenerationQuality(feature_network(weights, info), info, classes, full=inference is not None)

    def remarks(self, rows: Sequence[Mapping[str, Any]], config: Any) -> list[str]:
        """Say when all generated images are alike."""
        spread = rows[-1]["val_spread"]
        if spread >= COLLAPSED_BELOW:
            return []
        return [
            f"generated images are alike: their features spread {spread:.2f} times as wide as those of real ones "
            "(collapse); try a lower lr, a higher discriminator_lr or --ema 0.99"
        ]

    def sample_picture(self, net: Any, info: ModelInfo) -> np.ndarray:
        """A grid of images from noise that stays the same from epoch to epoch."""
        from foveal.tasks.generate.prediction import picture_grid, sampled

        images = [one for one, _ in sampled(net, info, GenerateInference())]
        return picture_grid(images, columns=10 if len(info.classes) == 10 else 8)

    def predict(
        self,
        net: nn.Module,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        info: ModelInfo,
        inference: GenerateInference | None = None,
    ) -> list[GeneratedImage]:
        raise FovealError("weights that generate take no images: give --count, --seed and --label instead")

    def sample(
        self, net: Any, info: ModelInfo, inference: GenerateInference
    ) -> Iterator[tuple[GeneratedImage, Tensor]]:
        """Images without a source."""
        from foveal.tasks.generate.prediction import GeneratedImage, sampled

        for number, (image, label) in enumerate(sampled(net, info, inference), start=inference.first):
            name = f"{number:04}" + ("" if label is None else f"-{label}")
            yield GeneratedImage([(label or "", 1.0)], f"{name}.png", image), image

    def generator(self, net: Any) -> nn.Module:
        """The part of the network that makes images."""
        return net.generator

    def write(
        self,
        predictions: Iterable[tuple[GeneratedImage, Tensor]],
        out: Path | None,
        info: ModelInfo,
        inference: GenerateInference,
        format: str,
        unreadable: Mapping[str, str],
    ) -> tuple[int, str]:
        from foveal.tasks.generate.prediction import write_images

        assert out is not None
        return write_images(predictions, out, inference)

    def floor_data(self, data: str, split: str, options: Mapping[str, Any]) -> Any:
        """Training images, or for these the validation images; None where there is no other part."""
        from foveal.data.split import NoPartError

        try:
            return self.open(data, "val" if split == "train" else "train", options)
        except NoPartError:
            return None

    def opening_lines(self, config: Any, net: nn.Module, data: Mapping[str, Any]) -> list[str]:
        """In which features distances are measured, and over how many images."""
        from foveal.tasks.generate.features import feature_network

        name = feature_network(config.options.feature_weights, data["train"]).name
        return [
            f"frechet and kernel are distances in the features of {name}, over {len(data['val']):,} images"
        ]

    def show(self, evaluation: Any) -> RenderableType:
        from foveal.tasks.generate.tables import evaluation_table

        return evaluation_table(evaluation)

    def page_sections(self, evaluation: Any, predictor: Any) -> list[tuple[str, str]]:
        """Distances beside floor and ceiling, the name of their features, and images."""
        from foveal.tasks.generate.tables import sections

        return sections(evaluation, predictor)

    def check(self, data: str, split: str, options: dict[str, Any]) -> Checked:
        from foveal.tasks.check import check_stored

        return check_stored(self, data, split, options, lambda sample: [int(sample["label"])])

    def report_pass(self, net: Any, images: Tensor) -> None:
        """Both networks, so that the blocks of both are reported."""
        import torch

        from foveal.tasks.generate.prediction import noise_of

        noise = torch.stack([noise_of(0, number, net.latent) for number in range(len(images))])
        net(net.generate(noise.to(images.device)))

    def caption(self, sample: dict[str, Any], classes: Sequence[str]) -> str:
        return classes[int(sample["label"])]
