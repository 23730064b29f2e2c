"""timm's own models, saved by timm: logits, hidden states, other sizes, preprocessing, and what is written back."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data as photographs

import vitrail
from home_timm import timm
from parity_table import ROWS, Row, relative
from strong import hidden_states, strengthened, whole
from vitrail.checkpoints.containers import Weights
from vitrail.checkpoints.families import FAMILIES
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.loading import read
from vitrail.checkpoints.timm import of_architecture, row_of
from vitrail.checkpoints.torch_names import heads_of
from vitrail.model.block import MLP, Norm

SMALL = {"embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 5, "img_size": 32, "patch_size": 8}
# case: architecture, arguments, family that is asked for where the file is bare
CASES = {
    "vit": ("vit_base_patch16_224", {}, None),
    "no classes": ("vit_base_patch16_224", {"num_classes": 0}, None),
    "average, norm after": ("vit_base_patch16_224", {"global_pool": "avg"}, None),
    "average, no class token": ("vit_medium_patch16_gap_240", {}, None),
    "no row for the class": ("vit_base_patch16_224", {"no_embed_class": True}, None),
    "no input bias": ("vit_base_patch16_224_miil", {}, None),
    "registers": ("vit_medium_patch16_reg4_gap_256", {}, None),
    "clip": ("vit_base_patch32_clip_224", {}, "open-clip"),
    "clip, quick": ("vit_base_patch32_clip_quickgelu_224", {}, "clip"),
    "siglip": ("vit_giantopt_patch16_siglip_256", {"num_heads": 2, "mlp_ratio": 3.7362}, "siglip"),
    "siglip, average": ("vit_so400m_patch16_siglip_gap_256", {"mlp_ratio": 3}, "siglip"),
    "map and registers": ("vit_so150m_patch16_reg4_map_256", {"no_embed_class": True}, "augreg"),
    "deit": ("deit_base_patch16_224", {}, "deit"),
    "deit distilled": ("deit_base_distilled_patch16_224", {}, "deit"),
    "deit3": ("deit3_base_patch16_224", {}, "deit3"),
    "dinov2": ("vit_base_patch14_dinov2", {}, "dinov2"),
    "dinov2 registers": ("vit_base_patch14_reg4_dinov2", {}, "dinov2"),
    "dinov2 giant": ("vit_giant_patch14_reg4_dinov2", {}, "dinov2"),
    "flexivit": ("flexivit_base", {}, "flexivit"),
}  # fmt: skip


def arguments_of(case):
    return {**SMALL, **CASES[case][1]}


def model_of(case, **changes):
    return strengthened(timm().create_model(CASES[case][0], **{**arguments_of(case), **changes}))


def folder_of(model, path, arguments):
    """As timm.models.save_for_hf writes it; that function itself asks for a hub."""
    from timm.models._hub import save_config_for_hf

    path.mkdir()
    save_file(model.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    config = dict(model.pretrained_cfg, input_size=(3, *model.patch_embed.img_size), num_classes=model.num_classes)
    model.pretrained_cfg = config
    save_config_for_hf(model, str(path / "config.json"), model_config=None, model_args=arguments)
    return path


def compared(home, loaded, images):
    """(logits, hidden states): largest relative differences."""
    wanted, theirs = hidden_states(home.blocks, lambda: home(images))
    found, ours = hidden_states(loaded.blocks, lambda: whole(loaded, images))
    return relative(found, wanted), max(relative(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_folder_gives_timms_logits_and_timm_those_of_ours(tmp_path, case):
    home = model_of(case)
    checkpoint = read(folder_of(home, tmp_path / "model", arguments_of(case)))
    images = torch.randn(2, 3, 32, 32)
    assert max(compared(home, checkpoint.build(), images)) < 1e-5
    assert checkpoint.provenance["format"] == "timm" and checkpoint.config.image_size == (32, 32)
    back = (
        timm().create_model(f"local-dir:{vitrail.save(checkpoint, tmp_path / 'back', 'timm')}", pretrained=True).eval()
    )
    assert max(compared(back, checkpoint.build(), images)) < 1e-5
    same_state(home, back.state_dict())
    same_state(home, load_file(vitrail.save(checkpoint, tmp_path / "back.safetensors", "timm")))
    again = read(tmp_path / "back")
    assert (again.config, again.preprocessing) == (checkpoint.config, checkpoint.preprocessing)


@pytest.mark.parametrize("case", CASES)
def test_a_bare_file_needs_no_more_than_its_family(tmp_path, case):
    home = model_of(case)
    save_file(home.state_dict(), tmp_path / "model.safetensors")
    checkpoint = read(tmp_path / "model.safetensors", family=CASES[case][2])
    assert max(compared(home, checkpoint.build(), torch.randn(2, 3, 32, 32))) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_another_size_is_interpolated_as_timm_does(tmp_path, case):
    folder = folder_of(model_of(case), tmp_path / "model", arguments_of(case))
    home = timm().create_model(f"local-dir:{folder}", pretrained=True, img_size=(48, 24)).eval()
    assert max(compared(home, read(folder, (48, 24)).build(), torch.randn(2, 3, 48, 24))) < 1e-5


@pytest.mark.parametrize("case", ["vit", "siglip", "clip, quick"])
def test_the_numerics_would_be_seen(tmp_path, case):
    """Another GELU form or epsilon moves the logits by far more than the tolerance."""
    home = model_of(case)
    checkpoint = read(folder_of(home, tmp_path / "model", arguments_of(case)))
    images = torch.randn(2, 3, 32, 32)
    block = checkpoint.config.block
    others = [replace(block, mlp=MLP(gelu)) for gelu in ("erf", "tanh", "quick") if gelu != block.mlp.gelu]
    for changed in [*others, replace(block, norm=Norm(1.1e-5 - block.norm.epsilon))]:
        wrong = replace(checkpoint, config=replace(checkpoint.config, block=changed)).build()
        assert max(compared(home, wrong, images)) > 2e-5


def same_state(home, found):
    wanted = home.state_dict()
    assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


def transformed(said, picture):
    """timm's own preparation, with the resizing and cutting of torchvision that the stand-in writes out."""
    timm()
    from timm.data import create_transform, resolve_data_config

    return create_transform(**resolve_data_config({}, pretrained_cfg=said))(Image.fromarray(picture))


