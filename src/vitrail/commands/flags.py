"""The arguments and flags that several verbs have in common: what each is called, and what its help says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of text.")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", help="Print no progress.")]
Plan = Annotated[
    bool, Parameter(name="--plan", negative="", help="Show what would happen and what it costs; write nothing.")
]
Out = Annotated[Path | None, Parameter(help="The run folder.")]
Model = Annotated[Path, Parameter(help="Run folder, model folder, file of weights, or exported model.")]
One = Annotated[Path, Parameter(help="A run folder; all is read from it, pictures and weights are not needed.")]
Other = Annotated[Path, Parameter(help="The other run folder.")]
Page = Annotated[Path | None, Parameter(help="Write it as a page too, PAGE.html.")]
Data = Annotated[str, Parameter(help="Folder, CSV file or built-in set.")]
Sheet = Annotated[Path, Parameter(help="The drawing, SHEET.png.")]
List = Annotated[Path, Parameter(help="The list to train on, split.csv.")]
Styled = Annotated[Path, Parameter(help="A new folder for the pictures and their split.csv.")]
StyleSeed = Annotated[int, Parameter(name="--seed", help="Decides which picture gives its texture to which.")]
Seed = Annotated[int, Parameter(help="Initial weights and the order of the images.")]
Replace = Annotated[bool, Parameter(name="--overwrite", negative="", help="Replace a file that is there.")]
Overwrite = Annotated[bool, Parameter(negative="", help="Start over where the folder holds another run.")]
Device = Annotated[str, Parameter(help="auto, cpu or cuda.")]
Sets = Annotated[list[str], Parameter(name="--set", negative="", help="KEY=VALUE, any key of the plan; repeatable.")]
File = Annotated[str, Parameter(negative="", allow_leading_hyphen=True)]  # for "-", standard input
Format = Annotated[str | None, Parameter(name="--format", help="A name of docs/formats.md; default: what fits TARGET.")]
Heads = Annotated[list[int], Parameter(negative="")]
FindRate = Annotated[bool, Parameter(negative="", help="Try growing learning rates on some images; write nothing.")]
Engine = Annotated[str, Parameter(help="auto, pytorch, compiled, onnxruntime or openvino.")]
Precision = Annotated[str, Parameter(help="auto (the file's own), float32, bfloat16 or int8.")]
Size = Annotated[str | None, Parameter(name="--image-size", help="Pixels: 224, or HEIGHTxWIDTH.")]
Sizes = Annotated[str | None, Parameter(name="--image-size", help="224, or several: 224,384x256 (HEIGHTxWIDTH).")]
To = Annotated[str, Parameter(help="onnx, openvino or torch-export.")]
Inside = Annotated[
    str | None, Parameter(help="What the graph does itself: normalisation,softmax (default), one of them, or none.")
]
Family = Annotated[str | None, Parameter(help="What the weights are, where names do not tell: dino, mae, deit ...")]
Protocols = Annotated[list[str], Parameter(name="--protocol", negative="")]
Beside = Annotated[Path | None, Parameter(help="Another model to stand beside it, such as a CNN of like size.")]
Settings = Annotated[
    list[str], Parameter(name="--set", negative="", help="KEY=VALUE, a setting of the protocol; repeatable.")
]
Weights = Annotated[Path, Parameter(help="Run folder, model folder or file of weights.")]
Models = Annotated[
    list[Path], Parameter(name="--model", negative="", help="Run folder, model folder or file of weights; repeatable.")
]
Folder = Annotated[Path | None, Parameter(help="Folder for the drawings and their numbers.")]
Check = Annotated[
    bool,
    Parameter(name="--check", negative="", help="Measure how far the methods can be believed; no picture is named."),
]
Methods = Annotated[list[str], Parameter(name="--method", negative="")]
Target = Annotated[str | None, Parameter(name="--class", help="The class to explain; default: the model's answer.")]
Table = Annotated[Path, Parameter(name="--out", help="The table, .parquet or .npy.")]
