"""Hybrids, ResNets, the Mixer, big_vision's ViT and FlexiViT's kernels: equal to the official code, layer by layer."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vitrail
from official import formats_of
from test_parity import images_of, tolerance
from vitrail.checkpoints import official_npz
from vitrail.checkpoints.checkpoint import unfilled
from vitrail.checkpoints.loading import at_size, read
from vitrail.model.backbone import Backbone
from vitrail.model.heads import TanhHead
from vitrail.model.positions import resample
from vitrail.model.sizes import named
from vitrail.model.tokenizers import resample_kernels

HYBRIDS = ("d1_hybrid", "d2_hybrid")
RESNETS = ("f1_vitjax_resnet_only", "f2_bv_bit_v1", "f3_bv_bit_paper_v2")
VITS = ("i1_bv_sincos_gap_rep", "i2_bv_learn_map", "i3_bv_learn_tok", "i4_bv_learn_gap")
FORMAT = {"d": "official-npz", "f1": "official-npz", "g": "official-npz", "f2": "big-vision-npz", "f3": "big-vision-npz",
          "i": "big-vision-npz"}  # fmt: skip


def both(*names):
    return [name + strength for name in names for strength in ("", "_strong")]


def size_of(name):
    return (64, 96) if name.startswith("i1") else None


@pytest.fixture
def opened(parity, parity_path):
    """The official arrays, the module, and a check of one of them against the other."""

    def open_both(name):
        arrays = parity(f"{name}.io")
        model = vitrail.load(parity_path(f"{name}.params"), image_size=size_of(name)).module

        def same(key, values):
            # Intermediates are larger than the logits: the tolerance is relative to their own scale. What comes out of a
            # trunk of plain weights is farther from float64, in jax (1.5e-6 of the largest) as here (1.9e-6).
            scale = max(1.0, np.abs(arrays[key]).max()) if key != "logits" else 1.0
            scale *= 4 if name in (*HYBRIDS, *RESNETS) and key != "logits" else 1
            assert values.shape == arrays[key].shape
            np.testing.assert_allclose(values.numpy(), arrays[key], rtol=0, atol=tolerance(name) * scale, err_msg=key)
            unseen.discard(key)

        unseen = set(arrays) - {"images"}
        return model, images_of(arrays), same, unseen

    with torch.no_grad():
        yield open_both


def last(values):
    """Channels last, as theirs."""
    return values.permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", both(*HYBRIDS))
def test_hybrids(opened, name):
    model, images, same, unseen = opened(name)
    same("logits", model(images))
    trunk = model.tokenizer.trunk
    same("gn_root", last(trunk.root.norm(trunk.root.convolve(images))))
    for index, level in enumerate(trunk(images) if len(trunk.stages) else [], start=1):
        same(f"block{index}", last(level))
    tokens = model.tokenizer(images)
    same("patch_embedding", tokens.values.reshape(len(images), *tokens.grid, -1))
    tokens = model.embed(images)
    same("with_posembed", tokens.values)
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, model.position)
        same(f"block_{index}", tokens.values)
    same("encoded", model.features(images)[0].values)
    same("pre_logits", model.represent(images))
    assert not unseen


@pytest.mark.parametrize("name", both(*RESNETS))
def test_resnets(opened, name):
    model, images, same, unseen = opened(name)
    root, maps = model.trunk.root(images), model.trunk(images)
    same("logits", model(images))
    same("pre_logits", model.represent(images))
    if name.startswith("f1"):
        same("gn_root", last(model.trunk.root.norm(model.trunk.root.convolve(images))))
        same("block1", last(maps[0]))
        same("block2", last(maps[1]))
        same("patch_embedding", model.head.represent(last(maps[1])))
    else:
        same("stem", last(root))
        same("pre_logits_2d", last(maps[-1]))
        same("logits_2d", model.head.linear(last(maps[-1])))
    if name.startswith("f2"):
        same("stage1", last(maps[0]))
        same("stage2", last(maps[1]))
    if name.startswith("f3"):
        before = root
        for stage in model.trunk.stages:
            before = stage(before)
        same("norm_pre_head", last(model.trunk.last[0](before)))
    assert not unseen


@pytest.mark.parametrize("name", both("g_mixer"))
def test_mixer(opened, name):
    model, images, same, unseen = opened(name)
    same("logits", model(images))
    tokens = model.embed(images)
    same("stem", tokens.values.reshape(len(images), *tokens.grid, -1))
    for index, block in enumerate(model.blocks):
        tokens = block(tokens, model.position)
        same(f"block_{index}", tokens.values)
    same("pre_head_layer_norm", model.features(images)[0].values)
    assert not unseen


@pytest.mark.parametrize("name", both(*VITS))
def test_vits_of_big_vision(opened, name):
    model, images, same, unseen = opened(name)
    same("logits", model(images))
    tokens = model.tokenizer(images)
    same("stem", tokens.values.reshape(len(images), *tokens.grid, -1))
    tokens = model.embed(images)
    same("with_posemb", tokens.patches)
    same("encoded", model.features(images)[0].values)
    same("head_input", model.pool(model.encode(tokens)))
    same("pre_logits", model.represent(images))
    assert not unseen


@pytest.mark.parametrize("strength", ["", "_strong"])
def test_bit_under_its_own_names(parity, parity_path, strength):
    """The same weights. big_vision pools them without a border; BiT's own code, which made such files, with zeros."""
    linen = read(parity_path(f"f3_bv_bit_paper_v2{strength}.params"))
    tensorflow = read(parity_path(f"f3_bv_bit_paper_v2{strength}.params_tfnames"))
    assert linen.weights.keys() == tensorflow.weights.keys()
    assert all(torch.equal(linen.weights[name], tensorflow.weights[name]) for name in linen.weights)
    numerics = replace(tensorflow.config.trunk.numerics, border="nothing")
    as_there = replace(tensorflow.config, trunk=replace(tensorflow.config.trunk, numerics=numerics))
    assert as_there == linen.config
    arrays = parity(f"f3_bv_bit_paper_v2{strength}.io")
    with torch.no_grad():
        logits = replace(tensorflow, config=as_there).build()(images_of(arrays))
        own = tensorflow.build()(images_of(arrays))
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=tolerance(strength))
    assert 1e-4 < np.abs(own.numpy() - arrays["logits"]).max() < 1e-2  # the border is seen, and is small


