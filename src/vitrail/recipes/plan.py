"""What a run would be and cost, before anything costs time: counted, and measured on a few real steps; nothing is written."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from vitrail.data.batches import Pictures, StepBatches
from vitrail.data.sources import Source, most_common
from vitrail.errors import DataError
from vitrail.model.sizes import cost
from vitrail.recipes.execute import Machine, initial_model
from vitrail.recipes.run import Run

STEPS = 5


def facts(source: Source, run: Run, machine: Machine) -> dict[str, Any]:
    """Everything that `--plan` shows, as plain data."""
    counted = cost(run.model)
    train = source.split("train")
    index, count = most_common(train)
    seconds = seconds_per_step(source, run, machine)
    steps = run.training.steps(len(train))
    return {
        "data": source.name,
        "classes": len(source.classes),
        "images": {name: len(split) for name, split in source.splits.items()},
        "origin": dict(source.origin),
        "majority": {"class": source.classes[index], "share": count / len(train)},
        "recipe": run.recipe,
        "why": list(run.why),
        "parameters": counted.parameters,
        "tokens": counted.tokens,
        "flops_per_image": counted.flops,
        "activation_bytes": counted.activation_bytes * (run.training.micro_batch or run.training.batch_size),
        "steps": steps,
        "seconds_per_step": seconds,
        "training_seconds": steps * seconds,
        "run": run.to_json(),
    }


def seconds_per_step(source: Source, run: Run, machine: Machine) -> float:
    """Median time of real steps on the first images of the training split; the first two warm up.

    Raises:
        DataError: none of the first images can be read.
    """
    torch.set_num_threads(machine.threads)
    size = run.training.batch_size
    sample = source.split("train").subset(range(min(size * 2, len(source.split("train")))))
    pictures = Pictures(sample, run.preprocessing).check().without_bad()
    if not len(pictures.dataset):
        raise DataError("VT019", "none of the first training pictures can be read", "pictures that Pillow can decode")
    device = machine.torch_device
    small = replace(run, weights=None)  # random weights cost the same, and need not be read
    objective = run.objective.build(initial_model(small, source).to(device), run.preprocessing)
    optimizers = run.optimizer.build(objective.backbone)
    batches = StepBatches(pictures, run.augmentation.transforms, run.training.seed, size)
    times = []
    for step in range(STEPS + 2):
        start = time.perf_counter()
        batch = batches[step]
        part = run.training.micro_batch or size
        for at in range(0, size, part):
            with torch.autocast(
                torch.device(device).type, torch.bfloat16, enabled=run.training.precision == "bfloat16"
            ):
                piece = batch.part(at, at + part)
                piece = replace(piece, views=tuple(v.to(device) for v in piece.views), labels=piece.labels.to(device),
                                weights=piece.weights.to(device))  # fmt: skip
                loss = objective(piece).loss
            (loss / size).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), run.training.clip or float("inf"))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[STEPS // 2]
