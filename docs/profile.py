"""Draws docs/profile.jpg from a trace that infer.py --profile made on a CPU.

    python scripts/infer.py --data FOLDER --checkpoints demo --batch-size 32 --profile trace
    python docs/profile.py trace docs/profile.jpg

The events of the device bear the names of compiled operations; the scope of each is in the
compiled program, which the trace file holds too.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import matplotlib.pyplot as plt

HOST = {
    "read": "read a cutout (threads)",
    "load": "load the next batch",
    "launch": "launch it",
    "fetch": "fetch the last one's scores",
    "keep": "keep them",
}
SHOWN_BATCHES = 3


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of the fields of a protocol buffer."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = message[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    at = 0
    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(tag & 7) or varint()
        yield tag >> 3, message[at : at + size]
        at += size


def bounds(message: bytes, *path: int) -> Iterator[bytes]:
    """Yields the bytes that lie at a path of field numbers."""
    if not path:
        yield message
        return
    for number, value in fields(message):
        if number == path[0] and isinstance(value, bytes):
            yield from bounds(value, *path[1:])


def scopes(trace: bytes) -> dict[str, str]:
    """Returns the scope of each operation of the step, by its name in the compiled program.

    An operation that the compiler put in has the scope of most others of its computation.
    """
    found = {}
    # Plane, event metadata, its value, statistic, bytes, HLO module; computation; instruction.
    for module in bounds(trace, 1, 4, 2, 5, 6, 1):
        if next(bounds(module, 1), b"") != b"jit_step":
            continue
        for computation in bounds(module, 3):
            scope_of = {}
            for instruction in bounds(computation, 2):
                path = next(bounds(instruction, 7, 2), b"").decode()
                scope = re.search(r"preprocess|member/\w+|fuse", path)
                scope_of[next(bounds(instruction, 1)).decode()] = scope[0] if scope else None
            known = Counter(scope for scope in scope_of.values() if scope)
            usual = known.most_common(1)[0][0] if known else None
            found |= {name: scope or usual for name, scope in scope_of.items()}
    return {name: scope for name, scope in found.items() if scope}


def main(folder: Path, picture: Path) -> None:
    file = max(folder.rglob("*.xplane.pb"))
    scope_of = scopes(file.read_bytes())
    host: list[tuple[str, float, float]] = []
    starts: dict[str, tuple[str, float]] = {}
    ends: dict[str, float] = {}
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for event in (event for line in plane.lines for event in line.events):
            about, start = dict(event.stats), event.start_ns / 1e9
            end = start + event.duration_ns / 1e9
            if event.name in HOST:
                host.append((event.name, start, end))
            elif event.name in scope_of and "_p" in about:
                starts[about["_p"]] = scope_of[event.name], start
                ends.setdefault(about["_p"], end)
            elif event.name.startswith("end: "):
                # An operation that several threads share ends on another thread than it began.
                ends[about["_c"]] = end
    device = [(scope, start, ends[key]) for key, (scope, start) in starts.items()]
    draw(host, device, picture)


def draw(
    host: list[tuple[str, float, float]], device: list[tuple[str, float, float]], picture: Path
) -> None:
    """Writes the picture of events (stage, start, end), in seconds."""
    members = sorted({stage for stage, _, _ in device if stage.startswith("member/")})
    rows = {stage: f"host: {text}" for stage, text in HOST.items()}
    rows |= {stage: f"device: {stage}" for stage in ("preprocess", *members, "fuse")}
    launches = sorted(start for stage, start, _ in host if stage == "launch")
    begin, end = launches[0] - 0.02, launches[min(SHOWN_BATCHES, len(launches) - 1)]
    figure, axes = plt.subplots(figsize=(10, 3.4), layout="constrained")
    for launch in launches[:SHOWN_BATCHES]:
        axes.axvline(launch - begin, color="0.6", linewidth=0.8, linestyle=":")
    for place, (stage, text) in enumerate(rows.items()):
        spans = [(a - begin, b - a) for name, a, b in host + device if name == stage]
        colour = "#0072b2" if text.startswith("host") else "#d55e00"
        # The line keeps what is shorter than a pixel in sight.
        axes.broken_barh(spans, (place - 0.35, 0.7), color=colour, linewidth=0.6)
    axes.set(yticks=range(len(rows)), yticklabels=rows.values(), xlim=(0, end - begin))
    axes.set(xlabel="seconds; dotted lines: a batch is launched")
    axes.invert_yaxis()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
