"""The table of sizes: exact parameter counts, and costs against counts made another way."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import oracle_resnet
from vitrail.errors import UsageError
from vitrail.model.heads import LinearHead, ProjectedHead, TanhHead
from vitrail.model.pools import AttentionPool, ClassToken, DistilledToken, GlobalAverage
from vitrail.model.resnet import ResNetConfig
from vitrail.model.sizes import HYBRIDS, MIXERS, NAMES, RESNETS, SIZES, STAGES, backbone, cost, named, resnet
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.trunks import PostActivation, PreActivation
from vitrail.model.vit import Size, ViT, ViTConfig, build

# 1000 classes at 224 px. ViT up to H, five hybrids (not R50+ViT-B/32 and L/16), Mixer-B and Mixer-L/16: the official
# test's MODEL_SIZES. g and G have no class token and a MAP head. R50x1: the BiT code's own summary. All others are
# counted from their parts below.
PARAMETERS = {
    "ViT-Ti/16": 5_717_416,
    "ViT-S/32": 22_878_952,
    "ViT-S/16": 22_050_664,
    "ViT-B/32": 88_224_232,
    "ViT-B/16": 86_567_656,
    "ViT-B/8": 86_576_872,
    "ViT-L/32": 306_535_400,
    "ViT-L/16": 304_326_632,
    "ViT-H/14": 632_045_800,
    "ViT-g/14": 1_037_857_384,
    "ViT-G/14": 1_882_797_416,
    "R+ViT-Ti/16": 6_337_704,
    "R26+ViT-S/32": 36_431_912,
    "R26+ViT-B/32": 101_383_976,
    "R50+ViT-B/32": 110_945_832,
    "R50+ViT-B/16": 98_659_112,
    "R50+ViT-L/32": 328_994_856,
    "R50+ViT-L/16": 316_483_624,
    "Mixer-S/32": 19_104_624,
    "Mixer-S/16": 18_528_264,
    "Mixer-B/32": 60_293_428,
    "Mixer-B/16": 59_880_472,
    "Mixer-L/32": 206_939_264,
    "Mixer-L/16": 208_196_168,
    "Mixer-H/14": 432_350_952,
    "Cordonnier": 12_484_634,
    "R50x1": 25_549_352,
    "R50x2": 97_988_712,
    "R50x3": 217_319_080,
    "R101x1": 44_541_480,
    "R101x3": 387_934_888,
    "R152x1": 60_185_128,
    "R152x2": 236_335_208,
    "R152x4": 936_533_224,
    "R200x3": 568_633_000,
}


def test_every_name_has_a_stated_count():
    assert set(PARAMETERS) == {*NAMES, *RESNETS}


@pytest.mark.parametrize("name", [*NAMES, *RESNETS])
def test_parameter_counts(name):
    assert cost(backbone(name)).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_from_their_parts(name):
    """Root, units, the last norm, the classifier."""
    depth, factor = name.split("x")
    width = 64 * int(factor)
    features = 32 * width
    _, units = oracle_resnet.units(STAGES[depth], width)
    assert PARAMETERS[name] == 49 * 3 * width + units + 2 * features + 1000 * (features + 1)


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrids_from_their_parts(name):
    letter, stages, pixels = HYBRIDS[name]
    size, (units, _) = SIZES[letter], oracle_resnet.units(stages, 64)
    channels = 64 * 4 * 2 ** (len(stages) - 1) if stages else 64
    cut = pixels // (4 * 2 ** max(0, len(stages) - 1))  # the root divides by 4, every stage after the first by 2
    stem = 49 * 3 * 64 + 2 * 64 + units + cut**2 * channels * size.dim
    tokens = 1 + (224 // pixels) ** 2
    plain = PARAMETERS[f"ViT-{letter}/16"] - 16**2 * 3 * size.dim - (197 - tokens) * size.dim
    assert PARAMETERS[name] == plain + stem


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("Mixer")])
def test_mixers_from_their_parts(name):
    letter, side = name.removeprefix("Mixer-").split("/")
    (dim, hidden, along), tokens = (
        (MIXERS[letter][0].dim, MIXERS[letter][0].hidden, MIXERS[letter][1]),
        (224 // int(side)) ** 2,
    )
    block = 2 * tokens * along + along + tokens + 2 * dim * hidden + hidden + dim + 4 * dim
    total = int(side) ** 2 * 3 * dim + dim + MIXERS[letter][0].depth * block + 2 * dim + 1000 * (dim + 1)
    assert PARAMETERS[name] == total


def test_the_quadratic_network_from_its_parts():
    """Patches, six layers (centre and spread a head, two dense layers, MLP, two norms), the last norm, the classifier."""
    attention = 9 * 3 + (9 * 400 + 1) * 400 + 401 * 400
    layer = attention + 401 * 512 + 513 * 400 + 4 * 400
    assert PARAMETERS["Cordonnier"] == 13 * 400 + 6 * layer + 2 * 400 + 401 * 1000


def test_the_sequence_of_a_hybrid_has_the_length_of_its_stride():
    """R+ViT-Ti/16 is cut into pieces of 32 px, whatever its name says."""
    lengths = {name: cost(named(name)).tokens for name in HYBRIDS}
    assert {name for name, length in lengths.items() if length == 1 + 14 * 14} == {"R50+ViT-B/16", "R50+ViT-L/16"}
    assert set(lengths.values()) == {1 + 14 * 14, 1 + 7 * 7}


@pytest.mark.parametrize("name", ["ViT-g/14", "ViT-G/14"])
def test_the_largest_two_from_their_parts(name):
    size = SIZES[name[4]]
    dim, hidden, patches = size.dim, size.hidden, 16 * 16
    block = 4 * dim * (dim + 1) + 2 * dim * hidden + hidden + dim + 4 * dim
    pool = 4 * dim * (dim + 1) + dim + 2 * dim + 2 * dim * hidden + hidden + dim
    total = 14 * 14 * 3 * dim + dim + patches * dim + size.depth * block + 2 * dim + pool + 1000 * (dim + 1)
    assert PARAMETERS[name] == total


@pytest.mark.parametrize(
    "config",
    [
        named("ViT-Ti/16"),
        replace(named("ViT-Ti/32"), pool=GlobalAverage(registers=4)),
        replace(named("ViT-Ti/32"), pool=AttentionPool(), head=TanhHead(10, 50)),
        replace(named("ViT-Ti/32"), pool=AttentionPool(registers=3)),
        replace(named("ViT-S/16x32"), image_size=(64, 96)),
        named("R+ViT-Ti/16", image_size=(64, 96)),
        replace(named("R26+ViT-S/32"), image_size=(64, 96)),
        replace(named("Mixer-S/16"), pool=GlobalAverage(registers=2)),
        resnet("R50x1", image_size=(64, 50)),
        ResNetConfig(PostActivation((2, 1)), ProjectedHead(10, 30), (45, 64), 1),
        named("Cordonnier", image_size=(32, 24)),
        replace(named("Cordonnier", image_size=(32, 24)), pool=GlobalAverage(registers=2)),
    ],
    ids=[
        "ViT",
        "average",
        "MAP and tanh",
        "MAP and registers",
        "wide patches",
        "R+ViT",
        "R26+ViT",
        "Mixer",
        "v2",
        "v1",
        "quadratic",
        "quadratic and registers",
    ],
)
def test_flops_equal_what_torch_counts(config):
    """The analytic count against PyTorch's own counter of matrix products."""
    model = build(config, 0)
    # The counter does not know the fused CPU kernel; the plain form is the same products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        images = torch.zeros(1, config.channels, *config.image_size)
        # Every token in every layer, as published; `forward` leaves out what a class token does not read of the last one.
        whole = isinstance(model, ViT)
        _ = model.head(model.pool(model.encode(model.embed(images)))) if whole else model(images)
    assert cost(config).flops == counter.get_total_flops()


