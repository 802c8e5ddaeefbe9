"""What scoring a survey takes: time and money, from the multiplications of the compiled step.

    python -m lensjax.cluster.cost

The time of a cutout is max(FLOPs / (efficiency x peak), bytes / bandwidth). FLOPs and bytes are
those of products and convolutions, of which each reads its factors and writes its result once; all
else is fused into them. They are counted in the program before it is compiled: XLA's own count
takes the body of a loop once, and a transformer's blocks are a loop.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from lensjax import config, launch
from lensjax.data.on_device import ImageSpec, InputSpec, Transform
from lensjax.data.preprocess import Preprocessing, geometry
from lensjax.ensemble import sharding
from lensjax.ensemble.checkpoint import MemberInfo, parse_ensemble
from lensjax.ensemble.plan import abstract_inputs
from lensjax.ensemble.stack import abstract_ensemble
from lensjax.ensemble.step import StepOptions, abstract_weights, ensemble_step
from lensjax.errors import UsageError, refuse

BANDS = ("g", "r", "i")
DROPOUT = 0.2


class Device(NamedTuple):
    """An accelerator: products a second in bfloat16, memory in bytes a second, dollars an hour."""

    peak: float
    bandwidth: float
    price: float


DEVICES = {
    "h200": Device(989e12, 4.8e12, 5.75),
    "h100": Device(989e12, 3.35e12, 4.25),
    "v5e": Device(197e12, 0.82e12, 1.20),
}

# Cutouts a second, see benchmarks/RESULTS.md.
MEASURED = {("resnet18,vit_b16", 10, 224, "h200"): 7775.0}


@dataclass(frozen=True)
class CostConfig:
    """Options of the estimate."""

    ensemble: str = "resnet18,vit_b16"
    """Architectures, comma separated; resnet18:4 for four members of one."""
    sizes: str = "224,64"
    """Pixels across of the cutouts, comma separated."""
    samples: int = 10
    """Dropout samples."""
    batch_size: int = 256
    """Cutouts a step, which read the weights once."""
    cutouts: str = "1e6,1e8,3e8"
    """Numbers of cutouts, comma separated."""
    efficiency: float = 0.3
    """Share of the peak that is reached."""
    device: str | None = None
    """One of the devices; h200, h100 and v5e are known (None: all of them)."""
    peak: float | None = None
    """Its floating-point operations a second."""
    bandwidth: float | None = None
    """Bytes a second of its memory."""
    price: float | None = None
    """Dollars that an hour of it costs."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings that make no sense."""
        own = (self.peak, self.bandwidth, self.price)
        wrong = {
            "--samples and --batch-size must be at least 1": min(self.samples, self.batch_size) < 1,
            "--efficiency is a share: above 0, at most 1": not 0 < self.efficiency <= 1,
            "--peak, --bandwidth and --price must be above 0": any(
                value is not None and value <= 0 for value in own
            ),
            "--peak, --bandwidth and --price are of one device: name it with --device": (
                self.device is None and any(value is not None for value in own)
            ),
        }
        refuse(wrong)
        numbers("--sizes", self.sizes)
        numbers("--cutouts", self.cutouts)

    def devices(self) -> dict[str, Device]:
        """Returns the devices by name. Raises UsageError for one of which something is missing."""
        if self.device is None:
            return DEVICES
        own = {name: getattr(self, name) for name in Device._fields}
        given = {name: value for name, value in own.items() if value is not None}
        if self.device in DEVICES:
            return {self.device: DEVICES[self.device]._replace(**given)}
        if len(given) < len(own):
            raise UsageError(
                f"--device {self.device}: give its --peak, --bandwidth and --price too"
            )
        return {self.device: Device(**given)}


