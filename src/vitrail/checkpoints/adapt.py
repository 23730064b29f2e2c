"""Fine-tuning starts here: pre-logits dropped, head zeroed, position grid resized (paper 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import at_size
from vitrail.model.heads import LinearHead, TanhHead


def adapt(
    checkpoint: Checkpoint,
    classes: Sequence[str],
    image_size: tuple[int, int] | None = None,
    keep_representation: bool = False,
) -> Checkpoint:
    """A checkpoint for another task.

    The class token's position is kept, the patches' are resampled bilinearly with aligned corners, also to grids that
    are not square. The head is always new, even where the number of classes is the same.

    Args:
        checkpoint: the pre-trained model.
        classes: names of the new task's classes.
        image_size: (height, width) of the new task; None keeps the checkpoint's.
        keep_representation: keep the tanh layer of pre-training, which fine-tuning drops by default.
    """
    head = checkpoint.config.head
    if keep_representation and isinstance(head, TanhHead):
        new_head: LinearHead | TanhHead = TanhHead(len(classes), head.hidden)
    else:
        new_head = LinearHead(len(classes))
    resized = at_size(checkpoint, image_size)
    config = replace(resized.config, head=new_head)
    fresh = new_head.build(config.size.dim).state_dict()
    if isinstance(new_head, TanhHead):
        fresh |= {name: resized.weights[f"head.{name}"] for name in fresh if name.startswith("represent.")}
    weights = {name: tensor for name, tensor in resized.weights.items() if not name.startswith("head.")}
    weights |= {f"head.{name}": tensor for name, tensor in fresh.items()}
    provenance = {**checkpoint.provenance, "adapted": f"new head of {len(classes)} classes at {config.image_size}"}
    return replace(resized, config=config, weights=weights, classes=tuple(classes), provenance=provenance)
