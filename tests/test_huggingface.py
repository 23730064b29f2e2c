"""Every family of transformers: its own folder, read here, gives its logits and hidden states, and what is written it loads."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import vitrail
from hf_models import LABELS, MODELS, OTHER, answer, distance, distances, home, ours, transformers
from parity_table import BOUND, ROWS, Row
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.loading import read, read_trained
from vitrail.model.block import MLP, Norm

FORMAT = {"vit": "hf-vit", "deit": "hf-vit", "msn": "hf-vit", "mae": "hf-vit", "ijepa": "hf-vit", "dinov2": "hf-dino",
          "dinov3": "hf-dino", "beit": "hf-beit", "clip": "hf-clip", "siglip": "hf-clip"}  # fmt: skip
LEFT_OUT = {"mae-decoder": "decoder 24", "clip-words": "text_model 20", "siglip-words": "text_model 22",
            "siglip-classes": "vision_model 11", "dinov2": "embeddings 1", "beit-shared": "embeddings 1"}  # fmt: skip
# These resample without being told to; the others are told. Its code has one side for the patches of the uneven one.
BY_ITSELF = ("dino", "beit")
SIZED = [case for case in MODELS if case != "vit-uneven"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a case: (its model, the folder that transformers writes)."""
    made = {}

    def of(case):
        if case not in made:
            made[case] = home(case), tmp_path_factory.mktemp("hf") / case
            made[case][0].save_pretrained(made[case][1])
        return made[case]

    return of


def images_of(checkpoint, size=None):
    torch.manual_seed(1)
    return torch.randn(2, checkpoint.config.channels, *(size or checkpoint.config.image_size))


