"""What the formats of the original PyTorch programs hold, as sample models."""

from dataclasses import replace

from vitrail.model.block import MLP, Block, Norm, SwiGLU
from vitrail.model.heads import Features, LinearHead, TwoHeads
from vitrail.model.mixers import Attention
from vitrail.model.pools import AttentionPool, ClassToken, DistilledToken, GlobalAverage, TokenAndAverage
from vitrail.model.positions import Learned1D, Normed, RelativeBias, Rotary2D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig

TIMM = ViTConfig(
    Size(128, 2, 2, 12), LinearPatches((4, 4)), Learned1D(interpolation="bicubic-antialiased"), Block(mlp=MLP("erf")),
    head=LinearHead(3), image_size=(16, 16),
)  # fmt: skip
PLAIN = Learned1D(interpolation="bicubic")
BARE, SCALED = replace(TIMM.position, class_position=False), replace(TIMM.block, layer_scale=1e-5)
CLIP = replace(
    TIMM, tokenizer=replace(TIMM.tokenizer, bias=False), position=Normed(TIMM.position, 1e-5),
    block=replace(TIMM.block, mlp=MLP("quick"), norm=Norm(1e-5)), head=Features(6),
)  # fmt: skip
DINOV2 = replace(TIMM, position=Learned1D(interpolation="bicubic-offset"), block=SCALED, head=Features())
DINOV3 = replace(
    DINOV2,
    position=Rotary2D(),
    pool=ClassToken(4),
    block=Block(Attention(key_bias=False), MLP("erf"), Norm(1e-5), 1e-5),
    image_size=(224, 224),
)
BEIT = replace(
    TIMM, position=RelativeBias(), block=Block(Attention(key_bias=False), MLP("erf"), layer_scale=0.1),
    pool=GlobalAverage(class_tokens=1, norm_first=False),
)  # fmt: skip
HELD = {
    "timm": {
        "vit": TIMM, "average": replace(TIMM, pool=GlobalAverage(class_tokens=1, norm_first=False)),
        "map": replace(TIMM, block=Block(), pool=AttentionPool(2), head=Features()),
        "distilled": replace(TIMM, position=PLAIN, pool=DistilledToken(), head=TwoHeads(3)),
        "registers": replace(TIMM, position=BARE, pool=ClassToken(3), block=replace(SCALED, mlp=SwiGLU())),
        "clip": replace(CLIP, block=replace(CLIP.block, mlp=MLP("erf")), head=LinearHead(3)),
        "uneven": replace(TIMM, tokenizer=LinearPatches((2, 4), 1), image_size=(8, 16)),
        "dropout": replace(TIMM, block=replace(TIMM.block, dropout=0.1, drop_path=0.1)),
    },
    "dinov2": {
        "plain": DINOV2, "classifier": replace(DINOV2, pool=TokenAndAverage(), head=LinearHead(3)),
        "giant": replace(DINOV2, pool=ClassToken(4), position=TIMM.position, block=replace(DINOV2.block, mlp=SwiGLU())),
    },
    "dinov3": {"plain": DINOV3, "gated": replace(DINOV3, block=replace(DINOV3.block, mlp=SwiGLU()))},
    "beit": {
        "classifier": BEIT,
        "shared": replace(BEIT, position=RelativeBias("shared"), pool=ClassToken(), head=Features()),
        "unscaled": replace(BEIT, block=replace(BEIT.block, layer_scale=None)),
    },
    "clip": {"quick": CLIP, "features": replace(CLIP, head=Features())},
}  # fmt: skip
