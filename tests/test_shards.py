"""Pictures inside .tar shards: read in memory, in their order, hostile ones refused."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

import vitrail
from vitrail.data import shards
from vitrail.errors import DataError


def png(shade):
    content = io.BytesIO()
    Image.fromarray(np.full((9, 7, 3), shade, np.uint8)).save(content, "PNG")
    return content.getvalue()


def write_shard(path, entries):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
        for name, content in entries:
            if isinstance(content, tarfile.TarInfo):
                shard.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_pictures_come_in_their_order_and_nothing_else(tmp_path):
    entries = [("b/1.png", png(1)), ("b/1.cls", b"3"), ("a.PNG", png(2)), (".hidden.png", png(3)),
               ("../../up.jpg", b"no picture"), ("l.png", link("l.png", "/etc/passwd"))]  # fmt: skip
    path = write_shard(tmp_path / "s.tar", entries)
    before = sorted(tmp_path.rglob("*"))
    found = list(shards.members(path))
    assert found == [(f"{path}/b/1.png", png(1)), (f"{path}/a.PNG", png(2)), (f"{path}/../../up.jpg", b"no picture")]
    assert sorted(tmp_path.rglob("*")) == before and not (tmp_path.parent.parent / "up.jpg").exists()


@pytest.mark.parametrize("kept", [700, 1500, 3000])
def test_a_shard_that_is_cut_off_is_an_error(tmp_path, kept):
    path = write_shard(tmp_path / "s.tar", [(f"{i}.png", png(i) + bytes(1000)) for i in range(3)])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="cannot be read to its end"):
        list(shards.members(path))


def test_a_header_that_asks_for_more_than_a_picture_is_not_obeyed(tmp_path, monkeypatch):
    """A name of a megabyte, which tarfile would read whole; and a picture that is too large, of which nothing is read."""
    monkeypatch.setattr(shards, "MAX_BYTES", 2**16)
    with pytest.raises(DataError, match="a part of"):
        list(shards.members(write_shard(tmp_path / "name.tar", [("n" * 2**20 + ".png", png(1))])))
    path = write_shard(tmp_path / "large.tar", [("large.png", bytes(2**17)), ("small.png", png(1))])
    assert [content for _, content in shards.members(path)] == [b"", png(1)]


def test_no_shard_at_all(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(DataError, match=r"an uncompressed \.tar"):
        list(shards.members(tmp_path / "s.tar"))


def test_embedding_a_shard_is_embedding_its_pictures(run, tmp_path, vitrail_command):
    contents = [png(shade) for shade in (10, 200)]
    path = write_shard(tmp_path / "s.tar", [("x.png", contents[0]), ("bad.png", b"none"), ("y.png", contents[1])])
    done = vitrail_command("embed", run, path, "--out", tmp_path / "e.npy", "--json")
    assert done.status == 3 and json.loads(done.out)["rows"] == 3 and json.loads(done.out)["errors"] == 1
    alone = vitrail.embed(run, contents, tmp_path / "alone.npy")
    assert alone.count == 2
    values = np.load(tmp_path / "e.npy")
    np.testing.assert_array_equal(values[[0, 2]], np.load(tmp_path / "alone.npy"))
    assert np.isnan(values[1]).all()
    assert vitrail.embed(run, [str(path)], tmp_path / "python.npy").count == 3
