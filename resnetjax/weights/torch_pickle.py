"""An interpreter of the pickles that torch.save writes; it builds data and calls nothing by name.

Names go through the tables of `torch_names`. The opcodes are those that protocols 2 to 5 use for
data, as CPython's `Lib/pickletools.py` explains them; every other one is refused.

The result still describes: a tensor is a `torch_names.Tensor`, and containers may share parts or
hold themselves. `torch_file` turns it into arrays and plain containers.
"""

import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from resnetjax.errors import CorruptFile, ResNetJAXError, UnsafeWeights, UnsupportedFile
from resnetjax.weights.torch_names import (
    CONSTRUCTORS,
    TABLED,
    Described,
    Name,
    Namespace,
    NumpyType,
    OrderedMapping,
    Persistent,
    checked_key,
    lookup,
)

# The pickle of a 1001-layer net with optimiser and moving average stays well below both.
MAX_OPERATIONS = 1_000_000
MAX_BYTES = 16 * 2**20
MAX_INTEGER_BYTES = 64  # a generator's state has 17; str() of a really long one takes minutes

# Of protocols 2 to 5, and of the text that 0 and 1 are.
_BEGINNING = re.compile(rb"\x80[\2-\5]|c[\w.]+\n[\w.]+\n|\([cdlpVS(]")

_NAMESPACE = "argparse.Namespace"
_SIZED = {str, bytes, list, tuple, set, dict, OrderedMapping, Namespace}


class Pickle(NamedTuple):
    """What one pickle holds: its object, every persistent id in order, and where it ends."""

    value: Any
    persistent_ids: list[Any]
    end: int


def detect(data: bytes | memoryview) -> bool:
    """Returns whether the bytes begin as a pickle does."""
    return _BEGINNING.match(bytes(data[:512])) is not None


def load(data: bytes | memoryview, *, start: int = 0) -> Pickle:
    """Interprets the pickle that begins at `start`, within a bounded number of steps and bytes.

    Args:
        data: Bytes that hold the pickle, and perhaps more behind it.
        start: Index of its first opcode.

    Returns:
        The object, described by the classes of `torch_names`, however deep it nests.

    Raises:
        UnsafeWeights: It names what is neither in the tables nor a class, or could call something.
        UnsupportedFile: It holds a kind of tensor that has no numpy array.
        CorruptFile: It is truncated, contradicts itself, or is too long to describe weights.

    Example:
        >>> import pickle
        >>> load(pickle.dumps({"epoch": 3})).value
        {'epoch': 3}
    """
    machine = _Machine(data, start)
    try:
        return machine.run()
    except IndexError:
        reason = f"has no end within {MAX_BYTES:,} bytes, or takes from an empty stack"
    except struct.error:
        reason = "ends inside a number"
    except UnicodeDecodeError:
        reason = "holds a text that is not UTF-8"
    raise CorruptFile(f"the pickle {reason} (at byte {machine.position:,})")


