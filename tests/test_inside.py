"""Position similarity, filters, token norms and the logit lens against float64 loops, on every kind of model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import inside
import oracle
from inside import ATTENDING, FLAT, HYBRID, MIXER, PLAIN, RESNET, WITHOUT_CLASSES, classes_for, depths, several, stirred
from samples import CASES, HELD
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.inspection.cka import cka
from vitrail.inspection.distance import attention_distance
from vitrail.inspection.filters import embedding_filters
from vitrail.inspection.heads import head_ablation
from vitrail.inspection.lens import lens_logits, logit_lens
from vitrail.inspection.norms import stand_out, token_norms
from vitrail.inspection.positions import position_similarity
from vitrail.inspection.rollout import rollout_maps
from vitrail.model.pools import ClassToken
from vitrail.model.positions import (
    Both,
    Learned1D,
    Learned2D,
    NoPosition,
    Normed,
    Relative1D,
    RelativeBias,
    Rotary2D,
    SineCosine,
)
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.trunks import PostActivation
from vitrail.model.vit import ViT


def cosines(table, grid):
    """Tile by tile, place by place."""
    tiles = np.zeros(grid + grid)
    for at in np.ndindex(*grid):
        for other in np.ndindex(*grid):
            a, b = (table[row * grid[1] + col] for row, col in (at, other))
            tiles[at + other] = a @ b / math.sqrt((a @ a) * (b @ b))
    return tiles


def axes_table(model, layer):
    """Rows and columns side by side, for every place of 3 x 5."""
    table = model.position.tables[layer]
    down, across = table.vertical.detach().double().numpy(), table.horizontal.detach().double().numpy()
    return np.stack([np.concatenate([down[row], across[col]]) for row in range(3) for col in range(5)])


def waves(dim, temperature=10_000.0):
    """big_vision's formula, one number after another."""
    table = np.zeros((15, dim))
    for place in range(15):
        for index in range(dim // 4):
            rate = 1 / temperature ** (index / (dim // 4 - 1))
            row, col = divmod(place, 5)
            parts = math.sin(col * rate), math.cos(col * rate), math.sin(row * rate), math.cos(row * rate)
            table[place, [index + part * dim // 4 for part in range(4)]] = parts
    return table


def learned(model, prefix=1):
    return model.position.tables[0].rows.detach().double().numpy()[prefix:]


POSITIONS = {
    "learned": (Learned1D(), learned, None),
    "without one for the class": (Learned1D(class_position=False), lambda model: learned(model, 0), None),
    "two axes": (Learned2D(), lambda model: axes_table(model, 0), None),
    "two axes, every layer": (Learned2D("every-layer"), lambda model: axes_table(model, 1), 1),
    "shared by the layers": (Learned1D("shared"), learned, 0),
    "sines": (SineCosine(), lambda model: waves(32), None),
    "normed after": (Normed(Learned1D()), lambda model: model.position.inner.tables[0].rows.detach().double().numpy()[1:], None),
    "beside a bias": (
        Both(Learned1D(), RelativeBias()), lambda model: model.position.first.tables[0].rows.detach().double().numpy()[1:], None
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIONS)
def test_position_similarity_is_the_cosine_of_what_is_added(name):
    position, table, layer = POSITIONS[name]
    model = stirred(replace(FLAT, position=position))
    found = position_similarity(model, layer=layer)
    np.testing.assert_allclose(found.tiles, cosines(table(model), (3, 5)), atol=1e-6)
    assert (found.layer, found.resampled) == (layer, None)
    np.testing.assert_allclose([found.tiles[r, c, r, c] for r in range(3) for c in range(5)], 1)


def test_positions_on_another_grid_are_resampled_as_the_model_does():
    model = stirred(replace(FLAT, pool=ClassToken(registers=2)))
    found = position_similarity(model, (20, 16))
    table = model.at((20, 16)).position.tables[0].rows.detach().double().numpy()[1:]
    np.testing.assert_allclose(found.tiles, cosines(table, (5, 2)), atol=1e-6)
    assert found.resampled == (3, 5)


def test_the_first_layer_that_adds_positions_is_taken():
    assert position_similarity(stirred(ATTENDING["two axes"])).layer == 0


def test_an_embedding_of_zeros_is_like_no_other():
    model = stirred(FLAT)
    with torch.no_grad():
        model.position.tables[0].rows[1] = 0
    tiles = position_similarity(model).tiles
    assert not tiles[0, 0].any() and tiles[0, 1, 0, 1] == pytest.approx(1)


REFUSED = {
    "relative": replace(FLAT, position=Relative1D()), "rotary": replace(FLAT, position=Rotary2D()),
    "bias": replace(FLAT, position=RelativeBias()), "none": replace(FLAT, position=NoPosition()),
    "Mixer": MIXER, "ResNet": RESNET,
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_models_without_added_positions_are_refused(name):
    with pytest.raises(UsageError, match="position embedding") as caught:
        position_similarity(stirred(REFUSED[name]))
    assert caught.value.code == "VT130"


def components(filters, count):
    """Eigenvectors of the covariance, largest first."""
    centred = filters - filters.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return vectors[:, ::-1][:, :count].T, (values[::-1] / values.sum())[:count]


def pixels_of(name, model):
    """One filter a row, flattened as row, column, channel."""
    if name == "linear":
        return model.tokenizer.project.weight.detach().double().numpy()
    trunk = model.tokenizer.trunk if name == "hybrid" else model.trunk
    kernels = trunk.root.convolve.weight.detach().double().numpy()
    found = [(kernel - kernel.mean()) / (kernel.std() + 1e-5) for kernel in kernels]
    return np.stack(found).transpose(0, 2, 3, 1).reshape(len(kernels), -1)


@pytest.mark.parametrize("name", ["linear", "hybrid", "resnet"])
@pytest.mark.parametrize("channels", [3, 1, 5])
def test_filters_are_the_principal_components(name, channels):
    configs = {
        "linear": replace(FLAT, tokenizer=LinearPatches((4, 8), channels)),
        "hybrid": replace(HYBRID, tokenizer=replace(HYBRID.tokenizer, channels=channels)),
        "resnet": ResNetConfig(PostActivation((1,), 32), RESNET.head, (24, 16), channels),
    }
    model = stirred(configs[name])
    found = embedding_filters(model, 6)
    vectors, explained = components(pixels_of(name, model), 6)
    shape = (4, 8, channels) if name == "linear" else (7, 7, channels)
    assert found.components.shape == (6, *shape)
    flat = found.components.reshape(6, -1)
    np.testing.assert_allclose(abs((flat * vectors).sum(axis=1)), 1, atol=1e-8)
    np.testing.assert_allclose(found.explained, explained, atol=1e-9)
    assert all(row[abs(row).argmax()] > 0 for row in flat)
    assert found.of == ("patch embedding" if name == "linear" else "kernels of the first convolution")


def test_there_are_as_many_filters_as_directions():
    """32 centred filters span 31 dimensions at most; alike ones span none."""
    model = stirred(FLAT)
    assert len(embedding_filters(model, 99).components) == 31 and len(embedding_filters(model).components) == 28
    with torch.no_grad():
        model.tokenizer.project.weight.copy_(model.tokenizer.project.weight[:1].expand(32, -1).clone())
    assert len(embedding_filters(model).components) == 0


@pytest.mark.parametrize("name", PLAIN)
def test_token_norms_equal_the_equations(name):
    config = PLAIN[name]
    model, batches, factor = stirred(config), several(config, 2, 1), 1.1
    p, prefix = oracle.parameters(model), config.pool.class_tokens + config.pool.registers
    quantiles, front, shares = np.zeros((3, 4)), np.zeros((3, prefix)), np.zeros(3)
    places = np.zeros((3, 5))
    for image in torch.cat(batches).double().numpy():
        for depth, tokens in enumerate(depths(config, p, image)):
            lengths = np.sqrt((tokens**2).sum(axis=1))
            patches = lengths[prefix:]
            quantiles[depth] += np.quantile(patches, [0.05, 0.5, 0.95, 1]) / 3
            front[depth] += lengths[:prefix] / 3
            far = patches >= factor * np.median(patches)
            shares[depth] += far.mean() / 3
            places += far.reshape(3, 5) * (depth == 2)
    found = token_norms(model, batches, factor)
    np.testing.assert_allclose(found.patches, quantiles, rtol=1e-5)
    np.testing.assert_allclose(found.prefix, front, rtol=1e-5)
    np.testing.assert_allclose(found.outliers, shares)
    np.testing.assert_array_equal(found.places, places)
    assert found.depths == ("embedding", "layer 0", "layer 1") and found.images == 3 and places.any()


def test_a_planted_outlier_is_found_where_it_is():
    model = stirred(FLAT)
    images = several(FLAT, 3)[0]
    model.blocks[1].register_forward_hook(lambda module, given, tokens: tokens.to(planted(tokens.values)))

    def planted(values):
        values = values.clone()
        values[:, 1 + 7] *= 30  # place (1, 2)
        return values

    found = token_norms(model, images)
    assert found.places[1, 2] == 3 and found.places.sum() == 3
    np.testing.assert_allclose(found.outliers, [0, 0, 1 / 15])


def test_the_rule_is_of_each_image_by_itself():
    """Twice as long an image has no more outliers than the other; even lengths have none."""
    lengths = torch.tensor([[1.0, 1, 1, 3], [10, 10, 10, 29], [5, 5, 5, 5], [0, 0, 0, 0]])
    assert stand_out(lengths, 3).tolist() == [[False] * 3 + [True]] + [[False] * 4] * 3


@pytest.mark.parametrize("config", [RESNET, MIXER, HYBRID, ATTENDING["distilled"]])
def test_norms_of_any_backbone(config):
    found = token_norms(stirred(config), several(config, 2))
    assert np.isfinite(found.patches).all() and len(found.depths) == len(found.patches)
    assert found.depths[0] == ("stage 0" if config is RESNET else "embedding")


def test_norms_of_images_of_mixed_sizes_are_refused():
    images = [torch.randn(1, 3, 12, 40), torch.randn(1, 3, 12, 24)]
    with pytest.raises(DataError, match="mixed sizes") as caught:
        token_norms(stirred(FLAT), images)
    assert caught.value.code == "VT131"


@pytest.mark.parametrize("name", PLAIN)
def test_the_lens_reads_every_depth_with_the_models_own_pool_and_head(name):
    config = PLAIN[name]
    model, batches = stirred(config), several(config, 3, 1)
    labels, p = classes_for(batches), oracle.parameters(model)
    logits = np.array([
        [inside.answer(config, p, tokens) for tokens in depths(config, p, image)]
        for image in torch.cat(batches).double().numpy()
    ])  # fmt: skip
    read = torch.cat([lens_logits(model, batch) for batch in batches], dim=1)
    np.testing.assert_allclose(read.transpose(0, 1), logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        last = lens_logits(model, batches[0])[-1]  # of all tokens, where the model computes what it reads
        torch.testing.assert_close(last, model(batches[0]), rtol=1e-5, atol=1e-5)
    found, truth = logit_lens(model, zip(batches, labels, strict=True)), torch.cat(labels).numpy()
    chances = oracle.softmax(logits)
    final = logits[:, -1].argmax(-1)
    np.testing.assert_array_equal(found.right, (logits.argmax(-1) == truth[:, None]).sum(0))
    np.testing.assert_allclose(found.agreement, (logits.argmax(-1) == final[:, None]).mean(0))
    np.testing.assert_allclose(
        found.probability, np.take_along_axis(chances, final[:, None, None], 2)[..., 0].mean(0), rtol=1e-4
    )
    np.testing.assert_allclose(found.entropy, -(chances * np.log(chances)).sum(-1).mean(0), rtol=1e-4)
    assert found.agreement[-1] == 1 and found.images == 4


@pytest.mark.parametrize("config", [MIXER, HYBRID, *(ATTENDING[name] for name in ("distilled", "token and average"))])
def test_the_last_depth_is_the_models_own_answer(config):
    model, images = stirred(config), several(config, 2)[0]
    with torch.no_grad():
        torch.testing.assert_close(lens_logits(model, images)[-1], model(images))


@pytest.mark.parametrize(("config", "reason"), [(RESNET, "different widths"), (WITHOUT_CLASSES, "no classes")])
def test_what_the_lens_cannot_read(config, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        lens_logits(stirred(config), several(config, 1)[0])
    assert caught.value.code == "VT133"


def test_damaged_weights_and_empty_sets_are_told():
    model = stirred(FLAT)
    for look in (token_norms, lambda model, images: logit_lens(model, ((batch, torch.zeros(1)) for batch in images))):
        with pytest.raises(DataError, match="no image"):
            look(model, [])
    with torch.no_grad():
        model.tokenizer.project.weight[0, 0] = float("inf")
    for look in (embedding_filters, lambda model: token_norms(model, several(FLAT, 1))):
        with pytest.raises(VitrailError, match="not finite") as caught:
            look(model)
        assert caught.value.code == "VT132"


# The first case of every format by default, all of them in the long checks.
LONG = [
    pytest.param(family, case, marks=() if case == next(iter(HELD[family])) else pytest.mark.slow)
    for family, case in CASES
]


@pytest.mark.parametrize(("family", "case"), LONG)
def test_every_model_that_a_format_holds_can_be_looked_into(family, case):
    """Whatever loads is answered, or refused with the reason: BEiT, BiT, CLIP, DeiT, DINO, MAE, Mixers, SigLIP ..."""
    config = HELD[family][case]
    if config.num_tokens > 500:  # images of many thousand pairs of tokens say no more
        config = replace(config, image_size=(4 * config.stride[0], 6 * config.stride[1]))
    model, images = stirred(config, scale=0.1), several(config, 4)
    labelled = [(images[0], torch.zeros(4))]
    attends, classes = config.attends, bool(config.head.classes)
    adds = isinstance(model, ViT) and model.position.rows(config.grid) is not None
    looks = {
        "VT041": [(lambda: attention_distance(model, images).paper, attends), (lambda: rollout_maps(model, images[0]), attends)],
        "VT130": [(lambda: position_similarity(model).tiles, adds), (lambda: embedding_filters(model).explained, True)],
        "VT133": [
            (lambda: logit_lens(model, labelled).entropy, classes and isinstance(model, ViT)),
            (lambda: [effect.loss for effect in head_ablation(model, labelled).effects], classes and attends),
        ],
        None: [(lambda: token_norms(model, images).patches, True), (lambda: cka(model, images).values, True)],
    }  # fmt: skip
    for code, asked in looks.items():
        for look, answers in asked:
            if answers:
                assert np.isfinite(look()).all()
            else:
                with pytest.raises(UsageError) as caught:
                    look()
                assert caught.value.code in (code, "VT041") and caught.value.what
