"""From a photograph to logits as transformers prepares it, files of real size through the command line, a real network."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import vitrail
from hf_models import SIZE, answer, distance, fill, transformers
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.carried import carried_preprocessing
from vitrail.checkpoints.containers import Weights
from vitrail.checkpoints.loading import read
from vitrail.images import MAX_PIXELS
from vitrail.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

IMAGENET = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
# preprocessor_config.json as it was released -> the class of transformers (Pillow's, which need no torchvision).
RELEASED = {
    "google/vit-base-patch16-224": ("ViT", {"do_normalize": True, "do_resize": True, "size": 224, "resample": 2, **HALF}),
    "facebook/deit-base-distilled-patch16-224": (
        "DeiT", {"crop_size": 224, "do_center_crop": True, "feature_extractor_type": "DeiTFeatureExtractor", "resample": 3,
                 "size": 256, **IMAGENET}),
    "facebook/dinov2-base": (
        "Bit", {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "image_processor_type": "BitImageProcessor",
                "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256}, **IMAGENET}),
    "microsoft/beit-base-patch16-224": (
        "Beit", {"crop_size": 224, "do_center_crop": False, "feature_extractor_type": "BeitFeatureExtractor", "resample": 2,
                 "size": 224, **HALF}),
    "openai/clip-vit-base-patch32": (
        "CLIP", {"crop_size": 224, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3,
                 "size": 224, **CLIP}),
    "google/siglip-base-patch16-224": (
        "Siglip", {"image_processor_type": "SiglipImageProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
                   "size": {"height": 224, "width": 224}, **HALF}),
    "other scales": ("Bit", {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 97}, "resample": 2,
                             "crop_size": {"height": 90, "width": 90}, "do_center_crop": True, "rescale_factor": 0.01, **HALF}),
    "plain values": ("ViT", {"size": {"height": 60, "width": 80}, "resample": 0, "do_rescale": False, "do_normalize": False}),
}  # fmt: skip


def home_processor(name, said):
    """A Pillow class of transformers; `AutoImageProcessor` would ask for torchvision."""
    transformers()
    module = __import__(f"transformers.models.{name.lower()}.image_processing_pil_{name.lower()}", fromlist=["*"])
    return getattr(module, f"{name}ImageProcessorPil")(**said)


def photographs():
    """Of every aspect, with odd sides."""
    yield from (skimage.data.astronaut()[:431], skimage.data.coffee(), skimage.data.rocket()[:, :301])
    yield skimage.data.chelsea()[:57, :99]


@pytest.mark.parametrize("released", RELEASED)
def test_a_photograph_is_prepared_to_the_pixel_as_there(released):
    kind, said = RELEASED[released]
    processor = home_processor(kind, said)
    own = carried_preprocessing(Weights(Path(released), {}, {}, said), Preprocessing())
    for picture in photographs():
        expected = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
        found = own.normalise(own(picture)[None])[0]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6)


def test_dinov3_is_prepared_as_with_pillow():
    """Its only class wants torchvision, which resizes numbers and not bytes: by hand with Pillow, within its rounding."""
    said = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 224, "width": 224}, "resample": 2,
            "do_center_crop": None, "crop_size": None, **IMAGENET}  # fmt: skip
    own = carried_preprocessing(Weights(Path("dinov3"), {}, {}, said), Preprocessing())
    for picture in photographs():
        channels = [Image.fromarray(picture[..., index].astype(np.float32)).resize((224, 224), 2) for index in range(3)]
        assert np.abs(own(picture) - np.stack(channels).clip(0, 255)).max() <= 1.01


def test_a_window_that_no_resize_by_the_shortest_edge_gives_is_refused():
    said = RELEASED["facebook/dinov2-base"][1] | {"crop_size": {"height": 224, "width": 112}}
    with pytest.raises(CheckpointError, match="shortest edge"):
        carried_preprocessing(Weights(Path("x"), {}, {}, said), Preprocessing())


@pytest.mark.parametrize("rounding", ["down", "nearest"])
def test_very_long_pictures_take_no_more_memory(rounding, monkeypatch):
    """The whole of it resized would be 256 x 2.6 million pixels; its window is what that would show, but for rounding."""
    monkeypatch.setattr("vitrail.images.Image.Image.resize", _no_giants(Image.Image.resize))
    prepare = Preprocessing((224, 224), fit="crop", crop_share=224 / 256, rounding=rounding)
    strip = np.random.default_rng(0).integers(0, 256, (2, 20_000, 3), dtype=np.uint8)
    assert prepare(strip).shape == (3, 224, 224)
    left, top, right, bottom = prepare.window(strip.shape[:2])
    assert (right - left, bottom - top) == pytest.approx((1.75, 1.75)) and left == pytest.approx(9999.125, abs=0.01)


def _no_giants(resize):
    def checked(self, size, *rest, **more):
        assert size[0] * size[1] <= MAX_PIXELS
        return resize(self, size, *rest, **more)

    return checked


def test_odd_margins_are_cut_below_or_next_to_the_middle():
    """256 of 341: 117 pixels are spare on the long side, of which 58 or (58.5, to even) 58 go; 257 of 343: 59 or 60."""
    picture = np.zeros((256, 343, 3), np.uint8)
    picture[..., 0] = np.arange(343, dtype=np.uint16).clip(0, 255)
    for rounding, first in (("down", 59), ("nearest", 60)):
        prepare = Preprocessing((224, 224), fit="crop", crop_share=224 / 256, rounding=rounding)
        assert prepare(picture)[0, 0, 0] == first and prepare.window((256, 343))[0] == first


@pytest.mark.parametrize("released", ["facebook/dinov2-base", "facebook/deit-base-distilled-patch16-224"])
def test_predict_answers_a_photograph_as_transformers_does(tmp_path, vitrail_command, released):
    library, (kind, said) = transformers(), RELEASED[released]
    small = {**SIZE, "image_size": 224, "patch_size": 56, "num_labels": 7}
    model = released_model(library.DeiTForImageClassification, library.DeiTConfig(**small), tmp_path / "model", said)
    Image.fromarray(skimage.data.coffee()).save(tmp_path / "coffee.png")
    pixels = home_processor(kind, said)(Image.fromarray(skimage.data.coffee()), return_tensors="pt")["pixel_values"]
    expected = answer(model, pixels)[0].softmax(1)[0]
    found = json.loads(vitrail_command("predict", tmp_path / "model", tmp_path / "coffee.png", "--json").out)
    assert found["label"] == f"class {int(expected.argmax())}"
    assert found["probability"] == pytest.approx(float(expected.max()), abs=2e-5)


def released_model(kind, config, folder, said):
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            fill(name, tensor)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return model


TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}  # the one in the default suite
# Repository -> class, configuration; sizes not said are the base's.
REAL = {
    "facebook/deit-tiny-distilled-patch16-224": ("DeiTForImageClassificationWithTeacher", "DeiTConfig",
                                                 {**TINY, "num_labels": 1000}),
    "google/vit-base-patch16-224": ("ViTForImageClassification", "ViTConfig", {"num_labels": 1000}),
    "facebook/dinov2-base": ("Dinov2ForImageClassification", "Dinov2Config",
                             {"image_size": 518, "patch_size": 14, "num_labels": 1000}),
    "microsoft/beit-base-patch16-224": ("BeitForImageClassification", "BeitConfig",
                                        {"use_relative_position_bias": True, "num_labels": 1000}),
    "openai/clip-vit-base-patch32": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {"projection_dim": 512}),
    "google/siglip-base-patch16-224": ("SiglipVisionModel", "SiglipVisionConfig", {}),
}  # fmt: skip
SLOW = [name if "tiny" in name else pytest.param(name, marks=pytest.mark.slow) for name in REAL]


@pytest.mark.parametrize("released", SLOW)
def test_files_of_real_size_through_the_command_line(tmp_path, vitrail_command, released):
    """The released names, sizes and preprocessing; random values."""
    library, (kind, config, sizes) = transformers(), REAL[released]
    said = dict(RELEASED.get(released, RELEASED["facebook/deit-base-distilled-patch16-224"])[1])
    processor = RELEASED.get(released, RELEASED["facebook/deit-base-distilled-patch16-224"])[0]
    folder, picture = tmp_path / "model", tmp_path / "astronaut.png"
    model = released_model(getattr(library, kind), getattr(library, config)(**sizes), folder, said)
    Image.fromarray(skimage.data.astronaut()[:400]).save(picture)
    told = json.loads(vitrail_command("models", "inspect", folder, "--json").out)
    home_count = sum(tensor.numel() for name, tensor in model.named_parameters() if "mask_token" not in name)
    assert told["parameters"] == home_count and told["problem"] is None and told["format"].startswith("hf-")
    pixels = home_processor(processor, said)(Image.fromarray(skimage.data.astronaut()[:400]), return_tensors="pt")
    expected = answer(model, pixels["pixel_values"])[0]
    with torch.no_grad():
        loaded = vitrail.load(folder)
        prepared = loaded.preprocessing.normalise(
            torch.from_numpy(loaded.preprocessing(skimage.data.astronaut()[:400]))[None]
        )
        assert distance(loaded.module(prepared), expected) <= 2e-5
    if expected.shape[1] == 1000:
        found = json.loads(vitrail_command("predict", folder, picture, "--json").out)
        assert found["label"] == f"class {int(expected.argmax())}"
        assert found["probability"] == pytest.approx(float(expected.softmax(1).max()), abs=1e-4)


@pytest.mark.parametrize("size", [(224, 224), (224, 168)], ids=str)
def test_a_real_network_equals_its_oracle(real_weights, size):
    """DINOv2 ViT-S/14, trained; final hidden states of photographs, computed with transformers, one of them not square."""
    oracle, ending = dict(np.load(real_weights / "oracle.npz")), "224" if size == (224, 224) else "224x168"
    module = read(real_weights, size).build()
    names = [name.split("_")[0] for name in oracle if name.endswith(f"pixels_{ending}")]
    assert len(names) == (3 if size == (224, 224) else 1)
    for name in names:
        with torch.no_grad():
            found = module.features(torch.from_numpy(oracle[f"{name}_pixels_{ending}"]))[-1].values
        assert distance(found, torch.from_numpy(oracle[f"{name}_hidden_{ending}"])) <= 2e-5


def test_a_real_network_sees_the_photograph_that_its_oracle_saw(real_weights):
    """It was fed whole photographs, stretched, with the interpolation and normalisation of its preprocessor_config.json."""
    oracle, own = dict(np.load(real_weights / "oracle.npz")), read(real_weights).preprocessing
    assert (own.fit, own.crop_share, own.image_size) == ("crop", 0.875, (224, 224))
    for name in (name for name in oracle if name.endswith("pixels_224")):
        expected = oracle[name]
        prepare = replace(own, image_size=expected.shape[2:], fit="stretch", crop_share=1.0)
        found = prepare.normalise(prepare(getattr(skimage.data, name.split("_")[0])())[None])
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