class _Machine:
    """The stack machine that a pickle programs, as in `pickle._Unpickler`."""

    __slots__ = ("data", "marks", "memo", "operations", "persistent_ids", "position", "stack")

    def __init__(self, data: bytes | memoryview, start: int) -> None:
        self.data = memoryview(data)[: start + MAX_BYTES]
        self.position = start
        self.operations = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent_ids: list[Any] = []

    def run(self) -> Pickle:
        data, stop = self.data, pickle.STOP[0]
        while (opcode := data[self.position]) != stop:
            self.position += 1
            self.spend(1)
            if (operation := _OPERATIONS.get(opcode)) is None:
                names = {known.code: known.name for known in pickletools.opcodes}
                name = names.get(chr(opcode), f"0x{opcode:02x}")
                raise UnsafeWeights(f"the pickle uses opcode {name}, which no state dict needs")
            operation(self)
        if len(self.stack) != 1 or self.marks:
            raise CorruptFile("the pickle stops with other than one object on its stack")
        return Pickle(self.stack[0], self.persistent_ids, self.position + 1)

    def spend(self, operations: int) -> None:
        self.operations += operations
        if self.operations > MAX_OPERATIONS:
            raise CorruptFile(f"the pickle takes more than {MAX_OPERATIONS:,} operations")

    def number(self, layout: struct.Struct) -> Any:
        (x,) = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return x

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.position:
            raise CorruptFile(f"the pickle declares {size:,} bytes where fewer are left")
        self.position += size
        return bytes(self.data[self.position - size : self.position])

    def line(self) -> str:
        text, newline, _ = bytes(self.data[self.position : self.position + 256]).partition(b"\n")
        if not newline:
            raise CorruptFile("the pickle holds a name without end")
        self.position += len(text) + 1
        return text.decode()

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop_tuple(self, size: int) -> None:
        self.stack.append(tuple(reversed([self.stack.pop() for _ in range(size)])))

    def pop_marked_tuple(self) -> None:
        items = self.pop_mark()  # which changes the stack
        self.stack.append(tuple(items))

    def remember(self, index: int) -> None:
        # CPython's C unpickler allocates a table of this size, whatever the index.
        if index > self.operations:
            raise UnsafeWeights(f"the pickle sets memo entry {index:,} at step {self.operations:,}")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise CorruptFile(f"the pickle recalls memo entry {index:,}, which it never set")
        self.stack.append(self.memo[index])

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise UnsafeWeights(f"the pickle appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedMapping):
            raise UnsafeWeights(f"the pickle sets items of a {type(target).__name__}")
        if len(items) % 2:
            raise CorruptFile("the pickle sets a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def add(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not set:
            raise UnsafeWeights(f"the pickle adds to a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(checked_key, items))

    def named(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise CorruptFile("the pickle names a class by something other than text")
        self.stack.append(lookup(module, name))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is Name and function.text not in TABLED:  # a class; it is not made
            self.stack.append(Described(function, {}))
            return
        if type(function) is not Name or function.text not in CONSTRUCTORS:
            called = f": {function.text!r:.200}" if type(function) is Name else ""
            raise UnsafeWeights(
                f"the pickle calls something that is not a function known to be safe{called}"
            )
        if type(arguments) is not tuple:
            raise CorruptFile(f"the pickle calls {function.text} with other than a tuple")
        # A constructor may copy its arguments, and six bytes ask for it again and again.
        self.spend(sum(len(x) for x in arguments if type(x) in _SIZED))
        try:
            self.stack.append(CONSTRUCTORS[function.text](*arguments))
        except ResNetJAXError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise CorruptFile(f"the pickle calls {function.text} with wrong arguments") from error

    def new_object(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if type(cls) is Persistent and type(cls.id) is tuple and cls.id[:1] == ("module",):
            cls = cls.id[1] if len(cls.id) == 4 else None  # legacy files have its source beside it
        if type(cls) is not Name or cls.text in TABLED - {_NAMESPACE} or arguments != ():
            raise UnsafeWeights("the pickle creates an object of a class (NEWOBJ)")
        self.stack.append(Namespace() if cls.text == _NAMESPACE else Described(cls, {}))

    def set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Namespace and type(state) is dict:
            self.spend(len(state))
            target.update(state)
        elif type(target) is Described and type(state) is dict:
            self.spend(len(state))
            target.attributes.update(state)
        elif type(target) is NumpyType:
            target.set_state(state)
        elif type(target) is not OrderedMapping:  # whose attributes are no weights
            raise UnsafeWeights(f"the pickle sets the state of a {type(target).__name__} (BUILD)")

    def refer(self) -> None:
        self.stack.append(Persistent(self.stack.pop()))
        self.persistent_ids.append(self.stack[-1].id)

    def protocol(self) -> None:
        if (protocol := self.number(_BYTE)) > pickle.HIGHEST_PROTOCOL:
            raise UnsupportedFile(f"the file uses pickle protocol {protocol}, which is not read")

    def frame(self) -> None:
        if self.number(_EIGHT_BYTES) > len(self.data) - self.position:
            raise CorruptFile("the pickle declares a frame longer than what is left")


_Operation = Callable[[_Machine], None]
_BYTE, _TWO_BYTES, _FOUR_BYTES, _EIGHT_BYTES = map(struct.Struct, ("<B", "<H", "<I", "<Q"))


def _number(layout: struct.Struct) -> _Operation:
    return lambda machine: machine.stack.append(machine.number(layout))


def _sized(layout: struct.Struct, decode: Callable[[bytes], Any]) -> _Operation:
    return lambda machine: machine.stack.append(decode(machine.take(machine.number(layout))))


def _integer(content: bytes) -> int:
    if len(content) > MAX_INTEGER_BYTES:
        raise CorruptFile(f"the pickle holds an integer of {len(content):,} bytes")
    return int.from_bytes(content, "little", signed=True)


def _python2_text(content: bytes) -> str | bytes:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


_OPERATIONS: dict[int, _Operation] = {
    opcode[0]: operation
    for opcode, operation in {
        pickle.PROTO: _Machine.protocol,
        pickle.FRAME: _Machine.frame,
        pickle.NONE: lambda m: m.stack.append(None),
        pickle.NEWTRUE: lambda m: m.stack.append(True),
        pickle.NEWFALSE: lambda m: m.stack.append(False),
        pickle.BININT: _number(struct.Struct("<i")),
        pickle.BININT1: _number(_BYTE),
        pickle.BININT2: _number(_TWO_BYTES),
        pickle.BINFLOAT: _number(struct.Struct(">d")),
        pickle.LONG1: _sized(_BYTE, _integer),
        pickle.LONG4: _sized(_FOUR_BYTES, _integer),
        pickle.SHORT_BINSTRING: _sized(_BYTE, _python2_text),
        pickle.BINSTRING: _sized(_FOUR_BYTES, _python2_text),
        pickle.SHORT_BINUNICODE: _sized(_BYTE, bytes.decode),
        pickle.BINUNICODE: _sized(_FOUR_BYTES, bytes.decode),
        pickle.BINUNICODE8: _sized(_EIGHT_BYTES, bytes.decode),
        pickle.SHORT_BINBYTES: _sized(_BYTE, bytes),
        pickle.BINBYTES: _sized(_FOUR_BYTES, bytes),
        pickle.BINBYTES8: _sized(_EIGHT_BYTES, bytes),
        pickle.MARK: _Machine.mark,
        pickle.POP: lambda m: m.stack.pop(),
        pickle.POP_MARK: _Machine.pop_mark,
        pickle.EMPTY_TUPLE: lambda m: m.stack.append(()),
        pickle.TUPLE1: lambda m: m.pop_tuple(1),
        pickle.TUPLE2: lambda m: m.pop_tuple(2),
        pickle.TUPLE3: lambda m: m.pop_tuple(3),
        pickle.TUPLE: _Machine.pop_marked_tuple,
        pickle.EMPTY_LIST: lambda m: m.stack.append([]),
        pickle.APPEND: lambda m: m.extend([m.stack.pop()]),
        pickle.APPENDS: lambda m: m.extend(m.pop_mark()),
        pickle.EMPTY_DICT: lambda m: m.stack.append({}),
        pickle.SETITEM: lambda m: m.update([m.stack.pop(), m.stack.pop()][::-1]),
        pickle.SETITEMS: lambda m: m.update(m.pop_mark()),
        pickle.EMPTY_SET: lambda m: m.stack.append(set()),
        pickle.ADDITEMS: lambda m: m.add(m.pop_mark()),
        pickle.BINPUT: lambda m: m.remember(m.number(_BYTE)),
        pickle.LONG_BINPUT: lambda m: m.remember(m.number(_FOUR_BYTES)),
        pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
        pickle.BINGET: lambda m: m.recall(m.number(_BYTE)),
        pickle.LONG_BINGET: lambda m: m.recall(m.number(_FOUR_BYTES)),
        pickle.GLOBAL: lambda m: m.named(m.line(), m.line()),
        pickle.STACK_GLOBAL: lambda m: m.named(*[m.stack.pop(), m.stack.pop()][::-1]),
        pickle.REDUCE: _Machine.call,
        pickle.NEWOBJ: _Machine.new_object,
        pickle.BUILD: _Machine.set_state,
        pickle.BINPERSID: _Machine.refer,
    }.items()
}
