"""big_vision's other files: SigLIP's tower for images, towers without a last layer, blocks that were scanned."""

import re

import numpy as np
import pytest
import torch

import vitrail
from official import refused
from test_parity import images_of
from vitrail.checkpoints.loading import read
from vitrail.model.heads import Features

NAME = "i2_bv_learn_map_strong"
BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.*)")


def scanned(arrays):
    found = {}
    for name, array in arrays.items():
        match = BLOCK.fullmatch(name)
        if match is None:
            found[name] = array
        elif match[1] == "0":
            layers = [arrays[f"Transformer/encoderblock_{layer}/{match[2]}"] for layer in range(3)]
            found[f"Transformer/encoderblock/{match[2]}"] = np.stack(layers)
    return found


def headless(arrays):
    return {name: array for name, array in arrays.items() if not name.startswith("head/")}


def tower(arrays):
    texts = {"params/txt/Encoder_0/encoder_norm/scale": np.ones(3, np.float32), "params/t": np.ones(1, np.float32)}
    return {f"params/img/{name}": array for name, array in arrays.items()} | texts


@pytest.mark.parametrize("change", [scanned, lambda arrays: tower(scanned(headless(arrays)))], ids=["scan", "siglip"])
def test_the_same_model_stored_in_other_ways(parity, tmp_path, change):
    arrays, io = parity(f"{NAME}.params"), parity(f"{NAME}.io")
    np.savez(tmp_path / "x.npz", **change(arrays))
    loaded = vitrail.load(tmp_path / "x.npz")
    assert loaded.checkpoint.provenance["format"] == "big-vision-npz"
    with torch.no_grad():
        features, logits = loaded.module.represent(images_of(io)), loaded.module(images_of(io))
    np.testing.assert_allclose(features, io["pre_logits"], rtol=0, atol=3e-5)
    if change is scanned:
        np.testing.assert_allclose(logits, io["logits"], rtol=0, atol=3e-5)
        return
    assert loaded.checkpoint.config.head == Features() and loaded.classes == ()
    again = read(vitrail.save(loaded, tmp_path / "again.npz", format="big-vision-npz"))
    assert again.config == loaded.checkpoint.config
    assert all(torch.equal(again.weights[name], value) for name, value in loaded.checkpoint.weights.items())


def test_a_scanned_block_is_as_strict(parity, tmp_path):
    arrays = scanned(parity(f"{NAME}.params"))
    name = "Transformer/encoderblock/LayerNorm_0/scale"
    short = {
        **arrays,
        name: arrays[name][:2],
        "Transformer/encoderblock/LayerNorm_1/bias": np.zeros((10**7, 1), np.int8),
    }
    np.savez(tmp_path / "x.npz", **short)
    said = refused("VT073", tmp_path / "x.npz")
    assert "encoderblock_2/LayerNorm_0/scale" in said and "LayerNorm_1/bias" in said