@pytest.mark.parametrize("name", both(*HYBRIDS, *RESNETS, "g_mixer", *VITS, "f3_bv_bit_paper_v2.tfnames"))
def test_round_trip_is_bit_exact(parity, parity_path, tmp_path, name):
    """npz -> Vitrail -> npz gives the same arrays in the same format, and the model folder the same tensors."""
    stem = name.replace(".tfnames", "")
    file = f"{stem}.params_tfnames" if ".tfnames" in name else f"{stem}.params"
    checkpoint = read(parity_path(file), size_of(name))
    wanted = "bit-npz" if ".tfnames" in name else next(FORMAT[key] for key in FORMAT if name.startswith(key))
    assert checkpoint.provenance["format"] == wanted
    assert formats_of(parity_path(file)) == [wanted]
    vitrail.save(checkpoint, tmp_path / "again.npz")
    original, again = parity(file), dict(np.load(tmp_path / "again.npz"))
    assert original.keys() == again.keys()
    for key in original:
        assert original[key].tobytes() == again[key].tobytes(), key
        # Group norms are written as the released files have them: (1, 1, 1, C).
        assert original[key].shape == again[key].shape or again[key].shape == (1, 1, 1, *original[key].shape), key
    found = read(tmp_path / "again.npz")
    assert (found.config, found.preprocessing) == (checkpoint.config, checkpoint.preprocessing)
    vitrail.save(checkpoint, tmp_path / "folder")
    stored = read(tmp_path / "folder")
    assert stored.config == checkpoint.config and stored.preprocessing == checkpoint.preprocessing
    assert all(torch.equal(stored.weights[key], checkpoint.weights[key]) for key in checkpoint.weights)
    assert isinstance(stored.build(), Backbone)


def test_patch_kernels_resized(parity):
    """FlexiViT's pseudo-inverse, smaller and larger."""
    arrays = parity("n_flexi_patchemb.io")
    kernel = torch.from_numpy(arrays["kernel"])
    for key in arrays.keys() - {"kernel"}:
        patch = tuple(int(side) for side in key.removeprefix("kernel_").split("x"))
        found = resample_kernels(kernel, patch)
        assert found.shape == arrays[key].shape and found.dtype == kernel.dtype
        scale = np.abs(arrays[key]).max()
        np.testing.assert_allclose(found, arrays[key], rtol=0, atol=1e-5 * scale, err_msg=key)
    assert resample_kernels(kernel, (16, 16)) is kernel


