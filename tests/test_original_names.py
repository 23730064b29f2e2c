"""The names of the first releases: DINOv2, DINOv3, CLIP, DeiT, DINO, MAE, MoCo v3.

Their programs cannot be installed here. timm reads the files of DINOv2, DINOv3 and CLIP as they are, and its model is the
oracle; DeiT, DINO, MAE and MoCo v3 give their encoders timm's names and arithmetic, in the wrapping of their programs.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data as photographs

import vitrail
from home_timm import timm
from parity_table import BOUND, ROWS, Row, relative
from strong import strengthened
from test_timm import SMALL, compared
from vitrail.checkpoints.loading import read
from vitrail.errors import UsageError
from vitrail.model.heads import Features
from vitrail.model.pools import ClassToken, DistilledToken, GlobalAverage

SIZE = {**SMALL, "num_classes": 0}


def home_of(architecture, **arguments):
    return strengthened(timm().create_model(architecture, **{**SIZE, **arguments}))


def written(path, state):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def pickled(path, content):
    torch.save(content, path)
    return path


def dinov2_state(home):
    """What DINOv2 would have saved: timm folds the class token's position into the token where there are registers."""
    state, gated = dict(home.state_dict()), isinstance(home.blocks[0].mlp.act, torch.nn.SiLU)
    dim = home.embed_dim
    state["mask_token"] = torch.randn(1, dim)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        row = torch.randn(1, 1, dim) * 0.1
        state["pos_embed"] = torch.cat([row, state["pos_embed"]], 1)
        state["cls_token"] = state["cls_token"] - row
    if gated:
        state = {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): v for name, v in state.items()}
    return state


DINOV2 = {"plain": "vit_base_patch14_dinov2", "registers": "vit_base_patch14_reg4_dinov2",
          "giant": "vit_giant_patch14_reg4_dinov2"}  # fmt: skip


@pytest.mark.parametrize("kind", DINOV2)
def test_dinov2_as_released(tmp_path, kind):
    home = home_of(DINOV2[kind])
    state = dinov2_state(home)
    checkpoint = read(written(tmp_path / "dinov2.safetensors", state))
    assert checkpoint.provenance["format"] == "dinov2" and "mask_token" in checkpoint.provenance["left out"]
    assert max(compared(home, checkpoint.build(), torch.randn(2, 3, 32, 32))) < 1e-5
    back = load_file(vitrail.save(checkpoint, tmp_path / "back.safetensors", "dinov2"))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state if name != "mask_token")
    chunked = {
        name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): v for name, v in state.items()
    }
    again = read(written(tmp_path / "chunked.safetensors", chunked))
    # One row, a class token's, is multiplied in an order that hangs on where in memory a file's weights lie.
    found, expected = (each.build()(torch.ones(1, 3, 32, 32)) for each in (again, checkpoint))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_dinov2_of_518_px_sees_224_as_its_authors_evaluate(tmp_path):
    home = home_of(DINOV2["plain"], img_size=518, patch_size=14, depth=1)
    found = read(written(tmp_path / "dinov2.safetensors", dinov2_state(home)))
    assert found.config.image_size == found.preprocessing.image_size == (224, 224)
    assert read(tmp_path / "dinov2.safetensors", (518, 518)).weights["position.tables.0.rows"].shape == (
        37 * 37 + 1,
        128,
    )


