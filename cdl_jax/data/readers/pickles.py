"""Reading pickles of strangers: plain containers, and what a reader allows by name; nothing else is resolved or called.

By Python's own unpickler in Python, with few of its instructions. The one in C would take memory for any place in its
memo that a file names, and hash any key: a nest of tuples as a key takes for ever, or all of the stack.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

_MOST = 1_000_000  # instructions; CIFAR-100's training file has some 300 thousand, a state dict some 50 a tensor

_HANDLERS = {
    ord(opcode.code): pickle._Unpickler.dispatch[ord(opcode.code)]
    for opcode in pickletools.opcodes
    if opcode.name
    in (
        "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT "
        "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8 "
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS LIST EMPTY_DICT GLOBAL STACK_GLOBAL REDUCE "
        "BUILD BINPERSID PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
    ).split()
}
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class _Instructions(dict):
    """How each instruction is followed; counts them, for one byte may ask for a hundred bytes of memory."""

    left = _MOST

    def __getitem__(self, code):
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"more than {_MOST:,} pickle instructions")
        if code not in self:
            raise pickle.UnpicklingError(f"pickle instruction {_NAMES.get(code, code)} has no place in it")
        return super().__getitem__(code)


class _Plain(pickle._Unpickler):
    def __init__(self, content, find, persistent):
        super().__init__(io.BytesIO(content) if isinstance(content, bytes) else content, encoding="latin1")
        self.dispatch = _Instructions(
            {
                **_HANDLERS,
                **{ord(code): own for code, own in (("s", _Plain._item), ("u", _Plain._items), ("d", _Plain._dict))},
            }
        )
        self._find, self._persistent = find, persistent

    def find_class(self, module, name):
        return self._find(module, name)

    def persistent_load(self, pid):
        return self._persistent(pid)

    def _item(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._put([key, value])

    def _items(self):
        self._put(self.pop_mark())

    def _dict(self):
        items = self.pop_mark()
        self.stack.append({})
        self._put(items)

    def _put(self, items):
        keys = items[::2]
        if not isinstance(self.stack[-1], dict) or not all(isinstance(key, str | bytes | int) for key in keys):
            raise pickle.UnpicklingError("keys of a dict that are no text or number")
        self.stack[-1].update(zip(keys, items[1::2], strict=True))


def load(
    content: bytes | io.BytesIO, allowed: Mapping[str, Any], refuse: Callable[[str], Exception], persistent=None
) -> Any:
    """What a pickle holds; the byte strings of Python 2 become text by latin1.

    Args:
      content: all of it, or what a pickle is read of, and left behind its end.
      allowed: what stands for each `module.name` that the pickle may ask for. A pickle can call it with anything, and
        can write attributes on it: what is made for one file should not be used for the next.
      refuse: the exception for any other name.
      persistent: gives the object for a persistent id, which may be anything too.

    Raises:
      Exception: of any kind, for what is no such pickle.
    """

    def find(module, name):
        if f"{module}.{name}" not in allowed:
            raise refuse(f"{module}.{name}")
        return allowed[f"{module}.{name}"]

    def none(pid):
        raise pickle.UnpicklingError("a persistent id")

    return _Plain(content, find, persistent or none).load()
