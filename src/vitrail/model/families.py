"""The families of backbones by name: what a saved configuration may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail import configuration
from vitrail.model.backbone import BackboneConfig
from vitrail.model.resnet import ResNetConfig
from vitrail.model.vit import AXES as VIT_AXES
from vitrail.model.vit import ViTConfig

FAMILIES: dict[str, type[BackboneConfig]] = {"vit": ViTConfig, "resnet": ResNetConfig}
AXES: configuration.Axes = {**VIT_AXES, BackboneConfig: FAMILIES}


def typed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Saved JSON of a backbone with its types; what was saved when there was one of a kind has none."""
    typed = {"type": "vit", **data}
    block = typed.get("block")
    if isinstance(block, dict) and isinstance(block.get("mlp"), dict):
        typed["block"] = {**block, "mlp": {"type": "mlp", **block["mlp"]}}
    return typed


def from_json(data: Mapping[str, Any]) -> BackboneConfig[Any]:
    """A backbone from its saved JSON; fields that it lacks have their defaults.

    Raises:
        UsageError: VT003, an unknown key, a wrong type or an impossible value.
    """
    decoded: BackboneConfig[Any] = configuration.decode(BackboneConfig, typed(data), AXES)
    return decoded
