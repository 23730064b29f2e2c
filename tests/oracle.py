"""The Vision Transformer in float64 NumPy, written from the paper's equations and nothing else."""

from math import erf, sqrt

import numpy as np


def layer_norm(x, scale, shift, epsilon=1e-6):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * scale + shift


def gelu(x, form="tanh"):
    if form == "tanh":
        return 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def multi_head_attention(x, w, heads, context=None, bias=None):
    """Eq. 5 to 8, one head at a time. `w` holds query, key, value, out as (weight, shift); weights map rows."""
    context = x if context is None else context
    size = x.shape[-1] // heads
    q, k, v = (
        x @ w["query"][0] + w["query"][1],
        context @ w["key"][0] + w["key"][1],
        context @ w["value"][0] + w["value"][1],
    )
    outputs, maps = [], []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / sqrt(size)
        if bias is not None:
            scores = scores + bias(q[:, part], head)
        attention = softmax(scores)
        maps.append(attention)
        outputs.append(attention @ v[:, part])
    return np.concatenate(outputs, -1) @ w["out"][0] + w["out"][1], np.stack(maps)


def patches_of(image, patch):
    """Raster order; each patch flattened as row, column, channel. `image` is channels height width."""
    _, height, width = image.shape
    found = []
    for top in range(0, height, patch[0]):
        for left in range(0, width, patch[1]):
            found.append(image[:, top : top + patch[0], left : left + patch[1]].transpose(1, 2, 0).reshape(-1))
    return np.stack(found)


def parameters(model):
    """A model's tensors as float64; dense weights transposed so that they map rows."""
    found = {}
    for name, tensor in model.state_dict().items():
        value = tensor.double().numpy()
        found[name] = value.T if value.ndim == 2 and name.endswith(".weight") else value
    return found


def attention_weights(p, prefix):
    q, k, v = np.split(p[prefix + "query_key_value.weight"], 3, axis=1)
    bq, bk, bv = np.split(p[prefix + "query_key_value.bias"], 3)
    out = p[prefix + "project.weight"], p[prefix + "project.bias"]
    return {"query": (q, bq), "key": (k, bk), "value": (v, bv), "out": out}


def block(x, p, prefix, heads, form="tanh", epsilon=1e-6, bias=None):
    """Eq. 2 and 3, with LayerScale where the model has it."""
    scale = [p.get(f"{prefix}{branch}_branch.scale", 1.0) for branch in ("mixer", "mlp")]
    normed = layer_norm(x, p[prefix + "mixer_norm.weight"], p[prefix + "mixer_norm.bias"], epsilon)
    mixed, maps = multi_head_attention(normed, attention_weights(p, prefix + "mixer."), heads, bias=bias)
    x = x + scale[0] * mixed
    normed = layer_norm(x, p[prefix + "mlp_norm.weight"], p[prefix + "mlp_norm.bias"], epsilon)
    hidden = gelu(normed @ p[prefix + "mlp.expand.weight"] + p[prefix + "mlp.expand.bias"], form)
    return x + scale[1] * (hidden @ p[prefix + "mlp.contract.weight"] + p[prefix + "mlp.contract.bias"]), maps


def encode(image, p, config, form="tanh", epsilon=1e-6):
    """Tokens after the last layer and attention maps, for learned 1-D and for relative positions."""
    x = patches_of(image, config.tokenizer.patch) @ p["tokenizer.project.weight"] + p["tokenizer.project.bias"]
    registers = p.get("pool.registers", np.zeros((0, x.shape[1])))
    front = p.get("pool.class_token", np.zeros((0, x.shape[1])))
    if "position.tables.0.rows" in p:
        rows = p["position.tables.0.rows"]
        front, x = front + rows[: len(front)], x + rows[len(front) :]  # eq. 1
    x = np.concatenate([front, registers, x])
    maps = []
    for layer in range(config.size.depth):
        keys = p.get(f"position.keys.{layer}")
        bias = None if keys is None else relative_bias(keys, len(front) + len(registers))
        x, found = block(x, p, f"blocks.{layer}.", config.size.heads, form, epsilon, bias)
        maps.append(found)
    return x, np.stack(maps) if maps else np.zeros(0)


def relative_bias(keys, prefix):
    """q.r(p_q - p_k), scaled like q.k (paper D.4); pairs with a prefix token have none."""

    def bias(q, head):
        found = np.zeros((len(q), len(q)))
        for i in range(prefix, len(q)):
            for j in range(prefix, len(q)):
                found[i, j] = q[i] @ keys[head, (i - j) + keys.shape[1] // 2] / np.sqrt(q.shape[1])
        return found

    return bias


def forward(model, images, form="tanh", epsilon=1e-6):
    """Logits and attention maps of a plain ViT: learned 1-D positions, class token, average or attention pool."""
    p, config = parameters(model), model.config
    registers = len(p.get("pool.registers", ()))
    encoded = [encode(image, p, config, form, epsilon) for image in images.double().numpy()]
    logits = [head(pool(x, p, config, registers, form), p) for x, _ in encoded]
    return np.stack(logits), np.stack([maps for _, maps in encoded])


def probe_attention(x, p, config):
    """Where the probe of attention pooling looks: heads tokens. It does not see the registers."""
    registers = len(p.get("pool.registers", ()))
    x = layer_norm(x[registers:], p["pool.norm.weight"], p["pool.norm.bias"], config.block.norm.epsilon)
    maps = multi_head_attention(p["pool.probe"], attention_weights(p, "pool.attention."), config.size.heads, x)[1]
    return np.pad(maps[:, 0], ((0, 0), (registers, 0)))


def pool(x, p, config, registers, form):
    x = layer_norm(x, p["pool.norm.weight"], p["pool.norm.bias"], config.block.norm.epsilon)
    if "pool.probe" in p:
        asked, _ = multi_head_attention(
            p["pool.probe"], attention_weights(p, "pool.attention."), config.size.heads, context=x[registers:]
        )
        normed = layer_norm(asked, p["pool.mlp_norm.weight"], p["pool.mlp_norm.bias"])
        hidden = gelu(normed @ p["pool.mlp.expand.weight"] + p["pool.mlp.expand.bias"], form)
        return (asked + hidden @ p["pool.mlp.contract.weight"] + p["pool.mlp.contract.bias"])[0]
    return x[0] if "pool.class_token" in p else x[registers:].mean(0)


def head(x, p):
    if "head.represent.0.weight" in p:
        x = np.tanh(x @ p["head.represent.0.weight"] + p["head.represent.0.bias"])
    return x @ p["head.linear.weight"] + p["head.linear.bias"]
