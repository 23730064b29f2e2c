"""Fine-tuning starts here: pre-logits dropped, head zeroed, position grid resized (paper 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import at_size


def adapt(
    checkpoint: Checkpoint,
    classes: Sequence[str],
    image_size: tuple[int, int] | None = None,
    keep_representation: bool = False,
    patch: tuple[int, int] | None = None,
    keep_classes: bool = False,
) -> Checkpoint:
    """A checkpoint for another task.

    The class token's position is kept, the patches' are resampled bilinearly with aligned corners, also to grids that
    are not square. The head is always new, even where the number of classes is the same.

    Args:
        checkpoint: the pre-trained model.
        classes: names of the new task's classes.
        image_size: (height, width) of the new task; None keeps the checkpoint's.
        keep_representation: keep the tanh layer of pre-training, which fine-tuning drops by default.
        patch: (height, width) of other patches, to which the kernels of linear patches are resized (FlexiViT).
        keep_classes: classes that the checkpoint knows by name keep what it says of them, with its tanh layer; the others
            are new. Where it knows none, all of the head is.
    """
    known = known_classes(checkpoint, classes) if keep_classes else ()
    keep_representation = keep_representation or bool(known)
    new_head = checkpoint.config.head.adapted(len(classes), keep_representation)
    resized = at_size(checkpoint, image_size, patch)
    config = replace(resized.config, head=new_head)  # type: ignore[type-var]  # every configuration is a dataclass
    fresh = new_head.build(config.dim).state_dict()
    fresh |= {name: resized.weights[f"head.{name}"] for name in fresh if name.startswith("represent.")}
    _take_over(fresh, resized, classes, known)
    weights = {name: tensor for name, tensor in resized.weights.items() if not name.startswith("head.")}
    weights |= {f"head.{name}": tensor for name, tensor in fresh.items()}
    provenance = {**checkpoint.provenance, "adapted": f"new head of {len(classes)} classes at {config.image_size}"}
    return replace(  # the temperature was the old head's
        resized, config=config, weights=weights, classes=tuple(classes), provenance=provenance, temperature=1.0
    )


def known_classes(checkpoint: Checkpoint, classes: Sequence[str]) -> tuple[str, ...]:
    """Those of the classes that the checkpoint's head knows by name; none where names stand for no logits."""
    named = len(checkpoint.classes) == checkpoint.config.head.classes == len(set(checkpoint.classes))
    return tuple(name for name in classes if name in set(checkpoint.classes)) if named else ()


def _take_over(fresh: dict[str, Tensor], old: Checkpoint, classes: Sequence[str], known: Sequence[str]) -> None:
    """The rows of known classes, of every layer of the head that has a row for each class."""
    mine, theirs = ([names.index(name) for name in known] for names in (list(classes), list(old.classes)))
    for name, tensor in fresh.items():
        source = old.weights.get(f"head.{name}")
        fits = source is not None and not name.startswith("represent.") and source.shape[1:] == tensor.shape[1:]
        if known and source is not None and fits:
            tensor[mine] = source[theirs].to(tensor.dtype)
