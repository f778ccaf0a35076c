from __future__ import annotations

import collections
import dataclasses
import hashlib
import inspect
import io
import os
import pickle
import re
import shutil
import struct
import sys
import tarfile
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import (
    audit,
    data,
    download,
    features,
    files,
    folders,
    models,
    relearning,
    runs,
    store,
    training,
    unlearning,
)
from helpers.config import InputError, get_config
from helpers.data import ImageSet
from tests.pictures import folder, paint

PARTS = ("train", "validation", "test")


def as_bytes(part):
    return [bytes(x.cpu().numpy().tobytes()) + bytes([int(y)]) for x, y in
            zip(part.images, part.labels, strict=True)]  # fmt: skip


# ------------------------------------------------------------------------------------------------
# digits and the division into parts


def test_the_parts_are_all_digits_once_and_stratified():
    from sklearn.datasets import load_digits

    found = data.load_dataset(get_config("cpu"))
    everything = collections.Counter(x for p in PARTS for x in as_bytes(getattr(found, p)))
    source = load_digits()
    raw = np.round(source.images * (255 / 16)).astype(np.uint8)
    wanted = collections.Counter(
        x.tobytes() + bytes([y]) for x, y in zip(raw, source.target, strict=True)
    )
    assert everything == wanted
    for label in range(10):
        total = int((torch.from_numpy(source.target) == label).sum())
        for part, share in (("validation", 0.15), ("test", 0.25)):
            mine = int((getattr(found, part).labels == label).sum())
            assert abs(mine - share * total) <= 0.5


def test_many_images_leave_more_to_training():
    labels = torch.arange(4000).remainder(2)
    labels[:3000] = 0  # 3,500 of the one class, 500 of the other
    whole = {"train": ImageSet(torch.zeros(4000, 1, 1, 1, dtype=torch.uint8), labels)}
    found = data._divide(whole, ("a", "b"), seed=0)
    counts = {name: part.labels.bincount().tolist() for name, part in found.items()}
    assert counts == {"train": [2500, 300], "validation": [500, 75], "test": [500, 125]}


def test_the_division_depends_on_its_seed_only():
    one, same, other = (
        data.load_dataset(get_config("cpu", split_seed=s, seed=t))
        for s, t in ((0, 0), (0, 5), (1, 0))
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert torch.equal(one.test.images, same.test.images)


def test_the_training_part_can_be_limited(cfg):
    found = data.load_dataset(cfg.but(train_limit=5))
    assert torch.bincount(found.train.labels).tolist() == [5] * 10
    assert len(found.test) == len(data.load_dataset(cfg).test)


def test_the_limit_keeps_the_first_images_of_a_source_that_is_in_no_order_of_names(cfg, dataset):
    whole = data.load_dataset(cfg.but(train_limit=None)).train
    first = [(whole.labels == c).nonzero().flatten()[: cfg.train_limit] for c in range(10)]
    assert torch.equal(dataset.train.images, whole.where(torch.cat(first).sort().values).images)


def test_normalisation_is_that_of_the_training_pixels(dataset):
    pixels = dataset.train.images.double() / 255
    assert torch.allclose(dataset.mean.double(), pixels.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(dataset.std.double(), pixels.std((0, 2, 3), unbiased=False), atol=1e-6)
    image = torch.tensor([[[[0, 255]]]], dtype=torch.uint8, device=dataset.mean.device)
    low, high = dataset.normalise(image).flatten().tolist()
    mean, std = dataset.mean.item(), dataset.std.item()
    assert low == pytest.approx(-mean / std, abs=1e-6)
    assert high == pytest.approx((1 - mean) / std, abs=1e-6)
    assert image.flatten().tolist() == [0, 255], "the stored pixels stay"


def test_split_keeps_order_and_labels(dataset):
    split = dataset.split(3)
    assert set(split.forget.labels.tolist()) == set(split.test_forget.labels.tolist()) == {3}
    for part in (split.retain, split.validation_retain, split.test_retain):
        assert 3 not in part.labels.tolist()
        assert set(part.labels.tolist()) == set(range(10)) - {3}
    assert len(split.forget) + len(split.retain) == len(dataset.train)


def test_a_class_that_does_not_exist_or_is_the_only_one_is_refused(dataset):
    with pytest.raises(InputError, match=r"forget = 10 .*the classes are 0 0, 1 1"):
        dataset.split(10)
    from dataclasses import replace

    with pytest.raises(InputError, match="at least two"):
        replace(dataset, classes=("only",)).split(0)
    many = tuple(f"breed {i} with a long name" for i in range(300))
    with pytest.raises(
        InputError, match=r"the classes are 0 breed 0 .*\.\.\..* 299 breed"
    ) as raised:
        replace(dataset, classes=many).split(300)
    assert len(str(raised.value)) < 250


# ------------------------------------------------------------------------------------------------
# batches


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(2, 9), st.integers(1, 3), st.data())
def test_crop_equals_padding_and_slicing_one_by_one(n, channels, side, pad, draw):
    images = torch.randint(0, 256, (n, channels, side, side + 1), dtype=torch.uint8)
    shift = torch.tensor([[draw.draw(st.integers(0, 2 * pad)) for _ in "yx"] for _ in range(n)])
    found = data.crop(images, shift, pad)
    for image, (y, x), result in zip(images, shift.tolist(), found, strict=True):
        canvas = torch.zeros(channels, side + 2 * pad, side + 1 + 2 * pad, dtype=torch.uint8)
        canvas[:, pad : pad + side, pad : pad + side + 1] = image
        assert torch.equal(result, canvas[:, y : y + side, x : x + side + 1])


def numbered(n, side=4):
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, side, side)
    return ImageSet(images.contiguous(), torch.arange(n))


def test_a_sample_is_random_seeded_and_never_larger_than_the_set():
    part = numbered(20)
    one, same, other = (part.sample(5, seed) for seed in (0, 0, 1))
    assert len(set(one.labels.tolist())) == 5
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.labels, other.labels)
    assert torch.equal(one.images[:, 0, 0, 0].long(), one.labels)
    assert sorted(part.sample(99).labels.tolist()) == list(range(20))


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    part = numbered(50)
    epochs = [torch.cat([y for _, y in data.batches(part, 8, seed=(0, e))]) for e in (0, 0, 1)]
    assert sorted(epochs[0].tolist()) == list(range(50))
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    for images, labels in data.batches(part, 8, seed=(0, 0)):
        assert torch.equal(images[:, 0, 0, 0].long(), labels), "images and labels stay together"


def test_a_last_batch_of_one_image_is_dropped_in_training_and_kept_in_evaluation():
    part = numbered(9)
    assert [len(y) for _, y in data.batches(part, 4, seed=(0, 0))] == [4, 4]
    assert [len(y) for _, y in data.batches(part, 4)] == [4, 4, 1]
    assert torch.equal(torch.cat([y for _, y in data.batches(part, 4)]), torch.arange(9))


def test_augmentation_draws_for_every_image_and_evaluation_has_none():
    ramp = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).repeat(200, 1, 1, 1)
    part = ImageSet(ramp, torch.zeros(200, dtype=torch.long))
    flipped = torch.cat([x for x, _ in data.batches(part, 200, augment="flip", seed=(0, 0))])
    mirrored = (flipped == ramp.flip(3)).flatten(1).all(1)
    assert 60 < int(mirrored.sum()) < 140, "about half"
    assert bool((mirrored | (flipped == ramp).flatten(1).all(1)).all())
    moved = torch.cat([x for x, _ in data.batches(part, 200, augment="crop", seed=(0, 0))])
    assert len({bytes(x.numpy().tobytes()) for x in moved}) == 9, "3 x 3 places"
    plain = torch.cat([x for x, _ in data.batches(part, 64)])
    assert torch.equal(plain, ramp)


def test_the_pixels_of_an_epoch_are_those_made_one_image_at_a_time():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 8, 8), generator=draw, dtype=torch.uint8)
    part, seed = ImageSet(images, torch.arange(10)), 4 * 1_000_003 + 2
    draw.manual_seed(seed)
    order = torch.randperm(10, generator=draw)
    corner, turned = torch.randint(0, 3, (10, 2), generator=draw), torch.rand(10, generator=draw)
    found = list(data.batches(part, 4, augment="crop+flip", seed=(4, 2)))
    assert torch.equal(torch.cat([labels for _, labels in found]), order)
    mean, std = torch.tensor([0.2, 0.5, 0.4]), torch.tensor([0.3, 0.1, 0.2])
    dataset = data.Dataset("", ("a", "b"), part, part, part, mean, std, "")
    for index, image in zip(order, torch.cat([x for x, _ in found]), strict=True):
        row, column = corner[index].tolist()
        one = torch.nn.functional.pad(images[index], (1,) * 4)[
            :, row : row + 8, column : column + 8
        ]
        assert torch.equal(image, one.flip(2) if turned[index] < 0.5 else one)
        made = dataset.normalise(image[None])
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(made[0], (image / 255 - mean[:, None, None]) / std[:, None, None])


# ------------------------------------------------------------------------------------------------
# folders


def load(root, **changes):
    return data.load_dataset(get_config("smoke", data=f"folder:{root}", **changes), progress=False)


