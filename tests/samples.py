"""What each weight format holds, as sample models: the contract suites find every case here. A new format adds one key."""

from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import hf_samples
import timm_samples
import vitrail
from test_model import stirred
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import FORMATS
from vitrail.model.block import MLP, Block
from vitrail.model.heads import LinearHead, ProjectedHead, TanhHead
from vitrail.model.mixers import TokenMLP
from vitrail.model.pools import AttentionPool, GlobalAverage
from vitrail.model.positions import Learned1D, NoPosition, SineCosine
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import ConvolutionalStem, LinearPatches
from vitrail.model.trunks import BIT, PostActivation, PreActivation
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import Preprocessing

SIZE, PATCHES = Size(8, 2, 2, 12), LinearPatches((4, 4))
POST, PRE = PostActivation((1, 2), 32), PreActivation((2, 1), 32)
PAPER = replace(PRE, numerics=replace(BIT, border="nothing"))
VIT = ViTConfig(SIZE, PATCHES, head=LinearHead(3), image_size=(16, 16))
HYBRID = replace(VIT, tokenizer=ConvolutionalStem((16, 16), 3, POST), image_size=(64, 64))
MIXER = ViTConfig(
    replace(SIZE, heads=1), PATCHES, NoPosition(), Block(mixer=TokenMLP(5)), GlobalAverage(), LinearHead(3), (16, 16)
)
# PyTorch's files do not say how many heads there are: they are 64 wide, unless Vitrail wrote the file.
TORCH = replace(VIT, size=Size(128, 2, 2, 12), block=Block(mlp=MLP("erf")))
TORCHVISION = replace(TORCH, position=Learned1D(interpolation="bicubic-aligned"))
# Format -> name of the case -> configuration.
HELD = {
    "official-npz": {
        "vit": VIT, "pre-logits": replace(VIT, head=TanhHead(3, 6), pool=GlobalAverage()), "hybrid": HYBRID,
        "root": replace(HYBRID, tokenizer=ConvolutionalStem((8, 16), 1, PostActivation((), 32)), image_size=(32, 64)),
        "mixer": MIXER,
        "resnet": ResNetConfig(POST, ProjectedHead(3, 6)), "dropout": replace(VIT, block=Block(dropout=0.1)),
    },
    "big-vision-npz": {
        "probe": replace(VIT, pool=AttentionPool()), "sines": replace(VIT, position=SineCosine(), image_size=(224, 224)),
        "token": replace(VIT, position=Learned1D(class_position=False), head=TanhHead(3, 6)),
        "row": VIT, "mean": replace(VIT, pool=GlobalAverage()),
        "v1": ResNetConfig(POST, LinearHead(3)), "v2": ResNetConfig(PAPER, LinearHead(3)),
    },
    "bit-npz": {"bit": ResNetConfig(PRE, LinearHead(3)), "grey": ResNetConfig(PRE, LinearHead(3), channels=1)},
    "torchvision": {
        "vit": TORCHVISION, "pre-logits": replace(TORCHVISION, head=TanhHead(3, 6)),
        "uneven": replace(TORCHVISION, tokenizer=LinearPatches((2, 4), 1), image_size=(8, 16)),
        "dropout": replace(TORCHVISION, block=replace(TORCH.block, dropout=0.1, drop_path=0.1)),
    },
    **hf_samples.HELD,
    **timm_samples.HELD,
}  # fmt: skip
CROPS = {
    "big-vision-npz",
    "torchvision",
    "timm",
    "dinov2",
    "clip",
    "beit",
}  # their family cuts a window from the picture
NPZ = [name for name in HELD if name.endswith("-npz")]
CASES = [(name, case) for name, cases in HELD.items() for case in cases]


def checkpoint_of(config, seed=0):
    weights = stirred(config, seed).state_dict()
    half = (0.5,) * config.channels
    preprocessing = Preprocessing(config.image_size, config.channels, mean=half, std=half)
    return Checkpoint(config, weights, preprocessing, tuple(f"class {i}" for i in range(config.head.classes)))


def container(name):
    """What a format is written as, unless another is asked for: ".npz", ".safetensors", "" for a folder."""
    return next(module.CONTAINERS[0] for module in FORMATS if name == module.NAME)


def written(tmp_path, name, case, file="x"):
    """(checkpoint, path of its file in this format)."""
    checkpoint = checkpoint_of(HELD[name][case])
    return checkpoint, vitrail.save(checkpoint, tmp_path / f"{file}{container(name)}", format=name)


def weights_file(path):
    return path / "model.safetensors" if path.is_dir() else path


def arrays_of(path):
    """Name -> array of a file, or of a folder's file."""
    file = weights_file(path)
    return dict(np.load(file)) if file.suffix == ".npz" else {n: t.numpy() for n, t in load_file(file).items()}


def rewritten(path, change):
    """The file with its arrays changed; the comment, in which the image size stands, is gone."""
    arrays, file = arrays_of(path), weights_file(path)
    arrays = change(arrays) or arrays
    file.unlink()
    if file.suffix == ".npz":
        np.savez(file, **arrays)
    else:
        save_file({name: torch.tensor(array) for name, array in arrays.items()}, file)
    return path


def untrained(config):
    """Dropout is no part of a file."""
    block = replace(config.block, dropout=0.0, drop_path=0.0) if isinstance(config, ViTConfig) else None
    return replace(config, block=block) if block else config
