"""Equal to the official implementation: the fixtures were made by running its code."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vitrail
from vitrail.checkpoints.adapt import adapt
from vitrail.checkpoints.loading import at_size, read
from vitrail.model.positions import SineCosineTable, resample

VITS = ["a_token", "b_token_rep", "c_gap", "e_nonsquare"]
NAMES = [name + strength for name in VITS for strength in ("", "_strong")]


def tolerance(name):
    return 3e-5 if name.endswith("_strong") else 1e-6


def images_of(arrays, key="images"):
    return torch.from_numpy(arrays[key]).permute(0, 3, 1, 2).contiguous()


def load(parity_path, name):
    return vitrail.load(parity_path(f"{name}.params"), image_size=(64, 96) if "nonsquare" in name else None).module


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_every_intermediate(parity, parity_path, name):
    arrays, model = parity(f"{name}.io"), load(parity_path, name)

    def same(key, values, loosen=1.0):
        # Intermediates are larger than the logits: the tolerance is relative to their own scale.
        scale = max(1.0, np.abs(arrays[key]).max()) if key != "logits" else 1.0
        np.testing.assert_allclose(values.numpy(), arrays[key], rtol=0, atol=tolerance(name) * scale * loosen)

    with torch.no_grad():
        images = images_of(arrays)
        same("logits", model(images))
        patches = model.tokenizer(images)
        same("patch_embedding", patches.values.reshape(len(images), *patches.grid, -1))
        tokens = model.embed(images)
        same("with_posembed", tokens.values)
        for index, block in enumerate(model.blocks):
            tokens = block(tokens, model.position)
            same(f"block_{index}", tokens.values)
        same("encoded", model.pool.norm(tokens.values))
        same("encoded", model.features(images)[0].values)
        same("pre_logits", model.represent(images))


@pytest.mark.parametrize("name", ["a_token_strong"])
def test_the_other_gelu_or_epsilon_would_be_noticed(parity, parity_path, name):
    """The tolerance separates the official numerics from their usual confusions."""
    arrays, model = parity(f"{name}.io"), load(parity_path, name)
    for block in model.blocks:
        block.mlp.activate = torch.nn.functional.gelu
    with torch.no_grad():
        assert np.abs(model(images_of(arrays)).numpy() - arrays["logits"]).max() > 2 * tolerance(name)


@pytest.mark.parametrize("strength", ["", "_strong"])
@pytest.mark.parametrize("side", [6, 7])
def test_position_grid_resized(parity, parity_path, strength, side):
    arrays = parity(f"h_posembed{strength}.io")
    checkpoint = at_size(read(parity_path(f"a_token{strength}.params")), (16 * side, 16 * side))
    rows = checkpoint.weights["position.tables.0.rows"]
    np.testing.assert_allclose(rows.numpy()[None], arrays[f"pos_embedding_{side}x{side}"], rtol=0, atol=1e-6)
    with torch.no_grad():
        model = checkpoint.build()
        images = images_of(arrays, f"images_{side}x{side}")
        logits, encoded = model(images), model.features(images)[0].values
    np.testing.assert_allclose(logits.numpy(), arrays[f"logits_{side}x{side}"], rtol=0, atol=tolerance(strength))
    scale = np.abs(arrays[f"encoded_{side}x{side}"]).max()
    np.testing.assert_allclose(encoded, arrays[f"encoded_{side}x{side}"], rtol=0, atol=tolerance(strength) * scale)


@pytest.mark.parametrize("strength", ["", "_strong"])
def test_every_resized_table(parity, strength):
    arrays = parity(f"h_posembed{strength}.io")
    old = torch.from_numpy(arrays["pos_embedding_in"])[0, 1:]
    sizes = [key.split("_")[-1] for key in arrays if key.startswith("pos_embedding_nocls_")]
    assert len(sizes) >= 4
    for size in sizes:
        grid = tuple(int(side) for side in size.split("x"))
        new = resample(old, (4, 4), grid)
        np.testing.assert_allclose(new[None], arrays[f"pos_embedding_nocls_{size}"], rtol=0, atol=1e-6)


def test_resizing_on_the_fly_equals_baking(parity, parity_path):
    arrays, model = parity("h_posembed_strong.io"), load(parity_path, "a_token_strong")
    with torch.no_grad():
        np.testing.assert_allclose(
            model(images_of(arrays, "images_6x6")),
            model.at((96, 96))(images_of(arrays, "images_6x6")),
            rtol=0,
            atol=1e-6,
        )


@pytest.mark.parametrize("strength", ["", "_strong"])
@pytest.mark.parametrize(("source", "keep"), [("a_token", False), ("b_token_rep", False), ("b_token_rep", True)])
def test_adapted_for_fine_tuning(parity, parity_path, source, keep, strength):
    arrays = parity(f"h2_adapt_{source}_{'keeprep' if keep else 'droprep'}{strength}")
    adapted = adapt(read(parity_path(f"{source}{strength}.params")), list("abcde"), (96, 96), keep_representation=keep)
    weights = adapted.weights
    np.testing.assert_allclose(
        weights["position.tables.0.rows"].numpy()[None], arrays["Transformer/posembed_input/pos_embedding"], atol=1e-6
    )
    np.testing.assert_array_equal(weights["pool.class_token"].numpy()[None], arrays["cls"])
    np.testing.assert_array_equal(weights["head.linear.weight"].numpy().T, arrays["head/kernel"])
    np.testing.assert_array_equal(weights["head.linear.bias"], arrays["head/bias"])
    assert ("head.represent.0.weight" in weights) == keep
    if keep:
        np.testing.assert_array_equal(weights["head.represent.0.weight"].numpy().T, arrays["pre_logits/kernel"])
        np.testing.assert_array_equal(weights["head.represent.0.bias"], arrays["pre_logits/bias"])
    with torch.no_grad():
        assert not adapted.build()(torch.randn(2, 3, 96, 96)).any()  # a zeroed head says nothing yet


def test_adapted_to_a_grid_that_is_not_square(parity, parity_path):
    adapted = adapt(read(parity_path("a_token_strong.params")), list("ab"), (48, 112))
    rows, old = adapted.weights["position.tables.0.rows"], parity("a_token_strong.params")
    old = old["Transformer/posembed_input/pos_embedding"][0]
    assert rows.shape == (1 + 3 * 7, 64)
    np.testing.assert_array_equal(rows[0], old[0])
    # Independent: bilinear interpolation with aligned corners, written out.
    grid = old[1:].reshape(4, 4, 64).astype(np.float64)
    for row in range(3):
        for col in range(7):
            y, x = row * 3 / 2, col * 3 / 6
            top, left = min(int(y), 2), min(int(x), 2)
            down, right = y - top, x - left
            value = (grid[top, left] * (1 - right) + grid[top, left + 1] * right) * (1 - down)
            value += (grid[top + 1, left] * (1 - right) + grid[top + 1, left + 1] * right) * down
            np.testing.assert_allclose(rows[1 + row * 7 + col], value, atol=1e-6)


def test_sine_cosine_table(parity):
    arrays = parity("k_sincos2d.io")
    for key, grid, dim in (("h4_w6_d64", (4, 6), 64), ("h14_w14_d32", (14, 14), 32)):
        np.testing.assert_allclose(SineCosineTable(dim, 10_000.0)(grid)[None], arrays[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_exact(parity, parity_path, tmp_path, name):
    """npz -> Vitrail -> npz gives the same arrays, and the model folder gives the same tensors."""
    size = (64, 96) if "nonsquare" in name else None
    checkpoint = read(parity_path(f"{name}.params"), size)
    vitrail.save(checkpoint, tmp_path / "again.npz")
    original, again = parity(f"{name}.params"), dict(np.load(tmp_path / "again.npz"))
    assert original.keys() == again.keys()
    for key in original:
        assert original[key].tobytes() == again[key].tobytes() and original[key].shape == again[key].shape, key
    vitrail.save(checkpoint, tmp_path / "folder")
    stored = read(tmp_path / "folder")
    assert stored.config == checkpoint.config and stored.preprocessing == checkpoint.preprocessing
    assert all(torch.equal(stored.weights[key], checkpoint.weights[key]) for key in checkpoint.weights)


def test_todays_spelling_is_read_too(parity, parity_path, tmp_path):
    arrays = parity("b_token_rep_strong.params")
    spelling = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0", "LayerNorm_2": "LayerNorm_1"}
    spelling |= {"MlpBlock_3": "MlpBlock_0"}
    linen = {"/".join(spelling.get(part, part) for part in key.split("/")): value for key, value in arrays.items()}
    assert linen.keys() != arrays.keys()
    np.savez(tmp_path / "linen.npz", **linen)
    old, new = read(parity_path("b_token_rep_strong.params")), read(tmp_path / "linen.npz")
    assert old.config == new.config
    assert all(torch.equal(old.weights[key], new.weights[key]) for key in old.weights)


def test_npz_keeps_preprocessing_and_class_names(parity_path, tmp_path):
    """They lie in the comment of the zip: the arrays stay the official ones, and nothing is guessed later."""
    checkpoint = read(parity_path("e_nonsquare_strong.params"), (64, 96))
    own = replace(checkpoint.preprocessing, mean=(0.1, 0.2, 0.3), fit="crop", interpolation="bicubic")
    named = replace(checkpoint, preprocessing=own, classes=tuple("abcdefghijk"), multi_label=True)
    vitrail.save(named, tmp_path / "own.npz")
    again = read(tmp_path / "own.npz")  # not even the image size need be said again
    assert (again.config, again.preprocessing) == (named.config, own)
    assert (again.classes, again.multi_label) == (named.classes, True)
    with pytest.raises(vitrail.VitrailError, match="65,535"):
        vitrail.save(
            replace(named, classes=tuple("x" * 9000 + letter for letter in "abcdefghijk")), tmp_path / "no.npz"
        )
    assert not (tmp_path / "no.npz").exists()