@pytest.mark.parametrize("cut", [(None, None), (None, 430), (333, 501)])
@pytest.mark.parametrize("said", [
    {"crop_pct": 0.9, "crop_mode": "center"}, {"crop_pct": 0.875, "crop_mode": "center"},
    {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}, {"crop_pct": 1.0, "crop_mode": "squash"},
    {"crop_pct": 0.95, "crop_mode": "squash"},
])  # fmt: skip
def test_a_photograph_is_seen_as_timm_shows_it(tmp_path, said, cut):
    """Pixel for pixel, before the normalisation, which is the same to 1e-6."""
    home = timm().create_model("vit_base_patch16_224", **SMALL | {"patch_size": 56, "img_size": 224})
    folder = folder_of(home, tmp_path / "model", SMALL | {"patch_size": 56, "img_size": 224})
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= said | {"mean": [0.1, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (folder / "config.json").write_text(json.dumps(config))
    picture = photographs.astronaut()[: cut[0], : cut[1]]
    seen = read(folder).preprocessing
    found = seen.normalise(seen(picture)[None])[0]
    np.testing.assert_allclose(found, transformed(config["pretrained_cfg"], picture).numpy(), rtol=0, atol=2e-6)


def test_a_released_model_predicts_as_in_timm(tmp_path, vitrail_command):
    """Of real size, with the released configuration: the answer of the command line is timm's for the same picture."""
    home = strengthened(timm().create_model("vit_tiny_patch16_224"))
    folder = folder_of(home, tmp_path / "model", {})
    Image.fromarray(photographs.astronaut()).save(tmp_path / "astronaut.png")
    answer = json.loads(vitrail_command("predict", folder, tmp_path / "astronaut.png", "--json").out)
    with torch.no_grad():
        wanted = home(transformed(home.pretrained_cfg, photographs.astronaut())[None]).softmax(-1)
    assert answer["label"] == f"class {wanted.argmax()}"
    assert answer["probability"] == pytest.approx(float(wanted.max()), rel=1e-4)
    told = json.loads(vitrail_command("models", "inspect", folder, "--json").out)
    assert told["format"] == "timm" and told["parameters"] == 5_717_416
    assert told["preprocessing"]["crop_share"] == 224 / 248


@pytest.mark.slow
def test_every_architecture_of_timm_is_told_by_its_name():
    """Built without memory: GELU form, epsilon and heads of each that has plain blocks, of two files of timm."""
    checked = 0
    for name in timm().list_models(module="vision_transformer") + timm().list_models(module="deit"):
        with torch.device("meta"):
            home = timm().create_model(name)
        block = home.blocks[0] if type(home).__name__.startswith("VisionTransformer") else None
        if type(block).__name__ != "Block" or type(block.mlp).__name__ not in ("Mlp", "GluMlp"):
            continue
        if not isinstance(block.norm1, torch.nn.LayerNorm) or name.startswith("beit3"):  # more norms in a block
            continue
        weights = Weights(Path(name), {}, {"architecture": name, "pretrained_cfg": home.pretrained_cfg})
        found = Listing(weights, {}, {}, {})
        facts, heads = of_architecture(found, FAMILIES[row_of(found)[0]])
        gelu = {"GELU": "erf", "GELUTanh": "tanh", "QuickGELU": "quick", "SiLU": facts.gelu}[
            type(block.mlp.act).__name__
        ]
        told = (facts.gelu, facts.epsilon, heads or facts.heads.get(home.embed_dim) or heads_of(home.embed_dim))
        assert told == (gelu, block.norm1.eps, block.attn.num_heads), name
        checked += 1
    assert checked > 140


def row(case):
    def measure():
        with tempfile.TemporaryDirectory() as folder:
            home = model_of(case)
            path = folder_of(home, Path(folder) / "model", arguments_of(case))
            own = compared(home, read(path).build(), torch.randn(2, 3, 32, 32))
            home = timm().create_model(f"local-dir:{path}", pretrained=True, img_size=(48, 24)).eval()
            other = compared(home, read(path, (48, 24)).build(), torch.randn(2, 3, 48, 24))
            return Row(case, "timm", f"timm {timm().__version__}", *own, other[0])

    return measure


ROWS.update({f"timm {case}": row(case) for case in CASES})
