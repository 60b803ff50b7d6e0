"""Gives an embedded engine what only clickhouse-server sets and replicated tables need: an interserver address.

Without it a replicated table stays read-only. Context::getInterserverIOAddress is the one function of the engine that
refers to the text of its own error. It is found by that reference and the table of functions (.eh_frame_hdr), and is
told by a call with a made-up Context where that keeps the address; then it is overwritten, in this process's memory, by
one that fills in host, port, the scheme "http" and empty credentials, and answers the address. ClickHouse calls it
before it reads the others, each time a replicated table starts. x86-64 only, and only in builds that were tried.
"""

import ctypes
import json
import mmap
import os
import platform
import struct
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

KNOWN = {"26.9.0": 0x60}
"""Versions of chdb-core that were tried, and where the credentials' pointer is, in bytes after the host."""
NEEDED = b"required for replication is not specified"
PART = 64 << 20
KEPT: list[Any] = []
"""What the engine points to from then on."""


class UnknownEngineError(Exception):
    """No replicated table can be had from this engine here."""


def unknown() -> str | None:
    """Why this engine cannot be made a replica of a cluster; None if it can."""
    build = version("chdb-core")
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return f"a replica's engine is known on Linux x86-64 only, and this is {platform.system()} {platform.machine()}"
    if build not in KNOWN:
        return (
            f"chdb-core {build} was never tried as a replica ({', '.join(KNOWN)} were): run make test-cluster with it "
            "and add it to KNOWN in demo/cluster_engine.py"
        )
    return None


class Library:
    """The engine's file: which addresses its bytes get, its functions, and who refers to what."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (headers,) = struct.unpack_from("<Q", self.data, 32)
        size, count = struct.unpack_from("<HH", self.data, 54)
        self.loaded, self.functions_at = [], (0, 0)
        for number in range(count):
            kind, flags, offset, address, _, length = struct.unpack_from("<IIQQQQ", self.data, headers + number * size)
            if kind == 1:
                self.loaded.append((offset, address, length, flags))
            elif kind == 0x6474E550:
                self.functions_at = offset, address

    def address(self, offset: int) -> int:
        return next(offset - o + a for o, a, length, _ in self.loaded if o <= offset < o + length)

    def text(self) -> int:
        """Address of the text of the function's error."""
        at = self.data.find(NEEDED)
        if at < 0:
            raise UnknownEngineError("this engine has no replicated tables")
        return self.address(max(self.data.rfind(b"\0", 0, at) + 1, self.data.rfind(b"Parameter '", 0, at)))

    def references(self, target: int, first: int = 0, last: int = 1 << 62) -> list[int]:
        """Addresses between `first` and `last` of code that refers to `target` by its distance, in four bytes."""
        found: list[int] = []
        for offset, address, length, flags in self.loaded:
            begin, end = max(address, first), min(address + length, last)
            if not flags & 1 or begin >= end:
                continue
            for at in range(begin, end, PART):
                raw = self.data[at - address + offset : min(at + PART + 4, end) - address + offset]
                for shift in range(4):
                    distances = np.frombuffer(raw, "<i4", max(len(raw) - shift, 0) // 4, shift)
                    here = at + shift + 4 * np.arange(len(distances), dtype=np.int64)
                    found += [int(one) for one in here[here + 4 + distances == target]]
        return sorted(set(found))

    def function(self, within: int) -> tuple[int, int]:
        """Address and size of the function that this address is within."""
        offset, address = self.functions_at
        (count,) = struct.unpack_from("<I", self.data, offset + 8)
        starts = np.frombuffer(self.data, "<i4", 2 * count, offset + 12)[::2].astype(np.int64) + address
        number = int(np.searchsorted(starts, within, side="right")) - 1
        return int(starts[number]), int(starts[number + 1] - starts[number])


def give_address(host: str, port: int) -> None:
    """To be called once, before the engine's tables start. Raises UnknownEngineError where the engine is another."""
    if reason := unknown():
        raise UnknownEngineError(reason)
    import chdb._chdb as engine

    path = os.path.realpath(str(engine.__file__))
    function, size = _found(path)
    address = _loaded_at(path) + function
    shared, host_at, port_at = _fields(address)
    code = b"\x48\x8b\x46" + bytes([shared])  # mov rax, [rsi + shared]
    nobody = ctypes.create_string_buffer(4096)  # credentials: two empty strings and an empty list
    KEPT.append(nobody)
    credentials = struct.pack("<QQ", ctypes.addressof(nobody), 0)
    fields = {host_at: _string(host), port_at + 8: _string("http"), host_at + KNOWN[version("chdb-core")]: credentials}
    for at, value in fields.items():
        for word in range(0, len(value), 8):  # mov rcx, value; mov [rax + at], rcx
            code += b"\x48\xb9" + value[word : word + 8] + b"\x48\x89\x88" + struct.pack("<i", at + word)
    code += b"\x66\xc7\x80" + struct.pack("<iH", port_at, port)  # mov word [rax + port_at], port
    for word in range(0, 24, 8):  # mov rcx, host; mov [rdi + word], rcx
        code += b"\x48\xb9" + _string(host)[word : word + 8] + b"\x48\x89\x4f" + bytes([word])
    code += b"\x66\xc7\x47\x18" + struct.pack("<H", port)  # mov word [rdi + 24], port
    code += b"\x48\x89\xf8\xc3"  # mov rax, rdi; ret
    if len(code) > size:
        raise UnknownEngineError(f"the function has {size} bytes, and {len(code)} are needed")
    _overwrite(address, code)


def _found(path: str) -> tuple[int, int]:
    """The function's address and size. Looking for it takes seconds, so where it was is kept, and checked."""
    library, known = Library(path), Path(tempfile.gettempdir()) / f"pdi2-engine-{os.getuid()}.json"
    text, build = library.text(), f"{path} {os.path.getsize(path)}"
    try:
        function, size = json.loads(known.read_text())[build]
        if library.references(text, function, function + size):
            return function, size
    except (OSError, ValueError, KeyError, TypeError):  # not kept yet, or not by us
        function = 0
    functions = {library.function(reference) for reference in library.references(text)}
    if len(functions) != 1:
        raise UnknownEngineError(f"{len(functions)} functions refer to the error of a missing interserver address")
    with tempfile.NamedTemporaryFile("w", dir=known.parent, delete=False) as file:
        json.dump({build: (found := functions.pop())}, file)
    os.replace(file.name, known)
    return found


def _loaded_at(path: str) -> int:
    with open("/proc/self/maps") as maps:
        return next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(path))


