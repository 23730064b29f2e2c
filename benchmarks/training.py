"""Steps of training beside timm's ViT in a plain loop and Hugging Face's in its Trainer, and a race to 90 %.

    python benchmarks/training.py steps ViT-Ti/4 --rounds 5       # 32 px, batch 128, from PNG files
    python benchmarks/training.py steps ViT-S/16 --rounds 5       # 224 px, batch 16, from JPEG files of 500x375
    python benchmarks/training.py profile ViT-S/16 --threads 1
    python benchmarks/training.py race --seeds 0,1,2 --threads 1                     # see race.py
    python benchmarks/training.py steps ViT-B/16 --device cuda --batch 128     # and model-FLOPs utilisation; not run so far

Each contender is a process of its own with the same number of threads, which waits while the others take their turn: a
few steps each, round after round. A step is reading, decoding (Vitrail decodes a picture once and keeps it, as it does
for its users; the others decode at every step), augmenting (crop and mirror), forward, backward, clip and AdamW; `bare`
is Vitrail's step on a batch that is in memory already. The pictures are drawn on the spot from Debian's openclipart-png
where it is there, and else from noise. Needs timm (--no-deps), transformers and accelerate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from peers import PEERS, Folder, Shape
from vitrail.data.delivery import training_batches
from vitrail.memory import Usage, freed_kept
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine, checked_pictures, trainer_of
from vitrail.training.loop import Trainer
from vitrail.training.products import quick_products

CLIPART = Path("/usr/share/openclipart/png")
# Name -> shape, images in a step, steps in a turn, size and kind of the files.
SETTINGS: dict[str, tuple[Shape, int, int, tuple[int, int], str]] = {
    "ViT-Ti/4": (Shape(192, 12, 3, 4, 32, 10), 128, 2, (32, 32), "png"),
    "ViT-S/16": (Shape(384, 12, 6, 16, 224, 10), 16, 2, (500, 375), "jpg"),
    "ViT-B/16": (Shape(768, 12, 12, 16, 224, 10), 128, 10, (500, 375), "jpg"),
    "ViT-L/16": (Shape(1024, 24, 16, 16, 224, 10), 64, 10, (500, 375), "jpg"),
}
PRECISIONS = ("float32", "bfloat16")
COUNT = 512


def write_pictures(folder: Path, size: tuple[int, int], kind: str, classes: int) -> None:
    """COUNT files of one size in folders of classes: clip art, where it is there, on soft noise."""
    art = sorted(CLIPART.rglob("*.png"), key=lambda path: path.stat().st_size)[:COUNT] if CLIPART.is_dir() else []
    random = np.random.default_rng(0)
    for number in range(COUNT):
        image = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        if number < len(art):
            with Image.open(art[number]) as opened:
                drawing = opened.convert("RGBA").resize((size[0] // 2, size[1] // 2), Image.Resampling.LANCZOS)
            image.paste(drawing, (size[0] // 4, size[1] // 4), drawing)
        place = folder / str(number % classes)
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:04d}.{kind}", quality=90)


def settings_of(shape: Shape, batch: int, precision: str) -> dict[str, str]:
    """Vitrail's run in keys: the peers' architecture, and AdamW at the same rate and clip."""
    size = {"dim": shape.dim, "depth": shape.depth, "heads": shape.heads, "hidden": shape.hidden or 4 * shape.dim}
    return {
        "model.size": json.dumps(size),
        "model.tokenizer.patch": f"[{shape.patch},{shape.patch}]", "model.block.mlp.gelu": "erf",
        "model.pool": "class-token", "training.batch_size": str(batch), "training.precision": precision,
    }  # fmt: skip


def our_trainer(data: Path, shape: Shape, batch: int, precision: str, device: str, place: Path) -> Trainer:
    more = {
        "optimizer": "adamw", "optimizer.weight_decay": "0.05", "training.epochs": "1000", "training.clip": "1.0",
        "augmentation.transforms": '[{"type":"random-resized-crop"},{"type":"flip"}]',
    }  # fmt: skip
    asked = Asked(
        "from-scratch", "ViT-Ti/16", None, (shape.side, shape.side), {**settings_of(shape, batch, precision), **more}
    )
    usage = Usage.begin()
    source, run = plan_run(str(data), asked)
    pictures = checked_pictures(source, run)
    machine = Machine(device, threads=torch.get_num_threads())
    return trainer_of(run, source, pictures, machine, place, True, usage)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# What a contender's process says and hears: a line of JSON each, and an empty line for each turn.


def heard() -> str:
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return line.strip()


def told(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def synchronised(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def turns(step: Iterator[Any], count: int, warm: int, device: str, size: int) -> None:
    """Takes `warm` steps, says that it is ready, and then `count` steps for every line."""
    for _ in range(warm):
        next(step)
    synchronised(device)
    told(parameters=size)
    while heard() != "end":
        start = time.perf_counter()
        for _ in range(count):
            next(step)
        told(seconds=(synchronised(device) - start) / count)


def our_steps(arguments: argparse.Namespace, shape: Shape, count: int, bare: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch, freed_kept():
        trainer = our_trainer(
            arguments.data, shape, arguments.batch, arguments.precision, arguments.device, Path(scratch)
        )
        size = parameters(trainer.parts.objective.backbone)

        def looped() -> Iterator[None]:
            for batch in training_batches(trainer.parts.batches, 0, trainer.total, arguments.workers):
                trainer._update(batch)
                yield

        turns(bare_steps(trainer, arguments) if bare else looped(), count, 2, arguments.device, size)


def bare_steps(trainer: Trainer, arguments: argparse.Namespace) -> Iterator[None]:
    """The same model, the same ways, on one batch in memory."""
    model, (optimizer,) = trainer.parts.objective.backbone.train(), trainer.parts.optimizers
    batch = trainer.parts.batches[0]
    images, labels = (part.to(arguments.device) for part in (batch.views[0].float() / 127.5 - 1, batch.labels))
    half = arguments.precision == "bfloat16"
    while True:
        with quick_products(arguments.device):
            with torch.autocast(arguments.device, torch.bfloat16, enabled=half):
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def peer_steps(arguments: argparse.Namespace, shape: Shape, count: int, name: str) -> None:
    """Both loops call us after each step; between turns we do not answer."""
    warm, began = 2, 0.0

    def after(step: int, model: torch.nn.Module) -> bool:
        nonlocal began
        if step < warm or (step - warm) % count:
            return True
        now = synchronised(arguments.device)
        told(parameters=parameters(model)) if step == warm else told(seconds=(now - began) / count)
        line = heard()
        began = time.perf_counter()
        return line != "end"

    data, half = Folder(arguments.data, shape), arguments.precision == "bfloat16"
    PEERS[name](shape, data, arguments.batch, 1e-3, 100_000, half, arguments.device, after)


def contender(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape, _, count, _, _ = SETTINGS[arguments.model]
    if arguments.name in PEERS:
        peer_steps(arguments, shape, count, arguments.name)
    else:
        our_steps(arguments, shape, count, bare=arguments.name == "bare")


class Contender:
    """A process that trains when it is told to."""

    def __init__(self, name: str, precision: str, arguments: argparse.Namespace, data: Path) -> None:
        command = [
            sys.executable, __file__, "contender", arguments.model, "--name", name, "--precision", precision,
            "--data", str(data), "--batch", str(arguments.batch), "--threads", str(arguments.threads),
            "--device", arguments.device, "--workers", str(arguments.workers),
        ]  # fmt: skip
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(arguments.threads)}
        self.title = f"{name} {precision}"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        began = time.monotonic()
        self.parameters = self._answer()["parameters"]
        print(f"{self.title}: ready after {time.monotonic() - began:.0f} s", file=sys.stderr)
        self.seconds: list[float] = []

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.title} ended: {self.process.wait()}")

    def say(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def turn(self) -> None:
        self.say("go")
        self.seconds.append(self._answer()["seconds"])

    def end(self) -> None:
        self.say("end")
        self.process.wait()


def steps(arguments: argparse.Namespace) -> None:
    shape, batch, _, size, kind = SETTINGS[arguments.model]
    arguments.batch, began = arguments.batch or batch, time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        write_pictures(Path(scratch), size, arguments.kind or kind, shape.classes)
        precisions = PRECISIONS[1:] if arguments.device == "cuda" else PRECISIONS
        pairs = [(name, precision) for precision in precisions for name in ("vitrail", "bare", *PEERS)]
        contenders = [Contender(name, precision, arguments, Path(scratch)) for name, precision in pairs]
        assert len({one.parameters for one in contenders}) == 1, [(one.title, one.parameters) for one in contenders]
        if arguments.wait:
            input("all are ready; Enter begins")
            began = time.monotonic()
        for round_ in range(arguments.rounds):
            if time.monotonic() - began > arguments.seconds:
                break
            for one in contenders if round_ % 2 else contenders[::-1]:
                one.turn()
        print(f"{len(contenders[0].seconds)} turns each, {time.monotonic() - began:.0f} s", file=sys.stderr)
        for one in contenders:
            one.end()
    print(f"{arguments.model}, {contenders[0].parameters:,} parameters, {shape.side} px, batch {arguments.batch}, "
          f"{arguments.threads} threads, {len(contenders[0].seconds)} rounds, {arguments.device}")  # fmt: skip
    table(contenders, arguments, shape)


def table(contenders: list[Contender], arguments: argparse.Namespace, shape: Shape) -> None:
    print("| | ms a step | images a second | of vitrail's time |" + (" MFU |" if arguments.device == "cuda" else ""))
    print("|---|---|---|---|" + ("---|" if arguments.device == "cuda" else ""))
    times = {one.title: median(one.seconds) for one in contenders}
    peak = card_peak() if arguments.device == "cuda" else None
    for one in contenders:
        own = times[one.title.replace(one.title.split()[0], "vitrail")]
        used = "" if peak is None else f" {flops(shape) * arguments.batch / times[one.title] / peak:.0%} |"
        print(f"| {one.title} | {1000 * times[one.title]:.0f} (best {1000 * min(one.seconds):.0f}) "
              f"| {arguments.batch / times[one.title]:.1f} | {times[one.title] / own:.2f} |{used}")  # fmt: skip
    for precision in PRECISIONS if arguments.device == "cpu" else PRECISIONS[1:]:
        best = min(times[f"{name} {precision}"] for name in PEERS)
        own, bare = times[f"vitrail {precision}"], times[f"bare {precision}"]
        print(
            f"{precision}: the better peer takes {best / own:.2f} of vitrail's time; "
            f"the loop keeps {bare / own:.1%} of the bare step"
        )
    best = min(times[title] for title in times if title.split()[0] in PEERS)
    own = min(times[title] for title in times if title.startswith("vitrail"))
    print(f"best of both: {best / own:.2f}")


PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn::"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "Mixture", "aten::_scaled_dot"),
    "GELU": ("aten::gelu",), "LayerNorm": ("aten::native_layer_norm",),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::_to_copy"), "sums and additions": ("aten::sum", "aten::add"),
    "optimizer and clip": ("aten::_fused_adamw", "aten::_foreach", "aten::linalg_vector_norm", "aten::mul_"),
}  # fmt: skip


def profile(arguments: argparse.Namespace) -> None:
    """Where the time of a bare step of ours goes, by torch.profiler."""
    torch.set_num_threads(arguments.threads)
    shape, batch, _, size, kind = SETTINGS[arguments.model]
    arguments.batch = arguments.batch or batch
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        write_pictures(place / "data", size, kind, shape.classes)
        trainer = our_trainer(place / "data", shape, arguments.batch, arguments.precision, "cpu", place)
        step = bare_steps(trainer, arguments)
        next(step), next(step)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            next(step)
            next(step)
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    part_of = {key: next((part for part, keys in PARTS.items() if key.startswith(keys)), "") for key in times}
    shares = {part: sum(time for key, time in times.items() if part_of[key] == part) for part in PARTS}
    total = sum(times.values())
    for part, share in {**shares, "the rest": total - sum(shares.values())}.items():
        print(f"| {part} | {share / total:.0%} |")


def flops(shape: Shape) -> float:
    """Of one image, forward and backward: three times two for each multiply-add of the forward pass."""
    tokens, dim, hidden = (shape.side // shape.patch) ** 2 + 1, shape.dim, shape.hidden or 4 * shape.dim
    layer = tokens * (4 * dim**2 + 2 * dim * hidden) + 2 * tokens**2 * dim
    return 6.0 * (shape.depth * layer + (tokens - 1) * shape.patch**2 * shape.channels * dim)


def card_peak() -> float:
    """Operations a second of a large bfloat16 product on this card."""
    values = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(20):
        start = synchronised("cuda")
        values @ values
        times.append(synchronised("cuda") - start)
    rate = 2 * 8192**3 / median(times[5:])
    print(f"{torch.cuda.get_device_name()}: {rate / 1e12:.0f} TFLOP/s in a product of 8192^3")
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("steps", "profile", "race", "contender"))
    parser.add_argument("model", nargs="?", choices=SETTINGS, default="ViT-Ti/4")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--kind", choices=("png", "jpg"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600.0, help="begin no round after so long")
    parser.add_argument("--wait", action="store_true", help="for Enter before the first round, until nothing else runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0])
    parser.add_argument(
        "--rates", type=lambda text: [float(part) for part in text.split(",")], default=[5e-4, 1e-3, 2e-3]
    )
    parser.add_argument("--racers", type=lambda text: text.split(","), default=["vitrail", *PEERS])
    parser.add_argument(
        "--limit", type=float, default=600.0, help="processor seconds of peers that race without Vitrail"
    )
    parser.add_argument("--name")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "steps":
        steps(arguments)
    elif arguments.what == "profile":
        profile(arguments)
    elif arguments.what == "contender":
        contender(arguments)
    else:
        from race import race

        race(arguments)


if __name__ == "__main__":
    main()
