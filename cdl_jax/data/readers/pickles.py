"""Reads untrusted pickles: plain containers and the names that a reader allows.

Other names are refused. The reader is Python's own unpickler in Python, with few of its instructions. The one in C
allocates memory for any memo index in the file. It also hashes any key: nested tuples as a key take unlimited time, or
all of the stack.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

_MAX_INSTRUCTIONS = 1_000_000  # CIFAR-100's training file has about 300 thousand, a state dict about 50 per tensor

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
    """Handlers of the instructions, with a limit on the number of lookups.

    Lookups are counted, because one byte can allocate a hundred bytes of memory.
    """

    left = _MAX_INSTRUCTIONS

    def __getitem__(self, code):
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"more than {_MAX_INSTRUCTIONS:,} pickle instructions")
        if code not in self:
            raise pickle.UnpicklingError(f"pickle instruction {_NAMES.get(code, code)} is not allowed")
        return super().__getitem__(code)


class _Plain(pickle._Unpickler):
    def __init__(self, content, find, persistent):
        super().__init__(io.BytesIO(content) if isinstance(content, bytes) else content, encoding="latin1")
        own_handlers = {ord("s"): _Plain._item, ord("u"): _Plain._items, ord("d"): _Plain._dict}
        own_handlers[pickle.NEWOBJ[0]] = _HANDLERS[pickle.REDUCE[0]]  # the replacement of a class is called, too
        self.dispatch = _Instructions({**_HANDLERS, **own_handlers})
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
            raise pickle.UnpicklingError("keys of a dict that are neither text nor integers")
        self.stack[-1].update(zip(keys, items[1::2], strict=True))


def load(
    content: bytes | io.BytesIO,
    allowed: Mapping[str, Any],
    refuse: Callable[[str], Exception],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Loads a pickle; byte strings of Python 2 become text by latin1.

    Args:
      content: the pickle, or a file that is read up to the end of the pickle.
      allowed: replacement for each `module.name` that the pickle may refer to. A pickle can call it with any arguments
        and set attributes on it, so make new replacements for each file.
      refuse: returns the exception for any other name.
      persistent: returns the object of a persistent id, which may be any object.

    Raises:
      Exception: of any kind, if the pickle is damaged or refused.
    """

    def find(module, name):
        if f"{module}.{name}" not in allowed:
            raise refuse(f"{module}.{name}")
        return allowed[f"{module}.{name}"]

    def refuse_persistent(pid):
        raise pickle.UnpicklingError("a persistent id")

    return _Plain(content, find, persistent or refuse_persistent).load()
