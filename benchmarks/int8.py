"""int8 beside float32 and bfloat16: what it costs in accuracy on pictures that chose nothing, and how fast it is.

    python benchmarks/int8.py accuracy RUN [RUN ...] [--max-drop 0.5] [--photos FOLDER]
    python benchmarks/int8.py speed [--model ViT-B/16] [--smoothing 0.95] [--kept LAYER,LAYER] [--rounds 5]

`accuracy` calibrates on pictures of the run's train split, chooses the layers on half of val, and reports on all of test:
top-1 with n and its interval, pictures lost and won against float32 with McNemar's p, and how near logits and features are
(those of photographs too). `speed` builds a network of random weights with the layers and the smoothing that a trained one
chose, and takes turns with timm's eager float32 and with NNCF's int8 as it comes, on two threads.
Needs openvino and nncf; `speed` needs timm (--no-deps).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vitrail.commands.calibration import calibrated
from vitrail.commands.evaluation import source_of
from vitrail.commands.request import positions
from vitrail.deployment import graph, quantisation
from vitrail.deployment.export import Wanted
from vitrail.deployment.loading import load_classifier
from vitrail.deployment.sensitivity import HeldOut, Judge
from vitrail.images import read_picture
from vitrail.statistics import mcnemar, p_text, wilson_interval

BATCHES = (1, 8)
MOST = 10_000  # pictures of test


def accuracy(runs: list[Path], budget: float, photos: Path | None) -> None:
    for run in runs:
        classifier = load_classifier(run)
        source = source_of(run, None, True)
        began = time.perf_counter()
        _, quantise = calibrated(classifier, source, Wanted("openvino", "int8", max_drop=budget))
        model = graph.openvino_model(classifier)
        found = quantise(model.clone())
        seconds = time.perf_counter() - began
        full = found.mixture.model(())
        test = source.split("test")
        chosen = np.unique(np.linspace(0, len(test) - 1, min(MOST, len(test))).astype(int))
        prepare, channels = classifier.preprocessing, classifier.preprocessing.channels
        images = np.stack([prepare(test.read(int(index), channels)) for index in chosen])
        targets = np.zeros((len(images), len(classifier.classes)), dtype=np.float32)
        targets[:, positions(source, classifier)] = test.targets[chosen]
        print(f"\n{run.name}: {classifier.checkpoint.config.words}; {seconds:.0f} s to calibrate, measure and choose")
        kept = ", ".join(found.kept) or "none"
        print(f"{found.mixture.words}; spared: {kept} of {len(found.rows)} layers; tried {found.tried}")
        print(f"on the pictures that chose: {found.drop.words()}")
        forms = {
            "float32": (model, True),
            "bfloat16": (model, False),
            "all int8": (full, False),
            "mix": (found.model, False),
        }
        reference = quantisation.compiled(model, exact=True)(images)
        judge = Judge(HeldOut(images, targets), reference)
        print(
            f"{'':10} {'top-1 on test (95 % CI)':>30} {'lost':>5} {'won':>5} {'p':>9} {'same':>7}  logits: mean cosine, largest"
        )
        for name, (form, exact) in forms.items():
            logits = quantisation.compiled(form, exact)
            drop = judge.drop(logits)
            hits = drop.hits - drop.lost + drop.won
            low, high = wilson_interval(hits, drop.n)
            near = closeness(logits(images), reference)
            print(
                f"{name:10} {100 * hits / drop.n:7.2f} % ({100 * low:.2f}-{100 * high:.2f}, n = {drop.n})".ljust(42)
                + f"{drop.lost:>5} {drop.won:>5} {p_text(mcnemar(drop.lost, drop.won), ''):>9}"
                f" {100 * drop.agreement:6.2f} %  {near}"
            )
        if photos is not None:
            pictures = np.stack([prepare(read_picture(path, channels)) for path in sorted(photos.iterdir())])
            print(
                f"{len(pictures)} photographs: features, then logits: mean cosine, smallest cosine, largest difference"
            )
            for name, (form, exact) in forms.items():
                pairs = [
                    closeness(of(form, exact)(pictures), of(model, True)(pictures))
                    for of in (features(model), quantisation.compiled)
                ]
                print(f"{name:10} {pairs[0]}   {pairs[1]}")
        print("layer, change of logits when it alone is int8 (share of their spread), same first class")
        for row in found.rows:
            print(f"  {row.layer:<34} {100 * row.error**0.5:7.2f} % {100 * row.agreement:6.1f} %")


def closeness(values: np.ndarray, reference: np.ndarray) -> str:
    """Mean and smallest cosine of rows, and the largest difference as a share of the largest value."""
    cosine = (values * reference).sum(axis=1) / np.linalg.norm(values, axis=1) / np.linalg.norm(reference, axis=1)
    return f"{cosine.mean():.5f} {cosine.min():.4f} {np.abs(values - reference).max() / np.abs(reference).max():.3f}"


def features(model: Any) -> Any:
    """What the head reads, of any form of the model."""
    head = next(node for node in model.get_ops() if node.get_friendly_name().startswith("head"))
    name = head.input_value(0).get_node().get_friendly_name()

    def of(form: Any, exact: bool) -> Any:
        copy = form.clone()
        node = next(node for node in copy.get_ops() if node.get_friendly_name() == name)
        copy.add_outputs([node.output(0)])[0].get_tensor().set_names({"features"})
        return quantisation.compiled(copy, exact, "features")

    return of


def speed(model: str, smoothing: float | None, kept: list[str], rounds: int) -> None:
    import nncf
    import openvino
    import torch

    from peers import Shape, timm_model
    from vitrail.checkpoints.checkpoint import Checkpoint
    from vitrail.deployment.classifier import Classifier
    from vitrail.deployment.engine_openvino import open_model
    from vitrail.deployment.engines import Setting
    from vitrail.model.sizes import named
    from vitrail.preprocessing import Preprocessing

    torch.manual_seed(0)
    torch.set_num_threads(2)
    config = named(model, classes=1000)
    network = config.build()
    names = tuple(str(number) for number in range(1000))
    classifier = Classifier(Checkpoint(config, network.state_dict(), Preprocessing(), names))
    images = {
        batch: np.random.default_rng(0).integers(0, 256, (batch, 3, 224, 224), dtype=np.uint8) for batch in (1, 8)
    }
    plain = graph.openvino_model(classifier)
    form = quantisation.Int8(plain.clone(), images[8][:2], smoothing)
    if unknown := set(kept) - set(form.layers):
        raise SystemExit(f"--kept: {model} has no layers {', '.join(sorted(unknown))}")
    ours = form.model(kept)
    with quantisation.quiet():
        theirs = nncf.quantize(plain.clone(), nncf.Dataset([images[8][:1], images[8][1:2]]), subset_size=2,
                               model_type=nncf.ModelType.TRANSFORMER)  # fmt: skip
    shape = Shape(config.size.dim, config.size.depth, config.size.heads, 16, 224, 1000)
    peer = timm_model(shape).eval()
    tensors = {batch: torch.from_numpy(array).float() / 127.5 - 1 for batch, array in images.items()}

    def timm(batch: int) -> None:
        with torch.inference_mode():
            peer(tensors[batch])

    def used_plainly(form: Any, hint: str) -> Any:
        compiled = openvino.Core().compile_model(
            form, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"}
        )
        return lambda batch: compiled(images[batch])

    def vitrail(form: Any, precision: str, streams: int) -> Any:
        setting = Setting("auto", 2, streams, "throughput")
        session = open_model(form.clone(), precision, (224, 224), setting)
        return lambda batch: session.run(images[batch])

    contenders = {
        "timm eager float32": timm,
        "OpenVINO float32": used_plainly(plain, "f32"), "OpenVINO bfloat16": used_plainly(plain, "bf16"),
        "NNCF int8 + float32": used_plainly(theirs, "f32"), "NNCF int8 + bfloat16": used_plainly(theirs, "bf16"),
        "Vitrail int8, one stream": vitrail(ours, "int8", 1), "Vitrail int8, two streams": vitrail(ours, "int8", 2),
    }  # fmt: skip
    turns = taken(contenders, rounds)
    for batch in images:
        base = median(turns["timm eager float32", batch])
        for name in contenders:
            rate = median(turns[name, batch])
            best = max(turns[name, batch])
            print(f"{model} batch {batch}  {name:26} {rate:7.2f} images/s {rate / base:5.2f} x timm  best {best:7.2f}")


def taken(contenders: dict[str, Any], rounds: int) -> dict[tuple[str, int], list[float]]:
    """Images a second of every turn."""
    turns: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in contenders for batch in BATCHES}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            for batch in BATCHES:
                call(batch)
                count = 4 if batch == 1 else 2
                began = time.perf_counter()
                for _ in range(count):
                    call(batch)
                if turn:  # the first warms up
                    turns[name, batch].append(batch * count / (time.perf_counter() - began))
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    first, second = verbs.add_parser("accuracy"), verbs.add_parser("speed")
    first.add_argument("runs", nargs="+", type=Path)
    first.add_argument("--max-drop", type=float, default=0.5)
    first.add_argument("--photos", type=Path)
    second.add_argument("--model", default="ViT-B/16")
    second.add_argument("--smoothing", type=float)
    second.add_argument("--kept", default="")
    second.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    if asked.verb == "accuracy":
        accuracy(asked.runs, asked.max_drop, asked.photos)
    else:
        speed(asked.model, asked.smoothing, [name for name in asked.kept.split(",") if name], asked.rounds)


if __name__ == "__main__":
    main()
