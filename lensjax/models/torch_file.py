"""Files of PyTorch weights, read without PyTorch and without pickle.

What a `.pth` file asks to be imported or called is never imported or called. A small interpreter
knows the few things that a saved dictionary of tensors consists of, and refuses the rest.
"""

import os
import pickletools
import zipfile
from collections.abc import Callable
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from lensjax.errors import LensjaxError, UsageError, one_line

StateDict = dict[str, np.ndarray]

# Types of numbers: what safetensors and PyTorch call them.
_TYPES = (
    ("F64", "Double", np.float64),
    ("F32", "Float", np.float32),
    ("F16", "Half", np.float16),
    ("BF16", "BFloat16", ml_dtypes.bfloat16),
    ("I64", "Long", np.int64),
    ("I32", "Int", np.int32),
    ("I16", "Short", np.int16),
    ("I8", "Char", np.int8),
    ("U8", "Byte", np.uint8),
    ("BOOL", "Bool", np.bool_),
)
SAFETENSORS_TYPES = {name: np.dtype(kind) for name, _, kind in _TYPES}

# The keys of a state in a file, averaged weights first: these are what training programs test.
WRAPPINGS = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema"),
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights"),
)


class _Unacceptable(Exception):
    """Why a file cannot be read, to be completed with its name."""


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Returns the tensors in a `.safetensors`, `.pth`, `.pt` or `.bin` file, by name.

    Takes a dictionary of tensors, or one under any of WRAPPINGS, in each other too: of averaged
    weights and others it takes the averaged. What else such a dictionary holds (an epoch, a rate)
    is left out. Raises UsageError where there is no such file, LensjaxError where it cannot be
    read or asks for anything but tensors.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UsageError(f"no weights at {path}: give a .safetensors or .pth file")
    try:
        if path.endswith(".safetensors"):
            return _read_safetensors(path)
        if not zipfile.is_zipfile(path):
            raise _Unacceptable(
                "it is no zip archive, so damaged or saved before PyTorch 1.6; if PyTorch still "
                "loads it, convert it there: safetensors.torch.save_file(torch.load(path, "
                "weights_only=True), 'weights.safetensors')"
            )
        with zipfile.ZipFile(path) as archive:
            tensors = _unwrapped(_Archive(archive, os.path.getsize(path)).load())
        if not tensors or not all(isinstance(name, str) for name in tensors):
            raise _Unacceptable("it holds no dictionary of tensors: save model.state_dict()")
        return tensors
    except _Unacceptable as refusal:
        raise LensjaxError(f"cannot read {path}: {refusal}") from None
    except (
        *(safetensors.SafetensorError, zipfile.BadZipFile, OSError, RuntimeError),
        *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    ) as error:
        reason = one_line(error)
        raise LensjaxError(f"cannot read {path}: the file is damaged ({reason})") from error


def _read_safetensors(path: str) -> StateDict:
    with open(path, "rb") as file:
        tensors = dict(safetensors.deserialize(file.read()))
    unknown = {tensor["dtype"] for tensor in tensors.values()} - SAFETENSORS_TYPES.keys()
    if unknown:
        raise _Unacceptable(f"it holds numbers of type {', '.join(sorted(unknown))}")
    return {
        name: np.frombuffer(tensor["data"], SAFETENSORS_TYPES[tensor["dtype"]]).reshape(
            tensor["shape"]
        )
        for name, tensor in tensors.items()
    }


def _unwrapped(loaded: Any, deepest: int = 3) -> StateDict:
    """Returns the tensors in a dictionary, or in those that it wraps, down to so many; it may wrap
    itself."""
    if not isinstance(loaded, dict):
        return {}
    if deepest:
        for key in WRAPPINGS:
            if inner := _unwrapped(loaded.get(key), deepest - 1):
                return inner
    return {name: value for name, value in loaded.items() if isinstance(value, np.ndarray)}


