"""Checks of the readers' answers."""

import ast
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from helpers import audit, exercises

LESSONS = Path(__file__).parents[2] / "notebooks"


def reply(lesson, exercise, answer):
    """What the check cell of a lesson says to an answer."""
    cells = nbformat.read(LESSONS / f"{lesson}.ipynb", as_version=4).cells
    start = next(i for i, cell in enumerate(cells) if f"### {exercise} " in cell.source)
    check = next(c for c in cells[start:] if "check" in c.metadata.get("tags", []))
    *before, last = ast.parse(check.source).body
    names = {"torch": torch, "exercises": exercises, "audit": audit, "answer": answer}
    exec(compile(ast.Module(before, []), lesson, "exec"), names)
    return eval(compile(ast.Expression(last.value), lesson, "eval"), names)


def test_what_is_computed_is_seen_however_it_is_written():
    x, w, a, b = torch.randn(5, 4), torch.randn(3, 4), torch.randn(2, 4), torch.randn(3, 2)
    direct = [lambda: x @ (w + b @ a).T, lambda: torch.mm(b, a), lambda: b.matmul(a),
              lambda: torch.einsum("or,ri->oi", b, a), lambda: torch.tensordot(b, a, 1),
              lambda: (b[:, :, None] * a[None]).sum(1), lambda: w.clone().addmm_(b, a),
              lambda: w.detach().clone().add_(1.0),
              lambda: torch.mm(b, a, out=w.clone())]  # fmt: skip
    assert all((3, 4) in exercises.computed(one) for one in direct)
    assert (4, 3) in exercises.computed(lambda: w.T + a.T @ b.T)
    apart = exercises.computed(lambda: x @ w.T + (x @ a.mT) @ b.transpose(0, 1))
    assert apart == {(5, 3), (5, 2)}
    assert exercises.computed(lambda: torch.nn.functional.linear(x, w)) == {(5, 3)}
    turned = [lambda: w.T, lambda: w.permute(1, 0), lambda: w.detach().T, lambda: w.float().T,
              lambda: w[:].T, lambda: w.view(3, 4).mT, lambda: w.clone().t(), lambda: w.to(x).T,
              lambda: w.T.contiguous(), lambda: w.shape, lambda: 1, lambda: w.type(torch.float64),
              lambda: w.double().T, lambda: w.type_as(x.half()), lambda: w.split(1)]  # fmt: skip
    assert [exercises.computed(one) for one in turned] == [set()] * len(turned)


def inside(formula, *tensors):
    with torch.inference_mode():
        return torch.einsum(formula, *tensors)


@pytest.mark.parametrize("einsum", [torch.einsum, inside])
def test_what_is_computed_on_the_way_is_seen(einsum):
    x, a, b = torch.randn(5, 4), torch.randn(2, 4), torch.randn(3, 2)
    with torch.backends.opt_einsum.flags(enabled=False):  # which chooses an order of its own
        at_once = exercises.computed(lambda: einsum("or,ri,ni->no", b, a, x))
        apart = exercises.computed(lambda: einsum("ni,ri,or->no", x, a, b))
    assert at_once == {(3, 4), (3, 5)}
    assert apart == {(5, 2), (5, 3)}
    assert exercises.computed(lambda: x @ (b[None] @ a[None])[0].T) == {(3, 4), (5, 3)}


OTHER, LARGE = "it must equal x @ (w + scale * b @ a).T", "nothing as large as w may be computed"
BY_HAND = {
    "x @ w.T + s * (x @ a.T) @ b.T": exercises.RIGHT,
    "x @ w.type(torch.float64).float().T + s * (x @ a.T) @ b.T": exercises.RIGHT,
    "x @ w.T + s * torch.einsum('ni,ri,or->no', x, a, b)": exercises.RIGHT,
    "x.double() @ w.double().T + s * (x @ a.T) @ b.T": exercises.RIGHT,
    "x.numpy() @ w.numpy().T + s * (x.numpy() @ a.numpy().T) @ b.numpy().T": exercises.RIGHT,
    "(x @ w.T + s * (x @ a.T) @ b.T).tolist()": exercises.RIGHT,
    "x @ (w + s * b @ a).T": LARGE,
    "x @ w.T + s * (x @ (b[None] @ a[None])[0].T)": LARGE,
    "x @ w.T + s * torch.einsum('or,ri,ni->no', b, a, x)": LARGE,
    "x @ w.T + s * (x[:, None] @ (b.expand(5, 3, 2) @ a).mT)[:, 0]": LARGE,
    "x @ w.T + (x @ a.T) @ b.T": OTHER,
    "(x @ w.T + s * (x @ a.T) @ b.T)[:2]": OTHER,
}


@pytest.mark.parametrize("formula", BY_HAND)
def test_lora_by_hand_is_right_only_without_the_product(formula):
    answer = eval(f"lambda x, w, a, b, s: {formula}", {"torch": torch})
    with torch.backends.opt_einsum.flags(enabled=False):
        told = reply("03_lora_adaptation", "Exercise 2", answer)
    assert BY_HAND[formula] in told


SHARES = {
    "(w == 0).double().mean().item()": True,
    "1 - w.count_nonzero() / w.numel()": True,
    "float((w.abs() < 1e-3).float().mean())": False,
    "float(torch.isclose(w, torch.zeros(())).float().mean())": False,
    "(w == 0).sum().item()": False,
}


@pytest.mark.parametrize("formula", SHARES)
def test_what_is_nearly_zero_is_not_counted_as_zero(formula):
    told = reply("02_pruning", "Exercise 1", eval(f"lambda w: {formula}", {"torch": torch}))
    assert (told == exercises.RIGHT) == SHARES[formula], told


def test_a_wrong_share_of_a_matrix_is_told_where_it_is_wrong():
    """This is right for one dimension, and its author must learn that there are others."""
    told = reply("02_pruning", "Exercise 1", lambda w: float((w == 0).sum()) / len(w))
    assert told.startswith("Not yet: half of torch.tensor([[0., 1.], [0., -2.]])")


@pytest.mark.parametrize("number", [float, np.float32, torch.tensor])
def test_a_hidden_gap_may_have_any_kind_of_number(number):
    gap = {"UA": number(0.92), "RA": number(1.0), "TA": number(1.0), "MIA": number(1.0)}
    assert reply("05_evaluation", "Exercise 2", gap) == exercises.RIGHT
    assert reply("05_evaluation", "Exercise 2", gap | {"UA": number(0.921)}) != exercises.RIGHT


def test_a_check_may_say_what_is_wrong():
    assert exercises.verdict(1, lambda a: "other", "look") == "Not yet: other"
    assert exercises.verdict(1, lambda a: a == 2, "look") == "Not yet: look"
    assert exercises.verdict(1, lambda a: a == 1, "look") == exercises.RIGHT
