"""The whole comparison: what is run in which order, when it stops, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from foveal.compare.costs import measure_costs
from foveal.compare.estimate import estimate_seconds, in_words
from foveal.compare.job import Job
from foveal.compare.page import write_report
from foveal.compare.plan import Plan, bundled_recipe, data_name, plan_comparison
from foveal.compare.progress import Progress
from foveal.compare.runner import Runner, finished_result, weights_path
from foveal.compare.self_check import SelfCheck, check_plans, summarise_check
from foveal.compare.sentences import before_start
from foveal.compare.sequential import sequential_differences
from foveal.compare.summary import Row, paired_values, summarise
from foveal.compare.time_control import with_time_control
from foveal.compare.tuning import tune
from foveal.errors import FovealError
from foveal.folders import file_name, locked
from foveal.insertion import block_name
from foveal.nn import CBAM, SqueezeExcite
from foveal.ops.whole_gate import compile_kernels
from foveal.train.run import Interrupted


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison found.

    Attributes:
        conclusion: a sentence or two.
        rows: one for each variant: ``none``, ``control`` (if any), then the blocks in the order given.
        folder: the output folder, with ``report.html``, ``results.json``, ``results.csv`` and ``runs.csv``.
        self_check: what the instrument found where the answer is known; None where it was not checked.
    """

    conclusion: str
    rows: list[Row]
    folder: Path
    self_check: SelfCheck | None = None

    @property
    def report(self) -> Path:
        """The page with everything."""
        return self.folder / "report.html"


def run(
    insertions: Sequence[str] | None,
    *,
    models: Sequence[str],
    seeds: int | str,
    detect: float | None,
    control: bool | str,
    self_check: bool | None,
    split: str,
    trials: int | None,
    training: Mapping[str, Any],
    engine: str,
    engine_options: Mapping[str, Any],
    jobs: int | None,
    out: str | None,
    lang: str,
    quiet: bool,
) -> ComparisonResult:
    """Do what `foveal.compare.compare` describes."""
    if jobs is not None and jobs < 1:
        raise FovealError(f"jobs must be at least 1, got {jobs}")
    plan = plan_comparison(
        insertions,
        models=models,
        seeds=seeds,
        control=control,
        split=split,
        trials=trials,
        detect=detect,
        training=training,
    )
    if self_check is None:
        self_check = bool(bundled_recipe(training)) and data_name(plan.job.config) == "scenes"
    checks = check_plans(plan.job.config.task, plan.job.device) if self_check else {}
    folder = _folder(out, plan)
    with locked(folder, "a comparison"):
        if control == "time" and not models:
            plan = with_time_control(plan, folder)
        return Comparison(plan, checks, folder, engine, jobs, lang, quiet, engine_options).run()


