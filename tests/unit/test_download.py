"""CIFAR-10 from a server of our own, which answers in every way in which a server can fail."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import data, download, files
from helpers.config import InputError, get_config

PER_CLASS = {"train": 5, "test": 2}
CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
BAD_LENGTHS = ("abc", "5, 5", "-5")
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` (path -> content); ``faults`` (path -> list) are used up one a request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked, self.ranges = {}, {}, [], True
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.stop = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        server, path = self.server, self.path.split("?")[0]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        server.asked.append((self.command, path, start))
        faults = server.faults.get(path, [])
        fault = faults.pop(0) if faults and body else None
        if isinstance(fault, int):
            return self.send_error(fault)
        if fault and fault.startswith("to "):
            self.send_response(302)
            self.send_header("Location", fault[3:])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if path not in server.files:
            return self.send_error(404)
        content = server.files[path]
        if not server.ranges:
            start = 0
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault in BAD_LENGTHS:
            self.send_header("Content-Length", fault)
        elif fault != "no length":
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        rest = content[start:]
        if fault == "damaged":
            rest = rest[:-1] + bytes([rest[-1] ^ 1])
        elif fault in ("cut", "stalls"):
            rest = rest[: len(rest) // 2]
        elif fault == "nothing":
            rest = b""
        if body:
            with contextlib.suppress(ConnectionError):
                self.wfile.write(rest)
                self.wfile.flush()
            if fault == "stalls":
                server.stop.wait(5)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.files["/x"] = CONTENT
        yield running
        running.stop.set()
        running.shutdown()
        thread.join()


def fetch(server, folder, name="/x"):
    path = download._fetch(f"{server.url}{name}", folder / "x", MD5, progress=False)
    assert path.read_bytes() == CONTENT
    assert [p.name for p in folder.iterdir()] == ["x"], "no .part is left"


# ------------------------------------------------------------------------------------------------
# one file


@pytest.mark.parametrize(
    "faults",
    [
        [], ["damaged"], ["cut"], ["cut", "cut", "cut", "cut", "cut", "cut"], ["stalls"],
        [500, 503], ["nothing", "nothing"], ["to /y"], ["no length"], ["cut", 500, "stalls"],
        *([length] for length in BAD_LENGTHS), ["cut", "abc"],
    ],
    ids=str,
)  # fmt: skip
def test_a_file_arrives_whole_however_the_server_fails(server, tmp_path, faults):
    server.files["/y"] = CONTENT
    server.faults["/x"] = faults
    fetch(server, tmp_path)
    assert not faults, "every fault was met"


def test_what_has_arrived_is_not_asked_for_again(server, tmp_path):
    server.faults["/x"] = ["cut", "cut"]
    fetch(server, tmp_path)
    assert [start for _, _, start in server.asked] == [0, 150_000, 225_000]


def test_a_later_call_goes_on_where_an_earlier_one_was_stopped(server, tmp_path):
    server.faults["/x"] = ["cut", 404]
    with pytest.raises(files.FileProblem, match="/x: HTTP status 404"):
        fetch(server, tmp_path)
    assert (tmp_path / "x.part").stat().st_size == 150_000
    fetch(server, tmp_path)
    assert [start for _, _, start in server.asked] == [0, 150_000, 150_000]


def test_a_server_that_cannot_go_on_in_the_middle_sends_all(server, tmp_path):
    server.ranges = False
    (tmp_path / "x.part").write_bytes(b"something else" * 1000)
    fetch(server, tmp_path)


@pytest.mark.parametrize("extra", [b"", b"more"], ids=["whole", "too long"])
def test_a_part_that_is_whole_or_too_long_ends_well(server, tmp_path, extra):
    (tmp_path / "x.part").write_bytes(CONTENT + extra)
    fetch(server, tmp_path)


def test_a_page_to_log_in_does_not_replace_what_has_arrived(server, tmp_path):
    part, page = tmp_path / "x.part", b"log in to the hotel's network"
    part.write_bytes(CONTENT[:200_000])
    server.files["/x"], server.ranges = page, False
    with pytest.raises(files.FileProblem, match="sends 29 bytes in all, fewer than the 200,000"):
        fetch(server, tmp_path)
    assert part.read_bytes() == CONTENT[:200_000]
    server.files["/x"] = CONTENT
    fetch(server, tmp_path)


def test_a_redirected_download_keeps_its_place(server, tmp_path):
    server.files["/y"] = CONTENT
    server.faults["/x"] = ["to /y", "to /y"]
    server.faults["/y"] = ["cut"]
    fetch(server, tmp_path)
    assert [start for _, path, start in server.asked if path == "/y"] == [0, 150_000]


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["damaged"] * 2, rf"damaged file twice: its md5 is \w+, not {MD5}"),
        ([404], "HTTP status 404"),
        (["nothing"] * 4, "closed too early, 4 times"),
        ([500] * 4, "HTTP status 500, 4 times"),
        (["to http://127.0.0.1:9/"] * 4, "refused"),
    ],
)
def test_a_server_that_never_gives_it_is_named_with_the_reason(server, tmp_path, faults, message):
    server.faults["/x"] = faults
    with pytest.raises(files.FileProblem, match=message):
        fetch(server, tmp_path)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("address", ["file://{}", "FILE://{}", "{}", "ftp://127.0.0.1:9/x"])
def test_addresses_of_another_kind_are_refused(tmp_path, address):
    (tmp_path / "here").write_bytes(CONTENT)
    with pytest.raises(InputError, match=r"url = .* is not allowed: .* http:// or https://"):
        download._fetch(address.format(tmp_path / "here"), tmp_path / "x", MD5, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_a_server_that_sends_for_ever_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 100_000)
    with pytest.raises(files.FileProblem, match="sends more than 100,000 bytes"):
        fetch(server, tmp_path)


def test_a_folder_that_cannot_be_written_is_not_the_servers_fault(server, tmp_path):
    (tmp_path / "x.part").mkdir()
    with pytest.raises(files.FileProblem, match=r"cannot write .*x\.part"):
        fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_the_bar_shows_size_speed_and_time_left(server, tmp_path, capsys):
    server.faults["/x"] = ["cut"]
    download._fetch(f"{server.url}/x", tmp_path / "x", MD5)
    text = capsys.readouterr().err
    assert "300k" in text
    assert "B/s" in text
    assert "<" in text, "elapsed < left"


# ------------------------------------------------------------------------------------------------
# CIFAR-10: a small one, in the original's forms


def small():
    """Images and labels of each part, shuffled."""
    draw, parts = np.random.default_rng(1), {}
    for part, each in PER_CLASS.items():
        labels = draw.permutation(np.repeat(np.arange(10), each))
        parts[part] = draw.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8), labels
    return parts


class Python2(pickle._Pickler):
    """Writes strings and bytes as Python 2 did, in which the original files were written."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, obj):
        obj = obj.encode("latin1") if isinstance(obj, str) else obj
        self.write(b"T" + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch[bytes] = save_string
    dispatch[str] = save_string


def pickled(images, labels):
    file = io.BytesIO()
    batch = {"batch_label": "one", "labels": labels.tolist(), "data": images.reshape(-1, 3072)}
    Python2(file, protocol=2).dump(batch)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batches(parts):
    (images, labels), test = parts["train"], parts["test"]
    cuts = [slice(0, 20), slice(20, 50)]
    train = {f"data_batch_{i + 1}": pickled(images[cut], labels[cut]) for i, cut in enumerate(cuts)}
    return {**train, "test_batch": pickled(*test)}


def packed(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, one in content.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(one)
            tar.addfile(entry, io.BytesIO(one))
    return file.getvalue()


def parquet(images, labels, side=32):
    import pyarrow as pa
    from pyarrow import parquet as pq

    rows = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image[:, :side].transpose(1, 2, 0)).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    file = io.BytesIO()
    pq.write_table(pa.table({"img": rows, "label": labels}), file)
    return file.getvalue()


def known(content, url):
    sums = {name: hashlib.md5(one).hexdigest() for name, one in content.items()}
    archive = packed(content)
    return archive, SimpleNamespace(
        url=url, filename="cifar-10-python.tar.gz", tgz_md5=hashlib.md5(archive).hexdigest(),
        base_folder="cifar-10-batches-py",
        train_list=[[n, s] for n, s in sums.items() if n != "test_batch"],
        test_list=[["test_batch", sums["test_batch"]]],
    )  # fmt: skip


@pytest.fixture
def cifar(server, home, monkeypatch):
    """A mirror and an original host, both serving a small CIFAR-10."""
    parts = small()
    archive, source = known(batches(parts), f"{server.url}/original")
    monkeypatch.setattr(download, "_torchvision", lambda: source)
    monkeypatch.setattr(download, "PER_CLASS", PER_CLASS)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.files["/original"] = archive
    for part, name in download.MIRROR_FILES.items():
        server.files[f"/datasets/{download.MIRROR}/resolve/main/{name}"] = parquet(*parts[part])
    return SimpleNamespace(parts=parts, source=source, archive=archive, folder=home / "data")


def mirror(server):
    return [path for path in server.files if path.startswith("/datasets")]


def load(**changes):
    return data.load_dataset(get_config("smoke", data="cifar10", **changes), progress=False)


def test_the_real_names_and_sums_are_those_of_the_requirement():
    source = download._torchvision()
    assert source.filename == "cifar-10-python.tar.gz"
    assert source.tgz_md5 == "c58f30108f718f92721af3b95e74349a"


def test_both_ways_and_both_forms_by_hand_give_the_same_dataset(server, cifar, tmp_path):
    found = {}
    for way in ("mirror", "original", "archive", "unpacked"):
        folder = tmp_path / way
        folder.mkdir()
        server.asked.clear()
        if way == "archive":
            (folder / cifar.source.filename).write_bytes(cifar.archive)
        elif way == "unpacked":
            for name, content in batches(cifar.parts).items():
                (folder / cifar.source.base_folder).mkdir(exist_ok=True)
                (folder / cifar.source.base_folder / name).write_bytes(content)
        elif way == "original":
            for path in mirror(server):
                del server.files[path]
        found[way] = download.cifar10(folder, progress=False)
        asked = {path for _, path, _ in server.asked}
        assert bool(asked) == (way in ("mirror", "original")), "by hand asks nobody"
        assert ("/original" in asked) == (way == "original")
    images, labels = cifar.parts["train"]
    wanted = sorted(zip(labels, (i.tobytes() for i in images), strict=True))
    for parts in found.values():
        images, labels = parts["train"]
        assert labels.tolist() == sorted(labels)
        assert sorted(zip(labels, (i.tobytes() for i in images), strict=True)) == wanted
        for part in PER_CLASS:
            for one, other in zip(parts[part], found["mirror"][part], strict=True):
                assert np.array_equal(one, other)


def test_the_first_images_of_a_class_are_not_the_darkest():
    images = np.arange(256, dtype=np.uint8).repeat(3 * 32 * 32).reshape(256, 3, 32, 32)
    kept, _ = download._in_order(images, np.zeros(256, int))
    first = kept[:64, 0, 0, 0].mean()
    assert 90 < first < 165, "as in the whole, 127.5"


def test_cifar10_is_fetched_once_and_labelled(server, cifar):
    first = load()
    assert (first.name, first.classes) == ("CIFAR-10", download.CLASSES)
    assert [len(p) for p in (first.train, first.validation, first.test)] == [40, 10, 20]
    server.asked.clear()
    server.files.clear()
    again = load()
    assert server.asked == []
    assert again.fingerprint == first.fingerprint
    assert torch.equal(again.train.images, first.train.images)


@pytest.mark.parametrize("fault", [404, 500, "damaged", "cut"])
def test_a_mirror_that_fails_is_followed_by_the_original_host(server, cifar, fault, caplog):
    for path in mirror(server):
        server.faults[path] = [fault] * 9
    assert load().name == "CIFAR-10"
    assert "mirror" in caplog.text
    assert ("GET", "/original", 0) in server.asked


def test_a_mirror_file_that_was_damaged_once_is_fetched_again(server, cifar):
    server.faults[mirror(server)[0]] = ["damaged"]
    load()
    assert ("GET", "/original", 0) not in server.asked


@pytest.mark.parametrize("change", ["other counts", "other labels", "other sizes", "no parquet"])
def test_a_mirror_with_other_images_is_not_believed(server, cifar, change, caplog):
    images, labels = cifar.parts["train"]
    one_more = np.where(np.arange(50) == 0, (labels + 1) % 10, labels)
    server.files[mirror(server)[0]] = {
        "other counts": lambda: parquet(images[:49], labels[:49]),
        "other labels": lambda: parquet(images, one_more),
        "other sizes": lambda: parquet(images, labels, side=31),
        "no parquet": lambda: b"no parquet at all",
    }[change]()
    assert len(load().train) == 40
    assert "CIFAR-10, mirror: " in caplog.text


def test_when_all_fails_one_message_says_what_to_do_by_hand(server, cifar):
    server.files.clear()
    with pytest.raises(InputError) as caught:
        load()
    text = str(caught.value)
    for phrase in ("mirror: ", "original host: ", "404", cifar.source.url, cifar.source.tgz_md5,
                   str(cifar.folder), "folder:PATH"):  # fmt: skip
        assert phrase in text
    assert "\n" not in text
    assert not list((cifar.folder / "cache").glob("*.npy"))


def test_a_damaged_file_put_there_by_hand_is_named_and_replaced(server, cifar, caplog):
    for path in mirror(server):
        del server.files[path]
    cifar.folder.mkdir(parents=True)
    (cifar.folder / cifar.source.filename).write_bytes(cifar.archive[:-9])
    load()
    assert "put there by hand" in caplog.text
    assert "damaged" in caplog.text
    assert (cifar.folder / cifar.source.filename).read_bytes() == cifar.archive


class Bomb:
    def __reduce__(self):
        return exec, ("raise AssertionError('it was called')",)


@pytest.mark.parametrize("kind", ["by its sum", "by its names"])
def test_nothing_is_unpickled_but_known_arrays(cifar, kind, tmp_path):
    """A batch that would call something: refused by its MD5, and by what it names."""
    content = {**batches(cifar.parts), "data_batch_1": pickle.dumps(Bomb())}
    folder = tmp_path / cifar.source.base_folder
    folder.mkdir()
    for name, one in content.items():
        (folder / name).write_bytes(one)
    if kind == "by its names":
        cifar.source.train_list[0][1] = hashlib.md5(content["data_batch_1"]).hexdigest()
    refusal = files.FileProblem if kind == "by its sum" else pickle.UnpicklingError
    with pytest.raises(refusal, match="md5" if kind == "by its sum" else "exec is not allowed"):
        download._by_hand(tmp_path, False)
