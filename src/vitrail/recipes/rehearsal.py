"""A run in small and in memory: its own functions on some of its pictures, timed and weighed. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from vitrail.cores import cores, reading_threads
from vitrail.data.batches import Pictures, StepBatches, evaluation_size, kept_in_memory
from vitrail.data.check import Examiner
from vitrail.data.delivery import seconds_a_step, workers_for
from vitrail.data.sources import Source
from vitrail.deployment.classifier import Classifier
from vitrail.evaluation.accuracy import Outcome, outcome
from vitrail.evaluation.baselines import SIDE, nearest_pixels, pixels
from vitrail.memory import Usage, freed_kept, give_back, peak_bytes, reset_peak, resident_bytes
from vitrail.model.sizes import cost
from vitrail.recipes.assembly import Machine, checked_pictures, checkpoint_of, trainer_of
from vitrail.recipes.judge import TRAIN_SAMPLE
from vitrail.recipes.room import STATES, in_memory
from vitrail.recipes.run import Run
from vitrail.recipes.show import Shown, gallery
from vitrail.recipes.survey import Sample, Survey, Watch
from vitrail.report.page import run_page
from vitrail.report.plots import drawn
from vitrail.report.story import Story
from vitrail.training.loop import LOG_EVERY, SAVE_SECONDS
from vitrail.training.precision import products_a_second

FIRST = 64  # pictures, which tell how long the others take
READ_SECONDS, READ_UNTIL = 1.0, 3.0  # the pictures are opened and read by then, on a computer that does nothing else
EXAMINED_SECONDS = 0.7
STEP_SECONDS = 0.6  # a step that seems to take longer is tried with fewer layers, then with fewer images
STEPS_SECONDS = 1.0
EVALUATION_SECONDS = 0.5
NEIGHBOUR_PRODUCTS = 2e10
CHOOSING = "choosing the learning rate"
SAVED_A_SECOND = 300e6  # bytes of a saved state, hashed and flushed; the plan writes nothing, so this is no measurement


@dataclass
class Reading:
    """What something took: seconds, and the growth of the resident size since the run began, at its peak and at its end."""

    seconds: float = 0.0
    peak: int = 0
    after: int = 0


@contextmanager
def measured(usage: Usage) -> Iterator[Reading]:
    """Gives a reading that is filled in at the end."""
    reset_peak()
    reading, start = Reading(), time.perf_counter()
    yield reading
    reading.seconds = time.perf_counter() - start
    reading.peak, reading.after = peak_bytes() - usage.resident, resident_bytes() - usage.resident


@dataclass(frozen=True)
class Part:
    """A part of the run to come: its seconds in all, and the growth of the resident size at its peak."""

    name: str
    seconds: float
    memory_bytes: int


class Rehearsal:
    """Tries every part of a run, in the order of the run; what was tried on less is multiplied to the whole.

    Args:
        folder: where the run would write; only its name is used.
        usage: from before the data were opened; `opening` is what that took.
        room: bytes that may be taken; None for no limit.

    Attributes:
        probe: what is tried: the run itself, or one of fewer layers or images where its steps are long or too large.
        pictures_read, steps_tried: how many.
        step_seconds: of the whole run's steps; `making` is the share that making a batch takes of one, without workers.
        activation_bytes: what a part of the whole run's batch takes while its gradient is computed.
        disk_bytes: of the whole run's saved states.
        neighbours: the baseline on a sample of the pictures.
        device_bytes: what the whole run takes of the accelerator's memory; None without one.

    Raises:
        DataError: the pictures that were tried cannot be used.
        VitrailError: VT080, a step gave no number.
    """

    def __init__(
        self, source: Source, run: Run, machine: Machine, folder: Path, usage: Usage, opening: Reading, room: int | None
    ) -> None:
        torch.set_num_threads(machine.threads)
        self.source, self.run, self.machine, self.usage = source, run, machine, usage
        self.missing = 0  # bytes that the run has in memory and the rehearsal has not
        self.device_bytes: int | None = None
        self.parts = [Part("opening", opening.seconds, opening.peak)]
        give_back()  # as the run does between its stages
        self.pictures = self._read()
        self._prepare(folder, room)
        give_back()
        with freed_kept():
            self._train()
            self._evaluate()
        give_back()
        self._judge(folder)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def memory_bytes(self) -> int:
        return max(part.memory_bytes for part in self.parts)

    @property
    def disk_bytes(self) -> int:
        return STATES * self.state_bytes + 2**20  # and the pages, and the answers

    @property
    def steps(self) -> int:
        return self.run.training.steps(len(self.source.split("train")))

    def of(self, run: Run) -> Rehearsal:
        """The same, where the run has another number of epochs."""
        before, self.run = self.steps, run
        for index, part in enumerate(self.parts):
            if part.name in ("training", CHOOSING):
                times = 1.0 if part.name == "training" or run.grid is None else len(run.grid.rates) * run.grid.share
                seconds = part.seconds + times * (self.steps - before) * self.step_seconds
                self.parts[index] = replace(part, seconds=seconds)
        return self

    @property
    def counts(self) -> dict[str, int]:
        """Pictures of each split; of val alone where it stands for test too."""
        return {name: len(split) for name, split in self.source.own_splits.items()}

    def _add(self, name: str, seconds: float, peak: int) -> None:
        self.parts.append(Part(name, seconds, peak + self.missing))

    def _read(self) -> dict[str, Pictures]:
        """As many pictures as the time allows, and the data check of these."""
        source, run, total = self.source, self.run, sum(self.counts.values())
        lenient = replace(run, data=replace(run.data, max_bad_share=1.0))  # a few bad ones may be many of a sample
        survey, before = Survey.of(source), resident_bytes() - self.usage.resident
        with measured(self.usage) as first:
            checked_pictures(Sample.of(source, FIRST).source, lenient)
        seconds = min(READ_SECONDS, max(0.0, READ_UNTIL - self.usage.seconds))
        count = min(total, max(FIRST, round(seconds / first.seconds * FIRST)))
        sample, examiner = Sample.of(source, count), Examiner(source)
        with measured(self.usage) as reading:
            if count == total:
                pictures = checked_pictures(source, run, examiner)
            else:
                pictures = checked_pictures(sample.source, lenient, Watch(examiner, sample))  # type: ignore[arg-type]
            self.examination = examiner.examination(time.monotonic() + EXAMINED_SECONDS)
        self.pictures_read = sum(map(len, sample.chosen.values()))
        for name, of_run in self.counts.items():
            split, kept = pictures[name], survey.kept(name, run.preprocessing)
            held = sum(picture.nbytes for picture in split.cache if picture is not None)
            if not kept_in_memory(of_run, run.preprocessing):
                split.cache, self.missing = [], self.missing - held
            elif kept is not None:
                self.missing += int(kept.sum()) - held
            else:
                self.missing += round(held * (of_run / len(split.dataset) - 1))
        ratio = survey.work({name: np.arange(n) for name, n in self.counts.items()}) / survey.work(sample.chosen)
        peak = reading.peak
        if count < total:  # a large picture may come when many are kept already
            peak = max(reading.after, before + survey.peak(run.preprocessing, reading_threads()) - self.missing)
        self._add("reading", reading.seconds * ratio, peak)
        return pictures

    def _prepare(self, folder: Path, room: int | None) -> None:
        """The model, the optimizers and everything that the training hangs on."""
        self.probe = probe_of(self.run, room)
        self.whole, self.tried = cost(self.run.model), cost(self.probe.model)
        with measured(self.usage) as self.prepared:
            quick = EVALUATION_SECONDS * products_a_second("float32") / self.tried.flops
            self.quick = max(1, round(quick))
            held = self._judged
            val = _as_many(held, min(self.quick, len(held.dataset)))
            probe = replace(self.probe, thrift=replace(self.probe.thrift, compile=False))  # which takes a minute
            self.trainer = trainer_of(
                probe, self.source, {**self.pictures, "val": val}, self.machine, folder, True, self.usage
            )
        self.trainer.parts.growth = None  # the last steps are the largest
        # What the objective keeps: the model that learns, perhaps its average, perhaps a teacher.
        self.kept = _bytes(self.trainer.parts.objective.state_dict().values())
        self.missing += round(self.kept * (self.whole.parameters / self.tried.parameters - 1))
        self._add("preparing", self.prepared.seconds, self.prepared.peak)

    def _train(self) -> None:
        """Real steps of the probe, the first two to warm up."""
        settings = self.run.training
        if self.probe is not self.run:
            self._begin()
        making: list[float] = []
        using: list[float] = []
        start = time.perf_counter()
        with measured(self.usage) as training:
            while len(using) < 4 or (len(using) < 40 and time.perf_counter() - start < STEPS_SECONDS):
                begun = time.perf_counter()
                batch = self.trainer.parts.batches[len(using)]
                made = time.perf_counter()
                self.trainer.advance(batch)
                making.append(made - begun)
                using.append(time.perf_counter() - made)
        self.steps_tried = len(using) - 2
        images = settings.batch_size / self.probe.training.batch_size
        made, used = images * median(making[2:]), images * median(using[2:]) * self.whole.flops / self.tried.flops
        self.making, workers = made / (made + used), self.machine.workers
        if workers is None:
            workers = workers_for(made, used, self.steps, cores())
        busy = min(self.machine.threads, cores()) if self.machine.torch_device == "cpu" else 1
        self.step_seconds = seconds_a_step(made, used, workers, cores(), busy)
        parameters = self.whole.parameters / self.tried.parameters
        buffers = _buffers(self.trainer.parts.optimizers)
        state = 4 * self.tried.parameters + (buffers if self.probe is self.run else 0)  # the gradient and the buffers
        # A saved state has the model, what the objective keeps, the buffers, and a sum and a number of each training image.
        saved = 4 * self.tried.parameters + self.kept + buffers
        self.state_bytes = round(saved * parameters) + 12 * self.counts["train"]
        more = self.whole.activation_bytes * in_memory(self.run) / (self.tried.activation_bytes * in_memory(self.probe))
        held = max(0, training.peak - self.prepared.after - state)
        grown = round((4 * self.tried.parameters + buffers) * (parameters - 1) + held * (more - 1))
        self.activation_bytes = round(held * more)
        seconds = sum(making[:2]) + sum(using[:2]) + self.steps * self.step_seconds
        self._add("training", seconds, training.peak + grown)
        if self.machine.torch_device == "cuda":
            most = torch.cuda.max_memory_reserved()
            self.device_bytes = round((8 * self.tried.parameters + buffers) * (parameters - 1) + most * more)
        saves = settings.evaluations + seconds // SAVE_SECONDS
        self.saving = saves * (0.03 + self.state_bytes / SAVED_A_SECOND)

    def _begin(self) -> None:
        """A step of one image, for all that is loaded once; of what follows only the activations are multiplied."""
        probe, parts = self.trainer.settings, self.trainer.parts
        batches = parts.batches
        self.trainer.settings = replace(probe, batch_size=1)
        parts.batches = StepBatches(batches.pictures, batches.transforms, probe.seed, 1, batches.order.sampling)
        with measured(self.usage) as self.prepared:
            self.trainer.advance(parts.batches[0])
            give_back()  # its activations are no part of what stays
        self.trainer.settings, parts.batches, self.trainer.step = probe, batches, 0

    def _evaluate(self) -> None:
        """In turn with steps where these are short, as in the run: each leaves its gaps in the memory of the other."""
        for more in range(3 if self.step_seconds < EVALUATION_SECONDS / 2 else 1):
            if more:
                self.trainer.advance(self.trainer.parts.batches[self.trainer.step])
            with measured(self.usage) as evaluating:
                self.trainer.parts.objective.eval()
                self.trainer.parts.evaluate()
        count, peak = self.val_count, evaluating.peak
        together = min(count, evaluation_size(self.run.preprocessing))
        if self.quick < together:
            peak = max(peak, self.prepared.after + 4 * self.run.model.live * together)
        self.image_seconds = evaluating.seconds / min(self.quick, count) * self.whole.flops / self.tried.flops
        self._add("evaluating", self.run.training.evaluations * count * self.image_seconds, peak)
        self._add("saving", self.saving, peak)
        if self.run.grid is not None:
            times = len(self.run.grid.rates) * self.run.grid.share
            parts = [part for part in self.parts if part.name in ("training", "evaluating", "saving")]
            self._add(CHOOSING, times * sum(part.seconds for part in parts), max(part.memory_bytes for part in parts))

    def _judge(self, folder: Path) -> None:
        """A second model, from what was saved, the nearest neighbours, and the pages."""
        test, counts = self.pictures["test"], self.counts
        with measured(self.usage) as judging:
            checkpoint = checkpoint_of(self.probe, self.source, self.trainer.parts.objective.backbone)
            weights = {name: value.detach().cpu().clone() for name, value in checkpoint.weights.items()}
            predictor = Classifier(replace(checkpoint, weights=weights))
            found = outcome(predictor, _as_many(test, min(self.quick, self.test_count)))
        self.missing += 4 * (self.whole.parameters - self.tried.parameters)
        images = sum(counts.values()) - counts["train"] + min(TRAIN_SAMPLE, counts["train"])
        self._add("judging", images * self.image_seconds, judging.peak)
        self._search()
        with measured(self.usage) as drawing:
            self._draw(folder, predictor, found)
        self._add("reporting", drawing.seconds, drawing.peak)

    def _search(self) -> None:
        """Nearest neighbours, on a sample where there are many pictures."""
        train, val, test = self.pictures["train"], self._judged, self.pictures["test"]
        cached = all(split.cache for split in (train, val, test))
        height, width = (min(SIDE, side) for side in self.run.preprocessing.image_size)
        row = height * width * self.run.preprocessing.channels
        queries = [min(len(split.dataset), 500 if cached else 100) for split in (val, test)]
        references = min(
            len(train.dataset), max(100, int(NEIGHBOUR_PRODUCTS / (row * sum(queries)))) if cached else 300
        )
        with measured(self.usage) as flattening:
            pixels(_first(test, queries[1]))
        with measured(self.usage) as searching:
            baseline = nearest_pixels(_first(train, references), _first(val, queries[0]), _first(test, queries[1]))
        if references < self.counts["train"] or queries[1] < self.test_count:
            sample = f"rough, from {queries[1]:,} of {self.test_count:,} test pictures: "
            baseline = replace(baseline, how=sample + baseline.how)
        self.neighbours = baseline
        image = flattening.seconds / queries[1]
        search = max(0.0, searching.seconds - image * (references + sum(queries)))
        asked = self.val_count + self.test_count
        pairs = asked * self.counts["train"] / (sum(queries) * references)
        rows = self.counts["train"] - references + self.test_count - queries[1]
        seconds = image * (asked + self.counts["train"]) + search * pairs
        self._add("nearest neighbours", seconds, searching.peak + rows * row)

    @property
    def _judged(self) -> Pictures:
        """The pictures that choose; where val has joined train, those of test stand for them, to be timed."""
        return self.pictures.get("val", self.pictures["test"])

    @property
    def val_count(self) -> int:
        """How many choose: of a run whose val has joined train, only in its trials."""
        return len(self.source.splits["val"]) if "val" in self.source.splits else len(self.source.chosen_on)

    @property
    def test_count(self) -> int:
        return len(self.source.split("test"))

    def _draw(self, folder: Path, predictor: Classifier, found: Outcome) -> None:
        """The pages and plots of a run that has as many lines in its log, in memory."""
        predictions = found.predictions()
        tiles = gallery(Shown(predictor.module, predictor.device, self.pictures), predictions, [], [])
        steps = range(LOG_EVERY, self.steps + 1, LOG_EVERY)
        records: list[dict[str, Any]] = [
            {"step": s, "epoch": s, "train/loss": 1.0, "train/top1": 0.5, "lr": 0.1} for s in steps
        ]
        records += [
            {"step": s, "epoch": s, "val/loss": 1.0, "val/top1": 0.5} for s in range(1, self.run.training.evaluations)
        ]
        data = {
            "classes": list(self.source.classes),
            "counts": self.source.counts(),
            "multi_label": self.source.multi_label,
        }
        config = {"run": self.run.to_json(), "model": self.run.model.words}
        story = Story(
            folder, config=config, data=data, summary=found.summary(), records=tuple(records),
            predictions=predictions, gallery=tuple(tiles),
        )  # fmt: skip
        run_page(story)
        list(drawn(story))


def probe_of(run: Run, room: int | None) -> Run:
    """The run, where its steps are short and fit; else with fewer layers, and then with fewer images."""
    speed = products_a_second(run.training.precision)

    def fits(candidate: Run) -> bool:
        counted = cost(candidate.model)
        seconds = 3 * counted.flops * candidate.training.batch_size / speed
        needed = 16 * counted.parameters + counted.activation_bytes * in_memory(candidate)
        return seconds <= STEP_SECONDS and (room is None or needed < room / 2)

    probe = run
    while (shorter := probe.model.shortened()) != probe.model and not fits(probe):
        probe = replace(probe, model=shorter, weights=None)
    while not fits(probe) and probe.training.batch_size > 1:
        probe = replace(probe, training=replace(probe.training, batch_size=probe.training.batch_size // 2))
    return probe


def _as_many(pictures: Pictures, count: int) -> Pictures:
    """`count` pictures, repeated where there are fewer."""
    return pictures.subset(np.resize(np.arange(len(pictures.dataset)), count))


def _first(pictures: Pictures, count: int) -> Pictures:
    """`count` pictures spread evenly."""
    return pictures.subset(np.unique(np.linspace(0, len(pictures.dataset) - 1, count).astype(np.int64)))


def _buffers(optimizers: list[torch.optim.Optimizer]) -> int:
    """Bytes of momentum and the like."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return _bytes(value for state in states for value in state.values() if isinstance(value, torch.Tensor))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
