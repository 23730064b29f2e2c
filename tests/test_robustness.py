"""Pictures changed for the robustness report: an oracle or a property for every way of changing them."""

import numpy as np
import pytest

from vitrail.data.stylised import with_amplitudes_of
from vitrail.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from vitrail.evaluation.displacement import Corner, MovingCrop, Permutation, Translation, moved, pieces, shuffled
from vitrail.evaluation.frequencies import averaged, blurred, mirrored, spectral_residual, whitened
from vitrail.evaluation.occlusion import Occlusion, correlation, covered, hidden, order_of
from vitrail.evaluation.texture import LowPass, PhaseOnly, StyleRandomised, decided
from vitrail.evaluation.trials import Shown, generator
from vitrail.evaluation.warping import convolved, disk, line, warped, zoomed

LUCK = np.random.default_rng(0)
COLOUR = LUCK.integers(0, 256, (5, 3, 12, 18), dtype=np.uint8)  # higher and wider, neither square nor a power of two
GREY = LUCK.integers(0, 256, (4, 1, 28, 28), dtype=np.uint8)


def shown(images=COLOUR, seed=0, names=None):
    targets = np.eye(3, dtype=np.float32)[np.arange(len(images)) % 3]
    names = names or tuple(f"picture {index}" for index in range(len(images)))

    def larger(more):
        return np.pad(images, ((0, 0), (0, 0), (0, more[0]), (0, more[1])), mode="edge")

    return Shown(images, names, targets, seed, lambda: (images[::-1], targets[::-1]), larger)


def smooth(images):
    """Pictures with something to see, so that blur and noise are told apart."""
    return np.round(blurred(images.astype(np.float64), 1.5)).astype(np.uint8)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_occlusion_hides_the_share_that_it_says(share):
    batch = shown(np.full((3, 1, 28, 42), 200, np.uint8))
    for which in ("random", "salient", "non-salient"):
        changed = Occlusion(which, "black").changed(batch, share)
        # 14 x 14 cells of 2 x 3 pixels.
        assert [(image == 0).sum() for image in changed] == [round(share * 196) * 6] * 3


def test_more_occlusion_hides_what_less_did_and_other_cells_of_another_picture():
    batch = shown(np.full((3, 1, 28, 28), 200, np.uint8))
    little, much = (Occlusion("random").changed(batch, share) == 0 for share in (0.25, 0.5))
    assert (much | ~little).all()
    assert (little[0] != little[1]).any()


def test_occlusion_takes_the_salient_cells_first_and_the_fill_is_the_one_asked_for():
    maps = np.arange(5 * 4 * 6, dtype=float).reshape(5, 4, 6)
    batch = shown()
    gone = hidden(order_of("salient", batch, maps), 0.25).reshape(maps.shape)
    np.testing.assert_array_equal(gone, maps >= np.sort(maps.reshape(5, -1))[:, -6][:, None, None])
    kept = hidden(order_of("non-salient", batch, maps), 0.25).reshape(maps.shape)
    np.testing.assert_array_equal(kept, maps <= np.sort(maps.reshape(5, -1))[:, 5][:, None, None])
    inside = np.repeat(np.repeat(gone, 3, axis=1), 3, axis=2)
    mean = covered(COLOUR, gone, "mean", batch)
    for image, found, mask in zip(COLOUR, mean, inside, strict=True):
        np.testing.assert_array_equal(found[:, ~mask], image[:, ~mask])
        assert (np.round(image.mean(axis=(1, 2))) == found[:, mask].T).all()
    noise = covered(COLOUR, gone, "noise", batch)
    assert noise[0][:, inside[0]].std() > 50 and (noise[0][:, ~inside[0]] == COLOUR[0][:, ~inside[0]]).all()


def test_cells_that_are_alike_are_hidden_in_a_random_order():
    batch = shown(np.zeros((40, 1, 28, 28), np.uint8))
    first = order_of("salient", batch, np.zeros((40, 4, 4)))[:, 0]
    assert len(set(first.tolist())) > 5


