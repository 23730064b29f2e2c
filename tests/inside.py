"""Models of every kind for tests of inspection, and the tokens of every depth by the equations."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from einops import rearrange

import oracle
from test_model import TINY, images_for, stirred
from vitrail.model.block import Block
from vitrail.model.heads import Features, LinearHead, TwoHeads
from vitrail.model.mixers import QuadraticAttention, TokenMLP
from vitrail.model.pools import AttentionPool, ClassToken, DistilledToken, GlobalAverage, TokenAndAverage
from vitrail.model.positions import Learned2D, NoPosition, SineCosine
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import ConvolutionalStem, LinearPatches
from vitrail.model.trunks import PostActivation, PreActivation
from vitrail.model.vit import Size

FLAT = replace(TINY, size=Size(32, 2, 4, 48), tokenizer=LinearPatches((4, 8)), image_size=(12, 40))  # 3 rows, 5 columns
HYBRID = replace(FLAT, tokenizer=ConvolutionalStem((8, 4), 3, PostActivation((1,), 32)), image_size=(24, 16))
PLAIN = {  # what tests/oracle.py knows
    "class token": FLAT,
    "registers": replace(FLAT, pool=ClassToken(registers=3)),
    "average": replace(FLAT, pool=GlobalAverage()),
    "attention pool": replace(FLAT, pool=AttentionPool(registers=2)),
}
ATTENDING = PLAIN | {
    "distilled": replace(FLAT, pool=DistilledToken(), head=TwoHeads(7)),
    "token and average": replace(FLAT, pool=TokenAndAverage(registers=1)),
    "hybrid": HYBRID,
    "quadratic": replace(FLAT, block=Block(QuadraticAttention()), position=NoPosition(), pool=GlobalAverage()),
    "two axes": replace(FLAT, position=Learned2D("every-layer")),
    "sines": replace(FLAT, position=SineCosine()),
    "five channels": replace(FLAT, tokenizer=LinearPatches((4, 8), 5)),
}
MIXER = replace(FLAT, block=Block(TokenMLP(6)), position=NoPosition(), pool=GlobalAverage())
RESNET = ResNetConfig(PreActivation((1, 1), 32), LinearHead(7), (24, 16))
WITHOUT_CLASSES = replace(FLAT, head=Features())


def several(config, *counts, seed=3):
    """Batches of so many images each."""
    whole = images_for(config, sum(counts), seed)
    return list(whole.split(list(counts)))


def classes_for(images, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(7, (len(batch),), generator=generator) for batch in images]


def depths(config, p, image):
    """Tokens before the first layer and after each, one image, float64."""
    cut = [SimpleNamespace(depth=depth, heads=config.size.heads) for depth in range(config.size.depth + 1)]
    return [oracle.encode(image, p, SimpleNamespace(tokenizer=config.tokenizer, size=size))[0] for size in cut]


def answer(config, p, tokens):
    """Logits of encoded tokens."""
    return oracle.head(oracle.pool(tokens, p, config, config.pool.registers, "tanh"), p)


def reordered(model, order):
    """The same model with the heads of every layer, and of attention pooling, in another order."""
    heads = model.config.size.heads
    with torch.no_grad():
        for name, part in model.named_modules():
            if name.endswith("mixer") or name == "pool.attention":
                fused, out = part.query_key_value, part.project
                for array in (fused.weight, fused.bias):
                    array.copy_(
                        rearrange(
                            rearrange(array, "(t h d) ... -> t h d ...", t=3, h=heads)[:, order],
                            "t h d ... -> (t h d) ...",
                        )
                    )
                out.weight.copy_(
                    rearrange(rearrange(out.weight, "o (h d) -> o h d", h=heads)[:, order], "o h d -> o (h d)")
                )
    return model


def even(model):
    """The same model with attention that is the same to every token: queries of zeros."""
    with torch.no_grad():
        for block in model.blocks:
            dim = block.mixer.project.in_features
            block.mixer.query_key_value.weight[:dim] = 0
            block.mixer.query_key_value.bias[:dim] = 0
    return model


def cross_entropy(logits, label):
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])


__all__ = ["images_for", "stirred"]
