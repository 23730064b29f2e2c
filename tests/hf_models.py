"""Small models of transformers, randomly filled, and what they answer: the oracle of the formats hf-*.

transformers is asked for nothing but its own code: no network, no torchvision.
"""

import os
import warnings
from functools import cache

import torch

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
SIDE, OTHER = 32, (24, 56)  # patches of 8 px: 4x4, and 3x7 for another resolution
_SIZE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": SIDE, "patch_size": 8}
SIZE = {**_SIZE, "intermediate_size": 96}
MULTIPLE = {**_SIZE, "mlp_ratio": 2}
WORDS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
LABELS = {0: "astronaut", 1: "cat", 2: "coffee"}
# Name of the case -> class of the model, class of its configuration, what the configuration says.
MODELS = {
    "vit": ("ViTForImageClassification", "ViTConfig", {**SIZE, "id2label": LABELS}),
    "vit-tanh-gelu": ("ViTForImageClassification", "ViTConfig", {**SIZE, "hidden_act": "gelu_new", "qkv_bias": False}),
    "vit-uneven": ("ViTForImageClassification", "ViTConfig", {**SIZE, "image_size": [16, 48], "patch_size": [4, 8]}),
    "vit-grey": ("ViTForImageClassification", "ViTConfig",
                 {**SIZE, "num_channels": 1, "problem_type": "multi_label_classification", "layer_norm_eps": 1e-2}),
    "vit-pooler": ("ViTModel", "ViTConfig", {**SIZE, "pooler_output_size": 40}),
    "deit-two-heads": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {**SIZE, "id2label": LABELS}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", SIZE),
    "deit-pooler": ("DeiTModel", "DeiTConfig", SIZE),
    "msn": ("ViTMSNModel", "ViTMSNConfig", SIZE),
    "msn-classes": ("ViTMSNForImageClassification", "ViTMSNConfig", SIZE),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {**SIZE, "mask_ratio": 0.0}),
    "mae-decoder": ("ViTMAEForPreTraining", "ViTMAEConfig",
                    {**SIZE, "mask_ratio": 0.0, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 32}),
    "ijepa": ("IJepaForImageClassification", "IJepaConfig", SIZE),
    "ijepa-features": ("IJepaModel", "IJepaConfig", SIZE),
    "dinov2": ("Dinov2Model", "Dinov2Config", MULTIPLE),
    "dinov2-classes": ("Dinov2ForImageClassification", "Dinov2Config", {**MULTIPLE, "id2label": LABELS}),
    "dinov2-giant": ("Dinov2Model", "Dinov2Config", {**MULTIPLE, "mlp_ratio": 4, "use_swiglu_ffn": True}),
    "dinov2-registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", MULTIPLE),
    "dinov2-registers-classes": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", MULTIPLE),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**SIZE, "num_register_tokens": 4}),
    "dinov3-gated": ("DINOv3ViTModel", "DINOv3ViTConfig",
                     {**SIZE, "num_register_tokens": 2, "use_gated_mlp": True, "hidden_act": "silu", "key_bias": True,
                      "rope_theta": 50.0}),
    "beit": ("BeitForImageClassification", "BeitConfig", {**SIZE, "use_relative_position_bias": True, "id2label": LABELS}),
    "beit-shared": ("BeitModel", "BeitConfig", {**SIZE, "use_shared_relative_position_bias": True, "use_mask_token": True}),
    "beit-absolute": ("BeitModel", "BeitConfig", {
        **SIZE, "use_absolute_position_embeddings": True, "use_relative_position_bias": True, "use_mean_pooling": False}),
    "beit-plain": ("BeitModel", "BeitConfig",
                   {**SIZE, "use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", SIZE),
    "clip-projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig",
                        {**SIZE, "projection_dim": 24, "hidden_act": "gelu"}),
    "clip-words": ("CLIPModel", "CLIPConfig", {"vision_config": SIZE, "text_config": WORDS, "projection_dim": 24}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", SIZE),
    "siglip-erf": ("SiglipVisionModel", "SiglipVisionConfig", {**SIZE, "hidden_act": "gelu"}),
    "siglip-headless": ("SiglipVisionModel", "SiglipVisionConfig", {**SIZE, "vision_use_head": False}),
    "siglip-words": ("SiglipModel", "SiglipConfig",
                     {"vision_config": SIZE, "text_config": {**WORDS, "hidden_size": 64}}),
    "siglip-classes": ("SiglipForImageClassification", "SiglipConfig", {"vision_config": SIZE, "num_labels": 3}),
}  # fmt: skip


@cache
def transformers():
    """The library, quiet, and without its advice on what else to install."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def home(case, **changes):
    """A model of the home library; every number in it counts."""
    library, (kind, config, said) = transformers(), MODELS[case]
    torch.manual_seed(0)
    model = getattr(library, kind)(getattr(library, config)(**said | changes)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            fill(name, tensor)
    return model


def fill(name, tensor):
    """Weights of one and a half times the size that keeps a signal as it is; norms, scales and biases unlike each other.

    What enters the first block is so small that its norm feels an epsilon of 1e-6.
    """
    if any(part in name for part in ("patch_embedding", "token", "class_embedding", "position_embedding")):
        tensor.normal_(std=0.01)
    elif tensor.ndim < 2:
        tensor.uniform_(0.1, 0.5) if name.endswith("bias") else tensor.uniform_(0.5, 1.5)
    elif "relative_position" in name or "probe" in name:
        tensor.normal_()
    else:
        tensor.normal_(std=1.5 * tensor[0].numel() ** -0.5)


def answer(model, images, **more):
    """(what the model says of its images, hidden states after every block), images of any size where it can."""
    seen, hooks = [], []
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Layer") and "text" not in name and "decoder" not in name:
            hooks.append(module.register_forward_hook(lambda *call: seen.append(first(call[2]))))
    kind, said = type(model).__name__, dict(more)
    if kind.startswith("ViTMAE"):
        said["noise"] = torch.arange(1e4)[: images.shape[2] * images.shape[3] // 64].expand(len(images), -1)
        model = getattr(model, "vit", model)  # the decoder has nothing to say of an image
    with torch.no_grad():
        found = model.get_image_features(images, **said) if hasattr(model, "text_model") else model(images, **said)
    for hook in hooks:
        hook.remove()
    return told(kind, found), seen


def told(kind, found):
    if kind in ("ViTMSNModel", "ViTMAEModel", "ViTMAEForPreTraining"):
        return found.last_hidden_state[:, 0]
    if kind == "IJepaModel" or (kind == "SiglipVisionModel" and found.pooler_output is None):
        return found.last_hidden_state.mean(dim=1)
    return next(part for name in ("logits", "image_embeds", "pooler_output") if (part := found.get(name)) is not None)


def first(output):
    return output[0] if isinstance(output, tuple) else output


def ours(checkpoint, images):
    """The same of Vitrail's model."""
    model, seen = checkpoint.build(), []
    for block in model.blocks:
        block.register_forward_hook(lambda *call: seen.append(call[2].values))
    with torch.no_grad():  # all tokens also in the last block, of which `forward` computes what is read
        return model.head(model.pool(model.encode(model.embed(images)))), seen


def distance(found, expected):
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found - expected).abs().max() / expected.abs().max())


def distances(checkpoint, model, images, **more):
    """Of the answers, and of the hidden states of the block that differs most."""
    (said, states), (expected, theirs) = ours(checkpoint, images), answer(model, images, **more)
    assert len(states) == len(theirs) > 0
    return distance(said, expected), max(distance(*pair) for pair in zip(states, theirs, strict=True))
