"""What `vitrail data check` finds, misses and wrongly accuses; how fast it is, and how much memory it takes.

    python benchmarks/data_check.py sets planted speed memory --sheets FOLDER

sets: Debian's openclipart-png, the 10,000 test images of Fashion-MNIST, scikit-learn's digits; counts by kind.
planted: faults planted into 1,000 random clip art pictures; the share that is found, and clean pictures accused.
speed: 2,000 photographs of 500x375 px (pieces of scikit-image's, JPEG) and openclipart-png; images/s with two threads.
memory: peak resident size at 10,000 and 100,000 small JPEG files.
With --sheets, pictures of what was found are drawn there, to be looked at.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from planted import NEAR
from vitrail.data import fashion
from vitrail.data.check import Examiner, examine, read_all
from vitrail.data.sources import Dataset, Source, open_source
from vitrail.images import read_picture

CLIPART = Path("/usr/share/openclipart/png")
EACH = 40  # planted of every kind


def in_memory(name: str, images: np.ndarray, labels: np.ndarray) -> Source:
    """Grey images as a source with one split."""
    targets = np.eye(10, dtype=np.float32)[labels]
    ids = tuple(str(index) for index in range(len(images)))
    read = lambda index, channels: np.repeat(images[index][:, :, None], channels, axis=2)  # noqa: E731
    return Source(name, tuple(map(str, range(10))), {"train": Dataset(ids, targets, read)})


def sets(sheets: Path | None) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images * 255 / 16).round().astype(np.uint8)
    for source in (
        open_source(str(CLIPART)), in_memory("Fashion-MNIST test", *fashion.full()["test"]),
        in_memory("digits", grey, digits.target),
    ):  # fmt: skip
        examiner = Examiner(source)
        start = time.perf_counter()
        read_all(examiner)
        read = time.perf_counter() - start
        copies = examiner.copies()
        whole = time.perf_counter() - start
        print(
            f"\n{source.name}: {len(examiner.record):,} pictures, read in {read:.1f} s, compared in {whole - read:.1f} s"
        )
        for problem in examiner.examination().problems:
            print(f"| {problem.kind} | {problem.count:,} | {problem.title} |")
        near = near_groups(examiner, copies)
        sizes = sorted((len(group) for group in near), reverse=True)
        print(f"groups of nearly the same: {len(near)} with {sum(sizes)} pictures, the largest {sizes[:8]}")
        if sheets is not None and near:
            chosen = np.random.default_rng(0).permutation(len(near))[:40]
            draw(examiner, [near[index] for index in chosen], sheets / f"near-{Path(source.name).name}.png")


def near_groups(examiner: Examiner, copies: list) -> list:
    """One picture of each digest, where a group has several."""
    groups = []
    for group in copies:
        _, first = np.unique(examiner.record.prints.digests[group], return_index=True)
        groups += [group[np.sort(first)]] if len(first) > 1 else []
    return groups


def draw(examiner: Examiner, groups: list, path: Path, cell: int = 110, shown: int = 5) -> None:
    """Twenty rows, groups beside each other."""
    width = shown * cell + 10
    sheet = Image.new("RGB", (-(-len(groups) // 20) * width, 20 * (cell + 4)), "#446")
    for number, group in enumerate(groups):
        for place, row in enumerate(group[:shown]):
            image = Image.fromarray(examiner.look(*examiner.record.place(int(row))))
            scale = cell / max(image.size)
            image = image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))))
            sheet.paste(image, (number // 20 * width + place * cell, number % 20 * (cell + 4)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    print(f"drawn: {path}")


class Planting:
    """A folder of clean pictures with faults; remembers what is what."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.wanted, self.family = root, np.random.default_rng(seed), {}, {}
        files = sorted(path for path in CLIPART.rglob("*.png") if path.stat().st_size < 200_000)
        self.reserve = iter([files[index] for index in self.random.permutation(len(files))])
        self.originals = [self.next() for _ in range(1000)]
        self.clean = [self.save(image, self.where()) for _, image in self.originals]
        self.unused = iter(self.random.permutation(1000).tolist())
        for kind in NEAR:
            self.copies(kind, "train", "train")
        self.copies("exact", "train", "train")
        self.copies("leak", "train", "test")
        for _ in range(EACH):
            image = self.next()[1]
            exif = Image.Exif()
            exif[0x0112] = int(self.random.integers(2, 9))
            self.plant("rotated", self.save(image, "train/a", "jpg", exif=exif))
            holes = self.next()[1].convert("RGBA")
            holes.putalpha(Image.linear_gradient("L").resize(holes.size))
            self.plant("transparent", self.save(holes, "train/a"))
            self.plant(
                "blank",
                self.save(Image.new("RGB", (90, 70), tuple(self.random.integers(0, 256, 3).tolist())), "train/a"),
            )
            self.plant("tiny", self.save(self.next()[1].resize((14, 12), Image.Resampling.BOX), "train/a"))
            self.plant("extreme-aspect", self.save(self.next()[1].resize((600, 100)), "train/a"))
            broken = self.save(self.next()[1], "train/a")
            content = (root / broken).read_bytes()
            (root / broken).write_bytes(content[: len(content) // 2])
            self.plant("unreadable", broken)

    def next(self) -> tuple[str, Image.Image]:
        """A random clip art picture with enough to see, on white."""
        while True:
            path = next(self.reserve)
            image = Image.fromarray(read_picture(path))
            image.thumbnail((600, 600))
            if (
                min(image.size) >= 40
                and np.asarray(image.convert("L")).std() > 4
                and max(image.size) < 5 * min(image.size)
            ):
                return path.relative_to(CLIPART).as_posix(), image

    def where(self) -> str:
        return f"{self.random.choice(['train', 'train', 'train', 'val', 'test'])}/{self.random.choice(['a', 'b', 'c'])}"

    def save(self, image: Image.Image, place: str, suffix: str = "png", **options: object) -> str:
        path = self.root / place / f"{len(list((self.root / place).glob('*'))):05d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        return path.relative_to(self.root).as_posix()

    def plant(self, kind: str, *ids: str) -> None:
        self.wanted.setdefault(kind, []).append(set(ids))

    def copies(self, kind: str, home: str, other: str) -> None:
        """Copies of clean pictures that lie in `home`."""
        count = 0
        while count < EACH:
            index = next(self.unused)
            if self.clean[index].startswith(home):
                image = self.originals[index][1]
                made = NEAR[kind](image) if kind in NEAR else image
                id = self.save(made.convert("RGB"), f"{other}/{self.clean[index].split('/')[1]}")
                self.family[id] = self.clean[index]
                self.plant(kind, self.clean[index], id)
                count += 1


def planted(sheets: Path | None, seed: int = 0) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        made = Planting(Path(scratch), seed)
        examiner = Examiner(open_source(scratch))
        read_all(examiner)
        record = examiner.record
        name = [record.member(row)["id"] for row in range(len(record))]
        copies = examiner.copies()
        group_of = {name[row]: number for number, group in enumerate(copies) for row in group}
        source_of = dict(zip(made.clean, (path for path, _ in made.originals), strict=True))
        print(
            f"\nplanted into 1,000 clip art pictures, seed {seed}\n| kind | found | of | without the families below | of |"
        )
        for kind, pairs in made.wanted.items():
            if len(pairs[0]) == 1:
                continue
            hits = [len({group_of.get(id, id) for id in pair}) == 1 for pair in pairs]
            plain = [not source_of[(pair & set(made.clean)).pop()].startswith(("shapes/stars", "computer/icons/flat-theme"))
                     for pair in pairs]  # fmt: skip
            both = sum(hit and usual for hit, usual in zip(hits, plain, strict=True))
            print(f"| {kind} | {sum(hits)} | {len(hits)} | {both} | {sum(plain)} |")
        print("families: shapes/stars (1,000 rings of thin lines), computer/icons/flat-theme (icons of 60 px)")
        for problem in examiner.examination().problems:
            if problem.kind in made.wanted:
                said = {member["id"] for group in problem.groups for member in group}
                wanted = {id for ids in made.wanted[problem.kind] for id in ids}
                hits = len(wanted & said)
                print(f"| {problem.kind} | {hits} | {len(wanted)} | accused besides | {problem.count - hits} |")
        joined = []
        for group in copies:
            families = {made.family.get(name[row], name[row]) for row in group}
            if len(families) > 1:
                joined.append(group)
        print(f"groups that join different clean pictures: {len(joined)} with {sum(map(len, joined))} pictures")
        for group in joined:
            print("  ", [source_of.get(name[row], "planted") for row in group[:6]])
        if sheets is not None and joined:
            draw(examiner, joined, sheets / f"joined-{seed}.png")


def write_photographs(folder: Path, count: int = 2000) -> None:
    """Turned and recoloured pieces of photographs with a camera's noise: distinct pictures with a photograph's detail."""
    import skimage.data

    random = np.random.default_rng(1)
    names = ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry", "retina", "brick", "grass", "gravel")
    whole = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in names]
    for index in range(count):
        picture = whole[random.integers(len(whole))]
        tall = random.uniform(0.25, 0.6) * min(picture.size)
        wide = min(tall * 4 / 3, picture.width)
        left, top = random.uniform(0, picture.width - wide), random.uniform(0, picture.height - tall)
        piece = picture.rotate(random.uniform(-180, 180), Image.Resampling.BICUBIC)
        piece = piece.crop((left, top, left + wide, top + tall)).resize((500, 375), Image.Resampling.BICUBIC)
        mixing = random.dirichlet((0.5, 0.5, 0.5), 3).T * random.uniform(0.6, 1.3)
        values = np.asarray(piece) @ mixing + random.normal(0, 4, (375, 500, 3))
        place = folder / f"class {index % 5}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(place / f"{index:05d}.jpg", quality=90)


def write_small(folder: Path, count: int) -> None:
    """Distinct JPEG files of 64 px, some 2 KB each."""
    random = np.random.default_rng(2)
    for index in range(count):
        place = folder / f"class {index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        rough = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((64, 64), Image.Resampling.BICUBIC).save(place / f"{index:06d}.jpg", quality=85)


def measured(data: str) -> dict:
    """`examine` in a process of its own, with two threads."""
    done = subprocess.run(
        [sys.executable, __file__, "one", "--data", data], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def one(data: str) -> None:
    opened = time.perf_counter()
    source = open_source(data)
    before, held = resource.getrusage(resource.RUSAGE_SELF), _peak_megabytes()
    start = time.perf_counter()
    found = examine(source, threads=2)
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "pictures": found.of, "opened": start - opened, "seconds": time.perf_counter() - start,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "megabytes": _peak_megabytes(), "before": held,
        "kinds": dict(Counter({problem.kind: problem.count for problem in found.problems})),
    }))  # fmt: skip


