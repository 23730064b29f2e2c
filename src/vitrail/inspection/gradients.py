"""Explanations by gradients: gradient x attention, integrated gradients, Grad-CAM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.inspection.attention import attending, check_whole
from vitrail.inspection.method import Maps, Method, Need, cells, level_of, scores
from vitrail.model.backbone import Backbone
from vitrail.model.mixers import AttentionMap, AttentionModule, CaptureRequest
from vitrail.model.resnet import ResNet
from vitrail.model.vit import ViT

FAR = 0.05  # a sum that misses by more is said
_ENOUGH = 0.01  # a sum that misses by more is taken again


@dataclass(frozen=True)
class GradientAttention(Method):
    """What attention carried, weighted by how much the class's logit hangs on it (Chefer, Gur & Wolf 2021).

    The relevance starts as R = I and follows the layers, R = R + A R, with A the mean over heads of the positive part
    of attention times its gradient. What the head reads asks R: the class token's row, the mean of the patches' rows, or
    the probe's own A, as for their cross attention. The identity is left out of the answer: it is the same for all patches.
    """

    name: ClassVar[str] = "gradient-attention"
    needs: ClassVar[tuple[Need, ...]] = ("attention", "gradients", "class")
    definition: ClassVar[str] = (
        "R = R + A R over the layers, A = mean over heads of max(0, attention x its gradient of the class's logit); "
        "Chefer et al., arXiv 2103.15679, eq. 5 and 6"
    )
    tells: ClassVar[str] = "along which patches attention carried what the class's logit hangs on"
    caveats: ClassVar[tuple[str, ...]] = (
        "Not importance: the gradient says what a very small change would do, not what the patch did.",
        "What speaks against the class is left out, and so are values and MLPs.",
    )

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        vit = attending(model)
        tape: list[AttentionMap] = []
        asked: list[AttentionMap] = []
        with torch.enable_grad(), vit.capture("attention", into=tape), _probed(vit, asked):
            tokens = vit.encode(vit.embed(images.detach().requires_grad_()))
            logits = vit.head(vit.pool(tokens))
        if len(tape) < len(vit.blocks):
            raise UsageError(
                "VT041", f"only {len(tape)} of {len(vit.blocks)} layers mix their tokens by attention",
                "attention in every layer", "token-drop and integrated-gradients need none",
            )  # fmt: skip
        maps = [entry.weights for entry in (*tape, *asked)]
        chosen = logits.gather(1, classes[:, None]).sum()
        gradients = torch.autograd.grad(chosen, maps, allow_unused=True)
        weighted = [_weighted(*pair) for pair in zip(maps, gradients, strict=True)]
        relevance = torch.eye(weighted[0].shape[-1], dtype=images.dtype, device=images.device)[None]
        identity = relevance
        for layer in weighted[: len(tape)]:
            check_whole(layer, tokens)
            relevance = relevance + layer @ relevance
        if asked:
            start = nn.functional.pad(weighted[-1][:, 0], (tokens.prefix, 0))
            found = torch.einsum("bq,bqt->bt", start, relevance)
        else:
            found = torch.einsum("bq,bqt->bt", vit.pool.weights(tokens), relevance - identity)
        return Maps(_on_grid(found[:, tokens.prefix :], tokens.grid))


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """The gradient on the way from a picture of the mean colour to this one, times the way (Sundararajan et al. 2017).

    The pixels of a patch are added up, so that the map still adds up to the difference of the logits; the integral is
    taken at the nodes of Gauss and Legendre, at twice as many where the sum misses by more than 1 %, and so on.

    Attributes:
        steps, most: nodes of the integral at first, and at last.
    """

    steps: int = 16
    most: int = 64
    name: ClassVar[str] = "integrated-gradients"
    needs: ClassVar[tuple[Need, ...]] = ("gradients", "class")
    signed: ClassVar[bool] = True
    definition: ClassVar[str] = (
        "(x - x0) times the mean gradient of the class's logit between x0, the mean colour, and x, added up over the "
        "pixels of a patch; Sundararajan et al., arXiv 1703.01365, eq. 1"
    )
    tells: ClassVar[str] = "how the difference of the class's logit to a picture of the mean colour is shared out"
    caveats: ClassVar[tuple[str, ...]] = (
        "It depends on what the picture is compared with: pixels of the mean colour get nothing, whatever they mean.",
        "The way between the two leads through pictures that the model has never seen.",
    )

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        with torch.inference_mode():
            whole = (scores(model, images, classes) - scores(model, torch.zeros_like(images), classes)).double()
        grid, steps = cells(model, images), self.steps
        values = images.new_zeros((len(images), *grid), dtype=torch.float64)
        gap = torch.full_like(whole, torch.inf)
        while True:
            open_ = (gap > _ENOUGH).nonzero()[:, 0]
            values[open_] = cell_sums(self._attributed(model, images[open_], classes[open_], steps), grid)
            missed = (values.sum(dim=(1, 2)) - whole).abs()
            gap = missed / whole.abs().clamp(min=torch.finfo(images.dtype).tiny)
            steps *= 2
            if steps > self.most or not bool((gap > _ENOUGH).any()):
                return Maps(values.cpu().numpy(), gap.cpu().numpy())

    def _attributed(self, model: Backbone, images: Tensor, classes: Tensor, steps: int) -> Tensor:
        """What each pixel adds, batch height width."""
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        total = torch.zeros_like(images)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            total += float(weight) * self._gradient(model, float(node) * images, classes)
        return (total * images).double().sum(dim=1)

    @staticmethod
    def _gradient(model: Backbone, images: Tensor, classes: Tensor) -> Tensor:
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            return torch.autograd.grad(scores(model, images, classes).sum(), images)[0]


@dataclass(frozen=True)
class GradCAM(Method):
    """The channels of the last layer, each weighted by the mean of its gradient (Selvaraju et al. 2017).

    Of a ViT the input of the last layer's attention, normed, at the patches: what leaves that layer no longer reaches a
    class token, and has no gradient. Of a ResNet the last feature map with 16 places or more.
    """

    name: ClassVar[str] = "grad-cam"
    needs: ClassVar[tuple[Need, ...]] = ("gradients", "class")
    definition: ClassVar[str] = (
        "max(0, sum over channels of activation x mean gradient of the class's logit), of the last layer's normed input, "
        "of a ResNet the last map of 16 places; Selvaraju et al., arXiv 1610.02391, eq. 1 and 2"
    )
    tells: ClassVar[str] = "where the last layer holds, on the whole, the channels that speak for the class"
    caveats: ClassVar[tuple[str, ...]] = (
        "One weight a channel for the whole image: made for maps that a mean follows, which attention is not.",
        "At the last layer the tokens were mixed already: a bright patch is not its pixels alone.",
    )

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        if isinstance(model, ResNet):
            held = _held(model.trunk, model, images, classes, level_of(model, images))
            return Maps(_cam(*held).cpu().double().numpy())
        assert isinstance(model, ViT)
        norm = model.get_submodule(f"blocks.{len(model.blocks) - 1}.mixer_norm")
        prefix = model.config.pool.class_tokens + model.config.pool.registers
        rows, cols = cells(model, images)
        activations, gradients = (
            rearrange(part[:, prefix:], "b (r k) d -> b d r k", r=rows, k=cols)
            for part in _held(norm, model, images, classes)
        )
        return Maps(_cam(activations, gradients).cpu().double().numpy())


@dataclass(frozen=True)
class StemGradCAM(Method):
    """Grad-CAM on the feature map of a hybrid's trunk, where a place is still a place."""

    name: ClassVar[str] = "grad-cam-stem"
    needs: ClassVar[tuple[Need, ...]] = ("gradients", "class", "stem")
    definition: ClassVar[str] = (
        "max(0, sum over channels of activation x mean gradient of the class's logit), of the trunk's last map; "
        "Selvaraju et al., arXiv 1610.02391, eq. 1 and 2"
    )
    tells: ClassVar[str] = "where the trunk holds, on the whole, the channels that speak for the class"
    caveats: ClassVar[tuple[str, ...]] = (
        "One weight a channel for the whole image, although the encoder reads every place by itself.",
        "What the encoder does with a place is in the gradient's mean alone.",
    )

    def _maps(self, model: Backbone, images: Tensor, classes: Tensor) -> Maps:
        held = _held(model.get_submodule("tokenizer.trunk"), model, images, classes, -1)
        return Maps(cell_sums(_cam(*held), cells(model, images)).cpu().double().numpy())


