"""Every bad input gets a clear error with its code and exit status, and loses nothing."""

import json
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
import vitrail
from vitrail.errors import UsageError, VitrailError
from vitrail.recipes.execute import Machine


def listing(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(vitrail_command, tmp_path, monkeypatch):
    """Types a command that must fail: refused(status, code, *arguments) gives what it said; nothing is written."""
    monkeypatch.chdir(tmp_path)

    def call(status, code, *arguments):
        before = listing(tmp_path)
        answer = vitrail_command(*arguments)
        assert (answer.status, answer.out) == (status, "") and answer.err.startswith(f"error[{code}] "), answer
        assert "Traceback" not in answer.err
        changed = {p for p, content in listing(tmp_path).items() if p not in before or before[p] != content}
        assert {p.name for p in changed} <= {"run", ".lock"}, changed
        return answer.err

    return call


def test_folders_that_are_no_data(refused, tmp_path, pictures):
    assert "nowhere does not exist" in refused(3, "VT011", "train", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "one folder per class" in refused(3, "VT012", "train", "empty")
    (tmp_path / "hollow" / "cats").mkdir(parents=True)
    assert "1 folders and no pictures" in refused(3, "VT012", "train", "hollow")
    assert "20 loose pictures" in refused(3, "VT012", "train", pictures / "dark below")
    shutil.copytree(pictures, tmp_path / "split" / "train")
    (tmp_path / "split" / "test" / "dark below").mkdir(parents=True)
    assert "split has no pictures in test/" in refused(3, "VT012", "train", "split")
    assert "split has no pictures in test/" in refused(3, "VT012", "data", "check", "split")
    shutil.copytree(pictures / "dark below", tmp_path / "one" / "dark")
    assert "one class only: dark" in refused(3, "VT013", "train", "one")
    assert "did you mean fashion-mini" in refused(3, "VT011", "train", "fashion-mni")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("path,lable\n{picture},a\n", "VT016", "its columns are path, lable"),
        ("file;label\n", "VT016", "has no column 'path'"),
        ("", "VT016", "its columns are none"),
        (
            "path,label\n{picture},a\nnowhere.png,b\nlost.png,a\n",
            "VT017",
            "names 2 files that are not there: nowhere.png, lost.png",
        ),
        ("path,label\n{picture},a\n", "VT013", "one class only: a"),
        ("path,label,split\n{picture},a,trian\n", "VT018", "did you mean train"),
        ("path,label,split\n{picture},a,val\n{picture},b,val\n", "VT014", "no training images"),
        ("path,label,split\n{picture},a,train\n{picture},b,test\n", "VT015", "train has no image of b"),
    ],
)
def test_tables_that_are_no_data(refused, tmp_path, pictures, text, code, said):
    picture = next(pictures.rglob("*.png"))
    (tmp_path / "table.csv").write_text(text.format(picture=picture))
    assert said in refused(3, code, "train", "table.csv")


def damaged_pictures(folder, whole):
    """A zero-byte, a truncated, a text and a 60-megapixel picture; name -> what is said about it."""
    (folder / "zero.png").touch()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("I am no picture")
    Image.new("1", (10_000, 6_000)).save(folder / "huge.png")
    return {"zero.png": "is empty", "cut.png": "damaged", "text.jpg": "not a picture", "huge.png": "60 megapixels"}


@pytest.fixture
def partly_damaged(tmp_path):
    data = tiny.write_pictures(tmp_path / "data", per_class=40)
    whole = (data / "light below" / "00.png").read_bytes()
    return data, damaged_pictures(data / "dark below", whole)


def test_damaged_pictures_up_to_a_share_are_skipped_counted_and_listed(partly_damaged, tmp_path, vitrail_command):
    data, problems = partly_damaged
    command = [
        "train",
        data,
        "--out",
        tmp_path / "run",
        *tiny.flags(training__epochs=1),
        "--set",
        "data.max_bad_share=0.5",
    ]
    answer = vitrail_command(*command, "--json")
    assert answer.status == 0
    listed = json.loads((tmp_path / "run" / "data.json").read_text())["bad_files"]
    lines = [line for lines in listed.values() for line in lines]
    assert len(lines) == len(problems)
    for name, reason in problems.items():
        assert sum(line.startswith(f"dark below/{name}: ") and reason in line for line in lines) == 1, name


