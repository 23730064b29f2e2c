"""timm's ViT in a plain loop and Hugging Face's in its Trainer, on the pictures of a folder, for benchmarks/training.py.

Same architecture (GELU by erf, which is what both have by default), batch, AdamW, clip, augmentation and number of threads;
pictures are decoded as they come, by Pillow, as both do. What their users would write, and no less.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

WARMUP = 0.05  # of the steps
STANDINS = Path(__file__).resolve().parents[1] / "tests" / "standins"


@dataclass(frozen=True)
class Shape:
    """A ViT and its images."""

    dim: int
    depth: int
    heads: int
    patch: int
    side: int
    classes: int
    channels: int = 3
    hidden: int | None = None


class Folder(Dataset):
    """Files of FOLDER/CLASS/*, decoded at each visit: a random window resized, mirrored half of the time, normalised.

    Augmented as Vitrail's random-resized-crop (35 to 100 % of the area, aspect up to 4/3) and flip do; `augmented=False`
    resizes and no more.
    """

    def __init__(self, folder: Path, shape: Shape, augmented: bool = True) -> None:
        names = sorted(place.name for place in folder.iterdir() if place.is_dir())
        self.files = [(path, names.index(path.parent.name)) for path in sorted(folder.glob("*/*"))]
        self.shape, self.augmented = shape, augmented

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.files[index]
        with Image.open(path) as image:
            image = image.convert("RGB" if self.shape.channels == 3 else "L")
        side = self.shape.side
        if self.augmented:
            image = image.resize((side, side), Image.Resampling.BILINEAR, box=_window(image.size))
        elif image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        if self.augmented and torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.asarray(image).reshape(side, side, -1)
        values = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float().div_(127.5).sub_(1)
        return {"pixel_values": values, "labels": label}


def _window(size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    luck = torch.rand(4).tolist()
    area = width * height * (0.35 + 0.65 * luck[0])
    wide = min(width, math.sqrt(area * math.exp((2 * luck[1] - 1) * math.log(4 / 3))))
    tall = min(height, area / wide)
    left, top = luck[2] * (width - wide), luck[3] * (height - tall)
    return left, top, min(width, left + wide), min(height, top + tall)


def timm_model(shape: Shape) -> nn.Module:
    """Installed without its dependencies; of torchvision it needs names alone."""
    standing_in = importlib.util.find_spec("torchvision") is None
    if standing_in:
        sys.path.insert(0, str(STANDINS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from timm.models.vision_transformer import VisionTransformer
    if standing_in:
        sys.path.remove(str(STANDINS))
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    return VisionTransformer(
        img_size=shape.side, patch_size=shape.patch, in_chans=shape.channels, embed_dim=shape.dim, depth=shape.depth,
        num_heads=shape.heads, mlp_ratio=(shape.hidden or 4 * shape.dim) / shape.dim, num_classes=shape.classes,
    )  # fmt: skip


def hf_model(shape: Shape) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=shape.dim, num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
        intermediate_size=shape.hidden or 4 * shape.dim, image_size=shape.side, patch_size=shape.patch,
        num_channels=shape.channels, num_labels=shape.classes,
    )  # fmt: skip
    return ViTForImageClassification(config)


Told = Callable[[int, nn.Module], bool]
"""Called with (steps done, model) after every step; False ends the training."""


def timm_loop(
    shape: Shape, data: Dataset, batch: int, rate: float, total: int, half: bool, device: str, told: Told
) -> None:
    """The plain loop: AdamW, warm-up and cosine, clip."""
    model = timm_model(shape).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    warmup = max(1, round(WARMUP * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / total))
    )
    step = 0
    while True:
        for part in DataLoader(data, batch, shuffle=True, drop_last=True):
            with torch.autocast(device, torch.bfloat16) if half else nullcontext():
                logits = model(part["pixel_values"].to(device))
                loss = F.cross_entropy(logits, part["labels"].to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            if not told(step, model) or step == total:
                return


def hf_trainer(
    shape: Shape, data: Dataset, batch: int, rate: float, total: int, half: bool, device: str, told: Told
) -> None:
    """Its Trainer as it comes: AdamW, warm-up and cosine, clip 1."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()

    class Teller(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **rest: Any) -> None:
            control.should_training_stop |= not told(state.global_step, model)

    arguments = TrainingArguments(
        output_dir="runs/none", per_device_train_batch_size=batch, max_steps=total, learning_rate=rate, weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=round(WARMUP * total), bf16=half, use_cpu=device == "cpu", report_to=[], disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no", dataloader_drop_last=True, dataloader_pin_memory=device != "cpu",
    )  # fmt: skip
    Trainer(model=hf_model(shape), args=arguments, train_dataset=data, callbacks=[Teller()]).train()


PEERS: dict[str, Callable[..., None]] = {"timm": timm_loop, "transformers": hf_trainer}
