"""The work of programs against counts by hand, and what the estimate makes of it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lensjax.cluster import cost
from lensjax.cluster.cost import DEVICES, CostConfig, Device, Work
from lensjax.models.conv import conv2d
from lensjax.models.product import matmul
from tests.cli.conftest import run  # noqa: F401

ROOT = Path(__file__).parents[2]


def counted(function, *arguments) -> Work:
    return cost.work_of(jax.make_jaxpr(function)(*arguments).jaxpr)


@pytest.mark.parametrize("product", [jnp.matmul, matmul])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_work_of_a_product(product, dtype):
    first, second = jnp.zeros((5, 7), dtype), jnp.zeros((7, 3), dtype)
    width = first.dtype.itemsize
    assert counted(product, first, second) == (2 * 5 * 7 * 3, width * (5 * 7 + 7 * 3 + 5 * 3))


def test_the_work_of_a_convolution():
    """Also where a CPU would take another way, with fewer multiplications or more."""
    images, kernel = jnp.zeros((2, 8, 8, 128)), jnp.zeros((3, 3, 128, 256))
    for stride, side in ((1, 8), (4, 2)):
        work = counted(lambda i, k, stride=stride: conv2d(i, k, stride, 1), images, kernel)
        out = 2 * side * side * 256
        assert work == (2 * out * 9 * 128, 4 * (images.size + kernel.size + out))


def test_work_in_loops_counts_as_often_as_it_is_done():
    square = jnp.zeros((4, 4))

    def program(x):
        return lax.scan(lambda y, _: (jax.jit(jnp.matmul)(y, y), None), x, length=12)[0] + x

    assert counted(program, square) == (12 * 2 * 4**3, 12 * 4 * 3 * 4**2)


def test_a_resnet_takes_the_multiplications_of_the_literature():
    work = cost.work_of_scoring("resnet18", 224, samples=1, batch=8)
    assert work.flops == pytest.approx(2 * 1.814e9, rel=0.005)


@pytest.mark.parametrize("size", [64, 224])
def test_a_transformer_takes_the_multiplications_counted_by_hand(size):
    width, patches = 768, (size // 16) ** 2
    tokens = patches + 1
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    # Of the last one only the class token is asked: its query, its sums, its layers.
    last = 2 * tokens * width**2 + 10 * width**2 + 2 * tokens * width
    total = patches * 768 * width + 11 * block + last
    work = cost.work_of_scoring("vit_b16", size, samples=10, batch=8)
    assert work.flops == pytest.approx(2 * total, rel=0.002)


def test_samples_share_a_backbone_and_members_add_up():
    one, ten = (cost.work_of_scoring("resnet18", 64, samples, 8) for samples in (1, 10))
    two = cost.work_of_scoring("resnet18:2", 64, 10, 8)
    assert one.flops < ten.flops < 1.001 * one.flops
    assert two.flops == pytest.approx(2 * ten.flops) and two.bytes == pytest.approx(2 * ten.bytes)


def test_the_slower_of_arithmetic_and_memory_counts():
    device = Device(peak=100.0, bandwidth=10.0, price=1.0)
    assert cost.seconds_per_cutout(Work(60.0, 10.0), device, efficiency=0.5) == 1.2
    assert cost.seconds_per_cutout(Work(60.0, 20.0), device, efficiency=0.5) == 2.0


def test_the_table_has_time_price_and_what_was_measured(run, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cost, "work_of_scoring", lambda *_: Work(36e9, 1e6))
    ended = run(cost.main, "--sizes", "224", "--cutouts", "1e6")
    heads, _, first, *others = ended.out.splitlines()
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert len(heads.split("|")) == len(first.split("|")) and len(others) == len(DEVICES) - 1
    seconds = 36e9 / (0.3 * 989e12)
    assert cells[:3] == ["224", "h200", "36"] and cells[4:6] == [f"{1 / seconds:,.0f}", "7,775"]
    assert cells[7] == f"{1e6 * seconds / 3600:.3g} h, ${1e6 * seconds / 3600 * 5.75:.2f}"
    assert "| lensjax | 4087 | 7775 |" in (ROOT / "benchmarks" / "RESULTS.md").read_text()


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert "\n".join(cost.lines(CostConfig())) in page


def test_a_device_of_ones_own():
    own = CostConfig(device="h100", price=2.0).devices()
    assert own == {"h100": DEVICES["h100"]._replace(price=2.0)}
    new = CostConfig(device="b200", peak=2e15, bandwidth=8e12, price=9.0).devices()
    assert new == {"b200": Device(2e15, 8e12, 9.0)}


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("name it with --device", ["--price", "2"]),
        ("--device b200: give its --peak", ["--device", "b200", "--price", "2"]),
        ("--sizes 224,x: give numbers", ["--sizes", "224,x"]),
        ("--cutouts 0: numbers must be at least 1", ["--cutouts", "0"]),
        ("--efficiency is a share", ["--efficiency", "30"]),
        ("--samples and --batch-size must be at least 1", ["--samples", "0"]),
    ],
)
def test_wrong_use_is_one_clear_line(run, words, options):  # noqa: F811
    ended = run(cost.main, *options)
    assert ended.status == 2 and words in ended.error and ended.error.count("\n") == 1
