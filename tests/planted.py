"""A folder with every kind of fault in known places, among pictures that are all different."""

from io import BytesIO

import numpy as np
import skimage.data
from PIL import Image

HEIGHT, WIDTH = 80, 100
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "immunohistochemistry")
# What makes a near duplicate of a picture; each must be found.
NEAR = {
    "jpeg": lambda image: saved(image, "JPEG", quality=50),
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "double": lambda image: image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC),
    "lighter": lambda image: image.point(lambda value: min(255, round(1.1 * value))),
    "darker": lambda image: image.point(lambda value: round(0.88 * value)),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "crop": lambda image: cut(image, 0.05, 0.05, 0.05, 0.05),
    "corner": lambda image: cut(image, 0.05, 0, 0.04, 0),
    "squeezed": lambda image: image.resize((72, 72), Image.Resampling.BICUBIC),
}


def saved(image, form, **options):
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return Image.open(BytesIO(buffer.getvalue()))


def cut(image, left, right, top, bottom):
    """Without these shares of its sides."""
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def tiles(height=HEIGHT, width=WIDTH):
    """Pieces of photographs that do not overlap, then textures without end; no two show the same."""
    for name in PHOTOGRAPHS:
        photograph = getattr(skimage.data, name)()
        for top in range(0, photograph.shape[0] - height + 1, height):
            for left in range(0, photograph.shape[1] - width + 1, width):
                yield Image.fromarray(photograph[top : top + height, left : left + width])
    random = np.random.default_rng(11)
    while True:
        rough = random.integers(0, 256, (random.integers(3, 9), random.integers(3, 9), 3), dtype=np.uint8)
        yield Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


class Planted:
    """Builds the folder and remembers what is where: `groups[kind]` lists the ids of each group that must be named."""

    def __init__(self, root):
        self.root, self.groups, self.clean, self._tiles, self._count = root, {}, set(), tiles(), 0
        self._clean_ones()
        self._copies()
        self._broken()
        self._odd_looking()

    def new(self):
        """A picture that is nowhere else."""
        return next(self._tiles)

    def put(self, place, image, suffix="png", **options):
        """Saves a picture into split/class under a new name; returns its id."""
        self._count += 1
        path = self.root / place / f"{self._count:04d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        return path.relative_to(self.root).as_posix()

    def plant(self, kind, *ids):
        self.groups.setdefault(kind, []).append(set(ids))

    def _clean_ones(self):
        # "many" has more than ten times as many training pictures as "rare", and val has none of "rare".
        for place, count in {"train/many": 70, "train/some": 20, "train/rare": 5, "val/many": 8, "val/some": 8,
                             "test/many": 5, "test/some": 5, "test/rare": 3}.items():  # fmt: skip
            ids = [self.put(place, self.new(), *(("jpg",) if number % 3 == 0 else ())) for number in range(count)]
            self.clean |= set(ids)
            if place.endswith("rare"):
                for kind in ("few-images", "imbalance") if place.startswith("train") else ():
                    self.plant(kind, *ids)
        rare = {id for id in self.clean if "/rare/" in id}
        self.plant("missing-class", *rare)

    def _copies(self):
        for number in range(3):
            image = self.new()
            self.plant("exact-duplicates", *(self.put("train/many", image) for _ in range(2 + number)))
        for change in NEAR.values():
            image = self.new()
            self.plant("near-duplicates", self.put("train/many", image), self.put("train/many", change(image)))
        for place, change in (("test", None), ("val", None), ("test", "crop"), ("val", "jpeg"), ("test", "mirrored")):
            image = self.new()
            other = NEAR[change](image) if change else image
            self.plant("leak", self.put("train/some", image), self.put(f"{place}/some", other))
        for change in (None, None, "double", "darker"):
            image = self.new()
            other = NEAR[change](image) if change else image
            self.plant("label-conflict", self.put("train/many", image), self.put("train/some", other))

    def _broken(self):
        for content in (b"", b"no picture", None):
            id = self.put("train/many", self.new(), "jpg")
            path = self.root / id
            path.write_bytes(path.read_bytes()[:900] if content is None else content)
            self.plant("unreadable", id)

    def _odd_looking(self):
        for number in range(3):
            self.plant(
                "grey-among-colour", self.put("train/many", self.new().convert("L"), ("png", "jpg", "png")[number])
            )
            colour = tuple(int(value) for value in np.random.default_rng(number).integers(0, 256, 3))
            self.plant("blank", self.put("train/many", Image.new("RGB", (WIDTH, HEIGHT), colour)))
            exif = Image.Exif()
            exif[0x0112] = (3, 6, 8)[number]
            self.plant("rotated", self.put("train/many", self.new(), "jpg", exif=exif))
        for number in range(2):
            image = self.new()
            image.putalpha(Image.linear_gradient("L").resize(image.size))
            self.plant("transparent", self.put("train/many", image))
            small = next(tiles(12, 12)) if number else self.new().crop((20, 20, 34, 31))
            self.plant("tiny", self.put("train/many", small))
            self.plant("extreme-aspect", self.put("train/many", self.new().resize(((600, 90), (40, 300))[number])))
        self.plant("huge", self.put("train/many", self.new().resize((5000, 4100), Image.Resampling.NEAREST), "jpg"))
