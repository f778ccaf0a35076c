"""Random small networks and adapted versions of them, for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F


class RandomNet(nn.Module):
    """A convolutional network of random depth and widths, with or without shortcuts and norms."""

    def __init__(self, widths, residual, norm, bias, kernel, seed):
        super().__init__()
        torch.manual_seed(seed)
        # settled here: asked at each call, a shortcut would appear where channels are removed
        self.shortcuts = [
            residual and a == b for a, b in zip(["images", *widths], widths, strict=False)
        ]
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        before = 2
        for width in widths:
            self.convs.append(nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=bias))
            self.norms.append(nn.BatchNorm2d(width) if norm else nn.Identity())
            before = width
        self.head = nn.Linear(before, 3)
        self.input_shape = (2, 6, 6)
        self.eval()
        with torch.no_grad():  # statistics that are not 0 and 1
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.running_mean.normal_(0, 0.1)
                    layer.running_var.uniform_(0.5, 1.5)

    def forward(self, x):
        for conv, norm, shortcut in zip(self.convs, self.norms, self.shortcuts, strict=True):
            y = F.leaky_relu(norm(conv(x)), 0.1)
            x = x + y if shortcut else y
        return self.head(x.mean((2, 3)))


networks = st.builds(
    RandomNet,
    widths=st.one_of(
        st.lists(st.integers(2, 9), min_size=1, max_size=3),
        st.integers(2, 9).flatmap(lambda w: st.lists(st.just(w), min_size=2, max_size=4)),
    ),
    residual=st.booleans(),
    norm=st.booleans(),
    bias=st.booleans(),
    kernel=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**16),
)


def train_a_little(model, steps=2, lr=0.05):
    """Take some steps on random images: enough to move everything that can move."""
    generator = torch.Generator().manual_seed(1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        images = torch.randn(8, 2, 6, 6, generator=generator)
        labels = torch.randint(0, 3, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()


def images():
    return torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(2))
