"""BiT's trunks, the hybrids' tokenizer and the Mixer's block in float64 NumPy, written from their papers and loops."""

from math import ceil

import numpy as np

from oracle import gelu

# kernel: what is added to (variance, deviation) of a kernel; norm: epsilon of group norm; edge: around max-pooling.
POST = {"kernel": (0.0, 1e-5), "norm": 1e-6, "same": True, "edge": -np.inf}
PRE = {"kernel": (1e-10, 0.0), "norm": 1e-5, "same": False, "edge": 0.0}


def standardised(kernel, family):
    """Per output channel, arXiv 1903.10520 eq. 6; `kernel` is outputs inputs side side."""
    inside, outside = family["kernel"]
    found = np.empty_like(kernel)
    for index, one in enumerate(kernel):
        deviation = np.sqrt(((one - one.mean()) ** 2).mean() + inside)
        found[index] = (one - one.mean()) / (deviation + outside)
    return found


def padded(x, side, stride, family, value=0.0):
    """XLA's SAME: just enough for ceil(n / stride) windows, the odd row after the image; or half a kernel all around."""
    ends = []
    for n in x.shape[1:]:
        total = max(0, (ceil(n / stride) - 1) * stride + side - n)
        ends.append((total // 2, total - total // 2) if family["same"] else (side // 2, side // 2))
    return np.pad(x, ((0, 0), *ends), constant_values=value)


def windows(x, side, stride):
    """(row, col, window) for every place, window by window."""
    rows, cols = ((n - side) // stride + 1 for n in x.shape[1:])
    for row in range(rows):
        for col in range(cols):
            top, left = row * stride, col * stride
            yield row, col, x[:, top : top + side, left : left + side]


def convolve(x, kernel, stride, family):
    """`x` is channels height width."""
    side = kernel.shape[-1]
    x, kernel = padded(x, side, stride, family), standardised(kernel, family)
    rows, cols = ((n - side) // stride + 1 for n in x.shape[1:])
    out = np.empty((len(kernel), rows, cols))
    for row, col, window in windows(x, side, stride):
        out[:, row, col] = (kernel * window).sum((1, 2, 3))
    return out


def max_pool(x, family):
    x = padded(x, 3, 2, family, family["edge"])
    rows, cols = ((n - 3) // 2 + 1 for n in x.shape[1:])
    out = np.empty((len(x), rows, cols))
    for row, col, window in windows(x, 3, 2):
        out[:, row, col] = window.max((1, 2))
    return out


def group_norm(x, p, name, family, groups=32):
    parts = x.reshape(groups, -1)
    mean, variance = parts.mean(1, keepdims=True), parts.var(1, keepdims=True)
    normed = ((parts - mean) / np.sqrt(variance + family["norm"])).reshape(x.shape)
    return normed * p[f"{name}.weight"][:, None, None] + p[f"{name}.bias"][:, None, None]


def relu(x):
    return np.maximum(x, 0)


def post_unit(x, p, name, stride, family):
    """ResNet v1: convolution, norm, ReLU; the sum is rectified."""
    y = relu(group_norm(convolve(x, p[f"{name}reduce.weight"], 1, family), p, f"{name}reduce_norm", family))
    y = relu(group_norm(convolve(y, p[f"{name}convolve.weight"], stride, family), p, f"{name}convolve_norm", family))
    y = group_norm(convolve(y, p[f"{name}expand.weight"], 1, family), p, f"{name}expand_norm", family)
    if f"{name}shortcut.0.weight" in p:
        x = group_norm(convolve(x, p[f"{name}shortcut.0.weight"], stride, family), p, f"{name}shortcut.1", family)
    return relu(x + y)


def pre_unit(x, p, name, stride, family):
    """ResNet v2: norm, ReLU, convolution; the sum is not rectified."""
    active = relu(group_norm(x, p, f"{name}reduce_norm", family))
    y = relu(group_norm(convolve(active, p[f"{name}reduce.weight"], 1, family), p, f"{name}convolve_norm", family))
    y = relu(group_norm(convolve(y, p[f"{name}convolve.weight"], stride, family), p, f"{name}expand_norm", family))
    y = convolve(y, p[f"{name}expand.weight"], 1, family)
    return y + (convolve(active, p[f"{name}shortcut.weight"], stride, family) if f"{name}shortcut.weight" in p else x)


def maps_of(image, p, stages, family, prefix="trunk."):
    """Every stage's map, and before them the root's; `image` is channels height width."""
    post = family is not None and f"{prefix}root.norm.weight" in p
    x = convolve(image, p[f"{prefix}root.convolve.weight"], 2, family)
    if post:
        x = relu(group_norm(x, p, f"{prefix}root.norm", family))
    maps = [max_pool(x, family)]
    for stage, count in enumerate(stages):
        x = maps[-1]
        for unit in range(count):
            name, stride = f"{prefix}stages.{stage}.{unit}.", 2 if stage and not unit else 1
            x = (post_unit if post else pre_unit)(x, p, name, stride, family)
        maps.append(x)
    if not post:
        maps[-1] = relu(group_norm(maps[-1], p, f"{prefix}last.0", family))
    return maps


def token_mixing(x, p, prefix):
    """MLP-Mixer eq. 1, channel by channel; `x` is tokens dim."""
    out = np.empty_like(x)
    for channel in range(x.shape[1]):
        hidden = gelu(x[:, channel] @ p[f"{prefix}expand.weight"] + p[f"{prefix}expand.bias"])
        out[:, channel] = hidden @ p[f"{prefix}contract.weight"] + p[f"{prefix}contract.bias"]
    return out


def units(stages, width):
    """Parameters of the residual units, counted by hand: kernels, and two numbers a channel for every norm."""
    post = pre = 0
    inputs = width
    for stage, count in enumerate(stages):
        middle = width * 2**stage
        for _ in range(count):
            kernels = inputs * middle + 9 * middle**2 + 4 * middle**2
            projection = inputs * 4 * middle if inputs != 4 * middle else 0
            post += kernels + 2 * (middle + middle + 4 * middle) + projection + (8 * middle if projection else 0)
            pre += kernels + 2 * (inputs + middle + middle) + projection
            inputs = 4 * middle
    return post, pre
