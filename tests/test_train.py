"""The training loop: what it learns, that it repeats, and that a kill at any moment costs nothing."""

import copy
import dataclasses
import functools
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from small_nets import (
    WIDTHS,
    CourseNet,
    assert_equal_states,
    digits,
    nested_net,
    same_loss,
    seeded,
    state,
    tensors,
)
from torch import nn

from dqt_core import convert, data, models, train
from dqt_core.data import DataError
from dqt_core.training import batches, checkpoint, recipe
from dqt_core.training.objective import Objective

STEPS, EVERY = 11, 3
RECIPE = train.Recipe(epochs=STEPS / 44, batch_size=32, lr=0.05)


def float_net(seed=0):
    torch.manual_seed(seed)
    return CourseNet()


def fitted(net, recipe=RECIPE, **options):
    """Weights and history under the three-term loss: both optimizers, every random draw."""
    history = train.fit(net, digits(), recipe, Objective(beta=0.1), checkpoint_every=EVERY, **options)
    return state(net), history


@pytest.fixture(scope="module")
def uninterrupted():
    return fitted(nested_net())


class Killed(BaseException):
    """What no handler of the training code may catch."""


# Learning


def test_fit_learns_and_reports_every_step():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10)]
    net = nn.Sequential(*layers)
    before = train.evaluate(net, digits())
    history = train.fit(net, digits(), train.Recipe(epochs=2, batch_size=32, lr=0.1, augment=False))
    assert before < 0.3
    assert train.evaluate(net, digits()) > 0.8
    assert [entry["step"] for entry in history] == list(range(2 * 44))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert not net.training


def test_same_seed_same_weights(uninterrupted):
    weights, history = uninterrupted
    again, history_again = fitted(nested_net())
    assert_equal_states(again, weights)
    assert history_again == history
    assert [entry["step"] for entry in history] == list(range(STEPS))
    assert history[0].keys() == {"step", "consistency", "task", "cost"}


def test_other_seed_other_weights(uninterrupted):
    weights, _ = fitted(nested_net(), dataclasses.replace(RECIPE, seed=1))
    assert not torch.equal(weights["graph.conv2.weight"], uninterrupted[0]["graph.conv2.weight"])


def test_every_kind_of_parameter_is_trained(uninterrupted):
    before, after = state(nested_net()), uninterrupted[0]
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert not kept


# Precision


@pytest.mark.parametrize("ends_with", ["success", "error"])
def test_the_network_computes_in_float32_after_bf16_training(ends_with):
    net, recipe = float_net(), dataclasses.replace(RECIPE, precision="bf16")
    seen = []

    def loss(net, images, labels, progress):
        seen.append(net.conv2(torch.ones(1, 6, 4, 4)).dtype)
        if ends_with == "error":
            raise Killed
        return train.CrossEntropy()(net, images, labels, progress)

    try:
        train.fit(net, digits(), recipe, loss)
    except Killed:
        assert ends_with == "error"
    assert set(seen) == {torch.bfloat16}
    fresh = CourseNet()
    fresh.load_state_dict(net.state_dict())
    for twin in (net, copy.deepcopy(net)):
        assert torch.equal(twin(tensors()), fresh.eval()(tensors()))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_precisions_may_follow_each_other(precision):
    seen = []

    def loss(net, images, labels, progress):
        seen.append(torch.mm(torch.ones(1, 1), torch.ones(1, 1)).dtype)
        return train.CrossEntropy()(net, images, labels, progress)

    for each in (precision, "no", "bf16"):
        recipe = dataclasses.replace(RECIPE, epochs=1 / 44, precision=each)
        train.fit(float_net(), digits(), recipe, loss)
    dtypes = {"no": torch.float32, "bf16": torch.bfloat16}
    assert seen == [dtypes[precision], torch.float32, torch.bfloat16]


def test_the_callers_accelerator_keeps_its_precision():
    own = Accelerator(mixed_precision="no", cpu=True)
    train.fit(float_net(), digits(), dataclasses.replace(RECIPE, precision="bf16", epochs=1 / 44))
    assert own.mixed_precision == "no"
    assert own.state.mixed_precision == "no"
    AcceleratorState._reset_state()


