"""A training run from its recipe to its last line; started again, it goes on where it was."""

import collections
import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from resnetjax import saving
from resnetjax.errors import DataCorrupt, MissingExtra, NonFinite, SaveFailed
from resnetjax.train.checkpoint import Checkpoints, state_digest
from resnetjax.train.labels import counted
from resnetjax.train.metrics_log import MetricsLog, draw_curves, read_metrics, scalars
from resnetjax.train.processes import together
from resnetjax.train.progress import Progress, Spent
from resnetjax.train.recipe import Recipe
from resnetjax.train.run_folder import RunFolder, run_digest
from resnetjax.train.scores import Score
from resnetjax.train.setup import Setup
from resnetjax.train.sharding import gather, place_state
from resnetjax.train.signals import StopSignals
from resnetjax.train.state import TrainState, watched

_STOP_EVERY = 10  # steps between which several processes ask each other for signals
_BAD_AFTER = 1000  # examples: with fewer, a single bad image says nothing of a rate
_TRACED = (3, 13)  # steps of this process


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: Steps done.
        finished: Whether those were all.
        score: Of the last evaluation in this process.
        digest: SHA-256 of the state: parameters, statistics, optimiser, averages and step.
        signal: That stopped it, or None.
        spent: The host's time on this process's steps.
    """

    step: int
    finished: bool
    score: Score | None
    digest: str
    signal: int | None
    spent: Spent


def train(
    recipe: Recipe,
    workdir: str | os.PathLike[str],
    *,
    allow_changes: bool = False,
    profile: bool = False,
    tensorboard: bool = False,
) -> Outcome:
    """Trains, or goes on with what the folder holds.

    SIGTERM and SIGINT end the run after the step under way, with a checkpoint; a second one at
    once. Killed at any moment and started again, the run ends with the same bits.

    Args:
        recipe: What to do.
        workdir: Gets checkpoints, `metrics.jsonl`, the best and the latest model, a report of the
            best class by class, `curves.png` and `confusion.png`.
        allow_changes: Go on in a folder whose run had another recipe.
        profile: Write a trace of some steps into the folder.
        tensorboard: Write TensorBoard's files into the folder too.

    Raises:
        ConfigError: The recipe does not fit the data or the devices, or the folder's run.
        CheckpointCorrupt: There are checkpoints, and none is sound.
        DataCorrupt, DataStalled: Too many images cannot be read, or none come.
        NonFinite: Too many steps in a row gave values that are not finite.
        SaveFailed: A checkpoint, the log or a model cannot be written, and the recipe says to stop
            or it was the last one.
    """
    folder = RunFolder(Path(workdir))
    with StopSignals() as signals, Setup(recipe) as setup:
        run = _Run(setup, folder, signals, profile=profile)
        together(lambda: run.claim(allow_changes=allow_changes))
        with contextlib.ExitStack() as stack:
            run.progress = stack.enter_context(setup.progress())
            run.progress.say(setup.data_line)
            stack.callback(run.end_trace)
            run.checkpoints = stack.enter_context(run.open_checkpoints())
            run.restore()
            run.log = MetricsLog(folder.metrics if run.first else None, step=run.step)
            stack.callback(run.log.close)
            run.scored = {line["step"] for line in read_metrics(folder.metrics)[1]}
            if tensorboard and run.first:
                run.scalars = stack.enter_context(scalars(folder.root / "tensorboard"))
            run.go()
        return run.finish()


class _Run:
    """The moving parts of a run."""

    progress: Progress
    checkpoints: Checkpoints
    log: MetricsLog

    def __init__(
        self, setup: Setup, folder: RunFolder, signals: StopSignals, *, profile: bool
    ) -> None:
        self.setup, self.recipe, self.folder = setup, setup.recipe, folder
        self.signals, self.profile = signals, profile
        self.first = jax.process_index() == 0
        self.scalars: Any = None
        self.state: TrainState
        self.step = self.started = 0
        self.metrics: Mapping[str, Any] = {}
        self.facts: dict[str, Any] = {"evaluated": 0, "best": None, "since_best": 0, "bad": 0}
        self.score: Score | None = None
        self.scored: set[int] = set()
        self.stopped: int | None = None
        self.traced_from: int | None = None
        self.unsaved: dict[str, str] = {}
        self.skipped = 0

    def claim(self, *, allow_changes: bool) -> None:
        """The folder for this run, on the first process."""
        if self.first:
            self.folder.claim(self.recipe, self.setup.facts, allow_changes=allow_changes)

    def open_checkpoints(self) -> Checkpoints:
        chosen = self.recipe.checkpoint
        return Checkpoints(
            self.folder.checkpoints,
            keep=chosen.keep,
            asynchronous=chosen.asynchronous,
            config_digest=run_digest(self.recipe, self.setup.facts),
            log=self.progress.say,
        )

    def restore(self) -> None:
        """The newest sound checkpoint, or a fresh start where there is none at all."""
        restored = self.checkpoints.restore(self.setup.state_shapes)
        if restored is None:
            self.state = self.setup.fresh_state()
            return
        self.state = place_state(restored.state, self.setup.state_shardings)
        self.step = self.started = restored.step
        self.skipped = int(restored.state.skipped)
        self.facts = {**self.facts, **restored.facts}
        self.progress.say(f"resumed at step {self.step} of {self.setup.total_steps}")

    def go(self) -> None:
        """All steps that are left, up to a signal."""
        if self.setup.evaluates_at(self.step) and self.facts["evaluated"] < self.step:
            self._evaluate()  # a signal, or a full disk, came in the middle of it
            self._write_safely("metrics.jsonl", self.log.flush)
        for _ in self._pauses():
            if self.setup.evaluates_at(self.step) and not self.stopped:
                self._evaluate()
            self._save()
        if "checkpoint" not in self.unsaved:  # there, nothing is under way
            self._save_safely("checkpoint", self.checkpoints.wait)

    @property
    def exhausted(self) -> bool:
        """Whether the net has been none the better for too long; a checkpoint tells it too."""
        patience = self.recipe.evaluation.patience
        return patience is not None and self.facts["since_best"] >= patience

    @property
    def finished(self) -> bool:
        return self.step >= self.setup.total_steps or self.exhausted

    def finish(self) -> Outcome:
        digest = state_digest(self.state)
        if self.finished and self.first:
            try:
                draw_curves(self.folder.metrics, self.folder.curves)
                self.folder.draw_report()
            except (MissingExtra, OSError) as error:
                self.progress.say(f"no pictures: {error}")
            for line in self.folder.report_lines():
                self.progress.say(line)
        self._tell_bad()
        together(self._check_saved)
        return Outcome(
            step=self.step,
            finished=self.finished,
            score=self.score,
            digest=digest,
            signal=self.stopped,
            spent=self.progress.spent,
        )

    def _pauses(self) -> Iterator[None]:
        """Trains, and stops wherever there is something to do with the state.

        While a step runs, the next batch is read and put on the devices; the metrics of a step are
        read when the next one is under way, so that the devices always have work.
        """
        setup = self.setup
        self.stopped = self.stopped or self.signals.agreed()  # the first step compiles for long
        batches = setup.batches(self.step)
        placed, bad = next(batches, ({}, ()))
        pending: collections.deque[tuple[int, Any, tuple[str, ...]]] = collections.deque()
        while not self.finished and not self.stopped:
            begun = time.perf_counter()
            self._profile()
            self.state, metrics = setup.train_step_at(self.step)(self.state, placed)
            self.step += 1
            pending.append((self.step, metrics, bad))
            dispatched = time.perf_counter()
            placed, bad = next(batches, ({}, ()))
            fetched = time.perf_counter()
            if jax.process_count() == 1 or self.step % _STOP_EVERY == 0:
                self.stopped = self.signals.agreed()
            pause = self.stopped or setup.pauses_at(self.step)
            under_way = 0 if pause or not self.metrics else 1  # there must be some to show
            ready = [pending.popleft() for _ in range(len(pending) - under_way)]
            values = [jax.device_get(metrics) for _, metrics, _ in ready]
            waited = time.perf_counter()
            for (step, _, unread), found in zip(ready, values, strict=True):
                self._note(step, {name: v.item() for name, v in found.items()}, unread)
            ended = time.perf_counter()
            self._show(
                Spent(
                    steps=1,
                    data=fetched - dispatched,
                    step=waited - fetched,
                    other=dispatched - begun + ended - waited,
                )
            )
            if pause:
                yield

    def _note(self, step: int, metrics: Mapping[str, Any], bad: tuple[str, ...]) -> None:
        """Logs a step, and counts what went wrong in it."""
        self.metrics = metrics
        indices = self.setup.order.indices(step - 1)
        examples = hashlib.blake2s(indices.tobytes(), digest_size=8).hexdigest()
        self.log.write({"step": step, **metrics, "examples": examples})
        if self.scalars:
            self.scalars(step, metrics)
        self.facts["bad"] += len(bad)
        self._note_bad(bad, count=self.facts["bad"], of=step * len(self.setup.rows))
        self.skipped = self.skipped + 1 if metrics["bad_leaf"] >= 0 else 0
        if not self.skipped:
            return
        where = watched(self.state)[metrics["bad_leaf"]]
        self.progress.say(f"step {step} skipped: {where} is not finite")
        if self.skipped > self.recipe.checkpoint.max_skipped:
            raise NonFinite(
                f"step {step}: {where} is not finite, for the {self.skipped}th step in a row; "
                f"the examples were {', '.join(map(str, indices[:8]))}, ... "
                f"The checkpoints in {self.folder.checkpoints} are untouched."
            )

    def _note_bad(self, bad: tuple[str, ...], *, count: int, of: int) -> None:
        """Lists what could not be read; too much of it ends the run.

        Args:
            bad: What it is now.
            count: How often an image could not be read so far, of these examples.
            of: How often one was to be.
        """
        if not bad:
            return
        self._save_safely("bad_images.txt", lambda: self.folder.note_bad(bad))
        if count > self.recipe.data.bad_rate * max(of, _BAD_AFTER):
            images = max(len(self.folder.bad_lines()), len(set(bad)))
            raise DataCorrupt(
                f"{counted(images, 'image')} could not be read, {count / of:.1%} of what was read, "
                f"more than --data.bad-rate {self.recipe.data.bad_rate:g} allows; "
                f"{self.folder.bad_images} lists them:\n  " + "\n  ".join(bad[:5])
            )

    def _tell_bad(self) -> None:
        """Says on the way out what the log of a run that is done does not show."""
        if bad := len(self.folder.bad_lines()):
            total = len(self.setup.train_data) + len(self.setup.test_data)
            self.progress.say(
                f"{counted(bad, 'image')} of {total:,} could not be read: "
                f"{self.folder.bad_images} lists them"
            )

    def _show(self, spent: Spent) -> None:
        self.progress.step(self.step, self.metrics, spent)

    def _evaluate(self) -> None:
        """Scores the net, logs that, and keeps it."""
        variables = self.state.best_variables
        count = self.recipe.evaluation.exact_statistics_batches
        if count:
            variables = self.setup.exact_statistics(variables, self.step, count)

        def watch(done: int) -> None:
            self.progress.show(f"evaluating: {done} of {len(self.setup.test_data)}")
            if self.signals.agreed():
                raise _Interrupted

        try:
            score = self.setup.evaluator(variables, progress=watch)
        except _Interrupted:
            self.stopped = self.signals.agreed()
            return
        self.score = score
        quality = next(iter(score.figures.values()))
        better = self.facts["best"] is None or quality > self.facts["best"]
        self._note_bad(score.bad, count=len(score.bad), of=len(self.setup.test_data))
        line = {"step": self.step, **score.figures}
        if (
            self.step not in self.scored
        ):  # it may be there, of a run that was killed before it saved
            self.log.write({**line, "test_loss": score.loss, "examples": score.examples})
        if self.scalars:
            self.scalars(self.step, {f"test_{name}": v for name, v in score.figures.items()})
        self.progress.say(
            f"epoch {self.step / self.setup.order.steps_per_epoch:g} · step {self.step} · "
            f"test {score.text} of {score.examples:,}"
        )
        variables = gather(variables)

        def keep() -> None:
            pretrained = self.setup.pretrained(variables)
            saving.save(pretrained, self.folder.model("latest"))
            if better:
                saving.save(pretrained, self.folder.model("best"))
                self.folder.note_report(self.setup.report(score, step=self.step))

        if not self._write_safely("model", keep):
            return  # a run that is resumed from here makes this evaluation again
        self.facts["evaluated"] = self.step
        self.facts["best"] = quality if better else self.facts["best"]
        self.facts["since_best"] = 0 if better else self.facts["since_best"] + 1
        if self.exhausted:
            self.progress.say(f"no better for {self.facts['since_best']} evaluations: it ends here")

    def _save(self) -> None:
        if not self._write_safely("metrics.jsonl", self.log.flush):
            return  # a checkpoint must not be ahead of the log
        save = functools.partial(
            self.checkpoints.save, self.step, self.state, facts=dict(self.facts)
        )
        if not self._save_safely("checkpoint", save):
            self._save_safely("checkpoint", save)  # what failed was the save before

    def _write_safely(self, what: str, write: Callable[[], None]) -> bool:
        """Has the first process write, and all of them know whether it could."""

        def attempt() -> None:
            try:
                if self.first:
                    write()
            except OSError as error:
                raise SaveFailed(f"{what} of step {self.step}: {error}") from error

        return self._save_safely(what, lambda: together(attempt))

    def _save_safely(self, what: str, save: Callable[[], None]) -> bool:
        """Saves; whether the run goes on where that fails is the recipe's choice."""
        try:
            save()
        except OSError as error:  # SaveFailed is one
            if self.recipe.checkpoint.failed_save == "stop":
                raise
            self.progress.say(f"not saved: {error}")
            self.unsaved[what] = str(error)
            return False
        self.unsaved.pop(what, None)
        return True

    def _check_saved(self) -> None:
        """Refuses to call it a good end where the last of anything could not be saved."""
        if self.unsaved:
            ended = f"was stopped by signal {self.stopped}" if self.stopped else "ended"
            raise SaveFailed(
                f"the run {ended} after step {self.step}, and not all of it could be saved:\n  "
                + "\n  ".join(self.unsaved.values())
                + "\nWhen there is room, the same command goes on from step "
                f"{max(self.checkpoints.steps(), default=0)}."
            )

    def _profile(self) -> None:
        """Traces some steps after the first, which compiles."""
        done = self.step - self.started
        if self.profile and done == min(_TRACED[0], self.setup.total_steps - self.started - 1):
            jax.profiler.start_trace(str(self.folder.root / "trace"))
            self.traced_from = self.step
        if done == _TRACED[1]:
            jax.block_until_ready(self.state)
            self.end_trace()

    def end_trace(self) -> None:
        """Writes the trace, if one is under way."""
        if self.traced_from is None:
            return
        jax.profiler.stop_trace()
        steps, self.traced_from = self.step - self.traced_from, None
        self.progress.say(f"trace of {steps} steps: {self.folder.root}/trace")


class _Interrupted(Exception):
    """A signal came during an evaluation, which is done again when the run goes on."""
