"""The training of "An Image is Worth 16x16 Words" (arXiv 2010.11929): pre-training (table 3) and fine-tuning (table 4).

None of these has been run here at full size; `--plan` measures what a run costs on the computer at hand.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import read
from vitrail.data.sources import Source
from vitrail.data.transforms import RandomResizedCrop
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import Block
from vitrail.model.heads import Head, LinearHead, TanhHead
from vitrail.model.sizes import backbone, cost
from vitrail.model.vit import ViTConfig
from vitrail.objectives.supervised import Supervised
from vitrail.preprocessing import Preprocessing
from vitrail.recipes.look import look
from vitrail.recipes.run import Augmentation, Data, Reason, Run
from vitrail.training.loop import Training
from vitrail.training.optimizer import SGD, AdamW
from vitrail.training.precision import best_precision
from vitrail.training.schedule import Cosine, Linear

# Table 3, JFT-300M: base learning rates by the beginning of a name, the longest first.
JFT_RATES = {
    "R50+ViT-L/32": 2e-4, "R50+ViT-L": 4e-4, "R50+ViT-B": 8e-4, "ViT-L/32": 6e-4, "ViT-L": 4e-4, "ViT-H": 3e-4,
    "ViT-": 8e-4, "R50x": 1e-3, "R101x": 8e-4, "R152x": 6e-4, "R200x": 6e-4,
}  # fmt: skip
INCEPTION_CROP = RandomResizedCrop(min_area=0.05)
LENGTH = ("training.epochs", "training.batch_size")  # what the number of steps comes from
ACTIVATIONS = 2**32  # bytes of a micro-batch's, by count; another number changes only the rounding of the sums


def paper_imagenet(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """Pre-training on ImageNet-1k: 300 epochs, cosine, decay 0.3, dropout 0.1, clip 1, softmax.

    vitrail train FOLDER --recipe paper-imagenet --model ViT-B/16
    Cost: 94,000 steps of 4,096 images; `--plan` measures it. Published: fine-tuned at 384 px, B/16 77.91 %, B/32 73.38 %,
    L/16 76.53 %, L/32 71.16 % top-1 (table 5). Not run here at full size.
    """
    optimizer = AdamW(lr=3e-3, weight_decay=0.3)
    run = _pre_training(source, model, image_size, "paper-imagenet", 300, optimizer, dropout=0.1)
    return replace(run, schedule=Cosine(warm_up(run, source)), training=replace(run.training, clip=1.0))


def paper_imagenet21k(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """Pre-training on ImageNet-21k: 90 epochs (of L also 30), linear to 1e-5, decay 0.03, dropout 0.1, sigmoid.

    vitrail train FOLDER --recipe paper-imagenet21k --model ViT-L/16 [--epochs 30 --set schedule.warmup=10000]
    Cost: 312,000 steps of 4,096 images; the paper's L/16 took 230 TPUv3-core-days (table 2). Published: fine-tuned on
    ImageNet at 384 px, B/16 83.97 %, B/32 81.28 %, L/16 85.15 %, L/32 80.99 % (table 5); L/16 at 512 px 85.30 ± 0.02 %.
    Not run here at full size.
    """
    run = _pre_training(source, model, image_size, "paper-imagenet21k", 90, AdamW(1e-3, 0.03), dropout=0.1)
    return replace(_sigmoid(run), schedule=Linear(warm_up(run, source), end=1e-5 / 1e-3))


def paper_jft(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """Pre-training on JFT-300M: 7 epochs (14 of H), linear to 1e-5, decay 0.1, no dropout, sigmoid; a rate of each size.

    vitrail train FOLDER --recipe paper-jft --model ViT-H/14; --epochs shortens the warm-up too: --set schedule.warmup=10000
    Cost: 518,000 steps of 4,096 images; H/14, 14 epochs, took 2,500 TPUv3-core-days (table 2). Published: fine-tuned on
    ImageNet, B/16 84.15 %, L/16 87.12 %, H/14 88.04 % (table 5). Adam, also for ResNets: R50x1 77.54 %, with SGD
    78.24 %; R152x2 84.97 %, with SGD 84.37 % (table 7); the recipe bit is that SGD. Not run here at full size.
    """
    name = model or "ViT-B/16"
    rate = next((rate for start, rate in JFT_RATES.items() if name.startswith(start)), 8e-4)
    epochs = 14 if name.startswith("ViT-H") else 7
    run = _pre_training(source, name, image_size, "paper-jft", epochs, AdamW(rate, 0.1))
    return replace(_sigmoid(run), schedule=Linear(warm_up(run, source), end=1e-5 / rate))


def paper_fine_tuning(source: Source, weights: str, image_size: tuple[int, int] | None = None) -> Run:
    """From a checkpoint to one's own images (section 4.1, table 4): 384 px, SGD with momentum in bfloat16, no decay.

    vitrail train FOLDER --weights ViT-B_16.npz --recipe paper-fine-tuning --lr 0.001,0.003,0.01,0.03
    500, 10,000 or 20,000 steps of 512 images by the number of images, as for Pets, CIFAR and ImageNet. As in the paper each
    rate is tried for all steps on train without its held-out part, the best one then trained on both, and only that is
    judged on test; for ImageNet 0.003,0.01,0.03,0.06. Without --lr the rate is the official default, 0.03.
    Polyak averaging, as in table 2: --set objective=averaged --set objective.warmup=false.
    Cost: `--plan` measures it. Published for B/16 of ImageNet-21k (table 5): ImageNet 83.97 %, CIFAR-10 98.95 %,
    CIFAR-100 91.67 %, Pets 94.43 %, Flowers 99.38 %; mean ± deviation of three runs for L/16 in table 2. Measured in small:
    a network of 64 px on to 96x128 px, ten kinds of clip art, 139 steps of 128, 73.7 ± 1.1 % (mean and
    standard deviation of seeds 0, 1, 2; n = 692); at full size not run here.
    """
    checkpoint = read(weights)
    seen = look(source.split("train"))
    size = image_size or larger_size(checkpoint.config)
    head = checkpoint.config.head.adapted(len(source.classes), False)
    config: Any = replace(checkpoint.config, image_size=size, head=head)  # type: ignore[type-var]
    steps = 500 if seen.count < 20_000 else 10_000 if seen.count < 500_000 else 20_000
    return Run(
        recipe="paper-fine-tuning",
        data=Data(source.name),
        model=config,
        preprocessing=resized_preprocessing(checkpoint, size),
        augmentation=Augmentation((INCEPTION_CROP, *seen.flips)),
        objective=Supervised("sigmoid" if source.multi_label else "softmax"),
        optimizer=SGD(lr=0.03, buffer="bfloat16"),
        schedule=Cosine(warmup=100 if steps == 500 else 500),
        training=Training(
            epochs=epochs_of(steps, 512, seen.count), batch_size=512, micro_batch=portion(config, 512),
            precision=best_precision(config.dim),
        ),
        weights=weights,
        why=(
            Reason(f"{steps:,} steps, as the paper has for about {seen.count:,} images", *LENGTH),
            f"{size[0]}x{size[1]} px: {'as asked' if image_size else 'higher than in pre-training'}",
            Reason("new head of zeros", "keep_classes"),
            seen.mirror_words,
        ),
    )  # fmt: skip


def larger_size(config: BackboneConfig[Any]) -> tuple[int, int]:
    """224 px become 384, others as many times more, in whole patches; from 384 px on nothing changes."""
    rows, cols = (
        side if side >= 384 else round(side * 384 / 224 / stride) * stride
        for side, stride in zip(config.image_size, config.stride, strict=True)
    )
    return rows, cols


def resized_preprocessing(checkpoint: Checkpoint[Any], size: tuple[int, int]) -> Preprocessing:
    """The normalisation of the weights; the whole picture, stretched (official evaluation)."""
    return replace(checkpoint.preprocessing, image_size=size, fit="stretch", crop_share=1.0, rounding="none")


def portion(config: BackboneConfig[Any], batch: int) -> int:
    """Images of a micro-batch: a power of two whose activations take some 4 GiB, by count."""
    room = max(1, ACTIVATIONS // cost(config).activation_bytes)
    return int(min(batch, 2 ** int(math.log2(room))))


def epochs_of(steps: int, batch: int, count: int) -> float:
    """Epochs that make so many steps."""
    return (steps - 0.5) * batch / count  # half a step less: rounding must not make one more


def warm_up(run: Run, source: Source) -> float:
    """10,000 steps, or a fifth of a shorter run."""
    steps = run.training.steps(len(source.split("train")))
    return float(10_000 if steps >= 50_000 else steps // 5)


def with_head(config: BackboneConfig[Any], head: Head) -> Any:
    """The same model with another head."""
    return replace(config, head=head)  # type: ignore[type-var]  # every configuration is a dataclass


def _pre_training(
    source: Source, model: str | None, image_size: tuple[int, int] | None, recipe: str, epochs: float, optimizer: AdamW,
    dropout: float = 0.0,
) -> Run:  # fmt: skip
    """What the three have in common: batch 4096, 224 px, a tanh layer before the last, no limit on the gradient."""
    seen = look(source.split("train"))
    size, classes = image_size or (224, 224), len(source.classes)
    config: Any = backbone(model or "ViT-B/16", classes, size, seen.channels)
    if isinstance(config, ViTConfig):
        block: Block = replace(config.block, dropout=dropout)
        config = replace(config, block=block, head=TanhHead(classes, config.dim))
    return Run(
        recipe=recipe,
        data=Data(source.name),
        model=config,
        preprocessing=Preprocessing(size, seen.channels, mean=(0.5,) * seen.channels, std=(0.5,) * seen.channels),
        augmentation=Augmentation((INCEPTION_CROP, *seen.flips)),
        objective=Supervised("sigmoid" if source.multi_label else "softmax"),
        optimizer=optimizer,
        training=Training(
            epochs=float(epochs), batch_size=4096, micro_batch=portion(config, 4096), clip=None,
            precision=best_precision(config.dim),
        ),
        why=(
            Reason("table 3; the warm-up is 10,000 steps, or a fifth of a run below 50,000", "schedule", *LENGTH),
            seen.mirror_words,
        ),
    )  # fmt: skip


def _sigmoid(run: Run) -> Run:
    """Each class is asked for by itself, and unlikely at first: the bias is -10 for the 21,843 classes of ImageNet-21k."""
    head: Any = run.model.head
    biased = replace(head, bias=-math.log(max(2, head.classes)))
    assert isinstance(biased, (TanhHead, LinearHead))
    return replace(run, model=with_head(run.model, biased), objective=Supervised("sigmoid"))
