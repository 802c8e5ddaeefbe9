"""What is measured: cases, their contenders, and what lensjax has set out to reach."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lensjax.benchmark import drawn
from lensjax.benchmark.contract import Precision


@dataclass(frozen=True)
class Contender:
    """A row of a table: `entry` is module:function in this package, `needs` what it imports.

    `every_sample`: a call runs the whole network for every sample; such calls get smaller batches
    to end in time, which PyTorch's rows do not need, since their passes can be timed singly.
    `precision` is what its outputs are allowed to differ by.
    """

    name: str
    entry: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    every_sample: bool = False
    precision: Precision = "float32"


@dataclass(frozen=True)
class Case:
    """Contenders that do the same work, described by `settings` and, one after another, `variants`.

    The outputs are compared with those of the first contender, the rates with those of the first
    of `references` that runs. `flops` is what one unit (an image) takes at least, None where the
    share of the machine means nothing. `batch` is how many images a call gets, 0 where calls have
    no size. `rounds` is how many there are for each round of other cases, `turn` how long a turn
    is beside theirs: rates that lie close want many short turns, between which a machine drifts
    less.
    """

    name: str
    settings: Mapping[str, Any]
    variants: tuple[Mapping[str, Any], ...]
    contenders: tuple[Contender, ...]
    references: tuple[str, ...]
    batch: int
    flops: float | None
    rounds: int = 1
    turn: float = 1.0


@dataclass(frozen=True)
class Goal:
    """A ratio to be reached: of `row` over `than`, in the block titled `block`.

    `rate`: of images per second; without `than`, these themselves. `memory`: of peak memory.
    `share`: of the machine's matrix-product rate, and `growth`: of the peak memory after the last
    turn over that after the first, both without `than`.
    """

    what: Literal["rate", "memory", "share", "growth"]
    block: str
    row: str
    than: str
    bound: float

    @property
    def is_met_above(self) -> bool:
        """Whether more is better."""
        return self.what in ("rate", "share")


FLOAT32 = "lensjax float32"
ONE_BY_ONE = "lensjax one by one"
SINGLY = "lensjax a call a member"
PLAIN = "vmap of Flax's own Conv"
BEFORE = "PyTorch before"
AFTER = "PyTorch after"
EAGER = "PyTorch backbone once"
IN_MEMORY = "in memory"
READ_AS = {"fits": "FITS files", "png": "PNG files", "shards": "ArrayRecord shards"}
# For each round of other cases: 90 tell a ratio to two hundredths where rounds scatter by ten.
CLOSE_ROUNDS = 30
AT_ONCE = "lensjax all sizes at once"
GROUPED = "lensjax a group a size"
COMPILED = "PyTorch backbone once + compile"
COMPILED_HALF = f"{COMPILED}, bfloat16"

TORCH = ("torch",)
# What the rows need that do not come with lensjax.
ONNX = ("torch", "onnx")


def _ours(how: str, precision: str = "float32") -> dict[str, str]:
    return {"how": how, "precision": precision}


LENSJAX = Contender(FLOAT32, "ours:ensemble", _ours("one step"))
LENSJAX_AXES = (
    Contender("lensjax members stacked", "ours:ensemble", _ours("stacked")),
    Contender("lensjax members apart", "ours:ensemble", _ours("apart")),
)
LENSJAX_SINGLY = Contender(SINGLY, "ours:ensemble", _ours("singly"))
PLAINS = (
    Contender(PLAIN, "plain_flax:ensemble", {"eigen": False}),
    Contender(f"{PLAIN} + Eigen", "plain_flax:ensemble", {"eigen": True}),
)
LENSJAX_MODES = (
    LENSJAX,
    Contender(
        "lensjax bfloat16",
        "ours:ensemble",
        _ours("one step", "bfloat16"),
        precision="bfloat16",
    ),
    Contender(ONE_BY_ONE, "ours:ensemble", _ours("one by one"), every_sample=True),
)
TORCH_EAGER = Contender(EAGER, "torch_peers:best", {"compiled": False}, TORCH)
PEERS = (
    Contender(BEFORE, "torch_peers:before", needs=TORCH),
    Contender(AFTER, "torch_peers:after", needs=TORCH),
    TORCH_EAGER,
    Contender(COMPILED, "torch_peers:best", {"compiled": True}, TORCH),
    Contender(
        COMPILED_HALF,
        "torch_peers:best",
        {"compiled": True, "precision": "bfloat16"},
        TORCH,
        precision="bfloat16",
    ),
    Contender("ONNX Runtime", "onnx_peers:onnxruntime", needs=(*ONNX, "onnxruntime")),
    Contender("OpenVINO", "onnx_peers:openvino", needs=(*ONNX, "openvino")),
)
PRODUCTS = (
    Contender("matrix product (JAX)", "ours:matrix_product"),
    Contender("matrix product (PyTorch)", "torch_peers:matrix_product", needs=TORCH),
)


def members_of(ensemble: str) -> tuple[str, ...]:
    """Returns the members' names of `4x resnet18 + vit_b16`: resnet18.0, ..., vit_b16.0."""
    names = []
    for part in ensemble.split(" + "):
        count, _, architecture = part.rpartition("x ")
        names += [f"{architecture}.{index}" for index in range(int(count or 1))]
    return tuple(names)


