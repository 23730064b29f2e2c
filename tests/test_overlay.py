"""A map lies where it belongs on the original picture, and the figure says what its colours mean."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.inspection.figure import PANEL, _ticks, figure
from vitrail.inspection.overlay import colours, overlay, patch_box, ramp
from vitrail.preprocessing import Preprocessing

GRIDS = [(4, 4), (2, 5)]
PICTURES = [(96, 160), (150, 64), (90, 90), (37, 53)]


def preprocessing(grid, fit, share=1.0):
    return Preprocessing((grid[0] * 16, grid[1] * 16), fit=fit, crop_share=share)


def hot(grid, row, col):
    weights = np.zeros(grid, np.float32)
    weights[row, col] = 1
    return weights


@pytest.mark.parametrize(("fit", "share"), [("stretch", 1.0), ("crop", 1.0), ("crop", 0.8)])
@pytest.mark.parametrize("size", PICTURES)
@pytest.mark.parametrize("grid", GRIDS)
def test_the_lit_region_is_the_one_that_the_model_sees_there(grid, size, fit, share):
    """Painted white and shown to the model's own preprocessing, the lit pixels come out as that patch and no other."""
    prepare = preprocessing(grid, fit, share)
    picture = np.full((*size, 3), 128, np.uint8)
    box = prepare.window(size)
    cold = overlay(picture, np.zeros(grid, np.float32), box)
    for row, col in np.ndindex(grid):
        lit = (overlay(picture, hot(grid, row, col), box) != cold).any(axis=2, keepdims=True)
        seen = prepare(np.where(lit, 255, 0).astype(np.uint8).repeat(3, axis=2))[0] / 255
        patches = seen.reshape(grid[0], 16, grid[1], 16).mean(axis=(1, 3))
        expected = hot(grid, row, col)
        # Edges are shared by antialiasing and whole pixels; the smallest patches here have six pixels across.
        assert patches[row, col] > 0.8 and patches[expected == 0].max() < 0.15


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(st.tuples(st.integers(1, 200), st.integers(1, 200)), st.sampled_from([*GRIDS, (7, 3)]), st.floats(0.05, 1))
def test_a_window_never_leaves_its_picture(size, grid, share):
    """Rounding once put its left edge at -4e-15, which Pillow refuses."""
    prepare = preprocessing(grid, "crop", share)
    left, top, right, bottom = prepare.window(size)
    assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0]
    assert (bottom - top) / (right - left) == pytest.approx(grid[0] / grid[1])
    assert prepare(np.zeros((*size, 3), np.uint8)).shape == (3, *prepare.image_size)


@pytest.mark.parametrize("size", [(37, 53), (53, 37)])
def test_a_window_that_fills_a_side(size):
    assert preprocessing((2, 5), "crop")(np.zeros((*size, 3), np.uint8)).shape == (3, 32, 80)


def test_a_window_by_hand():
    """100 high, 60 wide, cropped to a square of 80 % of the shorter side: 48 pixels around the middle."""
    assert preprocessing((4, 4), "crop", 0.8).window((100, 60)) == (6, 26, 54, 74)
    assert preprocessing((2, 4), "crop").window((100, 60)) == (0, 35, 60, 65)
    assert preprocessing((4, 4), "stretch").window((100, 60)) == (0, 0, 60, 100)
    assert patch_box((6, 26, 54, 74), (4, 4), 1, 3) == (42, 38, 54, 50)
    picture = np.zeros((100, 60, 3), np.uint8)
    drawn = overlay(picture, hot((4, 4), 1, 3), (6, 26, 54, 74))
    assert drawn.shape == picture.shape and drawn.dtype == np.uint8 and drawn.flags.writeable
    inside, bright, faded = drawn[26:74, 6:54], drawn[38:50, 42:54], drawn[0, 0]
    assert (bright == bright[0, 0]).all() and (faded > 190).all() and len(set(faded.tolist())) == 1
    others = inside.copy()
    others[12:24, 36:48] = inside[0, 0]
    assert (others == inside[0, 0]).all() and not (inside[0, 0] == bright[0, 0]).any()
    drawn[26:74, 6:54] = faded
    assert (drawn == faded).all()


def test_colours_are_those_of_the_bar_whatever_the_picture():
    """The largest weight has the bar's top colour over grey, zero its lowest; black and white shift both only a little."""
    weights = np.array([[0.0, 0.25], [0.125, 0.625]], np.float32)
    bar = ramp(201)
    grey = overlay(np.full((2, 2, 3), 128, np.uint8), weights)
    assert np.abs(grey[1, 1].astype(int) - bar[0]).max() <= 1 and np.abs(grey[0, 0].astype(int) - bar[200]).max() <= 1
    assert np.abs(grey[0, 1].astype(int) - bar[120]).max() <= 2  # 0.25 / 0.625 is two fifths of the way up
    for shade in (0, 255):
        shown = overlay(np.full((2, 2, 3), shade, np.uint8), weights).astype(int)
        assert np.abs(shown - grey).max() <= 24
        luminance = shown @ [0.299, 0.587, 0.114]
        assert luminance[0, 0] < luminance[1, 0] < luminance[0, 1] < luminance[1, 1]
    table = (np.array(matplotlib.colormaps["viridis"].colors) * 255).round()
    np.testing.assert_array_equal(colours(), table)