def test_a_plain_folder_is_divided(tmp_path, home):
    found = load(folder(tmp_path / "shop", {"a": 20, "b": 20}), image_size=16)
    assert (found.name, found.classes) == ("shop", ("a", "b"))
    assert [len(getattr(found, p)) for p in PARTS] == [24, 6, 10]
    assert found.train.images.shape == (24, 3, 16, 16)
    assert found.train.images.dtype == torch.uint8
    red = found.train.images[found.train.labels == 0]
    assert int(red[:, 0].min()) > 0
    assert int(red[:, 1:].max()) == 0


def test_a_limit_takes_from_all_that_is_in_a_class_of_a_folder(tmp_path, home):
    for name, shade in (("a", 0), ("b", 100)):
        for breed, more in (("beagle", 0), ("poodle", 50)):
            for i in range(40):
                color = (shade + more, i, 0)
                paint(tmp_path / "set" / name / breed / f"{i:02}.png", size=(8, 8), color=color)
    whole, found, again, other, all_there = (
        load(tmp_path / "set", image_size=8, train_limit=most, split_seed=seed)
        for most, seed in ((None, 0), (20, 0), (20, 0), (20, 1), (48, 0))
    )
    pixels = found.train.images[:, :2, 0, 0].tolist()
    shades = collections.Counter(shade for shade, _ in pixels)
    assert shades[0] + shades[50] == shades[100] + shades[150] == 20
    assert min(shades[shade] for shade in (0, 50, 100, 150)) >= 5
    assert pixels == sorted(pixels), "in the order they had"
    assert set(as_bytes(found.train)) < set(as_bytes(whole.train))
    for part in ("validation", "test"):
        assert as_bytes(getattr(found, part)) == as_bytes(getattr(whole, part))
    assert again.fingerprint == found.fingerprint != other.fingerprint
    assert all_there.fingerprint == whole.fingerprint


def test_a_folder_that_changes_is_not_taken_for_the_one_before(tmp_path, home):
    cfg = get_config("smoke", data=f"folder:{folder(tmp_path / 'shop', {'a': 20, 'b': 20})}")
    first = data.load_dataset(cfg, progress=False).fingerprint
    assert data.load_same(cfg, first).fingerprint == first
    paint(tmp_path / "shop" / "a" / "more.png", color=(9, 9, 9))
    with pytest.raises(InputError, match=r"shop'.*: the images changed while .*; run the same"):
        data.load_same(cfg, first)


def test_train_and_test_folders_are_kept_apart(tmp_path, home):
    folder(tmp_path / "set" / "train", {"a": 10, "b": 10})
    folder(tmp_path / "set" / "test", {"a": 3, "b": 4})
    found = load(tmp_path / "set")
    assert [len(getattr(found, p)) for p in PARTS] == [16, 4, 7]
    found = load(folder(tmp_path / "half" / "train", {"a": 10, "b": 10}).parent)
    assert [len(getattr(found, p)) for p in PARTS] == [12, 4, 4]


def test_every_kind_of_image_is_read(tmp_path, home):
    root = tmp_path / "mixed"
    colour = [("RGB", "JPG"), ("RGB", "jpeg"), ("RGB", "webp"), ("RGBA", "png")]
    grey = [("L", "png"), ("LA", "png"), ("I;16", "png"), ("1", "bmp")]
    kinds = [*colour, *grey, ("P", "PNG"), ("P", "gif")]
    for i, (mode, suffix) in enumerate(kinds):
        for name in "ab":
            paint(root / name / f"{i}.{suffix}", mode, size=(20 + 7 * i, 50 - 3 * i))
    (root / ".ipynb_checkpoints").mkdir()
    (root / "a" / "notes.txt").write_text("no image")
    found = load(root)
    assert sum(len(getattr(found, p)) for p in PARTS) == 20
    assert found.skipped == ()


@pytest.mark.parametrize(
    ("mode", "pixel"), [("RGB", (255, 0, 0)), ("RGBA", (255, 255, 255)), ("I;16", (128, 128, 128)),
                        ("L", (76, 76, 76)), ("P", (255, 0, 0))],
)  # fmt: skip
def test_colours_survive_the_conversion(tmp_path, mode, pixel):
    paint(tmp_path / "x.png", mode)
    with Image.open(tmp_path / "x.png") as file:
        image = np.asarray(folders.to_rgb(file, 8))
    assert image.shape == (8, 8, 3)
    assert np.abs(image.astype(int) - pixel).max() <= 1


NOISE = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height"), [
    (32, 32), (33, 32), (32, 33), (35, 32), (40, 32), (16, 16), (64, 64), (100, 100), (31, 31),
    (20, 41), (41, 20), (100, 33), (7, 9), (300, 301), (50, 1), (400, 375),
])  # fmt: skip
def test_images_are_scaled_and_cut_as_torchvision_does_it(width, height):
    """To one level of 255: where all is scaled and then cut, it is rounded in between."""
    from PIL import ImageOps
    from torchvision.transforms import CenterCrop, Resize

    image = Image.fromarray(NOISE[:height, :width])
    found = np.asarray(folders.to_rgb(image, 32)).astype(int)
    wanted = np.asarray(CenterCrop(32)(Resize(32)(image)))
    assert np.abs(found - wanted).max() <= (min(width, height) != 32)
    if width == height:
        assert np.array_equal(found, np.asarray(ImageOps.fit(image, (32, 32), Image.BILINEAR)))


def test_of_a_long_image_only_what_is_kept_is_made(monkeypatch):
    """Of one that is a pixel wide, all of it would fill the memory."""
    resize, made = Image.Image.resize, []
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a: made.append(size) or resize(self, size, *a)
    )
    strip = np.arange(2000).astype(np.uint8)[:, None]
    found = np.asarray(folders.to_rgb(Image.fromarray(strip), 224))
    assert made == [(224, 224)]
    assert {*np.unique(found)} <= {*strip[998:1002].flatten()}


def test_parts_are_no_classes(tmp_path, home, caplog):
    for parts in (("Train", "Test"), ("training", "testing"), ("training", "validation")):
        for part in parts:
            folder(tmp_path / parts[1] / part, {"a": 8, "b": 8})
        with pytest.raises(InputError, match="are parts, not classes; name those"):
            load(tmp_path / parts[1])
    for part in ("train", "val"):
        folder(tmp_path / "set" / part, {"a": 8, "b": 8})
    assert load(tmp_path / "set").classes == ("a", "b")
    assert "read are train/ and test/ alone, not val" in caplog.text


def test_a_class_may_be_called_train(tmp_path, home):
    root = folder(tmp_path / "vehicles", {"bus": 8, "car": 8, "train": 8})
    (root / "train" / ".thumbnails").mkdir()
    assert load(root).classes == ("bus", "car", "train")