def test_spectral_residual_finds_the_odd_one_out():
    stripes = np.tile(np.array([60, 60, 180, 180], np.uint8), (1, 1, 32, 8))
    stripes[0, 0, 8:12, 20:24] = 255
    stripes[0, 0, 10, 22] = 0
    map_ = spectral_residual(stripes)[0]
    row, col = np.unravel_index(map_.argmax(), map_.shape)
    assert abs(row - 10) <= 4 and abs(col - 22) <= 4


def test_maps_are_averaged_by_area():
    maps = LUCK.random((2, 6, 9))
    np.testing.assert_allclose(averaged(maps, (2, 3)), maps.reshape(2, 2, 3, 3, 3).mean(axis=(2, 4)))
    np.testing.assert_allclose(averaged(maps, (12, 18)), maps.repeat(2, axis=1).repeat(2, axis=2))
    # By hand: three cells over a row of two have shares of a half.
    np.testing.assert_allclose(averaged(np.array([[[1.0, 4.0]]]), (1, 3)), [[[1.0, 2.5, 4.0]]])
    np.testing.assert_allclose(averaged(maps, (4, 5)).mean(), maps.mean())


def test_features_that_do_not_change_correlate_fully():
    features = LUCK.normal(size=(4, 10)).astype(np.float32)
    other = LUCK.normal(size=(4, 10)).astype(np.float32)
    np.testing.assert_allclose(correlation(features, 3 * features + 2), 1)
    expected = [np.corrcoef(a.astype(float), b.astype(float))[0, 1] for a, b in zip(features, other, strict=True)]
    np.testing.assert_allclose(correlation(features, other), expected)
    assert correlation(features[:1], np.ones((1, 10), np.float32)) == 0


def test_pieces_are_those_that_fit():
    assert pieces((224, 224)) == ((2, 2), (2, 4), (4, 4), (4, 8), (7, 7), (8, 8), (14, 14), (16, 16))
    assert pieces((28, 28)) == ((2, 2), (2, 4), (4, 4), (7, 7), (14, 14))


def test_pieces_in_their_own_order_are_the_picture_and_no_pixel_is_lost():
    np.testing.assert_array_equal(Permutation(((1, 1),)).changed(shown(), 1.0), COLOUR)
    places = np.tile(np.arange(6), (5, 1))
    np.testing.assert_array_equal(shuffled(COLOUR, (2, 3), places), COLOUR)
    swapped = shuffled(COLOUR, (2, 1), np.tile([1, 0], (5, 1)))
    np.testing.assert_array_equal(swapped, np.concatenate([COLOUR[:, :, 6:], COLOUR[:, :, :6]], axis=2))
    changed = Permutation(((4, 6),)).changed(shown(), 24.0)
    assert (changed != COLOUR).any()
    np.testing.assert_array_equal(np.sort(changed.reshape(5, 3, -1)), np.sort(COLOUR.reshape(5, 3, -1)))
    odd = LUCK.integers(0, 256, (2, 1, 13, 13), dtype=np.uint8)  # a row and a column are left over
    changed = Permutation(((4, 4),)).changed(shown(odd), 16.0)
    np.testing.assert_array_equal(changed[:, :, 12:], odd[:, :, 12:])


def test_pictures_are_pushed_and_what_comes_in_is_black():
    for rows, cols in ((0, 0), (2, 0), (-3, 1), (4, -5)):
        expected = np.zeros_like(COLOUR[0])
        for row in range(12):
            for col in range(18):
                if 0 <= row - rows < 12 and 0 <= col - cols < 18:
                    expected[:, row, col] = COLOUR[0][:, row - rows, col - cols]
        np.testing.assert_array_equal(moved(COLOUR[0], rows, cols), expected)
    np.testing.assert_array_equal(Translation((1,)).changed(shown(), 0), COLOUR)