def ensemble(
    name: str,
    size: int,
    batch: int,
    *,
    title: str = "",
    samples: tuple[int, ...] = (1, 10),
    contenders: tuple[Contender, ...] = (*LENSJAX_MODES, *PEERS),
    references: tuple[str, ...] = (BEFORE, ONE_BY_ONE, FLOAT32),
) -> Case:
    """Returns the case of an ensemble that scores images of `size` pixels."""
    members = members_of(name)
    return Case(
        f"{title or name} at {size} px",
        {"members": members, "size": size},
        tuple({"samples": count} for count in samples),
        contenders,
        references,
        batch,
        sum(drawn.flops(member, size) for member in members),
    )


def training(size: int, batch: int) -> Case:
    """Returns the case of training steps of one resnet18."""
    contenders = (
        Contender("lensjax", "ours:training"),
        Contender("PyTorch", "torch_peers:training", needs=TORCH),
    )
    return Case(
        f"resnet18 training step at {size} px",
        {"members": members_of("resnet18"), "size": size},
        ({},),
        contenders,
        ("PyTorch", "lensjax"),
        batch,
        # Forward, and as much again for the gradient by images and by kernels.
        3 * drawn.flops("resnet18.0", size),
    )


def joint_training(sizes: tuple[int, ...], consistency: float, batch: int) -> Case:
    """Returns the case of training steps of a resnet18 at several sizes, in groups and not."""
    title = f"resnet18 training step at {'+'.join(map(str, sizes))} px"
    settings = {"members": members_of("resnet18"), "size": max(sizes), "sizes": sizes}
    return Case(
        title + (" with consistency" if consistency else ""),
        settings | {"consistency": consistency},
        ({},),
        (
            Contender(AT_ONCE, "ours:training"),
            Contender(GROUPED, "ours:training", {"grouped": True}),
        ),
        (AT_ONCE,),
        batch,
        # With consistency the groups' logits are computed twice: no work, but a price.
        3 * sum(drawn.flops("resnet18.0", size) for size in sizes),
    )


