"""How long a new process takes to its first answer to one JPEG, and its largest memory, beside other programs.

    python benchmarks/first_answer.py --rounds 9

The same ViT with random weights is written once in every form, in --folder. Every contender is a process of its own: it
imports what it needs, loads the model (whose pages are in memory, as after a first use), decodes the picture and prints a
class, which all float32 contenders must agree on. The time is from the start of the process to that line; memory is the
largest resident size (VmHWM), which counts weights that are mapped from a file. Contenders take turns, in another order
every round. Names of torchvision stand in for it, so that its real import is missing from timm's time.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

HERE = str(Path(__file__).parent)
START = "import sys, json; model, jpeg = sys.argv[1:3]\n"
PREPARED = """
import numpy as np
from PIL import Image
picture = Image.open(jpeg).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
images = np.asarray(picture).transpose(2, 0, 1)[None]
"""
END = """
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(json.dumps([int(answer), peak * 1024 / 1e6]), flush=True)
"""
VITRAIL = "import vitrail; answer = vitrail.load(model).predict(jpeg).label.split()[1]"
HALF = "import vitrail; answer = vitrail.load(model, precision='bfloat16').predict(jpeg).label.split()[1]"
COMMAND = """
from contextlib import redirect_stdout, suppress
from io import StringIO
from vitrail.cli import main
with redirect_stdout(StringIO()) as said, suppress(SystemExit):
    main(["predict", model, jpeg])
answer = said.getvalue().split("\\t")[1].split()[1]
"""
ONNXRUNTIME = f"""
import onnxruntime
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
{PREPARED}
answer = session.run(["logits"], {{"images": images}})[0].argmax()
"""
OPENVINO = f"""
import openvino
compiled = openvino.Core().compile_model(model, "CPU", {{"INFERENCE_PRECISION_HINT": "CHOSEN"}})
{PREPARED}
answer = compiled(images)["logits"].argmax()
"""
FLOATS = f"{PREPARED}\nimport torch\nimages = torch.from_numpy(images / np.float32(127.5) - np.float32(1))"
TIMM = f"""
sys.path.insert(0, {HERE!r})
from peers import Shape, timm_model
from safetensors.torch import load_file
network = timm_model(Shape(*SHAPE)).eval()
network.load_state_dict(load_file(model + "/model.safetensors"))
{FLOATS}
with torch.inference_mode():
    answer = network(images).argmax()
"""
TRANSFORMERS = f"""
from transformers import ViTForImageClassification
network = ViTForImageClassification.from_pretrained(model).eval()
{FLOATS}
with torch.inference_mode():
    answer = network(images).logits.argmax()
"""
SIZES = {"ViT-B/16": (768, 12, 12), "ViT-S/16": (384, 12, 6), "ViT-Ti/16": (192, 12, 3)}


def contenders(folder: Path, shape: str) -> dict[str, tuple[str, Path]]:
    """Name -> program and model; the name's last word is the precision."""
    timm = TIMM.replace("*SHAPE", shape)
    return {
        "Vitrail, .onnx, float32": (VITRAIL, folder / "float32.onnx"),
        "Vitrail, .onnx, int8": (VITRAIL, folder / "int8.onnx"),
        "`vitrail predict`, .onnx, float32": (COMMAND, folder / "float32.onnx"),
        "`vitrail predict`, .onnx, int8": (COMMAND, folder / "int8.onnx"),
        "Vitrail, .openvino, float32": (VITRAIL, folder / "float32.openvino"),
        "Vitrail, .openvino, bfloat16": (HALF, folder / "float32.openvino"),
        "Vitrail, .openvino, int8": (VITRAIL, folder / "int8.openvino"),
        "Vitrail, weights on PyTorch, float32": (VITRAIL, folder / "native"),
        "ONNX Runtime, float32": (ONNXRUNTIME, folder / "plain.onnx"),
        "ONNX Runtime, int8 (dynamic)": (ONNXRUNTIME, folder / "plain-int8.onnx"),
        "OpenVINO, float32": (OPENVINO.replace("CHOSEN", "f32"), folder / "plain.xml"),
        "OpenVINO, bfloat16": (OPENVINO.replace("CHOSEN", "bf16"), folder / "plain.xml"),
        "OpenVINO, int8 (NNCF)": (OPENVINO.replace("CHOSEN", "bf16"), folder / "plain-int8.xml"),
        "timm, float32": (timm, folder / "timm"),
        "transformers, float32": (TRANSFORMERS, folder / "transformers"),
    }