def test_the_crop_moves_over_one_patch_and_the_corner_holds_the_whole_picture():
    crop = MovingCrop((4, 6))
    np.testing.assert_array_equal(crop.changed(shown(), 0.0), COLOUR)
    np.testing.assert_array_equal(crop.changed(shown(), 0.5)[:, :, :-2, :-3], COLOUR[:, :, 2:, 3:])
    light = np.full((20, 1, 28, 28), 200, np.uint8)
    corner = Corner().changed(shown(light), 4 / 7)
    assert {tuple(sorted(np.unique(image))) for image in corner} == {(0, 200)}
    assert (corner == 200).sum(axis=(1, 2, 3)).tolist() == [256] * 20
    touched = {tuple(bool(image[0, r, c]) for r in (0, -1) for c in (0, -1)) for image in corner}
    assert len(touched) == 4 and all(sum(corners) == 1 for corners in touched)


def test_waves_are_those_of_shape_and_texture():
    shape, texture = COLOUR[:2].astype(float), COLOUR[2:4].astype(float)
    found = np.fft.fft2(with_amplitudes_of(shape, texture))
    np.testing.assert_allclose(np.abs(found), np.abs(np.fft.fft2(texture)), atol=1e-8)
    strong = np.abs(found) > 1
    np.testing.assert_allclose(
        np.exp(1j * np.angle(found))[strong], np.exp(1j * np.angle(np.fft.fft2(shape)))[strong], atol=1e-6
    )
    np.testing.assert_allclose(with_amplitudes_of(shape, texture, 0.0), shape, atol=1e-9)
    np.testing.assert_allclose(with_amplitudes_of(shape, shape), shape, atol=1e-9)
    np.testing.assert_array_equal(StyleRandomised().changed(shown(), 0.0), COLOUR)


def test_filters_change_nothing_at_zero_and_all_at_the_end():
    np.testing.assert_array_equal(LowPass().changed(shown(), 0.0), COLOUR)
    np.testing.assert_array_equal(PhaseOnly().changed(shown(), 0.0), COLOUR)
    flat = whitened(COLOUR.astype(float), 1.0)
    sizes = np.abs(np.fft.fft2(flat))
    sizes[..., 0, 0] = np.nan  # the mean stays the picture's own
    np.testing.assert_allclose(np.nanmax(sizes, axis=(-2, -1)), np.nanmin(sizes, axis=(-2, -1)))
    np.testing.assert_allclose(flat.mean(axis=(-2, -1)), COLOUR.mean(axis=(-2, -1)))
    np.testing.assert_allclose(flat.std(axis=(-2, -1)), COLOUR.std(axis=(-2, -1)))
    constant = np.full((1, 1, 8, 8), 7.0)
    np.testing.assert_allclose(whitened(constant, 1.0), constant)


def test_smoothing_equals_a_convolution_with_mirrored_edges():
    scipy = pytest.importorskip("scipy.ndimage", reason="scipy is not installed: pip install scipy")
    images = COLOUR.astype(np.float64)
    expected = scipy.gaussian_filter(images, (0, 0, 1.3, 1.3), mode="reflect", truncate=4)
    np.testing.assert_allclose(blurred(images, 1.3), expected, atol=1e-4)
    kernel = LUCK.random((3, 5))
    expected = np.stack([[scipy.convolve(plane, kernel, mode="reflect") for plane in image] for image in images])
    np.testing.assert_allclose(convolved(images, kernel[None]), expected, atol=1e-3)
    np.testing.assert_array_equal(mirrored(np.array([-2, -1, 0, 3, 4, 5]), 4), [1, 0, 0, 3, 3, 2])


def test_displacements_equal_an_interpolation():
    scipy = pytest.importorskip("scipy.ndimage", reason="scipy is not installed: pip install scipy")
    steps = LUCK.normal(0, 1.5, (5, 2, 12, 18))
    places = np.mgrid[:12, :18] + steps
    found = warped(COLOUR.astype(np.float32), steps)
    for image, place, mine in zip(COLOUR, places, found, strict=True):
        for plane, ours in zip(image.astype(float), mine, strict=True):
            expected = scipy.map_coordinates(plane, place, order=1, mode="reflect")
            np.testing.assert_allclose(ours, expected, atol=1e-3)
    np.testing.assert_array_equal(zoomed(COLOUR.astype(np.float32), 1.0), COLOUR)


