"""Plans fit their budget with the fewest groups, and say what they change."""

import contextlib
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.cli import train
from lensjax.data.on_device import ImageSpec
from lensjax.errors import UsageError
from lensjax.memory import Footprint
from lensjax.train import plan as planning
from lensjax.train.member_step import ResolutionGroup
from lensjax.train.plan import (
    GroupPlan,
    TrainingPlan,
    abstract_batch,
    budget_bytes,
    choose_groups,
    plan_training,
    recorded_groups,
)
from lensjax.train.setup import TrainSetup
from tests.networks import Convolutional
from tests.train.small import BATCH, MEMBERS, MESH, UNCHANGED, config_and_state

SIZES = (1, 2, 3)


def additive(group: ResolutionGroup, batch_size: int) -> GroupPlan:
    """What a step would need if it took its parameters, 10, and 1 a pixel and cutout."""
    pixels = sum(SIZES[scale] ** 2 for scale in group.scales)
    kept = batch_size * pixels / group.micro_batches * (0.5 if group.remat else 1.0)
    return GroupPlan(group, Footprint(10, 0, int(kept), 0), 0)


def chosen(budget: float, batch_size: int = 32, micro_batches: int = 1) -> list[ResolutionGroup]:
    found = choose_groups(additive, (0, 1, 2), SIZES, micro_batches, batch_size, budget)
    return [plan.group for plan in found]


def test_neighbours_share_a_group_as_long_as_they_fit():
    assert chosen(10 + 32 * 14) == [ResolutionGroup((0, 1, 2))]
    assert chosen(10 + 32 * 13) == [ResolutionGroup((0,)), ResolutionGroup((1, 2))]
    assert chosen(10 + 32 * 9) == [ResolutionGroup((0, 1)), ResolutionGroup((2,))]


def test_a_scale_that_does_not_fit_is_cut_and_then_rematerialised():
    assert chosen(10 + 32 * 5) == [ResolutionGroup((0, 1)), ResolutionGroup((2,), 2)]
    assert chosen(10 + 16 * 5) == [
        ResolutionGroup((0,)),
        ResolutionGroup((1,), 2),
        ResolutionGroup((2,), 4),
    ]
    assert chosen(10 + 4 * 9) == [
        ResolutionGroup((0,)),
        ResolutionGroup((1,), 4),
        ResolutionGroup((2,), 8),
    ]
    assert chosen(10 + 2 * 9)[-1] == ResolutionGroup((2,), 8, remat=True)
    assert all(group.micro_batches >= 4 for group in chosen(10 + 32 * 14, micro_batches=4))


def test_what_cannot_fit_names_the_largest_batch_that_would():
    with pytest.raises(UsageError, match="scale 3 does not fit .* a batch of 2 would"):
        chosen(10 + 9)
    with pytest.raises(UsageError, match="scale 3 does not fit .* a batch of 1 would"):
        chosen(10 + 9 / 2)
    with pytest.raises(UsageError, match="not even one cutout would"):
        chosen(12)


def test_budgets():
    assert budget_bytes("3GB", MESH) == 3 * 10**9 and budget_bytes("auto", MESH) > 0
    with pytest.raises(UsageError, match="--memory-budget lots"):
        budget_bytes("lots", MESH)


def planned(
    budget: float, target=None, batch_size: int = BATCH, scales: tuple[int, ...] = (0, 1, 2), **more
) -> TrainingPlan:
    config, state = config_and_state(Convolutional)
    keys = jax.vmap(jax.random.key)(jnp.arange(MEMBERS))
    setup = TrainSetup("two", config, (scales,), 1, keys, np.ones((MEMBERS, 9)), 1, 1)
    image_spec = ImageSpec((48, 48, 2), "float32")
    given = {"batch_size": batch_size, "budget": budget, "target": target, **more}
    return plan_training(setup, state, image_spec, **given)


def test_scales_that_fit_together_are_not_compiled_alone(monkeypatch):
    asked = []

    def needed(setup, state, image_spec, target, scale_count, group, batch_size):
        asked.append(group)
        return additive(group, BATCH)

    monkeypatch.setattr(planning, "plan_group", needed)
    free = planned(1e12)
    assert asked == [ResolutionGroup((0, 1, 2))] and free.alone == []
    assert free.chosen == free.together and free.peak == free.peak_at_once
    assert len(planned(10 + BATCH * 13).alone) == 3


