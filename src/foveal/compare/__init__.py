"""Does attention help, at what cost, and where does it look: variants x seeds, statistics, one report.

Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from foveal.compare.experiment import ComparisonResult

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
    insert: Sequence[str] | None = None,
    *,
    models: Sequence[str] = (),
    seeds: int | Literal["auto"] = 8,
    detect: float | None = None,
    control: bool | Literal["time"] = True,
    self_check: bool | None = None,
    split: Literal["val", "test"] = "val",
    tune: int | None = None,
    engine: str = "local",
    engine_options: dict | None = None,
    jobs: int | None = None,
    out: str | None = None,
    lang: Literal["en", "zh"] = "en",
    quiet: bool = False,
    **training: Any,
) -> ComparisonResult:
    """Train a network without attention, with a control of equal cost, and with each block, over several seeds.

    Without arguments this runs on bundled scenes in four to eight minutes on two cores. Every finished run is one
    file in the output folder: a comparison that was stopped continues when it is started again in the same way, and
    trains anew what the data or an option changed. At the end the folder holds ``report.html``, ``results.json`` and
    ``results.csv``.

    Variants of one seed share the initial backbone and the order of the images. The last epoch counts, never the
    best one. The control puts a plain convolution block with the parameters of the costliest block in its place.

    Args:
        insert: the blocks to compare, each written ``name[(option=value,...)][@residual|block|stage|pattern]
            [:stages]``; one variant each. Default: five blocks, at the places that suit the bundled data.
        models: instead of blocks inserted into one network, networks to compare by name, options in brackets, such as
            "danet_resnet18(channel_form=paper)"; the first is what the others are compared with. Default of task
            generate on its bundled digits: without attention and with.
        seeds: runs of each variant; with 5 blocks and a control, 8 is the fewest with which anything can become
            significant. "auto" adds seeds, from 8 up to 32, until every variant is better, worse, or less than
            ``detect`` away; p and intervals hold wherever it stops.
        detect: the difference that matters, in points; with a number of seeds, how many it would take is said before
            anything is trained.
        control: compare with a plain convolution block, too: true, with the parameters of the variant with the most;
            time, with the milliseconds of the slowest.
        self_check: first compare where the answer is known: scenes that only attention can answer, and scenes that need
            none; of clips to which side a digit moves, which a convolution over time can tell and attention cannot.
            About a minute. Default: with the bundled scenes.
        split: the part of the data to measure on.
        tune: learning rates to try for each variant before the seeds are run, on a quarter of the training images that
            is held out for it: of the inserted block, and for none and the control of the network. 0 takes the default
            rates, and the report says so. Default: 2 on your own data and on the bundled scenes, where the seeds can
            decide anything; 0 on other bundled data, whose rates were found by experiment.
        engine: where the runs are done: local, in processes of this machine; ray, on the nodes of the Ray cluster that
            ray://HOST:PORT or RAY_ADDRESS names, else under a Ray of this machine; slurm, as job arrays.
        engine_options: more options of the engine, such as --engine_options.num_gpus 0.25: of ray, num_cpus (threads of
            a run, 1) and num_gpus (1 with cuda); of slurm these and mem_gb, minutes (60), partition, account, qos and
            constraint.
        jobs: runs at a time. Default: one a core with one thread each, or one a GPU.
        out: output folder. Default: runs/compare/DATA-MODEL-BLOCKS.
        lang: language of the verdict and of the report.
        quiet: print nothing.
        training: options of `foveal.train.TrainConfig` and of its task: ``task``, ``data``, ``model``, ``epochs``, ...
            On the bundled scenes the task's quick recipe holds unless given; ``channels_last`` is on.

    Returns:
        The result: ``conclusion``, ``rows`` (one a variant), ``folder``, ``report``.

    Raises:
        FovealError: an option is wrong, found before anything is trained; or another comparison works in ``out``.
        OSError: the output folder cannot be written.
        KeyboardInterrupt: Ctrl-C; the message says what is kept and how to continue.

    Example:
        >>> import tempfile
        >>> result = compare(
        ...     ["se(reduction=4)@residual:3"], seeds=1, control=False, self_check=False, epochs=1, jobs=1,
        ...     out=tempfile.mkdtemp(), data_options={"length": 64, "size": 16, "digit_size": (8, 8)}, quiet=True,
        ... )
        >>> result.conclusion[:42]
        'Too few seeds to say whether attention hel'
    """
    from foveal.compare.experiment import run

    return run(
        None if insert is None else list(insert),
        models=list(models),
        seeds=seeds,
        detect=detect,
        control=control,
        self_check=self_check,
        split=split,
        trials=tune,
        training={"channels_last": True, **training},
        engine=engine,
        engine_options=engine_options or {},
        jobs=jobs,
        out=out,
        lang=lang,
        quiet=quiet,
    )
