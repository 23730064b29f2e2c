"""Pictures to tables of features and back to the pictures most alike: whole files or none, and nothing from another model."""

import json

import numpy as np
import pytest

import vitrail
from vitrail.deployment import tables
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.images import read_picture

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'vitrail[parquet]'")
SUFFIXES = (".parquet", ".npy")


@pytest.fixture
def files(pictures, tmp_path):
    """A folder of pictures, a broken one, and a list of both."""
    paths = sorted(str(path) for path in pictures.rglob("*.png"))
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{path},a\n" for path in [*paths[:3], bad, *paths[3:5]])
    )
    return paths, bad, tmp_path / "list.csv"


def by_hand(run, paths):
    model = vitrail.load(run)
    return model.represent(np.stack([model.preprocessing(read_picture(path, 1)) for path in paths]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_for_every_input_in_order(run, files, tmp_path, suffix, vitrail_command, monkeypatch):
    """Also over the border of a block: what cannot be read has a row that says why, and the status is 3."""
    monkeypatch.setattr(tables, "ROWS", 4)
    paths, bad, listing = files
    out = tmp_path / f"features{suffix}"
    answer = vitrail_command("embed", run, listing, paths[7], "--out", out, "--json")
    assert answer.status == 3 and json.loads(answer.out) | {"model": ""} == {
        "written": str(out), "rows": 7, "errors": 1, "dim": 16, "model": ""
    }  # fmt: skip
    wanted = [*paths[:3], str(bad), *paths[3:5], paths[7]]
    if suffix == ".parquet":
        table = parquet.read_table(out).to_pydict()
        files_, status, values = table["file"], table["status"], table["embedding"]
        assert values[3] is None
    else:
        lines = [json.loads(line) for line in tables.beside(out).read_text().splitlines()][1:]
        files_, status, values = [line["file"] for line in lines], [line["status"] for line in lines], np.load(out)
        assert np.isnan(values[3]).all() and values.dtype == np.float32
    assert files_ == wanted and status == ["ok"] * 3 + ["error"] + ["ok"] * 3
    good = [row for number, row in enumerate(values) if number != 3]
    np.testing.assert_allclose(np.array(good), by_hand(run, [name for name in wanted if name != str(bad)]), atol=1e-5)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_nearest_are_those_of_brute_force(run, pictures, files, tmp_path, suffix, monkeypatch, vitrail_command):
    monkeypatch.setattr(tables, "ROWS", 7)
    paths, bad, _ = files
    out = tmp_path / f"features{suffix}"
    done = vitrail.embed(run, [bad, pictures], out)
    assert (done.count, done.errors) == (41, 1)
    values = by_hand(run, paths).astype(float)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found = vitrail.search(out, [paths[9], bad, paths[30]], vitrail.load(run), top=6)
    assert isinstance(found[1], DataError)
    for answer, query in ((found[0], 9), (found[2], 30)):
        cosines = values @ values[query]
        np.testing.assert_allclose([hit.cosine for hit in answer], np.sort(cosines)[::-1][:6], atol=1e-5)
        np.testing.assert_allclose(
            [cosines[paths.index(hit.file)] for hit in answer], [hit.cosine for hit in answer], atol=1e-5
        )
        assert answer[0].cosine == pytest.approx(1, abs=1e-5)
    shown = vitrail_command("search", out, paths[9], "--model", run, "--top", 2)
    assert shown.status == 0 and len(shown.out.splitlines()) == 2 and shown.out.splitlines()[0].endswith("1.000")


def test_another_model_is_refused(run, files, tmp_path, vitrail_command):
    """Other weights, and the same at another size."""
    paths, *_ = files
    vitrail.embed(run, paths[:4], tmp_path / "features.npy")
    other = vitrail.load(run)
    next(other.module.parameters()).data += 0.01
    with pytest.raises(UsageError) as refused:
        vitrail.search(tmp_path / "features.npy", paths[:1], other)
    assert refused.value.code == "VT105"
    answer = vitrail_command("search", tmp_path / "features.npy", paths[0], "--model", run, "--image-size", 16)
    assert answer.status == 2 and "another preprocessing" in answer.err


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_appears_whole_or_not_at_all(run, files, tmp_path, suffix, monkeypatch):
    paths, *_ = files
    out = tmp_path / "new" / f"features{suffix}"

    monkeypatch.setattr("vitrail.deployment.embeddings.AT_ONCE", 2)
    monkeypatch.setattr(tables, "ROWS", 2)

    def stopped():
        yield from paths[:7]
        assert list((tmp_path / "new").iterdir())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vitrail.embed(run, stopped(), out)
    assert not list((tmp_path / "new").iterdir())
    vitrail.embed(run, paths[:3], out)
    before = out.read_bytes()
    with pytest.raises(VitrailError, match="exists already"):
        vitrail.embed(run, paths, out)
    assert out.read_bytes() == before
    with pytest.raises(DataError, match="nothing to embed"):
        vitrail.embed(run, [], tmp_path / f"none{suffix}")
    with pytest.raises(UsageError, match=r"ends in .parquet or .npy"):
        vitrail.embed(run, paths, tmp_path / "features.csv")


def test_damaged_tables_are_refused(run, files, tmp_path):
    """Cut off, without names, names of another table, numbers that are none, no table at all."""
    paths, *_ = files
    good = tmp_path / "good.npy"
    vitrail.embed(run, paths[:5], good)
    vitrail.embed(run, paths[:5], tmp_path / "good.parquet")
    names, values = tables.beside(good).read_text(), good.read_bytes()
    lines = names.splitlines(keepends=True)
    nan = np.load(good)
    nan[2, 1] = np.nan
    np.save(tmp_path / "nan.npy", nan)
    cases = [(values[:-9], names), (values, ""), (values, lines[0] + '{"file": 1'), (values, "".join(lines[:-1])),
             (values, names + lines[1]), (values, '{"model": "x", "dim": -1}\n'), (values, "[" * 10_000),
             ((tmp_path / "nan.npy").read_bytes(), names)]  # fmt: skip
    for number, (content, text) in enumerate(cases):
        path = tmp_path / f"case{number}.npy"
        path.write_bytes(content)
        tables.beside(path).write_text(text)
        with pytest.raises(VitrailError) as refused:
            vitrail.search(path, paths[:1], run)
        assert refused.value.code == "VT106", number
    for number, content in enumerate([(tmp_path / "good.parquet").read_bytes()[:-30], b"PAR1", b""]):
        path = tmp_path / f"case{number}.parquet"
        path.write_bytes(content)
        with pytest.raises(VitrailError) as refused:
            vitrail.search(path, paths[:1], run)
        assert refused.value.code == "VT106"
    table = parquet.read_table(tmp_path / "good.parquet")
    parquet.write_table(table.drop_columns(["file"]), tmp_path / "no_names.parquet")
    with pytest.raises(VitrailError, match="its column file is missing"):
        vitrail.search(tmp_path / "no_names.parquet", paths[:1], run)


def test_without_pyarrow_npy_still_works(run, files, tmp_path, monkeypatch):
    paths, *_ = files
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pyarrow, which is not installed") as refused:
        vitrail.embed(run, paths[:2], tmp_path / "features.parquet")
    assert refused.value.code == "VT107"
    assert vitrail.embed(run, paths[:2], tmp_path / "features.npy").count == 2
