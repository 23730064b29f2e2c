"""Augmentation: one contract for every transform, by-hand oracles for each."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vitrail.data import transforms
from vitrail.data.transforms import (
    TRANSFORMS,
    Flip,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Shift,
    augment,
)
from vitrail.errors import UsageError
from vitrail.preprocessing import Preprocessing

RANDOM = np.random.default_rng(11)
LARGEST = 1 - 2.0**-53
OPERATIONS = [
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast", "brightness",
    "sharpness", "shear-x", "shear-y", "translate-x", "translate-y", "cutout", "solarize-add",
]  # fmt: skip


def preprocessing(size=(12, 20), channels=3):
    return Preprocessing(size, channels, mean=(0.5,) * channels, std=(0.5,) * channels)


def picture(height=12, width=20, channels=3):
    return RANDOM.integers(0, 256, (height, width, channels), dtype=np.uint8)


def operated(image, name, magnitude=10.0, sign=0.0, place=(0.5, 0.5)):
    """One operation of RandAugment, by its place in big_vision's list."""
    choice = (OPERATIONS.index(name) + 0.5) / len(OPERATIONS)
    return RandAugment(1, magnitude)(image, np.array([choice, sign, *place]), preprocessing())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TRANSFORMS)
class TestContract:
    """What every registered transform promises; a new one is found here by itself."""

    def test_uint8_of_the_models_size_in_and_out(self, name, channels):
        transform, size = TRANSFORMS[name](), (12, 20)
        shapes = [size, (30, 7), (5, 90)] if transform.resizes else [size]
        for shape in shapes:
            for _ in range(40):
                given = picture(*shape, channels)
                before = given.copy()
                result = transform(given, RANDOM.random(transform.num_draws), preprocessing(size, channels))
                assert result.dtype == np.uint8 and result.shape == (*size, channels)
                assert np.array_equal(given, before), "the picture may be in the cache and must stay as it is"

    def test_the_draws_decide_everything(self, name, channels):
        transform, given = TRANSFORMS[name](), picture(channels=channels)
        for _ in range(10):
            draws = RANDOM.random(transform.num_draws)
            first, again = (transform(given, draws.copy(), preprocessing(channels=channels)) for _ in range(2))
            assert np.array_equal(first, again)

    def test_every_draw_is_used_and_no_more(self, name, channels):
        """It works with exactly `num_draws` numbers, and each of them can change the result."""
        transform, given = TRANSFORMS[name](), picture(channels=channels)
        changed = set()
        for _ in range(150):
            draws = RANDOM.random(transform.num_draws)
            plain = transform(given, draws, preprocessing(channels=channels))
            for place in set(range(transform.num_draws)) - changed:
                other = draws.copy()
                other[place] = (draws[place] + 0.5) % 1
                if not np.array_equal(transform(given, other, preprocessing(channels=channels)), plain):
                    changed.add(place)
        assert changed == set(range(transform.num_draws))

    def test_the_smallest_and_the_largest_draw(self, name, channels):
        transform = TRANSFORMS[name]()
        for value in (0.0, LARGEST):
            draws = np.full(transform.num_draws, value)
            result = transform(picture(channels=channels), draws, preprocessing(channels=channels))
            assert result.shape == (12, 20, channels)

    def test_a_frozen_value(self, name, channels):
        assert TRANSFORMS[name]() == TRANSFORMS[name]() and hash(TRANSFORMS[name]()) == hash(TRANSFORMS[name]())
        assert TRANSFORMS[name].__dataclass_params__.frozen


def test_flip():
    given = picture()
    assert np.array_equal(Flip()(given, np.array([0.49]), preprocessing()), given[:, list(range(19, -1, -1))])
    assert np.array_equal(Flip()(given, np.array([0.5]), preprocessing()), given)


