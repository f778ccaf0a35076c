from __future__ import annotations

import copy
import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import data, files, lora, models, objectives, training
from helpers.config import InputError, Recipe
from helpers.files import FileProblem
from helpers.training import Interrupted, fit

SHORT = Recipe(epochs=3, lr=0.01, optimizer="adam", batch_size=64, schedule="cosine")


def small(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    # no bias before BatchNorm: its gradient is rounding noise, which Adam would blow up
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(4 * 9, 10),
    )


def on(device, model):
    return model.to(device)


def same(a, b, exact=True):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) if exact else torch.allclose(x, y, atol=1e-5) for x, y in pairs)


def test_one_cycle_is_that_of_torch():
    total, peak = 50, 0.3
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=total + 1, pct_start=11 / (total + 1), cycle_momentum=False,
        div_factor=1e9, final_div_factor=1e9,
    )  # fmt: skip
    for step in range(total):
        ours = peak * training.schedule("onecycle", step / total)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        theirs.step()
    assert training.schedule("onecycle", 0) == 0
    assert training.schedule("onecycle", training.WARM_UP) == 1
    assert training.schedule("constant", 0.7) == 1


def plain_loop(model, part, dataset, recipe, seed):
    """A second implementation, with PyTorch's own schedules and unfused optimisers."""
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    extra = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
    optimizer = kinds[recipe.optimizer](
        model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, **extra
    )
    total = recipe.epochs * -(-len(part) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: (1 + math.cos(math.pi * k / total)) / 2 if recipe.schedule == "cosine" else 1,
    )
    model.train()
    for epoch in range(recipe.epochs):
        for x, y in data.batches(
            part, recipe.batch_size, augment=recipe.augment, seed=(seed, epoch)
        ):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(dataset.normalise(x)), y).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(
            epochs=2, lr=0.05, optimizer="sgd", weight_decay=5e-3, batch_size=50, augment="crop"
        ),
        Recipe(epochs=2, lr=0.01, optimizer="adam", weight_decay=1e-2, schedule="cosine"),
        Recipe(epochs=2, lr=0.01, optimizer="adamw", weight_decay=1e-1, schedule="cosine"),
    ],
    ids=lambda r: r.optimizer,
)
def test_fit_equals_a_plain_loop(cfg, dataset, split, recipe):
    mine, theirs = (on(cfg.device, small()) for _ in range(2))
    fit(mine, split.retain, dataset, recipe, seed=3, precision="fp32")
    plain_loop(theirs, split.retain, dataset, recipe, seed=3)
    assert same(mine, theirs, exact=False)


def test_the_seed_decides_everything(cfg, dataset, split):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(99 + len(runs))  # the global state must not matter
        model = on(cfg.device, small(dropout=0.3))
        fit(model, split.retain, dataset, SHORT, seed=seed)
        runs.append(model)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2], exact=False)


def test_the_global_random_state_is_given_back(dataset, split, cfg):
    model = on(cfg.device, small(dropout=0.3))
    before = torch.get_rng_state()
    fit(model, split.retain, dataset, SHORT, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


class PressStop:
    """Sends this process an interrupt after some steps."""

    def __init__(self, step):
        self.left = step

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [1, 9, 13, 20], ids=lambda s: f"step{s}")  # 9 steps an epoch
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_stopped_and_resumed_equals_never_stopped(cfg, dataset, split, tmp_path, step, optimizer):
    recipe = Recipe(epochs=3, lr=0.01, optimizer=optimizer, batch_size=64, schedule="cosine",
                    augment="crop")  # fmt: skip
    path, monitor = tmp_path / "checkpoint.safetensors", split.validation_retain
    whole = on(cfg.device, small(dropout=0.3))
    wanted = fit(whole, split.retain, dataset, recipe, seed=0, monitor=monitor)
    model = on(cfg.device, small(dropout=0.3))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=rf"stopped after {step} of 27 steps; kept in .*safetens"):
        fit(model, split.retain, dataset, recipe, seed=0, monitor=monitor, checkpoint=path,
            after_step=PressStop(step))  # fmt: skip
    assert signal.getsignal(signal.SIGINT) is handler, "the kernel's own handler is back"
    again = on(cfg.device, small(seed=5, dropout=0.3))  # other weights: all come from the file
    found = fit(again, split.retain, dataset, recipe, seed=0, monitor=monitor, checkpoint=path)
    assert same(again, whole)
    assert found.steps == wanted.steps == 27
    for a, b in zip(found.history, wanted.history, strict=True):
        assert a == pytest.approx(b, rel=1e-6)


