"""The built-in fashion-mini and the full Fashion-MNIST: what they hold, where they are found, how they are fetched."""

import gzip
import hashlib
import socket
import threading
import zlib
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import numpy as np
import pytest

from conftest import missing_package
from vitrail.data import fashion
from vitrail.data.sources import open_source
from vitrail.errors import DataError, VitrailError


def refused(text, code, *mentions):
    with pytest.raises(DataError) as caught:
        open_source(text)
    assert caught.value.code == code, caught.value
    for mention in mentions:
        assert mention in str(caught.value)


def test_fashion_mini_is_what_it_says():
    """10,000 and 2,000 images, 1000 and 200 a class, in one file of at most 6 MB with a stated hash."""
    content = files("vitrail.data").joinpath("fashion-mini.npz").read_bytes()
    assert len(content) <= 6_000_000 and hashlib.sha256(content).hexdigest() == fashion.MINI_SHA256
    for split, per_class in (("train", 1000), ("test", 200)):
        images, labels = fashion.mini()[split]
        assert images.shape == (10 * per_class, 28, 28) and images.dtype == np.uint8
        assert Counter(labels.tolist()) == dict.fromkeys(range(10), per_class)
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) > 0.99 * len(images)
    source = open_source("fashion-mini")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 9000, "val": 1000, "test": 2000}
    assert source.classes == fashion.CLASSES and set(source.counts()["val"].values()) == {100}
    picture = source.split("test").read(7, 3)
    assert np.array_equal(picture, np.stack([fashion.mini()["test"][0][7]] * 3, axis=-1))


def test_a_damaged_built_in_file_is_noticed(monkeypatch):
    monkeypatch.setattr(fashion, "MINI_SHA256", "0" * 64)
    with pytest.raises(DataError, match="damaged") as caught:
        fashion.mini()
    assert caught.value.code == "VT055"


def test_the_full_set_and_the_mini_drawn_from_it(debian_fashion):
    """60,000 and 10,000 images as the files hold them, and fashion-mini again bit for bit."""
    full = fashion.full(debian_fashion)
    for split, prefix, count in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        images, labels = full[split]
        raw = gzip.decompress((debian_fashion / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        assert images.shape == (count, 28, 28) and images.tobytes() == raw[16:]
        assert Counter(labels.tolist()) == dict.fromkeys(range(10), count // 10)
    drawn, mini = fashion.draw_mini(full), fashion.mini()
    if "ng" not in zlib.ZLIB_RUNTIME_VERSION:  # zlib-ng compresses the same arrays to other bytes
        assert hashlib.sha256(drawn).hexdigest() == fashion.MINI_SHA256
    for split, (images, labels) in mini.items():  # every image is one of the official set, with its label
        known = {image.tobytes(): label for image, label in zip(*full[split], strict=True)}
        assert all(known[image.tobytes()] == label for image, label in zip(images, labels, strict=True))


def test_what_packages_are_missing_is_said_aloud(monkeypatch):
    """Skipped in a plain run, failed where the packages were promised."""
    monkeypatch.delenv("VITRAIL_REQUIRE_PACKAGES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install dataset-x"):
        missing_package("dataset-x")
    monkeypatch.setenv("VITRAIL_REQUIRE_PACKAGES", "1")
    with pytest.raises(pytest.fail.Exception, match="dataset-x"):
        missing_package("dataset-x")


@pytest.fixture
def small_official(tmp_path, monkeypatch):
    """Four tiny files in the official format, with their hashes, in a folder that a server can offer."""
    folder, official = tmp_path / "origin", {}
    folder.mkdir()
    for name, (_, shape) in fashion.OFFICIAL.items():
        shape = (20, *shape[1:])
        values = (np.arange(np.prod(shape)) % 10).astype(np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
        content = gzip.compress(header + values.tobytes(), mtime=0)
        (folder / name).write_bytes(content)
        official[name] = (hashlib.sha256(content).hexdigest(), shape)
    monkeypatch.setattr(fashion, "OFFICIAL", official)
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion, "FETCHED", tmp_path / "fetched")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


@pytest.fixture
def origin(small_official, monkeypatch):
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    handler = partial(SimpleHTTPRequestHandler, directory=small_official)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def unfetched(origin, code, *mentions):
    with pytest.raises(DataError) as caught:
        fashion.fetch(origin=origin)
    assert caught.value.code == code, caught.value
    for mention in mentions:
        assert mention in str(caught.value)


def test_fetch(origin, small_official, tmp_path):
    """Four files, each checked; then the source opens; what is there is not fetched again, what is damaged is."""
    refused("fashion-mnist", "VT056", "vitrail data fetch fashion-mnist", str(tmp_path / "debian"))
    assert fashion.fetch(origin=origin) == tmp_path / "fetched"
    for path in small_official.iterdir():
        assert (tmp_path / "fetched" / path.name).read_bytes() == path.read_bytes()
    assert len(open_source("fashion-mnist").split("test")) == 20
    assert len(open_source(f"fashion-mnist:{small_official}").split("test")) == 20
    refused(f"fashion-mnist:{tmp_path / 'none'}", "VT056", str(tmp_path / "none"))
    damaged, other = (tmp_path / "fetched" / name for name in list(fashion.OFFICIAL)[:2])
    damaged.write_bytes(b"damaged")
    stamp = other.stat().st_mtime_ns
    fashion.fetch(origin=origin)
    assert damaged.read_bytes() == (small_official / damaged.name).read_bytes() and other.stat().st_mtime_ns == stamp
    fashion.fetch(origin="http://127.0.0.1:1")  # nothing is missing, so nobody is asked


def test_a_wrong_file_is_not_kept(origin, small_official, tmp_path):
    wrong = list(fashion.OFFICIAL)[1]
    (small_official / wrong).write_bytes(b"not this one")
    unfetched(origin, "VT055", wrong, fashion.OFFICIAL[wrong][0])
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == [next(iter(fashion.OFFICIAL))]
    (small_official / wrong).unlink()
    unfetched(origin, "VT057", "404", wrong)


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut off"])
def test_a_host_that_answers_nonsense(small_official, tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        unfetched(f"http://127.0.0.1:{server.getsockname()[1]}", "VT055" if b"OK" in answer else "VT057")
        thread.join()
    assert not list((tmp_path / "fetched").iterdir())


def test_a_host_that_does_not_answer(small_official, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    unfetched(address, "VT057", address, "could not be fetched", "vitrail train fashion-mnist:FOLDER")
    for nonsense in ("nowhere", "http://", "http://[::1", "http://a b"):
        unfetched(nonsense, "VT057", nonsense)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VitrailError, match="file") as caught:
        fashion.fetch(tmp_path / "file", address)
    assert caught.value.code == "VT062"


def test_damaged_official_files(small_official):
    """Any byte changed: a clear error, or the same array where gzip does not care."""
    path = small_official / list(fashion.OFFICIAL)[2]
    content = path.read_bytes()
    good = fashion.full(small_official)["test"][0]
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            assert np.array_equal(fashion.full(small_official)["test"][0], good)
        except DataError as error:
            assert error.code == "VT055"  # noqa: PT017
    for wrong in (content[:-9], gzip.compress(gzip.decompress(content)[:-1]), gzip.compress(b"x" * 15_696), b""):
        path.write_bytes(wrong)
        refused(f"fashion-mnist:{small_official}", "VT055", path.name)
