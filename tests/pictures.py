"""Folders of images: of one colour each, and coloured gratings that a small network learns."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image

# those of CIFAR-10: names where the digits have numbers
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Told apart when mirrored, too; class 3 has a neighbour that it is taken for when it is unknown.
DEGREES = (0, 22, 44, 72, 90)


def grating(label: int, draw: np.random.Generator, side: int = 32) -> np.ndarray:
    """Draw one image: hue and direction belong to the class, everything else is chance."""
    y, x = np.mgrid[:side, :side] / side
    angle = np.radians(DEGREES[label % 5] + draw.normal(0, 3))
    wave = np.sin(2 * np.pi * 3 * (x * np.cos(angle) + y * np.sin(angle)) + draw.uniform(0, 6.3))
    color = colorsys.hsv_to_rgb((0.55 * (label // 5) + draw.normal(0, 0.06)) % 1, 0.6, 1.0)
    picture = 0.5 + 0.25 * wave[..., None] * np.array(color) + draw.normal(0, 0.12, (side, side, 3))
    return (255 * picture.clip(0, 1)).astype(np.uint8)


def write_folder(root, per_class: int = 60, seed: int = 0) -> None:
    """Write ``root/CLASS/NUMBER.png``."""
    draw = np.random.default_rng(seed)
    for label, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(grating(label, draw)).save(root / name / f"{number:03d}.png")


def paint(path, mode="RGB", size=(40, 30), color=(255, 0, 0)):
    """Write an image of one colour."""
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
    """Write ``root/CLASS/NUMBER.SUFFIX``, as many of each class as asked for."""
    for name, count in counts.items():
        for i in range(count):
            shade = (10 * i + 20, 0, 0) if name.endswith("a") else (0, 10 * i + 20, 0)
            paint(root / name / f"{i}.{suffix}", color=shade, **kwargs)
    return root
