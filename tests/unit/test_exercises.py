"""Checks of the readers' answers."""

import torch

from helpers import exercises


def test_what_is_computed_is_seen_however_it_is_written():
    x, w, a, b = torch.randn(5, 4), torch.randn(3, 4), torch.randn(2, 4), torch.randn(3, 2)
    direct = [lambda: x @ (w + b @ a).T, lambda: torch.mm(b, a), lambda: b.matmul(a),
              lambda: torch.einsum("or,ri->oi", b, a), lambda: torch.tensordot(b, a, 1),
              lambda: (b[:, :, None] * a[None]).sum(1), lambda: w.clone().addmm_(b, a),
              lambda: w.detach().clone().add_(1.0)]  # fmt: skip
    assert all((3, 4) in exercises.computed(one) for one in direct)
    assert (4, 3) in exercises.computed(lambda: w.T + a.T @ b.T)
    apart = exercises.computed(lambda: x @ w.T + (x @ a.mT) @ b.transpose(0, 1))
    assert apart == {(5, 3), (5, 2)}
    assert exercises.computed(lambda: torch.nn.functional.linear(x, w)) == {(5, 3)}
    turned = [lambda: w.T, lambda: w.permute(1, 0), lambda: w.detach().T, lambda: w.float().T,
              lambda: w[:].T, lambda: w.view(3, 4).mT, lambda: w.clone().t(), lambda: w.to(x).T,
              lambda: w.T.contiguous(), lambda: w.shape, lambda: 1]  # fmt: skip
    assert [exercises.computed(one) for one in turned] == [set()] * len(turned)