def test_what_a_killed_process_left_half_written_is_removed(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    load(root)
    (cache,) = (home / "data" / "cache").glob("set*.npy")
    left = cache.with_name(f".{cache.name}.x9f2.part")
    other = cache.with_name(".another.npy.x9f2.part")
    for path in (left, other):
        path.write_bytes(b"half")
    cache.with_suffix(".json").unlink()
    load(root)
    assert (left.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize("brightest", [1, 200, 255, 256, 1000, 65535])
@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_mean_the_same_in_every_file(tmp_path, suffix, brightest):
    values, path = np.full((8, 8), brightest, dtype=np.uint16), tmp_path / f"x.{suffix}"
    if suffix == "pgm":  # Pillow 10.0 reads it, but does not write it
        path.write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    with Image.open(path) as file:
        assert file.mode in ("I;16", "I"), "older releases of Pillow call both I"
        image = np.asarray(folders.to_rgb(file, 8))
    assert np.abs(image.astype(int) - brightest * 255 // 65535).max() <= 1
    assert (image == 255).all() == (brightest == 65535), "white stays white"


@pytest.mark.parametrize(("most", "white"), [(255, 255), (256, 256), (4095, 4095)])
def test_a_pgm_is_as_bright_as_its_header_says(tmp_path, most, white):
    values = np.array([0, white // 2, white], ">u2" if most > 255 else "u1").repeat(8)
    (tmp_path / "x.pgm").write_bytes(b"P5 8 3 %d\n" % most + values.tobytes())
    with Image.open(tmp_path / "x.pgm") as file:
        image = np.asarray(folders.to_rgb(file, 3))
    assert np.abs(image[:, 0, 0].astype(int) - [0, 127, 255]).max() <= 1


@pytest.mark.parametrize(
    ("kind", "largest", "white"),
    [("float32", 1, 1), ("float32", 1.001, 1), ("float32", 0.5, 1), ("float32", 3, 255),
     ("float32", 255, 255), ("float32", 262.5, 255), ("float32", 60_000, 65535),
     ("int32", 200, 255), ("int32", 300, 65535)],
)  # fmt: skip
def test_how_bright_other_numbers_are_is_guessed_and_said_once(
    tmp_path, home, caplog, kind, largest, white
):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    for name in ("a/x.tif", "b/y.tif"):
        Image.fromarray(np.full((8, 8), largest, kind)).save(root / name)
    found = load(root)
    (line,) = (r.getMessage() for r in caplog.records)
    assert "how bright 2 images are is a guess" in line
    assert "(a/x.tif, b/y.tif)" in line
    with Image.open(root / "a" / "x.tif") as file:
        image = np.asarray(folders.to_rgb(file, 8))
    assert np.abs(image - min(255, largest * 255 / white)).max() <= 1
    assert load(root).fingerprint == found.fingerprint
    assert len(caplog.records) == 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_level_of_grey_is_white(tmp_path, bits):
    levels = np.array([[0, 200], [200, 100]] if bits == 8 else [[0, 51400], [51400, 25700]])
    pixels = levels.astype(f"uint{bits}").repeat(4, 0).repeat(4, 1)
    Image.fromarray(pixels).save(tmp_path / "x.png", transparency=int(levels[1, 1]))
    with Image.open(tmp_path / "x.png") as file:
        image = np.asarray(folders.to_rgb(file, 8))
    assert image[::4, ::4, 0].tolist() == [[0, 200], [200, 255]]


def png(depth, kind, row, key):
    """Write a PNG of 8 equal rows with a transparent colour, as Pillow cannot."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = struct.pack(">IIBBBBB", 8, 8, depth, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * 8))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunks + pixels + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("depth", "kind", "row", "key", "shown"),
    [
        (1, 0, b"\x0f", [0], (255, 255)),
        (2, 0, b"\x55\xaa", [1], (255, 170)),
        (4, 0, b"\x55\x55\x00\x00", [5], (255, 0)),
        (16, 2, bytes(24) + b"\x80\x00" * 12, [0x8000] * 3, (0, 255)),
        (16, 2, bytes(24) + b"\x01\x00" * 12, [0x0100] * 3, (0, 255)),
        (16, 2, bytes(24) + b"\xff\xff" * 12, [0, 0, 0], (255, 255)),
        (8, 2, bytes(12) + b"\x80" * 12, [0x80] * 3, (0, 255)),
    ],
)
def test_a_transparent_colour_has_the_bits_of_its_file(depth, kind, row, key, shown):
    with Image.open(png(depth, kind, row, key)) as file:
        image = np.asarray(folders.to_rgb(file, 8))
    assert image[:, [0, 7], 0].tolist() == [[*shown]] * 8


def with_exif(kind, content):
    file = io.BytesIO()
    Image.fromarray(NOISE[:8, :8]).save(file, kind, exif=content, **LOSSLESS.get(kind, {}))
    return Image.open(file)


LOSSLESS = {"WEBP": {"lossless": True}}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_an_image_is_turned_as_pillow_does_it(kind, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    file = with_exif(kind, exif)
    wanted = np.asarray(ImageOps.exif_transpose(file))
    assert np.array_equal(np.asarray(folders.to_rgb(file, 8)), wanted)


# at 8 two entries: orientation 6, a whole number of 16 bits; a text where a real number belongs
MIXED = (
    b"Exif\0\0II*\0\x08\0\0\0\x02\0"
    b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x55\x01\x02\0\x02\0\0\0a\0\0\0\0\0\0\0"
)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize(
    ("content", "turns"), [(b"Exif\0\0garbage!", 0), (MIXED[:20], 0), (MIXED, -1)]
)
def test_damaged_words_about_an_image_do_not_make_it_unreadable(kind, content, turns, recwarn):
    found = np.asarray(folders.to_rgb(with_exif(kind, content), 8))
    assert np.array_equal(found, np.rot90(NOISE[:8, :8], turns))
    assert not recwarn.list


def test_the_folder_is_decoded_once_and_again_after_a_change(tmp_path, home, monkeypatch):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    first = load(root)
    decode = folders._decode
    monkeypatch.setattr(folders, "_decode", lambda *_: pytest.fail("decoded a second time"))
    assert load(root).fingerprint == first.fingerprint
    monkeypatch.setattr(folders, "_decode", decode)
    paint(root / "a" / "new.png")
    assert len(load(root).train) + len(load(root).test) > len(first.train) + len(first.test) - 1
    assert load(root).fingerprint != first.fingerprint


def exchange(one, other):
    away = one.with_name("away")
    for source, target in ((one, away), (other, one), (away, other)):
        source.rename(target)


def relink(root):
    for name, to in (("a", "store-b"), ("b", "store-a")):
        (root / name).unlink()
        (root / name).symlink_to(root.parent / to)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such time")
@pytest.mark.parametrize(
    ("where", "swap"),
    [
        (("a", "b"), lambda root: exchange(root / "a" / "0.bmp", root / "b" / "0.bmp")),
        (("a", "b"), lambda root: exchange(root / "a", root / "b")),
        (("a/in", "b/in"), lambda root: exchange(root / "a" / "in", root / "b" / "in")),
        (("../store-a", "../store-b"), relink),
        (("train/a", "train/b", "test/a", "test/b"),
         lambda root: exchange(root / "train", root / "test")),
    ],
    ids=["files", "classes", "folders in them", "links to them", "parts"],
)  # fmt: skip
def test_images_in_the_place_of_others_are_noticed_whatever_their_size_and_date(
    tmp_path, home, where, swap
):
    root = tmp_path / "set"
    root.mkdir()
    for shade, name in enumerate(where):
        for i in range(5):
            paint(root / name / f"{i}.bmp", color=(50 * shade, 10 * i, 0))
            os.utime(root / name / f"{i}.bmp", (1e9, 1e9))
        if name.startswith(".."):
            (root / name[-1]).symlink_to(tmp_path / name[3:])
    before = load(root).fingerprint
    assert load(root).fingerprint == before
    swap(root)
    after = load(root).fingerprint
    assert after != before
    shutil.rmtree(home / "data")
    assert load(root).fingerprint == after


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no such time")
@pytest.mark.parametrize("place", ["", "in", "in/it"])
def test_folders_that_change_places_are_noticed_though_their_files_are_of_one_moment(
    tmp_path, home, monkeypatch, place
):
    monkeypatch.setattr(folders, "_stamp", lambda stat: "the same")
    for name in ("a", "b"):
        folder(tmp_path / "set", {f"{name}/{place}".rstrip("/"): 5}, "bmp")
    paint(tmp_path / "set" / "b" / place / "0.bmp", color=(7, 7, 7))
    before = load(tmp_path / "set").fingerprint
    exchange(tmp_path / "set" / "a" / place, tmp_path / "set" / "b" / place)
    assert load(tmp_path / "set").fingerprint != before


def test_an_archive_in_the_place_of_another_one_is_noticed_whatever_its_size_and_date(
    tmp_path, home
):
    found = []
    for color in ((1, 1, 1), (2, 2, 2)):
        root = folder(tmp_path / "set", {"a": 5, "b": 5}, "bmp")
        paint(root / "a" / "0.bmp", color=color)
        archive = pack(root, tmp_path / "x.tar")
        os.utime(archive, (1e9, 1e9))
        found.append((archive.stat().st_size, load(archive).fingerprint))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_the_same_images_are_the_same_runs_when_they_are_decoded_anew(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    before = load(root).fingerprint
    for path in root.rglob("*"):
        path.chmod(0o700)
    assert load(root).fingerprint == before
    assert len(list((home / "data" / "cache").glob("*.npy"))) == 2, "it was decoded anew"
    (root / "a" / "0.png").rename(root / "a" / "00.png")
    assert load(root).fingerprint == before
    (root / "a" / "00.png").rename(root / "a" / "9.png")
    assert load(root).fingerprint != before, "in another order they are divided otherwise"


def test_corrupt_images_stop_the_run_or_are_left_out(tmp_path, home, caplog):
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    (root / "a" / "broken.png").write_bytes(b"no image at all")
    cut = (root / "b" / "0.png").read_bytes()
    (root / "b" / "cut.PNG").write_bytes(cut[: len(cut) // 2])
    for _ in range(2):  # the second time must not find the result of the first
        with pytest.raises(InputError, match=r"2 of 18 images.*a/broken\.png.*b/cut\.PNG.*skip"):
            load(root)
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        found = load(root, on_corrupt="skip")
        parts = [getattr(found, p) for p in PARTS]
        assert sum(map(len, parts)) == 16
        for part in parts:  # those of class a are red
            assert torch.equal(part.images[:, 0].amax((1, 2)) > 0, part.labels == 0)
        assert [s.split(" ")[0] for s in found.skipped] == ["a/broken.png", "b/cut.PNG"]
        assert "2 of 18" in caplog.text
    with pytest.raises(InputError, match="2 of 18"):
        load(root)


def test_an_image_that_may_not_be_read_now_is_not_corrupt(tmp_path, home, monkeypatch):
    """Skipped, it would be left out for ever: its right is no part of what names the cache."""
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    opened = Image.open

    def refuse(file, **rest):
        if str(file).endswith("a/0.png"):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, **rest)

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(InputError, match=r"a/0\.png cannot be read now: Permission denied"):
        load(root, on_corrupt="skip")
    monkeypatch.setattr(Image, "open", opened)
    assert not load(root, on_corrupt="skip").skipped


@pytest.mark.parametrize(("fails", "shown"), [
    ((Image, "open"), "a/0.png; end"), ((folders, "to_rgb"), r"a/0.png \(40 x 30 pixels\); end"),
])  # fmt: skip
def test_an_image_for_which_there_is_no_memory_now_is_not_corrupt(
    tmp_path, home, monkeypatch, fails, shown
):
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    with monkeypatch.context() as patch:
        patch.setattr(*fails, lambda *_, **__: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(InputError, match=f"not enough memory now for {shown} other programs"):
            load(root, on_corrupt="skip")
    assert not load(root, on_corrupt="skip").skipped


def test_a_link_to_nothing_is_an_image_that_cannot_be_read_until_it_leads_somewhere(tmp_path, home):
    """As of git-annex and DVC, before the images themselves are fetched."""
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    (root / "a" / "away.png").symlink_to(tmp_path / "store" / "1.png")
    (root / "b" / "loop.png").symlink_to("loop.png")
    (root / "b" / "notes.txt").symlink_to("nowhere")
    (root / "b" / "folder.png").symlink_to(root / "a")
    (root / "b" / "linked.png").symlink_to(root / "b" / "0.png")
    reasons = r"a/away\.png \(a link to nothing.*b/loop\.png \(a link to nothing.*skip"
    with pytest.raises(InputError, match=rf"2 of 19 images in .* cannot be read: {reasons}"):
        load(root)
    found = load(root, on_corrupt="skip")
    assert [s.split(" ")[0] for s in found.skipped] == ["a/away.png", "b/loop.png"]
    assert sum(len(getattr(found, p)) for p in PARTS) == 17
    paint(tmp_path / "store" / "1.png")
    found = load(root, on_corrupt="skip")
    assert [s.split(" ")[0] for s in found.skipped] == ["b/loop.png"]
    assert sum(len(getattr(found, p)) for p in PARTS) == 18


def test_a_class_of_links_to_nothing_is_not_left_out(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    (root / "c").mkdir()
    (root / "c" / "0.png").symlink_to("nowhere")
    with pytest.raises(InputError, match="no train image of class 'c' can be read"):
        load(root, on_corrupt="skip")


def test_a_file_that_a_link_led_to_when_listed_is_not_skipped_when_it_is_gone(
    tmp_path, home, monkeypatch
):
    """It would be left out for ever: its stamp names the cache."""
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    paint(tmp_path / "store" / "1.png")
    (root / "a" / "away.png").symlink_to(tmp_path / "store" / "1.png")
    decode = folders._decode

    def late(*args):
        (tmp_path / "store" / "1.png").unlink()
        decode(*args)

    monkeypatch.setattr(folders, "_decode", late)
    with pytest.raises(InputError, match=r"a/away\.png cannot be read now"):
        load(root, on_corrupt="skip")


def test_files_that_are_not_read_are_counted_by_their_endings(tmp_path, home, caplog):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    for name in ("a/1.heic", "a/2.HEIC", "b/list.txt", "b/plain", "b/.hidden"):
        (root / name).write_bytes(b"x")
    (root / "notes.txt").write_text("beside the classes")
    (root / "a" / "0.png").rename(root / "a" / "0.jfif")
    for place in (root, pack(root, tmp_path / "set.tar")):
        caplog.clear()
        with caplog.at_level("WARNING"):
            assert load(place).classes == ("a", "b")
        (line,) = (r.getMessage() for r in caplog.records if "not read" in r.getMessage())
        assert "4 files are not read: .heic (2), .txt (1), no ending (1); read are .bmp" in line


@pytest.mark.parametrize(
    ("within", "beside", "told"),
    [("", ["x.png", "y.JPG"], "2 files lie in no class folder and are not read: x.png, y.JPG"),
     ("train", ["x.png", "train/y.png", ".z.png"], "2 .*: train/y.png, x.png"),
     ("train", [f"train/{i}.png" for i in range(6)], "6 .*: train/0.png, .*/4.png, ...$")],
    ids=["flat", "parts", "many"],
)  # fmt: skip
def test_images_that_lie_in_no_class_folder_are_counted_and_named(
    tmp_path, home, caplog, within, beside, told
):
    root = tmp_path / "set"
    folder(root / within, {"a": 5, "b": 5})
    read = load(root).fingerprint
    for name in beside:
        paint(root / name)
    for place in (root, pack(root, tmp_path / "x.tar", "set/")):
        caplog.clear()
        assert load(place).fingerprint == read
        assert re.search(told, caplog.text.strip()), place
        assert len(caplog.records) == 1


def test_hidden_folders_are_counted_and_not_read(tmp_path, home, caplog):
    """They hold small copies of the images: of one in training, the other may be tested."""
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    read = load(root).fingerprint
    for name in ("a/.thumbnails", "a/in/.AppleDouble/in", "b/.ipynb_checkpoints", ".cache"):
        shutil.copytree(root / "b", root / name, ignore=shutil.ignore_patterns(".*"))
    (root / "a" / ".thumbnails" / "link.png").symlink_to("nowhere")
    (root / ".unplugged").symlink_to("nowhere")
    for place in (root, pack(root, tmp_path / "x.tar"), pack(root, tmp_path / "y.tar", "set/")):
        caplog.clear()
        assert load(place).fingerprint == read
        (line,) = (r.getMessage() for r in caplog.records)
        assert "3 files are not read: hidden folders (3); read are" in line


def test_links_to_folders_are_counted_and_not_followed(tmp_path, home, caplog):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    read = load(root).fingerprint
    paint(tmp_path / "store" / "1.png")
    (root / "a" / "more").symlink_to(tmp_path / "store")
    os.mkfifo(root / "b" / "pipe.png")
    (root / "c").symlink_to(tmp_path / "unplugged")
    assert load(root).fingerprint == read
    assert "1 files lie in no class folder and are not read: c" in caplog.text
    assert "2 files are not read: links to folders (1), pipes and the like (1)" in caplog.text
    caplog.clear()
    (root / "b" / "pipe.png").unlink()
    assert load(pack(root, tmp_path / "x.tar")).fingerprint == read
    assert "2 files are not read: links (2)" in caplog.text


@pytest.mark.parametrize(
    ("link", "to", "told"),
    [("c", ".", "the class folder c is a link to .*/set/, in which all of them lie"),
     ("c", "..", "the class folder c is a link to .*/, in which all of them lie"),
     ("c", "a", "the class folders a and c hold the same images"),
     ("c", "a/sub", "the class folders a and c hold the same images"),
     ("train/c", ".", "the class folders train/c and train/a hold the same images"),
     ("test", "train", "the class folders test/a and train/a hold the same images")],
)  # fmt: skip
def test_a_link_by_which_classes_share_images_is_refused(tmp_path, home, link, to, told):
    root = tmp_path / "set"
    folder(root / "train" if "t" in link else root, {"a": 5, "b": 5})
    paint(root / "a" / "sub" / "1.png")
    (root / link).symlink_to(to)
    with pytest.raises(InputError, match=told) as raised:
        load(root)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("links", "to", "told"),
    [(["b/x.png", "b/y.png"], "../a/0.png", "2 images are links .*b/x.png into a"),
     (["b/sub/x.png"], "../../a/sub/1.png", "1 images are links .*b/sub/x.png into a"),
     (["b/x.png"], "../a/gone.png", "b/x.png into a"),
     (["b/x.png"], "../../chain.png", "b/x.png into a"),
     (["test/a/x.png"], "../../train/a/0.png", "test/a/x.png into train/a")],
)  # fmt: skip
def test_a_link_to_an_image_of_another_class_or_part_is_refused(tmp_path, home, links, to, told):
    root = tmp_path / "set"
    for part in ("train", "test") if "test" in links[0] else ("",):
        folder(root / part, {"a": 5, "b": 5})
    paint(root / "a" / "sub" / "1.png")
    (root / "b" / "sub").mkdir(parents=True, exist_ok=True)
    (tmp_path / "chain.png").symlink_to("set/a/0.png")
    for link in links:
        (root / link).symlink_to(to)
    with pytest.raises(InputError, match=rf"{told}\), .*: remove these links"):
        load(root)


def test_images_may_be_links_within_their_class_and_to_files_outside_of_all(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    (root / "b").rename(tmp_path / "b")
    (root / "b").symlink_to(tmp_path / "b")
    (root / "b" / "again.png").symlink_to("0.png")
    (root / "a" / "again.png").symlink_to(root / "a" / "0.png")
    for i, name in enumerate(("set/0.png", "set/.store/1.png", "store/2.png", "a-/3.png")):
        paint(tmp_path / name)
        (root / "a" / f"outside {i}.png").symlink_to(tmp_path / name)
    assert sum(len(getattr(load(root), p)) for p in PARTS) == 16


def test_a_class_may_be_a_link_to_a_folder_of_its_own(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    read = load(root).fingerprint
    (root / "b").rename(tmp_path / "set b")
    (root / "b").symlink_to(tmp_path / "set b")
    assert load(root).fingerprint == read


def test_files_are_listed_folder_by_folder_where_their_names_stand(tmp_path):
    """The order is part of what names the cache."""
    order = ["a/B.png", "a/b/1.png", "a/b/c/2.png", "a/b/d.png", "a/b-.png", "a/b.png", "a/c.png"]
    for name in reversed(order):
        paint(tmp_path / name)
    assert [
        name for name, _ in folders._walk(tmp_path, "a", collections.Counter(), {}, [])
    ] == order
    packed = [*reversed(order), "z/1.png"]  # an archive has its files in any order
    assert folders._arrange(packed, {"a", "z"}, tmp_path)["train"]["a"] == order


def test_folders_may_lie_deeper_in_each_other_than_functions_may_call_each_other(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    load(root)  # what is imported at the first time may need more calls
    deep = [f"{root}/a" + "/d" * i for i in range(1, 301)]
    for path in deep:
        os.mkdir(path)
    os.rename(root / "a" / "0.png", f"{deep[-1]}/0.png")
    # fewer calls instead of more folders: macOS takes no path of more than 1,023 bytes
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)
    try:
        found = folders._list_folder(root)[0]["train"]["a"]
        assert sum(len(getattr(load(root), p)) for p in PARTS) == 16
    finally:
        sys.setrecursionlimit(before)
    assert len(found) == 8
    assert found[-1] == "a" + "/d" * 300 + "/0.png"


def test_a_folder_that_cannot_be_listed_is_named_with_what_to_do(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    (root / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"set/loop cannot be listed: .*; repair or remove it"):
        load(root)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_an_image_with_numbers_that_are_none_is_corrupt_and_not_black(tmp_path, home, number):
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    pixels = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    Image.fromarray(pixels).save(root / "a" / "good.tif")
    pixels[3, 4] = number
    Image.fromarray(pixels).save(root / "a" / "bad.tif")
    with pytest.raises(InputError, match=r"1 of 18 images.*a/bad\.tif \(ValueError.*nan or inf"):
        load(root)
    (bad,) = load(root, on_corrupt="skip").skipped
    assert "a/bad.tif" in bad


def test_an_image_whose_offset_leads_nowhere_is_corrupt_and_no_fault_of_the_disk(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 8, "b": 8})
    start = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 2**63 - 1)  # BigTIFF, by its first four bytes
    (root / "a" / "bad.tif").write_bytes(start + bytes(64))
    with pytest.raises(InputError, match=r"1 of 17 images.*a/bad\.tif"):
        load(root)
    (bad,) = load(root, on_corrupt="skip").skipped
    assert "a/bad.tif" in bad


def test_only_the_formats_that_are_listed_are_tried_whatever_a_file_is_called(
    tmp_path, home, monkeypatch
):
    """Pillow goes by the content, and hands an EPS to another program."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", lambda _: pytest.fail("tried"))
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    start, box = b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%%BoundingBox: 0 0 16 16\n%%EndComments\n"
    (root / "a" / "eps.png").write_bytes(start + box + b"showpage\n%%EOF\n")
    Image.new("RGB", (16, 16)).save(root / "b" / "pcx.jpg", "PCX")
    found = load(root, on_corrupt="skip")
    assert [s.split(" (")[0] for s in found.skipped] == ["a/eps.png", "b/pcx.jpg"]
    assert all("cannot identify" in s for s in found.skipped)


def test_every_suffix_has_its_format_and_the_other_way_round():
    Image.init()
    known = [Image.registered_extensions()[suffix] for suffix in folders.IMAGE_SUFFIXES]
    assert set(known) == set(folders.IMAGE_FORMATS)


def test_pictures_of_phones_and_moving_ones_are_read(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    kinds = {"phone.jpg": "MPO", "moves.gif": "GIF", "moves.webp": "WEBP", "pages.tif": "TIFF"}
    for name, kind in kinds.items():
        frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (90, 180)]
        frames[0].save(root / "a" / name, kind, save_all=True, append_images=frames[1:])
    found = load(root)
    assert found.skipped == ()
    assert sum(len(getattr(found, p)) for p in PARTS) == 14


def test_an_image_that_would_fill_the_memory_counts_as_corrupt(tmp_path, home, monkeypatch):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the images have 1,200 pixels
    with pytest.raises(InputError, match="DecompressionBomb"):
        load(root)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "there is no such folder"),
        (lambda root: root.mkdir(), "has 0 class folders; at least two"),
        (lambda root: folder(root, {"a": 5}), "has 1 class folders; at least two"),
        (lambda root: (folder(root, {"a": 5, "b": 5}) / "empty").mkdir(), "empty has no images"),
        (lambda root: folder(root, {"a": 5, "b": 2}), "'b' has 2 readable training images"),
        (lambda root: paint(root / "loose.png"), "has 0 class folders"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, home, make, message):
    make(tmp_path / "set")
    with pytest.raises(InputError, match=message):
        load(tmp_path / "set")


def test_classes_of_train_and_test_must_agree(tmp_path, home):
    folder(tmp_path / "set" / "train", {"a": 5, "b": 5})
    folder(tmp_path / "set" / "test", {"a": 5, "c": 5})
    with pytest.raises(InputError, match="2 classes are in only one of train/ and test/: b, c"):
        load(tmp_path / "set")
    folder(tmp_path / "set" / "test", {f"of a long name {i}": 1 for i in range(300)}, size=(8, 8))
    with pytest.raises(InputError, match=r"302 classes .*: b, c, of a.*\.\.\.") as raised:
        load(tmp_path / "set")
    assert len(str(raised.value)) < 250 + len(str(tmp_path))


def test_a_part_that_loses_a_whole_class_is_refused_even_when_skipping(tmp_path, home):
    folder(tmp_path / "set" / "train", {"a": 5, "b": 5})
    for name in "ab":
        (tmp_path / "set" / "test" / name).mkdir(parents=True)
        (tmp_path / "set" / "test" / name / "0.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no test image of class 'a' can be read"):
        load(tmp_path / "set", on_corrupt="skip")


def shorter(path):
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other(**changes):
    """Change the description."""

    def change(path):
        about = path.with_suffix(".json")
        files.write_json(about, files.read_json(about) | changes)

    return change


def another_array(array):
    """Put another array there, with the SHA-256 that belongs to it."""

    def change(path):
        np.save(path, array)
        other(sha256=files.sha256(path))(path)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.with_suffix(".json").write_text("{"),
        shorter,
        flipped,
        other(sha256="0"),
        other(version=0),
        other(counts={"train": {"a": 5}}),
        other(counts={"train": {"a": 5, "b": -5}}),
        other(counts=[]),
        other(counts={"test": {"a": 5, "b": 5}}),
        other(skipped=[[10, "beyond the end"]]),
        other(skipped=[[-1, "before the start"]]),
        other(skipped=[[0, 5]]),
        other(skipped=[["0", "a/0.png"]]),
        other(skipped=[[0.5, "a/0.png"]]),
        other(skipped=[0]),
        other(skipped="none"),
        other(form=3),
        other(form="PNG"),
        other(form=["PNG", 40, "30"]),
        another_array(np.zeros((10, 3, 32, 31), np.uint8)),
        another_array(np.zeros((9, 3, 32, 32), np.uint8)),
        another_array(np.zeros((10, 3, 32, 32), np.int8)),
        another_array(np.zeros(3, np.uint8)),
    ],
)
def test_a_cache_that_is_no_cache_is_named(tmp_path, home, damage):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    load(root)
    (path,) = (home / "data" / "cache").glob("*.npy")
    damage(path)
    with pytest.raises(files.FileProblem, match=r"set-32px.*delete it"):
        load(root)


@pytest.mark.parametrize("deleted", [".npy", ".json"])
def test_the_advice_at_a_damaged_cache_is_a_remedy(tmp_path, home, deleted):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    first = load(root)
    (path,) = (home / "data" / "cache").glob("*.npy")
    flipped(path)
    with pytest.raises(files.FileProblem, match="delete it"):
        load(root)
    path.with_suffix(deleted).unlink()
    assert load(root).fingerprint == first.fingerprint
    assert path.is_file()


def test_a_cache_is_whole_or_absent(tmp_path):
    path = tmp_path / "x.npy"

    def fill(put):
        put(0, np.zeros((3, 4, 4), np.uint8))
        raise InputError("the second image is missing")

    with pytest.raises(InputError):
        store.create(path, {"train": {"a": 1, "b": 1}}, 4, fill)
    assert not store.exists(path)
    assert list(tmp_path.iterdir()) == []


def test_the_old_array_can_be_used_until_the_new_one_is_whole(tmp_path):
    path, counts = tmp_path / "x.npy", {"train": {"a": 1, "b": 1}}

    def fill(shade, fails=False):
        def act(put):
            for row in range(2):
                put(row, np.full((3, 4, 4), shade, np.uint8))
            if shade > 1:
                assert int(store.read(path, 4).parts["train"][0][:].max()) == 1
            if fails:
                raise InputError("the disk is full")
            return NOTHING

        return act

    store.create(path, counts, 4, fill(1))
    with pytest.raises(InputError):
        store.create(path, counts, 4, fill(2, fails=True))
    assert int(store.read(path, 4).parts["train"][0][:].max()) == 1, "hours of work are kept"
    store.create(path, counts, 4, fill(3))
    assert int(store.read(path, 4).parts["train"][0][:].min()) == 3


def test_no_old_description_stands_beside_a_new_array(tmp_path, monkeypatch):
    """A process may die between the two: then there is no cache, and not one that is damaged."""
    path, counts, fill = tmp_path / "x.npy", {"train": {"a": 1}}, lambda put: NOTHING
    store.create(path, counts, 4, fill)
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *a: (seen.append(store.exists(path)), replace(*a)))
    store.create(path, counts, 4, fill)
    assert seen == [False, False]
    assert store.exists(path)