@pytest.mark.parametrize("pool", [ClassToken(2), DistilledToken(), GlobalAverage()])
def test_the_last_layer_computes_what_is_read(pool):
    """Products of the last layer by the equations: all tokens' keys, queries and values, then the tokens read alone."""
    config = ViTConfig(Size(32, 3, 2, 64), LinearPatches((8, 8)), pool=pool, image_size=(32, 32))
    model = build(config, 0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    tokens, unread = config.num_tokens, 0 if pool.leading is None else config.num_tokens - pool.leading
    spared = 2 * unread * (2 * tokens * 32 + 32 * 32 + 2 * 32 * 64)
    assert counter.get_total_flops() == cost(config).flops - spared


_CORDONNIER = named("Cordonnier", 10, (24, 32))
UNDROPPED = replace(_CORDONNIER, block=replace(_CORDONNIER.block, dropout=0.0))


@pytest.mark.parametrize(
    "config",
    [
        named("ViT-Ti/16", classes=10, image_size=(112, 112)), named("R26+ViT-S/32", classes=10, image_size=(96, 64)),
        named("Mixer-S/16", classes=10, image_size=(96, 96)), resnet("R50x1", 10, (64, 64)),
        ResNetConfig(PostActivation((2, 1, 1)), LinearHead(10), (64, 64)), UNDROPPED,
    ],
    ids=["ViT", "hybrid", "Mixer", "ResNet v2", "ResNet v1", "quadratic"],
)  # fmt: skip
def test_activation_bytes_are_near_what_autograd_keeps(config):
    """Analytic, for fused attention; small vectors (means, softmax sums, dropout masks) are left out of the count.

    What grows with the batch counts: standardised kernels are kept too, but once.
    """
    model = build(config, 0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept_bytes(batch):
        kept = {}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(torch.randn(batch, 3, *config.image_size))
        assert output.shape == (batch, 10)  # held until here, so that no memory is used twice
        return sum(kept.values())

    assert (kept_bytes(5) - kept_bytes(2)) / 3 == pytest.approx(cost(config).activation_bytes, rel=0.1)


def test_names_are_read_and_wrong_ones_get_hints():
    assert named("ViT-B/8").tokenizer.patch == (8, 8)
    assert named("ViT-Ti/16x32").tokenizer.patch == (16, 32)
    for wrong in ("ViT-B16", "vit-b/16", "ViT-X/16", "ViT-B/0", "resnet50"):
        with pytest.raises(UsageError) as caught:
            named(wrong)
        assert "ViT-" in caught.value.expected
    assert resnet("R101x12").trunk == PreActivation((3, 4, 23, 3), 768) and backbone("R26x1").trunk.stages == (
        2,
        2,
        2,
        2,
    )
    assert named("Mixer-B/8x16").tokenizer.patch == (8, 16)
    for wrong in ("R50", "R51x1", "R50x0", "R50x100", "Mixer-Ti/16", "R50+ViT-B/8"):
        with pytest.raises(UsageError, match="there is no model"):
            backbone(wrong)
