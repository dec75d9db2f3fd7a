"""Reading PyTorch files without running anything in them.

A pickle is a program: whatever it names is imported and called. Here nothing is ever imported for it. Names on a list
map to inert objects of this module, any other name is refused, and before the program runs its instructions are
checked one by one, as are all declared sizes against the size of the file.
"""

import io
import itertools
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowtron.errors import InputError

MAX_PICKLE_BYTES = 1 << 24
MAX_INSTRUCTIONS = 2_000_000
MAX_NESTING = 64
MAX_NAMES = 100_000
MAX_DIMENSIONS = 8
TUPLE_KEY = "a key is a tuple, which no checkpoint needs"
# What torch.save of plain values, tensors and modules is made of, in pickle protocols 2 to 4.
INSTRUCTIONS = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM "
    "SETITEMS ADDITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD NEWOBJ BINPERSID"
)
ALLOWED_INSTRUCTIONS = set(INSTRUCTIONS.split())
POPPED = {"APPEND": 1, "BUILD": 1, "SETITEM": 2}
KEYS = {"SETITEM": 2, "SETITEMS": 2, "ADDITEMS": 1}  # the first of that many values is a key, and so on
REPLACED = {"REDUCE": 2, "NEWOBJ": 2, "STACK_GLOBAL": 2, "BINPERSID": 1}

WAVEGLOW = "WaveGlow WN Invertible1x1Conv"
SHELLS = {
    "flowtron": "Flowtron AR_Step AR_Back_Step Attention AttentionConditioningLayer ConvNorm DenseLayer Encoder "
    "GaussianMixture LinearNorm MaskedInstanceNorm1d MelEncoder",
    "glow": WAVEGLOW,
    "glow_old": WAVEGLOW,
    "waveglow.glow": WAVEGLOW,
    "torch.nn.backends.thnn": "THNNFunctionBackend _get_thnn_function_backend",
    "torch.nn.modules.activation": "LeakyReLU ReLU Sigmoid Softmax Tanh",
    "torch.nn.modules.batchnorm": "BatchNorm1d",
    "torch.nn.modules.container": "ModuleDict ModuleList ParameterList Sequential",
    "torch.nn.modules.conv": "Conv1d ConvTranspose1d",
    "torch.nn.modules.dropout": "Dropout",
    "torch.nn.modules.instancenorm": "InstanceNorm1d",
    "torch.nn.modules.linear": "Linear",
    "torch.nn.modules.rnn": "LSTM LSTMCell",
    "torch.nn.modules.sparse": "Embedding",
    "torch.nn.utils.weight_norm": "WeightNorm",
}
SHELL_NAMES = {f"{module}.{name}" for module, names in SHELLS.items() for name in names.split()}
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


class Refused(Exception):
    """Why a file is not read; becomes the middle of a sentence."""


class Inert:
    """Something whose state a pickle may not set."""

    def __setstate__(self, state: object) -> None:
        raise Refused(f"it sets the state of a {type(self).__name__}")


class Maker(Inert):
    """What a pickle calls in place of a function or class that it names."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)


class Values(dict[Any, Any]):
    """A dictionary, in place of an ordered one; attributes that a pickle gives it are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class Shell:
    """A module in name only: its class and the values that it held."""

    path = ""
    state: dict[str, Any]

    def __new__(cls) -> "Shell":
        shell = super().__new__(cls)
        shell.state = {}
        return shell

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise Refused(f"the state of a {self.path} is no dictionary of names")
        self.state.update(state)