@pytest.mark.parametrize("image", [
    np.zeros((3, 4, 5), np.uint8), np.zeros((1, 4, 4), np.uint8), np.zeros((3, 4, 4), np.float32),
])  # fmt: skip
def test_an_image_of_another_form_is_not_stored(tmp_path, image):
    with pytest.raises(ValueError, match=rf"an image of \({image.shape[0]}, .* {image.dtype}, not"):
        store.create(tmp_path / "x.npy", {"train": {"a": 1}}, 4, lambda put: put(0, image))
    assert not [*tmp_path.iterdir()]


def test_what_dead_processes_left_is_removed_whatever_the_name_of_the_file(tmp_path):
    path, other = tmp_path / "a[1].npy", tmp_path / ".a1.npy.0.part"
    for left in (tmp_path / ".a[1].npy.0.part", other):  # the other is at work
        left.touch()
    store.create(path, {"train": {"a": 1}}, 4, lambda put: NOTHING)
    assert {p.name for p in tmp_path.iterdir()} == {"a[1].npy", "a[1].json", other.name}


def test_only_images_of_one_file_are_joined():
    rows, cpu = torch.arange(2), torch.device("cpu")
    a, b = (store.Stored(Path(name), rows, cpu) for name in "ab")
    assert store.join([a, a.select(rows[1:])]).rows.tolist() == [0, 1, 1]
    with pytest.raises(InputError, match=r"images = .*'a'.*'b'.* those of one dataset"):
        store.join([a, a, b])