@pytest.mark.parametrize(("share", "reach"), [(0.08, (1, 2)), (0.25, (3, 5)), (0.001, (1, 1))])
def test_shift(share, reach):
    """Every displacement up to the reach comes equally often; the border is repeated."""
    given, seen = picture(), []
    padded = np.pad(given, [(reach[0],) * 2, (reach[1],) * 2, (0, 0)], mode="edge")
    heights, widths = 2 * reach[0] + 1, 2 * reach[1] + 1
    for row in range(heights):
        for column in range(widths):
            draws = np.array([(row + 0.5) / heights, (column + 0.5) / widths])
            moved = Shift(share)(given, draws, preprocessing())
            top, left = heights - 1 - row, widths - 1 - column
            assert np.array_equal(moved, padded[top : top + 12, left : left + 20])
            seen.append(moved.tobytes())
    assert len(set(seen)) == heights * widths


@pytest.mark.parametrize("shape", [(50, 50), (40, 80), (300, 20)], ids=str)
@pytest.mark.parametrize("crop", [RandomResizedCrop(), RandomResizedCrop(0.05, 2.0), RandomResizedCrop(1.0)], ids=str)
def test_random_resized_crop(monkeypatch, shape, crop):
    """The area is what the first draw says, also in long pictures; the aspect is in bounds where it fits."""
    boxes = []
    monkeypatch.setattr(transforms, "resized", lambda picture, size, interpolation, box: boxes.append(box) or picture)
    height, width = shape
    for draws in [np.zeros(4), np.full(4, LARGEST), *RANDOM.random((300, 4))]:
        crop(picture(height, width), draws, preprocessing())
        left, top, right, bottom = boxes.pop()
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        wide, tall = right - left, bottom - top
        share = crop.min_area + (1 - crop.min_area) * draws[0]
        assert wide * tall / (width * height) == pytest.approx(share, rel=1e-9)
        if wide < width * 0.999 and tall < height * 0.999:
            assert 1 / crop.max_aspect - 1e-9 <= wide / tall <= crop.max_aspect + 1e-9
            assert left / (width - wide) == pytest.approx(draws[2], abs=1e-9)
            assert top / (height - tall) == pytest.approx(draws[3], abs=1e-9)


def test_random_resized_crop_cuts_and_resizes():
    """A quarter of the area in the lower right corner, at another size: as Pillow does it."""
    given = picture(40, 40)
    result = RandomResizedCrop(0.25)(given, np.array([0, 0.5, LARGEST, LARGEST]), preprocessing())
    plain = Image.fromarray(given).resize((20, 12), Image.Resampling.BILINEAR, box=(20, 20, 40, 40))
    assert np.abs(result.astype(int) - np.asarray(plain)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0.0, 3.0, 10.0, 15.0])