def numbers(option: str, text: str) -> list[float]:
    """Returns the numbers, one and more each, in a comma-separated text. Raises UsageError."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} {text}: give numbers with commas between") from error
    refuse({f"{option} {text}: numbers must be at least 1": min(found) < 1})
    return found


class Work(NamedTuple):
    """What a program does: floating-point operations, and bytes that go to and from memory."""

    flops: float = 0.0
    bytes: float = 0.0

    def plus(self, other: "Work", times: float = 1.0) -> "Work":
        """Returns the sum with another program that runs so many times."""
        return Work(self.flops + times * other.flops, self.bytes + times * other.bytes)


def work_of(jaxpr: Jaxpr) -> Work:
    """Returns the Work of the products and convolutions in a program, as an accelerator runs it."""
    work = Work()
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(_programs(equation))
        if name in ("dot_general", "conv_general_dilated"):
            arrays: list[Any] = [var.aval for var in (*equation.invars, *equation.outvars)]
            moved = sum(array.size * array.dtype.itemsize for array in arrays)
            work = work.plus(Work(2.0 * arrays[-1].size * _terms(equation), moved))
        elif name == "cond":
            work = work.plus(work_of(inner[-1]))  # by platform, of which accelerators are the last
        else:
            times = equation.params["length"] if name == "scan" else 1
            for program in inner:
                work = work.plus(work_of(program), times)
    return work


def _terms(equation: JaxprEqn) -> int:
    """Returns how many products are summed in each element of a result."""
    arrays: list[Any] = [var.aval for var in equation.invars]
    first, second = (array.shape for array in arrays)
    axes = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        return math.prod(first[axis] for axis in axes[0][0])
    return math.prod(second) // second[axes.rhs_spec[0]]


def _programs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the programs that an equation calls."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each


def work_of_scoring(ensemble: str, size: int, samples: int, batch: int) -> Work:
    """Returns the Work of a cutout in the step of `infer` in bfloat16."""
    preprocessing = Preprocessing.unnormalised(BANDS, size, None, "none", 1.0)
    infos = {
        f"{name}.{number}": MemberInfo(name, preprocessing, DROPOUT, weights_sha256=str(number))
        for name, count in parse_ensemble(ensemble).items()
        for number in range(count or 1)
    }
    as_it_is = geometry((size, size), None, preprocessing)
    transform = Transform(preprocessing, 0, tuple(range(len(BANDS))), as_it_is)
    input_spec = InputSpec((ImageSpec((size, size, len(BANDS)), "float32"),), (transform,))
    mesh = sharding.mesh_of(jax.local_devices()[:1])
    options = StepOptions(samples, precision="bfloat16")
    members = abstract_ensemble(infos, dict.fromkeys(infos))
    weights, inputs = (
        abstract_weights(members, mesh, options),
        abstract_inputs(input_spec, batch, mesh),
    )
    step: Any = ensemble_step(members, mesh, options)
    program = step.trace(weights, inputs).jaxpr
    return Work().plus(work_of(program.jaxpr), 1 / batch)


def seconds_per_cutout(work: Work, device: Device, efficiency: float) -> float:
    """Returns how long a device takes for a cutout."""
    return max(work.flops / (efficiency * device.peak), work.bytes / device.bandwidth)


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    options = config.parse(CostConfig, argv, description=__doc__.partition("\n")[0])
    print("\n".join(lines(options)))


def lines(options: CostConfig) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    counts = numbers("--cutouts", options.cutouts)
    heads = ["pixels", "device", "GFLOP", "MB moved", "cutouts/s", "measured", "GB/s to read"]
    heads += [f"{count:,.0f} cutouts" for count in counts]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for size in map(int, numbers("--sizes", options.sizes)):
        work = work_of_scoring(options.ensemble, size, options.samples, options.batch_size)
        for name, device in options.devices().items():
            seconds = seconds_per_cutout(work, device, options.efficiency)
            measured = MEASURED.get((options.ensemble, options.samples, size, name))
            cells = [f"{size}", name, f"{work.flops / 1e9:.3g}", f"{work.bytes / 1e6:.3g}"]
            cells += [f"{1 / seconds:,.0f}", f"{measured:,.0f}" if measured else ""]
            cells.append(f"{4 * len(BANDS) * size**2 / seconds / 1e9:.2g}")
            hours = [count * seconds / 3600 for count in counts]
            cells += [f"{each:,.3g} h, ${each * device.price:,.2f}" for each in hours]
            yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(launch.run(main, sys.argv[1:]))
