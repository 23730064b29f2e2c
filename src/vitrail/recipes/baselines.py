"""What the paper is compared with, and what came after it: BiT, AugReg, the better plain ViT-S/16, ViT-G.

None of these has been run here at full size; `--plan` measures what a run costs on the computer at hand.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from vitrail.checkpoints.loading import read
from vitrail.data.mixing import Mixup
from vitrail.data.sources import Source
from vitrail.data.transforms import RandomCrop
from vitrail.model.heads import LinearHead, TanhHead
from vitrail.model.pools import AttentionPool, GlobalAverage
from vitrail.model.positions import SineCosine
from vitrail.model.vit import ViTConfig
from vitrail.objectives.supervised import Supervised
from vitrail.recipes.look import look
from vitrail.recipes.paper import (
    LENGTH,
    epochs_of,
    paper_imagenet,
    paper_jft,
    portion,
    resized_preprocessing,
    warm_up,
    with_head,
)  # fmt: skip
from vitrail.recipes.run import Augmentation, Data, Reason, Run
from vitrail.training.loop import Training
from vitrail.training.optimizer import SGD, Adafactor, AdamW
from vitrail.training.precision import best_precision
from vitrail.training.schedule import Cosine, ReciprocalSquareRoot, Stairs

# big_vision's vit_i1k.py: how much augmentation each size gets on ImageNet-1k.
LEVELS = {"ViT-Ti/16": "light1", "ViT-S/32": "medium1"}


def bit(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """Pre-training of BiT-S and -M (arXiv 1912.11370): SGD, momentum 0.9, rate 0.03 for 256 images, decay 1e-4, stairs.

    vitrail train FOLDER --recipe bit --model R50x1
    Cost: 90 epochs of batches of 4,096; `--plan` measures it. Published: BiT-S R152x4 81.30 %, BiT-M 85.39 % top-1 on
    ImageNet; the same SGD for 7 epochs of JFT, R50x1 78.24 %, with Adam 77.54 % (ViT paper, table 7).
    Not run here at full size.
    """
    base = paper_imagenet(source, model or "R50x1", image_size)
    training = replace(base.training, epochs=90.0, clip=None)
    steps = training.steps(len(source.split("train")))
    return replace(
        base,
        recipe="bit",
        optimizer=SGD(lr=0.03 * 4096 / 256, weight_decay=1e-4),
        schedule=Stairs(warmup=min(5000.0, steps // 5), milestones=(1 / 3, 2 / 3, 8 / 9)),
        training=training,
        why=(Reason("rate times 0.1 after 30, 60 and 80 of 90 epochs", "schedule", "training.epochs"), base.why[-1]),
    )


def bit_hyperrule(source: Source, weights: str, image_size: tuple[int, int] | None = None) -> Run:
    """Fine-tuning with no choices to make (BiT-HyperRule, arXiv 1912.11370, section 3.3): the number of images decides.

    vitrail train FOLDER --weights BiT-M-R50x1.npz --recipe bit-hyperrule
    SGD 0.003, batch 512, 500 / 10,000 / 20,000 steps below 20,000 / 500,000 images and above, rate times 0.1 at 30, 60
    and 90 %, mixup 0.1 but in the first; pictures below 96 px are read at 160 and cut to 128, others 448 and 384.
    Cost: `--plan` measures it. Published for BiT-L R152x4: ImageNet 87.54 %, CIFAR-10 99.37 %, CIFAR-100 93.51 %,
    Pets 96.62 %, Flowers 99.63 %. Not run here at full size.
    """
    checkpoint = read(weights)
    seen = look(source.split("train"))
    small = seen.side < 96
    size = image_size or ((128, 128) if small else (384, 384))
    head = checkpoint.config.head.adapted(len(source.classes), False)
    config: Any = replace(checkpoint.config, image_size=size, head=head)  # type: ignore[type-var]
    steps = 500 if seen.count < 20_000 else 10_000 if seen.count < 500_000 else 20_000
    return Run(
        recipe="bit-hyperrule",
        data=Data(source.name),
        model=config,
        preprocessing=resized_preprocessing(checkpoint, size),
        augmentation=Augmentation(
            (RandomCrop(128 / 160 if small else 384 / 448), *seen.flips), None if steps == 500 else Mixup(0.1)
        ),
        objective=Supervised("sigmoid" if source.multi_label else "softmax"),
        optimizer=SGD(lr=0.003),
        schedule=Stairs(warmup=100 if steps == 500 else 500),
        training=Training(
            epochs=epochs_of(steps, 512, seen.count), batch_size=512, micro_batch=portion(config, 512), clip=None,
            precision=best_precision(config.dim),
        ),
        weights=weights,
        why=(
            Reason(f"HyperRule: {steps:,} steps for {seen.count:,} images of {seen.side} px (median)", *LENGTH),
            seen.mirror_words,
        ),
    )  # fmt: skip


def augreg(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """ "How to train your ViT?" (arXiv 2106.10270) on ImageNet-1k: 300 epochs, as much augmentation as the size bears.

    vitrail train FOLDER --recipe augreg --model ViT-S/16; other levels: --set augmentation=none, light1 ... strong2.
    Cost: 94,000 steps of 4,096 images; `--plan` measures it. Published for weights of ImageNet-21k, fine-tuned at 384 px:
    L/16 85.59 %, B/16 85.49 %, S/16 83.73 %, Ti/16 78.22 %, B/32 83.59 %, S/32 79.58 % (README of vision_transformer).
    Not run here at full size.
    """
    name = model or "ViT-S/16"
    base = paper_imagenet(source, name, image_size)
    level = LEVELS.get(name, "medium2")
    config = base.model
    if isinstance(config, ViTConfig):
        classes = config.head.classes
        config = replace(config, block=replace(config.block, dropout=0.0),
                         head=TanhHead(classes, config.dim, -math.log(max(2, classes))))  # fmt: skip
    return replace(
        base,
        recipe="augreg",
        model=config,
        augmentation=base.levelled(level),
        objective=Supervised("sigmoid"),
        optimizer=AdamW(1e-3, 1e-4, decay_follows="schedule"),
        why=(Reason(f"augmentation {level}, as big_vision has it for {name}", "augmentation"), base.why[-1]),
    )


def better_baseline(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """ "Better plain ViT baselines for ImageNet-1k" (arXiv 2205.01580): ViT-S/16, averaged tokens, fixed positions, 90 epochs.

    vitrail train FOLDER --recipe better-baseline; 150 and 300 epochs: --epochs 300 --set schedule.warmup=10000.
    Cost: 113,000 steps of 1,024 images, 6 to 7 h on a TPU v3-8; `--plan` measures it. Published: 76.5 % top-1 on ImageNet.
    Not run here at full size.
    """
    base = paper_imagenet(source, model or "ViT-S/16", image_size)
    config = base.model
    if isinstance(config, ViTConfig):
        config = replace(config, position=SineCosine(), pool=GlobalAverage(), block=replace(config.block, dropout=0.0))
    run = replace(
        base,
        recipe="better-baseline",
        model=config,
        preprocessing=replace(base.preprocessing, fit="crop", crop_share=224 / 256),
        augmentation=base.levelled("light2"),
        optimizer=AdamW(1e-3, 1e-4, decay_follows="schedule"),
        training=replace(base.training, epochs=90.0, batch_size=1024, micro_batch=portion(config, 1024)),
        why=(
            Reason("batch 1,024", "training.batch_size"),
            Reason("RandAugment (2, 10), mixup 0.2", "augmentation"),
            base.why[-1],
        ),
    )
    return replace(run, schedule=Cosine(warm_up(run, source)))


def vit_g(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """ "Scaling Vision Transformers" (arXiv 2106.04560): a MAP head, no class token, a strong decay of the head alone.

    vitrail train FOLDER --recipe vit-g --model ViT-G/14
    Adafactor in less than half of Adam's memory; the rate falls with the reciprocal square root of the steps, and to 0
    in the last 50,000. The decays, 3 and 0.03, and the rate, 8e-4, could not be compared with the paper.
    Cost: some 1,850 million parameters: not for one machine; `--plan` says what there is to it. Published: G/14 90.45 % top-1
    on ImageNet, 84.86 % with ten images a class. Not run here at full size.
    """
    base = paper_jft(source, model or "ViT-G/14", image_size)
    config = base.model
    classes, bias = config.head.classes, -math.log(max(2, config.head.classes))
    if isinstance(config, ViTConfig):
        config = replace(config, pool=AttentionPool())
    config = with_head(config, LinearHead(classes, bias))
    steps = base.training.steps(len(source.split("train")))
    whole = steps >= 200_000
    return replace(
        base,
        recipe="vit-g",
        model=config,
        optimizer=Adafactor(8e-4, 0.03, head_decay=3.0),
        schedule=ReciprocalSquareRoot(10_000, 10_000, 50_000) if whole else ReciprocalSquareRoot(),
        training=replace(base.training, clip=1.0, micro_batch=portion(config, 4096)),
        why=(
            Reason(
                "warm-up, timescale and cooldown are 10,000, 10,000 and 50,000 steps, or shares of a run below 200,000",
                "schedule",
                *LENGTH,
            ),
            base.why[-1],
        ),
    )
