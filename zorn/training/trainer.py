"""The trainer: from settings to a trained model in a folder, and on from where it stopped."""

import dataclasses
import itertools
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

import torch
from rich.console import Console

from zorn.config import COMPONENTS, BudgetConfig, Choice, Config, resolve
from zorn.distributed import Group
from zorn.distributed import share as share_work
from zorn.errors import ConfigError, NonFiniteLossError, ZornError
from zorn.estimators import Estimate
from zorn.models import parameter_count, sample
from zorn.registry import absolute
from zorn.run.checkpoint import (
    Progress,
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from zorn.run.curve import draw_curve
from zorn.run.folder import RunFolder, claimed, free_path
from zorn.run.identity import check_settings, check_text, run_settings, text_fingerprint
from zorn.run.journal import Journal, JournalEntry, check_identity, last_step, read_journal
from zorn.run.lock import locked
from zorn.run.loggers import MetricsLog, Record, read_metrics
from zorn.run.progress_display import ProgressDisplay
from zorn.run.summary import Summary, make_summary, print_summary, write_summary, yardsticks_of
from zorn.tasks import ByteTokenizer, Task, TextTask
from zorn.tasks.held_out import objective_value
from zorn.tasks.text import PYTHON_DOCS
from zorn.training.build import build_task, set_threads
from zorn.training.interruption import Interruption
from zorn.training.learner import Learner
from zorn.training.limits import is_finite, memory_of
from zorn.training.replay import after_entry, journal_identity, replay_steps
from zorn.training.resumption import check_states, entry_of, last_to_replay, line_of, mend_metrics, used
from zorn.training.schedules import rate_factor_at
from zorn.training.together import check_same_settings, fetch_run, is_orphan, on_device_of

SAMPLE_PROMPT = "The "
SAMPLE_LENGTH = 600
SAMPLE_TEMPERATURE = 0.8


@final
class Trainer:
    """One run. Making it checks everything and writes nothing; `run` trains, evaluates, saves and sums up.

    All randomness comes from `config.run.seed`; torch's global generator is neither read nor set. With a
    budget in steps a run gives the same bits each time, also over kills and resumes; with one in seconds the
    clock decides how many steps there are and what a cosine schedule sets.

    Args:
        config: the settings; what is None or "auto" in them is chosen here, see `zorn.config.resolve`.
        overwrite: replace an earlier run in the same folder.
        resume: continue from the newest checkpoint in the folder and the journal after it; most callers use
            `Trainer.resume`.
        console: where progress and summary are printed; None: standard output.
        group: the processes that train together, from `zorn.distributed.start`; None: this one alone. All
            make a trainer of the same settings and call its methods together; rank 0 writes and prints.

    Raises:
        ConfigError: settings that cannot work: a text that is missing, a folder that cannot be written, a
            device that is not there; a run to resume that is finished, or whose config.json or text was
            changed since it started.
        CheckpointError: a run to resume whose newest checkpoint is damaged.
        JournalError: a run to resume whose journal is damaged (but at its end), or another run's.

    Attributes:
        config: the settings, with all that was chosen.
        choices: a line for each choice, printed when the run starts.
        saved_step: the step of the newest checkpoint; None before the first.
    """

    def __init__(
        self,
        config: Config,
        *,
        overwrite: bool = False,
        resume: bool = False,
        console: Console | None = None,
        group: Group | None = None,
    ) -> None:
        self.group = group if group is not None else Group()
        self.asked = _with_absolute_names(config)
        config, self.choices = resolve(on_device_of(self.group, self.asked))
        self.config = config
        self.folder = RunFolder(config.run.out or free_path())
        self.console = (console or Console()) if self.group.is_main else Console(quiet=True)
        self._overwrite, self._resumed = overwrite, resume
        self._parent = os.getppid()
        if resume:
            if self.group.is_main:
                self.folder.check_resumable()
            check_settings(read_progress(latest_checkpoint(self.folder.checkpoints)).settings, config)
        elif self.group.is_main:
            self.folder.check_new(overwrite=overwrite)
        set_threads(config.run.threads)
        self.task = build_task(self.config, self.folder if resume else None)
        self._tokenizer = self.folder.tokenizer_json() if resume else _learned_tokenizer(self.task)
        self._text = text_fingerprint(self.task, self._tokenizer)
        self.learner = Learner.build(config, self.task)
        self.model, self.optimizers = self.learner.model, self.learner.optimizers
        self.estimator = self.learner.estimator
        if self.group.size > 1:
            run = config.run
            share_work(self.estimator, self.group, partial=run.partial_steps, check_every=run.check_replicas)
        self.forward_passes = self.dropped = 0
        self.saved_step: int | None = None
        self._earlier_seconds = 0.0
        self._started: float | None = None
        journaled = config.run.journal and self.estimator.journaled
        self._identity = journal_identity(config, self.model, self._text) if journaled else None
        self._journal: Journal | None = None
        self._journal_bytes = self._journal_last = self._logged_step = 0
        if resume:
            self._restore()

    @property
    def step(self) -> int:
        """Steps done."""
        return self.learner.step

    @classmethod
    def resume(
        cls,
        path: Path,
        *,
        steps: int | None = None,
        seconds: float | None = None,
        console: Console | None = None,
        group: Group | None = None,
    ) -> "Trainer":
        """The trainer of an earlier run, as it was at the last step in its journal, or at its newest
        checkpoint where it keeps none; `run` continues from there.

        `steps` or `seconds` set a new budget, counted from the start of the run. Nothing is written until
        `run`. Raises what making a `Trainer` raises.
        """
        if group is not None:
            fetch_run(group, RunFolder(path))
        folder = RunFolder(path)
        config, asked = folder.read_config(), folder.read_asked()
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, out=path))
        if steps is not None or seconds is not None:
            config = dataclasses.replace(config, budget=BudgetConfig(steps=steps, seconds=seconds))
        trainer = cls(config, resume=True, console=console, group=group)
        trainer.asked = dataclasses.replace(asked, budget=config.budget)
        return trainer

    def _restore(self) -> None:
        newest = latest_checkpoint(self.folder.checkpoints)
        check_text(read_progress(newest).text, self.task, self.config.task.get("source", ""), self._tokenizer)
        progress = load_checkpoint(newest, self.model, self.optimizers)
        self.saved_step = progress.step
        check_states(self.config, self.task, newest, progress)
        for entry in self._later_entries(progress.step):
            progress = after_entry(progress, entry)
        self.learner.step, self.forward_passes = progress.step, progress.forward_passes
        self.dropped, self._earlier_seconds = progress.dropped, progress.seconds
        self.estimator.load_state_dict(dict(progress.estimator))
        if self._share_used() >= 1 and self.folder.summary.exists():
            raise ConfigError(
                f"the run in {self.folder.path} is finished after {self.step} steps and "
                f"{progress.seconds:.0f} seconds: extend it with --steps or --seconds, counted from its start"
            )

    def _later_entries(self, saved: int) -> Iterator[JournalEntry]:
        """The journal's entries after a checkpoint, up to `last_to_replay`, each once its step is taken
        again."""
        if self._identity is None or not self.folder.journal.exists():
            return
        check_identity(self.folder.journal, self._identity)
        self._journal_bytes = self.folder.journal.stat().st_size
        self._journal_last = last_step(self.folder.journal)
        until = last_to_replay(self.config, self.task, saved, self._journal_last)
        later = read_journal(self.folder.journal, after=saved)
        entries = itertools.takewhile(lambda entry: entry.step <= until, later)
        yield from replay_steps(
            self.config, self.model, self.optimizers, self.estimator, entries, after=saved
        )

    def run(self) -> Summary:
        """Train until the budget is used; returns the summary, which is also in `summary.json`.

        One process at a time can train in a folder, or one group of them. The first SIGINT, SIGTERM or SIGHUP
        ends the run after the step, its evaluation and a save; a second one acts as it did outside.

        Raises:
            KeyboardInterrupt: after such a signal; `saved_step` tells what is saved.
            NonFiniteLossError: too many members had non-finite losses; the last good weights are saved.
            ConfigError: the folder cannot be written, another process trains in it, or a step does not fit
                into the memory.
            OSError: the disk refused; the newest checkpoint is whole.
        """
        try:
            with memory_of(self.config.run.device), Interruption() as interruption, self.group.together():
                check_same_settings(self.group, self.config)
                main = self.group.is_main
                if self.config.run.out is None and main:
                    self.folder = RunFolder(claimed(self.folder.path))
                with locked(self.folder.path) if main else nullcontext():
                    if main:
                        self._open_folder()
                        self._journal = self._open_journal()
                    with self._journal or nullcontext():
                        self._train(interruption)
                    summary = self.group.collect(self._finish() if main else None)[0]
                    assert summary is not None, "rank 0 made one"
                    return summary
        except OSError as error:
            saved = f"step {self.saved_step} is saved: mend that, then resume with zorn resume"
            nothing = "nothing is saved: mend that, then train again with --overwrite"
            saved = nothing if self.saved_step is None else saved
            raise OSError(f"the run in {self.folder.path} stopped ({error}); {saved}") from error

    def _train(self, interruption: Interruption) -> None:
        self._started = self._saved_at = time.perf_counter()
        share = self._share_used()
        display = ProgressDisplay(
            self.console,
            progress=share,
            step=self.step,
            forward_passes=self.forward_passes,
            objective=self.config.objective,
        )
        places = self.folder.metrics, self.folder.tensorboard
        log = MetricsLog(*places, self._logged_step) if self.group.is_main else nullcontext()
        with log as log, display:
            if self._resumed:
                self._catch_up(log, display)
            else:
                for choice in self.choices:
                    self._say(choice)
                self._save()
            if self.step == 0:
                self._evaluate_once(log, display)
            share, _, stop = self._agreed(interruption)
            while share < 1 and not stop:
                self._train_step(share, log, display)
                before, (share, save, stop) = share, self._agreed(interruption)
                evaluations = self.config.run.evaluations
                if int(share * evaluations) > int(before * evaluations):
                    self._evaluate(log, display)
                if save:
                    self._save()
            self._save()
            if share < 1:
                raise KeyboardInterrupt
            self._evaluate_once(log, display)

    def _agreed(self, interruption: Interruption) -> tuple[float, bool, bool]:
        """The share of the budget that is used, whether to save, and whether to stop: the same in all
        processes, by the clock of rank 0 and the signals to any."""
        if interruption.requested or is_orphan(self._parent):
            self.group.request_interrupt()
        due = time.perf_counter() - self._saved_at >= self.config.run.checkpoint_seconds
        notes = self.group.message(torch.tensor([self._share_used(), due], dtype=torch.float64))
        share, save = notes[0].values.tolist()
        return share, bool(save), self.group.interrupted

    def _catch_up(self, log: MetricsLog | None, display: ProgressDisplay) -> None:
        """Log what is in the journal alone, and evaluate where that was due, as a crash came in between."""
        if log is None:
            return
        rate = self.config.optimizer.learning_rate
        if self._journal is not None and rate is not None and self._logged_step < self.step:
            for entry in read_journal(self._journal.path, after=self._logged_step):
                log.write(line_of(entry, rate))
        done = [line for line in read_metrics(self.folder.metrics) if line["kind"] == "evaluation"]
        budget, evaluations = self.config.budget, self.config.run.evaluations
        share = budget.progress(done[-1]["step"], done[-1]["seconds"]) if done else 0.0
        if int(self._share_used() * evaluations) > int(share * evaluations):
            self._evaluate_once(log, display)

    def _evaluate_once(self, log: MetricsLog | None, display: ProgressDisplay) -> None:
        """Evaluate unless this step is in the log already."""
        lines = read_metrics(self.folder.metrics) if log is not None else []
        if not any(line["kind"] == "evaluation" and line["step"] == self.step for line in lines):
            self._evaluate(log, display)

    def _open_folder(self) -> None:
        if not self._resumed:
            self.folder.create(self.asked, self.config, overwrite=self._overwrite, tokenizer=self._tokenizer)
            return
        newest = latest_checkpoint(self.folder.checkpoints)
        if read_progress(newest).step != self.saved_step:
            raise ConfigError(f"{newest} was written by another process meanwhile: resume the run again")
        journal = self.folder.journal
        if self._journal_bytes and journal.stat().st_size != self._journal_bytes:
            raise ConfigError(f"{journal} was written by another process meanwhile: resume the run again")
        splits = len(self.task.validation_splits)
        self._logged_step = mend_metrics(self.folder.metrics, self.step, splits)
        self.folder.write_config(self.asked, self.config)
        self.folder.summary.unlink(missing_ok=True)

    def _open_journal(self) -> Journal | None:
        """The journal, to continue after this step; a new one where there is none or it has not come so
        far; None for a run that keeps none."""
        if self._identity is None:
            return None
        path, sync = self.folder.journal, {"sync_seconds": self.config.run.journal_sync}
        if self._journal_bytes:
            if self._journal_last >= self.step:
                journal = Journal.open(path, self._identity, last_step=self.step, **sync)
                if journal.dropped:
                    self._say(journal.dropped)
                return journal
            path.replace(path.with_name(f"journal-to-{self._journal_last}.jsonl"))
            self._say(
                f"{path} ends at step {self._journal_last}, before the checkpoint of step {self.step}: a new "
                "one begins, and steps up to there cannot be made again from it; the former is kept as "
                f"journal-to-{self._journal_last}.jsonl"
            )
        return Journal.create(path, self._identity, base_step=self.step, **sync)

    def _train_step(self, share: float, log: MetricsLog | None, display: ProgressDisplay) -> None:
        try:
            estimate = self._update(share)
        except NonFiniteLossError as error:
            self.estimator.load_state_dict(self.estimator.state_dict() | {"step": self.step})
            saved = self._save() if self._is_finite() else latest_checkpoint(self.folder.checkpoints)
            raise NonFiniteLossError(f"{error}; the last good weights are saved in {saved}") from error
        self.forward_passes += estimate.forward_passes
        self.dropped += estimate.dropped
        record = {
            "kind": "train",
            **self.learner.scheduled,
            **used(estimate.fold),
            "step": self.step,
            "seconds": self._seconds(),
            "forward_passes": self.forward_passes,
            "loss": estimate.loss,
            "gradient_norm": estimate.gradient_norm,
            "dropped": estimate.dropped,
        }
        if self._journal is not None and estimate.fold is not None:
            factor = rate_factor_at(self.config.schedule, self.step - 1, share)
            self._journal.append(entry_of(record, estimate.fold, factor))  # before all that tells of it
        if log is not None:
            log.write(record)
        display.trained(record, self._share_used())

    def _update(self, share: float) -> Estimate:
        return self.learner.train_step(share)

    def _evaluate(self, log: MetricsLog | None, display: ProgressDisplay) -> None:
        """Evaluate all validation splits, on rank 0 while the others wait; what is shown while training is
        the first's."""
        if log is None:
            return
        evaluations = [self.task.evaluate(self.model, split) for split in self.task.validation_splits]
        place = {"step": self.step, "seconds": self._seconds(), "forward_passes": self.forward_passes}
        records: list[Record] = [
            {"kind": "evaluation", **place, **dataclasses.asdict(evaluation)} for evaluation in evaluations
        ]
        if self.config.objective != "cross-entropy":
            for record, split in zip(records, self.task.validation_splits, strict=True):
                record["objective"] = objective_value(
                    self.model, self.task, split, window=self.config.task.get("length", 0)
                )
        for record in records:
            log.write(record)
        display.evaluated(records[0])

    def _save(self) -> Path:
        if self.saved_step == self.step:
            return checkpoint_path(self.folder.checkpoints, self.step)
        if not self._is_finite():
            raise NonFiniteLossError(
                f"step {self.step}: the weights are not finite: lower the learning rate or epsilon; the last "
                f"good weights are saved in {latest_checkpoint(self.folder.checkpoints)}"
            )
        progress = Progress(
            step=self.step,
            seconds=self._seconds(),
            forward_passes=self.forward_passes,
            dropped=self.dropped,
            seed=self.config.run.seed,
            estimator=self.estimator.state_dict(),
            settings=run_settings(self.config),
            text=self._text,
        )
        if self._journal is not None:
            self._journal.sync()  # or a machine that dies might keep the checkpoint alone
        if self.group.is_main:
            keep = self.config.run.keep
            save_checkpoint(self.folder.checkpoints, progress, self.model, self.optimizers, keep=keep)
        self.saved_step, self._saved_at = self.step, time.perf_counter()
        return checkpoint_path(self.folder.checkpoints, self.step)

    def _is_finite(self) -> bool:
        return all(is_finite(parameter) for parameter in self.model.parameters())

    def _finish(self) -> Summary:
        records = read_metrics(self.folder.metrics)
        latest = {record["split"]: record for record in records if record["kind"] == "evaluation"}
        for split, record in latest.items():
            if not math.isfinite(record["loss"]):
                raise NonFiniteLossError(
                    f"step {self.step}: the loss on {split} is {record['loss']}: lower the learning rate or "
                    f"epsilon; the weights are saved in {latest_checkpoint(self.folder.checkpoints)}"
                )
        config, parameters = self.config, parameter_count(self.model)
        yardsticks = {} if config.task.get("overfit") else yardsticks_of(self.task)
        title = f"{config.task.name}, {config.model.name} with {parameters:,} parameters"
        title += f", {config.estimator.name}"
        draw_curve(self.folder.curve, records, yardsticks, title, config.objective)
        counts = {"objective": config.objective, "parameters": parameters, "dropped": self.dropped}
        summary = make_summary(list(latest.values()), yardsticks, **counts)
        write_summary(self.folder.summary, summary)
        print_summary(self.console, summary, title)
        if isinstance(self.task, TextTask):
            self.folder.sample.write_text(self._sample(self.task), encoding="utf-8")
        self._say(f"{self.folder.path}: summary.json, curve.png, checkpoints")
        return summary

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _sample(self, task: TextTask) -> str:
        prompt = task.encode(SAMPLE_PROMPT).unsqueeze(0).to(self.config.run.device)
        seed = self.config.run.seed
        try:
            tokens = sample(self.model, prompt, SAMPLE_LENGTH, temperature=SAMPLE_TEMPERATURE, seed=seed)
        except ZornError as error:  # the outputs overflow, though the loss may not
            saved = latest_checkpoint(self.folder.checkpoints)
            raise NonFiniteLossError(
                f"step {self.step}: {error}; the weights are saved in {saved}"
            ) from error
        return SAMPLE_PROMPT + task.decode(tokens[0]) + "\n"

    def _seconds(self) -> float:
        """Seconds of training so far, over all sessions, evaluations and saving counted in."""
        session = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._earlier_seconds + session

    def _share_used(self) -> float:
        return self.config.budget.progress(self.step, self._seconds())


def _learned_tokenizer(task: Task) -> str | None:
    """The JSON of a tokenizer that was made from the text; None where there is nothing to learn."""
    if not isinstance(task, TextTask) or isinstance(task.tokenizer, ByteTokenizer):
        return None
    return task.tokenizer.to_json()


def _with_absolute_names(config: Config) -> Config:
    """The settings with the paths of the text and of components from outside made absolute, so that a run can
    be resumed from any folder."""
    changes: dict[str, Any] = {}
    for kind in COMPONENTS:
        choice: Choice = getattr(config, kind)
        changes[kind] = Choice(absolute(choice.name), **choice.given)
    source = config.task.get("source")
    if source not in (None, PYTHON_DOCS):
        changes["task"] = changes["task"].but(source=str(Path(source).absolute()))
    return dataclasses.replace(config, objective=absolute(config.objective), **changes)