def test_kernels_sum_to_one_and_lie_where_they_should():
    for radius in (0.1, 0.5, 1.0, 2.3, 7.0):
        kernel = disk(radius)
        np.testing.assert_allclose(kernel.sum(), 1)
        np.testing.assert_allclose(kernel, kernel.T)
        if radius > 1:  # its area is the circle's
            np.testing.assert_allclose(1 / kernel.max(), np.pi * radius**2, rtol=0.03)
    right, down = line(3.0, 100.0, np.array([0.0, 90.0]))
    assert (right[3, :3] == 0).all() and (right[3, 3:6] > 0.15).all() and right[3].sum() == pytest.approx(1)
    np.testing.assert_allclose(down, right.T, atol=1e-12)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_a_function_of_seed_and_id(name):
    def luck(seed=0, start=0):
        return [generator(seed, name, f"picture {index}") for index in range(start, 5)]

    images = smooth(COLOUR.repeat(2, axis=2).repeat(2, axis=3))
    np.testing.assert_array_equal(corrupted(images, name, 0, luck()), images)
    once = corrupted(images, name, 5, luck())
    assert once.dtype == np.uint8 and once.shape == images.shape and (once != images).any()
    # The same whoever stands beside it in the batch.
    np.testing.assert_array_equal(corrupted(images[2:], name, 5, luck(start=2)), once[2:])
    grey = corrupted(smooth(GREY), name, 5, luck(start=1))
    assert grey.shape == GREY.shape and (grey != smooth(GREY)).any()
    if name in ("gaussian noise", "glass blur", "motion blur", "snow", "frost", "fog", "elastic"):
        assert (corrupted(images, name, 5, luck(seed=1)) != once).any()


def change(before, after, name):
    """How far the pixels are; of fog, which draws all to one grey, how little the picture can be told from them."""
    if name == "fog":
        return 1 - np.corrcoef(before.ravel(), after.ravel())[0, 1]
    return float(np.abs(after.astype(float) - before).mean())


@pytest.mark.parametrize("side", [28, 128])
def test_corruptions_grow_with_severity_on_average(side):
    images = smooth(np.random.default_rng(1).integers(0, 256, (2, 3, side, side), dtype=np.uint8))
    changes = {}
    for name in CORRUPTIONS:
        luck = [[generator(0, name, str(index)) for index in range(2)] for _ in SEVERITIES]
        found = [corrupted(images, name, severity, luck[severity - 1]) for severity in SEVERITIES]
        changes[name] = [change(images, image, name) for image in found]
        assert changes[name][0] < changes[name][-1], name
    mean = np.mean([np.array(change) / change[-1] for change in changes.values()], axis=0)
    assert (np.diff(mean) > 0).all(), mean


def test_shape_bias_counts_the_answers_that_name_one_of_the_two():
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 0]]
    shape = np.eye(4, dtype=np.float32)[[0, 0, 0, 0]]
    texture = np.eye(4, dtype=np.float32)[[1, 1, 1, 0]]
    np.testing.assert_array_equal(decided(logits, shape, texture), [1, 0, np.nan, np.nan])


def test_luck_depends_on_seed_purpose_and_id_alone():
    whole, part = shown(), shown().part(np.array([False, True, False, True, False]))
    np.testing.assert_array_equal(whole.uniform("x", 3)[[1, 3]], part.uniform("x", 3))
    np.testing.assert_array_equal(part.partners[0], COLOUR[::-1][[1, 3]])
    assert (whole.uniform("x", 3) != whole.uniform("y", 3)).all()
    assert (whole.uniform("x", 3) != shown(seed=1).uniform("x", 3)).all()
