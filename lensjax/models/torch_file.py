"""Files of PyTorch weights, read without PyTorch, and without running anything that is in them.

The unpickler knows the few opcodes, functions and types that a dictionary of tensors consists of,
and refuses the rest.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from lensjax.errors import LensjaxError, UsageError, one_line

StateDict = dict[str, np.ndarray]

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
            return safetensors.numpy.load_file(path)
        tensors = _unwrapped(_read_zip(path))
        if not tensors or not all(isinstance(name, str) for name in tensors):
            raise _Unacceptable("it holds no dictionary of tensors: save model.state_dict()")
        return tensors
    except _Unacceptable as refusal:
        raise LensjaxError(f"cannot read {path}: {refusal}") from None
    except Exception as error:  # whatever libraries raise on bytes that mean nothing
        reason = one_line(error, 200) or type(error).__name__
        raise LensjaxError(f"cannot read {path}: the file is damaged ({reason})") from error


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


def _read_zip(path: str) -> Any:
    """Returns what `torch.save` wrote: a pickle, and beside it the bytes of each storage."""
    if not zipfile.is_zipfile(path):
        raise _Unacceptable(
            "it is no zip archive, so damaged or saved before PyTorch 1.6; if PyTorch still loads "
            "it, convert it there: safetensors.torch.save_file(torch.load(path, "
            "weights_only=True), 'weights.safetensors')"
        )
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        # torch.save never compresses; so nothing can be larger than the file it is in.
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        largest = max((entry.file_size for entry in archive.infolist()), default=0)
        if len(pickles) != 1 or not stored or largest > os.path.getsize(path):
            raise _Unacceptable("it is a zip archive, but none that torch.save wrote")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise _Unacceptable("it was saved on a big-endian machine: convert it to .safetensors")
        pickled = archive.read(pickles[0])
        return _TensorUnpickler(pickled, lambda key: archive.read(f"{root}data/{key}")).load()


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
MEANINGS: dict[str, Callable[..., Any] | np.dtype] = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}
for _name, _kind in (
    *(("Double", "f8"), ("Float", "f4"), ("Half", "f2"), ("Long", "i8"), ("Int", "i4")),
    *(("Short", "i2"), ("Char", "i1"), ("Byte", "u1"), ("Bool", "?")),
):
    MEANINGS[f"torch.{_name}Storage"] = np.dtype(_kind)

OPCODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
)


class _Allowed(dict[int, Any]):
    """The functions of the opcodes that are allowed, by number."""

    def __missing__(self, opcode: int) -> Any:
        raise _Unacceptable(f"it uses {chr(opcode)!a}, which no dictionary of tensors needs")


class _TensorUnpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, with the opcodes above alone. (The one in C can
    be made to fill all memory, or to crash, by the numbers and keys in a file.)"""

    stack: list[Any]

    def __init__(self, pickled: bytes, read: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(pickled))
        self.read_storage = read
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") not in MEANINGS:
            raise _Unacceptable(
                f"it asks for {full[:80]!r}, which is no part of a dictionary of tensors; nothing "
                "in it was run. Save model.state_dict() alone, or as .safetensors"
            )
        return MEANINGS[full]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise _Unacceptable("it refers to something that is no storage of a tensor")
        if key not in self.storages:
            self.storages[key] = np.frombuffer(self.read_storage(key), np.uint8)
        if self.storages[key].size != count * dtype.itemsize:
            raise _Unacceptable("a tensor in it is larger than the bytes stored for it")
        return self.storages[key].view(dtype)

    def load_build(self) -> None:
        """Drops attributes of an OrderedDict: the versions of the layers, without a use here."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise _Unacceptable("it sets attributes of something that is no dictionary")

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    def _check_keys(self, keys: list[Any]) -> None:
        # The hash of a tuple of tuples may take for ever.
        if not all(type(key) in (str, int) for key in keys):
            raise _Unacceptable("a dictionary in it has keys other than names and numbers")

    known = {name: getattr(pickle, name)[0] for name in OPCODES}
    dispatch = _Allowed({code: pickle._Unpickler.dispatch[code] for code in known.values()})
    dispatch[known["BUILD"]] = load_build
    dispatch[known["SETITEM"]] = load_setitem
    dispatch[known["SETITEMS"]] = load_setitems
