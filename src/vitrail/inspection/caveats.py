"""What a map of attention can and cannot tell, in sentences that depend on the method and on the map itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vitrail.inspection.attention import Query

_EVEN = 0.9  # a spread of nine tenths of the patches: colours then show differences that hardly matter
_LONELY = 5.0  # times the even share, and twice the next patch: such a peak has often nothing to do with what is there
_READS = {
    "class": "the class token",
    "mean": "the mean of the patches",
    "probe": "the probe of attention pooling",
}


@dataclass(frozen=True)
class Setting:
    """What the sentences depend on.

    Attributes:
        layer, heads: None for rollout, and for all heads.
        reads: what the model's head reads: class, mean or probe.
        depth, num_heads, class_tokens, registers: of the model.
    """

    query: Query
    layer: int | None
    heads: tuple[int, ...] | None
    reads: str
    depth: int
    num_heads: int
    class_tokens: int
    registers: int

    @property
    def prefix(self) -> str:
        """The tokens that are no patches, in words; empty where there are none."""
        kinds = [(self.class_tokens, "class token"), (self.registers, "register")]
        return " and ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in kinds if count)


def query_name(query: Query) -> str:
    """Who looks, in words."""
    return _READS[query] if isinstance(query, str) else f"patch {query[0]},{query[1]}"


def tells(setting: Setting) -> str:
    """What the map shows."""
    who = query_name(setting.query)
    if setting.layer is None:
        return f"how much of each patch reaches {who} if attention alone moved it through the {setting.depth} layers"
    heads = "all heads" if setting.heads is None else "these heads"
    count = setting.num_heads if setting.heads is None else len(setting.heads)
    return f"which patches {who} reads in layer {setting.layer}, " + (
        f"on average over {heads} ({count})" if count > 1 else f"in head {(setting.heads or (0,))[0]}"
    )


def caveats(
    setting: Setting, weights: Float[np.ndarray, "rows cols"], spread: float, prefix_share: float
) -> tuple[str, ...]:
    """What the map cannot tell, most important first."""
    return (
        *(_of_rollout(setting) if setting.layer is None else _of_attention(setting)),
        *_of_this_map(setting, weights, spread, prefix_share),
    )


def evenness(weights: Float[np.ndarray, "rows cols"], spread: float) -> str:
    """The warning that a map says next to nothing; empty where it has a shape."""
    if not spread >= _EVEN * weights.size > 1:
        return ""
    return (
        f"This map is nearly even (like {spread:.1f} of {weights.size} patches looked at alike): "
        "its colours show small differences, not a shape."
    )


def _of_rollout(setting: Setting) -> Iterator[str]:
    yield "Not why this class: the map is the same for every class."
    yield "Not importance: heads are averaged, values and MLPs left out; a large weight is no proof of a large effect."
    yield "Half of every layer is the residual by definition, not by measurement."
    if isinstance(setting.query, tuple):
        yield f"So the patch itself keeps at least {100 * 0.5**setting.depth:.2g} % of its weight whatever the picture."


def _of_attention(setting: Setting) -> Iterator[str]:
    yield "Not importance: it does not say what was read there, nor what later layers do with it (arXiv 1902.10186)."
    yield "Not why this class: the map is the same for every class."
    if setting.layer:
        yield f"Below layer {setting.layer} the tokens were mixed already: weight on a patch is not on its pixels alone."
    if setting.num_heads > 1 and setting.heads is None:
        yield f"The mean hides heads that disagree: heads 0 to {setting.num_heads - 1} can be asked for one by one."
    elif setting.heads is not None and len(setting.heads) < setting.num_heads:
        yield f"It is {len(setting.heads)} of {setting.num_heads} heads: the others may look elsewhere."
    if setting.depth > 1:
        yield f"It is one of {setting.depth} layers: the others may look elsewhere."


def _of_this_map(
    setting: Setting, weights: Float[np.ndarray, "rows cols"], spread: float, prefix_share: float
) -> Iterator[str]:
    """Warnings that the numbers themselves give."""
    if setting.query != setting.reads and not (setting.layer is not None and setting.reads == "probe"):
        yield f"The head reads {_READS[setting.reads]}; {query_name(setting.query)} was asked for instead."
    if prefix_share > 0.5:
        yield f"{100 * prefix_share:.0f} % of the weight stays on {setting.prefix}; the map shows how the rest is shared."
    if even := evenness(weights, spread):
        yield even
    second, first = np.sort(weights, axis=None)[-2:] if weights.size > 1 else (1.0, 1.0)
    if first * weights.size >= _LONELY and first >= 2 * second and not setting.registers:
        row, col = np.unravel_index(int(weights.argmax()), weights.shape)
        yield (
            f"Patch {row},{col} stands alone with {first * weights.size:.1f} times the even share. In models without "
            "registers such a patch can be a place to keep things rather than something seen (arXiv 2309.16588)."
        )
