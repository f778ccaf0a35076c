from __future__ import annotations

import collections
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import data
from helpers.config import InputError, get_config
from helpers.data import ImageSet

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


# ------------------------------------------------------------------------------------------------
# batches


@settings(max_examples=40, deadline=None)
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


def paint(path, mode="RGB", size=(40, 30), color=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, color)
    if mode == "P":
        image = image.quantize(4)
    elif mode == "RGBA":
        image.putalpha(0)
    elif mode == "I;16":
        image = Image.fromarray(np.full((size[1], size[0]), 32768, np.uint16))
    else:
        image = image.convert(mode)
    image.save(path)


def folder(root, counts, suffix="png", **kwargs):
    for name, count in counts.items():
        for i in range(count):
            shade = (10 * i + 20, 0, 0) if name.endswith("a") else (0, 10 * i + 20, 0)
            paint(root / name / f"{i}.{suffix}", color=shade, **kwargs)
    return root


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
        image = np.asarray(data._to_rgb(file, 8))
    assert image.shape == (8, 8, 3)
    assert np.abs(image.astype(int) - pixel).max() <= 1


def test_the_folder_is_decoded_once_and_again_after_a_change(tmp_path, home, monkeypatch):
    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    first = load(root)
    decode = data._decode
    monkeypatch.setattr(data, "_decode", lambda *_: pytest.fail("decoded a second time"))
    assert load(root).fingerprint == first.fingerprint
    monkeypatch.setattr(data, "_decode", decode)
    paint(root / "a" / "new.png")
    assert len(load(root).train) + len(load(root).test) > len(first.train) + len(first.test) - 1
    assert load(root).fingerprint != first.fingerprint


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
        assert sum(len(getattr(found, p)) for p in PARTS) == 16
        assert [s.split(" ")[0] for s in found.skipped] == ["a/broken.png", "b/cut.PNG"]
        assert "2 of 18" in caplog.text
    with pytest.raises(InputError, match="2 of 18"):
        load(root)


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
    with pytest.raises(InputError, match="only one of train/ and test/: b, c"):
        load(tmp_path / "set")


def test_a_part_that_loses_a_whole_class_is_refused_even_when_skipping(tmp_path, home):
    folder(tmp_path / "set" / "train", {"a": 5, "b": 5})
    for name in "ab":
        (tmp_path / "set" / "test" / name).mkdir(parents=True)
        (tmp_path / "set" / "test" / name / "0.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no test image of class 'a' can be read"):
        load(tmp_path / "set", on_corrupt="skip")


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: {},
        lambda t: t | {"train.images": t["train.images"].float()},
        lambda t: t | {"train.labels": t["train.labels"] - 5},
        lambda t: t | {"train.labels": t["train.labels"][:-1]},
        lambda t: {"train.images": t["train.images"]},
        lambda t: t | {"train.images": t["train.images"][:, :1]},
    ],
)
def test_a_cache_that_is_no_cache_is_named(tmp_path, home, damage):
    from helpers import files

    root = folder(tmp_path / "set", {"a": 5, "b": 5})
    load(root)
    (path,) = (home / "data" / "cache").iterdir()
    tensors, skipped = files.load_tensors(path)
    files.save_tensors(path, damage(tensors), skipped)
    with pytest.raises(files.FileProblem, match=r"set-32px.*delete it"):
        load(root)


def test_odd_names_are_read(tmp_path, home):
    root = folder(tmp_path / ("x" * 200), {"ä b": 5, "猫": 5})
    odd = os.fsencode(root / "ä b") + b"/\xff\xfe.png"
    with open(odd, "wb") as file:
        file.write((root / "ä b" / "0.png").read_bytes())
    assert load(root).classes == ("ä b", "猫")


def test_a_download_that_fails_says_what_to_do(monkeypatch, home):
    import torchvision.datasets

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(InputError, match=r"no network.*by hand.*folder:PATH"):
        data.load_dataset(get_config("smoke", data="cifar10"))


def test_cifar10_comes_from_torchvision(monkeypatch, home):
    import torchvision.datasets

    class Fake:
        classes = tuple(f"class {i}" for i in range(10))

        def __init__(self, root, train, download):
            assert download
            assert root == home / "data"
            n = 100 if train else 20
            self.data = np.arange(n * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8)
            self.data = self.data.reshape(n, 32, 32, 3)
            self.targets = [i % 10 for i in range(n)]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    found = data.load_dataset(get_config("smoke", data="cifar10", train_limit=None))
    assert [len(getattr(found, p)) for p in PARTS] == [80, 20, 20]
    assert found.test.images[0, :, 0, 1].tolist() == [3, 4, 5], "channels first"


@pytest.mark.skipif(
    "HELPERS_CIFAR_FOLDER" not in os.environ,
    reason="set HELPERS_CIFAR_FOLDER to a folder of CIFAR-10 images to read it",
)
def test_a_real_folder_of_cifar10(home):
    found = load(os.environ["HELPERS_CIFAR_FOLDER"], train_limit=None)
    assert [len(getattr(found, p)) for p in PARTS] == [42500, 7500, 10000]
    assert found.classes[3] == "cat"