def test_a_second_interrupt_does_not_wait_for_the_end_of_the_step(cfg, dataset, split):
    def pressed(model, images, labels, share):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return training.cross_entropy(model, images, labels)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(on(cfg.device, small()), split.retain, dataset, SHORT, seed=0, objective=pressed)
    assert caught.type is KeyboardInterrupt, "not the one that waits"


def test_without_a_checkpoint_it_says_that_nothing_was_kept(cfg, dataset, split):
    with pytest.raises(Interrupted, match="nothing was kept"):
        fit(on(cfg.device, small()), split.retain, dataset, SHORT, seed=0, after_step=PressStop(2))


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(cfg, dataset, split, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Interrupted):
        fit(on(cfg.device, small()), split.retain, dataset, SHORT, seed=0, checkpoint=path,
            after_step=PressStop(2))  # fmt: skip
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(cfg.device)
    for model, recipe in ((other, SHORT), (small(), Recipe(epochs=9, lr=0.01))):
        with pytest.raises(FileProblem, match="not a checkpoint of this run"):
            fit(on(cfg.device, model), split.retain, dataset, recipe, seed=0, checkpoint=path)
    another = dataset.split(5).retain  # nothing but the images, or the seed, is another
    for part, seed in ((another, 0), (split.retain, 1)):
        with pytest.raises(FileProblem, match="of another seed, of other images"):
            fit(on(cfg.device, small()), part, dataset, SHORT, seed=seed, checkpoint=path)
    with pytest.raises(FileProblem, match="for something else"):
        fit(on(cfg.device, small()), split.retain, dataset, SHORT, seed=0, checkpoint=path,
            about="to forget another class")  # fmt: skip
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileProblem, match="damaged"):
        fit(on(cfg.device, small()), split.retain, dataset, SHORT, seed=0, checkpoint=path)


def test_a_setting_that_one_of_both_does_not_have_is_another(cfg, dataset, split, tmp_path):
    path, part = tmp_path / "checkpoint.safetensors", split.retain.sample(64)
    for kept, own, said in (({"rank": 4}, {}, "rank was 4 and is None"),
                            ({}, {"rank": 4}, "rank was None and is 4")):  # fmt: skip
        path.unlink(missing_ok=True)
        with pytest.raises(Interrupted):
            fit(on(cfg.device, small()), part, dataset, SHORT, seed=0, checkpoint=path,
                settings=kept, after_step=PressStop(1))  # fmt: skip
        with pytest.raises(FileProblem, match=said):
            fit(on(cfg.device, small()), part, dataset, SHORT, seed=0, checkpoint=path,
                settings=own)  # fmt: skip


@pytest.mark.parametrize("change", ["shape", "dtype", "index"])
def test_a_checkpoint_that_says_the_impossible_is_refused(cfg, dataset, split, tmp_path, change):
    """With a digest that fits: nobody's accident, but the fused step reads what it is given."""
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Interrupted):
        fit(on(cfg.device, small()), split.retain, dataset, SHORT, seed=0, checkpoint=path,
            after_step=PressStop(2))  # fmt: skip
    tensors, plain = files.load_tensors(path)
    name = next(n for n in tensors if n.startswith("optimizer.") and tensors[n].numel() > 1)
    value = tensors.pop(name)
    other = {"shape": value.flatten()[:1], "dtype": value.double(), "index": value}[change]
    _, _, key = name.split(".")
    tensors[f"optimizer.99.{key}" if change == "index" else name] = other
    files.save_tensors(path, tensors, plain)
    with pytest.raises(FileProblem, match="not a checkpoint of this run"):
        fit(on(cfg.device, small()), split.retain, dataset, SHORT, seed=0, checkpoint=path)