@pytest.mark.parametrize("packed", [False, True])
def test_of_several_that_begin_at_once_one_decodes(tmp_path, home, monkeypatch, packed):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    root = pack(root, tmp_path / "x.tar") if packed else root
    together, begun, decoded = threading.Barrier(4), threading.local(), []
    exists, pixels = store.exists, folders._pixels

    def looked(path):
        found = exists(path)
        if not hasattr(begun, "here"):  # all of them find that nothing is there
            begun.here = together.wait(60)
        return found

    monkeypatch.setattr(store, "exists", looked)
    monkeypatch.setattr(folders, "_pixels", lambda *args: decoded.append(1) or pixels(*args))
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: folders.read(root, 16, progress=False), range(4))]
    assert len(decoded) == 10
    assert len({bytes(one.parts["train"][0][:].numpy()) for one in found}) == 1


def test_what_is_decoded_is_read_where_nothing_can_be_written(tmp_path, home, monkeypatch):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    first = load(root)
    monkeypatch.setattr(files, "locked", lambda *_, **__: pytest.fail("a lock needs a file"))
    assert load(root).fingerprint == first.fingerprint


@pytest.fixture
def any_names(tmp_path):
    """Names that are not UTF-8 can be given here; the file system of macOS refuses them."""
    probe = os.fsencode(tmp_path) + b"/\xff"
    try:
        os.mkdir(probe)
    except OSError as error:
        pytest.skip(f"the file system takes no names that are not UTF-8: {error}")
    os.rmdir(probe)