def test_a_copy_of_a_trained_network_has_weights_of_its_own():
    net = float_net()
    train.fit(net, digits(), dataclasses.replace(RECIPE, epochs=1 / 44))
    twin = copy.deepcopy(net)
    nn.init.zeros_(twin.fc.weight)
    nn.init.zeros_(twin.fc.bias)
    assert not twin(tensors()).any()
    assert net(tensors()).any()


# Checkpoint and resume


def run_until_killed(folder):
    """The other process: train, and stand still in the middle of step 7, two steps behind a checkpoint."""

    @same_loss
    class Halting(Objective):
        def __call__(self, net, images, labels, progress):
            if round(progress * STEPS) == 7:
                Path(folder, "halted").touch()
                time.sleep(600)
            return super().__call__(net, images, labels, progress)

    train.fit(nested_net(), digits(), RECIPE, Halting(beta=0.1), folder, checkpoint_every=EVERY)


def resumed(folder):
    """The weights, the history and the steps of a run that goes on from a folder."""
    steps = []

    @same_loss
    class Recording(Objective):
        def __call__(self, net, images, labels, progress):
            steps.append(round(progress * STEPS))
            return super().__call__(net, images, labels, progress)

    net = nested_net()
    history = train.fit(net, digits(), RECIPE, Recording(beta=0.1), folder, checkpoint_every=EVERY)
    return state(net), history, steps


def assert_continued(folder, uninterrupted, first):
    weights, history, steps = resumed(folder)
    assert steps == list(range(first, STEPS))
    assert history == uninterrupted[1]
    assert_equal_states(weights, uninterrupted[0])


def test_killed_and_resumed_run_ends_with_the_same_bits(tmp_path, uninterrupted):
    code = "import sys, test_train; test_train.run_until_killed(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "halted").exists():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert_continued(tmp_path, uninterrupted, first=6)


def kill_at(monkeypatch, owner, name, call, after=False):
    """Make the `call`-th call of a function raise before it does anything, or right after."""
    function, calls = getattr(owner, name), []

    def killing(*args, **options):
        calls.append(1)
        if len(calls) == call and not after:
            raise Killed
        result = function(*args, **options)
        if len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killing)


FILES = 3  # of tensors in a checkpoint: the model, two optimizers
# Saves come after steps 2, 5, 8 and 10. The third one: moves `last` (calls 2 and 4 of replace), then `new`.
KILLS = {
    "before anything is written": (checkpoint.Checkpoint, "_write", 3, False, 6),
    "before run.json": (Path, "write_bytes", FILES * 3, True, 6),
    "between two files": (Path, "write_bytes", FILES * 2 + 2, False, 6),
    "in the middle of run.json": (Path, "write_text", 3, False, 6),
    "before the two are swapped": (checkpoint.os, "replace", 4, False, 6),
    "between the two moves": (checkpoint.os, "replace", 4, True, 6),
    "before the second move": (checkpoint.os, "replace", 5, False, 6),
    "after the swap": (checkpoint.os, "replace", 5, True, 9),
    "at the first checkpoint": (checkpoint.os, "replace", 1, False, 0),
    "after the first checkpoint": (checkpoint.os, "replace", 1, True, 3),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_while_a_checkpoint_is_written_leaves_a_whole_one(
    moment, tmp_path, uninterrupted, monkeypatch
):
    owner, name, call, after, first = KILLS[moment]
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, call, after)
        with pytest.raises(Killed):
            fitted(nested_net(), out=tmp_path)
    assert_continued(tmp_path, uninterrupted, first)


def test_what_a_kill_left_of_a_checkpoint_is_not_used(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model.safetensors").write_bytes(b"part of a file")
    (tmp_path / "new" / "stale").touch()
    weights, history = fitted(nested_net(), dataclasses.replace(RECIPE, epochs=1 / 44), out=tmp_path)
    assert len(history) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "lock"]
    assert not (tmp_path / "last" / "stale").exists()
    assert_equal_states(load_file(tmp_path / "last" / "model.safetensors"), weights)


def flip_a_bit(path):
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(bytes(blob))


