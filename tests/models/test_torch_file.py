"""The reader of PyTorch files: what torch.save writes is read, everything else is refused unrun."""

import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lensjax.errors import LensjaxError, UsageError
from lensjax.models.torch_file import read_state_dict


class FloatStorage:
    """Stands in for a class of PyTorch, of which a file holds the name alone."""


class HalfStorage:
    pass


class BFloat16Storage:
    pass


class LongStorage:
    pass


def _rebuild_tensor_v2(*_: Any) -> None:
    pass


def _rebuild_parameter(*_: Any) -> None:
    pass


KINDS = {"f4": FloatStorage, "f2": HalfStorage, "bfloat16": BFloat16Storage, "i8": LongStorage}


class Storage:
    def __init__(self, array: np.ndarray, claimed: int | None = None) -> None:
        self.array, self.claimed = array, array.size if claimed is None else claimed


class Tensor:
    def __init__(self, storage: Storage, offset: int, size: tuple, stride: tuple) -> None:
        self.arguments = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple:
        return _rebuild_tensor_v2, self.arguments


class Parameter:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> tuple:
        return _rebuild_parameter, (self.tensor, True, OrderedDict())


def tensor(array: Any, claimed: int | None = None) -> Tensor:
    array = np.asarray(array)
    strides = tuple(step // array.itemsize for step in array.strides)
    return Tensor(Storage(array, claimed), 0, array.shape, strides)


@pytest.fixture(autouse=True)
def torch_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of the right names, for pickle to find the stand-ins in while it writes."""
    for module, members in {
        "torch": [FloatStorage, HalfStorage, BFloat16Storage, LongStorage],
        "torch._utils": [_rebuild_tensor_v2, _rebuild_parameter],
    }.items():
        stand_in = types.ModuleType(module)
        for member in members:
            setattr(stand_in, member.__name__, member)
            monkeypatch.setattr(member, "__module__", module)
        monkeypatch.setitem(sys.modules, module, stand_in)


def pickled(saved: Any, path: Path, storages: list[bytes], protocol: int = 2) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> tuple | None:
            if not isinstance(value, Storage):
                return None
            raw = value.array.tobytes()
            if raw not in storages:
                storages.append(raw)
            kind = KINDS.get(value.array.dtype.str[1:], BFloat16Storage)
            return "storage", kind, str(storages.index(raw)), "cpu", value.claimed

    with path.open("wb") as file:
        Pickler(file, protocol).dump(saved)
    return path.read_bytes()


def save(path: Path, saved: Any, compression: int = zipfile.ZIP_STORED, protocol: int = 2) -> Path:
    """Writes what torch.save would, but for the padding."""
    storages: list[bytes] = []
    written = pickled(saved, path.with_suffix(".tmp"), storages, protocol)
    return archive(path, written, storages, compression)


def archive(
    path: Path, written: bytes, storages: list[bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", written)
        file.writestr("archive/byteorder", "little")
        for number, raw in enumerate(storages):
            file.writestr(f"archive/data/{number}", raw)
        file.writestr("archive/version", "3\n")
    return path


WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_state_dict_is_read_from_wherever_it_lies(tmp_path, key, protocol):
    weights = OrderedDict(w=tensor(WEIGHTS), n=tensor(np.int64(7)), p=Parameter(tensor(WEIGHTS)))
    weights._metadata = OrderedDict(version=2)
    training = {"epoch": 3, "rate": 0.1, "best": None, "done": True, "losses": [1.0, 10**12]}
    saved = weights if key is None else training | {key: weights}
    read = read_state_dict(save(tmp_path / "w.pth", saved, protocol=protocol))
    assert list(read) == ["w", "n", "p"]
    np.testing.assert_array_equal(read["w"], WEIGHTS)
    np.testing.assert_array_equal(read["p"], WEIGHTS)
    assert read["n"] == 7 and read["n"].dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_sixteen_bits(tmp_path, dtype, suffix):
    half, path = WEIGHTS.astype(dtype), tmp_path / f"w{suffix}"
    if suffix == ".pth":
        save(path, {"w": tensor(half)})
    else:
        save_file({"w": half}, path)
    read = read_state_dict(path)["w"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read.astype(np.float32), WEIGHTS)


def test_views_of_one_storage(tmp_path):
    storage = Storage(WEIGHTS)
    saved = {
        "transposed": Tensor(storage, 0, (3, 2), (1, 3)),
        "corner": Tensor(storage, 1, (2, 2), (3, 1)),
        "empty": Tensor(storage, 0, (0, 4), (4, 1)),
        "scalar": Tensor(storage, 5, (), ()),
    }
    read = read_state_dict(save(tmp_path / "w.pt", saved))
    np.testing.assert_array_equal(read["transposed"], WEIGHTS.T)
    np.testing.assert_array_equal(read["corner"], WEIGHTS[:, 1:])
    assert read["empty"].shape == (0, 4) and read["scalar"] == 5


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        import os

        return os.system, (self.command,)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(LensjaxError, match=reason) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value) and path.name in str(error.value)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_that_would_run_a_command_is_refused_unrun(tmp_path, protocol):
    trace = tmp_path / "trace"
    saved = {"w": tensor(WEIGHTS), "evil": Malicious(f"touch {trace}")}
    refused(save(tmp_path / "w.pth", saved, protocol=protocol), "'posix.system'.*nothing in it was")
    assert not trace.exists()


@pytest.mark.parametrize(
    "lying",
    [
        lambda: tensor(WEIGHTS, claimed=10**12),
        lambda: Tensor(Storage(WEIGHTS), 0, (10**9, 10**9), (0, 0)),
        lambda: Tensor(Storage(WEIGHTS), 0, (3,), (10**18,)),
        lambda: Tensor(Storage(WEIGHTS), 5, (2,), (1,)),
        lambda: Tensor(Storage(WEIGHTS), -1, (2,), (1,)),
        lambda: Tensor(Storage(WEIGHTS), 0, (2,), (-1,)),
        lambda: Tensor(Storage(WEIGHTS), 0, (1,), (10**30,)),
    ],
)
def test_a_tensor_beyond_its_bytes_is_refused(tmp_path, lying):
    refused(save(tmp_path / "w.pth", {"w": lying()}), "tensor in it|damaged")


def test_what_is_no_such_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no weights at"):
        read_state_dict(tmp_path / "none.pth")
    compressed = save(tmp_path / "c.pth", {"w": tensor(WEIGHTS)}, zipfile.ZIP_DEFLATED)
    refused(compressed, "none that torch.save wrote")
    refused(save(tmp_path / "list.pth", [tensor(WEIGHTS)]), "save model.state_dict")
    refused(save(tmp_path / "bare.pth", {"epoch": 3}), "no dictionary of tensors")
    refused(save(tmp_path / "keys.pth", {(1, 2): tensor(WEIGHTS)}), "keys other than")
    legacy = tmp_path / "legacy.pth"
    legacy.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    refused(legacy, "safetensors.torch.save_file")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused(broken, "damaged")


MANY_TUPLES = b"".join(b"q%ch%c\x86" % (n, n) for n in range(100))


@pytest.mark.parametrize(
    ("opcodes", "reason"),
    [
        (b")" + b"\x85" * 10**5 + b".", "no dictionary of tensors"),
        (b"})" + MANY_TUPLES + b"K\x01s.", "keys other than"),  # 2^100 steps to hash
        (b"}(" + b")" + MANY_TUPLES + b"K\x01u.", "keys other than"),
        (b"}r\xff\xff\xff\x7f.", "no dictionary of tensors"),  # a memo of 2^31 places
        (b"\x8e" + b"\xff" * 7 + b"\x7f.", "it uses"),  # 2^63 bytes follow
        (b"X\xff\xff\xff\x7f.", "damaged"),
        (b"(ios\nsystem\n.", "it uses 'i'"),
        (b"\x82\x01.", "it uses"),  # an extension that the program may have registered
        (b"ccollections\nOrderedDict\n)\x81.", "it uses"),
        (b"ctorch\nFloatStorage\n}b.", "sets attributes"),
        (b"", "damaged"),
    ],
)
def test_opcodes_that_would_fill_memory_take_for_ever_or_call_are_refused(
    tmp_path, opcodes, reason
):
    refused(archive(tmp_path / "w.pth", b"\x80\x02" + opcodes, []), reason)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_but_never_more(tmp_path, data):
    storages: list[bytes] = []
    good = pickled({"w": tensor(WEIGHTS), "epoch": 3}, tmp_path / "good", storages)
    where = data.draw(st.integers(0, len(good) - 1))
    length = data.draw(st.integers(0, 3))
    bad = good[:where] + data.draw(st.binary(max_size=4)) + good[where + length :]
    try:
        read = read_state_dict(archive(tmp_path / "bad.pth", bad, storages))
    except LensjaxError as error:
        assert "\n" not in str(error)
    else:
        assert all(array.size <= WEIGHTS.size for array in read.values())


def test_averaged_weights_come_first_and_wrappings_may_hold_each_other(tmp_path):
    def states(value: float) -> dict[str, Any]:
        return {"conv1.weight": tensor(np.full((1, 2), value, np.float32))}

    cases = [
        {"model_ema": {"state_dict": states(1)}, "state_dict": states(0)},
        {"state_dict_ema": states(1), "model": states(0), "epoch": 3},
        {"ema_state_dict": {"module": states(1)}, "decay": 0.9},
        {"ema": {"decay": 0.9, "updates": 5}, "state_dict": states(1)},  # averages of another kind
        {"net": {"weights": states(1)}},
    ]
    for number, saved in enumerate(cases):
        found = read_state_dict(save(tmp_path / f"{number}.pth", saved))
        assert list(found) == ["conv1.weight"]
        np.testing.assert_array_equal(found["conv1.weight"], 1)


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    saved: dict[str, Any] = {"conv1.weight": tensor(np.ones(2, np.float32)), "epoch": 1}
    saved["model"] = saved["state_dict"] = saved
    assert list(read_state_dict(save(tmp_path / "itself.pth", saved))) == ["conv1.weight"]