@pytest.mark.parametrize(
    ("optimizer", "key"), [("sgd", "momentum_buffer"), ("adam", "exp_avg"), ("adamw", "step")]
)
def test_a_checkpoint_that_lacks_a_part_of_the_optimiser_is_refused(
    cfg, dataset, split, tmp_path, optimizer, key
):
    path, recipe = tmp_path / "x.safetensors", dataclasses.replace(SHORT, optimizer=optimizer)
    with pytest.raises(Interrupted):
        fit(on(cfg.device, small()), split.retain, dataset, recipe, seed=0, checkpoint=path,
            after_step=PressStop(2))  # fmt: skip
    tensors, plain = files.load_tensors(path)
    del tensors[f"optimizer.0.{key}"]
    files.save_tensors(path, tensors, plain)
    with pytest.raises(FileProblem, match="the state of its optimiser is not whole"):
        fit(on(cfg.device, small()), split.retain, dataset, recipe, seed=0, checkpoint=path)


def test_a_killed_process_loses_at_most_the_time_between_checkpoints(
    cfg, dataset, split, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)  # after every step
    path, steps = tmp_path / "checkpoint.safetensors", []

    def dies():
        steps.append(path.exists())
        if len(steps) == 20:
            raise MemoryError

    with pytest.raises(MemoryError):
        fit(on(cfg.device, small()), split.retain, dataset, SHORT, seed=0, checkpoint=path,
            after_step=dies)  # fmt: skip
    assert steps == [False] + [True] * 19
    model, whole = (on(cfg.device, small()) for _ in range(2))
    left = []
    fit(model, split.retain, dataset, SHORT, seed=0, checkpoint=path,
        after_step=lambda: left.append(1))  # fmt: skip
    fit(whole, split.retain, dataset, SHORT, seed=0)
    assert len(left) == 8, "19 of 27 steps were done"
    assert same(model, whole)


