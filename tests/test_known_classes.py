"""Weights whose classes differ: matched by name, the others new, and told."""

import json

import pytest
import torch

import tiny
import vitrail
from vitrail.checkpoints.adapt import adapt, known_classes
from vitrail.checkpoints.loading import read
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import initial_model


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Pictures of three classes, of which the tiny run knows one, at another place."""
    names = ("a new one", "light below", "one more")
    return tiny.write_pictures(tmp_path_factory.mktemp("other") / "data", classes=names)


def test_rows_are_matched_by_name(run):
    """In another order, with one that is new between them; the body is the same."""
    checkpoint = read(run)
    names = ("light below", "new", "dark below")
    adapted = adapt(checkpoint, names, keep_classes=True)
    for part in ("weight", "bias"):
        old, new = checkpoint.weights[f"head.linear.{part}"], adapted.weights[f"head.linear.{part}"]
        assert torch.equal(new[0], old[1]) and torch.equal(new[2], old[0]) and not new[1].any() and old.any()
    assert adapted.classes == names and known_classes(checkpoint, names) == ("light below", "dark below")
    assert not adapt(checkpoint, names).weights["head.linear.weight"].any()


def test_what_is_kept_and_what_is_new_is_told(vitrail_command, run, other, tmp_path):
    flags = ["--weights", run, "--epochs", "1", "--batch-size", "8"]
    text = " ".join(plan_run(str(other), Asked(weights=str(run)))[1].why)
    assert (
        "1 class is kept, matched by name; 2 are new: a new one, one more; 1 of the weights is dropped: dark below"
        in text
    )
    done = vitrail_command("train", other, "--out", tmp_path / "run", *flags)
    assert done.status == 0, done.err
    told = "2 are new: a new one, one more"
    assert told in done.err and told in (tmp_path / "run" / "report.html").read_text()
    assert vitrail.load(tmp_path / "run").classes == ("a new one", "light below", "one more")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["run"]
    assert config["keep_classes"] is True


def test_training_goes_on_where_all_classes_are_known(run, pictures):
    """The first answers are those of the weights."""
    source, planned = plan_run(str(pictures), Asked(weights=str(run)))
    assert "the head is kept: the weights know all 2 classes by name" in planned.why
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(initial_model(planned, source)(images), vitrail.load(run).module(images))
    source, planned = plan_run(str(pictures), Asked(weights=str(run), settings={"keep_classes": "false"}))
    with torch.no_grad():
        assert not initial_model(planned, source)(images).any()


def test_the_layer_before_the_head_stays_with_the_classes_that_read_it(pictures, run, tmp_path):
    tiny.tiny(pictures, tmp_path / "tanh", model__head="tanh", model__head__hidden=12, model__head__classes=2)
    source, planned = plan_run(str(pictures), Asked(weights=str(tmp_path / "tanh")))
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(initial_model(planned, source)(images), vitrail.load(tmp_path / "tanh").module(images))
    source, planned = plan_run(str(pictures), Asked(weights=str(tmp_path / "tanh"), settings={"keep_classes": "false"}))
    with torch.no_grad():
        assert not initial_model(planned, source)(images).any()


def test_the_papers_head_is_of_zeros(run, pictures):
    source, planned = plan_run(str(pictures), Asked("paper-fine-tuning", weights=str(run)))
    assert not planned.keep_classes
    with torch.no_grad():
        assert not initial_model(planned, source)(torch.rand(3, 1, 14, 14)).any()
