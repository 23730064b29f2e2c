"""The kills of kill.py against Hugging Face's Trainer and Lightning Fabric: same network, pictures, instants.

    pip install "torch==2.13.0" "transformers>=5.23" accelerate lightning-fabric
    python benchmarks/faults/peers.py [--trials 50] [--seed 0] [--steps 60] [--programs vitrail;trainer;fabric;fabric-random]

Each program trains Vitrail's module of one layer, with dropout, from the same initial weights on the same 32 pictures,
which are mirrored at random, and saves every third step, as its documentation says: the Trainer with `save_steps`, two
checkpoints kept, and `resume_from_checkpoint=get_last_checkpoint(folder)`; Fabric with `fabric.save` to a new file for
each save and `fabric.load` of the file with the highest number, and the batches that were seen are read again and
dropped, as in Lightning's own LitGPT; in a fourth row the order has a generator of its own and the random state is
saved and restored by hand, which the documentation does not ask for. Each start is forked and killed as in kill.py.
Where a start fails by itself, a person would have to help: it counts, the newest state is removed, and the trial goes
on. Compared with the undisturbed run are weights and optimizer. Prints rows of a table; status 1 where Vitrail's own row
is not whole.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from kill import BATCH, MODEL, Setup, command, digests, ended, forked, new_folder, tiny, whole, workshop
from torch import Tensor, nn

from vitrail.data.batches import Pictures
from vitrail.model.backbone import build
from vitrail.recipes.asked import plan_run

EVERY = 3
SETUP = Setup(MODEL | {"optimizer": "adamw", "augmentation.transforms": '[{"type": "flip"}]'})


class Mirrored(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The training pictures, normalised; mirrored by the toss of a coin, as torchvision's transforms draw it."""

    def __init__(self) -> None:
        source, run = plan_run(str(workshop() / "data"), command(workshop() / "data", EVERY, SETUP))
        pictures = Pictures(source.split("train"), run.preprocessing)
        images = [torch.from_numpy(run.preprocessing(pictures[index])) for index in range(len(pictures.dataset))]
        self.images = run.preprocessing.normalise(torch.stack(images))
        self.labels = torch.from_numpy(pictures.dataset.targets.argmax(axis=1))
        self.model = build(run.model, run.training.seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index]
        return {"pixels": image.flip(-1) if torch.rand(()) < 0.5 else image, "labels": self.labels[index]}