def test_a_stop_during_the_last_evaluation_is_not_forgotten(
    cfg, dataset, split, tmp_path, monkeypatch
):
    predict = training.predict

    def pressed(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return predict(*args)

    monkeypatch.setattr(training, "predict", pressed)
    path, one = tmp_path / "checkpoint.safetensors", Recipe(epochs=1, lr=0.01)
    monitor = split.validation_retain
    with pytest.raises(Interrupted, match="after 5 of 5 steps"):
        fit(on(cfg.device, small()), split.retain, dataset, one, seed=0, monitor=monitor,
            checkpoint=path)  # fmt: skip
    monkeypatch.setattr(training, "predict", predict)
    found = fit(on(cfg.device, small()), split.retain, dataset, one, seed=0, checkpoint=path)
    assert (found.steps, len(found.history)) == (5, 1)


def test_a_stop_while_the_loss_is_not_a_number_names_the_loss(cfg, dataset, split, tmp_path):
    with pytest.raises(InputError, match="diverged"):
        fit(on(cfg.device, small()), split.retain, dataset, SHORT, seed=0,
            objective=lambda m, x, y, share: training.cross_entropy(m, x, y) * float("nan"),
            checkpoint=tmp_path / "checkpoint.safetensors", after_step=PressStop(3))  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_no_images_and_a_single_one_are_refused(cfg, dataset, split):
    for count in (0, 1):
        few = split.retain.sample(count)
        if count == 0:
            with pytest.raises(InputError, match="at least one image"):
                fit(on(cfg.device, small()), few, dataset, SHORT, seed=0)
        with pytest.raises(InputError, match="at least two"):
            training.recalibrate_batchnorm(on(cfg.device, small()), few, dataset)


def test_a_diverging_training_is_stopped_with_the_remedy(cfg, dataset, split):
    recipe = Recipe(epochs=50, lr=1e38, optimizer="sgd")
    model = on(cfg.device, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(InputError, match=r"diverged.*smaller learning rate than lr = 1e\+38"):
        fit(model, split.retain, dataset, recipe, seed=0)


def test_history_and_steps(cfg, dataset, split):
    model, monitor = on(cfg.device, small()), dataset.validation
    found = fit(model, split.retain, dataset, SHORT, seed=0, monitor=monitor)
    assert [row["epoch"] for row in found.history] == [1, 2, 3]
    assert found.steps == 3 * math.ceil(len(split.retain) / 64)
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert found.history[-1]["lr"] < found.history[0]["lr"] < SHORT.lr
    assert all(0 <= row[str(c)] <= 1 for row in found.history for c in range(10))
    for c in range(10):  # in the end as a prediction says, class by class
        part = monitor.where(monitor.labels == c)
        right = training.predict(model, part, dataset).argmax(1) == c
        assert found.history[-1][str(c)] == pytest.approx(right.double().mean().item())
    assert found.seconds > 0


def test_the_loss_of_an_epoch_is_the_mean_over_its_images(cfg, dataset, split):
    model, part = on(cfg.device, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), split.retain
    part = part.sample(70)  # the second batch has six
    still = Recipe(epochs=2, lr=1e-9, batch_size=64)
    history = fit(model, part, dataset, still, seed=0, precision="fp32").history
    wanted = training.cross_entropy(model, dataset.normalise(part.images), part.labels).item()
    assert [row["loss"] for row in history] == pytest.approx([wanted] * 2, rel=1e-4)


def test_the_share_that_is_done_counts_no_batch_that_is_left_out(cfg, dataset, split):
    shares = []

    def objective(model, images, labels, share):
        shares.append(share)
        return training.cross_entropy(model, images, labels)

    part, recipe = split.retain.sample(33), Recipe(epochs=3, lr=0.01, batch_size=16)
    done = fit(on(cfg.device, small()), part, dataset, recipe, seed=0, objective=objective)
    assert done.steps == 6, "the last image would be a batch of its own"
    assert shares[:6] == pytest.approx([step / 6 for step in range(6)])


def test_every_step_of_every_seed_draws_numbers_of_its_own(cfg, dataset, split):
    def drawn(seed):
        found = []

        def objective(model, images, labels, share):
            found.append(torch.rand(1).item())
            return training.cross_entropy(model, images, labels)

        done = fit(on(cfg.device, small()), split.retain, dataset, Recipe(epochs=2, lr=0.01),
                   seed=seed, objective=objective)  # fmt: skip
        return found[: done.steps]

    one, again, other = drawn(0), drawn(0), drawn(1)
    assert one == again
    assert len({*one, *other}) == len(one) + len(other)


def test_seconds_are_those_of_training_alone_and_checkpoints_come_now_and_then(
    cfg, dataset, split, tmp_path, monkeypatch
):
    now, kept, predict = [0.0], [], training.predict

    def spend(seconds):
        now[0] += seconds

    def clock():
        return now[0]

    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=clock, monotonic=clock))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 2.5)
    monkeypatch.setattr(training, "predict", lambda *args: spend(100) or predict(*args))
    monkeypatch.setattr(files, "save_tensors", lambda *_: kept.append(clock()) or spend(10))
    found = fit(
        on(cfg.device, small()), split.retain.sample(256), dataset,
        Recipe(epochs=2, lr=0.01, batch_size=64), seed=0, monitor=split.validation_forget,
        checkpoint=tmp_path / "checkpoint.safetensors", after_step=lambda: spend(1),
    )  # fmt: skip
    assert found.seconds == found.steps == 8
    assert kept == [3, 114, 127, 238], "after three steps, and after each monitoring"


