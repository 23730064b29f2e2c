"""ViTs beside what others make of the same architecture, in one interleaved run: the tables of docs/performance.md.

    python benchmarks/inference.py ViT-B/16                       # batches 1 and 8, all runtimes, two threads
    python benchmarks/inference.py ViT-Ti/16 --compiled           # timm and vit-pytorch through torch.compile too: some minutes
    python benchmarks/inference.py ViT-B/16 --exported b16.openvino     # and an exported file, say of int8
    python benchmarks/inference.py profile ViT-B/16 --precision bfloat16     # where the time of the packed module goes
    python benchmarks/inference.py ViT-L/16 --device cuda --batches 1,256    # not run so far

Each runtime (PyTorch, ONNX Runtime, OpenVINO) is a process of its own, because their pools of threads wait by turning in place;
contenders of one runtime share its process. All take turns, round after round in alternating order: one call that does not
count, then calls for about --turn seconds. Printed are medians of the turns. Peers get normalised float32 (or bfloat16)
arrays; Vitrail's get uint8 images through `vitrail.load(...).logits`, normalisation and copies included.
Weights are random. Needs timm (--no-deps), transformers, vit-pytorch, onnx, onnxscript, onnxruntime, openvino.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SIZES = {"ViT-Ti/16": (192, 12, 3), "ViT-S/16": (384, 12, 6), "ViT-B/16": (768, 12, 12), "ViT-L/16": (1024, 24, 16)}
SIDE, CLASSES = 224, 1000
RUNTIMES = ("pytorch", "onnxruntime", "openvino")
COMPILED = ("timm", "vit-pytorch")  # the quickest eager peers; each size of batch is compiled by itself
Call = Callable[[int], None]
"""Answers a batch of so many images."""


def operations(model: str) -> float:
    """Floating-point operations for one image: two for each multiply-add of the whole model, whoever leaves some out."""
    dim, depth, _ = SIZES[model]
    tokens = (SIDE // 16) ** 2 + 1
    layer = tokens * 12 * dim**2 + 2 * tokens**2 * dim
    return 2.0 * (depth * layer + (tokens - 1) * 768 * dim + dim * CLASSES)


def arrays(batches: list[int]) -> dict[int, np.ndarray]:
    random = np.random.default_rng(0)
    return {batch: random.standard_normal((batch, 3, SIDE, SIDE), dtype=np.float32) for batch in batches}


# The contenders of each runtime: name -> what one call does.


def pytorch(arguments: argparse.Namespace, scratch: Path) -> dict[str, Call]:
    import torch

    from peers import Shape, hf_model, timm_model

    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    dim, depth, heads = SIZES[arguments.model]
    shape, device = Shape(dim, depth, heads, 16, SIDE, CLASSES), torch.device(arguments.device)
    given = {size: torch.from_numpy(images).to(device) for size, images in arrays(arguments.batches).items()}
    halves = {size: images.bfloat16() for size, images in given.items()}
    found: dict[str, Call] = {}

    def enter(name: str, model: Any, images: dict[int, Any]) -> None:
        def call(batch: int) -> None:
            with torch.inference_mode():
                model(images[batch])
            if device.type == "cuda":
                torch.cuda.synchronize()

        found[name] = call

    for name, build in (("timm", timm_model), ("transformers", hf_model), ("vit-pytorch", vit_pytorch_model)):
        single = build(shape).eval().to(device)
        half = build(shape).eval().to(device, torch.bfloat16)
        enter(f"{name} float32", single, given)
        enter(f"{name} bfloat16", half, halves)
        if name in COMPILED and arguments.compiled:
            options: Any = {"freezing": True} if device.type == "cpu" else None
            enter(f"{name} compiled float32", torch.compile(single, dynamic=False, options=options), given)
            enter(f"{name} compiled bfloat16", torch.compile(half, dynamic=False, options=options), halves)
        if name == "timm" and device.type == "cpu":
            write_peers(single, scratch, arguments)
    if device.type == "cuda":
        enter("vitrail bfloat16", our_module(arguments.model).to(device, torch.bfloat16), halves)
        return {name: call for name, call in found.items() if "bfloat16" in name}
    ways = [("pytorch", precision, 0) for precision in ("float32", "bfloat16")]
    if arguments.compiled:
        ways += [("compiled", precision, 0) for precision in ("float32", "bfloat16")]
    return {**found, **our_calls(scratch, ways, arguments)}


def vit_pytorch_model(shape: Any) -> Any:
    """Its file alone: the package's `__init__` imports torchvision."""
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    package = find_spec("vit_pytorch")
    assert package is not None and package.origin is not None, "pip install vit-pytorch"
    spec = spec_from_file_location("vit_pytorch_vit", Path(package.origin).with_name("vit.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ViT(
        image_size=shape.side, patch_size=shape.patch, num_classes=shape.classes, dim=shape.dim, depth=shape.depth,
        heads=shape.heads, mlp_dim=4 * shape.dim, dim_head=shape.dim // shape.heads,
    )  # fmt: skip


def write_peers(model: Any, scratch: Path, arguments: argparse.Namespace) -> None:
    """timm's model as its users export it: torch.onnx.export and openvino.convert_model, with a dynamic batch."""
    import torch

    images = torch.zeros(2, 3, SIDE, SIDE)
    if "onnxruntime" in arguments.runtimes:
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.onnx.export(program, dynamo=True, input_names=["images"], verbose=False).save(scratch / "timm.onnx")
    if "openvino" in arguments.runtimes:
        import openvino

        converted = openvino.convert_model(model, example_input=images, input=[-1, 3, SIDE, SIDE])
        openvino.save_model(converted, scratch / "timm.xml", compress_to_fp16=False)


def our_module(model: str) -> Any:
    from vitrail.model.block import MLP, Block
    from vitrail.model.vit import Size, ViTConfig

    dim, depth, heads = SIZES[model]
    return ViTConfig(Size(dim, depth, heads, 4 * dim), block=Block(mlp=MLP("erf"))).build().eval()


def write_ours(model: str, folder: Path) -> None:
    from vitrail.checkpoints.checkpoint import Checkpoint
    from vitrail.checkpoints.native import from_native
    from vitrail.preprocessing import Preprocessing

    module = our_module(model)
    classes = tuple(f"class {number}" for number in range(CLASSES))
    from_native(Checkpoint(module.config, module.state_dict(), Preprocessing((SIDE, SIDE)), classes), folder)


def our_calls(scratch: Path, ways: list[tuple[str, str, int]], arguments: argparse.Namespace) -> dict[str, Call]:
    """Vitrail by (engine, precision, streams); 0 streams: as many as it chooses."""
    import vitrail
    from vitrail.deployment.engines import Setting

    random = np.random.default_rng(0)
    images = {n: random.integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8) for n in arguments.batches}
    found: dict[str, Call] = {}

    def enter(name: str, model: Any) -> None:
        found[name] = lambda batch: model.logits(images[batch])

    for engine, precision, streams in ways:
        setting = Setting(threads=arguments.threads, streams=streams, purpose="throughput")
        name = f"vitrail {engine}" + (f" {streams} streams" if streams > 1 else "")
        enter(
            f"{name} {precision}", vitrail.load(scratch / "ours", engine=engine, precision=precision, setting=setting)
        )
    for path in (
        arguments.exported if not any(engine == "compiled" or engine == "pytorch" for engine, *_ in ways) else ()
    ):
        setting = Setting(threads=arguments.threads, purpose="throughput")
        if any(path.suffix == {"openvino": ".openvino", "onnxruntime": ".onnx"}[engine] for engine, *_ in ways):
            enter(f"vitrail {path.name}", vitrail.load(path, setting=setting))
    return found