def _tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """Returns a view of the storage, after a check that it lies within."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise _Unacceptable("a tensor in it has no proper shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = prod(size)
    if count > storage.size or (count and last >= storage.size):
        raise _Unacceptable("a tensor in it is larger than the bytes stored for it")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


# What names in the file stand for here; nothing is looked up anywhere else. The functions are all
# that is called.
CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
}
STORAGES = {f"torch.{name}Storage": np.dtype(kind) for _, name, kind in _TYPES}

# Opcodes that put a new value on the stack, and those that put their argument there.
NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}


class _Archive:
    """A file of `torch.save`: a pickle that says what there is, and the bytes of each storage."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        self.size = size
        self.storages: dict[str, np.ndarray] = {}
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Unacceptable("it is a zip archive, but none that torch.save wrote")
        self.root = pickles[0].removesuffix("data.pkl")

    def load(self) -> Any:
        """Returns what was saved, with arrays for the tensors."""
        order = f"{self.root}byteorder"
        if order in self.archive.namelist() and self._read(order) != b"little":
            raise _Unacceptable("it was saved on a big-endian machine: convert it to .safetensors")
        return self._interpret(self._read(f"{self.root}data.pkl"))

    def _read(self, name: str) -> bytes:
        entry = self.archive.getinfo(name)
        # torch.save never compresses; so nothing can be larger than the file it is in.
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > self.size:
            raise _Unacceptable("it is a zip archive, but none that torch.save wrote")
        return self.archive.read(entry)

    def _storage(self, kind: str, dtype: np.dtype, key: str, _: str, count: int) -> np.ndarray:
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise _Unacceptable("it refers to something that is no storage of a tensor")
        if key not in self.storages:
            self.storages[key] = np.frombuffer(self._read(f"{self.root}data/{key}"), np.uint8)
        if self.storages[key].size != count * dtype.itemsize:
            raise _Unacceptable("a tensor in it is larger than the bytes stored for it")
        return self.storages[key].view(dtype)

    def _interpret(self, pickled: bytes) -> Any:
        """Returns the object that the opcodes build, made of own parts only."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def take(count: int) -> list[Any]:
            """Takes the last values off the stack."""
            if count > len(stack):
                raise _Unacceptable("it ends too early")
            items = stack[len(stack) - count :]
            del stack[len(stack) - count :]
            return items

        argument: Any
        for opcode, argument, _ in pickletools.genops(pickled):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case name if name in NEW:
                    stack.append(NEW[name]())
                case name if name in LITERALS:
                    stack.append(argument)
                case "GLOBAL":
                    stack.append(_meaning(argument.replace(" ", ".")))
                case "STACK_GLOBAL":
                    stack.append(_meaning("{}.{}".format(*take(2))))
                case "REDUCE":
                    call, arguments = take(2)
                    if not any(call is known for known in CALLS.values()):
                        raise _Unacceptable("it calls something that makes no tensor")
                    stack.append(call(*arguments))
                case "BUILD":
                    # Attributes of an OrderedDict: the versions of the layers, without a use here.
                    stack.pop()
                    if not isinstance(stack[-1], dict):
                        raise _Unacceptable("it sets attributes of something that is no dictionary")
                case "BINPERSID":
                    stack.append(self._storage(*stack.pop()))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(take(len(stack) - marks.pop())))
                case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                    stack.append(tuple(take(int(name[-1]))))
                case "APPEND" | "APPENDS" as name:
                    items = take(1 if name == "APPEND" else len(stack) - marks.pop())
                    stack[-1].extend(items)
                case "SETITEM" | "SETITEMS" as name:
                    items = take(2 if name == "SETITEM" else len(stack) - marks.pop())
                    _set_items(stack[-1], items)
                case other:
                    raise _Unacceptable(f"it uses {other}, which no dictionary of tensors needs")
        raise _Unacceptable("it ends too early")


def _set_items(target: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    if not isinstance(target, dict) or not all(type(key) in (str, int) for key in keys):
        raise _Unacceptable("a dictionary in it has keys other than names and numbers")
    target.update(zip(keys, values, strict=True))


def _meaning(name: str) -> Any:
    if name in CALLS:
        return CALLS[name]
    if name in STORAGES:
        return STORAGES[name]
    raise _Unacceptable(
        f"it asks for {name[:80]!r}, which is no part of a dictionary of tensors; nothing in it "
        "was run. Save model.state_dict() alone, or as .safetensors"
    )
