"""The whole report: counts, verdicts, what is refused; and that it sees a blinded model and shuffled labels."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

import tiny
from vitrail.checkpoints import native
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.commands.robustness import text
from vitrail.data.batches import Pictures
from vitrail.data.sources import Dataset
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.published import Row, compared, rows, verdict
from vitrail.evaluation.robustness import GROUPS, Audience, Learning, chosen_groups, measured
from vitrail.evaluation.trials import Pair, Subject, Tally
from vitrail.model.backbone import build
from vitrail.model.heads import LinearHead
from vitrail.model.resnet import ResNetConfig
from vitrail.model.trunks import PostActivation
from vitrail.preprocessing import Preprocessing
from vitrail.statistics import mcnemar, wilson_interval

SIZE = (14, 28)
ROW = Row("e", "m", "c", "70", "top-1 %", "IPViT 3.1", "ViT", "occlusion", "random, black", "0.5", "ViT above CNN")


class Bright:
    """Light or dark, by the mean of all pixels that are not black, or of those at one place alone."""

    preprocessing = Preprocessing(SIZE, 1, mean=(0.0,), std=(1.0,))
    classes, multi_label = ("dark", "light"), False

    def __init__(self, place=(slice(None), slice(None))):
        self.place = place

    def logits(self, images):
        seen = images[:, 0][(slice(None), *self.place)].reshape(len(images), -1).astype(np.float32)
        mean = seen.sum(axis=1) / np.maximum(1, (seen > 0).sum(axis=1))
        return np.stack([128 - mean, mean - 128], axis=1).astype(np.float32)

    def represent(self, images):
        return images.reshape(len(images), -1).astype(np.float32)

    def gradients(self, images, targets):
        sign = np.where(targets[:, 0] > 0, 1.0, -1.0).astype(np.float32)
        return self.logits(images), np.broadcast_to(sign[:, None, None, None], images.shape).copy()


class Blind(Bright):
    def logits(self, images):
        return np.zeros((len(images), 2), np.float32)


WHOLE, SPOT = Bright(), Bright((slice(6, 7), slice(12, 14)))


def pictures(count=80, shuffled=False):
    luck = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = luck.integers(20, 120, (count, *SIZE, 1)) + 110 * labels[:, None, None, None]
    targets = np.eye(2, dtype=np.float32)[luck.permutation(labels) if shuffled else labels]
    ids = tuple(f"{index}.png" for index in range(count))
    return Pictures(Dataset(ids, targets, lambda index, channels: images[index].astype(np.uint8)), WHOLE.preprocessing)


def subject(name, predictor, kind):
    facts = {"parameters": 2, "words": "two numbers", "image_size": list(SIZE)}
    if kind == "CNN":
        return Subject(name, predictor, kind, (7, 7), (2, 4), reason="[VT041] it has no attention", facts=facts)

    def without(images, kept):
        assert kept.shape[1] >= 1
        return predictor.logits(images)

    def saliency(images):
        return np.tile(np.arange(8.0).reshape(2, 4), (len(images), 1, 1))

    return Subject(name, predictor, kind, (7, 7), (2, 4), saliency, without, facts=facts)


def report(vit=WHOLE, cnn=SPOT, groups=("occlusion",), data=None, few=20, told=lambda line: None):
    subjects = (subject("vit", vit, "ViT"), subject("cnn", cnn, "CNN")) if cnn else (subject("vit", vit, "ViT"),)
    data = data or pictures()
    audience = Audience(subjects, data, data)
    record = measured([audience], groups, 0, few, Learning(5, 8), told)
    return record | {"published": compared(record), "data": "two classes", "split": "test", "saliency": "attention"}


def values(record, group, name, model="vit"):
    curve = next(c for c in record["curves"] if (c["group"], c["name"]) == (group, name))
    return [point["answers"][model]["value"] for point in curve["points"]]


def verdicts(record, experiment):
    return {row["verdict"] for row in record["published"] if row["experiment"] == experiment}


@pytest.fixture(scope="module")
def whole_report():
    return report(groups=GROUPS)


def test_a_model_that_sees_everything_outlasts_one_that_sees_a_spot(whole_report):
    assert values(whole_report, "clean", "unchanged") == [1.0]
    assert min(values(whole_report, "occlusion", "random, black")) > 0.95
    assert values(whole_report, "occlusion", "random, black", "cnn")[2] < 0.9
    assert verdicts(whole_report, "random PatchDrop") == {"shape only"}


def test_a_blinded_model_is_seen(whole_report):
    blind = report(Blind(), groups=("occlusion", "permutation"))
    assert set(values(blind, "occlusion", "random, black")) == {0.5} == set(values(blind, "clean", "unchanged"))
    assert verdicts(whole_report, "random PatchDrop") == {"shape only"}
    assert verdicts(blind, "random PatchDrop") == verdicts(blind, "patch shuffle") == {"differs"}


def test_shuffled_labels_are_seen(whole_report):
    record = report(data=pictures(shuffled=True))
    assert abs(values(record, "clean", "unchanged")[0] - 0.5) < 0.2
    assert verdicts(record, "random PatchDrop") == {"differs"} != verdicts(whole_report, "random PatchDrop")


def test_every_curve_says_how_many_and_how_sure(whole_report):
    groups = [curve["group"] for curve in whole_report["curves"]]
    assert list(dict.fromkeys(groups)) == ["clean", *GROUPS]
    for curve in whole_report["curves"]:
        few = curve["group"] == "attacks"
        for point in curve["points"]:
            for answer in point["answers"].values():
                assert answer["asked"] == (20 if few else 80), curve["name"]
                if answer["n"] and curve["measure"] == "top-1":
                    hits = round(answer["value"] * answer["n"])
                    assert answer["interval"] == pytest.approx(list(wilson_interval(hits, answer["n"])))
            if curve["measure"] == "top-1" and "cnn" in point["pairs"]:
                pair = point["pairs"]["cnn"]
                ours, theirs = (point["answers"][name]["value"] * answer["n"] for name in ("vit", "cnn"))
                assert round(ours - theirs) == pair["only_first"] - pair["only_second"]
                assert pair["p"] == mcnemar(pair["only_first"], pair["only_second"])
    json.dumps(whole_report, allow_nan=False)


def test_salient_tokens_are_the_ones_that_go():
    """Saliency 0 to 7 in every image, and a model that is right where it is shown the last token, wrong elsewhere."""

    def without(images, kept):
        return WHOLE.logits(images) * np.where((kept == 7).any(axis=1), 1, -1)[:, None]

    asked, data = replace(subject("vit", WHOLE, "ViT"), without=without), pictures(30)
    record = measured([Audience((asked,), data, data)], ("tokens",), 0, 20, Learning(5, 8), lambda line: None)
    assert set(values(record, "tokens", "salient (the model's own)")) == {0.0}
    assert set(values(record, "tokens", "non-salient (the model's own)")) == {1.0}


def test_a_model_without_attention_is_named_and_nothing_stands_in_for_it(whole_report):
    for curve in whole_report["curves"]:
        own = "the model's own" in curve["name"] or curve["group"] == "tokens"
        assert curve["absent"] == ({"cnn": "[VT041] it has no attention"} if own else {}), curve["name"]
        assert all(("cnn" in point["answers"]) != own for point in curve["points"])


def test_the_same_seed_gives_the_same_report_whatever_the_batches(whole_report, monkeypatch):
    import vitrail.evaluation.robustness as robustness

    monkeypatch.setattr(robustness, "evaluation_size", lambda preprocessing: 30)
    lines = []
    again = report(groups=GROUPS, told=lines.append)
    assert len([line for line in lines if "pictures" in line]) == 3
    for ours, theirs in zip(again["curves"], whole_report["curves"], strict=True):
        for a, b in zip(ours["points"], theirs["points"], strict=True):
            for name in a["answers"]:
                same = {key: value for key, value in b["answers"][name].items() if key != "interval"}
                assert {key: a["answers"][name][key] for key in same} == pytest.approx(same), ours["name"]


def test_models_of_two_sizes_stand_side_by_side():
    class Small(Bright):
        preprocessing = Preprocessing((8, 8), 1, mean=(0.0,), std=(1.0,))

    data = pictures()
    small = Pictures(data.dataset, Small.preprocessing)
    audiences = [Audience((subject("vit", WHOLE, "ViT"),), data), Audience((subject("cnn", Small(), "CNN"),), small)]
    record = measured(audiences, ("permutation",), 0, 20, Learning(), lambda line: None)
    curve = next(c for c in record["curves"] if c["group"] == "permutation")
    names = {point["label"]: (set(point["answers"]), set(point["pairs"])) for point in curve["points"]}
    assert names["2x2"] == ({"vit", "cnn"}, {"cnn"})
    assert names["14x14"] == ({"vit"}, set()) and names["8x8"] == ({"cnn"}, set())


def test_no_images_no_other_class_no_training_pictures():
    with pytest.raises(DataError) as told:
        report(data=pictures(0))
    assert told.value.code == "VT120"
    one = pictures()
    one = replace(one, dataset=one.dataset.subset(np.arange(0, 80, 2)))
    record = report(groups=("texture", "shape bias", "permutation"), data=one)
    assert set(record["left_out"]) == {"texture", "shape bias"}
    assert {curve["group"] for curve in record["curves"]} == {"clean", "permutation"}
    audience = Audience((subject("vit", WHOLE, "ViT"),), pictures())
    with pytest.raises(DataError, match="learn an adversarial patch") as told:
        measured([audience], ("adversarial patch",), 0, 5, Learning(), lambda line: None)
    assert told.value.code == "VT120"


def test_parts_are_chosen_by_name():
    assert chosen_groups("all") == GROUPS
    assert chosen_groups("shape bias, occlusion") == ("occlusion", "shape bias")
    with pytest.raises(UsageError, match="occlusion") as told:
        chosen_groups("oclusion")
    assert told.value.code == "VT121"


def ours(value, low, high):
    return {"value": value, "interval": [low, high]}


def test_the_rule_of_the_verdicts():
    inside, outside = ours(0.72, 0.69, 0.75), ours(0.5, 0.47, 0.53)
    assert verdict(ROW, inside, True) == "same"
    assert verdict(ROW, outside, True) == "shape only"
    assert verdict(ROW, inside, False) == verdict(ROW, outside, False) == "differs"
    assert verdict(ROW, inside, None) == "not measured"
    # Unsure, inexact or another quantity: never the same.
    assert verdict(replace(ROW, source="Fig 27 (order unsure)"), inside, True) == "shape only"
    assert verdict(replace(ROW, value="up to 70"), inside, True) == "shape only"
    assert verdict(replace(ROW, value="70", unit="mCE"), ours(70, 60, 80), True) == "shape only"
    assert verdict(replace(ROW, value="0.32+-0.16", unit="corr"), ours(0.3, 0.29, 0.33), True) == "same"
    assert verdict(replace(ROW, value="0.32+-0.16", unit="corr"), ours(0.4, 0.39, 0.41), True) == "shape only"
    assert verdict(ROW, ours(0.72, 0.60, 0.84), True) == "shape only"  # so few images that anything would fit
    # Where no order is claimed the number alone decides.
    assert verdict(replace(ROW, shape=""), inside, None) == "same"
    assert verdict(replace(ROW, shape=""), outside, None) == "differs"
    assert verdict(ROW, None, True) == "shape only"


def test_the_published_rows_are_whole_and_the_unsure_ones_known():
    every = rows()
    assert len(every) == 52 and sum(row.unsure for row in every) == 2
    assert {row.experiment for row in every if row.unsure} == {"PatchDrop salient", "PatchDrop non-salient"}
    assert [row.number for row in every[:4]] == [0.001, 0.7, 0.37, None]
    assert next(row for row in every if "derived" in row.value).number == 0.51


def test_unsure_rows_are_never_the_same_even_where_the_number_is_ours(whole_report):
    found = json.loads(json.dumps(whole_report))
    curve = next(c for c in found["curves"] if c["name"] == "salient (the model's own), black")
    curve["points"][2]["answers"]["vit"] |= {"value": 0.713, "interval": [0.70, 0.72]}
    row = next(row for row in compared(found) if row["experiment"] == "PatchDrop salient")
    assert row["unsure"] and row["verdict"] == "shape only"  # below random, which is above 0.95
    assert next(r for r in compared(found) if r["experiment"] == "PatchDrop")["verdict"] == "differs"


def test_without_a_cnn_an_order_is_not_judged():
    record = report(cnn=None)
    assert verdicts(record, "random PatchDrop") == verdicts(record, "token correlation (PatchDrop)") == {"not measured"}
    assert all(row["why"] for row in record["published"] if row["verdict"] == "not measured")


def test_tallies_are_the_numbers_of_all_images_at_once():
    luck = np.random.default_rng(0)
    values, tally = luck.normal(size=(6, 50)), Tally()
    values[2, :10] = np.nan
    for part in values:
        tally.add(part)
    known = values[~np.isnan(values)]
    record = tally.record("correlation")
    assert (record["asked"], record["n"]) == (300, 290)
    half = 1.959963984540054 * known.std() / np.sqrt(290)
    assert record["interval"] == pytest.approx([known.mean() - half, known.mean() + half])
    assert Tally(asked=3).record("top-1")["value"] is None
    pair = Pair()
    pair.add(np.array([1.0, 1.0, 0.0, np.nan]), np.array([0.0, 1.0, 1.0, 0.0]))
    assert (pair.first, pair.second) == (1, 1)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory, pictures):
    """A ResNet for the tiny pictures, as a model folder; not trained."""
    config = ResNetConfig(PostActivation((1,), 32), LinearHead(2), (8, 8), 1)
    folder = tmp_path_factory.mktemp("cnn") / "resnet"
    model = build(config, 0)
    preprocessing = Preprocessing((8, 8), 1, mean=(0.5,), std=(0.5,))
    native.from_native(Checkpoint(config, model.state_dict(), preprocessing, tiny.CLASSES), folder)
    return folder


def test_the_command_writes_a_record_a_figure_and_a_table(run, cnn, vitrail_command, tmp_path):
    parts = "parts=occlusion,tokens,attacks,adversarial patch"
    settings = [word for text in (parts, "images=4", "attacked=2", "patch_steps=2") for word in ("--set", text)]
    typed = ("eval", run, "--protocol", "robustness", "--beside", cnn, "--out", tmp_path, *settings)
    called = vitrail_command(*typed)
    assert called.status == 0, called.err
    place = tmp_path / "eval" / "robustness"
    record = json.loads((place / "test.json").read_text())
    assert [model["kind"] for model in record["models"]] == ["ViT", "CNN"] and record["n"] == 4
    assert (place / "test.png").read_bytes().startswith(b"\x89PNG")
    table = list(csv.DictReader((place / "test-published.csv").read_text().splitlines()))
    assert len(table) == len(record["published"]) == 52 and table[0]["verdict"] in ("same", "shape only", "differs")
    assert "beside the published numbers" in called.out and "robustness: pictures 1 to 4 of 4" in called.err
    assert max(len(line) for line in called.out.splitlines() if str(tmp_path.parent) not in line) <= 80
    for whole in {curve["name"] for curve in record["curves"]}:
        assert f"  {whole} " in called.out
    unwrapped = " ".join(called.out.split())
    for experiment in {row["experiment"] for row in record["published"]}:
        assert experiment in unwrapped, "no name is cut"
    absent = {c["name"]: c["absent"] for c in record["curves"] if c["absent"]}
    assert "VT041" in absent["salient (the model's own), black"]["resnet"]
    assert called.out.count("- resnet: [VT041] ") == 1, "said once, and where people read"


def test_long_names_of_models_are_whole_and_their_numbers_below_them():
    """Two runs whose names differ at the end alone."""
    one, two = "vits14-fine-tuned-on-clipart-a", "vits14-fine-tuned-on-clipart-b"
    models = [{"name": n, "kind": "ViT", "parameters": 9, "image_size": [8, 8], "patch": [4, 4]} for n in (one, two)]
    answers = {one: {"value": 0.125}, two: {"value": 0.5}}
    curve = {"group": "clean", "name": "unchanged", "points": [{"answers": answers, "pairs": {}}], "absent": {}}
    record = {"data": "d", "split": "test", "n": 5, "attacked": 2, "models": models, "curves": [curve], "published": [],
              "checks": [{"model": two, "check": "fooled", "holds": False}]}  # fmt: skip
    lines = text(record)
    (head,) = (line for line in lines if line.startswith("mean over the points"))
    (row,) = (line for line in lines if "unchanged" in line)
    for name, value in ((one, "12.5"), (two, "50.0")):
        end = head.index(name) + len(name)
        assert row[:end].endswith(f" {value}")
        assert any(line.startswith(f"  {name} ") for line in lines)
    assert f"  fails for {two}: fooled" in lines


def test_the_command_refuses_before_it_writes(run, vitrail_command, tmp_path):
    called = vitrail_command("eval", run, "--protocol", "robustness", "--out", tmp_path, "--set", "parts=oclusion")
    assert called.status == 2 and "VT121" in called.err and not list(tmp_path.iterdir())
    called = vitrail_command("eval", run, "--protocol", "robustness", "--out", tmp_path, "--set", "attacked=0")
    assert called.status == 2 and not list(tmp_path.iterdir())
