"""Features are computed once, kept whole or not at all, and never served when anything has changed."""

from dataclasses import replace

import numpy as np
import pytest

import vitrail
from vitrail.data.batches import Pictures
from vitrail.data.sources import open_source
from vitrail.errors import DataError
from vitrail.evaluation import features as module
from vitrail.evaluation.features import FeatureCache, Features


@pytest.fixture
def model(run):
    return vitrail.load(run)


@pytest.fixture
def train(model, pictures):
    return Pictures(open_source(str(pictures)).split("train"), model.preprocessing)


def counted(model, monkeypatch):
    """How many pictures the model was asked about."""
    asked = []
    plain = type(model).represent
    monkeypatch.setattr(type(model), "represent", lambda self, images: asked.append(len(images)) or plain(self, images))
    return asked


def test_one_pass_serves_all(model, train, tmp_path, monkeypatch):
    asked = counted(model, monkeypatch)
    cache = FeatureCache(tmp_path / "features")
    first = cache.of(model, train, ("a", "b"), "train")
    assert sum(asked) == len(train.dataset) and isinstance(first.values, np.memmap)
    again = cache.of(model, train, ("a", "b"), "train")
    assert sum(asked) == len(train.dataset)
    expected = np.concatenate([model.represent(model.preprocessing(train[i])[None]) for i in range(len(train.dataset))])
    np.testing.assert_allclose(again.values, expected, atol=1e-5)
    assert (again.labels == train.dataset.targets.argmax(axis=1)).all()
    half = FeatureCache(tmp_path / "features", "float16").of(model, train, ("a", "b"), "train")
    assert half.values.dtype == np.float16 and abs(half.values - expected).max() < 5e-3


def test_what_changes_is_computed_again(model, train, tmp_path, monkeypatch):
    """Another weight, another normalisation, another pixel; not another name or label."""
    cache = FeatureCache(tmp_path)
    before = np.array(cache.of(model, train, ("a", "b"), "train").values)
    asked = counted(model, monkeypatch)
    named = replace(
        train.dataset, ids=tuple(f"x{name}" for name in train.dataset.ids), targets=train.dataset.targets[:, ::-1]
    )
    cache.of(model, Pictures(named, model.preprocessing), ("a", "b"), "train")
    assert not asked

    def changed(index, channels):
        picture = train.dataset.read(index, channels).copy()
        picture[0, 0] ^= index == 3
        return picture

    cache.of(model, Pictures(replace(train.dataset, read=changed), model.preprocessing), ("a", "b"), "train")
    assert sum(asked) == len(train.dataset)
    other = Pictures(train.dataset, replace(model.preprocessing, std=tuple(2 * s for s in model.preprocessing.std)))
    cache.of(model, other, ("a", "b"), "train")
    assert sum(asked) == 2 * len(train.dataset)
    parameter = next(model.module.parameters())
    parameter.data += 0.01
    after = cache.of(model, train, ("a", "b"), "train").values
    assert sum(asked) == 3 * len(train.dataset) and abs(after - before).max() > 0


def test_a_file_is_whole_or_not_there(model, train, tmp_path, monkeypatch):
    """Stopped in the middle nothing is left; cut off, or of another shape, it is made again."""

    def stopped(predictor, pictures):
        yield np.zeros((8, 16), dtype=np.float32)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "represented", stopped)
        with pytest.raises(KeyboardInterrupt):
            FeatureCache(tmp_path).of(model, train, ("a", "b"), "train")
    assert not list(tmp_path.iterdir())
    good = np.array(FeatureCache(tmp_path).of(model, train, ("a", "b"), "train").values)
    (file,) = tmp_path.iterdir()
    for content in (file.read_bytes()[:-40], b"", b"\x93NUMPY\x01\x00garbage"):
        file.write_bytes(content)
        assert (FeatureCache(tmp_path).of(model, train, ("a", "b"), "train").values == good).all()
    np.save(file, good[1:])
    assert (FeatureCache(tmp_path).of(model, train, ("a", "b"), "train").values == good).all()


def test_what_cannot_be_measured_is_refused():
    values, labels = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 0, 1, 0, 1])
    bad = values.copy()
    bad[4, 1] = np.nan
    for wrong, code, said in (
        (Features(bad, labels, ("a", "b")), "VT101", "row 4"),
        (Features(np.ones((6, 3), np.float32), labels, ("a", "b")), "VT102", "all 6 pictures of train the same"),
        (Features(values[:0], labels[:0], ("a", "b")), "VT012", "train has no pictures"),
    ):
        with pytest.raises(DataError, match=said) as refused:
            wrong.checked("train")
        assert refused.value.code == code
    for targets in ([[1, 1], [1, 0]], [[0, 0], [1, 0]]):
        with pytest.raises(DataError, match="1 of 2 pictures") as refused:
            module.labels_of(np.array(targets, dtype=np.float32))
        assert refused.value.code == "VT104"


def test_too_large_for_float16_is_said(model, train, tmp_path, monkeypatch):
    monkeypatch.setattr(type(model), "represent", lambda self, images: np.full((len(images), 4), 1e5, dtype=np.float32))
    with pytest.raises(DataError, match="not finite") as refused:
        FeatureCache(tmp_path, "float16").of(model, train, ("a", "b"), "train")
    assert "float32 holds larger ones" in refused.value.fix


def test_rows_are_selected_without_a_copy(monkeypatch):
    """Joined, divided and chosen again, in blocks of any size, they are the rows that NumPy gives."""
    random = np.random.default_rng(0)
    first = Features(random.normal(size=(9, 4)).astype(np.float16), np.arange(9) % 3, ("a", "b", "c"))
    second = Features(random.normal(size=(5, 4)).astype(np.float32), np.arange(5) % 2, ("a", "b", "c"))
    both = first.joined(second.subset([4, 0, 2]))
    expected = np.concatenate([first.values.astype(np.float32), second.values[[4, 0, 2]]])
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 4 * 5)
    blocks = list(both.subset([11, 3, 3, 9, 0, 7, 10]).blocks())
    assert len(blocks) == 2
    assert (np.concatenate([rows for rows, _ in blocks]) == expected[[11, 3, 3, 9, 0, 7, 10]]).all()
    rest, part = both.divided(0.25, seed=0)
    assert len(rest) + len(part) == 12 and set(part.labels) == {0, 1, 2}
    together = np.concatenate([np.asarray(rest.values), np.asarray(part.values)])
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, expected.tolist()))
    assert (both.divided(0.25, seed=0)[1].labels == part.labels).all()