def test_only_classes_that_are_monitored_are_told(cfg, dataset, split):
    recipe, part = Recipe(epochs=1, lr=0.01), split.retain.sample(64)
    for monitor, told in ((None, set()), (split.validation_forget, {"3"}),
                          (split.validation_forget.sample(0), set())):  # fmt: skip
        model = on(cfg.device, small())
        (row,) = fit(model, part, dataset, recipe, seed=0, monitor=monitor).history
        assert row.keys() - {"epoch", "steps", "loss", "lr"} == told


def test_only_parameters_that_require_a_gradient_move(cfg, dataset, split):
    model = on(cfg.device, small())
    model[0].requires_grad_(False)
    before = copy.deepcopy(model)
    fit(model, split.retain, dataset, SHORT, seed=0)
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[5].weight, before[5].weight)
    assert not model.training


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the tensors of the CPU")
def test_peak_memory_of_a_linear_layer_worked_out_by_hand(dataset, split):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = fit(model, split.retain, dataset, Recipe(epochs=1, lr=0.1, batch_size=32), seed=0)
    weights = 4 * 650  # bytes
    adam = 2 * weights + 2 * 4  # two moments, and a step counter for weight and bias
    batch = 4 * 32 * 64  # the input is saved for the weight's gradient
    loss = 4 * 32 * 10 + 8 * 32 + 4  # log-probabilities, labels, the sum of the class weights
    assert found.peak_memory == weights + weights + adam + batch + loss


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the tensors of the CPU")
def test_peak_memory_holds_buffers_and_no_gradient_of_what_is_frozen(split, dataset):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.register_buffer("extra", torch.zeros(100))
    model[1].bias.requires_grad_(False)
    found = fit(model, split.retain, dataset, Recipe(epochs=1, lr=0.1, batch_size=32), seed=0)
    moved = 4 * 640  # bytes
    adam, batch, loss = 2 * moved + 4, 4 * 32 * 64, 4 * 32 * 10 + 8 * 32 + 4
    assert found.peak_memory == (moved + 40 + 400) + moved + adam + batch + loss


