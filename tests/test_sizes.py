"""The table of sizes: exact parameter counts, and costs against counts made another way."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitrail.errors import UsageError
from vitrail.model.heads import TanhHead
from vitrail.model.pools import AttentionPool, GlobalAverage
from vitrail.model.sizes import NAMES, SIZES, cost, named
from vitrail.model.vit import build

# 1000 classes at 224 px. Up to H: the official test's MODEL_SIZES. g and G have no class token and a MAP head, counted
# here from its parts: 4D(D+1) attention, D probe, 2D norm, 2DH + H + D MLP.
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
}


def test_every_name_has_a_stated_count():
    assert set(PARAMETERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts(name):
    assert cost(named(name)).parameters == PARAMETERS[name]


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
        replace(named("ViT-S/16x32"), image_size=(64, 96)),
    ],
    ids=lambda config: str(config.pool),
)
def test_flops_equal_what_torch_counts(config):
    """The analytic count against PyTorch's own counter of matrix products."""
    model = build(config, 0)
    # The counter does not know the fused CPU kernel; the plain form is the same products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *config.image_size))
    assert cost(config).flops == counter.get_total_flops()


def test_activation_bytes_are_near_what_autograd_keeps():
    """Analytic, for fused attention; small vectors (means, softmax sums, dropout masks) are left out of the count."""
    config = named("ViT-Ti/16", classes=10)
    model, images = build(config, 0), torch.randn(4, 3, 224, 224)
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)
    assert sum(kept.values()) / 4 == pytest.approx(cost(config).activation_bytes, rel=0.15)
    assert output.shape == (4, 10)


def test_names_are_read_and_wrong_ones_get_hints():
    assert named("ViT-B/8").tokenizer.patch == (8, 8)
    assert named("ViT-Ti/16x32").tokenizer.patch == (16, 32)
    for wrong in ("ViT-B16", "vit-b/16", "ViT-X/16", "ViT-B/0", "resnet50"):
        with pytest.raises(UsageError) as caught:
            named(wrong)
        assert "ViT-" in caught.value.expected