def test_too_many_damaged_pictures_are_refused_with_a_list(partly_damaged, refused, tmp_path):
    data, problems = partly_damaged
    said = refused(3, "VT019", "train", data, "--out", "run", *tiny.flags(), "--set", "data.max_bad_share=0.01")
    assert "pictures cannot be read" in said and "at most 1.0% bad files" in said
    assert sum(name in said for name in problems) >= 2 and "--set data.max_bad_share=0." in said


def test_pictures_of_which_none_can_be_read_are_refused(refused, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(3):
            (tmp_path / "data" / name / f"{index}.png").write_text("text")
    assert "not one picture could be read" in refused(3, "VT019", "train", "data")


def test_overwriting_with_bad_data_keeps_the_old_run(vitrail_command, refused, pictures, tmp_path):
    assert vitrail_command("train", pictures, "--out", "run", "-q", *tiny.flags()).status == 0
    data = tiny.write_pictures(tmp_path / "data")
    for path in list((data / "dark below").iterdir())[:15]:
        path.write_text("text")
    refused(3, "VT019", "train", data, "--out", "run", "--overwrite", *tiny.flags())
    assert tiny.digests(tmp_path / "run")


def test_folders_that_hold_something_else_are_left_alone(refused, run, pictures, tmp_path):
    """With and without --overwrite: somebody's project, and a model folder, which has a config.json too."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("years of work")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "config.json").write_text('{"name": "something"}')
    shutil.copytree(run / "checkpoints" / "step-12", tmp_path / "model")
    for name in ("project", "package", "model"):
        for more in ([], ["--overwrite"]):
            said = refused(2, "VT023", "train", pictures, "--out", name, *tiny.flags(), *more)
            assert "it is left alone" in said and "--out runs/OTHER" in said
    (tmp_path / "file").touch()
    refused(1, "VT062", "train", pictures, "--out", "file", *tiny.flags())


def test_a_run_that_was_killed_before_it_began_is_begun_again(vitrail_command, pictures, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", "command.txt", "data.json", ".split.csv.01234567.tmp"):
        (folder / name).write_text("{}")
    assert vitrail_command("train", pictures, "--out", folder, "-q", *tiny.flags(training__epochs=1)).status == 0


def test_a_damaged_configuration_is_named(refused, pictures, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"run": ')
    assert "config.json is not readable as JSON" in refused(
        1, "VT063", "train", pictures, "--out", "run", *tiny.flags()
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("trian DATA", "VT001", "did you mean train?"),
        ("evla x", "VT001", "did you mean eval"),
        ("data fecth", "VT002", "did you mean fetch?"),
        ("train", "VT002", "vitrail train lacks DATA"),
        ("predict", "VT002", "vitrail predict lacks MODEL: run folder"),
        ("train DATA DATA", "VT002", "vitrail train does not know"),
        ("train DATA --wieghts x", "VT002", "did you mean --weights"),
        ("predict x --jsn", "VT002", "did you mean --json?"),
        ("eval x --spilt val", "VT002", "did you mean --split"),
        ("train DATA --epochs many", "VT002", "many"),
        ("train DATA --model ViT-X/16", "VT004", "did you mean ViT-"),
        ("train DATA --model ViT-B", "VT004", "ViT-B/16"),
        ("train DATA --recipe fashion", "VT005", "did you mean fashion-mnist?"),
        ("train DATA --device gpu", "VT002", "auto, cpu or cuda"),
        ("train DATA --workers -1", "VT002", "0 or more"),
        ("train DATA --image-size big", "VT002", "224x320"),
        ("train DATA --image-size 0", "VT002", "224x320"),
        ("train DATA --set training", "VT002", "KEY=VALUE"),
        ("train DATA --set trainnig.epochs=1", "VT003", "did you mean training"),
        ("train DATA --set training.epoch=1", "VT003", "did you mean epochs?"),
        ("train DATA --set training.epochs.x=1", "VT003", "epochs has no parts"),
        ("train DATA --set training.epochs=ten", "VT003", "'ten' (str)"),
        ("train DATA --set training.batch_size=2.5", "VT003", "2.5 (float)"),
        ("train DATA --set training.precision=float16", "VT003", "float32 or bfloat16"),
        ("train DATA --set optimizer=adam", "VT003", "did you mean adamw?"),
        ("train DATA --set schedule=cosin", "VT003", "did you mean cosine"),
        ("train DATA --set model.position=2d", "VT003", "known: "),
        ("train DATA --set model.size.heads=5", "VT003", "5 heads do not divide 96"),
        ("train DATA --set model.head.classes=7", "VT003", "has 2 classes"),
        ("train DATA --set model.tokenizer.channels=3", "VT003", "--set preprocessing.channels"),
        ("train DATA --set model.image_size=[4,4]", "VT003", "--image-size sets both"),
        ('train DATA --set augmentation.transforms=[{"type":"flp"}]', "VT003", "did you mean flip?"),
        ("train DATA --epochs 0", "VT003", "a positive number"),
        ("train DATA --epochs -3", "VT003", "a positive number"),
        ("train DATA --batch-size 0", "VT003", "at least 1"),
        ("train DATA --lr -1", "VT002", "a positive number"),
        ("train DATA --seed -1", "VT003", "0 to 2^63 - 1"),
        ("train DATA --set training.micro_batch=-2", "VT003", "at least 1"),
        ("train DATA --set training.clip=-1", "VT003", "null for no limit"),
        ("train DATA --set training.evaluations=0", "VT003", "at least 1"),
        ("train DATA --set data.max_bad_share=2", "VT003", "0 to 1"),
        ("train DATA --set objective.label_smoothing=1.5", "VT003", "0 to less than 1"),
        ("data fetch imagenet", "VT006", "known: fashion-mnist"),
        ("models --image-size 224x224x3", "VT002", "HEIGHTxWIDTH"),
        ("predict RUN x.png --top 9", "VT002", "1 to 5"),
        ("eval RUN --device tpu", "VT002", "auto, cpu or cuda"),
    ],
)
def test_wrong_words_name_the_nearest_right_ones(refused, pictures, run, arguments, code, said):
    words = [{"DATA": pictures, "RUN": run}.get(word, word) for word in arguments.split(" ")]
    if words[0] == "train":
        words += ["--out", "run"]
    assert said in refused(2, code, *words)


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="finds no CUDA device"):
        Machine("cuda")
    assert Machine("auto").torch_device == "cpu"


def test_sizes_that_the_patch_does_not_divide_name_the_nearest(refused, pictures):
    said = refused(3, "VT032", "train", pictures, "--image-size", "9x8", "--out", "run")
    assert "9x8" in said and "8x8" in said and "10x8" in said
    refused(3, "VT032", "train", pictures, "--set", "model.tokenizer.patch=[3,3]", "--out", "run")
    said = refused(3, "VT032", "train", pictures, "--model", "ViT-Ti/16", "--image-size", "100", "--out", "run")
    assert "96x96" in said and "112x112" in said


def test_models_that_are_none(refused, pictures, run, tmp_path):
    picture = next(pictures.rglob("*.png"))
    assert "nowhere does not exist" in refused(1, "VT078", "predict", "nowhere", picture)
    assert "has no weights" in refused(1, "VT077", "eval", pictures)
    assert "is of no format that Vitrail reads" in refused(1, "VT077", "predict", picture, picture)
    assert "has no split 'tset'" in refused(3, "VT010", "eval", run, "--split", "tset")
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    assert "no finished checkpoint yet" in refused(1, "VT079", "predict", "young", picture)
    shutil.copytree(run / "checkpoints" / "step-12", tmp_path / "cut")
    processor = (tmp_path / "cut" / "preprocessor_config.json").read_bytes()
    (tmp_path / "cut" / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in refused(1, "VT076", "predict", "cut", picture)
    (tmp_path / "cut" / "preprocessor_config.json").write_bytes(processor)
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    assert "not a whole .safetensors file" in refused(1, "VT070", "predict", "cut", picture)


def test_answers_that_are_no_numbers_are_refused(refused, pictures, run, tmp_path):
    """Weights may be finite and what they come to is not; the largest of NaN would be the first class."""
    shutil.copytree(run / "checkpoints" / "step-12", tmp_path / "loud")
    weights = load_file(tmp_path / "loud" / "model.safetensors")
    scale = next(name for name in weights if "norm" in name and name.endswith("weight"))
    save_file({**weights, scale: torch.full_like(weights[scale], 3e38)}, tmp_path / "loud" / "model.safetensors")
    picture = next(pictures.rglob("*.png"))
    assert "answers to 1 of 1 pictures are not finite" in refused(1, "VT044", "predict", "loud", picture)
    for typed in ((), ("--protocol", "calibration")):
        refused(1, "VT044", "eval", "loud", "--data", pictures, "--out", "run", *typed)
    refused(3, "VT101", "eval", "loud", "--data", pictures, "--protocol", "few-shot")
    model, images = vitrail.load("loud"), np.zeros((1, 1, 8, 8), np.uint8)
    with pytest.raises(VitrailError, match="not finite"):
        model.gradients(images, np.eye(2, dtype=np.float32)[:1])
    with pytest.raises(VitrailError, match="not finite"):
        model.logits_of_patches(images, np.zeros((1, 1), np.int64))


class Bomb:
    def __reduce__(self):
        return eval, ("open('executed', 'w')",)


def test_official_files_with_wrong_arrays_are_refused_and_nothing_is_executed(refused, parity, pictures, tmp_path):
    """Missing, extra and misshapen arrays and arrays of objects are listed together."""
    arrays = parity("a_token.params")
    del arrays["Transformer/encoder_norm/bias"]
    arrays["Transformer/encoderblock_1/LayerNorm_0/scale"] = np.ones(63, np.float32)
    arrays["cls"] = np.array([[[Bomb()] * 64]], dtype=object)
    np.savez(tmp_path / "wrong.npz", **arrays, surplus=np.zeros(2))
    picture = next(pictures.rglob("*.png"))
    for words in (["predict", "wrong.npz", picture], ["train", pictures, "--weights", "wrong.npz", "--out", "run"]):
        said = refused(1, "VT073", *words)
        assert re.search(r"missing +Transformer/encoder_norm/bias \(64,\)\n +extra +surplus \(2,\)\n", said)
        assert re.search(r"misshapen +Transformer/encoderblock_1/LayerNorm_0/scale: \(63,\) instead of \(64,\)\n", said)
        assert re.search(r"cls.* an array of Python objects, which are never unpickled", said)
    assert not (tmp_path / "executed").exists()
    (tmp_path / "text.npz").write_text("no zip")
    assert "is not an .npz file" in refused(1, "VT070", "predict", "text.npz", picture)
    with zipfile.ZipFile(tmp_path / "hollow.npz", "w"):
        pass
    assert "holds no model that Vitrail knows" in refused(1, "VT075", "predict", "hollow.npz", picture)


def test_errors_are_json_where_json_was_asked(vitrail_command, pictures, tmp_path):
    answer = vitrail_command("train", tmp_path / "nowhere", "--json")
    error = json.loads(answer.out)["error"]
    assert answer.status == 3 and error["code"] == "VT011" and "nowhere does not exist" in error["what"]
    assert set(error) == {"code", "what", "expected", "fix"} and answer.err.startswith("error[VT011]")
    answer = vitrail_command("trian", "--json")
    assert answer.status == 2 and json.loads(answer.out)["error"]["expected"] == "did you mean train?"
