"""What `models` and `doctor` print."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import Any

from vitrail.errors import DataError

_POOLS = {"ClassToken": "class token", "GlobalAverage": "average", "AttentionPool": "MAP head"}


def run_models(image_size: tuple[int, int] | None, as_json: bool) -> int:
    """Lists the names with what they cost at a resolution; sizes that a patch does not divide are said so."""
    from vitrail.model.sizes import NAMES, RESNETS, backbone, cost
    from vitrail.model.vit import ViTConfig

    size = image_size or (224, 224)
    records: list[dict[str, Any]] = []
    for name in (*NAMES, *RESNETS):
        config = backbone(name, image_size=size)
        try:
            counted = cost(config)
        except DataError as error:
            records.append({"name": name, "problem": error.fix})
            continue
        pool = type(config.pool).__name__ if isinstance(config, ViTConfig) else "GlobalAverage"
        records.append({
            "name": name, "pool": _POOLS[pool], "tokens": counted.tokens, "parameters": counted.parameters,
            "flops": counted.flops, "activation_bytes": counted.activation_bytes,
        })  # fmt: skip
    if as_json:
        print(json.dumps(records))
        return 0
    print(f"{'':13}{'tokens':>7}{'parameters':>15}{'GFLOP':>9}{'activations':>13}  pool")
    for record in records:
        if "problem" in record:
            print(f"{record['name']:13}  {record['problem']}")
            continue
        print(
            f"{record['name']:13}{record['tokens']:>7,}{record['parameters']:>15,}{record['flops'] / 1e9:>9,.1f}"
            f"{record['activation_bytes'] / 2**20:>9,.0f} MiB  {record['pool']}"
        )
    print(
        f"\nAt {size[0]}x{size[1]} px, 3 channels, 1000 classes. GFLOP: one image forward, matrix"
        "\nproducts and convolutions, two operations per multiply-add. Activations: float32,"
        "\nkept per image for training. R+ViT-Ti/16 has tokens of 32 px, whatever its name."
        "\nAny size goes with any patch: ViT-B/14, ViT-Ti/16x32, Mixer-B/8; any depth of a"
        "\nResNet with any width: R152x3."
    )
    return 0


def run_doctor(as_json: bool) -> int:
    """Facts and findings about this computer."""
    import torch

    from vitrail.cores import cores, threads
    from vitrail.training.folder import environment

    facts: dict[str, Any] = environment()
    facts["threads"], facts["cores"] = threads(torch.get_num_threads()), cores()
    facts["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    facts["free_disk_gib"] = round(shutil.disk_usage(".").free / 2**30, 1)
    facts["gflops"] = {name: round(_matrix_speed(kind), 1) for name, kind in
                       (("float32", torch.float32), ("bfloat16", torch.bfloat16))}  # fmt: skip
    facts["findings"] = _findings(facts)
    if as_json:
        print(json.dumps(facts))
        return 0
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    print(f"python      {facts['python']} on {facts['system']}")
    print(f"packages    {packages}")
    print(f"processor   {facts['processor']}, {facts['cores']} cores, {facts['threads']} threads")
    print(f"accelerator {facts['accelerator'] or 'none; everything runs on the processor'}")
    print(f"memory      {facts['memory_gib']} GiB; disk here: {facts['free_disk_gib']} GiB free")
    speeds = ", ".join(f"{name} {speed:,.0f} GFLOP/s" for name, speed in facts["gflops"].items())
    print(f"speed       {speeds} (1024x1024 matrix products)")
    for finding in facts["findings"] or ["no known trap"]:
        print(f"finding     {finding}")
    return 0


def _matrix_speed(kind: Any, side: int = 1024, seconds: float = 0.4) -> float:
    """GFLOP/s of square matrix products."""
    import torch

    left, right = (torch.randn(side, side).to(kind) for _ in range(2))
    _ = left @ right
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        _ = left @ right
        count += 1
    return count * 2 * side**3 / (time.perf_counter() - start) / 1e9


def _findings(facts: dict[str, Any]) -> list[str]:
    """Known traps, each with what to do."""
    found = []
    if facts["threads"] < (facts["cores"] or 1) and not facts["accelerator"]:
        found.append(f"{facts['threads']} threads for {facts['cores']} cores: OMP_NUM_THREADS may be set too low")
    if facts["memory_gib"] < 2:
        found.append("less than 2 GiB of memory: large data sets will not be kept in memory")
    if facts["free_disk_gib"] < 1:
        found.append("less than 1 GiB of disk here: use --out to write elsewhere")
    if facts["gflops"]["bfloat16"] < facts["gflops"]["float32"]:
        found.append("bfloat16 is slower than float32 here: leave training.precision at float32")
    if not os.access(".", os.W_OK):
        found.append("this folder cannot be written: use --out")
    load = os.getloadavg()[0]
    if load > 1.5 * (facts["cores"] or 1):
        found.append(f"other programs keep the processor busy (load {load:.1f}): timings will be too long")
    return found
