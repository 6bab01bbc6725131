"""Does attention help, at what cost, and where does it look: variants x seeds, statistics, one report.

Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from foveal.compare.experiment import Outcome

BLOCKS = (
    "se(reduction=4)@residual:3",
    "cbam(reduction=4)@residual:3",
    "nonlocal@residual:3",
    "selfattention@residual:3",
    "dual@residual:3",
)
"""What is compared unless asked otherwise: in the last stage, where attention over positions costs little, with a
reduction of 4, which the widths of small networks want."""


def compare(
    insert: Sequence[str] = BLOCKS,
    *,
    seeds: int = 8,
    control: bool = True,
    data: str = "scenes",
    data_options: dict[str, Any] | None = None,
    model: str = "cifar_resnet8",
    pretrained: bool = False,
    start: Literal["identity", "paper"] = "identity",
    image_size: int | None = None,
    augment: bool | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: Literal["sgd", "adamw"] | None = None,
    lr: float | None = None,
    inserted_lr: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    schedule: Literal["cosine", "poly", "constant"] | None = None,
    warmup_epochs: float | None = None,
    clip_norm: float | None = None,
    freeze_epochs: int | None = None,
    label_smoothing: float | None = None,
    mixup: float | None = None,
    ema: float | None = None,
    channels_last: bool = True,
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    jobs: int | None = None,
    out: str | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train a network without attention, with a control of equal cost, and with each block, over several seeds.

    Without arguments this runs on bundled scenes in about five minutes on two cores. Every finished run is one file in
    the output folder: a comparison that was stopped continues when it is started again in the same way. At the
    end the folder holds ``report.html``, ``results.json`` and ``results.csv``.

    Variants of one seed share the initial backbone and the order of the images. The last epoch counts, never the
    best one. The control puts a plain convolution block with the parameters of the costliest block in its place.

    Args:
        insert: the blocks to compare, each written ``name[(option=value,...)][@residual|block|stage|pattern]
            [:stages]``; one variant each.
        seeds: runs of each variant; with 5 blocks and a control, 8 is the fewest with which anything can become
            significant.
        control: compare with a plain convolution block of equal cost, too.
        data: the bundled "scenes", a folder with one folder a class, a folder of Parquet files, or
            torchvision:NAME.
        data_options: more options of the data set.
        model: a name from `foveal list`: one of ours or any timm model.
        pretrained: begin with the published weights of the model (fetched once from the network).
        start: inserted blocks begin by changing no output (identity), or initialised as in their papers (paper).
        image_size: side of the square images the network sees, in pixels. Default: 24 for scenes; else that of
            the data up to 96, else 224.
        augment: random crop and flip of the training images. Default: not for scenes, else yes.
        epochs: passes over the training images. This and all further options of training: by default a recipe
            that suits the scenes in the time there is, and for other data the defaults of `foveal train`.
        batch_size: images in a batch.
        optimizer: sgd has Nesterov momentum; adamw has decoupled weight decay.
        lr: highest learning rate, reached after the warm-up.
        inserted_lr: learning rate of inserted blocks. Default: lr.
        momentum: momentum of sgd, beta1 of adamw.
        weight_decay: weight decay; biases, norms and the scales and gate biases of inserted blocks have none.
        schedule: what the learning rate does after the warm-up.
        warmup_epochs: the learning rate rises linearly over this many epochs.
        clip_norm: largest norm of all gradients together; 0 does not clip.
        freeze_epochs: for this many epochs train only the inserted blocks and the classifier.
        label_smoothing: share of the target spread evenly over all classes, from 0 to 1.
        mixup: mix pairs of images with a share drawn from Beta(mixup, mixup); 0 mixes none.
        ema: decay of a running average of the weights, which is then what is evaluated; 0 keeps none.
        channels_last: keep images and weights in channels-last order: quicker on most machines.
        accelerator: where to train.
        jobs: runs at a time. Default: one a core with one thread each, or one a GPU.
        out: output folder. Default: runs/compare/DATA-MODEL.
        quiet: print nothing.

    Returns:
        The outcome: ``verdict``, ``rows`` (one a variant), ``folder``, ``report``.

    Raises:
        ValueError: an option is wrong; found before anything is trained.
        OSError: the output folder cannot be written.
        KeyboardInterrupt: Ctrl-C; the message says what is kept and how to continue.

    Example:
        >>> import tempfile
        >>> outcome = compare(
        ...     ["se(reduction=4)@residual:3"], seeds=1, control=False, epochs=1, jobs=1, out=tempfile.mkdtemp(),
        ...     data_options={"length": 64, "size": 16, "digit_size": (8, 8)}, quiet=True,
        ... )
        >>> outcome.verdict[:42]
        'Too few seeds to say whether attention hel'
    """
    from foveal.compare.experiment import run

    training = {
        "augment": augment,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "lr": lr,
        "inserted_lr": inserted_lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup_epochs": warmup_epochs,
        "clip_norm": clip_norm,
        "freeze_epochs": freeze_epochs,
        "label_smoothing": label_smoothing,
        "mixup": mixup,
        "ema": ema,
    }
    given = {name: value for name, value in training.items() if value is not None}
    return run(
        list(insert),
        seeds=seeds,
        control=control,
        options={
            "data": data,
            "data_options": dict(data_options or {}),
            "model": model,
            "pretrained": pretrained,
            "start": start,
            "image_size": image_size,
            "channels_last": channels_last,
            **given,
        },
        accelerator=accelerator,
        jobs=jobs,
        out=out,
        quiet=quiet,
    )