def onnxruntime(arguments: argparse.Namespace, scratch: Path) -> dict[str, Call]:
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    plain, images = runtime.InferenceSession(scratch / "timm.onnx", options), arrays(arguments.batches)
    found: dict[str, Call] = {"ONNX Runtime float32": lambda batch: plain.run(None, {"images": images[batch]})}
    return {**found, **our_calls(scratch, [("onnxruntime", "float32", 0)], arguments)}


def openvino(arguments: argparse.Namespace, scratch: Path) -> dict[str, Call]:
    import openvino as runtime

    images, found, ways = arrays(arguments.batches), {}, []
    for precision, hint in (("float32", "f32"), ("bfloat16", "bf16")):
        for streams in (1, 2):
            settings = {
                "INFERENCE_NUM_THREADS": arguments.threads, "INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": streams,
                "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            }  # fmt: skip
            compiled = runtime.Core().compile_model(scratch / "timm.xml", "CPU", settings)
            requests = [compiled.create_infer_request() for _ in range(streams)]
            name = "OpenVINO" + (f" {streams} streams" if streams > 1 else "")
            found[f"{name} {precision}"] = lambda batch, requests=requests: divided(requests, images[batch])
            ways.append(("openvino", precision, streams))
    return {**found, **our_calls(scratch, ways, arguments)}


def divided(requests: list[Any], images: np.ndarray) -> None:
    parts = [part for part in np.array_split(images, len(requests)) if len(part)]
    for request, part in zip(requests, parts, strict=False):
        request.start_async([part], share_inputs=True)
    for request in requests[: len(parts)]:
        request.wait()


# A runtime's process: hears "name batch seconds" and answers with the seconds of a call.


def serve(arguments: argparse.Namespace) -> None:
    calls = {"pytorch": pytorch, "onnxruntime": onnxruntime, "openvino": openvino}[arguments.serve](
        arguments, arguments.scratch
    )
    for call in calls.values():
        for batch in arguments.batches:
            call(batch)
    print(json.dumps(list(calls)), flush=True)
    for line in sys.stdin:
        name, batch, seconds = json.loads(line)
        calls[name](batch)
        times: list[float] = []
        while sum(times) < seconds:
            begin = time.perf_counter()
            calls[name](batch)
            times.append(time.perf_counter() - begin)
        print(json.dumps(median(times)), flush=True)


class Runtime:
    """A process that waits while others take their turn."""

    def __init__(self, name: str, arguments: argparse.Namespace, scratch: Path) -> None:
        command = [
            sys.executable, __file__, arguments.model, "--serve", name, "--scratch", str(scratch), "--device", arguments.device,
            "--threads", str(arguments.threads), "--batches", ",".join(map(str, arguments.batches)),
            "--runtimes", ",".join(arguments.runtimes), *(["--compiled"] if arguments.compiled else []),
            *(part for path in arguments.exported for part in ("--exported", str(path))),
        ]  # fmt: skip
        threads = {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}
        )
        self.names: list[str] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(("[", "{")) or line[:1].isdigit():
                return json.loads(line)
        raise SystemExit(f"a runtime ended: {self.process.wait()}")

    def turn(self, name: str, batch: int, seconds: float) -> float:
        assert self.process.stdin
        self.process.stdin.write(json.dumps([name, batch, seconds]) + "\n")
        self.process.stdin.flush()
        return float(self._answer())


