"""The families of backbones by name: what a saved configuration may be."""

from __future__ import annotations

from vitrail import configuration
from vitrail.model.backbone import BackboneConfig
from vitrail.model.resnet import ResNetConfig
from vitrail.model.vit import AXES as VIT_AXES
from vitrail.model.vit import ViTConfig

FAMILIES: dict[str, type[BackboneConfig]] = {"vit": ViTConfig, "resnet": ResNetConfig}
AXES: configuration.Axes = {**VIT_AXES, BackboneConfig: FAMILIES}