def test_dinov2s_linear_classifier(tmp_path):
    home = home_of(DINOV2["plain"])
    state = {f"backbone.{name}": value for name, value in dinov2_state(home).items()}
    state |= {"linear_head.weight": torch.randn(5, 256), "linear_head.bias": torch.randn(5)}
    checkpoint = read(written(tmp_path / "lc.safetensors", state))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = home.forward_features(images)
        both = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], -1)
        wanted = both @ state["linear_head.weight"].T + state["linear_head.bias"]
        torch.testing.assert_close(checkpoint.build()(images), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert set(load_file(vitrail.save(checkpoint, tmp_path / "back.safetensors", "dinov2"))) == set(state)


def dinos_positions(table, grid, antialias=False, offset=0.1):
    """interpolate_pos_encoding of facebookresearch/dino and dinov2: the sides are divided as numbers with a tenth more."""
    side = int((table.shape[1] - 1) ** 0.5)
    patches = rearrange(table[:, 1:], "1 (r k) d -> 1 d r k", r=side)
    how = {"scale_factor": tuple((n + offset) / side for n in grid)} if offset else {"size": grid}
    patches = F.interpolate(patches, mode="bicubic", antialias=antialias, **how)
    assert patches.shape[2:] == grid
    return torch.cat([table[:, :1], rearrange(patches, "1 d r k -> 1 (r k) d")], 1)


@pytest.mark.parametrize("kind", ["plain", "registers"])
def test_dinov2_at_another_size(tmp_path, kind):
    home = home_of(DINOV2[kind])
    state = dinov2_state(home)
    path = written(tmp_path / "dinov2.safetensors", state)
    how = {"antialias": True, "offset": 0.0} if kind == "registers" else {}
    for grid in ((6, 3), (5, 7)):
        at = home_of(DINOV2[kind], img_size=(8 * grid[0], 8 * grid[1]))
        table = dinos_positions(state["pos_embed"], grid, **how)
        at.load_state_dict(home.state_dict() | {"pos_embed": table[:, 1:] if kind == "registers" else table})
        size = (8 * grid[0], 8 * grid[1])
        assert max(compared(at, read(path, size).build(), torch.randn(1, 3, *size))) < 1e-5


@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_as_released(tmp_path, gated):
    name = "vit_small_plus_patch16_dinov3_qkvb" if gated else "vit_small_patch16_dinov3_qkvb"
    home = home_of(name, global_pool="token")
    state, filtered = dinov3_state(home), None
    from timm.models.eva import checkpoint_filter_fn

    filtered = checkpoint_filter_fn(dict(state), home)
    assert set(filtered) == set(home.state_dict()), "timm itself reads this file"
    home.load_state_dict(filtered)
    path = written(tmp_path / "dinov3.safetensors", state)
    checkpoint = read(path)
    assert checkpoint.provenance["format"] == "dinov3" and checkpoint.preprocessing.image_size == (224, 224)
    model = checkpoint.build()
    assert max(compared(home, model, torch.randn(2, 3, 32, 32))) < 1e-5
    assert max(compared(home, read(path, (24, 48)).build(), torch.randn(2, 3, 24, 48))) < 1e-5
    back = load_file(vitrail.save(checkpoint, tmp_path / "back.safetensors", "dinov3"))
    dropped = {"mask_token", "local_cls_norm.weight"}
    assert set(back) == set(state) - {"local_cls_norm.weight"}
    for key in set(back) - dropped:
        wanted = state[key] * state[f"{key}_mask"] if key.endswith("qkv.bias") else state[key]
        torch.testing.assert_close(back[key], wanted, rtol=1e-6, atol=0)


def dinov3_state(home):
    """The released names; the biases of the keys are there, and masked."""
    dim, state = home.embed_dim, {}
    for name, value in home.state_dict().items():
        if name.endswith("q_bias"):
            block = name.removesuffix("q_bias")
            keys, values = torch.randn(dim), home.state_dict()[f"{block}v_bias"]
            state[f"{block}qkv.bias"] = torch.cat([value, keys, values])
            state[f"{block}qkv.bias_mask"] = torch.cat([torch.ones(dim), torch.zeros(dim), torch.ones(dim)])
        elif not name.endswith("v_bias"):
            for theirs, ours in {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens",
                                 "mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2"}.items():  # fmt: skip
                name = name.replace(theirs, ours)
            state[name.replace("mlp.fc2", "mlp.w3") if "blocks.0.mlp.fc1_g.weight" in home.state_dict() else name] = (
                value
            )
    state["rope_embed.periods"] = 100 ** (torch.arange(16) / 16)
    return state | {"mask_token": torch.randn(1, dim), "local_cls_norm.weight": torch.ones(dim)}


@pytest.mark.parametrize("family", [None, "clip", "open-clip"])
def test_clip_as_released(tmp_path, family):
    home = home_of(f"vit_base_patch32_clip{'' if family == 'open-clip' else '_quickgelu'}_224", num_classes=6)
    state = clip_state(home)
    from timm.models.vision_transformer import checkpoint_filter_fn

    home.load_state_dict(checkpoint_filter_fn(dict(state), home))
    path = written(tmp_path / "clip.safetensors", state)
    checkpoint = read(path, family=family)
    assert checkpoint.provenance["format"] == "clip" and checkpoint.config.head == Features(6)
    assert max(compared(home, checkpoint.build(), torch.randn(2, 3, 32, 32))) < 1e-5
    back = load_file(vitrail.save(checkpoint, tmp_path / "back.safetensors", "clip"))
    assert all(torch.equal(back[name], state[name]) for name in state if name.startswith("visual."))
    assert set(back) == {name for name in state if name.startswith("visual.")}
    home.set_input_size((48, 24))
    assert max(compared(home, read(path, (48, 24), family).build(), torch.randn(2, 3, 48, 24))) < 1e-5


def clip_state(home):
    words = {"patch_embed.proj": "conv1", "pos_embed": "positional_embedding", "norm_pre": "ln_pre",
             "blocks.": "transformer.resblocks.", "norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "attn.in_proj_",
             "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "cls_token": "class_embedding"}  # fmt: skip
    home.head.bias.data.zero_()  # the projection has none
    state = {"logit_scale": torch.tensor(4.6), "transformer.resblocks.0.ln_1.weight": torch.ones(4)}
    for name, value in home.state_dict().items():
        for theirs, ours in words.items():
            name = name.replace(theirs, ours)
        name = f"visual.{name.replace('norm.', 'ln_post.')}"
        if name == "visual.head.weight":
            state["visual.proj"] = value.T
        elif name != "visual.head.bias":
            state[name] = value.squeeze()
    return state


@pytest.mark.parametrize("kind", ["classifier", "shared bias, class token"])
def test_beit_as_released(tmp_path, kind):
    arguments = {"num_classes": 5}
    if kind != "classifier":
        arguments = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "global_pool": "token"}
    home = home_of("beit_base_patch16_224", **arguments)
    index = {"blocks.0.attn.relative_position_index": torch.zeros(17, 17)} if kind == "classifier" else {}
    state = home.state_dict() | index | {"mask_token": torch.ones(1, 1, 128), "lm_head.weight": torch.ones(9, 128)}
    checkpoint = read(pickled(tmp_path / "beit.pth", {"model": state}))
    assert checkpoint.provenance["format"] == "beit" and checkpoint.config.size.heads == 2
    assert max(compared(home, checkpoint.build(), torch.randn(2, 3, 32, 32))) < 1e-5
    back = load_file(vitrail.save(checkpoint, tmp_path / "back.safetensors", "beit"))
    home.load_state_dict(back, strict=True)
    assert all(torch.equal(value, state[name]) for name, value in back.items())


def test_deit_with_its_wrapping(tmp_path):
    home = home_of("deit_base_distilled_patch16_224", num_classes=5)
    path = pickled(tmp_path / "deit.pth", {"model": home.state_dict(), "epoch": 3})
    checkpoint = read(path)
    assert checkpoint.provenance["stated by the family"].startswith("deit, as its names show")
    assert (checkpoint.config.pool, checkpoint.preprocessing.std) == (DistilledToken(), (0.229, 0.224, 0.225))
    assert max(compared(home, checkpoint.build(), torch.randn(2, 3, 32, 32))) < 1e-5


def test_deit3_has_its_own_names_of_scales(tmp_path):
    home = home_of("deit3_base_patch16_224", num_classes=5)
    state = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for n, v in home.state_dict().items()}
    checkpoint = read(written(tmp_path / "deit3.safetensors", state))
    assert checkpoint.provenance["stated by the family"].startswith("deit3, as its names show")
    assert checkpoint.preprocessing.crop_share == 1 and not checkpoint.config.position.class_position
    assert max(compared(home, checkpoint.build(), torch.randn(2, 3, 32, 32))) < 1e-5


