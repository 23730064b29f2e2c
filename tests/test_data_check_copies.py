"""What counts as a copy: every change that must be found, and pictures that only look alike."""

from itertools import islice

import numpy as np
import pytest
import skimage.data
from PIL import Image

from planted import NEAR, cut, tiles
from vitrail.data import fashion, fingerprints
from vitrail.data.fingerprints import Fingerprints, look_alikes, reduced
from vitrail.data.likeness import fit, grey, same, sampling, small
from vitrail.images import to_pillow

NOTHING = np.zeros(4, dtype=np.float32)


def groups(pictures, labels=None):
    """Groups of copies among pictures, as lists of numbers."""
    pictures = [np.ascontiguousarray(picture) for picture in pictures]
    prints = Fingerprints(len(pictures))
    for index, picture in enumerate(pictures):
        prints.add(index, picture, reduced(picture))
    found = prints.groups(lambda index: pictures[index], np.zeros(len(pictures), int) if labels is None else labels)
    return [group.tolist() for group in found]


def enlarged(picture, times):
    image = to_pillow(picture)
    return np.asarray(image.resize((times * image.width, times * image.height), Image.Resampling.BICUBIC))


def coloured(grey_picture):
    return np.repeat(grey_picture[:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def photographs():
    """Sixty pieces of photographs, none overlapping another, 100x80 px."""
    return list(islice(tiles(), 60))


@pytest.mark.parametrize("change", NEAR)
def test_changed_copies_are_found_among_others(photographs, change):
    pictures = [np.asarray(image) for image in photographs]
    pictures += [np.asarray(NEAR[change](image).convert("RGB")) for image in photographs[::4]]
    expected = [[4 * number, 60 + number] for number in range(15)]
    found = groups(pictures)
    assert all(group in expected for group in found)
    assert len(found) >= 14  # photographs out of focus, cut: one in fifteen may be missed


def test_all_changes_of_one_picture_are_one_group(photographs):
    pictures = [np.asarray(image) for image in photographs[:20]]
    changed = [np.asarray(change(photographs[7]).convert("RGB")) for change in NEAR.values()]
    assert groups(pictures + changed) == [[7, *range(20, 20 + len(NEAR))]]


def test_exact_copies_are_by_pixels_and_shape():
    random = np.random.default_rng(1)
    first = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    other = first.copy()
    other[10, 10, 0] ^= 1
    pictures = [first, first.reshape(30, 20, 3), other, first.copy()]
    prints = Fingerprints(5)
    for index, picture in enumerate(pictures):
        prints.add(index, picture, reduced(picture))
    assert [group.tolist() for group in prints.exact()] == [[0, 3]]  # row 4 was never seen


def test_digits_and_clothes_are_not_taken_for_each_other():
    """Small grey pictures of the same kind, as they are and enlarged, where crops are looked for."""
    from sklearn.datasets import load_digits

    digits = (load_digits().images * 255 / 16).round().astype(np.uint8)
    assert groups([coloured(picture) for picture in digits]) == []
    assert groups([enlarged(coloured(picture), 16) for picture in digits[:300]]) == []
    clothes = fashion.mini()["test"][0]
    assert groups([coloured(picture) for picture in clothes]) == []
    assert groups([enlarged(coloured(picture), 4) for picture in clothes[::10]]) == []


def test_clip_art_of_one_kind_is_not_taken_for_each_other():
    """Shapes on white that differ in one thing: colour, a small part, size, place."""

    def drawn(colour=(200, 30, 30), left=40, size=50, dot=None):
        picture = np.full((128, 128, 3), 255, dtype=np.uint8)
        rows, cols = np.mgrid[:128, :128]
        picture[(rows - 64) ** 2 + (cols - left - size / 2) ** 2 < (size / 2) ** 2] = colour
        if dot:
            picture[dot : dot + 12, 20:32] = 0
        return picture

    every = [
        drawn(),
        drawn((30, 30, 200)),
        drawn((30, 200, 30)),
        drawn(size=70),
        drawn(left=15),
        drawn(dot=10),
        drawn(dot=100),
    ]
    assert groups(every) == []


def test_drawings_of_thin_lines_that_look_alike_from_afar_are_told_apart():
    """Discs hatched across and down, pixel by pixel: at half the resolution both are the same grey."""
    rows, cols = np.mgrid[:128, :128]
    disc = (rows - 64) ** 2 + (cols - 64) ** 2 < 50**2
    across, down = (coloured(np.where(disc & (lines % 2 == 0), 0, 255).astype(np.uint8)) for lines in (rows, cols))
    half = [np.asarray(to_pillow(picture).resize((64, 64), Image.Resampling.BILINEAR)) for picture in (across, down)]
    assert np.abs(half[0].astype(int) - half[1]).mean() < 8
    assert not same(across, down, NOTHING) and same(across, across.copy(), NOTHING)


def test_faces_are_not_taken_for_each_other():
    from pathlib import Path

    faces = np.load(Path(skimage.data.__file__).parent / "lfw_subset.npy")
    faces = (255 * faces).astype(np.uint8)
    assert groups([coloured(face) for face in faces]) == []
    assert groups([enlarged(coloured(face), 4) for face in faces]) == []


def test_flat_pictures_are_never_nearly_the_same():
    random = np.random.default_rng(2)
    flat = [np.full((50, 50, 3), value, np.uint8) + random.integers(0, 3, (50, 50, 3), dtype=np.uint8)
            for value in range(100, 160)]  # fmt: skip
    prints = Fingerprints(len(flat))
    for index, picture in enumerate(flat):
        prints.add(index, picture, reduced(picture))
    assert prints.groups(lambda index: pytest.fail("looked at"), np.zeros(len(flat), int)) == []


def test_recoloured_and_inverted_pictures_are_not_the_same(photographs):
    for image in photographs[:5]:
        picture = np.asarray(image)
        assert same(picture, picture, NOTHING)
        assert not same(picture, picture[:, :, ::-1], NOTHING)
        assert not same(picture, 255 - picture, NOTHING)
        light, blue, red = image.convert("YCbCr").split()
        assert not same(picture, np.asarray(Image.merge("YCbCr", (light, red, blue)).convert("RGB")), NOTHING)


def test_a_small_new_thing_makes_another_picture(photographs):
    for image in photographs[:10]:
        picture = np.asarray(image)
        other = picture.copy()
        other[30:40, 60:70] = 255 - other[30:40, 60:70]
        assert not same(picture, other, NOTHING)


def test_mirrored_copies_count_under_one_label_only(photographs):
    pictures = [np.asarray(image) for image in photographs[:6]] + [np.asarray(photographs[0])[:, ::-1]]
    assert groups(pictures) == [[0, 6]]
    assert groups(pictures, np.array([0, 0, 0, 0, 0, 0, 1])) == []


def test_every_shape_of_picture_goes_through():
    random = np.random.default_rng(3)
    shapes = [(1, 1), (1, 700), (700, 1), (2, 3), (33, 31), (31, 400), (1500, 9)]
    every = [random.integers(0, 256, (*shape, channels), dtype=np.uint8) for shape in shapes for channels in (1, 3)]
    for channels in (1, 3):
        assert groups([picture for picture in every if picture.shape[2] == channels]) == []


def test_sampling_reproduces_parabolas():
    """Cubic convolution is exact for them where no border is near (Keys 1981); the slopes are its derivative."""
    place = (np.arange(40) + 0.5) / 40
    values, slopes = sampling(np.array([0.03, 0.1], np.float32), np.array([0.06, 0.0], np.float32), 40)
    for pair, (low, high) in enumerate([(0.03, 0.06), (0.1, 0.0)]):
        inside = low + place * (1 - low - high)
        for numbers, function, slope in (
            (place**2, inside**2, 2 * inside), (1 - 3 * place, 1 - 3 * inside, -3 + 0 * inside),
        ):  # fmt: skip
            middle = slice(3, -3)
            np.testing.assert_allclose((values[pair] @ numbers)[middle], function[middle], atol=1e-5)
            np.testing.assert_allclose((slopes[pair] @ numbers)[middle], slope[middle], atol=1e-3)


@pytest.mark.parametrize("shares", [(0.05, 0.05, 0.05, 0.05), (0.05, 0, 0, 0.02), (0, 0.04, 0.03, 0.01)])
def test_a_window_is_found_where_it_was_cut(shares):
    """To within half a per cent of the side, whatever the brightness, in a smooth picture of 1000 px."""
    rough = np.random.default_rng(4).integers(30, 200, (7, 7, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize((1000, 1000), Image.Resampling.BICUBIC)
    pair = [np.asarray(part.resize((32, 32), Image.Resampling.BOX)) for part in (image, cut(image, *shares))]
    first, second = (grey(picture)[None] for picture in pair)
    found = fit(first, 1.1 * second - 9, np.full((1, 4), 0.025, np.float32), rounds=8)
    np.testing.assert_allclose(found.windows[0], shares, atol=0.005)
    assert found.difference[0] < 0.02


def test_small_keeps_what_is_looked_at():
    assert small(np.zeros((300, 400, 3), np.uint8)).shape == (128, 171, 3)
    assert small(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30, 3)
    assert small(np.zeros((4, 9000, 3), np.uint8)).shape == (4, 512, 3)


def test_shelves_lose_few_pairs():
    """9,000 smooth descriptions lie on seventeen shelves; eight are searched for what is alike to a cosine of 0.9."""
    random = np.random.default_rng(5)
    weights = fingerprints._WEIGHTS.ravel()[1:]
    members = random.normal(0, 1, (9000, 63)).astype(np.float32) * weights
    queries = members[:500] + 0.5 * random.normal(0, 1, (500, 63)).astype(np.float32) * weights
    members, queries = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (members, queries))
    order, shelves, pivots = fingerprints._shelved(members)
    members = members[order]
    alike = np.argwhere(queries @ members.T > fingerprints._NEAR)
    first, second, score = fingerprints._search(queries, members, shelves, pivots)
    assert len(shelves) == 17 and len(alike) > 300
    np.testing.assert_allclose(score, (queries[first] * members[second]).sum(axis=1), atol=1e-5)
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    assert found <= set(map(tuple, alike.tolist())) and len(found) >= 0.9 * len(alike)


def test_what_all_looks_alike_is_divided(monkeypatch):
    """Twenty thousand views of one scene: no shelf with more than 2,048, and a few attempts for each picture."""
    scene = np.asarray(next(tiles(16, 16)).convert("L")).astype(np.float64)
    random = np.random.default_rng(6)
    views = (scene + random.normal(0, 3, (20_000, 16, 16))).clip(0, 255).round().astype(np.uint8)
    order, shelves, pivots = fingerprints._shelved(fingerprints._described(views, NOTHING))
    assert sorted(order.tolist()) == list(range(20_000)) == [row for shelf in shelves for row in range(20_000)[shelf]]
    assert len(pivots) == len(shelves) and max(shelf.stop - shelf.start for shelf in shelves) <= 2048
    count = 0
    for pair in look_alikes(views, np.arange(9000), np.ones(20_000, dtype=bool)):
        assert pair.first != pair.second
        count += 1
    assert 9000 <= count <= 9000 * 2 * fingerprints._ATTEMPTS


def test_no_pictures_at_all():
    assert groups([]) == [] and groups([np.zeros((8, 8, 3), np.uint8)]) == []
