"""Checks of the readers' answers."""

import torch

from helpers import exercises


def test_products_of_tensors_are_seen_however_they_are_written():
    x, w, a, b = torch.randn(5, 4), torch.randn(3, 4), torch.randn(2, 4), torch.randn(3, 2)
    direct = [lambda: x @ (w + b @ a).T, lambda: torch.mm(b, a), lambda: b.matmul(a),
              lambda: torch.einsum("or,ri->oi", b, a)]  # fmt: skip
    assert all((3, 4) in exercises.products(one) for one in direct)
    apart = exercises.products(lambda: x @ w.T + (x @ a.T) @ b.T)
    assert apart == {(5, 3), (5, 2)}
    assert exercises.products(lambda: torch.nn.functional.linear(x, w)) == {(5, 3)}
    assert exercises.products(lambda: w + 1) == set()