@pytest.mark.parametrize("wrapped", [False, True])
def test_dino_at_two_sizes(tmp_path, wrapped):
    home = home_of("vit_base_patch16_224")
    state, path = home.state_dict(), tmp_path / "dino.pth"
    if wrapped:  # the whole state of its training
        teacher = {f"backbone.{name}": value for name, value in state.items()}
        student = {f"module.backbone.{name}": value + 1 for name, value in state.items()}
        projection = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
        pickled(path, {"student": student | projection, "teacher": teacher | projection, "epoch": 1})
    else:
        pickled(path, state)
    load = partial(read, path, family=None if wrapped else "dino")
    assert load().provenance["stated by the family"].startswith("dino, ")
    assert max(compared(home, load().build(), torch.randn(2, 3, 32, 32))) < 1e-5
    at = home_of("vit_base_patch16_224", img_size=(24, 56))
    at.load_state_dict(state | {"pos_embed": dinos_positions(state["pos_embed"], (3, 7))})
    assert max(compared(at, load(image_size=(24, 56)).build(), torch.randn(2, 3, 24, 56))) < 1e-5


def test_mae_leaves_its_decoder_out_and_averages_when_fine_tuned(tmp_path):
    home = home_of("vit_base_patch16_224")
    names = (
        "decoder_embed.weight",
        "decoder_pos_embed",
        "mask_token",
        "decoder_blocks.0.norm1.weight",
        "decoder_norm.bias",
    )
    decoder = {name: torch.ones(2) for name in names}
    checkpoint = read(pickled(tmp_path / "mae.pth", {"model": home.state_dict() | decoder}))
    assert checkpoint.provenance["stated by the family"].startswith("mae, as its names show")
    assert checkpoint.provenance["arrays left out"] == 5 and checkpoint.config.pool == ClassToken()
    assert max(compared(home, checkpoint.build(), torch.randn(2, 3, 32, 32))) < 1e-5
    tuned = home_of("vit_base_patch16_224", num_classes=5, global_pool="avg")
    checkpoint = read(pickled(tmp_path / "tuned.pth", {"model": tuned.state_dict()}), family="mae")
    assert checkpoint.config.pool == GlobalAverage(class_tokens=1, norm_first=False)
    assert checkpoint.config.position.interpolation == "bicubic"
    assert max(compared(tuned, checkpoint.build(), torch.randn(2, 3, 32, 32))) < 1e-5