def loaded(path):
    """The model of the class that config.json names, as transformers loads it, with nothing missing and nothing left."""
    kind = json.loads((path / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers(), kind).from_pretrained(path, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("case", MODELS)
def test_logits_and_hidden_states_are_those_of_the_home_library(folder, case):
    model, path = folder(case)
    checkpoint = read(path)
    assert checkpoint.provenance["format"] == FORMAT[case.split("-")[0]]
    assert LEFT_OUT.get(case, "") in checkpoint.provenance.get("left out", "")
    assert max(distances(checkpoint, model, images_of(checkpoint))) <= BOUND
    if MODELS[case][2].get("id2label") == LABELS:
        assert checkpoint.classes == tuple(LABELS.values())
    assert checkpoint.multi_label == (case == "vit-grey")


@pytest.mark.parametrize("case", SIZED)
def test_another_resolution_is_interpolated_as_there(folder, case):
    model, path = folder(case)
    checkpoint = read(path, OTHER)
    assert checkpoint.config.grid == (3, 7)
    told = {} if case.startswith(BY_ITSELF) else {"interpolate_pos_encoding": True}
    assert max(distances(checkpoint, model, images_of(checkpoint), **told)) <= BOUND


@pytest.mark.parametrize("case", MODELS)
def test_what_is_written_is_loaded_there_whole(tmp_path, folder, case):
    model, path = folder(case)
    checkpoint = read(path)
    written = vitrail.save(checkpoint, tmp_path / "written", checkpoint.provenance["format"])
    again = loaded(written)
    images = images_of(checkpoint)
    assert distance(answer(again, images)[0], answer(model, images)[0]) <= BOUND
    assert max(distances(checkpoint, again, images)) <= BOUND
    found = read(written)
    assert found.config == checkpoint.config and found.classes == checkpoint.classes
    assert found.multi_label == checkpoint.multi_label and found.preprocessing == checkpoint.preprocessing
    if type(again).__name__.endswith(
        ("ViTModel", "Dinov2Model", "BeitModel", "VisionModel", "MSNModel", "Classification")
    ):
        auto = "AutoModelForImageClassification" if type(again).__name__.endswith("Classification") else "AutoModel"
        assert type(getattr(transformers(), auto).from_pretrained(written)) is type(again)


@pytest.mark.parametrize("case", MODELS)
def test_the_names_of_version_5_are_read_too(tmp_path, folder, case):
    """Inside it names the parts otherwise than in the files that it writes."""
    model, path = folder(case)
    own = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(own, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    if MODELS[case][0].startswith("Dinov2") and "giant" in case:
        with pytest.raises(CheckpointError, match="gate_proj"):  # there the two are one array in every file
            read(tmp_path)
        return
    found, expected = read(tmp_path).weights, read(path).weights
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


CHANGED = {
    "vit": ("tanh", 1e-6), "deit-two-heads": ("tanh", 1e-6), "mae": ("tanh", 1e-6), "dinov2": ("tanh", 1e-5),
    "dinov3": ("tanh", 1e-6), "beit": ("tanh", 1e-6), "clip": ("erf", 1e-6), "siglip": ("erf", 1e-5),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
@pytest.mark.parametrize("what", ["gelu", "epsilon"])
def test_a_wrong_gelu_or_epsilon_would_be_seen(folder, case, what):
    checkpoint = read(folder(case)[1])
    images, (gelu, epsilon), config = images_of(checkpoint), CHANGED[case], checkpoint.config
    if what == "gelu":
        config = replace(config, block=replace(config.block, mlp=MLP(gelu)))
    elif case == "clip":  # its first norm comes before the blocks
        config = replace(config, position=replace(config.position, epsilon=epsilon))
    else:
        config = replace(config, block=replace(config.block, norm=Norm(epsilon)))
    (first, states), (second, others) = ours(checkpoint, images), ours(replace(checkpoint, config=config), images)
    assert min(distance(second, first), distance(others[-1], states[-1])) > 2 * BOUND


@pytest.mark.parametrize("container", ["shards", "pytorch_model.bin", "bare file", "half precision"])
def test_other_containers(tmp_path, folder, container):
    model, path = folder("vit")
    if container == "shards":
        model.save_pretrained(tmp_path, max_shard_size="100KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    elif container == "pytorch_model.bin":
        torch.save(load_file(path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    elif container == "half precision":
        home("vit").half().save_pretrained(tmp_path)
    else:  # nothing says that there are four heads: 64 channels each
        tmp_path = tmp_path / "x.safetensors"
        tmp_path.write_bytes((path / "model.safetensors").read_bytes())
    found, expected = read(tmp_path), read(path)
    half = container == "half precision"
    for name, value in expected.weights.items():
        torch.testing.assert_close(found.weights[name], value.half().float() if half else value, rtol=0, atol=0)
    heads = 1 if container == "bare file" else 4
    assert found.config.size == replace(expected.config.size, heads=heads)


@pytest.mark.parametrize("case", ["vit", "dinov2-classes", "dinov2-registers", "dinov3", "beit", "clip", "siglip"])
def test_a_bare_file_is_known_by_its_names_and_read_with_what_its_family_states(tmp_path, case):
    """One head of 64 channels; GELU, epsilon and order are the released ones."""
    width = {"vision_config": {**MODELS["clip"][2], "num_attention_heads": 1}} if "words" in case else {}
    model = home(case, **(width or {"num_attention_heads": 1}))
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    checkpoint = read_trained(tmp_path / "model.safetensors", (32, 32))
    assert checkpoint.provenance["format"] == FORMAT[case.split("-")[0]]
    assert max(distances(checkpoint, model, images_of(checkpoint))) <= BOUND


HOSTILE = {
    "num_attention_heads": [0, 3, -4, "four", 10**12, 2.0], "hidden_act": ["relu", 3, None, "x" * 10**5],
    "layer_norm_eps": [0, -1, float("nan"), float("inf"), "small", True], "image_size": [-32, "big", [32], 10**9, {"height": 32}],
}  # fmt: skip


@pytest.mark.parametrize("case", ["vit", "dinov2", "beit", "clip"])
@pytest.mark.parametrize("key", HOSTILE)
def test_a_config_json_of_nonsense_is_refused(tmp_path, folder, case, key):
    _, path = folder(case)
    said = json.loads((path / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    for value in HOSTILE[key]:
        (tmp_path / "config.json").write_text(json.dumps({**said, key: value}))
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path)
        assert caught.value.code == "VT076" and len(str(caught.value.what)) < 1000, value


def test_what_transformers_does_and_no_model_here_is_refused(tmp_path):
    config = {"vision_config": MODELS["clip"][2], "num_labels": 3}
    library = transformers()
    library.CLIPForImageClassification(library.CLIPConfig(**config)).save_pretrained(tmp_path / "mean")
    with pytest.raises(CheckpointError, match="classifier"):
        read(tmp_path / "mean")
    home("vit-pooler", pooler_act="relu").save_pretrained(tmp_path / "relu")
    home("dinov3-gated", hidden_act="gelu").save_pretrained(tmp_path / "geglu")
    for name in ("relu", "geglu"):
        with pytest.raises(CheckpointError, match=r"config\.json says"):
            read(tmp_path / name)


def row(case, family):
    def measured():
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory() as place:
            model = home(case)
            model.save_pretrained(place)
            checkpoint = read(Path(place))
            own = distances(checkpoint, model, images_of(checkpoint))
            other = read(Path(place), OTHER)
            told = {} if case.startswith(BY_ITSELF) else {"interpolate_pos_encoding": True}
            resized, _ = distances(other, model, images_of(other), **told)
        return Row(family, FORMAT[case.split("-")[0]], f"transformers {transformers().__version__}", *own, resized)

    return measured


FAMILIES = {
    "vit": "ViT", "vit-pooler": "ViT, pooler", "deit-two-heads": "DeiT, two heads", "deit": "DeiT, one head", "msn": "MSN",
    "mae": "MAE encoder", "ijepa": "I-JEPA", "dinov2-classes": "DINOv2", "dinov2-giant": "DINOv2, gated (giant)",
    "dinov2-registers-classes": "DINOv2 with registers", "dinov3": "DINOv3", "dinov3-gated": "DINOv3, gated",
    "beit": "BEiT, bias of each layer", "beit-shared": "BEiT, shared bias", "beit-absolute": "BEiT, bias and table",
    "clip-projection": "CLIP tower, projection", "clip-words": "CLIP, out of the whole", "siglip": "SigLIP tower, MAP",
    "siglip-classes": "SigLIP, classifier",
}  # fmt: skip
ROWS.update({f"hf-{case}": row(case, family) for case, family in FAMILIES.items()})