def test_values_of_the_bar_are_round_and_few():
    for highest, expected in (
        (0, [0]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (1.65, [0, 0.5, 1, 1.5]), (8, [0, 2, 4, 6, 8]), (13.2, [0, 5, 10]),
        (1023, [0, 500, 1000]),
    ):  # fmt: skip
        assert _ticks(highest) == pytest.approx(expected)


def test_colours_of_the_picture_become_their_luminance():
    picture = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(picture).convert("L"))[..., None]
    weights, box = np.array([[0.1, 0.9]], np.float32), (1, 1, 5, 5)
    assert np.array_equal(overlay(picture, weights, box), overlay(grey, weights, box))
    assert not np.array_equal(overlay(picture, weights), overlay(picture[..., ::-1], weights))


def test_a_shared_scale_and_an_empty_map():
    picture = np.full((4, 4, 1), 100, np.uint8)
    half = overlay(picture, np.full((1, 1), 0.5, np.float32), highest=1.0)
    assert np.array_equal(half, overlay(picture, np.array([[0.5, 0.5], [0.5, 0.5]], np.float32), highest=1.0))
    assert not np.array_equal(half, overlay(picture, np.full((1, 1), 0.5, np.float32)))
    zero = overlay(picture, np.zeros((2, 2), np.float32))
    assert np.abs(zero[0, 0].astype(int) - ramp(2)[1]).max() < 12


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "grid"), [((1, 1), (12, 9)), ((5, 7), (7, 5)), ((40, 31), (12, 1)), ((9, 40), (4, 7))]
)
def test_every_pixel_has_the_colour_of_the_patch_its_centre_lies_on(size, grid, channels):
    """Also in pictures smaller than the grid; nothing is faded where the model sees the whole picture."""
    weights = np.random.default_rng(0).random(grid, dtype=np.float32)
    drawn = overlay(np.full((*size, channels), 255, np.uint8), weights)
    assert drawn.shape == (*size, 3)
    for row, col in np.ndindex(size):
        patch = int((row + 0.5) / size[0] * grid[0]), int((col + 0.5) / size[1] * grid[1])
        level = int(np.round(weights[patch] / weights.max() * 255))
        expected = 0.65 * colours()[level] + 0.35 * 192  # white is softened to 192 below the colours
        assert np.abs(drawn[row, col] - expected).max() <= 1


def test_the_overlay_needs_no_torch():
    code = "import sys, vitrail.inspection.figure; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


HOSTILE = "$x^2$ <b>\n[red]\t\x00 Käse 猫 \U0001f431 " + "W" * 5000


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (300, 500), (2000, 30), (9, 3000), (1500, 2600)])
def test_figures_of_any_picture_with_any_words(size):
    """Everything stays inside the margins, and both panels are there."""
    weights = np.random.default_rng(1).random((3, 5), dtype=np.float32)
    picture = np.full((*size, 3), 30, np.uint8)
    box = Preprocessing((48, 80), fit="crop").window(size)
    drawn = figure(picture, weights / weights.sum(), box, HOSTILE, HOSTILE, marked=(2, 4))
    assert drawn.dtype == np.uint8 and drawn.shape[1] >= 760 and max(drawn.shape) < 2 * PANEL + 400
    for edge in (drawn[:26], drawn[-20:], drawn[:, :26], drawn[:, -26:]):
        assert (edge == 255).all()


def ink(picture):
    return (picture < 100).all(axis=2)


def test_a_figure_shows_picture_overlay_bar_and_words():
    picture = np.full((64, 32, 3), (200, 30, 30), np.uint8)
    plain = figure(picture, hot((4, 2), 0, 0), (0, 0, 32, 64), "", "")
    red = (plain == (200, 30, 30)).all(axis=2)
    rows, cols = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert len(rows) == 640 and len(cols) == 320 and red.sum() == 640 * 320  # the picture, ten times as large
    left = cols[-1] + 1 + 24
    panel = plain[rows[0] : rows[-1] + 1, left : left + 320]
    assert np.array_equal(panel, overlay(picture.repeat(10, 0).repeat(10, 1), hot((4, 2), 0, 0)))
    seen = figure(picture, hot((4, 2), 1, 1), (8.0, 16.0, 24.0, 48.0), "", "")
    window = seen[rows[0] : rows[-1] + 1, left : left + 320].copy()
    large = overlay(picture.repeat(10, 0).repeat(10, 1), hot((4, 2), 1, 1), (80, 160, 240, 480))
    differs = np.flatnonzero((window != large).any(axis=2).any(axis=1))  # the outline of the window, and nothing else
    assert len(differs) and differs.min() >= 158 and differs.max() <= 481
    assert np.array_equal(window[163:477, 83:237], large[163:477, 83:237])
    bar = plain[rows[0] : rows[-1] + 1, left + 320 + 24 + 10]
    np.testing.assert_array_equal(bar, ramp(640))
    values = ink(plain[:, left + 320 + 24 + 22 + 8 :])
    assert all(
        values[rows[0] + 639 - level * 80 - 4 : rows[0] + 639 - level * 80 + 4].any() for level in (0, 2, 4, 6, 8)
    )
    assert not values[rows[0] + 60 : rows[0] + 130].any()  # between eight times and six times the even share
    title, caption = slice(0, 60), slice(rows[-1] + 10, None)
    assert not ink(plain[title]).any() and not ink(plain[caption]).any()
    named = figure(picture, hot((4, 2), 0, 0), (0, 0, 32, 64), "cat.png: cat", "rollout")
    assert ink(named[title]).any() and ink(named[caption]).any()
    marked = figure(picture, hot((4, 2), 0, 0), (0, 0, 32, 64), "", "", marked=(3, 1))
    changed = (marked != plain).any(axis=2)[:, : left - 10]
    rows_changed, cols_changed = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert abs(rows_changed[0] - (rows[0] + 480)) <= 2 and abs(cols_changed[0] - (cols[0] + 160)) <= 2