class Comparison:
    """One comparison at work in its folder.

    Args:
        plan: what is compared.
        checks: plans with a known answer that are run before, by name; none checks nothing.
        folder: where everything is kept.
        engine, jobs, lang, quiet, engine_options: as `foveal.compare.compare` takes them.
    """

    def __init__(
        self,
        plan: Plan,
        checks: Mapping[str, Plan],
        folder: Path,
        engine: str,
        jobs: int | None,
        lang: str,
        quiet: bool,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan, self.checks, self.folder, self.lang, self.quiet = plan, checks, folder, lang, quiet
        self.progress = Progress(plan, quiet=quiet)
        self.runner = Runner(folder, engine, jobs, plan.job.device, self.progress, engine_options)

    def run(self) -> ComparisonResult:
        """Run what is not finished yet, and write the report."""
        progress, check = self.progress, None
        try:
            with self.runner as runner:
                self.plan = tuned_before(self.plan, self.folder)
                self._compile_kernels()
                self._say_what_is_to_come()
                for name, plan in self.checks.items():
                    runner.do(plan, plan.jobs, self._check_folder(name))
                if self.checks:
                    check = summarise_check(self.checks, self._check_results())
                    progress.say(check.sentence(self.lang))
                if self.plan.trials and self.plan.tuning is None:
                    do = partial(runner.do, self.plan, folder=self.folder)
                    self.plan = replace(
                        self.plan, tuning=tune(self.plan.variants, self.plan.job, self.plan.trials, do)
                    )
                runs = self._do_seeds(runner)
            with progress.bar("measuring time and memory", len(self.plan.variants) + 2) as advance:
                costs = measure_costs(self.plan, self.folder, advance)
            progress.say("drawing the report")
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; {progress.done} of {progress.total} runs are finished and kept in {self.folder}; "
                "the same command continues with the rest"
            ) from None
        finally:
            progress.stop()
        rows, conclusion = summarise(
            self.plan, runs, costs, data=data_name(self.plan.job.config), lang=self.lang
        )
        result = ComparisonResult(conclusion, rows, self.folder, check)
        weights = {
            job.variant.name: weights_path(self.folder, job) for job in self.plan.jobs if job.keep_weights
        }
        kept = {name: path for name, path in weights.items() if path.exists()}
        write_report(result, plan=self.plan, runs=runs, weights=kept, lang=self.lang)
        progress.show(conclusion, rows, result.report)
        return result

    def _do_seeds(self, runner: Runner) -> list[dict[str, Any]]:
        """The runs of all seeds; where their number is open, until every variant is decided at a look."""
        plan = self.plan
        if not plan.looks:
            results = runner.do(plan, plan.jobs, self.folder)
            return [results[job.key] for job in plan.jobs]
        for look in plan.looks:
            planned = plan.jobs_of(range(look))
            results = runner.do(plan, planned, self.folder)
            runs = [results[job.key] for job in planned]
            undecided = self._undecided(runs)
            if not undecided or look == plan.looks[-1]:
                self.plan = replace(plan, seeds=look)
                return runs
            self.progress.say(f"{look} seeds do not decide {', '.join(undecided)}; going on")
        raise AssertionError("a plan with looks has a last one")

    def _undecided(self, runs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Variants of which neither a difference is found nor one of the size that matters is excluded."""
        values = paired_values(self.plan, runs)
        baseline = values.pop(self.plan.variants[0].name)
        assert self.plan.detect is not None
        better = self.plan.job.config.the_task.higher_is_better
        found = sequential_differences(
            baseline, values, detect=self.plan.detect, looks=self.plan.looks, higher_is_better=better
        )
        return [name for name, one in found.items() if one.finding not in ("better", "worse", "smaller")]

    def _compile_kernels(self) -> None:
        """Those of gates on a CPU, before anything is timed; workers find them on disk."""
        if self.plan.job.device != "cpu" or not self.runner.pending(self.plan.jobs, self.folder):
            return
        nets = (replace(self.plan.job, variant=variant).build() for variant in self.plan.variants)
        if any(isinstance(module, SqueezeExcite | CBAM) for net in nets for module in net.modules()):
            compile_kernels()

    def _say_what_is_to_come(self) -> None:
        """What the seeds can decide, and how long it takes: before anything is trained."""
        if self.quiet:
            return
        earlier = [one for job in self.plan.jobs if (one := finished_result(self.folder, job)) is not None]
        for sentence in before_start(self.plan, paired_values(self.plan, earlier), self.lang):
            self.progress.say(sentence)
        parts = {f"check {name}": (plan, self._check_folder(name)) for name, plan in self.checks.items()}
        looks = self.plan.looks
        parts[f"the first {looks[0]} seeds" if looks else "all seeds"] = (self.plan, self.folder)
        seconds = estimate_seconds(self.runner, parts)
        if seconds:
            self.progress.say(in_words(seconds))

    def _check_folder(self, name: str) -> Path:
        return self.folder / "self-check" / name

    def _check_results(self) -> dict[str, list[dict[str, Any]]]:
        return {
            name: [
                one
                for job in plan.jobs
                if (one := finished_result(self._check_folder(name), job)) is not None
            ]
            for name, plan in self.checks.items()
        }


def tuned_before(plan: Plan, folder: Path) -> Plan:
    """The plan with what its trials found, where all of them are finished: its runs are known by the rates that were
    chosen."""

    def kept(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        return {job.key: one for job in jobs if (one := finished_result(folder, job)) is not None}

    if not plan.trials:
        return plan
    try:
        return replace(plan, tuning=tune(plan.variants, plan.job, plan.trials, kept))
    except KeyError:
        # a trial is missing
        return plan


def _folder(out: str | None, plan: Plan) -> Path:
    config = plan.job.config
    others = [block_name(v.insert) if v.insert else v.name for v in plan.variants if v.attends]
    name = file_name(f"{data_name(config)}-{config.model}-{'-'.join(dict.fromkeys(others))}")
    folder = Path(out) if out is not None else Path("runs/compare") / name
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise FovealError(f"out must be a folder, got {folder}, where a file stands in the way") from None
    return folder
