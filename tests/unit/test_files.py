from __future__ import annotations

import _pyio
import contextlib
import errno
import io
import itertools
import os
import pickle
import sys
import tempfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers import files
from helpers.files import FileProblem
from tests.killed import Killed, Writer


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def fails(part):
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FileProblem, match=r"a\.json.*No space left.*HELPERS_HOME"):
        files.write_atomically(path, fails)
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_tensors_that_were_read_stay_when_the_file_changes(tmp_path):
    path = files.save_tensors(tmp_path / "a.safetensors", {"w": torch.ones(5000)})
    other = files.save_tensors(tmp_path / "b.safetensors", {"w": torch.zeros(5000)})
    tensors, _ = files.load_tensors(path)
    with path.open("r+b") as file:  # in place, as cp does
        file.write(other.read_bytes())
    assert files.load_tensors(path)[0]["w"].sum() == 0
    assert tensors["w"].sum() == 5000


def test_text_has_the_same_bytes_where_lines_break_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "linesep", "\r\n")
    monkeypatch.setattr(io, "open", _pyio.open)  # which asks for it, as Windows does in C
    (tmp_path / "as there").write_text("ä\n")
    assert (tmp_path / "as there").read_bytes().endswith(b"\r\n")
    files.as_text("ä\n")(tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == "ä\n".encode()


def test_a_dtype_that_safetensors_does_not_have_is_named(tmp_path):
    tensors = {"w": torch.ones(2), "turns": torch.ones(2, dtype=torch.complex128)}
    with pytest.raises(FileProblem, match=r"cannot hold torch.complex128 \(turns\)"):
        files.save_tensors(tmp_path / "a.safetensors", tensors)
    assert not [*tmp_path.iterdir()]


def test_where_readers_keep_a_file_from_being_replaced_it_is_tried_again(tmp_path, monkeypatch):
    path, tries, replace = files.write_json(tmp_path / "a.json", {"old": 1}), [], os.replace

    def busy(source, target):
        tries.append(source)
        if len(tries) < 4:
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    with pytest.raises(FileProblem, match="Access is denied"):
        files.write_json(path, {"new": 2})
    assert len(tries) == 1, "elsewhere that is no matter of time"
    monkeypatch.setattr(files, "_WAITS", 5)
    assert files.read_json(files.write_json(path, {"new": 2})) == {"new": 2}
    assert len(tries) == 4


@pytest.mark.skipif(os.name == "nt", reason="rights of POSIX systems")
@pytest.mark.parametrize(("umask", "rights"), [(0o077, 0o600), (0o002, 0o664), (0o022, 0o644)])
def test_the_umask_says_who_may_read_and_write_a_file(tmp_path, umask, rights):
    before = os.umask(umask)
    try:
        written = [
            files.write_json(tmp_path / "a.json", {"a": 1}),
            files.save_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(3)}),
        ]
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in written] == [oct(rights)] * 2