@pytest.mark.slow
@pytest.mark.parametrize("device", ["here", "h100"])
def test_groups_need_less_by_the_word_of_the_compiler(device, request):
    # Against the 4 MiB that a matrix product takes to work in, few cutouts are nothing.
    more = (
        {"batch_size": 32}
        if device == "here"
        else {"target": request.getfixturevalue("h100"), "batch_size": 256}
    )
    free = planned(1e12, scales=(0, 2), **more)
    grouped = planned(free.peak - 1, scales=(0, 2), **more)
    assert grouped.groups == {(0, 2): [ResolutionGroup((0,)), ResolutionGroup((2,))]}
    assert grouped.peak < free.peak == grouped.peak_at_once


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory):
    rng = np.random.default_rng(0)
    label = np.arange(48) % 2
    images = rng.normal(0, 1, (48, 16, 16, 1)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "cutouts.npz"
    np.savez(path, images=images, label=label, id=np.arange(48), bands=np.array(["g"]))
    return path


@pytest.fixture(scope="module")
def options(cutouts, vit_tiny) -> list[str]:
    return [
        *("--data", str(cutouts), "--arch", vit_tiny, "--batch-size", "32", "--stretch", "none"),
        *("--scales", "16,32", "--epochs", "1", "--validation-fraction", "0.3", *UNCHANGED),
    ]


@pytest.fixture(scope="module")
def free(options, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a plan with all the memory that there is, and what it prints."""
    folder = tmp_path_factory.mktemp("free")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train.main([*options, "--plan", "--output", str(folder)])
    return folder, printed.getvalue()


@pytest.mark.slow
def test_a_plan_is_printed_and_written(free, vit_tiny):
    folder, printed = free
    record = json.loads((folder / "plan.json").read_text())
    assert "16+32" in printed and "steps/s" in printed and "all at once" in printed
    assert [row["sizes"] for row in record["resolutions"]] == [[16], [32]]
    assert [row["sizes"] for row in record["groups"]] == [[16, 32]]
    assert record["peak_bytes"] == record["all_at_once_peak_bytes"] > 4 * 4 * 116e3
    assert record["steps_per_second"] > 0
    assert not list(folder.glob(vit_tiny))


@pytest.mark.slow
def test_a_run_in_a_small_budget_says_how_and_goes_on_with_the_same_groups(
    options, free, vit_tiny, tmp_path, capsys
):
    record = json.loads((free[0] / "plan.json").read_text())
    budget = str(int(record["peak_bytes"]) - 1)
    train.main([*options, "--memory-budget", budget, "--output", str(tmp_path)])
    path = tmp_path / vit_tiny / "runs" / "0" / "plan.json"
    said = json.loads(path.read_text())
    assert said["peak_bytes"] <= int(budget) < said["all_at_once_peak_bytes"]
    groups = recorded_groups(path, budget)
    assert [group.scales for group in groups] == [(0,), (1,)]
    assert recorded_groups(path, "auto") is None
    assert "trained; validation AUROC" in capsys.readouterr().out


def test_what_cannot_be_planned_is_refused(tmp_path):
    wrong = {
        "one architecture at a time": ("--arch", "resnet18,vit_s16", "--scales", "16"),
        "--plan wants --data or --scales": (),
        "--target wants a --memory-budget": ("--scales", "16", "--target", "h100"),
        "does not divide": ("--scales", "16", "--micro-batches", "3"),
    }
    for message, options in wrong.items():
        with pytest.raises(UsageError, match=message):
            train.main(["--plan", "--output", str(tmp_path), *options])


def test_images_travel_in_their_own_type_and_teachers_beside_them():
    keys = jax.vmap(jax.random.key)(jnp.arange(MEMBERS))
    config, _ = config_and_state(Convolutional)
    setup = TrainSetup("two", config, ((0,),), 1, keys, np.ones((MEMBERS, 9)), 1, 1)
    setup = setup._replace(teachers=({"kernel": jnp.ones((3, 2), jnp.bfloat16)},))
    found = abstract_batch(setup, ImageSpec((48, 48, 2), "uint8"), 4)
    assert found.images.shape == (4, 48, 48, 2) and found.images.dtype == jnp.uint8
    assert found.weight.shape == (2, 4)
    assert found.teachers[0]["kernel"].shape == (3, 2)
    assert found.teachers[0]["kernel"].dtype == jnp.bfloat16