DAMAGES = {
    "a bit of the weights": ("model.safetensors", flip_a_bit),
    "the weights cut short": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-9])),
    "a bit of the momentum": ("optimizer-0.safetensors", flip_a_bit),
    "a file that is missing": ("optimizer-1.safetensors", lambda path: path.unlink()),
    "run.json cut short": ("run.json", lambda path: path.write_text(path.read_text()[:-9])),
    "run.json empty": ("run.json", lambda path: path.write_text("")),
    "a figure of run.json": (
        "run.json",
        lambda path: path.write_text(path.read_text().replace('"step": 0', '"step": 1')),
    ),
    "a setting of run.json": (
        "run.json",
        lambda path: path.write_text(path.read_text().replace("epochs", "epocts")),
    ),
    "run.json without an end": ("run.json", lambda path: path.write_text("[" * 100_000)),
    "run.json of something else": ("run.json", lambda path: path.write_text("[1, 2]")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_too(damage, tmp_path, uninterrupted):
    fitted(nested_net(), out=tmp_path)
    name, spoil = DAMAGES[damage]
    spoil(tmp_path / "last" / name)
    with pytest.raises(ValueError, match=r"last is damaged \(.*\); move it away, .* goes on from .*previous"):
        fitted(nested_net(), out=tmp_path)
    shutil.rmtree(tmp_path / "last")
    assert_continued(tmp_path, uninterrupted, first=9)


def test_a_damaged_first_checkpoint_has_no_other(tmp_path):
    fitted(nested_net(), dataclasses.replace(RECIPE, epochs=1 / 44), out=tmp_path)
    flip_a_bit(tmp_path / "last" / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was written\); remove it"):
        fitted(nested_net(), dataclasses.replace(RECIPE, epochs=1 / 44), out=tmp_path)


def test_a_checkpoint_holds_nothing_that_can_run(tmp_path):
    """Tensors and JSON alone; a planted pickle is not looked at."""
    fitted(nested_net(), dataclasses.replace(RECIPE, epochs=1 / 44), out=tmp_path)
    assert {path.suffix for path in (tmp_path / "last").iterdir()} == {".json", ".safetensors"}

    class Planted:
        def __reduce__(self):
            return Path.touch, (tmp_path / "it ran",)

    (tmp_path / "last" / "random_states_0.pkl").write_bytes(pickle.dumps(Planted()))
    fitted(nested_net(), dataclasses.replace(RECIPE, epochs=1 / 44), out=tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_two_runs_in_one_folder(tmp_path, capsys):
    """The second is told at once which process has it; a child of the first does not hold it."""
    refused = (
        f"process {os.getpid()} on .* is training in {re.escape(str(tmp_path))}; wait for it, or stop it"
    )
    told = []

    def loss(net, images, labels, progress):
        if not told:
            with pytest.raises(DataError, match=refused) as second:
                train.fit(float_net(), digits(), RECIPE, out=tmp_path)
            told.append(second)
            context = multiprocessing.get_context("fork")
            child = context.Process(target=signal.pause)
            child.start()
            children.append(child)
        return train.CrossEntropy()(net, images, labels, progress)

    children, recipe = [], dataclasses.replace(RECIPE, epochs=1 / 44)
    try:
        train.fit(float_net(), digits(), recipe, loss, out=tmp_path)
        assert children[0].is_alive()
        train.fit(float_net(), digits(), recipe, loss, out=tmp_path)
    finally:
        children[0].kill()
        children[0].join()
    assert f"{tmp_path / 'last'}: the run goes on after step 1\n" in capsys.readouterr().err


def test_a_full_disk_ends_a_run_and_leaves_its_last_checkpoint(tmp_path, uninterrupted):
    @same_loss
    class Filling(Objective):
        def __call__(self, net, images, labels, progress):
            if progress >= 5 / STEPS:  # after the first checkpoint
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
            return super().__call__(net, images, labels, progress)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"after step 6 cannot be written .*it goes on from .*last$"):
            train.fit(nested_net(), digits(), RECIPE, Filling(beta=0.1), tmp_path, checkpoint_every=EVERY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "new").exists()
    assert_continued(tmp_path, uninterrupted, first=EVERY)


def test_a_file_is_no_folder_for_checkpoints(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="out is a file; give a folder for checkpoints"):
        fitted(nested_net(), out=tmp_path / "out")


def test_a_finished_run_is_loaded_and_goes_no_further(tmp_path, uninterrupted):
    fitted(nested_net(), out=tmp_path)
    assert_continued(tmp_path, uninterrupted, first=STEPS)
    shutil.rmtree(tmp_path / "last")
    assert_continued(tmp_path, uninterrupted, first=9)


@pytest.mark.parametrize("call", [lambda net, of: train.fit(net, of, RECIPE, Objective()), train.evaluate])
def test_images_of_another_normalization_are_refused(call):
    """What was trained would not be what the lowered program makes of the bytes."""
    other = dataclasses.replace(digits(), mean=(0.9, 0.9, 0.9))
    with pytest.raises(ValueError, match=r"converted for mean=.* the data set has mean=\(0.9, 0.9, 0.9\)"):
        call(nested_net(), other)


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1 / 44)
    fitted(nested_net(), recipe, out=tmp_path)
    with pytest.raises(ValueError, match=r"another run: lr=0\.05, .* has lr=0\.1; .* another folder"):
        fitted(nested_net(), dataclasses.replace(recipe, lr=0.1), out=tmp_path)