def test_a_full_disk_while_writing_tensors_is_named(tmp_path, monkeypatch):
    import resource
    import signal

    # a module that is imported meanwhile would leave half of its bytecode, which no import survives
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # files larger than 4 kB fail
    try:
        with pytest.raises(FileProblem, match=r"model\.safetensors"):
            files.save_tensors(tmp_path / "model.safetensors", {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_named(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    tmp_path.chmod(0o755)
    root = os.geteuid() == 0
    if root:  # root may write everywhere: become nobody for a moment
        os.seteuid(65534)
    try:
        with pytest.raises(FileProblem, match="locked"):
            files.write_json(folder / "run.json", {"a": 1})
    finally:
        if root:
            os.seteuid(0)
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_replaced_is_old_or_new_or_not_whole_wherever_it_is_killed(
    tmp_path, monkeypatch
):
    names = ["a", "deep/b", "same", "whole"]

    def write(folder, text):
        for name in names:
            path = folder / name
            files.write_atomically(path, lambda p, n=name: p.write_text(n if n == "same" else text))

    writer, seen = Writer(monkeypatch), set()
    for moment in itertools.count():
        writer.left, folder, done = 1000, tmp_path / str(moment), False
        with files.replaced(folder, "whole") as new:
            write(new, "old")
        kept = (folder / "same").stat().st_ino
        writer.left = moment
        try:
            with files.replaced(folder, "whole") as new:
                write(new, "new")
            done = True
        except Killed:
            pass
        if (folder / "whole").exists():
            found = {(folder / name).read_text() for name in names}
            assert found in ({"old", "same"}, {"new", "same"}), moment
            seen |= found
        assert (folder / "same").stat().st_ino == kept, "it may be read at this moment"
        if done:
            break
    assert seen == {"old", "new", "same"}
    assert sorted(p.name for p in folder.iterdir()) == ["a", "deep", "same", "whole"]


def test_a_file_is_old_or_new_wherever_its_writer_is_killed_and_of_several_the_first_is(
    tmp_path, monkeypatch
):
    writer, paths = Writer(monkeypatch), [tmp_path / "first", tmp_path / "second"]
    for several, moment in itertools.product((paths[:1], paths), range(4)):
        for text in ("old", "new"):
            writer.left = 1000 if text == "old" else moment
            with contextlib.suppress(Killed):
                files.write_together({path: files.as_text(text) for path in several})
        assert paths[0].read_text() in ("old", "new"), (several, moment)


def test_of_files_that_belong_together_the_content_says_whether_one_is_the_same(tmp_path):
    """Not its size and its time, which a writer that copies may take over."""

    def write(text):
        def one(part):
            part.write_text(text)
            os.utime(part, (1, 1))

        files.write_together({tmp_path / "a": one, tmp_path / "b": one})

    write("old")
    write("new")
    assert {(tmp_path / name).read_text() for name in "ab"} == {"new"}


def test_what_a_killed_process_left_does_not_come_into_a_folder(tmp_path):
    files.write_json(tmp_path / files.NEW / "half.json", {})
    with files.replaced(tmp_path, "whole") as new:
        files.write_json(new / "whole", {})
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_two_may_write_one_file_at_once(tmp_path):
    path = tmp_path / "a"

    def write(part):
        files.write_atomically(path, files.as_text("of the one"))
        part.write_text("of the other")

    assert files.write_atomically(path, write).read_text() == "of the other"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_tensors_are_written_as_they_were_when_the_file_was_prepared(tmp_path):
    tensor = torch.ones(3)
    write = files.as_tensors({"w": tensor})
    tensor.zero_()
    tensors, _ = files.load_tensors(files.write_atomically(tmp_path / "a.safetensors", write))
    assert tensors["w"].tolist() == [1, 1, 1]


def test_a_writer_that_says_itself_what_is_the_matter_is_left_its_words(tmp_path):
    def write(part):
        raise FileProblem("b.npy is damaged")

    with pytest.raises(FileProblem, match=r"^b\.npy is damaged$"):
        files.write_atomically(tmp_path / "a", write)


def test_an_error_of_the_writer_itself_is_not_disguised(tmp_path):
    with pytest.raises(ValueError, match=r"JSON compliant|Out of range"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
        hnp.array_shapes(max_dims=4, max_side=5, min_dims=0),
        elements=st.integers(0, 1),
    ),
    metadata=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    ),
)
def test_tensors_and_metadata_come_back_as_they_were(tmp_path, array, metadata):
    tensor = torch.from_numpy(array.copy())
    path = files.save_tensors(tmp_path / "t.safetensors", {"x": tensor}, metadata)
    back, found = files.load_tensors(path)
    assert torch.equal(back["x"], tensor)
    assert back["x"].dtype == tensor.dtype
    assert found == metadata


def test_a_changed_byte_is_found(tmp_path):
    path = files.save_tensors(tmp_path / "t.safetensors", {"x": torch.arange(9.0)}, {"steps": 8})
    whole = path.read_bytes()
    for place in (len(whole) - 3, whole.index(b"steps") + 1):  # a number; what goes with them
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(FileProblem, match=r"t\.safetensors: .*not hold what was written"):
            files.load_tensors(path)
    again = files.save_tensors(tmp_path / "again", {"x": torch.arange(9.0)}, {"steps": 8})
    assert again.read_bytes() == whole, "the same bytes each time"
    save_file({"x": torch.ones(2)}, path, {"helpers": "[1]"})  # as it was written before
    assert files.load_tensors(path)[1] == [1]
    save_file({"x": torch.ones(2)}, path)  # of somebody else
    assert files.load_tensors(path)[0]["x"].tolist() == [1, 1]


def test_views_of_one_storage_are_saved_apart(tmp_path):
    whole = torch.arange(6.0)
    path = files.save_tensors(tmp_path / "t.safetensors", {"a": whole[:3], "b": whole[3:]})
    back, _ = files.load_tensors(path)
    assert back["a"].tolist() == [0, 1, 2]
    assert back["b"].tolist() == [3, 4, 5]


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 40, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_its_name_and_the_remedy(tmp_path, keep):
    path = files.save_tensors(tmp_path / "t.safetensors", {"x": torch.ones(50)}, {"a": 1})
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(FileProblem, match=r"t\.safetensors.*delete it"):
        files.load_tensors(path)


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_is_refused_and_not_executed(tmp_path, write):
    path, mark = tmp_path / "model.safetensors", tmp_path / "executed"
    with path.open("wb") as file:
        write(Bomb(str(mark)), file)
    with pytest.raises(FileProblem, match=r"model\.safetensors"):
        files.load_tensors(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", '{"a": 1}', "\x00\xff", '{"identity"' * 3, "[" * 100_000]
)
def test_damaged_or_foreign_json_is_refused(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(FileProblem, match=r"run\.json"):
        files.read_json(path, ("identity",))


def test_json_that_would_not_be_read_back_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_JSON", 1000)
    files.write_json(tmp_path / "a.json", {"rows": list(range(50))})
    with pytest.raises(FileProblem, match=r"a\.json: .* bytes of JSON, more than the 1,000"):
        files.write_json(tmp_path / "a.json", {"rows": list(range(500))})
    assert files.read_json(tmp_path / "a.json")["rows"] == list(range(50))
    (tmp_path / "b.json").write_text('{"a": 1}' + " " * 993)
    with pytest.raises(FileProblem, match=r"b\.json: it has 1001 bytes, far more than any of ours"):
        files.read_json(tmp_path / "b.json")


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = files.write_json(tmp_path / "a.json", {"a": 1})

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    for read in (files.read_json, files.sha256):
        with pytest.raises(FileProblem, match=r"a\.json may not be read") as caught:
            read(path)
        assert "delete" not in str(caught.value)


def test_a_folder_is_tried_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for good in (tmp_path / "a" / "b", tmp_path):
        files.try_folder(good)
        assert [p.name for p in tmp_path.iterdir()] == ["file"], "nothing is left behind"
    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none"),
                tmp_path / ("long" * 100)):  # fmt: skip
        with pytest.raises(FileProblem, match="cannot write"):
            files.try_folder(bad)


def test_names_of_files_are_tried_before_the_work(tmp_path):
    (tmp_path / "kept").write_text("as it was")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path, tmp_path / "new"):
        files.try_folder(place, "kept", "new")
        with pytest.raises(FileProblem, match=r"cannot write .*long.*too long"):
            files.try_folder(place, "new", "long" * 63)
    with pytest.raises(FileProblem, match=r"cannot write .*folder: Is a directory"):
        files.try_folder(tmp_path, "kept", "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "kept"], "nothing is left"
    assert (tmp_path / "kept").read_text() == "as it was"


def test_a_folder_that_another_process_tries_as_well_is_tried_again(tmp_path, monkeypatch):
    """Both make it and both remove it: the one finds it gone before its file, or after."""
    opened, removed, path = tempfile.TemporaryFile, os.rmdir, tmp_path / "a" / "b"
    left = [2]

    def gone(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            removed(path)
            removed(path.parent)
        return opened(*args, **kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", gone)
    files.try_folder(path)
    assert not left[0]
    monkeypatch.setattr(Path, "rmdir", lambda self: (removed(self), removed(self)))
    files.try_folder(path)
    assert not [*tmp_path.iterdir()]
    left[0] = 1000  # whenever it is tried: then there is nothing to write to
    with pytest.raises(FileProblem, match=r"cannot write .*a/b: No such file"):
        files.try_folder(path)


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    """The library that reads it says of either that there is no such file."""

    def refuse(path, framework):
        raise FileNotFoundError(path)

    path = files.save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(1)}, None)
    monkeypatch.setattr("safetensors.safe_open", refuse)
    for read in (files.load_tensors, files.tensor_shapes):
        with pytest.raises(FileProblem, match="may not be read: give yourself the right"):
            read(path)


def test_the_digest_of_tensors_is_of_names_types_shapes_and_bytes():
    a, b = torch.arange(6.0), torch.ones(2)
    expected = files.digest({"a": a, "b": b})
    assert files.digest({"b": b, "a": a}) == expected, "in whatever order"
    others = {"a": a.reshape(2, 3)}, {"a": a.view(torch.int32)}, {"a": a + 1}, {"c": a}
    assert len({expected, *(files.digest({"b": b} | other) for other in others)}) == 5
    assert files.digest({"b": b}) != expected


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileProblem, match="does not exist"):
        files.read_json(tmp_path / "no.json")
    with pytest.raises(FileProblem, match="does not exist"):
        files.load_tensors(tmp_path / "no.safetensors")


def test_the_digest_of_plain_data_is_that_of_the_sorted_json():
    # sha256 of {"a": 1, "b": [2, null]} by coreutils
    expected = "c8caf5ad035ad1d6a15b14c79b2f86a75c47cb4eb04c32a063e979eb1849b3bb"
    assert files.digest_json({"b": [2, None], "a": 1}) == expected
    assert files.digest_json({"a": 1, "b": [2, None]}) == expected
    assert files.digest_json({"a": 2, "b": [2, None]}) != expected