def test_odd_names_are_read(tmp_path, home):
    root = folder(tmp_path / ("x" * 200), {"ä b": 5, "猫": 5, "tea\x1b\n": 5})
    assert load(root).classes == ("tea\N{REPLACEMENT CHARACTER} ", "ä b", "猫")


def test_images_whose_names_are_not_utf_8_are_read(tmp_path, home, any_names):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    (root / "a" / "0.png").rename(root / "a" / os.fsdecode(b"\xff\xfe.png"))
    assert sum(len(getattr(load(root), p)) for p in PARTS) == 10


def test_names_that_are_not_utf_8_are_escaped_and_stay_different(tmp_path, home, any_names):
    names = [os.fsdecode(b"caf\xe8"), os.fsdecode(b"caf\xe9")]
    found = load(folder(tmp_path / os.fsdecode(b"men\xfc"), dict.fromkeys(names, 5)))
    assert (found.name, found.classes) == (r"men\udcfc", (r"caf\udce8", r"caf\udce9"))


# ------------------------------------------------------------------------------------------------
# archives


def pack(root, path, top=""):
    """Pack a folder, its files in a disorderly order."""
    with tarfile.open(path, f"w:{path.suffix[1:].removeprefix('tar')}") as tar:
        for one in sorted(root.rglob("*"), key=lambda p: hashlib.sha256(bytes(p)).digest()):
            tar.add(one, f"{top}{one.relative_to(root)}", recursive=False)
    return path


def mixed(root):
    """A folder with everything that must be left out or put in order."""
    folder(root / "train", {"a": 11, "b": 6})
    folder(root / "test", {"a": 3, "b": 4})
    paint(root / "train" / "a" / "sub" / "1.png", color=(1, 2, 3))
    paint(root / "train" / "a" / "sub.d" / "1.JPG", color=(1, 2, 4))
    paint(root / "train" / ".hidden" / "1.png")
    paint(root / "train" / "a" / ".hidden.png")
    paint(root / "train" / "loose.png")
    paint(root / "other" / "a" / "1.png")
    (root / "README.md").write_text("no image")
    return root


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("top", ["", "./", "set/", "./set/"])
def test_an_archive_is_what_it_unpacks_to(tmp_path, home, suffix, top):
    root = mixed(tmp_path / "set")
    unpacked = load(root)
    found = load(pack(root, tmp_path / f"shop.{suffix}", top))
    assert found.fingerprint == unpacked.fingerprint
    assert (found.name, found.classes) == ("shop", ("a", "b"))
    for part in PARTS:
        assert torch.equal(getattr(found, part).images, getattr(unpacked, part).images)
    assert not list(home.rglob("*.png")), "nothing is unpacked"
    assert not [p for p in home.rglob("*") if p.suffix not in ("", ".npy", ".json", ".lock")]


def test_an_archive_without_entries_for_its_folders_is_read(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in root.rglob("*.png"):
            tar.add(path, path.relative_to(root))
    assert load(tmp_path / "x.tar").fingerprint == load(root).fingerprint


def test_an_archive_is_decoded_once_and_of_a_file_that_is_twice_the_last_counts(
    tmp_path, home, monkeypatch
):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    (root / "b" / "2.png").write_bytes(b"broken")
    archive = pack(root, tmp_path / "x.tar")
    paint(root / "a" / "0.png", color=(7, 7, 7))
    (root / "b" / "1.png").write_bytes(b"broken")
    paint(root / "b" / "2.png")
    with tarfile.open(archive, "a") as tar:
        for name in ("a/0.png", "b/1.png", "b/2.png"):
            tar.add(root / name, name)
    found, unpacked = (load(where, on_corrupt="skip") for where in (archive, root))
    assert found.fingerprint == unpacked.fingerprint
    assert found.skipped == unpacked.skipped
    assert "b/1.png" in found.skipped[0]
    monkeypatch.setattr(folders, "_members", lambda *_: pytest.fail("read a second time"))
    assert load(archive, on_corrupt="skip").fingerprint == found.fingerprint
    with pytest.raises(InputError, match=r"1 of 10 images in .*x\.tar cannot be read: b/1\.png"):
        load(archive)


def test_an_archive_that_changes_while_it_is_read_is_refused(tmp_path, home, monkeypatch):
    archive = pack(folder(tmp_path / "set", {"a": 5, "b": 5}), tmp_path / "x.tar")
    members = folders._members

    def fewer(path, wanted, *rest):
        for name, *more in members(path, wanted, *rest):
            if not (wanted and name.endswith("b/0.png")):
                yield name, *more

    monkeypatch.setattr(folders, "_members", fewer)
    with pytest.raises(InputError, match=r"x\.tar changed while it was read; run the same again"):
        load(archive)
    assert not [*home.rglob("*.npy")]


def entry(name, kind, target="", content=b""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content)
    return info, io.BytesIO(content)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (entry("a/l.png", tarfile.SYMTYPE, "/etc/passwd"), "l.png is a link or a device"),
        (entry("a/h.png", tarfile.LNKTYPE, "a/0.png"), "h.png is a link or a device"),
        (entry("a/d.png", tarfile.CHRTYPE), "d.png is a link or a device"),
        (entry("../a/1.png", tarfile.REGTYPE), r"\.\./a/1\.png lies outside"),
        (entry("a/x.png", tarfile.REGTYPE, "", bytes(5001)), "x.png has 5,001 bytes, more than"),
    ],
)
def test_an_archive_with_anything_odd_is_refused(tmp_path, home, monkeypatch, extra, message):
    monkeypatch.setattr(folders, "LARGEST_MEMBER", 5000)
    archive = pack(folder(tmp_path / "set", {"a": 5, "b": 5}), tmp_path / "x.tar")
    with tarfile.open(archive, "a") as tar:
        tar.addfile(*extra)
    with pytest.raises(InputError, match=message):
        load(archive)
    assert [p.suffix for p in (home / "data" / "cache").iterdir()] == [".lock"], "empty"


def test_an_archive_that_may_not_be_read_is_not_called_damaged(tmp_path, home, monkeypatch):
    archive = pack(folder(tmp_path / "set", {"a": 5, "b": 5}), tmp_path / "x.tar")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folders, "_unpacked", refuse)
    with pytest.raises(InputError, match=r"x\.tar may not be read: give yourself the right to"):
        load(archive)


def test_an_archive_of_too_many_files_is_refused(tmp_path, home, monkeypatch):
    monkeypatch.setattr(folders, "MOST_MEMBERS", 10)
    archive = pack(folder(tmp_path / "set", {"a": 6, "b": 5}), tmp_path / "x.tar")
    with pytest.raises(InputError, match="more than 10 files"):
        load(archive)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