def _peak_megabytes() -> float:
    """Of this process alone; `ru_maxrss` begins with the parent's."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def table(found: dict[str, dict]) -> None:
    print("\n| data | pictures | images/s | CPU ms per image | opening, s | peak MB | MB before the check |")
    for name, facts in found.items():
        speed, cpu = facts["pictures"] / facts["seconds"], 1000 * facts["cpu"] / facts["pictures"]
        print(f"| {name} | {facts['pictures']:,} | {speed:.0f} | {cpu:.2f} | {facts['opened']:.1f} | "
              f"{facts['megabytes']:.0f} | {facts['before']:.0f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["sets", "planted", "speed", "memory", "one"])
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="of the part `one`, which the others start")
    arguments = parser.parse_args()
    for part in arguments.parts:
        if part == "one":
            one(arguments.data)
        elif part == "sets":
            sets(arguments.sheets)
        elif part == "planted":
            planted(arguments.sheets, arguments.seed)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                if part == "speed":
                    write_photographs(Path(scratch))
                    table({"photographs 500x375": measured(scratch), "openclipart-png": measured(str(CLIPART))})
                else:
                    for count in (10_000, 100_000):
                        write_small(Path(scratch) / str(count), count)
                    table({f"{count:,} files of 64 px": measured(f"{scratch}/{count}") for count in (10_000, 100_000)})


if __name__ == "__main__":
    main()
