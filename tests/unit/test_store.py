from __future__ import annotations

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import store
from helpers.data import ImageSet, batches
from helpers.files import FileProblem

KINDS = (torch.float32, torch.bfloat16, torch.float16)


def filled(rows, folder):
    made = store.Spilled(len(rows), rows[0], folder)
    for start in range(0, len(rows), 3):
        made.put(start, rows[start : start + 3])
    return made


@settings(max_examples=25)
@given(
    count=st.integers(1, 20), width=st.integers(1, 9), kind=st.sampled_from(KINDS),
    chosen=st.lists(st.integers(0, 19), max_size=30), mapped=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_rows_come_back_bit_for_bit(count, width, kind, chosen, mapped, seed, tmp_path_factory):
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=draw).to(kind)
    made = filled(rows, tmp_path_factory.mktemp("rows"))
    assert not made.mapped, "but for a GPU"
    made.mapped = mapped
    assert (len(made), made.shape, made.dtype, made.nbytes) == (
        count, rows.shape, kind, rows.nbytes,
    )  # fmt: skip
    index = torch.tensor([i for i in chosen if i < count], dtype=torch.long)
    some = torch.arange(count) % 2 == 0
    for which in (slice(None), slice(1, 4), slice(-3, None), index, some):
        assert torch.equal(made[which], rows[which])


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="no CUDA device is here"
            ),
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_what_is_filled_in_batch_by_batch_is_all_there(device, size, tmp_path):
    rows = torch.randn(150, 70_000, device=device)
    made = store.Spilled(len(rows), rows[0], tmp_path)
    made.fill(2 * part for part in rows.split(size))  # each is gone when the next is asked for
    assert made[:1].device == rows.device
    assert torch.equal(made[:], 2 * rows)


@pytest.mark.parametrize("seed", [None, (0, 1)])
def test_batches_of_them_are_those_of_a_tensor(seed, tmp_path):
    rows, labels = torch.randn(17, 5), torch.arange(17)
    memory, file = ImageSet(rows, labels), ImageSet(filled(rows, tmp_path), labels)
    for (a, b), (c, d) in zip(
        batches(memory, 4, seed=seed), batches(file, 4, seed=seed), strict=True
    ):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert torch.equal(file.where(labels > 9).images, rows[10:])


def test_the_file_has_no_name_and_leaves_nothing_behind(tmp_path):
    made = filled(torch.randn(9, 2), tmp_path / "new")
    if os.name == "posix":
        assert not list((tmp_path / "new").iterdir()), "a killed process leaves nothing either"
    made.mapped = True
    assert len(made[2:4]) == 2
    number = made._file.fileno()
    del made
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_became_shorter_is_refused(mapped, tmp_path):
    made = filled(torch.randn(9, 2), tmp_path)
    made.mapped = mapped
    assert len(made[4:6]) == 2
    made._file.truncate(40)
    assert mapped or len(made[:5]) == 5
    with pytest.raises(FileProblem, match=r"features in .* ends too early; make room there"):
        made[4:6]


def test_a_full_disk_is_told_in_words(tmp_path):
    class Full:
        def seek(self, place):
            pass

        def write(self, what):
            raise OSError(28, "No space left on device")

    made = store.Spilled(9, torch.zeros(250_000), tmp_path)
    made._file.close()
    made._file = Full()
    words = r"9 MB of features in .* No space left on device; make room there, or set cache_mb = 0"
    with pytest.raises(FileProblem, match=words):
        made.put(0, torch.zeros(2, 250_000))
    with pytest.raises(FileProblem, match=words):
        made.fill(torch.zeros(9, 250_000).split(3))


def test_a_folder_that_cannot_be_written_is_told_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileProblem, match=r"features in .*file/artifacts failed"):
        store.Spilled(2, torch.zeros(2), tmp_path / "file" / "artifacts")


def test_a_file_that_takes_less_at_once_gets_the_rest(tmp_path):
    class Slow:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, what):
            return self.file.write(what[:7])

    rows = torch.randn(5, 3)
    made = store.Spilled(5, rows[0], tmp_path)
    made._file = Slow(made._file)
    made.put(0, rows)
    assert torch.equal(made[:], rows)


def test_two_threads_do_not_move_each_other_s_place_in_the_file(tmp_path):
    class Late:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def seek(self, place):
            self.file.seek(place)
            time.sleep(0.01)  # now the other one may come

    rows, halves = torch.randn(6, 3), (slice(0, 3), slice(3, 6))
    made = store.Spilled(6, rows[0], tmp_path)
    made._file = Late(made._file)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(made.put, (0, 3), (rows[half] for half in halves)))
        assert torch.equal(torch.cat([*threads.map(made.__getitem__, halves)]), rows)


def test_images_travel_as_a_path_and_pass_one_by_one_if_they_are_large(tmp_path, monkeypatch):
    shade = np.zeros((3, 40, 40), np.uint8)

    def fill(put):
        for row in range(3):
            put(row, shade + row)
        return {"skipped": [], "form": None}

    store.create(tmp_path / "x.npy", {"train": {"a": 2, "b": 1}}, 40, fill)
    images, _ = store.read(tmp_path / "x.npy", 40).parts["train"]
    assert len(images[:]) == 3
    sent = pickle.dumps(images)
    assert len(sent) < images.nbytes / 4
    assert torch.equal(pickle.loads(sent)[:], images[:])
    monkeypatch.setattr(store, "PIECE", 100)
    assert [int(some.max()) for some in store.pieces(images)] == [0, 1, 2]


def test_what_is_in_memory_worked_out_by_hand(tmp_path):
    rows = torch.zeros(100, 6)
    file = store.Spilled(100, rows[0], tmp_path)
    assert store.held(rows, 8) == 2400
    assert store.held(file, 8) == (store.AHEAD + 1) * 8 * 24 == 768
    assert store.held(file, 1000) == 2400, "never more than there is"
