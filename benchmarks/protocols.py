"""Protocols on frozen features: how long they take, and the logistic probe beside scikit-learn's solver.

    OMP_NUM_THREADS=2 python benchmarks/protocols.py few-shot            # ten seeds, 100,000 features of 768 dimensions
    OMP_NUM_THREADS=2 python benchmarks/protocols.py probes              # the same sweep of penalties by both
    OMP_NUM_THREADS=2 python benchmarks/protocols.py probes --features OUT/eval/features --data fashion-mini
    OMP_NUM_THREADS=2 python benchmarks/protocols.py neighbours

Features are drawn (class means, a decaying spectrum, squashed, one label in ten wrong) and lie in a float16 file that is
mapped into memory; with --features they are those that `vitrail eval --protocol ... --out OUT` kept. Seconds are wall clock;
memory is the peak of the process.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from vitrail.data.sources import open_source
from vitrail.evaluation.features import Features
from vitrail.evaluation.fewshot import FewShot
from vitrail.evaluation.least_squares import Whitening
from vitrail.evaluation.logistic import Regression
from vitrail.evaluation.neighbours import Neighbours
from vitrail.evaluation.probes import LogisticProbe


def made(count: int, dim: int, classes: int, folder: Path) -> Features:
    """Features that are hard enough to tell apart, in a float16 file."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, count)
    mixing = (random.normal(size=(dim, dim)) / np.sqrt(dim) * np.exp(-np.arange(dim) / (dim / 4))).astype(np.float32)
    means = random.normal(size=(classes, dim)).astype(np.float32) * 0.2
    values = np.lib.format.open_memmap(folder / "features.npy", "w+", np.dtype(np.float16), (count, dim))
    for start in range(0, count, 10_000):
        part = slice(start, min(start + 10_000, count))
        noise = random.normal(size=(part.stop - start, dim)).astype(np.float32)
        values[part] = np.tanh((means[labels[part]] + noise) @ mixing)
    values.flush()
    wrong = random.random(count) < 0.1
    labels = np.where(wrong, random.integers(0, classes, count), labels)
    return Features(
        np.lib.format.open_memmap(folder / "features.npy", "r"), labels, tuple(str(number) for number in range(classes))
    )


def kept(folder: Path, data: str) -> tuple[Features, Features, Features]:
    """Train, val and test of a folder of features, told apart by their numbers of rows."""
    source = open_source(data)
    tables = [np.lib.format.open_memmap(path, "r") for path in sorted(folder.glob("*.npy"))]
    found = []
    for name in ("train", "val", "test"):
        split = source.split(name)
        table = next(table for table in tables if len(table) == len(split))
        found.append(Features(table, split.targets.argmax(axis=1), source.classes))
    return found[0], found[1], found[2]


def few_shot(count: int, dim: int, classes: int, seeds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        features = made(count, dim, classes, Path(folder))
        train, test = features.subset(range(count // 2)), features.subset(range(count // 2, count))
        begun = time.perf_counter()
        record = FewShot(seeds=seeds).measure(train, None, test)
        took = time.perf_counter() - begun
    print(
        f"few-shot: {count:,} features of {dim}, {classes} classes, {seeds} seeds, {len(test):,} tested: {took:.1f} s, {memory()}"
    )
    for row in record["shots"]:
        print(f"  {row['shots']:>3} shots  {row.get('mean', float('nan')):.4f}")


def neighbours(count: int, dim: int, classes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        features = made(count, dim, classes, Path(folder))
        train, test = features.subset(range(count - 10_000)), features.subset(range(count - 10_000, count))
        begun = time.perf_counter()
        record = Neighbours().measure(train, None, test)
        took = time.perf_counter() - begun
    print(
        f"neighbours: {len(test):,} among {len(train):,} of {dim}: {took:.1f} s, top-1 {record['top1']:.4f}, {memory()}"
    )


def probes(train: Features, held: Features, test: Features, penalties: tuple[float, ...]) -> None:
    """One sweep: every penalty on train, judged on held, then fitted to both and judged on test."""
    print(f"{len(train):,} + {len(held):,} features of {train.dim}, {len(train.classes)} classes, {len(test):,} tested")
    begun = time.perf_counter()
    record = LogisticProbe(penalties).measure(train, held, test)
    ours = time.perf_counter() - begun
    print(
        f"  ours          {ours:6.2f} s  penalty {record['penalty']:g}  right {record['top1'] * len(test):.0f}  {memory()}"
    )
    begun = time.perf_counter()
    whitening = Whitening.of(train)
    inputs = [whitening(np.asarray(part.values)).astype(np.float32) for part in (train, held)]
    model, scores = LogisticRegression(warm_start=True, max_iter=1000), {}
    for penalty in sorted(penalties, reverse=True):
        model.C = 1 / (penalty * len(train))
        model.fit(inputs[0], train.labels)
        scores[penalty] = model.score(inputs[1], held.labels)
    best = max(scores, key=lambda penalty: (scores[penalty], penalty))
    whole = train.joined(held)
    whitening = Whitening.of(whole)
    last = LogisticRegression(C=1 / (best * len(whole)), max_iter=1000)
    last.fit(whitening(np.asarray(whole.values)).astype(np.float32), whole.labels)
    right = (last.predict(whitening(np.asarray(test.values)).astype(np.float32)) == test.labels).sum()
    theirs = time.perf_counter() - begun
    print(
        f"  scikit-learn  {theirs:6.2f} s  penalty {best:g}  right {right}  {memory()}  {theirs / ours:.1f} times ours"
    )
    largest = max(abs(row["top1"] - scores[row["penalty"]]) * len(held) for row in record["tried"])
    print(f"  largest difference on the held-out pictures over {len(penalties)} penalties: {largest:.0f}")
    losses(train, inputs[0], penalties[len(penalties) // 2])


def losses(train: Features, inputs: np.ndarray, penalty: float) -> None:
    """How near both come to the minimum of one penalty, in float64 by many passes."""
    regression, finer = Regression(train), Regression(train, tolerance=1e-7)
    theirs = LogisticRegression(C=1 / (penalty * len(train)), max_iter=1000).fit(inputs, train.labels)
    found = {
        "minimum": finer.minimum(penalty), "ours": regression.minimum(penalty),
        "scikit-learn": np.concatenate([theirs.coef_.T, theirs.intercept_[None]]).astype(np.float32),
    }  # fmt: skip
    print(f"  loss at {penalty:g}: " + ", ".join(f"{name} {finer.loss(w, penalty):.6f}" for name, w in found.items()))


def memory() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("few-shot", "probes", "neighbours"))
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--classes", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--features", type=Path, help="a folder of kept features, for probes")
    parser.add_argument("--data", default="fashion-mini", help="what they are of")
    arguments = parser.parse_args()
    if arguments.what == "few-shot":
        few_shot(arguments.count or 100_000, arguments.dim, arguments.classes or 1000, arguments.seeds)
    elif arguments.what == "neighbours":
        neighbours(arguments.count or 100_000, arguments.dim, arguments.classes or 100)
    elif arguments.features:
        probes(*kept(arguments.features, arguments.data), LogisticProbe().penalties)
    else:
        count = arguments.count or 30_000
        with tempfile.TemporaryDirectory() as folder:
            features = made(count, arguments.dim, arguments.classes or 20, Path(folder))
            cuts = [0, count * 2 // 3, count * 5 // 6, count]
            train, held, test = (features.subset(range(*pair)) for pair in pairwise(cuts))
            probes(train, held, test, LogisticProbe().penalties)


if __name__ == "__main__":
    main()