class StorageType(Inert):
    """Names the dtype of a storage."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class Storage(Inert):
    """Numbers in a file, as many as their place holds."""

    def __init__(self, dtype: torch.dtype, count: int, start: int = 0, root: "Storage | None" = None) -> None:
        self.dtype, self.count, self.start = dtype, count, start
        self.root = root or self
        self.content = bytearray()

    @property
    def n_bytes(self) -> int:
        return self.count * self.dtype.itemsize


class Record(Inert):
    """A tensor yet to be made: a view of a storage."""

    def __init__(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def tensor(self) -> Tensor:
        """Make the tensor, contiguous."""
        root = self.storage.root
        if not math.prod(self.size):
            return torch.empty(self.size, dtype=root.dtype)
        flat = torch.frombuffer(root.content, dtype=root.dtype)
        view = flat.as_strided(self.size, self.stride, self.storage.start + self.offset)
        # A part of a storage is copied, so that it does not hold on to the whole.
        return view if view.is_contiguous() and view.numel() == root.count else view.clone().contiguous()


def plain(text: object) -> str:
    """Return text from a file as it can stand in a sentence: one line, short, without control characters."""
    return repr(str(text)[:100])[1:-1]


def _whole(*numbers: object) -> bool:
    return all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)


class Reader(pickle.Unpickler):
    """Runs one pickle whose instructions `check_instructions` has passed."""

    def __init__(self, data: bytes, file_size: int, storage: Callable[[str, torch.dtype, int], Storage]) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.file_size, self.storage = file_size, storage
        self.tensor_bytes = self.n_items = 0
        self.shells: dict[str, type[Shell]] = {}
        self.makers = {
            "collections.OrderedDict": Maker(self.mapping),
            "collections.defaultdict": Maker(lambda factory=None: Values()),
            "builtins.dict": Maker(self.mapping),
            "builtins.set": Maker(lambda items=(): set(map(self.key, self.counted(items)))),
            "torch.Size": Maker(self.sizes),
            "torch.device": Maker(lambda *_: "cpu"),
            "torch._utils._rebuild_tensor": Maker(self.rebuild),
            "torch._utils._rebuild_tensor_v2": Maker(self.rebuild),
            "torch._utils._rebuild_parameter": Maker(self.parameter),
        }

    @staticmethod
    def refuse(why: str) -> Any:
        raise Refused(why)

    def counted(self, items: Any) -> Any:
        """Return what a container is made of, counted, since one list may be copied again and again."""
        self.n_items += len(items)
        if self.n_items > self.file_size:
            raise Refused("its containers hold more values than it has bytes")
        return items

    def key(self, key: Any) -> Any:
        """Return the key of a dictionary or member of a set, which is no tuple."""
        return self.refuse(TUPLE_KEY) if isinstance(key, tuple) else key

    def mapping(self, items: Any = ()) -> Values:
        """Make a dictionary of another one or of pairs."""
        pairs = items.items() if isinstance(items, dict) else items
        return Values((self.key(key), value) for key, value in self.counted(pairs))

    def sizes(self, sizes: Any) -> tuple[int, ...]:
        """Make the shape of a tensor."""
        if len(sizes) > MAX_DIMENSIONS or not _whole(*sizes):
            raise Refused("a size is not a few numbers")
        return tuple(sizes)

    def find_class(self, module: str, name: str) -> Any:
        """Return the inert stand-in of a name; nothing is imported."""
        path = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if path in self.makers:
            return self.makers[path]
        if path in STORAGES:
            return StorageType(STORAGES[path])
        if path not in SHELL_NAMES:
            raise Refused(f"it would import '{plain(path)}'")
        if path not in self.shells:
            self.shells[path] = type(name, (Shell,), {"path": path})
        return self.shells[path]

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage, or in old files the module class, that an identifier stands for."""
        if not isinstance(pid, tuple) or not pid:
            raise Refused("an identifier is no tuple")
        if pid[0] == "module" and len(pid) == 4 and isinstance(pid[1], type) and issubclass(pid[1], Shell):
            return pid[1]
        if pid[0] != "storage" or len(pid) not in (5, 6) or not isinstance(pid[1], StorageType):
            raise Refused("an identifier is not that of a storage")
        kind, key, count, view = pid[1], pid[2], pid[4], pid[5] if len(pid) == 6 else None
        if not isinstance(key, str) or not _whole(count):
            raise Refused("a storage has no proper name or size")
        storage = self.storage(key, kind.dtype, count)
        if view is None:
            return storage
        if not isinstance(view, tuple) or len(view) != 3 or not _whole(*view[1:]) or view[1] + view[2] > count:
            raise Refused("a part of a storage lies outside it")
        return Storage(kind.dtype, view[2], view[1], storage)

    def rebuild(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Record:
        """Note a tensor whose numbers all lie in its storage, each used once."""
        if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise Refused("a tensor is not described by a storage, sizes and strides")
        if len(size) != len(stride) or len(size) > MAX_DIMENSIONS or not _whole(offset, *size, *stride):
            raise Refused("a tensor's sizes and strides are not proper numbers")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if count > storage.count or (count and last >= storage.count):
            raise Refused(f"a tensor of shape {size} reaches outside its storage of {storage.count} numbers")
        self.tensor_bytes += count * storage.dtype.itemsize
        if self.tensor_bytes > 4 * self.file_size:
            raise Refused("its tensors take many times the space of the file")
        return Record(storage, offset, size, stride)

    def parameter(self, data: Any, *_: Any) -> Record:
        """A parameter is its tensor."""
        return data if isinstance(data, Record) else self.refuse("a parameter holds no tensor")


def check_instructions(stream: io.BytesIO) -> None:
    """Check the instructions of the pickle at the stream's position, and leave the stream behind it.

    The decoder trusts some of what it reads: an index into its memo allocates up to it, and a key is hashed with all
    that it holds, as often as it refers to it, which for a tuple of tuples is without end. Neither occurs in a
    checkpoint.

    Raises:
        Refused: an instruction, index, nesting or key that no checkpoint needs.
    """
    depths: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for count, (instruction, argument, _) in enumerate(pickletools.genops(stream), start=1):
        name = instruction.name
        if name not in ALLOWED_INSTRUCTIONS:
            raise Refused(f"it has the instruction {name}, which no checkpoint needs")
        if count > MAX_INSTRUCTIONS:
            raise Refused(f"it has more than {MAX_INSTRUCTIONS} instructions")
        if name in ("PROTO", "FRAME", "STOP"):
            continue
        depth = 0
        if name == "MARK":
            marks.append(len(depths))
            continue
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if argument is None else int(argument)
            if index > count:
                raise Refused("it numbers its values out of order")
            memo[index] = depths[-1]
            continue
        if name in ("BINGET", "LONG_BINGET"):
            depth = memo[int(argument or 0)]
        elif name in POPPED or name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            start = len(depths) - POPPED[name] if name in POPPED else marks.pop()
            if name in KEYS and any(depths[start :: KEYS[name]]):
                raise Refused(TUPLE_KEY)
            del depths[start:]
            continue
        elif name.startswith("TUPLE"):
            start = marks.pop() if name == "TUPLE" else len(depths) - int(name[-1])
            depth = 1 + max(depths[start:], default=0)
            del depths[start:]
        elif name in REPLACED:
            del depths[-REPLACED[name] :]
        if depth > MAX_NESTING:
            raise Refused(f"its values are nested more than {MAX_NESTING} deep")
        depths.append(depth)


def run(stream: io.BytesIO, file_size: int, storage: Callable[[str, torch.dtype, int], Storage]) -> Any:
    """Check and run the pickle at the stream's position; leave the stream behind it."""
    start = stream.tell()
    check_instructions(stream)
    return Reader(stream.getvalue()[start : stream.tell()], file_size, storage).load()


def made(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """Return a value with tensors in place of records, each object once, however often it is referred to."""
    if depth > MAX_NESTING:
        raise Refused(f"its values are nested more than {MAX_NESTING} deep")
    if not isinstance(value, Record | Shell | dict | list | tuple):
        return value
    if id(value) in done:
        return done[id(value)]
    result: Any
    if isinstance(value, Record):
        result = done[id(value)] = value.tensor()
    elif isinstance(value, Shell):
        result = done[id(value)] = value
        value.state = made(value.state, done, depth + 1)
    elif isinstance(value, dict):
        result = done[id(value)] = {}
        result.update((key, made(item, done, depth + 1)) for key, item in value.items())
    elif isinstance(value, list):
        result = done[id(value)] = []
        result.extend(made(item, done, depth + 1) for item in value)
    else:
        result = done[id(value)] = tuple(made(item, done, depth + 1) for item in value)
    return result


def module_state(module: Shell) -> dict[str, Tensor]:
    """Return the state dict of a shell: its parameters and persistent buffers by full name.

    Raises:
        InputError: it holds more names than any model.
    """
    state: dict[str, Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", module)]
    for n_seen in itertools.count():
        if not waiting:
            return state
        if n_seen > MAX_NAMES:
            break
        prefix, shell = waiting.pop()
        if not isinstance(shell, Shell) or prefix.count(".") > MAX_NESTING:
            continue
        transient = shell.state.get("_non_persistent_buffers_set", ())
        for group in ("_parameters", "_buffers"):
            for name, value in shell.state.get(group, {}).items():
                if isinstance(value, Tensor) and name not in transient:
                    state[f"{prefix}{name}"] = value
        children = shell.state.get("_modules", {}).items()
        waiting.extend((f"{prefix}{name}.", child) for name, child in reversed(list(children)))
    raise InputError(f"the module has more than {MAX_NAMES} parts, which no model has; get the file anew.")