def test_every_operation_runs(name, channels, magnitude):
    for sign in (0.0, 0.9):
        for place in ((0.0, 0.0), (0.5, 0.5), (LARGEST, LARGEST)):
            result = operated(picture(channels=channels), name, magnitude, sign, place)
            assert result.shape == (12, 20, channels) and result.dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_that_do_nothing(channels):
    """Nothing at magnitude 0 where more means further; nothing at 5 where the factor is then 1."""
    given = picture(channels=channels)
    for name in (
        "rotate",
        "shear-x",
        "shear-y",
        "translate-x",
        "translate-y",
        "cutout",
        "solarize-add",
    ):
        assert np.array_equal(operated(given, name, 0.0), given), name
        assert not np.array_equal(operated(given, name, 10.0), given), name
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert np.array_equal(operated(given, name, 5.0), given), name
        if (name, channels) != ("color", 1):
            assert not np.array_equal(operated(given, name, 10.0), given), name
    assert np.array_equal(operated(operated(given, "invert"), "invert"), given)
    full = given.copy()
    full[0, 0], full[0, 1] = 0, 255
    assert np.array_equal(operated(full, "autocontrast"), full)


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_on_values_against_their_formulas(channels):
    given = picture(channels=channels)
    exact = given.astype(np.float64)
    assert np.array_equal(operated(given, "invert"), 255 - given)
    assert np.array_equal(operated(given, "posterize"), given & 0b11110000)
    # These two are strongest at magnitude 0, as in big_vision: one bit is left, and everything is turned around.
    assert np.array_equal(operated(given, "posterize", 5.0), given & 0b11000000)
    assert np.array_equal(operated(given, "posterize", 0.0), given & 0b10000000)
    assert np.array_equal(operated(given, "posterize", 30.0), given)
    assert np.array_equal(operated(given, "solarize", 5.0), np.where(given < 128, given, 255 - given))
    assert np.array_equal(operated(given, "solarize", 0.0), 255 - given)
    assert np.array_equal(operated(given, "solarize", 10.0), given)
    added = np.where(given < 128, np.minimum(255, exact + 110), given)
    assert np.array_equal(operated(given, "solarize-add"), added)
    assert np.abs(operated(given, "brightness") - (1.9 * exact).clip(0, 255)).max() <= 1
    luma = exact @ [0.299, 0.587, 0.114] if channels == 3 else exact[..., 0]
    contrast = luma.mean() + 1.9 * (exact - luma.mean())
    assert np.abs(operated(given, "contrast") - contrast.clip(0, 255)).max() <= 2
    if channels == 3:
        colour = luma[..., None] + 1.9 * (exact - luma[..., None])
        assert np.abs(operated(given, "color") - colour.clip(0, 255)).max() <= 2
    dull = (given // 4 + 50).astype(np.uint8)
    low, high = dull.min(axis=(0, 1)), dull.max(axis=(0, 1))
    assert np.abs(operated(dull, "autocontrast") - (dull - low) / (high - low) * 255.0).max() <= 1
    ramp = np.repeat(np.linspace(0, 60, 2400).astype(np.uint8), channels).reshape(40, 60, channels)
    levels = operated(ramp, "equalize").astype(float)
    assert (np.diff(levels.reshape(-1, channels), axis=0) >= 0).all() and np.ptp(levels) > 240
    flat = np.full((12, 20, channels), 77, np.uint8)
    for name in ("autocontrast", "equalize", "sharpness"):
        assert np.array_equal(operated(flat, name), flat), name


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_on_places_against_indexing(channels):
    """Moved, turned, slanted and cut out; what comes in is middle grey."""
    given = picture(224, 224, channels)
    grey = np.full_like(given, 128)
    right, down = grey.copy(), grey.copy()
    right[:, 10:], down[:-10] = given[:, :-10], given[10:]
    assert np.array_equal(operated(given, "translate-x", 1.0, sign=0.9), right)
    assert np.array_equal(operated(given, "translate-y", 1.0, sign=0.0), down)
    assert np.array_equal(operated(given, "rotate", 30.0), np.rot90(given))
    assert np.array_equal(operated(given, "rotate", 30.0, sign=0.9), np.rot90(given, -1))
    coarse = np.kron(RANDOM.integers(0, 2, (1, 8, 1)) * 255, np.ones((224, 28, channels))).astype(np.uint8)
    slanted = operated(coarse, "shear-x")[..., 0]
    for row in (0, 50, 150):  # row y comes from 0.3 y further right
        moved = round(0.3 * (row + 0.5))
        agree = slanted[row, : 224 - moved - 1] == coarse[row, moved:223, 0]
        assert agree.mean() > 0.93, row
    turned = operated(np.ascontiguousarray(coarse.swapaxes(0, 1)), "shear-y")[..., 0]
    assert np.array_equal(turned, slanted.T)
    hole = given.copy()
    hole[72:152, 16:96] = 128  # 40 pixels to each side of (56, 112)
    assert np.array_equal(operated(given, "cutout", place=(0.25, 0.5)), hole)
    corner = given.copy()
    corner[:40, :40] = 128
    assert np.array_equal(operated(given, "cutout", place=(0.0, 0.0)), corner)


def test_layers_are_applied_in_turn():
    given, draws = picture(), RANDOM.random(12)
    step_by_step = given
    for layer in range(3):
        step_by_step = RandAugment(1)(step_by_step, draws[4 * layer : 4 * layer + 4], preprocessing())
    assert np.array_equal(RandAugment(3)(given, draws, preprocessing()), step_by_step)
    assert RandAugment(3).num_draws == 12 and RandAugment(0).num_draws == 0
    assert np.array_equal(RandAugment(0)(given, np.empty(0), preprocessing()), given)


def test_transforms_follow_each_other_each_with_its_own_draws():
    given, draws = picture(31, 44), RANDOM.random(7)
    steps = (RandomResizedCrop(), Shift(), Flip())
    cropped = steps[0](given, draws[:4], preprocessing())
    expected = steps[2](steps[1](cropped, draws[4:6], preprocessing()), draws[6:], preprocessing())
    result = augment(given, steps, draws, preprocessing())
    assert np.array_equal(result, expected.transpose(2, 0, 1)) and result.flags.c_contiguous


def test_without_a_resizing_transform_pictures_are_fitted_as_in_evaluation():
    given = picture(31, 44)
    for fit in ("stretch", "crop"):
        how = dataclasses.replace(preprocessing(), fit=fit)
        assert np.array_equal(augment(given, (), np.empty(0), how), how(given))
        assert np.array_equal(augment(given, (Flip(),), np.zeros(1), how), how(given)[:, :, ::-1])


def test_random_crop_cuts_and_resizes():
    """Three quarters of each side, at the drawn place: as Pillow does it."""
    given = picture(40, 80)
    result = RandomCrop(0.75)(given, np.array([0.5, LARGEST]), preprocessing())
    plain = Image.fromarray(given).resize((20, 12), Image.Resampling.BILINEAR, box=(10, 10, 70, 40))
    assert np.abs(result.astype(int) - np.asarray(plain)).max() <= 1


def test_random_erasing_against_indexing():
    """A rectangle of the drawn area, aspect and place; outside nothing changes; inside the mean, or noise."""
    given, how = picture(100, 60), preprocessing((100, 60))
    erase = RandomErasing(1.0, 0.1, 0.3, 2.0, "mean")
    seen = []
    for draws in [np.zeros(6), np.full(6, LARGEST), *RANDOM.random((200, 6))]:
        lost = (erase(given, draws, how) == 128).all(axis=2)
        area, aspect = 6000 * (0.1 + 0.2 * draws[1]), 2.0 ** (2 * draws[2] - 1)
        wide, tall = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        top, left = int(draws[4] * (100 - tall + 1)), int(draws[3] * (60 - wide + 1))
        expected = given.copy()
        expected[top : top + tall, left : left + wide] = 128
        assert np.array_equal(erase(given, draws, how), expected)
        assert lost.sum() >= tall * wide
        seen.append((top == 0, left == 0, top == 100 - tall, left == 60 - wide))
    assert np.any(seen, axis=0).all()  # every edge can be reached
    noisy = dataclasses.replace(erase, fill="noise")
    draws = np.array([0.5, 1.0, 0.5, 0.3, 0.3, 0.7])
    first, other = noisy(given, draws, how), noisy(given, np.array([*draws[:5], 0.71]), how)
    inside = (erase(given, draws, how) == 128).all(axis=2)
    assert np.array_equal(first[~inside], given[~inside]) and not np.array_equal(first, other)
    assert stats.kstest(first[inside].ravel() / 255, "uniform").pvalue > 0.001


def test_random_erasing_happens_as_often_as_it_is_said():
    given, erase = picture(), RandomErasing(0.3)
    lost = [not np.array_equal(erase(given, draws, preprocessing()), given) for draws in RANDOM.random((2000, 6))]
    assert stats.binomtest(sum(lost), 2000, 0.3).pvalue > 0.001
    assert np.array_equal(RandomErasing(0.0)(given, np.zeros(6), preprocessing()), given)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *[(RandAugment, "layers", -1), (RandAugment, "magnitude", -1.0), (RandAugment, "magnitude", float("nan"))],
        *[
            (Shift, "share", -0.1),
            (Shift, "share", 1.1),
            (RandomCrop, "share", 0.0),
            (RandomErasing, "probability", 1.1),
        ],
        *[
            (RandomErasing, "max_area", 0.01),
            (RandomResizedCrop, "min_area", 0.0),
            (RandomResizedCrop, "max_aspect", 0.5),
        ],
    ],
)
def test_impossible_transforms_are_refused(kind, field, value):
    with pytest.raises(UsageError, match=f"{field} is"):
        kind(**{field: value})
