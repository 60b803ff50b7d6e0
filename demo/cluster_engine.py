"""Gives an embedded engine what a cluster needs and only clickhouse-server has.

The first thing is an interserver address, without which a replicated table stays read-only. The only function that
refers to the error text about a missing address is Context::getInterserverIOAddress. We find it by that reference and
the table of functions (.eh_frame_hdr), and call it with a made-up Context to learn where a Context keeps the address.
Then we overwrite it, in this process's memory, by a function that fills in host, port, the scheme "http" and empty
credentials, and returns the address. ClickHouse calls it before it reads the other values, each time a replicated table
starts.

The second is the table system.zookeeper: an argument of the function that refers to its comment decides whether it
exists.

This works on x86-64 only, and only in builds that were tried.
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
"""Versions of chdb-core that were tried, with the offset of the pointer to the credentials, in bytes after the host."""
ADDRESS_ERROR = b"required for replication is not specified"
KEEPER_COMMENT = b"Exposes data from the [Zoo]Keeper cluster"
TAKES_ARGUMENT, ASSUMES_TRUE = b"\x41\x89\xcc", b"\x41\xb4\x01"
"""mov r12d, ecx; mov r12b, 1"""
PART = 64 << 20
KEPT: list[Any] = []
"""Objects that the engine points to from then on, so they must stay alive."""


class UnknownEngineError(Exception):
    """This engine cannot have replicated tables on this machine."""


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
    """The engine's file: the addresses that its bytes are loaded at, its functions, and what code refers to."""

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

    def text(self, words: bytes) -> int:
        """Address of the text that contains these words."""
        at = self.data.find(words)
        if at < 0:
            raise UnknownEngineError(f'this engine does not contain the text "{words.decode()}"')
        return self.address(max(self.data.rfind(b"\0", 0, at) + 1, self.data.rfind(b"Parameter '", 0, at)))

    def references(self, targets: list[int], first: int = 0, last: int = 1 << 62) -> dict[int, list[int]]:
        """By target, where code between the addresses `first` and `last` loads it by lea register, [rip + distance]."""
        found: dict[int, list[int]] = {target: [] for target in targets}
        for offset, address, length, flags in self.loaded:
            begin, end = max(address, first), min(address + length, last)
            if not flags & 1:
                continue
            for at in range(begin, end - 6, PART):
                raw = self.data[at - address + offset : min(at + PART + 6, end) - address + offset]
                code = np.frombuffer(raw, np.uint8)
                [leas] = np.nonzero((code[:-6] & 0xFB == 0x48) & (code[1:-5] == 0x8D) & (code[2:-4] & 0xC7 == 0x05))
                distances = code[leas[:, None] + np.arange(3, 7)].copy().view("<i4")[:, 0].astype(np.int64)
                for target, places in found.items():
                    places += [at + int(lea) for lea in leas[at + leas + 7 + distances == target]]
        return found

    def function(self, within: int) -> tuple[int, int]:
        """Address and size of the function that contains this address."""
        offset, address = self.functions_at
        (count,) = struct.unpack_from("<I", self.data, offset + 8)
        starts = np.frombuffer(self.data, "<i4", 2 * count, offset + 12)[::2].astype(np.int64) + address
        number = int(np.searchsorted(starts, within, side="right")) - 1
        return int(starts[number]), int(starts[number + 1] - starts[number])


def prepare(host: str, port: int) -> None:
    """Call this once, before the engine starts. Raises UnknownEngineError if the engine is not a known one."""
    if reason := unknown():
        raise UnknownEngineError(reason)
    import chdb._chdb as engine

    path = os.path.realpath(str(engine.__file__))
    loaded_at = _loaded_at(path)
    (function, size), (attaching, _) = _found(path)
    _show_keeper(loaded_at + attaching)
    _give_address(loaded_at + function, size, host, port)


def _show_keeper(attaching: int) -> None:
    begin = ctypes.string_at(attaching, 64)
    if begin.count(TAKES_ARGUMENT) != 1:
        raise UnknownEngineError("the function that attaches the system tables begins in another way")
    _overwrite(attaching + begin.index(TAKES_ARGUMENT), ASSUMES_TRUE)


def _give_address(address: int, size: int, host: str, port: int) -> None:
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


def _found(path: str) -> list[tuple[int, int]]:
    """Address and size of both functions. The search takes seconds, so its result is kept, and checked before use."""
    library, kept = Library(path), Path(tempfile.gettempdir()) / f"pdi2-engine-{os.getuid()}.json"
    texts = [library.text(words) for words in (ADDRESS_ERROR, KEEPER_COMMENT)]
    build = f"{path} {os.path.getsize(path)}"
    try:
        found = [(int(function), int(size)) for function, size in json.loads(kept.read_text())[build]]
        if all(library.references([t], at, at + size)[t] for t, (at, size) in zip(texts, found, strict=True)):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing was kept yet, or not by us
    found = []
    for text, places in library.references(texts).items():
        functions = {library.function(place) for place in places}
        if len(functions) != 1:
            raise UnknownEngineError(f"{len(functions)} functions refer to the text at {text:#x}")
        found.append(functions.pop())
    with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
        json.dump({build: found}, file)
    os.replace(file.name, kept)
    return found


def _loaded_at(path: str) -> int:
    with open("/proc/self/maps") as maps:
        return next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(path))


def _fields(address: int) -> tuple[int, int, int]:
    """Calls the function with a Context whose 16-bit words are numbered, so that its answer shows where they came from.

    Returns the offset in Context of the pointer to what all contexts share, and the offsets of host and port in that.
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
    """A std::string of libc++, which stores up to 22 bytes within itself."""
    raw = text.encode()
    if len(raw) > 22:
        raise ValueError(f'"{text}" is longer than 22 bytes')
    return raw.ljust(23, b"\0") + bytes([len(raw)])


def _overwrite(address: int, code: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    page = address & ~0xFFF
    length = ctypes.c_size_t(((address + len(code) + 0xFFF) & ~0xFFF) - page)
    if libc.mprotect(ctypes.c_void_p(page), length, 7):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.memmove(address, code, len(code))
    libc.mprotect(ctypes.c_void_p(page), length, 5)