def _fields(address: int) -> tuple[int, int, int]:
    """Calls the function with a Context whose words of 16 bits say where they are.

    Returns the offset in Context of the pointer to what all contexts share, and there those of host and port.
    """
    words, slots = 0x400, 16
    shared = (ctypes.c_uint16 * (words * slots))(*range(0x100, 0x100 + words * slots))
    context = (ctypes.c_uint64 * slots)(*(ctypes.addressof(shared) + 2 * words * slot for slot in range(slots)))
    answer = (ctypes.c_uint16 * 32)()
    call = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(address)
    call(ctypes.addressof(answer), ctypes.addressof(context))
    slot, host = divmod(answer[0] - 0x100, words)
    port = answer[12] - 0x100 - slot * words
    if not 0 <= slot < slots or port != host + 12:
        raise UnknownEngineError(f"the engine's Context is laid out in another way: {slot}, {host}, {port}")
    return 8 * slot, 2 * host, 2 * port


def _string(text: str) -> bytes:
    """A std::string of libc++, which keeps up to 22 bytes within itself."""
    raw = text.encode()
    if len(raw) > 22:
        raise ValueError(f"{text!r} is longer than 22 bytes")
    return raw.ljust(23, b"\0") + bytes([len(raw)])


def _overwrite(address: int, code: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    page = address & ~0xFFF
    length = ctypes.c_size_t(((address + len(code) + 0xFFF) & ~0xFFF) - page)
    if libc.mprotect(ctypes.c_void_p(page), length, 7):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.memmove(address, code, len(code))
    libc.mprotect(ctypes.c_void_p(page), length, 5)