def test_moco_v3_takes_the_base_encoder_with_its_narrow_heads(tmp_path):
    home = home_of("vit_small_patch16_224", embed_dim=384, num_heads=12)
    state = {f"module.base_encoder.{name}": value for name, value in home.state_dict().items()}
    state |= {f"module.momentum_encoder.{name}": value + 1 for name, value in home.state_dict().items()}
    state |= {"module.base_encoder.head.0.weight": torch.ones(2, 2), "module.base_encoder.head.1.running_mean": torch.ones(2),
              "module.predictor.0.weight": torch.ones(2, 2)}  # fmt: skip
    checkpoint = read(pickled(tmp_path / "moco.pth", {"epoch": 3, "state_dict": state}))
    assert checkpoint.provenance["stated by the family"].startswith("moco-v3, as its names show")
    assert checkpoint.config.size.heads == 12 and checkpoint.preprocessing.interpolation == "bilinear"
    assert max(compared(home, checkpoint.build(), torch.randn(2, 3, 32, 32))) < 1e-5


def test_a_family_of_another_format_is_refused(tmp_path):
    path = written(tmp_path / "vit.safetensors", home_of("vit_base_patch16_224").state_dict())
    assert read(path).provenance["stated by the family"].startswith("augreg, assumed")
    assert read(path, family="timm").provenance["stated by the family"].startswith("augreg, assumed")
    with pytest.raises(UsageError, match="timm, which 'dinov3' is not") as caught:
        read(path, family="dinov3")
    assert caught.value.code == "VT046" and "moco-v3" in str(caught.value)