def all_cases(batch: int) -> list[Case]:
    """Returns the cases of a full run. Networks alone, in inference and training, get a quarter of
    `batch` images, and all at 224 px an eighth.

    PyTorch's compiler takes a minute or two for the largest ensemble: its rows are left out there.
    """
    small, large = max(1, batch // 4), max(1, batch // 8)
    pair, four, six = "resnet18 + vit_b16", "4x resnet18", "4x resnet18 + 2x vit_b16"
    without_compiler = tuple(
        c for c in (*LENSJAX_MODES, *PEERS) if c.name not in (COMPILED, COMPILED_HALF)
    )
    alone: dict[str, Any] = {
        "samples": (1,),
        "contenders": (LENSJAX, TORCH_EAGER),
        "references": (EAGER, FLOAT32),
    }
    return [
        *(ensemble(name, 64, batch) for name in (pair, four)),
        ensemble(six, 64, batch, contenders=without_compiler),
        *(ensemble(name, 224, large) for name in (pair, four)),
        ensemble(six, 224, large, contenders=without_compiler),
        ensemble(
            four,
            64,
            batch,
            title="4x resnet18 in one step",
            samples=(1,),
            contenders=(LENSJAX, *LENSJAX_AXES, LENSJAX_SINGLY, *PLAINS),
            references=(SINGLY,),
        ),
        *(ensemble("resnet18", size, small, **alone) for size in (64, 128)),
        *(training(size, small) for size in (64, 128)),
        *(joint_training((64, 128, 192), weight, small) for weight in (0.0, 1.0)),
        ensemble("vit_b16", 64, small, **alone),
        ensemble("vit_b16", 224, large, **alone),
    ]


def reading_cases(
    folders: Mapping[int, Mapping[str, str]], batch: int, catalogue: str, rows: int
) -> list[Case]:
    """Returns the cases of opening a `catalogue` of so many `rows`, of reading cutouts from
    `folders`, by size and kind, and of a resnet18 that scores and learns what it is fed from them.
    """
    cases = [
        Case(
            f"opening a catalogue of {rows} rows",
            {"path": catalogue, "rows": rows},
            ({},),
            (
                Contender("lensjax", "reading:opening"),
                Contender("pandas", "torch_readers:listing", needs=(*TORCH, "pandas")),
            ),
            ("pandas", "lensjax"),
            0,
            None,
        )
    ]
    for size, by_kind in folders.items():
        # The shards hold the same pixels as the FITS files.
        for kind, packed in (("fits", ["shards"]), ("png", [])):
            ours, *others = (
                Contender(f"lensjax, {READ_AS[each]}", "reading:lensjax", {"folder": by_kind[each]})
                for each in (kind, *packed)
            )
            peer = Contender(
                f"PyTorch, {READ_AS[kind]}",
                "torch_readers:pytorch",
                {"folder": by_kind[kind]},
                TORCH,
            )
            cases.append(
                Case(
                    f"reading {READ_AS[kind]} at {size} px",
                    {"size": size},
                    ({},),
                    (ours, peer, *others),
                    (peer.name, ours.name),
                    batch,
                    None,
                )
            )
    size = min(folders)
    steps = (("fed", batch), ("trained", max(1, batch // 4)))
    return cases + [
        _fed(how, kind, folder, size, images)
        for how, images in steps
        for kind, folder in folders[size].items()
    ]


def _fed(how: str, kind: str, folder: str, size: int, batch: int) -> Case:
    """Returns the case of a resnet18 that is `fed` or `trained` from a `folder` of a kind, beside a
    batch in memory: two alone, so that what is compared follows each other."""
    entry = f"reading:{how}"
    from_files = Contender(f"from {READ_AS[kind]}", entry, {"folder": folder})
    return Case(
        f"resnet18 {how} from {READ_AS[kind]} at {size} px",
        {"size": size},
        ({},),
        (Contender(IN_MEMORY, entry, {"folder": None}), from_files),
        (IN_MEMORY,),
        batch,
        None,
        rounds=CLOSE_ROUNDS,
        turn=1 / 3,
    )


def quick_cases() -> list[Case]:
    """Returns one small case, to see within a minute or two that everything runs."""
    return [ensemble("2x resnet18", 32, 4, samples=(1, 3))]


GOALS = (
    Goal("rate", "resnet18 + vit_b16 at 64 px, T = 10", FLOAT32, BEFORE, 10.0),
    Goal("rate", "resnet18 + vit_b16 at 64 px, T = 10", FLOAT32, AFTER, 10.0),
    Goal("rate", "resnet18 + vit_b16 at 64 px, T = 10", FLOAT32, COMPILED, 1.05),
    Goal("rate", "4x resnet18 in one step at 64 px, T = 1", FLOAT32, SINGLY, 1 / 1.1),
    Goal("rate", "4x resnet18 in one step at 64 px, T = 1", FLOAT32, PLAIN, 1 / 0.4),
    Goal("rate", "resnet18 at 64 px, T = 1", FLOAT32, EAGER, 1 / 1.15),
    Goal("rate", "resnet18 at 128 px, T = 1", FLOAT32, EAGER, 1 / 1.15),
    Goal("rate", "resnet18 training step at 64 px", "lensjax", "PyTorch", 1 / 1.15),
    Goal("rate", "resnet18 training step at 128 px", "lensjax", "PyTorch", 1 / 1.15),
    Goal("rate", "resnet18 training step at 64+128+192 px", GROUPED, AT_ONCE, 1 / 1.05),
    Goal(
        "rate",
        "resnet18 training step at 64+128+192 px with consistency",
        *(GROUPED, AT_ONCE),
        1 / 1.4,
    ),
    Goal("share", "vit_b16 at 64 px, T = 1", FLOAT32, "", 0.85),
    Goal("share", "vit_b16 at 224 px, T = 1", FLOAT32, "", 0.85),
    Goal("memory", "resnet18 + vit_b16 at 64 px, T = 10", FLOAT32, BEFORE, 0.7),
)

READING_GOALS = (
    *(
        Goal("rate", f"reading {kind} at {size} px", f"lensjax, {kind}", f"PyTorch, {kind}", 1.5)
        for size in (64, 224)
        for kind in ("FITS files", "PNG files")
    ),
    *(
        Goal(
            "rate",
            f"reading FITS files at {size} px",
            "lensjax, ArrayRecord shards",
            "PyTorch, FITS files",
            5.0,
        )
        for size in (64, 224)
    ),
    *(
        Goal("growth", f"reading {beside} at {size} px", f"lensjax, {kind}", "", 1.05)
        for size in (64, 224)
        for kind, beside in (
            ("FITS files", "FITS files"),
            ("PNG files", "PNG files"),
            ("ArrayRecord shards", "FITS files"),
        )
    ),
    # In five seconds.
    Goal("rate", "opening a catalogue of 1000000 rows", "lensjax", "", 200_000.0),
    *(
        Goal("rate", f"resnet18 {how} from {kind} at 64 px", f"from {kind}", IN_MEMORY, 1 / 1.03)
        for how, kind in (
            ("fed", "ArrayRecord shards"),
            *(("trained", kind) for kind in READ_AS.values()),
        )
    ),
)