TWICE = """
from helpers import data, models, training
from helpers.config import Recipe, get_config
cfg = get_config("smoke", device="cuda")
dataset = data.load_dataset(cfg)
for seed in range(2):
    model = models.build_model(cfg.model, 10, 1, 8).to("cuda")
    print(training.fit(model, dataset.train, dataset, Recipe(1, 0.1), seed=seed).peak_memory)
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_the_first_training_on_a_gpu_takes_no_more_memory_than_the_next():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())
    assert abs(first - second) < 1e6
    assert first > 1e5


def test_multiply_accumulates_of_a_linear_layer_worked_out_by_hand(cfg, dataset, split):
    model = on(cfg.device, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    one = fit(model, split.retain, dataset, Recipe(epochs=1, lr=0.1, batch_size=32), seed=0)
    three = fit(model, split.retain, dataset, Recipe(epochs=3, lr=0.1, batch_size=32), seed=0)
    # forward, and backward to the weight; the images need no gradient
    assert one.macs == 2 * 640 * len(split.retain)
    assert three.macs == 3 * one.macs


def test_counting_leaves_no_trace(cfg, dataset, split):
    """The same weights and statistics, whether or not the count is made."""

    class Plain(training._Loop):
        def count_macs(self, *_):
            return 1

    found = {}
    for kind in (training._Loop, Plain):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "_Loop", kind)
            model = on(cfg.device, small())
            fit(model, split.retain, dataset, SHORT, seed=0)
            found[kind] = model.state_dict()
        if kind is not Plain:
            assert all(p.grad is None for p in model.parameters()), "of the count, too"
    one, other = found.values()
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_mixed_precision_trains_too(cfg, dataset, split):
    full, mixed = (on(cfg.device, small()) for _ in range(2))
    fit(full, split.retain, dataset, SHORT, seed=0, precision="fp32")
    found = fit(mixed, split.retain, dataset, SHORT, seed=0, precision="amp")
    assert mixed[0].weight.dtype == torch.float32
    assert not same(full, mixed)
    assert found.history[-1]["loss"] < found.history[0]["loss"]


def test_mixup_of_images_with_one_label_is_cross_entropy(cfg, dataset, split):
    model = on(cfg.device, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    x = dataset.normalise(split.retain.images[:1]).repeat(8, 1, 1, 1)
    y = torch.full((8,), 4, device=x.device)
    assert torch.allclose(
        training.mixup(0.2)(model, x, y), training.cross_entropy(model, x, y), atol=1e-6
    )
    before = copy.deepcopy(model)
    recipe = Recipe(epochs=1, lr=0.01, mixup=0.2)
    plain = copy.deepcopy(model)
    fit(model, split.retain, dataset, recipe, seed=0)
    fit(plain, split.retain, dataset, Recipe(epochs=1, lr=0.01), seed=0)
    assert not same(model, before)
    assert not same(model, plain)


def test_mixup_blends_the_labels_as_it_blends_the_images(cfg, dataset, split):
    model = on(cfg.device, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    x, y = dataset.normalise(split.retain.images[:64]), split.retain.labels[:64]
    assert len(y.unique()) > 2
    torch.manual_seed(5)
    found = training.mixup(0.2)(model, x, y)
    torch.manual_seed(5)
    blend = torch.distributions.Beta(0.2, 0.2).sample().item()
    assert abs(blend - 0.5) > 0.1, "or it would not matter which is which"
    other, truth = torch.randperm(64).to(y.device), nn.functional.one_hot(y, 10).float()
    mixed, told = (blend * t + (1 - blend) * t[other] for t in (x, truth))
    assert found.item() == pytest.approx(nn.functional.cross_entropy(model(mixed), told).item())


def test_an_objective_that_is_given_is_not_replaced_by_mixup(cfg, dataset, split):
    found = []
    for mixup in (0.0, 0.2):
        model = on(cfg.device, small())
        fit(model, split.retain, dataset, Recipe(epochs=1, lr=0.01, mixup=mixup), seed=0,
            objective=lambda m, x, y, share: training.cross_entropy(m, x, y))  # fmt: skip
        found.append(model)
    assert same(*found)


def test_a_frozen_norm_stays_frozen(original, dataset, split):
    """Somebody's own loop has one BatchNorm in evaluation mode: its statistics shall not move."""
    original.train()
    original.bn1.eval()
    mode = {name: m.training for name, m in original.named_modules()}
    training.predict(original, dataset.test, dataset)
    training.recalibrate_batchnorm(original, split.retain, dataset)
    assert {name: m.training for name, m in original.named_modules()} == mode


def test_prediction_changes_nothing(original, dataset):
    before = copy.deepcopy(original.state_dict())
    original.train()
    logits = training.predict(original, dataset.test, dataset, batch_size=7)
    assert original.training
    assert all(torch.equal(a, b) for a, b in zip(original.state_dict().values(), before.values(),
                                                 strict=True))  # fmt: skip
    original.eval()
    with torch.no_grad():
        wanted = original(dataset.normalise(dataset.test.images)).cpu()
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert logits.dtype == torch.float32