# family: architecture, its arguments, what is written, `--family`, (resize, interpolation, crop) of its own evaluation
REAL = {
    "deit": ("deit_tiny_distilled_patch16_224", {}, lambda home: {"model": home.state_dict()}, None, (256, "BICUBIC", 224)),
    "dino": ("vit_small_patch16_224", {}, lambda home: home.state_dict(), "dino", (256, "BICUBIC", 224)),
    "mae": ("vit_base_patch16_224", {}, lambda home: {"model": home.state_dict()}, "mae", (256, "BICUBIC", 224)),
    "moco-v3": (
        "vit_small_patch16_224", {"num_heads": 12},
        lambda home: {"state_dict": {f"module.base_encoder.{n}": v for n, v in home.state_dict().items()}}, None,
        (256, "BILINEAR", 224),
    ),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {}, lambda home: dinov2_state(home), None, (256, "BICUBIC", 224)),
    "dinov3": (
        "vit_small_patch16_dinov3_qkvb", {"global_pool": "token"}, lambda home: dinov3_state(home), None,
        ((224, 224), "BILINEAR", 224),
    ),
    "clip": ("vit_base_patch32_clip_quickgelu_224", {"num_classes": 512}, lambda home: clip_state(home), None,
             (224, "BICUBIC", 224)),
    "beit": ("beit_base_patch16_224", {"num_classes": 1000}, lambda home: {"model": home.state_dict()}, None,
             (248, "BICUBIC", 224)),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name == "deit" else pytest.param(name, marks=pytest.mark.slow) for name in REAL]
)
def test_a_file_of_real_size(tmp_path, vitrail_command, name):
    """Through the command line; the pixels of a photograph as its program prepares them, and what it makes of them."""
    architecture, arguments, content, family, (resize, how, crop) = REAL[name]
    home = strengthened(
        timm().create_model(architecture, **{"num_classes": 1000 if name == "deit" else 0, **arguments})
    )
    path = pickled(tmp_path / f"{name}.pth", content(home))
    home.eval()
    asked = [] if family is None else ["--family", family]
    told = json.loads(vitrail_command("models", "inspect", path, *asked, "--json").out)
    assert told["problem"] is None and name in told["provenance"]["format"] + told["provenance"]["stated by the family"]
    picture = Image.fromarray(photographs.astronaut()[:, :430])
    model = vitrail.load(path, family=family)
    found = model.logits(model.preprocessing(np.asarray(picture))[None])
    from timm.data.transforms_factory import transforms

    mean, std = (torch.tensor(value) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    mean, std = (
        (torch.tensor(model.preprocessing.mean), torch.tensor(model.preprocessing.std))
        if name in ("clip", "beit")
        else (mean, std)
    )
    prepared = transforms.Compose([
        transforms.Resize(resize, transforms.functional.InterpolationMode[how]), transforms.CenterCrop(crop),
        transforms.ToTensor(), transforms.Normalize(mean, std),
    ])(picture)[None]  # fmt: skip
    if name == "dinov2":
        home.set_input_size((224, 224))
    with torch.no_grad():
        assert relative(found, home(prepared)) < 1e-4
    picture.save(tmp_path / "picture.png")
    answer = vitrail_command("predict", path, *asked, tmp_path / "picture.png", "--json")
    if name in ("deit", "beit"):
        assert json.loads(answer.out)["label"] == f"class {found.argmax()}"
    else:
        assert answer.status == 2 and "VT045" in answer.err


def row(name):
    architecture, _, content, family, _ = REAL[name]
    arguments = (
        {"global_pool": "token"} if name == "dinov3" else {"num_classes": 5} if name in ("deit", "beit", "clip") else {}
    )
    if name == "moco-v3":
        arguments = {"embed_dim": 384, "num_heads": 12}

    def measure():
        home = home_of(architecture, **arguments)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = read(pickled(Path(folder) / "x.pth", content(home)), (32, 32), family)
            distances = compared(home, checkpoint.build(), torch.randn(2, 3, 32, 32))
        oracle = f"timm {timm().__version__}" + (
            "" if name in ("dinov2", "dinov3", "clip", "beit") else ", whose arithmetic it shares"
        )
        return Row(f"{name}, as released", checkpoint.provenance["format"], oracle, *distances)

    return measure


ROWS.update({f"released {name}": row(name) for name in REAL})


@pytest.mark.parametrize("name", REAL)
def test_the_table_of_parity_holds(name):
    assert max(row(name)()[3:5]) < BOUND
