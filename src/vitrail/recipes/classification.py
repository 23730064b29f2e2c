"""Recipes: functions that return a complete Run. Each docstring gives the command, the cost and the expected number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitrail.checkpoints.adapt import known_classes
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import read
from vitrail.data.sources import Source
from vitrail.data.transforms import Flip, RandomResizedCrop, Shift, Transform
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import Block
from vitrail.model.heads import LinearHead
from vitrail.model.mixers import Attention
from vitrail.model.pools import GlobalAverage
from vitrail.model.positions import Learned1D
from vitrail.model.sizes import backbone
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.objectives.supervised import Supervised
from vitrail.preprocessing import Preprocessing
from vitrail.recipes.look import Look, look
from vitrail.recipes.run import Augmentation, Data, Reason, Run
from vitrail.training.loop import Training
from vitrail.training.optimizer import SGD, AdamW, Muon, Optimizer
from vitrail.training.precision import best_precision
from vitrail.training.schedule import Cosine
from vitrail.training.tuning import Everything, LoRA, Tuning


def from_scratch(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """Random weights, any folder of images: what `vitrail train FOLDER` does.

    vitrail train FOLDER
    The pictures decide: small ones keep their size, larger ones are read at 64 px; the mirror is used where it does not
    turn one class into another; the number of epochs gives every data set about the same work.
    Cost: minutes; `--plan` measures it. Measured (one seed each): digits of 8 px 98.9 % (n = 179), clip art of all sizes
    75.6 % (n = 733); docs/measurements.md has their neighbours.
    """
    seen = look(source.split("train"))
    config, size_why = (
        _small_model(source, seen, image_size) if model is None else _named(source, seen, model, image_size)
    )
    optimizer, optimizer_why = _optimizer(config)
    crops: tuple[Transform, ...] = (Shift(),) if config.image_size[0] <= 32 else (RandomResizedCrop(),)
    examples = EXAMPLES if max(config.image_size) <= 32 else EXAMPLES * 3 // 4  # larger images cost more and teach more
    epochs = float(min(300, max(10, round(examples / seen.count))))
    return Run(
        recipe="from-scratch",
        data=Data(source.name),
        model=config,
        preprocessing=_preprocessing(seen, config.image_size),
        augmentation=Augmentation((*crops, *seen.flips)),
        objective=_objective(source),
        optimizer=optimizer,
        training=Training(epochs=epochs, precision=best_precision(config.dim)),
        why=(
            size_why,
            Reason(optimizer_why, "optimizer"),
            seen.mirror_words,
            Reason(f"{epochs:.0f} epochs: about {examples:,} examples, between 10 and 300 epochs", "training.epochs"),
        ),
    )


EXAMPLES, LONG = 400_000, 1_200_000


def demo(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """The built-in fashion-mini, 10,000 grey images of 28 px.

    vitrail demo, or vitrail train fashion-mini --recipe demo
    Cost: 3 min 48 s on two cores. Measured: 87.7 % top-1 (seed 0, n = 2,000, 95 % CI 86.2-89.1), nearest neighbours
    82.8 %. docs/measurements.md has the run, docs/log.md what was tried.
    """
    return replace(from_scratch(source, model, image_size), recipe="demo")


def from_scratch_small(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """Random weights, images of 28 to 64 px, trained three times as long as from-scratch, on smaller patches.

    vitrail train FOLDER --recipe from-scratch-small
    Cost: some 1.2 million examples, 35 minutes on one core at 28 px. Measured: as the recipe fashion-mnist, which is this
    one with the mirror always on, top-1 92.76 ± 0.18 % (n = 3 seeds).
    """
    base = from_scratch(source, model, image_size)
    config, side = base.model, max(base.model.image_size)
    patch = 2 if side <= 12 else 4 if side <= 32 else 8
    if model is None and isinstance(config, ViTConfig) and all(length % patch == 0 for length in config.image_size):
        config = replace(config, tokenizer=LinearPatches((patch, patch), base.preprocessing.channels))
    epochs = float(min(300, max(20, round(LONG / len(source.split("train"))))))
    return replace(
        base,
        recipe="from-scratch-small",
        model=config,
        training=replace(base.training, epochs=epochs, batch_size=128),
        why=(
            *base.why[:-1],
            Reason(f"{epochs:.0f} epochs: about {LONG:,} examples, between 20 and 300 epochs", "training.epochs"),
            Reason("batch 128", "training.batch_size"),
        ),
    )


def fashion_mnist(source: Source, model: str | None = None, image_size: tuple[int, int] | None = None) -> Run:
    """All 60,000 training images of Fashion-MNIST: from-scratch-small, 20 epochs.

    vitrail train fashion-mnist --recipe fashion-mnist
    Cost: some 21 minutes on two cores, 35 on one. Measured: top-1 92.76 ± 0.18 % (mean and standard deviation of seeds 0,
    1, 2; n = 10,000), nearest neighbours 84.9 %. docs/log.md has what was tried.
    """
    base = from_scratch_small(source, model, image_size)
    return replace(
        base,
        recipe="fashion-mnist",
        # Mirrored shoes are shoes still: measured better than not in runs of this length (docs/log.md).
        augmentation=Augmentation((Shift(), Flip())),
        training=replace(base.training, epochs=20.0),
        why=(
            Reason(
                "patches of 4 px, batch 128, mirror on: measured better at this number of images",
                "model.tokenizer",
                "training.batch_size",
                "augmentation",
            ),
        ),
    )


def fine_tune(source: Source, weights: str, image_size: tuple[int, int] | None = None) -> Run:
    """From a checkpoint to one's own images: thin matrices beside the blocks' and the head (LoRA), AdamW; files are merged.

    vitrail train FOLDER --weights CHECKPOINT
    Where there are no blocks with attention, all weights learn as in the paper (section 4.1): SGD, momentum 0.9, no decay,
    0.03 for a batch of 512 scaled to 64; so they do in ViTs with --set tuning=everything --set optimizer=sgd.
    Classes that the checkpoint knows by name keep what it knows of them, the others are new; a head of zeros for all, as
    in the paper: --set keep_classes=false.
    Cost: some 20,000 examples, minutes for a small model; `--plan` measures it. Measured with a ViT-S/14: ten kinds of clip
    art, four epochs (n = 692), at 56 px 74.4 ± 0.2 %, at 98 px 79.2 ± 0.4 % (mean and standard deviation of seeds 0, 1, 2),
    where all weights by SGD reach 59.5 ± 1.5 % at 56 px in three; fashion-mini at 56 px, two epochs (n = 2,000), 86.7 %
    (85.1-88.1), by SGD 76.6 % (74.7-78.4). Published, by the paper's longer training (vitrail recipes paper-fine-tuning):
    Pets 94.43 %, Flowers 99.38 % with B/16.
    """
    checkpoint = read(weights, None)
    known = known_classes(checkpoint, source.classes)
    size = image_size or checkpoint.config.image_size
    head = checkpoint.config.head.adapted(len(source.classes), bool(known))
    config = replace(checkpoint.config, image_size=size, head=head)  # type: ignore[type-var]  # always a dataclass
    seen = look(source.split("train"))
    optimizer, tuning, learns = _transfer(config)
    return Run(
        recipe="fine-tune",
        data=Data(source.name),
        model=config,
        preprocessing=replace(checkpoint.preprocessing, image_size=size),
        augmentation=Augmentation((RandomResizedCrop(min_area=0.25), *seen.flips)),
        objective=_objective(source),
        optimizer=optimizer,
        tuning=tuning,
        schedule=Cosine(warmup=0.05),
        training=Training(
            epochs=float(min(100, max(3, round(EXAMPLES / 20 / seen.count)))),
            evaluations=5,
            precision=best_precision(config.dim),
        ),
        weights=weights,
        keep_classes=bool(known),
        why=(
            f"weights of {checkpoint.provenance.get('format', weights)}, {size[0]}x{size[1]} px",
            Reason(head_words(checkpoint, source.classes, known), "keep_classes"),
            Reason(learns, "tuning", "optimizer"),
        ),
    )


def _transfer(config: BackboneConfig) -> tuple[Optimizer, Tuning, str]:
    """docs/log.md: in the time of minutes thin matrices learn more than all weights do."""
    if isinstance(config, ViTConfig) and isinstance(config.block.mixer, Attention):
        why = "LoRA: the head and thin matrices learn, all else stays; all weights: --set tuning=everything"
        return AdamW(lr=1e-3, weight_decay=0.05), LoRA(), why
    return SGD(lr=0.03 * 64 / 512), Everything(), "all weights learn: there are no blocks with attention"


def head_words(checkpoint: Checkpoint, classes: Sequence[str], known: Sequence[str]) -> str:
    """What becomes of the checkpoint's head."""
    if not known:
        named = checkpoint.classes and len(checkpoint.classes) == checkpoint.config.head.classes
        return f"new head of {len(classes)} classes" + (": the weights know none of them by name" if named else "")
    if len(known) == len(classes) == len(checkpoint.classes):
        return f"the head is kept: the weights know all {len(classes)} classes by name"
    new, gone = [n for n in classes if n not in known], [n for n in checkpoint.classes if n not in known]
    parts = [f"{len(known)} {'class is' if len(known) == 1 else 'classes are'} kept, matched by name"]
    parts += [f"{len(new)} {'is' if len(new) == 1 else 'are'} new: {_listed(new)}"] if new else []
    return "; ".join(
        parts
        + ([f"{len(gone)} of the weights {'is' if len(gone) == 1 else 'are'} dropped: {_listed(gone)}"] if gone else [])
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _small_model(source: Source, seen: Look, image_size: tuple[int, int] | None) -> tuple[BackboneConfig, str]:
    """A small ViT with some 16 to 64 patches, whose cost per image is about the same for every picture size."""
    side = image_size or ((seen.side, seen.side) if seen.side <= 32 else (64, 64))
    patch = 2 if max(side) <= 12 else 4 if max(side) <= 20 else 7 if max(side) <= 28 else 8
    if image_size is None:  # what the user asked for is not changed, it is refused where the patch does not divide it
        side = (max(patch, round(side[0] / patch) * patch),) * 2
    config = ViTConfig(
        size=Size(96, 4, 3, 192),
        tokenizer=LinearPatches((patch, patch), seen.channels),
        position=Learned1D(),
        block=Block(),
        pool=GlobalAverage(),
        head=LinearHead(len(source.classes)),
        image_size=side,
    )
    why = "as asked" if image_size else f"because the pictures' shorter side is {seen.side} px (median)"
    return config, f"{side[0]}x{side[1]} px, {why}"


def _named(source: Source, seen: Look, model: str, image_size: tuple[int, int] | None) -> tuple[BackboneConfig, str]:
    config = backbone(model, len(source.classes), image_size or (224, 224), seen.channels)
    return config, f"{model} as asked"


def _optimizer(config: BackboneConfig) -> tuple[Optimizer, str]:
    """Muon for the matrices of an encoder; where there are convolutions alone, AdamW."""
    if isinstance(config, ViTConfig):
        return (
            Muon(),
            "Muon for the matrices of the encoder's layers, AdamW for all else, such as a stem's convolutions",
        )
    # docs/log.md: Adam's usual 1e-3 is too small for standardised kernels, whose size does not matter.
    return AdamW(lr=3e-3), "AdamW: Muon is for matrices, and all of a ResNet's weights are convolutions"


def _preprocessing(seen: Look, image_size: tuple[int, int]) -> Preprocessing:
    return Preprocessing(image_size=image_size, channels=seen.channels, mean=seen.mean, std=seen.std)


def _objective(source: Source) -> Supervised:
    return Supervised("sigmoid") if source.multi_label else Supervised("softmax", label_smoothing=0.1)