def test_larger_patches_of_an_enlarged_picture_are_the_same_tokens(parity_path):
    """What the pseudo-inverse is for; through `at_size`, where the grid, and so the positions, stay what they were."""
    checkpoint = read(parity_path("i4_bv_learn_gap_strong.params"))
    larger = at_size(checkpoint, (96, 128), (24, 32))
    assert larger.config.tokenizer.patch == (24, 32) and larger.preprocessing.image_size == (96, 128)
    assert torch.equal(larger.weights["position.tables.0.rows"], checkpoint.weights["position.tables.0.rows"])
    small = torch.randn(2, 3, 64, 64)
    patches = small.reshape(2, 3, 4, 16, 4, 16).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 16, 16)
    grown = torch.nn.functional.interpolate(patches, (24, 32), mode="bilinear")  # each patch by itself
    grown = grown.reshape(2, 4, 4, 3, 24, 32).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 96, 128)
    with torch.no_grad():
        expected, found = checkpoint.build()(small), larger.build()(grown)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_other_patches_on_the_same_picture_resample_the_positions(parity_path):
    checkpoint = read(parity_path("i4_bv_learn_gap_strong.params"))
    finer = at_size(checkpoint, patch=(8, 16))
    assert finer.config.grid == (8, 4) and finer.config.image_size == (64, 64)
    adapted = vitrail.adapt(checkpoint, ["a", "b"], (48, 48), patch=(8, 8))
    assert adapted.config.grid == (6, 6) and adapted.build()(torch.randn(1, 3, 48, 48)).shape == (1, 2)
    with pytest.raises(vitrail.VitrailError, match="linear patches"):
        at_size(read(parity_path("d1_hybrid.params")), patch=(4, 4))


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 5)), ((6, 5), (3, 4)), ((4, 4), (2, 8))])
def test_antialiased_resampling_equals_triangles(old, new):
    """jax.image.resize "linear": every new place weighs the old ones by a triangle, wider where the table shrinks."""

    def weights(before, after):
        scale = max(1.0, before / after)
        found = np.zeros((after, before))
        for place in range(after):
            centre = (place + 0.5) * before / after
            for one in range(before):
                found[place, one] = max(0.0, 1 - abs(one + 0.5 - centre) / scale)
        return found / found.sum(1, keepdims=True)

    rows = torch.randn(old[0] * old[1], 3, generator=torch.Generator().manual_seed(0))
    grid = rows.double().numpy().reshape(*old, 3)
    expected = np.einsum("ra,kb,abd->rkd", weights(old[0], new[0]), weights(old[1], new[1]), grid)
    found = resample(rows, old, new, "antialiased")
    np.testing.assert_allclose(found, expected.reshape(-1, 3), rtol=0, atol=1e-6)
    assert not np.allclose(found, resample(rows, old, new), atol=1e-2)


def listed_keys():
    """Heading -> {name: shape} of the released files, as the official code's own shapes."""
    path = Path(__file__).parents[2] / "shared" / "reference" / "checkpoint_keys.txt"
    if not path.is_file():
        pytest.skip("the list of released names is not beside the project (../shared/reference/checkpoint_keys.txt)")
    found = {}
    for line in path.read_text().splitlines():
        if line.startswith("## "):
            keys = found.setdefault(line.removeprefix("## "), {})
        elif "\t" in line:
            name, shape = line.split("\t")
            keys[name] = tuple(int(side) for side in re.findall(r"\d+", shape))
    return found


RELEASED = {
    "imagenet21k ViT-B_16": replace(named("ViT-B/16"), head=TanhHead(21_843, 768)),
    "ViT-B_16 fine-tuned": named("ViT-B/16", image_size=(384, 384)),
    "R50+ViT-B_16 (384": named("R50+ViT-B/16", image_size=(384, 384)),
    "imagenet21k R50+ViT-B_16": replace(named("R50+ViT-B/16"), head=TanhHead(21_843, 768)),
    "R+ViT-Ti_16": named("R+ViT-Ti/16"),
    "R26+ViT-S_32": named("R26+ViT-S/32"),
    "Mixer-B_16": named("Mixer-B/16"),
}


def test_names_are_those_of_the_released_files():
    """Every array of seven released models, and no other."""
    headings = listed_keys()
    assert len(headings) == len(RELEASED)
    for heading, keys in headings.items():
        config = next(config for start, config in RELEASED.items() if heading.startswith(start))
        table = dict(pair for entry in official_npz._entries(config) for pair in entry.foreign)
        assert {name: shape[3:] if shape[:3] == (1, 1, 1) else shape for name, shape in table.items()} == {
            name: shape[3:] if shape[:3] == (1, 1, 1) else shape for name, shape in keys.items()
        }
        assert {entry.native for entry in official_npz._entries(config)} == unfilled(config).state_dict().keys()