def write(name: str, folder: Path) -> None:
    """Every form of one model."""
    import openvino
    import torch

    from vitrail.checkpoints.checkpoint import Checkpoint
    from vitrail.checkpoints.loading import save
    from vitrail.deployment import graph
    from vitrail.deployment.classifier import Classifier
    from vitrail.deployment.quantisation_onnx import DynamicInt8
    from vitrail.model.block import MLP, Block
    from vitrail.model.vit import Size, ViTConfig
    from vitrail.preprocessing import Preprocessing

    torch.manual_seed(0)
    dim, depth, heads = SIZES[name]
    module = ViTConfig(Size(dim, depth, heads, 4 * dim), block=Block(mlp=MLP("erf"))).build().eval()
    torch.nn.init.normal_(module.head.linear.weight, std=0.1)  # zero at first: all classes would be equal
    weights = {key: value.detach() for key, value in module.state_dict().items()}
    classes = tuple(f"class {number}" for number in range(1000))
    checkpoint: Any = Checkpoint(module.config, weights, Preprocessing(), classes)
    for form in ("native", "timm", "transformers"):
        save(checkpoint, folder / form, None if form == "native" else "hf-vit" if form == "transformers" else form)
    classifier = Classifier(checkpoint)
    model = graph.onnx_model(classifier)
    quick = DynamicInt8(model).model(())
    (folder / "plain.onnx").write_bytes(model.SerializeToString())
    (folder / "plain-int8.onnx").write_bytes(quick)
    _stamp(folder / "float32.onnx", checkpoint, model.SerializeToString())
    _stamp(folder / "int8.onnx", checkpoint, quick)
    converted = graph.openvino_model(classifier)
    openvino.save_model(converted, folder / "plain.xml", compress_to_fp16=False)
    openvino.save_model(_calibrated(converted), folder / "plain-int8.xml", compress_to_fp16=False)
    _stamp(folder / "float32.openvino", checkpoint, folder / "plain.xml")
    _stamp(folder / "int8.openvino", checkpoint, folder / "plain-int8.xml")


def _calibrated(model: Any) -> Any:
    """int8 of noise: its speed is that of pictures, its accuracy says nothing."""
    from vitrail.deployment.engines import silence

    silence()
    import nncf

    noise = np.random.default_rng(0).integers(0, 256, (8, 3, 224, 224), dtype=np.uint8)
    data = nncf.Dataset([image[None] for image in noise])
    return nncf.quantize(model, data, subset_size=8, model_type=nncf.ModelType.TRANSFORMER)


def _stamp(path: Path, checkpoint: Any, content: bytes | Path) -> None:
    from vitrail.deployment import onnx_file, openvino_file
    from vitrail.deployment.passport import Passport

    target: Any = path.suffix[1:]
    precision: Any = path.stem
    passport = Passport(target, precision, ((224, 224),), checkpoint.classes, False, 1.0, checkpoint.preprocessing)
    if isinstance(content, bytes):
        path.write_bytes(b"".join(onnx_file.stamped(content, passport)))
    else:
        path.write_bytes(
            openvino_file.stamped(content.read_bytes(), content.with_suffix(".bin").read_bytes(), passport)
        )


def measured(program: str, model: Path, jpeg: Path) -> tuple[float, float, int]:
    """Seconds, megabytes (10^6 bytes) and the answer of one new process."""
    begin = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", START + program + END, str(model), str(jpeg)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        if not line:
            raise SystemExit(f"{model}: {process.stderr.read()[-1000:]}")
        process.communicate()
    answer, memory = json.loads(line)
    return seconds, memory, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="ViT-B/16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path("runs/first-answer"))
    parser.add_argument("--only", default="", help="contenders whose name has this")
    parser.add_argument("--write", action="store_true", help="make the models and stop")
    arguments = parser.parse_args()
    folder = arguments.folder / arguments.model.replace("/", "-")
    if not (folder / "int8.openvino").is_file():
        folder.mkdir(parents=True)
        write(arguments.model, folder)
    jpeg = folder / "picture.jpg"
    if not jpeg.is_file():
        noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(jpeg, quality=90)
    if arguments.write:
        return
    dim, depth, heads = SIZES[arguments.model]
    known = contenders(folder, f"dim={dim}, depth={depth}, heads={heads}, patch=16, side=224, classes=1000")
    chosen = {name: way for name, way in known.items() if arguments.only in name}
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in chosen}
    order = random.Random(0)
    for number in range(-1, arguments.rounds):  # the first round brings the files into memory
        names = list(chosen)
        order.shuffle(names)
        for name in names:
            row = measured(*chosen[name], jpeg)
            if number >= 0:
                found[name].append(row)
    exact = {row[2] for name, rows in found.items() if name.endswith("float32") for row in rows}
    print(
        f"| {arguments.model}, median of {arguments.rounds} | seconds | least | most | memory, MB |\n|---|---|---|---|---|"
    )
    for name, rows in found.items():
        times = [row[0] for row in rows]
        print(
            f"| {name} | {median(times):.2f} | {min(times):.2f} | {max(times):.2f} | {max(row[1] for row in rows):.0f} |"
        )
    print(f"\nfloat32 answers: {'one class, the same everywhere' if len(exact) == 1 else exact}")


if __name__ == "__main__":
    main()
