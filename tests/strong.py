"""Weights drawn so large that a wrong GELU form, epsilon or order moves the logits by far more than the tolerance."""

import torch

# What makes the tokens that enter the first block. They stay small: an epsilon shows beside small variances only.
STEM = (
    "token",
    "pos_embed",
    "position",
    "patch_embed",
    "norm_pre",
    "ln_pre",
    "pre_layrnorm",
    "conv1",
    "class_embedding",
)


def strengthened(model, seed=0):
    """The model with every parameter redrawn: matrices by their fan, so that branches neither die nor explode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                values = 1 + 0.3 * values  # of a norm
            elif parameter.ndim in (2, 4) and name.endswith("weight"):
                values = values * 1.5 / parameter[0].numel() ** 0.5
            else:
                values = 0.3 * values
            parameter.copy_(values * (0.1 if any(word in name for word in STEM) else 1))
    return model.eval()


def hidden_states(blocks, call):
    """What every one of these blocks gives while `call` runs, and what the call gives."""
    found = []

    def record(module, inputs, output):
        values = output[0] if isinstance(output, tuple) else output
        found.append(getattr(values, "values", values) if not isinstance(values, torch.Tensor) else values)

    hooks = [block.register_forward_hook(record) for block in blocks]
    try:
        with torch.no_grad():
            answer = call()
    finally:
        for hook in hooks:
            hook.remove()
    return answer, found


def whole(model, images):
    """The answer with all tokens also in the last block, of which `forward` computes what is read."""
    return model.head(model.pool(model.encode(model.embed(images))))
