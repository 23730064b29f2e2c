"""What the formats hf-* hold, as sample models for the contract suites."""

from dataclasses import replace

from vitrail.model.block import MLP, Block, Norm, SwiGLU
from vitrail.model.heads import Features, LinearHead, TwoHeads
from vitrail.model.mixers import Attention
from vitrail.model.pools import AttentionPool, ClassToken, DistilledToken, GlobalAverage, TokenAndAverage
from vitrail.model.positions import Both, Learned1D, NoPosition, Normed, RelativeBias, Rotary2D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig

PLACES = Learned1D(interpolation="bicubic")
VIT = ViTConfig(
    Size(8, 2, 2, 12), LinearPatches((4, 4)), PLACES, Block(mlp=MLP("erf"), norm=Norm(1e-12)), head=LinearHead(3),
    image_size=(16, 16),
)  # fmt: skip
DEIT = replace(VIT, pool=DistilledToken(), head=TwoHeads(3))
DINO = replace(
    VIT, size=Size(8, 2, 2, 16), block=Block(mlp=MLP("erf"), norm=Norm(1e-6), layer_scale=1.0), pool=TokenAndAverage()
)
REGISTERS = replace(DINO, position=replace(PLACES, interpolation="bicubic-antialiased"), pool=TokenAndAverage(4))
THIRD = replace(DINO, position=Rotary2D(), pool=ClassToken(4), head=Features())
KEYLESS = Attention(key_bias=False)
BEIT = replace(
    VIT, position=RelativeBias(), block=Block(KEYLESS, MLP("erf"), Norm(1e-12), 0.1),
    pool=GlobalAverage(class_tokens=1, norm_first=False),
)  # fmt: skip
CLIP = replace(
    VIT, tokenizer=LinearPatches((4, 4), bias=False), position=Normed(PLACES, 1e-5),
    block=Block(mlp=MLP("quick"), norm=Norm(1e-5)), head=Features(),
)  # fmt: skip
SIGLIP = replace(
    VIT,
    position=replace(PLACES, class_position=False),
    block=Block(mlp=MLP("tanh")),
    pool=AttentionPool(),
    head=Features(),
)
HELD = {
    "hf-vit": {
        "vit": VIT, "deit": DEIT, "one-head": replace(DEIT, pool=DistilledToken(alone=True), head=LinearHead(3)),
        "features": replace(VIT, head=Features()), "pooler": replace(VIT, head=Features(6, tanh=True)),
        "mean": replace(VIT, position=replace(PLACES, class_position=False), pool=GlobalAverage()),
        "uneven": replace(VIT, tokenizer=LinearPatches((2, 4), 1), image_size=(8, 16)),
        "dropout": replace(VIT, block=Block(Attention(input_bias=False), MLP("tanh"), dropout=0.1, drop_path=0.1)),
    },
    "hf-dino": {
        "second": DINO, "registers": REGISTERS, "third": THIRD, "features": replace(DINO, pool=ClassToken(), head=Features()),
        "gated": replace(DINO, block=replace(DINO.block, mlp=SwiGLU())),
        "third-gated": replace(
            THIRD, size=Size(8, 2, 2, 10), block=replace(DINO.block, mlp=SwiGLU(), mixer=KEYLESS), position=Rotary2D(50.0)),
    },
    "hf-beit": {
        "own": BEIT, "shared": replace(BEIT, position=RelativeBias("shared")), "both": replace(BEIT, position=Both(PLACES)),
        "table": replace(BEIT, position=PLACES, block=replace(BEIT.block, layer_scale=None)),
        "nowhere": replace(BEIT, position=NoPosition(), pool=ClassToken(), head=Features()),
    },
    "hf-clip": {
        "clip": CLIP, "projection": replace(CLIP, head=Features(6)), "probe": SIGLIP,
        "mean": replace(SIGLIP, pool=GlobalAverage(), head=LinearHead(3)),
        "headless": replace(SIGLIP, pool=GlobalAverage()),
    },
}  # fmt: skip