def _held(
    part: nn.Module, model: Backbone, images: Tensor, classes: Tensor, level: int | None = None
) -> tuple[Tensor, Tensor]:
    """What a part of the model gives (of several maps the one at `level`), and the gradient of the classes' logits."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, answer: Any) -> None:
        found.append(answer if level is None else answer[level])

    hook = part.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            chosen = scores(model, images.detach().requires_grad_(), classes).sum()
    finally:
        hook.remove()
    return found[0].detach(), torch.autograd.grad(chosen, found[0])[0]


def _cam(
    activations: Float[Tensor, "batch dim rows cols"], gradients: Float[Tensor, "batch dim rows cols"]
) -> Float[Tensor, "batch rows cols"]:
    weights = reduce(gradients, "b d r k -> b d", "mean")
    return torch.einsum("bd,bdrk->brk", weights, activations).clamp(min=0)


def _weighted(attention: Tensor, gradient: Tensor | None) -> Float[Tensor, "batch queries tokens"]:
    """The mean over heads of the positive part of attention times its gradient."""
    if gradient is None:
        raise UsageError(
            "VT142", "gradient-attention: the attention of this model's layers cannot be followed by a gradient",
            "attention of queries and keys", "rollout, token-drop and integrated-gradients need none",
        )  # fmt: skip
    return (attention.detach() * gradient).clamp(min=0).mean(dim=1)


@contextmanager
def _probed(model: ViT, asked: list[AttentionMap]) -> Iterator[None]:
    """Records what the probe of attention pooling asks for, where there is one."""
    probes = [module for module in model.pool.modules() if isinstance(module, AttentionModule)]
    for module in probes:
        module.request = CaptureRequest(asked.append)
    try:
        yield
    finally:
        for module in probes:
            module.request = None


def cell_sums(pixels: Float[Tensor, "batch height width"], grid: tuple[int, int]) -> Float[Tensor, "batch rows cols"]:
    """Sums over the cells of a grid; where they do not divide the image a pixel belongs to the cell of its centre."""
    by_row = pixels.new_zeros(len(pixels), grid[0], pixels.shape[2])
    by_row.index_add_(1, _cell_of(pixels.shape[1], grid[0], pixels), pixels)
    by_cell = pixels.new_zeros(len(pixels), *grid)
    return by_cell.index_add_(2, _cell_of(pixels.shape[2], grid[1], pixels), by_row)


def _cell_of(length: int, count: int, like: Tensor) -> Tensor:
    """Of each pixel along a side, the cell that its centre lies in."""
    return ((torch.arange(length, device=like.device) + 0.5) * count / length).long()


def _on_grid(values: Float[Tensor, "batch patches"], grid: tuple[int, int]) -> Float[np.ndarray, "batch rows cols"]:
    return rearrange(values, "b (r k) -> b r k", r=grid[0], k=grid[1]).detach().cpu().double().numpy()