def compare(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place:
        if arguments.device == "cpu":
            write_ours(arguments.model, Path(place) / "ours")
        runtimes = [Runtime(name, arguments, Path(place)) for name in arguments.runtimes]
        turns = [(one, name, batch) for batch in arguments.batches for one in runtimes for name in one.names]
        times: dict[tuple[str, int], list[float]] = {(name, batch): [] for _, name, batch in turns}
        print("ready", file=sys.stderr, flush=True)
        if arguments.wait:
            input()
        began, rounds = time.monotonic(), 0
        while rounds < arguments.rounds and (rounds < 2 or time.monotonic() - began < arguments.seconds):
            for one, name, batch in turns if rounds % 2 else turns[::-1]:
                times[name, batch].append(one.turn(name, batch, arguments.turn))
            rounds += 1
        spent = time.monotonic() - began
        top = peaks(arguments)
        for one in runtimes:
            assert one.process.stdin
            one.process.stdin.close()
            one.process.wait()
    print(f"{arguments.model}, {SIDE} px, {arguments.threads} threads, {arguments.device}, {rounds} rounds in {spent:.0f} s; "
          + ", ".join(f"{precision} {rate / 1e9:.0f} GFLOP/s" for precision, rate in top.items()))  # fmt: skip
    for batch in arguments.batches:
        print("\n".join(table(arguments.model, batch, times, top)))


def table(model: str, batch: int, times: dict[tuple[str, int], list[float]], top: dict[str, float]) -> list[str]:
    """Markdown: fastest first; beside each its ratio to timm in float32, and its share of the peak of its precision."""
    rows = sorted(((median(found), name) for (name, size), found in times.items() if size == batch))
    base = {name: seconds for seconds, name in rows}
    first = base.get("timm float32", base.get("timm bfloat16", rows[0][0]))
    lines = [
        "",
        f"| {model}, batch {batch} | images/s | ms | best ms | x timm float32 | of the peak |",
        "|---|---|---|---|---|---|",
    ]
    for seconds, name in rows:
        peak = top.get(name.split()[-1])
        share = "" if peak is None else f"{operations(model) * batch / seconds / peak:.0%}"
        lines.append(f"| {name} | {batch / seconds:.2f} | {1000 * seconds:.1f} | {1000 * min(times[name, batch]):.1f} "
                     f"| {first / seconds:.2f} | {share} |")  # fmt: skip
    return lines


def peaks(arguments: argparse.Namespace) -> dict[str, float]:
    """Operations a second of a large product here, by precision: packed by oneDNN on a processor, 8192^3 on a card."""
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        from training import card_peak

        return {"bfloat16": card_peak()}
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        values, weight = torch.randn(1576, 768).to(dtype), torch.randn(3072, 768).to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            torch.ops.mkldnn._linear_pointwise(values, packed, None, "none", [], "")
            times.append(time.perf_counter() - begin)
        found[name] = 2 * 1576 * 768 * 3072 / min(times)
    return found


PARTS = {
    "matrix products": ("mkldnn::_linear", "aten::addmm"),
    "products of attention": ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot"),
    "powers and sums of attention": ("aten::exp", "aten::sum", "aten::aminmax", "aten::div", "aten::_softmax"),
    "LayerNorm": ("aten::native_layer_norm",), "copies": ("aten::copy_", "aten::cat", "aten::clone"),
}  # fmt: skip


def profile(arguments: argparse.Namespace) -> None:
    """Share of the time of the packed module, by torch.profiler on one thread; best of the rounds."""
    import torch

    from vitrail.deployment.packed import packed

    torch.set_num_threads(1)
    for batch in arguments.batches:
        model, images = packed(our_module(arguments.model), arguments.precision), torch.randn(batch, 3, SIDE, SIDE)
        shares: list[dict[str, float]] = []
        with torch.inference_mode():
            model(images)
            for _ in range(arguments.rounds):
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
                    model(images)
                spent: dict[str, float] = dict.fromkeys([*PARTS, "the rest"], 0.0)
                for event in found.key_averages():
                    part = next((part for part, keys in PARTS.items() if event.key.startswith(keys)), "the rest")
                    spent[part] += event.self_cpu_time_total / 1000
                shares.append(spent)
        best = min(shares, key=lambda spent: sum(spent.values()))
        total = sum(best.values())
        print(f"{arguments.model} {arguments.precision}, batch {batch}, 1 thread: {total:.1f} ms")
        for part, spent_ in best.items():
            print(f"| {part} | {spent_:.2f} ms | {spent_ / total:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help="a model, or the word profile before it")
    parser.add_argument("model", nargs="?", choices=SIZES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8])
    parser.add_argument("--runtimes", type=lambda text: text.split(","), default=list(RUNTIMES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compiled", action="store_true", help="PyTorch's peers through torch.compile, and Vitrail's engine `compiled`"
    )
    parser.add_argument("--exported", type=Path, action="append", default=[], help="a file of vitrail export")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the profile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=240.0, help="begin no round after so long, but make two")
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of calls in a turn")
    parser.add_argument("--wait", action="store_true", help="for Enter before the first round, until nothing else runs")
    parser.add_argument("--serve", choices=RUNTIMES, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "profile":
        profile(arguments)
        return
    arguments.model = arguments.what
    assert arguments.model in SIZES, f"{arguments.model}: {', '.join(SIZES)}"
    if arguments.device == "cuda":
        arguments.runtimes = ["pytorch"]
    serve(arguments) if arguments.serve else compare(arguments)


if __name__ == "__main__":
    main()