def test_another_loss_or_data_set_in_the_same_folder_is_refused(tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1 / 44)
    fitted(nested_net(), recipe, out=tmp_path)
    with pytest.raises(ValueError, match=r"beta=0\.1.*beta=0\.2"):
        train.fit(nested_net(), digits(), recipe, Objective(beta=0.2), out=tmp_path)
    other = dataclasses.replace(digits(), train_images=digits().train_images[::-1].copy())
    with pytest.raises(ValueError, match=r"images='[0-9a-f]{64}', .* give what it was made with"):
        train.fit(nested_net(), other, recipe, Objective(beta=0.1), out=tmp_path)


def relabelled():
    return dataclasses.replace(digits(), train_labels=digits().train_labels[::-1].copy())


def normalized_otherwise():
    other = dataclasses.replace(digits(), mean=(0.1, 0.2, 0.3))
    net = convert(seeded(CourseNet, 0), other.train_images[:8], other.mean, other.std, WIDTHS)
    return {"dataset": other, "net": net}


@pytest.mark.parametrize(
    ("named", "other"),
    [
        ("labels", {"dataset": relabelled()}),
        ("mean", normalized_otherwise()),
        ("start", {"net": nested_net(seed=1)}),
        ("rounding", {"net": nested_net(rounding="floor")}),
        ("choices", {"net": nested_net(widths=(3, 8))}),
        ("loss", {"loss": lambda net, images, labels, progress: (net(images, 8).sum(), {})}),
    ],
)
def test_whatever_shapes_a_run_tells_it_from_another(tmp_path, named, other):
    recipe = dataclasses.replace(RECIPE, epochs=1 / 44)
    given = {"net": nested_net(), "dataset": digits(), "loss": Objective(beta=0.1)}
    train.fit(**given, recipe=recipe, out=tmp_path)
    with pytest.raises(ValueError, match=f"was made by another run: .*{named}=.* or another folder"):
        train.fit(**(given | {"net": nested_net()} | other), recipe=recipe, out=tmp_path)


def test_another_teacher_is_another_run(tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1 / 44)

    def run(seed):
        loss = Objective(teacher=seeded(CourseNet, seed), distillation=0.5)
        return train.fit(nested_net(), digits(), recipe, loss, tmp_path)

    history = run(0)
    assert run(0) == history
    with pytest.raises(ValueError, match=r"another run: teacher='[0-9a-f]{64}', this one has teacher='"):
        run(1)


def test_sizes_of_0_are_refused():
    with pytest.raises(ValueError, match="checkpoint_every=0, expected 1 or more steps"):
        train.fit(float_net(), digits(), RECIPE, checkpoint_every=0)
    for function in (train.recalibrate, train.evaluate):
        with pytest.raises(ValueError, match="batch_size=0, expected 1 or more"):
            function(nested_net(), digits(), batch_size=0)


def test_epochs_must_be_positive():
    with pytest.raises(ValueError, match=r"epochs=0, expected a positive number"):
        train.fit(float_net(), digits(), dataclasses.replace(RECIPE, epochs=0))


