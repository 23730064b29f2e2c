"""From a picture to what the model reads: fitted to its size, then normalised, in NumPy and in torch alike."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.errors import DataError
from vitrail.preprocessing import Preprocessing

RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize("shape", [(40, 40), (30, 70), (70, 30), (5, 90)], ids=str)
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (24, 8)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_stretch_is_a_plain_resize(shape, size, channels):
    """The official evaluation: the whole picture at the model's size, whatever its aspect; channels come first."""
    picture = RANDOM.integers(0, 256, (*shape, channels), dtype=np.uint8)
    fitted = Preprocessing(size, channels, mean=(0.5,) * channels, std=(0.5,) * channels)(picture)
    assert fitted.shape == (channels, *size) and fitted.dtype == np.uint8
    for channel in range(channels):
        plain = Image.fromarray(picture[..., channel]).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        assert np.array_equal(fitted[channel], plain)


@pytest.mark.parametrize("shape", [(40, 40), (30, 72), (72, 30)], ids=str)
@pytest.mark.parametrize(("size", "share"), [((10, 10), 1.0), ((10, 10), 0.5), ((10, 20), 1.0), ((20, 10), 0.5)])
def test_crop_is_the_largest_centred_window_of_the_aspect(shape, size, share):
    """A picture that holds its own coordinates shows where it was cut, and that nothing was distorted."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 3, columns * 3, rows * 0], axis=-1).astype(np.uint8)
    fitted = Preprocessing(size, fit="crop", crop_share=share)(picture).astype(np.float64) / 3
    scale = share * min(height / size[0], width / size[1])  # picture's pixels per model's pixel, the same both ways
    for image, axis, side, length in ((fitted[0].mean(1), 0, size[0], height), (fitted[1].mean(0), 1, size[1], width)):
        centres = (length - 1) / 2 + (np.arange(side) - (side - 1) / 2) * scale
        # The antialiasing window is cut at the border of the picture, where the mean moves inwards.
        inner = slice(1, -1)
        assert np.abs(image[inner] - centres[inner]).max() < 0.5, f"axis {axis}"


def test_the_interpolation_is_the_one_asked_for():
    picture = RANDOM.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        plain = Image.fromarray(picture).resize((20, 14), Image.Resampling[name.upper()])
        fitted = Preprocessing((14, 20), interpolation=name)(picture)
        assert np.array_equal(fitted, np.asarray(plain).transpose(2, 0, 1)), name


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalisation_against_float64(channels):
    """(x / 255 - mean) / std for every value a pixel can have, and the same in NumPy and torch."""
    mean, std = tuple(RANDOM.random(channels).tolist()), tuple((RANDOM.random(channels) + 0.05).tolist())
    images = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (2, channels, 16, 16))
    preprocessing = Preprocessing((16, 16), channels, mean=mean, std=std)
    exact = (images / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    ours, torchs = preprocessing.normalise(images), preprocessing.normalise(torch.from_numpy(images.copy()))
    assert ours.dtype == np.float32 and torchs.dtype == torch.float32
    np.testing.assert_allclose(ours, exact, rtol=0, atol=3e-6)
    np.testing.assert_allclose(torchs.numpy(), exact, rtol=0, atol=3e-6)
    np.testing.assert_allclose(ours, torchs.numpy(), rtol=0, atol=1e-6)


def test_the_default_is_the_official_one():
    """The official input pipeline: (x - 127.5) / 127.5."""
    values = np.arange(256, dtype=np.uint8)
    images = np.broadcast_to(values, (1, 3, 1, 256))
    official = (values.astype(np.float64) - 127.5) / 127.5
    np.testing.assert_allclose(Preprocessing().normalise(images)[0, 1, 0], official, rtol=0, atol=1e-6)
    assert Preprocessing().fit == "stretch" and Preprocessing().interpolation == "bilinear"


def test_mixed_images_are_floats_and_are_normalised_alike():
    """Mixup blends before the normalisation, which is linear: both orders agree."""
    first, second = (torch.from_numpy(RANDOM.integers(0, 256, (2, 3, 4, 4), dtype=np.uint8)) for _ in range(2))
    preprocessing = Preprocessing((4, 4), mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    mixed = preprocessing.normalise(torch.lerp(first.float(), second.float(), 0.3))
    apart = torch.lerp(preprocessing.normalise(first), preprocessing.normalise(second), 0.3)
    torch.testing.assert_close(mixed, apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"mean": (0.5,)}, {"std": (0.5, 0.5)}, {"std": (0.5, 0.0, 0.5)}, {"channels": 1}, {"std": (0.5, -1.0, 0.5)}],
    ids=str,
)
def test_impossible_statistics_are_refused(wrong):
    with pytest.raises(DataError) as caught:
        Preprocessing(**wrong)
    assert caught.value.code == "VT034"
