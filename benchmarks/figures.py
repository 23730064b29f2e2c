"""The figures of docs/gallery/figures.md: what `vitrail reproduce` draws of real models, and what it prints.

    python benchmarks/figures.py --weights ../shared/weights/dinov2-vits14 --runs runs --out docs/gallery

`--weights` is a trained ViT without classes, looked at with the photographs that scikit-image brings; `--runs` is a folder with
runs on Fashion-MNIST, of a ViT (`vit`), a hybrid (`hybrid`) and a ResNet (`resnet`); what is not there is left out. What is
larger than 150 KB is saved with 256 colours.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import skimage.data
from PIL import Image

LARGEST, NARROW = 150_000, 1040  # bytes of a drawing that stays as it is; pixels of a sheet of photographs
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "clock", "coffee", "coins", "hubble_deep_field", "rocket")


def photographs(folder: Path) -> Path:
    folder.mkdir()
    for name in PHOTOGRAPHS:
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    return folder


def commands(weights: Path | None, runs: Path | None, photos: Path) -> Iterator[tuple[str, list[str]]]:
    """(what the drawing is called here, what is typed)."""
    if weights:
        model = ["--model", str(weights)]
        yield "vits14-figure-6", ["figure-6", *model, "--data", str(photos)]
        yield "vits14-figure-7", ["figure-7", *model, "--data", str(photos)]
        yield "vits14-token-norms", ["token-norms", *model, "--image-size", "518", "--data", str(photos)]
        yield (
            "vits14-attention-heads",
            ["attention-heads", *model, "--image-size", "518", "--data", str(photos / "astronaut.png")],
        )
        yield "vits14-cka", ["cka", *model, "--data", "fashion-mini", "--image-size", "112"]
    known = {
        name: str(runs / name) for name in ("vit", "hybrid", "resnet") if runs and (runs / name / "data.json").is_file()
    }
    both = [word for name in ("vit", "hybrid") if name in known for word in ("--model", known[name])]
    if "vit" in known:
        for name in ("figure-6", "figure-7", "logit-lens", "head-ablation"):
            yield f"fashion-{name}", [name, "--model", known["vit"]]
        yield "fashion-figure-10", ["figure-10", *both]
        yield "fashion-figure-11", ["figure-11", *both]
    if {"vit", "resnet"} <= set(known):
        yield "fashion-cka", ["cka", "--model", known["vit"], "--model", known["resnet"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--only", default="", help="those whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for name, words in commands(given.weights, given.runs, photographs(Path(place) / "photographs")):
            if given.only not in name:
                continue
            target = Path(place) / name
            typed = ["reproduce", *words, "--out", str(target)]
            print(f"$ vitrail {shlex.join(typed)}".replace(f"{place}/", ""), flush=True)
            done = subprocess.run([sys.executable, "-m", "vitrail", *typed], capture_output=True, text=True)
            print((done.stdout or done.stderr).replace(f"{place}/", ""), flush=True)
            if done.returncode == 0:
                kept = compact(Image.open(target / f"{words[0]}.png").convert("RGB"), words[0] == "figure-6")
                (given.out / f"{name}.png").write_bytes(kept)
                print(f"{given.out / name}.png  {len(kept) / 1024:.0f} KB\n", flush=True)


def compact(drawn: Image.Image, photographs: bool) -> bytes:
    """A PNG; a large one of 256 colours, and a sheet of photographs smaller too, its colours mixed of dots."""
    if photographs and drawn.width > NARROW:
        drawn = drawn.resize((NARROW, round(drawn.height * NARROW / drawn.width)), Image.Resampling.LANCZOS)
    whole = _file(drawn)
    if len(whole) <= LARGEST:
        return whole
    palette = drawn.quantize(256)
    return _file(drawn.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) if photographs else palette)


def _file(picture: Image.Image) -> bytes:
    content = BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


if __name__ == "__main__":
    main()