def test_without_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.fit(float_net(), digits(), dataclasses.replace(RECIPE, epochs=1 / 44))
    assert not list(tmp_path.iterdir())


# Refusals


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_names_its_step(value):
    net = float_net()

    def loss(net, images, labels, progress):
        result, figures = train.CrossEntropy()(net, images, labels, progress)
        return result * float(value if round(progress * STEPS) == 2 else 1), figures

    before = []
    net.fc.register_forward_pre_hook(lambda module, _: before.append(module.weight.clone()))
    with pytest.raises(FloatingPointError, match=f"the loss is {value} at step 2; lower the learning rate"):
        train.fit(net, digits(), RECIPE, loss)
    assert torch.equal(net.fc.weight, before[-1]), "the bad step is not taken"


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(ValueError, match="batch_size=1439 is more than the 1438 training images; lower it"):
        train.fit(float_net(), digits(), dataclasses.replace(RECIPE, batch_size=1439))


# Batches, schedule and optimizers


def numbered(count=10):
    """Image i is grey of level i, with label i."""
    levels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 8, 8, 3)).copy()
    labels = np.arange(count)
    mean, std = (0.0,) * 3, (1 / 255,) * 3
    return data.Dataset("numbered", levels, labels, levels, labels, mean, std, tuple("0123456789"))


def served(recipe, dataset=None):
    batches = []

    def loss(net, images, labels, progress):
        assert torch.equal(images[:, 0, 0, 0].round().long(), labels)
        batches.append(labels.tolist())
        return net(images).sum(), {}

    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    train.fit(net, dataset or numbered(), recipe, loss)
    return batches


def test_an_epoch_serves_every_image_once_in_an_order_of_its_own():
    recipe = train.Recipe(epochs=3, batch_size=5, augment=False, precision="no")
    batches = served(recipe)
    assert [len(batch) for batch in batches] == [5] * 6
    epochs = [batches[i] + batches[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert served(recipe) == batches
    assert served(dataclasses.replace(recipe, seed=1)) != batches


def test_an_incomplete_batch_is_left_out():
    assert [len(batch) for batch in served(train.Recipe(2, batch_size=4, augment=False))] == [4] * 4


def test_schedule_rises_then_falls_as_a_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=2.0)
    schedule = recipe.rate_schedule(optimizer, train.Recipe(epochs=1, warmup=0.2), steps=20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [2 * (i + 1) / 4 for i in range(4)] + [1 + np.cos(np.pi * i / 16) for i in range(16)]
    np.testing.assert_allclose(rates, expected, atol=1e-12)


def test_optimizers_group_parameters():
    net = nested_net()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    sgd, adam = train.optimizers(net, lr=0.3, weight_decay=0.01, bias_rate=16)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, True)
    groups = [{names[id(p)] for p in group["params"]} for group in sgd.param_groups + adam.param_groups]
    decayed, plain, biases, steps, controller = groups
    assert sum(map(len, groups)) == len(names) == len(set.union(*groups))
    assert decayed == {f"graph.{layer}.weight" for layer in ("conv1", "conv2", "conv3", "fc")}
    assert all(name.endswith("log_step") for name in steps)
    assert {"graph.controller.fc1.log_step", "graph.x_codes.log_step", "graph.conv2.log_step"} < steps
    assert controller == {
        f"graph.controller.{fc}.{kind}" for fc in ("fc1", "fc2") for kind in ("weight", "bias")
    }
    assert {"graph.conv2.norms.1.weight", "graph.fc.bias"} < plain
    assert biases == {name for name in names.values() if name.endswith(".bias") and ".norms." in name}
    rates = [group["lr"] for group in sgd.param_groups + adam.param_groups]
    assert rates == [0.3, 0.3, 0.3 * 16, 2e-3, 1e-2]
    assert [group["weight_decay"] for group in sgd.param_groups + adam.param_groups] == [0.01, 0, 0, 0, 0]


def test_gradients_are_clipped():
    net, before = nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), []
    net.register_forward_pre_hook(lambda *_: before.append(state(net)))
    recipe = train.Recipe(1 / 2, batch_size=5, clip=0.5, lr=1.0, warmup=0, weight_decay=0, precision="no")
    train.fit(net, numbered(), recipe, lambda net, x, y, p: (1e6 * net(x).sum(), {}))
    change = torch.cat([(state(net)[name] - before[0][name]).flatten() for name in before[0]])
    # one step of Nesterov momentum from rest: (1 + 0.9) * lr * gradient
    assert change.norm().item() == pytest.approx(1.9 * 0.5, rel=1e-3)