class Judged(nn.Module):
    """The network as the Trainer wants it: its loss comes first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(out: Path, steps: int) -> None:
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    data = Mirrored()
    settings = TrainingArguments(
        str(out), per_device_train_batch_size=BATCH, max_steps=steps, save_steps=EVERY, save_total_limit=2, seed=0,
        learning_rate=1e-3, use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=EVERY,
        remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    last = get_last_checkpoint(str(out)) if out.is_dir() else None
    Trainer(Judged(data.model), settings, train_dataset=data).train(resume_from_checkpoint=last)


def fabric(out: Path, steps: int, keep_random: bool = False) -> None:
    from lightning_fabric import Fabric

    data = Mirrored()
    runner = Fabric(accelerator="cpu", devices=1)
    runner.launch()
    runner.seed_everything(0, verbose=False)
    model = Judged(data.model)
    model, optimizer = runner.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    order = torch.Generator().manual_seed(0) if keep_random else None  # else it hangs on all luck before it
    loader = runner.setup_dataloaders(
        torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, generator=order)
    )
    out.mkdir(exist_ok=True)
    state = {"model": model, "optimizer": optimizer, "step": 0}
    if keep_random:
        state["random"] = torch.get_rng_state()
    if saved := states(out):
        runner.load(saved[-1], state)
    seen, first = 0, int(state["step"])
    while seen < steps:
        for batch in loader:
            seen += 1
            if seen > steps:
                return
            if seen <= first:  # they were seen before the state was saved
                if seen == first and keep_random:
                    torch.set_rng_state(state["random"])
                continue
            optimizer.zero_grad()
            runner.backward(model(batch["pixels"], batch["labels"])["loss"])
            optimizer.step()
            if seen % EVERY == 0:
                state["step"] = seen
                if keep_random:
                    state["random"] = torch.get_rng_state()
                runner.save(out / f"step-{seen}.ckpt", state)
                for old in states(out)[:-2]:
                    old.unlink()


def vitrail(out: Path, steps: int) -> None:
    tiny(workshop() / "data", out, steps, 0, SETUP)


def states(out: Path) -> list[Path]:
    """What a start would go on from, the newest last."""
    places = [*out.glob("checkpoint-*"), *out.glob("step-*.ckpt")]
    return sorted(places, key=lambda place: int(place.stem.rsplit("-", 1)[1]))


def hashed(values: object) -> str:
    """SHA-256 of the bytes of all tensors in nested dictionaries and lists, with their places; of other things, as text."""
    found = hashlib.sha256()

    def add(place: str, part: object) -> None:
        if isinstance(part, Mapping):
            for key in sorted(part, key=str):
                add(f"{place}/{key}", part[key])
        elif isinstance(part, (list, tuple)):
            for number, inner in enumerate(part):
                add(f"{place}/{number}", inner)
        else:
            found.update(place.encode())
            found.update(part.contiguous().numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())

    add("", values)
    return found.hexdigest()


def outcome(name: str, out: Path) -> dict[str, str]:
    """Digests of how a run has ended."""
    if name == "vitrail":
        found = digests(out)
        return {key: found[f"{key} hash"] for key in ("weights", "optimizer")}
    last = states(out)[-1]
    if name == "trainer":
        from safetensors.torch import load_file

        return {
            "weights": hashed(load_file(last / "model.safetensors")),
            "optimizer": hashed(torch.load(last / "optimizer.pt")),
        }
    state = torch.load(last)
    return {"weights": hashed(state["model"]), "optimizer": hashed(state["optimizer"])}


PROGRAMS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "vitrail": ("Vitrail", vitrail),
    "trainer": ("Hugging Face Trainer, transformers {transformers}, accelerate {accelerate}", trainer),
    "fabric": ("Lightning Fabric {lightning-fabric}", fabric),
    "fabric-random": (
        "Lightning Fabric {lightning-fabric}, order and random state kept by hand",
        partial(fabric, keep_random=True),
    ),
}


def quietly(work: Callable[[Path, int], None], out: Path, steps: int) -> None:
    """Without what the programs print; the last error's end goes to a file beside the run."""
    said = os.open(out.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    work(out, steps)


def disturbed(name: str, out: Path, steps: int, length: float, luck: random.Random) -> tuple[int, Counter[str]]:
    """Kills and starts a run until it ends: number of kills, and the errors where a start failed by itself."""
    kills, failures, work = 0, Counter[str](), PROGRAMS[name][1]
    while status := ended(forked(partial(quietly, work, out, steps)), signal.SIGKILL, luck.uniform(0, length / 2)):
        if status == -signal.SIGKILL:
            kills += 1
            continue
        lines = out.with_suffix(".txt").read_text().strip().splitlines()
        failures[lines[-1].split(":")[0] if lines else "no message"] += 1
        for newest in states(out)[-1:]:  # what a person would do
            shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    return kills, failures


def row(name: str, trials: int, steps: int, luck: random.Random) -> tuple[str, bool]:
    words, work = PROGRAMS[name]
    for package in ("transformers", "accelerate", "lightning-fabric"):
        words = words.replace(f"{{{package}}}", version(package)) if f"{{{package}}}" in words else words
    first, again = new_folder(name), new_folder(name)
    whole(partial(quietly, work, new_folder("warm"), EVERY))
    length = whole(partial(quietly, work, first, steps))
    whole(partial(quietly, work, again, steps))
    expected = outcome(name, first)
    if outcome(name, again) != expected:
        raise SystemExit(f"{words}: two undisturbed runs differ")
    print(f"{words}: {steps} steps in {length:.1f} s", flush=True)
    kills, alone, same, failures, differs = 0, 0, 0, Counter[str](), Counter[str]()
    for number in range(trials):
        out = new_folder(f"{name}-killed")
        came, failed = disturbed(name, out, steps, length, luck)
        found = outcome(name, out)
        differing = [key for key in expected if found[key] != expected[key]]
        kills, failures, alone = kills + came, failures + failed, alone + (not failed)
        same, differs = same + (not differing), differs + Counter(differing)
        print(f"trial {number + 1:2d}, {name}: {came} kills, {dict(failed)}, differs: {differing}", flush=True)
    told = ", ".join(f"{key} ({count})" for key, count in differs.items()) or "nothing"
    errors = f"{failures.total()}" + (f" ({', '.join(failures)})" if failures else "")
    return (
        f"| {words} | {trials} | {alone}/{trials} | {same}/{trials} | {kills} | {errors} | {told} |",
        alone == same == trials,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--programs", default=";".join(PROGRAMS))
    asked = parser.parse_args(arguments)
    rows, good = [], True
    for name in asked.programs.split(";"):
        text, all_well = row(name, asked.trials, asked.steps, random.Random(asked.seed))
        rows.append(text)
        good = good and (name != "vitrail" or all_well)
    print("\n".join(rows))
    return 0 if good else 1


if __name__ == "__main__":
    for name in ("transformers", "lightning_fabric", "accelerate"):  # before the first fork
        __import__(name)
    from transformers import Trainer  # noqa: F401  loads its parts, which would cost every start a second

    sys.exit(main())
