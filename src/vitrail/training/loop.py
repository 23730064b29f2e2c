"""The training loop: batches in, better weights out, a state that can always go on."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from vitrail.configuration import require
from vitrail.cores import cores
from vitrail.data.batches import Batch, StepBatches
from vitrail.data.delivery import training_batches
from vitrail.data.mixing import Mixing
from vitrail.data.order import step_seed
from vitrail.errors import DataError, Interrupted, VitrailError
from vitrail.memory import freed_kept, give_back, peak_bytes
from vitrail.objectives.objective import ObjectiveModule
from vitrail.training import state
from vitrail.training.gradient import Portions
from vitrail.training.margins import Margins
from vitrail.training.optimizer import set_factor
from vitrail.training.products import quick_products
from vitrail.training.progress import Progress
from vitrail.training.samples import save_sheet
from vitrail.training.schedule import Schedule
from vitrail.training.thrift import Growth
from vitrail.training.tracking import Tracking

SAVE_SECONDS = 120.0
LOG_EVERY = 20


@dataclass(frozen=True)
class Training:
    """How long and in which portions.

    Attributes:
        epochs: passes over the training images; need not be whole.
        batch_size: images per update; `micro_batch` divides it where memory is short (gradient accumulation).
        clip: largest global norm of the gradient; None for no limit.
        evaluations: how many times the validation split is looked at, the end included.
        precision: bfloat16 computes the matrix products in half the bytes; weights stay float32.
    """

    epochs: float = 30.0
    batch_size: int = 64
    micro_batch: int | None = None
    clip: float | None = 1.0
    evaluations: int = 10
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.epochs < math.inf, "training.epochs", self.epochs, "a positive number")
        require(self.batch_size > 0, "training.batch_size", self.batch_size, "at least 1")
        require(
            self.micro_batch is None or self.micro_batch > 0, "training.micro_batch", self.micro_batch, "at least 1"
        )
        require(
            self.clip is None or self.clip > 0, "training.clip", self.clip, "a positive number, or null for no limit"
        )
        require(self.evaluations > 0, "training.evaluations", self.evaluations, "at least 1, the one at the end")
        require(0 <= self.seed < 2**63, "training.seed", self.seed, "0 to 2^63 - 1")

    def steps(self, count: int) -> int:
        """Number of updates for `count` training images."""
        return max(1, math.ceil(self.epochs * count / self.batch_size))


@dataclass
class Parts:
    """What a recipe hands to the loop. The loop knows no protocol: `evaluate` returns named numbers, the first decides."""

    objective: ObjectiveModule
    optimizers: list[torch.optim.Optimizer]
    schedule: Schedule
    batches: StepBatches
    evaluate: Callable[[], dict[str, float]]
    write_model: Callable[[Path], None]
    mixing: Mixing | None = None
    growth: Growth | None = None
    device: str = "cpu"
    workers: int | None = 0
    max_bad_share: float = 0.05
    identity: Mapping[str, Any] = field(default_factory=dict)  # what a state must agree with


@dataclass
class Trainer:
    """One run in one folder."""

    parts: Parts
    settings: Training
    folder: Path
    progress: Progress
    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    saved: Path | None = None
    tracking: Tracking = field(default_factory=Tracking)
    margins: Margins = field(init=False)
    portions: Portions = field(init=False)

    def __post_init__(self) -> None:
        self.portions = Portions(self.settings.micro_batch)
        self.margins = Margins(len(self.parts.batches.pictures.dataset))

    @property
    def total(self) -> int:
        return self.settings.steps(len(self.parts.batches.pictures.dataset))

    def fit(self) -> None:
        """Runs to the end, or until it is stopped.

        Raises:
            Interrupted: SIGINT or SIGTERM; the state is saved, the same command goes on.
            VitrailError: VT080, the loss or the gradient is not a number; the last saved state is good.
            DataError: VT087, a picture's reading does not end. VitrailError: VT088, workers are killed again and again.
            KeyboardInterrupt: a request to stop that came after the last step; the state is that of the end.
        """
        self._resume()
        self.tracking.start()  # the log is now that of the state
        with _stop_requests() as stopping, self.progress, freed_kept():
            saved_at = time.monotonic()
            batches = training_batches(
                self.parts.batches,
                self.step,
                self.total,
                self.parts.workers,
                tell=self.progress.note,
                cores=cores(),
                lighten=give_back,
            )
            for batch in self._timed(batches):
                if self.step == 0:
                    self._save_first(batch)
                self._update(batch)
                if due := self._evaluation_due():
                    self._evaluate()
                stop = bool(stopping)  # one look: of a later request the next step knows
                if due or stop or time.monotonic() - saved_at > SAVE_SECONDS:
                    saved_at = self._save()
                if stop:
                    raise Interrupted(
                        "VT081", f"stopped at step {self.step} of {self.total}; everything is saved in {self.folder}",
                        fix="the same command goes on from here",
                    )  # fmt: skip

    def advance(self, batch: Batch) -> dict[str, float]:
        """One step: forward and backward in micro-batches, the gradient clipped, the weights moved. Writes nothing.

        Where memory runs out, the step is begun again in smaller micro-batches, which then stay as small.

        Returns:
            What the log says of the step.

        Raises:
            VitrailError: VT080, the loss or the gradient is not a number; the weights were not moved.
        """
        settings, parts = self.settings, self.parts
        batch = self._prepared(batch)
        parts.objective.train()
        half = settings.precision == "bfloat16"
        autocast = torch.autocast(torch.device(parts.device).type, torch.bfloat16, enabled=half)
        seed = step_seed(settings.seed, self.step, "dropout")
        with quick_products(parts.device):
            sums = self.portions.gradient(parts.objective, batch, self.step, seed, autocast)
        loss = sums.loss
        norm = torch.nn.utils.clip_grad_norm_(
            parts.objective.parameters(), math.inf if settings.clip is None else settings.clip
        )
        if not math.isfinite(float(loss) + float(norm)):
            names = ", ".join(batch.ids[:8]) + (", ..." if len(batch.ids) > 8 else "")
            what = f"the loss is {float(loss)}, the gradient's norm {float(norm)}; the weights were not changed"
            raise self._not_a_number(what, f"finite numbers; the images were {names}")
        rate = set_factor(parts.optimizers, parts.schedule.factor(self.step, self.total))
        for optimizer in parts.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        parts.objective.after_step()
        if sums.margins and parts.mixing is None:  # a mixed image has no label of its own
            samples, _, _ = parts.batches.order.of_step(self.step, settings.batch_size)
            self.margins.add(samples, torch.cat(sums.margins), batch.weights)
        self.step += 1
        return {"train/loss": float(loss), "lr": rate, **{f"train/{k}": float(v) for k, v in sums.metrics.items()}}

    def _update(self, batch: Batch) -> None:
        before = len(self.portions.halved)
        facts = self.advance(batch)
        if len(self.portions.halved) > before:
            self.portions.write(self.folder)
            step, size = self.portions.halved[-1]
            self.progress.note(
                f"memory ran out at step {step}, which was begun again: from now on {size} of a batch's {len(batch.ids)} images "
                "are computed at a time; an update is of as many images as before"
            )
        self._count_skipped(batch)
        self.progress.update(self.step, facts, len(batch.ids))
        if self.step % LOG_EVERY == 0 or self.step == self.total:
            self._log({**facts, **self.progress.rates()})

    def _prepared(self, batch: Batch) -> Batch:
        """On the device, mixed, and perhaps smaller: partners come from the whole batch, before it is divided."""
        device = self.parts.device
        views, labels = tuple(view.to(device) for view in batch.views), batch.labels.to(device)
        if self.parts.mixing is not None:
            seed = step_seed(self.settings.seed, self.step, "mixing")
            images, labels = self.parts.mixing(views[0].float(), labels, seed)
            views = (images,)
        if growth := self.parts.growth:
            stride = self.parts.objective.backbone.config.stride
            views = tuple(growth(view, self.step, self.total, stride) for view in views)
        return Batch(views, labels, batch.ids, batch.weights.to(device))

    def _evaluation_due(self) -> bool:
        """Evenly spread over the run, the end included."""
        done = self.step * self.settings.evaluations // self.total
        return done > (self.step - 1) * self.settings.evaluations // self.total or self.step == self.total

    def _evaluate(self) -> None:
        self._check_weights()
        self.parts.objective.eval()
        try:
            found = self.parts.evaluate()
        except VitrailError as error:
            if error.code == "VT044":  # finite weights, answers that are none
                raise self._not_a_number(error.what, error.expected) from error
            raise
        self.facts = {name: value for name, value in found.items() if math.isfinite(value)}  # JSON has no NaN
        if self.facts:  # none where no image was held out
            self._log(self.facts)
        self.progress.evaluated(self.step, self.facts)

    def _check_weights(self) -> None:
        named = self.parts.objective.named_parameters()
        if bad := [name for name, values in named if not bool(values.isfinite().all())]:
            what = f"the weights {', '.join(bad[:3])} are not finite; they were not saved"
            raise self._not_a_number(what, "finite weights")

    def _save(self) -> float:
        self._check_weights()
        score = next(iter(self.facts.values()), -math.inf)
        if score >= self.best or not self.facts:  # of equal ones, and where nothing chooses, the last is the best
            self.best, self.best_step = max(self.best, score), self.step
        tensors = {f"objective.{name}": tensor for name, tensor in self.parts.objective.state_dict().items()}
        tensors |= state.optimizer_tensors(self.parts.optimizers) | self.margins.tensors()
        facts = {
            "best": self.best if math.isfinite(self.best) else None, "facts": self.facts, "skipped": self.skipped,
            "log_length": state.length(self.folder / "metrics.jsonl"),
            "identity": dict(self.parts.identity),
            "position": self.parts.batches.order.position(self.step, self.settings.batch_size),
        }  # fmt: skip
        new = state.State(self.step, self.best_step, tensors, facts)
        self.saved = state.save(self.folder / "checkpoints", new, self.parts.write_model)
        self.progress.saved()
        return time.monotonic()

    def _resume(self) -> None:
        """Takes up the newest whole state, says why newer ones were passed over, and cuts the log back to it."""
        checkpoints = self.folder / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        state.sweep(checkpoints)
        self.portions.read(self.folder)
        found, passed = state.load(checkpoints)
        for line in passed:
            self.progress.note(line)
        if found is not None:
            state.refuse_foreign(checkpoints, found, self.parts.identity)
        state.cut_back(self.folder / "metrics.jsonl", int(found.facts["log_length"]) if found else 0)
        if found is None:
            return
        self.parts.objective.load_state_dict(state.objective_tensors(found.tensors))
        state.restore_optimizers(self.parts.optimizers, found.tensors)
        self.margins.restore(found.tensors)
        self.step, self.facts, self.skipped = found.step, found.facts["facts"], int(found.facts["skipped"])
        self.best = -math.inf if found.facts["best"] is None else found.facts["best"]
        self.best_step, self.saved = found.best_step, checkpoints / f"step-{found.step}"
        state.point(checkpoints, found)  # a kill may have come between a state and its pointers
        self.progress.resumed(self.step)

    def _save_first(self, batch: Batch) -> None:
        save_sheet(batch, self.folder / "samples" / "train_batch.png")

    def _count_skipped(self, batch: Batch) -> None:
        lost = int((batch.weights == 0).sum())
        self.skipped += lost
        if lost and self.skipped > self.parts.max_bad_share * self.settings.batch_size * self.step + 8:
            names = [i for i, weight in zip(batch.ids, batch.weights.tolist(), strict=True) if weight == 0]
            raise DataError(
                "VT020", f"{self.skipped} pictures could not be read during training, the last ones {', '.join(names[:5])}",
                "pictures that stay where they are", "put them back; the same command goes on",
            )  # fmt: skip

    def _not_a_number(self, what: str, expected: str) -> VitrailError:
        good = f"the state of {self.saved.name} is good" if self.saved else "no state was saved yet"
        finer = ", --set training.precision=float32" * (self.settings.precision != "float32")
        return VitrailError(
            "VT080", f"step {self.step}: {what}, {good}", expected,
            f"a smaller learning rate (--overwrite --lr){finer}, or a look at these images",
        )  # fmt: skip

    def _log(self, facts: dict[str, float]) -> None:
        memory = peak_bytes()
        record = {"step": self.step, "epoch": round(self._epoch(), 4), **facts, "memory": memory}
        state.append_line(self.folder / "metrics.jsonl", record)
        self.tracking.look()

    def _epoch(self) -> float:
        return self.step * self.settings.batch_size / len(self.parts.batches.pictures.dataset)

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self.progress.waited(time.monotonic() - start)
            yield batch


@contextmanager
def _stop_requests(signals: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[list[int]]:
    """A list that is filled by the first request to stop; the second one stops at once."""
    asked: list[int] = []

    def on_request(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = [(number, signal.signal(number, on_request)) for number in signals]
    except ValueError:  # not in the main thread, where signals cannot be caught
        before = []
    try:
        yield asked
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    if asked:  # too late for the loop to see
        raise KeyboardInterrupt