# Augmentation and input


def test_augment_crops_a_reflected_image():
    image = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(1, 10, 12, 3)
    padded = np.pad(image[0], ((4, 4), (4, 4), (0, 0)), mode="reflect")
    crops = {
        padded[top : top + 10, left : left + 12][:, ::mirror].tobytes(): (top, left, mirror)
        for top in range(9)
        for left in range(9)
        for mirror in (1, -1)
    }
    assert len(crops) == 9 * 9 * 2
    torch.manual_seed(0)
    many = train.augment(torch.from_numpy(image).expand(3000, -1, -1, -1))
    assert (many.shape, many.dtype) == ((3000, 10, 12, 3), torch.uint8)
    found = [crops[crop.numpy().tobytes()] for crop in many]
    assert set(found) == set(crops.values()), "every crop, mirrored and not"
    assert 0.45 < np.mean([mirror == 1 for *_, mirror in found]) < 0.55


def test_augment_without_flip_never_mirrors():
    image = torch.arange(12).repeat(12).reshape(1, 12, 12, 1).to(torch.uint8)
    middle = train.augment(image.expand(500, -1, -1, -1), flip=False)[:, 6, 4:8, 0].int()
    assert (middle.diff(dim=1) == 1).all()


def test_augment_repeats_with_the_seed():
    pixels = torch.from_numpy(digits().train_images[:50])
    torch.manual_seed(1)
    first = train.augment(pixels)
    second = train.augment(pixels)
    torch.manual_seed(1)
    assert torch.equal(train.augment(pixels), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("options", [{"augment": False}, {"flip": False}, {}], ids=str)
def test_fit_augments_as_its_recipe_says(options, monkeypatch):
    calls, augment = [], train.augment
    monkeypatch.setattr(batches, "augment", lambda x, *how: calls.append(how) or augment(x, *how))
    train.fit(float_net(), digits(), dataclasses.replace(RECIPE, epochs=1 / 44, **options))
    assert calls == ([] if "augment" in options else [(options.get("flip", True), 1.0)])


def test_small_crops_are_cut_at_first_alone(monkeypatch):
    sizes, augment = [], train.augment
    monkeypatch.setattr(
        batches, "augment", lambda *given: sizes.append(augment(*given).shape) or augment(*given)
    )
    recipe = dataclasses.replace(RECIPE, epochs=4 / 44, small_crops=0.5)
    train.fit(float_net(), digits(), recipe)
    assert [tuple(shape[1:]) for shape in sizes] == [(24, 24, 3)] * 2 + [(32, 32, 3)] * 2


def test_a_small_crop_is_a_part_of_the_padded_image():
    images = torch.arange(8 * 8, dtype=torch.uint8).reshape(1, 8, 8, 1).expand(64, 8, 8, 1)
    torch.manual_seed(0)
    crops = train.augment(images, flip=False, part=0.75)
    assert crops.shape == (64, 6, 6, 1)
    rows = {tuple((crop[:, 0, 0] // 8).tolist()) for crop in crops}
    padded = [4, 3, 2, 1, *range(8), 6, 5, 4, 3]
    assert rows <= {tuple(padded[first : first + 6]) for first in range(11)}
    assert len(rows) > 8


def test_small_crops_need_images_that_are_cut_here():
    with pytest.raises(ValueError, match=r"small_crops=0\.5 needs images in memory, augmented here"):
        train.fit(float_net(), digits(), dataclasses.replace(RECIPE, small_crops=0.5, augment=False))


def test_the_average_of_the_weights_is_what_a_network_ends_with(tmp_path):
    recipe, seen = dataclasses.replace(RECIPE, epochs=3 / 44, average=0.75), []

    def loss(net, images, labels, progress):
        seen.append(state(net)["conv2.weight"])
        return train.CrossEntropy()(net, images, labels, progress)

    plain = float_net()
    train.fit(plain, digits(), dataclasses.replace(recipe, average=None), loss)
    weights = [*seen, state(plain)["conv2.weight"]]
    expected = weights[0]
    for after in weights[1:]:
        expected = 0.75 * expected + 0.25 * after
    net = float_net()
    train.fit(net, digits(), recipe, out=tmp_path)
    torch.testing.assert_close(state(net)["conv2.weight"], expected)
    again = float_net()
    train.fit(again, digits(), recipe, out=tmp_path)
    assert_equal_states(state(again), state(net))


@pytest.fixture
def read_alone(monkeypatch):
    """`torch.compile` reads the passes as ever, and no C++ is compiled, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def test_compiled_passes_train_the_same_network(read_alone):
    net, plain = float_net(), float_net()
    recipe = dataclasses.replace(RECIPE, epochs=2 / 44, precision="no")
    train.fit(plain, digits(), recipe)
    train.fit(net, digits(), dataclasses.replace(recipe, compiled=True))
    for name, value in state(plain).items():
        torch.testing.assert_close(state(net)[name], value, atol=1e-4, rtol=1e-3)


def test_normalize_is_the_formula():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    found = train.normalize(torch.from_numpy(pixels), torch.from_numpy(data.normalization_table(mean, std)))
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


# Evaluation


def test_evaluate_counts_correct_images():
    dataset, seen = digits(), []

    def net(images, shift):
        start = sum(seen)
        seen.append(len(images))
        labels = torch.from_numpy(dataset.test_labels[start : start + len(images)])
        wrong = torch.arange(start, start + len(images)) % 4 == 0
        return nn.functional.one_hot(torch.where(wrong, (labels + shift) % 10, labels), 10)

    assert train.evaluate(net, dataset, batch_size=100, shift=1) == (359 - 90) / 359
    assert seen == [100, 100, 100, 59]
    seen.clear()
    assert train.evaluate(net, dataset, limit=10, shift=1) == 0.7
    assert seen == [10]


def test_evaluate_puts_the_network_in_evaluation_mode_without_gradients():
    net, seen = seeded(CourseNet).train(), []
    net.register_forward_hook(lambda module, _, out: seen.append((module.training, out.requires_grad)))
    train.evaluate(net, digits(), limit=5)
    assert seen == [(False, False)]


def test_evaluate_passes_widths_on():
    net = nested_net().eval()
    accuracies = [train.evaluate(net, digits(), limit=64, widths=width) for width in (2, 8, "controller")]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    with pytest.raises(ValueError, match="width 5 is not among"):
        train.evaluate(net, digits(), limit=5, widths=5)


def test_environment_is_left_alone():
    before = dict(os.environ)
    train.fit(float_net(), digits(), dataclasses.replace(RECIPE, epochs=1 / 44))
    assert dict(os.environ) == before


@pytest.mark.parametrize("sizes", [{"limit": 0}, {"limit": -3}, {"batch_size": 0}], ids=str)
def test_evaluate_needs_an_image(sizes):
    with pytest.raises(ValueError, match=r"(limit|batch_size)=(0|-3), expected"):
        train.evaluate(CourseNet(), digits(), **sizes)


# Arrays of a data set


ODD = {
    "backwards": lambda x: x[::-1].copy()[::-1],
    "every second": lambda x: np.repeat(x, 2, axis=0)[::2],
    "in columns": np.asfortranarray,
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "of a class of its own": lambda x: x.view(np.ma.MaskedArray),
    "of other bytes": lambda x: x.astype(x.dtype.newbyteorder("S")),
    "in few bytes": lambda x: x.astype(np.uint8),
    "in unsigned bytes": lambda x: x.astype(np.uint64),
}


@pytest.mark.parametrize("kind", ODD)
def test_any_array_of_a_data_set_is_its_numbers(kind):
    """In training, evaluation and the statistics of each width."""
    plain = numbered()
    fields = dataclasses.asdict(plain)
    odd = {name: ODD[kind](value) for name, value in fields.items() if name.endswith("labels")}
    if np.uint8 == ODD[kind](plain.train_images).dtype:
        odd |= {name: ODD[kind](value) for name, value in fields.items() if name.endswith("images")}
    given = dataclasses.replace(plain, **odd)
    served(train.Recipe(epochs=1, batch_size=1, augment=False, precision="no"), given)

    def net(x):
        assert x.shape[1:] == (3, 8, 8)
        return nn.functional.one_hot(x[:, 0, 0, 0].round().long(), 10)

    assert train.evaluate(net, given, batch_size=3) == 1
    nets = [nested_net(widths=(2, 8)) for _ in range(2)]
    for one, dataset in zip(nets, (plain, given), strict=True):
        train.recalibrate(one, dataset, batch_size=4)
    assert_equal_states(*map(state, nets))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.astype(np.float32), r"numbered, test: images are float32 of shape \(10, 8, 8, 3\)"),
        (lambda x: x.transpose(0, 3, 1, 2), r"uint8 of shape \(10, 3, 8, 8\), expected uint8 \(N, H, W, 3\)"),
        (lambda x: x[..., 0], r"shape \(10, 8, 8\)"),
        (lambda x: x.astype(np.int8), "images are int8"),
        (torch.from_numpy, r"images are torch.uint8"),
        (list, r"images are list of shape \(\)"),
    ],
)
def test_what_is_no_array_of_images_is_refused(change, said):
    with pytest.raises(data.DataError, match=said):
        dataclasses.replace(numbered(), test_images=change(numbered().test_images))


# Statistics of each width


def test_recalibrate_takes_each_widths_statistics_at_that_width():
    embedded = data.embedded()
    torch.manual_seed(0)
    float_net = models.resnet18(classes=10, channels=8, small_images=True)
    net = convert(float_net, embedded.train_images[:8], embedded.mean, embedded.std, widths=(2, 8))
    layer = net.switch_layers[3]
    images = train.normalize(
        torch.from_numpy(embedded.train_images[:24]),
        torch.from_numpy(data.normalization_table(embedded.mean, embedded.std)),
    )
    expected = []
    for choice in range(2):
        seen = []
        hook = layer.norm_of(choice).register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0])
        )
        net.train()
        with torch.no_grad():
            for start in (0, 12):
                net(images[start : start + 12], [net.choices[choice]] * len(net.switch_layers))
        hook.remove()
        expected.append(torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    for norm in layer.norms:
        norm.running_mean.fill_(99.0)
    train.recalibrate(net, embedded, images=24, batch_size=12)
    for choice in range(2):
        torch.testing.assert_close(layer.norm_of(choice).running_mean, expected[choice], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(expected[0], expected[1])
    assert layer.norm_of(0).momentum == 0.1
    assert not net.training
    before = state(net)
    train.recalibrate(net, [embedded.train_images[:12], embedded.train_images[12:24]])
    assert_equal_states(state(net), before)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ([], {}, "there are no images to take statistics from"),
        (digits, {"images": 0}, "there are no images to take statistics from"),
        ([np.zeros((2, 8, 8, 3))], {}, "images must be uint8 .*, got float64"),
    ],
)
def test_statistics_of_no_images_are_refused(given, options, said):
    net = nested_net(widths=(2, 8))
    momenta = [module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    before = state(net)
    with pytest.raises(ValueError, match=said):
        train.recalibrate(net, given() if callable(given) else given, **options)
    assert [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    assert_equal_states(state(net), before)


def test_compiled_passes_of_a_nested_network_train_it_alike(tmp_path, read_alone):
    """Compiled at every width, resumed, and of the same state dict as any other."""
    recipe = dataclasses.replace(RECIPE, epochs=2 / 44, precision="no")
    objective = Objective(controller_from=2.0)
    plain, net = nested_net(widths=(2, 8)), nested_net(widths=(2, 8))
    history = train.fit(plain, digits(), recipe, objective)
    compiled = dataclasses.replace(recipe, compiled=True)
    found = train.fit(net, digits(), compiled, objective, tmp_path)
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert [entry["consistency"] for entry in found] == pytest.approx(
        [entry["consistency"] for entry in history], rel=1e-3
    )
    again = nested_net(widths=(2, 8))
    assert train.fit(again, digits(), compiled, objective, tmp_path) == found
    assert_equal_states(state(again), state(net))