def test_a_damaged_archive_is_refused_wherever_it_is_damaged(tmp_path, home, suffix):
    """tarfile alone takes a header that is missing or damaged for the end of the archive."""
    archive = pack(folder(tmp_path / "set", {"a": 8, "b": 8}), tmp_path / f"x.{suffix}")
    whole = archive.read_bytes()
    # of a plain one: before the blocks of zeros that end it
    end = -(-len(whole.rstrip(b"\0")) // 512) * 512 if suffix == "tar" else len(whole) - 1
    for at in {1, end // 3, end // 2, end - 600 if suffix == "tar" else end - 9, end}:
        archive.write_bytes(whole[:at])
        with pytest.raises(InputError, match=rf"x\.{suffix} cannot be read as a tar archive"):
            load(archive)
    if suffix != "tar":
        content = bytearray(whole)
        content[end // 2] ^= 255
        archive.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as a tar archive"):
            load(archive)


def parsed_by(monkeypatch, name):
    """Have tarfile parse headers by the method of that name, as one version of Python or other."""
    method = getattr(tarfile.TarInfo, "_frombuf", tarfile.TarInfo.frombuf).__func__

    def parse(cls, buf, encoding, errors, *, dircheck=True):
        return method(cls, buf, encoding, errors)

    def read(cls, archive, **kwargs):
        buf = archive.fileobj.read(tarfile.BLOCKSIZE)
        found = getattr(cls, name)(buf, archive.encoding, archive.errors, **kwargs)
        found.offset = archive.fileobj.tell() - tarfile.BLOCKSIZE
        return found._proc_member(archive)

    new = {name: parse, "fromtarfile": read, "_fromtarfile": read}
    for attribute, function in new.items():
        monkeypatch.setattr(tarfile.TarInfo, attribute, classmethod(function), raising=False)


@pytest.mark.parametrize("size", [1, 424, 511, 512, 513, 1024])
@pytest.mark.parametrize("method", ["frombuf", "_frombuf"])
def test_an_archive_is_refused_wherever_it_is_cut_before_its_end_mark(
    tmp_path, home, monkeypatch, method, size
):
    parsed_by(monkeypatch, method)
    path, content = tmp_path / "x.tar", bytes(range(1, 256)) * 5
    with tarfile.open(path, "w") as tar:
        for name in ("a/1.png", "a/2.png"):
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(content[:size]))
    whole, end = path.read_bytes(), 2 * (512 + -(-size // 512) * 512)
    assert any(whole[end - 512 : end])
    assert not any(whole[end:])
    for at in {*range(1, end, 97), *range(512, end + 1, 512), end - 1, end + 1, end + 511}:
        path.write_bytes(whole[:at])
        with pytest.raises(InputError, match=r"x\.tar cannot be read as a tar archive"):
            list(folders._members(path, {"a/1.png", "a/2.png"}, "reading", progress=False))
    path.write_bytes(whole)
    assert len(list(folders._members(path, (), "reading", progress=False))) == 2


def headers(archive):
    return [i for i in range(0, len(archive), 512) if archive[i + 257 : i + 262] == b"ustar"]


@pytest.mark.parametrize("method", ["frombuf", "_frombuf"])
def test_an_archive_with_a_damaged_header_is_refused(tmp_path, home, monkeypatch, method):
    parsed_by(monkeypatch, method)
    path = pack(folder(tmp_path / "set", {"a": 5, "b": 5}), tmp_path / "x.tar")
    assert len(load(path).train)
    whole = path.read_bytes()
    for place in headers(whole)[1], headers(whole)[-1]:
        content = bytearray(whole)
        content[place + 5] ^= 255
        path.write_bytes(content)
        with pytest.raises(InputError, match="it is cut off or damaged"):
            load(path)


def test_a_python_that_parses_headers_in_yet_another_way_refuses_what_it_cannot_check(
    tmp_path, home, monkeypatch
):
    path = pack(folder(tmp_path / "set", {"a": 5, "b": 5}), tmp_path / "x.tar")
    parsed_by(monkeypatch, "parsed_otherwise")
    whole = path.read_bytes()
    for content in (whole, whole[: headers(whole)[4]]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"cut off, or this version of Python.*give a folder"):
            load(path)


def header(kind, size=0, name="././@More"):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


def record(kind, size):
    """A header that says more of members, with what it says: a long comment."""
    start = b"%d comment=" % size
    return header(kind, size) + start + b"a" * (size - len(start) - 1) + b"\n" + bytes(-size % 512)


@pytest.mark.parametrize("method", ["frombuf", "_frombuf"])
@pytest.mark.parametrize("kind", [b"x", b"g", b"X", b"L", b"K"])
def test_what_stands_before_a_member_is_not_read_if_it_would_fill_the_memory(
    tmp_path, home, monkeypatch, method, kind
):
    parsed_by(monkeypatch, method)
    path = pack(folder(tmp_path / "set", {"a": 5, "b": 5}), tmp_path / "x.tar")
    path.write_bytes(header(kind, 8**11 - 1) + path.read_bytes())
    with pytest.raises(InputError, match="have 8,589,934,591 bytes, more than 1,000,000"):
        load(path)


MEMBER, MORE, LASTING = header(b"0", 0, "a/0.png"), record(b"x", 400_000), record(b"g", 400_000)


@pytest.mark.parametrize(
    ("parts", "refused"),
    [
        ([MORE, MEMBER] * 4, False),
        ([LASTING, MORE, MEMBER, MORE, MEMBER], False),
        ([MORE, MORE, MORE, MEMBER], True),
        ([LASTING, MEMBER] * 3, True),
        ([LASTING, MEMBER, LASTING, MORE, MEMBER], True),
        ([record(b"x", 600)] * 1000 + [MEMBER], True),
    ],
)
def test_what_stands_before_a_member_counts_together_and_what_lasts_always(
    tmp_path, parts, refused
):
    (tmp_path / "x.tar").write_bytes(b"".join(parts) + bytes(1024))
    members = folders._members(tmp_path / "x.tar", (), "reading", progress=False)
    if refused:
        with pytest.raises(InputError, match="cannot be read as a tar archive"):
            list(members)
    else:
        assert [name for name, _, _ in members] == ["a/0.png"] * parts.count(MEMBER)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_size_that_no_file_has_is_not_read_up_to_its_end(tmp_path, kind):
    info = tarfile.TarInfo("a/0.bin")
    info.size = 120_000_000_000
    (tmp_path / "x.tar").write_bytes(info.tobuf(kind) + bytes(1024))
    with pytest.raises(InputError, match=r"a/0\.bin has more than 100,000,000,000 bytes"):
        list(folders._members(tmp_path / "x.tar", (), "reading", progress=False))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.GNUTYPE_SPARSE, {}),
        (tarfile.REGTYPE, {"GNU.sparse.size": "0"}),
        (tarfile.REGTYPE, {"GNU.sparse.map": "0,0"}),
        (tarfile.REGTYPE, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    ],
)
def test_a_sparse_file_is_refused_before_what_it_holds_is_listed(tmp_path, kind, said):
    """Four forms of one: these lists have no limit, and a small archive may hold huge ones."""
    info = tarfile.TarInfo("a/0.png")
    info.type, info.size, info.pax_headers = kind, 512, said
    content = b"0\n".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + content + bytes(1024))
    with pytest.raises(InputError, match=r"holds sparse files, .* without --sparse"):
        list(folders._members(tmp_path / "x.tar", (), "reading", progress=False))


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read(tmp_path, kind):
    name = "/".join(["a" * 200] * 4)
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
        tar.addfile(*entry(name, tarfile.REGTYPE))
    (found,) = folders._members(tmp_path / "x.tar", (), "reading", progress=False)
    assert found[0] == name


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(("last", "refused"), [("é.png", False), ("xé.png", True)])
def test_a_name_that_no_file_has_is_refused_and_not_repeated(tmp_path, home, kind, last, refused):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    path, name = pack(root, tmp_path / "x.tar"), "a/" * 2045 + last
    assert len(name.encode()) == 4096 + refused
    with tarfile.open(path, "a", format=kind) as tar:
        tar.addfile(*entry(name, tarfile.REGTYPE, "", (root / "a" / "0.png").read_bytes()))
    if refused:
        with pytest.raises(InputError, match=r"the name a/a/.* has 4,097 bytes, more") as raised:
            load(path)
        assert len(str(raised.value)) < 400 + len(str(tmp_path))
    else:
        assert sum(len(getattr(load(path), p)) for p in PARTS) == 11


def test_the_names_of_an_archive_are_counted_together(tmp_path, home, monkeypatch):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in [f"{c}/{i}.png" for c in "ab" for i in range(5)]:  # 70 bytes
            tar.add(root / name, name)
    monkeypatch.setattr(folders, "LARGEST_NAMES", 69)
    with pytest.raises(InputError, match="names of its files have more than 69 bytes"):
        load(tmp_path / "x.tar")
    monkeypatch.setattr(folders, "LARGEST_NAMES", 70)
    assert load(tmp_path / "x.tar").fingerprint == load(root).fingerprint


def test_names_of_many_folders_take_no_more_memory_than_themselves(tmp_path):
    """Not that of ``a``, ``a/0``, ``a/0/d``, ``a/0/d/d`` and so on."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i in range(20):
            for top in "ab":
                tar.addfile(*entry(f"{top}/{i}/" + "d/" * 2000 + "x.png", tarfile.REGTYPE))
    tracemalloc.start()
    listing, _ = folders._list_archive(tmp_path / "x.tar", progress=False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {name: len(found) for name, found in listing["train"].items()} == {"a": 20, "b": 20}
    assert peak < 3_000_000 + 10 * 40 * 4010


def test_a_file_that_is_no_archive_is_refused(tmp_path, home):
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(InputError, match=r"notes\.txt cannot be read as a tar archive"):
        load(tmp_path / "notes.txt")


def ten(root, suffix="jpg", size=(32, 32), classes=None, count=2):
    for part in ("train", "test"):
        folder(root / part, dict.fromkeys(classes or download.CLASSES, count), suffix, size=size)
    return root


def test_the_jpeg_copy_of_cifar10_is_called_by_its_name_and_nothing_else_is(tmp_path, home):
    copy = ten(tmp_path / "copy")
    assert load(copy).name == "CIFAR-10 (JPEG)"
    assert load(pack(copy, tmp_path / "x.tar.xz")).name == "CIFAR-10 (JPEG)"
    assert load(copy, image_size=16).name == "CIFAR-10 (JPEG)"
    others = [*download.CLASSES[:9], "van"]
    assert load(ten(tmp_path / "lossless", "png")).name == "lossless"
    assert load(ten(tmp_path / "larger", size=(33, 32))).name == "larger"
    assert load(ten(tmp_path / "others", classes=others)).name == "others"
    assert load(ten(tmp_path / "undivided", count=3) / "train").name == "train"
    paint(copy / "test" / "cat" / "odd.png", size=(32, 32))
    assert load(copy).name == "copy"


# ------------------------------------------------------------------------------------------------
# images that stay in their file


@pytest.fixture
def both(tmp_path, home):
    """One folder, in memory and in its file."""
    root, draw = tmp_path / "set", np.random.default_rng(0)
    for label, name in enumerate("abc"):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(80 * label, 80 * label + 96, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return load(root, image_size=16), load(root, image_size=16, memory_mb=0)


def test_a_dataset_in_its_file_is_the_same_dataset(both):
    memory, stored = both
    assert isinstance(memory.train.images, torch.Tensor)
    assert isinstance(stored.train.images, store.Stored)
    assert stored.fingerprint == memory.fingerprint
    assert torch.equal(stored.mean, memory.mean)
    assert torch.equal(stored.std, memory.std)
    for part in PARTS:
        one, other = getattr(memory, part), getattr(stored, part)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images[:])
        assert one.images.shape == other.images.shape
        assert one.images.nbytes == other.images.nbytes


@pytest.mark.parametrize("seed", [None, (0, 0), (3, 7)])
@pytest.mark.parametrize("augment", ["none", "crop+flip"])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_batches_from_a_file_are_those_from_memory(both, seed, augment, size):
    one, other = ([*data.batches(d.train, size, augment=augment, seed=seed)] for d in both)
    assert len(one) == len(other)
    for (x, y), (u, v) in zip(one, other, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_every_way_of_choosing_is_that_of_a_tensor(both):
    memory, stored = (d.train for d in both)
    chosen = torch.tensor([3, 1, 1, 20])
    for one, other in (
        (memory.where(chosen), stored.where(chosen)),
        (memory.where(memory.labels == 1), stored.where(stored.labels == 1)),
        (memory.sample(5, 1), stored.sample(5, 1)),
        (memory.sample(9).with_all(memory), stored.sample(9).with_all(stored)),
    ):
        assert isinstance(other.images, store.Stored)
        assert torch.equal(one.images, other.images[:])
        assert torch.equal(one.labels, other.labels)
    for split in zip(*(vars(d.split(1)).values() for d in both), strict=True):
        if isinstance(split[0], ImageSet):
            assert torch.equal(split[0].images, split[1].images[:])
    again = pickle.loads(pickle.dumps(stored.images))
    assert torch.equal(again[:], memory.images)
    assert len(pickle.dumps(stored.images)) < memory.images.nbytes / 4


def test_the_budget_decides_and_counts_what_is_left_after_the_limit(tmp_path, home):
    root = folder(tmp_path / "set", {"a": 400, "b": 400}, size=(32, 32))  # 800 x 3072 bytes
    kinds = [type(load(root, train_limit=None, memory_mb=mb).train.images) for mb in (2, 3)]
    assert kinds == [store.Stored, torch.Tensor]
    assert isinstance(load(root, train_limit=20, memory_mb=2).train.images, torch.Tensor)


def test_training_from_a_file_is_training_from_memory_bit_for_bit(both, cfg):
    fits, logits = [], []
    for d in both:
        model = models.build_model("digits_resnet", 3, 3, 16, seed=0).to(cfg.device)
        fits.append(training.fit(model, d.train, d, cfg.train, seed=0, monitor=d.validation))
        training.recalibrate_batchnorm(model, d.train, d)
        logits.append(training.predict(model, d.test, d))
    assert fits[0].history == fits[1].history
    assert torch.equal(*logits)


def test_unlearning_and_its_metrics_are_the_same_from_a_file(both, cfg):
    """Pruning, the frozen part, an edit, probes and relearning."""
    small = cfg.but(forget=1, train=dataclasses.replace(cfg.train, epochs=1), epochs=1)
    found = []
    for d in both:
        first = unlearning.unlearn(None, d, small.but(method="original"), measured=False).model
        networks = [unlearning.unlearn(first, d, small.but(method=m), measured=False).model
                    for m in ("prunelora", "ssd")]  # fmt: skip
        split, name = d.split(1), features.HEAD_INPUT
        numbers = audit.evaluate(networks[0], d, (1,), seed=0)
        curve = relearning.relearn(first, d.train, split.test_forget, d, 1, per_class=3, steps=2)
        layer = features.collect(first, audit._sampled(split.test_forget), d, [name])[name]
        identities = [models.fingerprint(n) for n in networks]
        found.append((identities, numbers, curve, layer.tolist()))
    assert found[0] == found[1]


def readers():
    return {one for one in threading.enumerate() if one.name.startswith("images")}


def test_an_abandoned_reader_leaves_no_thread(both):
    others = readers()
    for _ in range(3):
        source = data.batches(both[1].train, 2, seed=(0, 0))
        next(source)
        assert readers() - others
        source.close()
    assert not readers() - others


def test_a_training_that_was_stopped_leaves_no_reader(both, cfg):
    """Not even while somebody holds what was raised, as a notebook does."""
    others, steps = readers(), []

    def stop(*_):
        steps.append(readers() - others)
        raise InputError("enough")

    model = models.build_model("vit_tiny", 3, 3, 8)
    with pytest.raises(InputError, match="enough") as raised:
        training.fit(model, both[1].train, both[1], cfg.train, seed=0, objective=stop)
    assert all(steps)
    assert steps
    assert raised.tb is not None
    assert not readers() - others


def test_what_goes_wrong_while_reading_ahead_is_raised(both):
    stored = both[1].train
    missing = store.Stored(stored.images.path, torch.tensor([0, 1, 10**6]), torch.device("cpu"))
    with pytest.raises(IndexError):
        list(data.batches(ImageSet(missing, torch.zeros(3, dtype=torch.long)), 1))


def test_only_a_few_batches_are_in_memory_at_once(tmp_path):
    """A dataset of many times what may be held: all images that are alive, counted."""
    count, side, size = 4000, 32, 50
    path, one = tmp_path / "x.npy", np.zeros((3, side, side), np.uint8)
    store.create(path, {"train": {"a": count // 2, "b": count // 2}}, side,
                 lambda put: [put(i, one + i % 256) for i in range(count)] and NOTHING)  # fmt: skip
    (part,) = (ImageSet(*both) for both in store.read(path, side).parts.values())
    tracemalloc.start()
    seen = sum(int(x[:, 0, 0, 0].sum()) for x, _ in data.batches(part, size, seed=(0, 0)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == sum(i % 256 for i in range(count))
    assert peak < (store.AHEAD + 3) * size * 3 * side * side + 1_000_000 < part.images.nbytes / 5


NOTHING = {"skipped": [], "form": None}


def test_a_command_with_little_memory_gives_the_same_run(tmp_path, home, caplog):
    root = folder(tmp_path / "set", {"a": 40, "b": 40, "c": 40}, size=(32, 32))
    one = get_config("smoke", data=f"folder:{root}", model="resnet20", method="original", forget=0)
    one = one.but(train=dataclasses.replace(one.train, epochs=1))
    first = runs.run(one, progress=False)
    again = runs.run(one.but(memory_mb=0), progress=False)
    assert again.from_disk, "the same run"
    assert again.folder == first.folder


@pytest.mark.skipif(
    "HELPERS_CIFAR_FOLDER" not in os.environ,
    reason="set HELPERS_CIFAR_FOLDER to a folder of CIFAR-10 images to read it",
)
def test_a_real_folder_of_cifar10(home):
    found = load(os.environ["HELPERS_CIFAR_FOLDER"], train_limit=None)
    assert [len(getattr(found, p)) for p in PARTS] == [42500, 7500, 10000]
    assert found.classes[3] == "cat"


@pytest.mark.parametrize(("kind", "side", "most"), [
    ("cpu", 32, 128), ("cpu", 8, 1000), ("cpu", 4096, 1),
    ("cuda", 32, 1000), ("cuda", 224, 20), ("cuda", 8, 1000),
])  # fmt: skip
def test_large_images_go_through_a_few_at_a_time(kind, side, most):
    images = SimpleNamespace(shape=(5000, 3, side, side), device=torch.device(kind))
    assert data.per_pass(images) == most