def test_recalibration_measures_mean_and_variance_of_what_flows(cfg, dataset, split):
    model = on(cfg.device, small())
    model[1].running_mean += 5
    weights = copy.deepcopy(model[0].weight)
    part = split.retain.where(torch.arange(200, device=cfg.device))
    before = model[1].running_mean.clone()
    training.recalibrate_batchnorm(model, part, dataset)
    assert not torch.allclose(model[1].running_mean, before)
    with torch.no_grad():
        flows = model[0](dataset.normalise(part.images))
    assert torch.allclose(model[1].running_mean, flows.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(model[1].running_var, flows.var((0, 2, 3)), atol=1e-3)
    large = split.retain.where(
        torch.arange(258, device=cfg.device)
    )  # two parts of 129, not 256 + 2
    training.recalibrate_batchnorm(model, large, dataset)
    with torch.no_grad():
        flows = model[0](dataset.normalise(large.images))
    assert torch.allclose(model[1].running_mean, flows.mean((0, 2, 3)), atol=1e-4)
    assert model[1].momentum == 0.1
    assert torch.equal(model[0].weight, weights)


def test_recalibration_on_a_few_takes_a_sample_by_the_seed(cfg, dataset):
    ordered = dataset.train.where(dataset.train.labels.argsort())  # as in folders: by class
    means = []
    for part, seed in ((ordered, 0), (ordered, 1), (ordered.sample(90, 1), 5)):
        model = on(cfg.device, small())
        model[1].momentum = 0.3
        assert training.recalibrate_batchnorm(model, part, dataset, limit=90, seed=seed) == 90
        assert model[1].momentum == 0.3
        means.append(model[1].running_mean)
    assert torch.allclose(means[1], means[2], atol=1e-5)
    assert not torch.allclose(means[0], means[1], atol=1e-3)
    training.recalibrate_batchnorm(model, ordered, dataset)
    assert torch.allclose(means[0], model[1].running_mean, atol=0.1), "of all classes"


@pytest.fixture
def inductor():
    """The compiler's settings; what it has compiled is forgotten."""
    torch._dynamo.reset()
    import torch._inductor.config as settings

    yield settings
    torch._dynamo.reset()


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler: no g++")
def test_compiled_training_takes_the_same_steps(cfg, dataset, split, inductor):
    recipe = Recipe(epochs=2, lr=0.05, optimizer="sgd", batch_size=64)
    part = split.retain.sample(130)  # and a last batch of another size
    plain, compiled = (on(cfg.device, small()) for _ in range(2))
    monitor = split.validation_retain
    wanted = fit(plain, part, dataset, recipe, seed=0, monitor=monitor, precision="fp32")
    called = torch._dynamo.utils.counters["stats"]["calls_captured"]
    found = fit(compiled, part, dataset, recipe, seed=0, monitor=monitor, precision="fp32",
                compile=True)  # fmt: skip
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > called
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert same(plain, compiled, exact=False)
    for a, b in zip(found.history, wanted.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert (found.macs, found.steps) == (wanted.macs, wanted.steps)
    assert not compiled.training


def test_what_a_compiler_lacks_may_stand_below_its_first_line():
    from torch._dynamo.exc import TorchDynamoException

    said = "backend='inductor' raised:\nModuleNotFoundError: No module named 'setuptools'\n\nSet X"
    named = pytest.raises(
        InputError,
        match=r"raised: ModuleNotFoundError: .*'setuptools'; torch\.compile needs setuptools: inst",
    )
    with named, training._compiler_named():
        raise TorchDynamoException(said)


def test_without_a_compiler_it_says_what_is_missing(cfg, dataset, split, inductor):
    without = {"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True}
    if cfg.device == "cuda":
        pytest.skip("on CUDA Triton compiles")
    with inductor.patch(without), pytest.raises(InputError, match=r"compile = True .*a C\+\+ comp"):
        fit(small(), split.retain, dataset, SHORT, seed=0, compile=True)


def test_the_first_momentum_is_zero_even_where_the_first_gradients_overflow():
    """What mixed precision in float16 does then: the step is skipped, and the next one is not."""
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model.state_dict())
    optimizer = training._optimizer(
        [*model.parameters()], Recipe(epochs=1, lr=0.1, optimizer="sgd")
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for size, moved in ((math.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale((model(torch.ones(1, 3)) * size).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert same_values(model.state_dict(), before) != moved
    for parameter in model.parameters():
        assert torch.equal(
            optimizer.state[parameter]["momentum_buffer"], torch.ones_like(parameter)
        )


def same_values(one, other):
    return all(torch.equal(one[name], other[name]) for name in other)


def test_a_checkpoint_of_a_loss_below_zero_is_taken_up(cfg, dataset, split, tmp_path):
    path, recipe = tmp_path / "checkpoint.safetensors", Recipe(epochs=1, lr=1e-4, batch_size=64)
    ascend = objectives.gradient_ascent(None)
    part = split.retain.sample(200)
    with pytest.raises(Interrupted):
        fit(on(cfg.device, small()), part, dataset, recipe, seed=0, objective=ascend,
            checkpoint=path, after_step=PressStop(2))  # fmt: skip
    found = fit(on(cfg.device, small()), part, dataset, recipe, seed=0, objective=ascend,
                checkpoint=path)  # fmt: skip
    assert found.steps == 4
    assert found.history[0]["loss"] < 0


def test_a_stop_after_the_last_step_is_not_forgotten(cfg, dataset, split, tmp_path, monkeypatch):
    count = training._Loop.count_macs

    def pressed(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return count(*args)

    monkeypatch.setattr(training._Loop, "count_macs", pressed)
    path, one = tmp_path / "checkpoint.safetensors", Recipe(epochs=1, lr=0.01)
    with pytest.raises(Interrupted, match="after 5 of 5 steps; kept in"):
        fit(on(cfg.device, small()), split.retain, dataset, one, seed=0, checkpoint=path)
    monkeypatch.setattr(training._Loop, "count_macs", count)
    found = fit(on(cfg.device, small()), split.retain, dataset, one, seed=0, checkpoint=path)
    assert (found.steps, len(found.history)) == (5, 1)
    assert found.macs > 0


def test_of_large_images_few_are_counted_and_the_number_is_that_of_all(
    cfg, dataset, original, monkeypatch
):
    images, labels = dataset.train.images[:100], dataset.train.labels[:100]
    with_adapters = lora.attach(original, 2, models.layers(original).targets("all"), alpha=4)
    whole, seen, counted = training._Loop._count, [], []
    monkeypatch.setattr(training._Loop, "_count", lambda self, *given: seen.append(
        len(given[1])) or whole(self, *given))  # fmt: skip
    for model in (original, with_adapters.train()):
        loop = training._Loop(model, SHORT, cfg.device, "fp32", (), False, False)
        for limit in (2**20, 0):
            monkeypatch.setattr(training, "COUNTED", limit)
            counted.append(loop.count_macs(training.cross_entropy, images, labels, dataset))
    assert seen == 2 * [100, 8, 16]
    assert counted[0] == counted[1] > 0
    assert counted[2] == counted[3] > 0


@pytest.mark.parametrize(
    ("count", "most", "parts"), [(33, 16, [11, 11, 11]), (10, 3, [3, 3, 2, 2])]
)
def test_a_short_rest_does_not_count_as_much_as_the_others(
    cfg, dataset, monkeypatch, count, most, parts
):
    norm = nn.BatchNorm2d(1)
    model = on(cfg.device, nn.Sequential(norm, nn.Flatten(), nn.Linear(64, 10)))
    part, batched = dataset.train.sample(count), []
    model.register_forward_pre_hook(lambda _, inputs: batched.append(inputs[0]))
    monkeypatch.setattr(training, "at_most", lambda *_: most)
    assert training.recalibrate_batchnorm(model, part, dataset) == count
    assert [len(images) for images in batched] == parts
    mean = sum(images.mean().item() for images in batched) / len(parts)
    assert norm.running_mean.item() == pytest.approx(mean, abs=1e-5)


def test_a_network_that_fails_keeps_the_momentum_of_its_norms(cfg, dataset):
    norm = nn.BatchNorm2d(1)
    model = on(cfg.device, nn.Sequential(norm, nn.Flatten(), nn.Linear(63, 10)))
    with pytest.raises(RuntimeError):
        training.recalibrate_batchnorm(model, dataset.train, dataset)
    assert norm.momentum == 0.1


def test_one_image_has_no_variance(cfg, dataset, split):
    model = on(cfg.device, nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10)))
    with pytest.raises(InputError, match="images = 1 is not allowed: at least two: BatchNorm1d"):
        fit(model, split.retain.sample(1), dataset, SHORT, seed=0)
    fit(model, split.retain.sample(1), dataset, SHORT, seed=0, frozen=[model[1]])
