"""The sending side of ClickHouse's parts exchange: sends other replicas the parts that they fetch.

It serves POST /?endpoint=DataPartsExchange:<the replica's path in Keeper>&part=<name>, in version 10 of the protocol,
which the engines of cluster_engine.KNOWN speak. An embedded engine can fetch parts, but only a server sends them. `POST
/control` with JSON changes how it answers: {"refuse": true} answers every fetch with a 503, and {"delay": 2.0} waits
that many seconds before each.
"""

import json
import re
import struct
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import lz4.block
from backports import zstd

from demo.cluster_hash import file_hash

VERSION = 10
FILES = (
    "checksums.txt",
    "columns.txt",
    "default_compression_codec.txt",
    "metadata_version.txt",
    "columns_substreams.txt",
    "invalidated_system_columns.txt",
)
"""Files that have no checksum in checksums.txt."""
NEEDED = {"checksums.txt", "columns.txt"}
PART = re.compile(r"\w+_\d+_\d+_\d+(_\d+)?")
CHUNK = 1 << 20


def checksums(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Size and hash of each file in a checksums.txt of format 4."""
    head, packed = data.split(b"\n", 1)
    if head != b"checksums format version: 4":
        raise ValueError(f"checksums.txt has another format: {head.decode(errors='replace')}")
    plain = BytesIO(_unpacked(packed))
    files = {}
    for _ in range(_number(plain)):
        name = plain.read(_number(plain)).decode()
        size, digest = _number(plain), plain.read(16)
        files[name] = size, digest
        if plain.read(1) != b"\0":  # a compressed file: size and hash of its contents
            _number(plain)
            plain.read(16)
    return files


def _unpacked(packed: bytes) -> bytes:
    """Unpacks ClickHouse's compressed blocks."""
    plain, at = b"", 0
    while at < len(packed):
        method, length, size = struct.unpack_from("<BII", packed, at + 16)
        body = packed[at + 25 : at + 16 + length]
        match method:
            case 0x02:
                plain += body
            case 0x82:
                plain += lz4.block.decompress(body, uncompressed_size=size)
            case 0x90:
                plain += zstd.ZstdDecompressor().decompress(body)
            case _:
                raise ValueError(f"{method:#x} is another codec of checksums.txt")
        at += 16 + length
    return plain


def _number(source: BytesIO) -> int:
    value = shift = 0
    while (byte := source.read(1)[0]) & 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
    return value | byte << shift


def _text(text: str) -> bytes:
    raw, length = text.encode(), bytearray()
    size = len(raw)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*length, size]) + raw


class Exchange(ThreadingHTTPServer):
    """Serves the replicas of one process. `directories_of` finds a table's directories by its path in Keeper."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, directories_of: Callable[[str], list[str]]) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.directories_of = directories_of
        self.known: dict[str, list[str]] = {}
        self.manners: dict[str, Any] = {"refuse": False, "delay": 0.0}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def directory(self, replica_path: str, part: str) -> Path:
        for look_again in (False, True):
            if look_again or replica_path not in self.known:
                self.known[replica_path] = self.directories_of(replica_path)
            for directory in self.known[replica_path]:
                if (found := Path(directory) / part).is_dir():
                    return found
        raise FileNotFoundError(part)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as ClickHouse's server (Poco's TCPServer.cpp): otherwise parts wait 40 ms
    wbufsize = CHUNK
    server: Exchange

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        url, body = urlsplit(self.path), self.body()
        if url.path == "/control":
            self.server.manners |= json.loads(body)
            return self.answer(200, json.dumps(self.server.manners))
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        kind, _, replica_path = query.get("endpoint", "").partition(":")
        if kind != "DataPartsExchange" or not PART.fullmatch(query.get("part", "")):
            return self.answer(404, "Code: 221. DB::Exception: No endpoint. (NO_SUCH_INTERSERVER_IO_ENDPOINT)")
        if self.server.manners["refuse"]:
            return self.answer(503, "Code: 210. DB::NetException: Refused on request. (NETWORK_ERROR)")
        time.sleep(self.server.manners["delay"])
        try:
            self.send_part(self.server.directory(replica_path, query["part"]))
        except FileNotFoundError:
            self.answer(500, f"Code: 232. DB::Exception: No part {query['part']} in table. (NO_SUCH_DATA_PART)")
        except ConnectionError:
            self.close_connection = True

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def answer(self, status: int, text: str) -> None:
        body = text.encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_part(self, directory: Path) -> None:
        with ExitStack() as stack:  # opens all files before it sends a byte, because a merge may remove the part
            small = {
                name: (directory / name).read_bytes() for name in FILES if name in NEEDED or (directory / name).exists()
            }
            listed = checksums(small["checksums.txt"])
            files = {name: stack.enter_context((directory / name).open("rb")) for name in sorted(listed)}
            sizes = {name: size for name, (size, _) in listed.items()} | {n: len(data) for n, data in small.items()}
            head = _head(directory, sizes)
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            whole = len(head) + sum(len(_text(name)) + 8 + size + 16 for name, size in sizes.items())
            self.send_header("Content-Length", str(whole))
            self.send_header("Set-Cookie", f"server_protocol_version={VERSION}")
            self.end_headers()
            self.wfile.write(head)
            for name, file in files.items():
                self.send_file(name, sizes[name], file, listed[name][1])
            for name, data in small.items():
                self.send_file(name, len(data), BytesIO(data), file_hash(data))

    def send_file(self, name: str, size: int, file: Any, digest: bytes) -> None:
        self.wfile.write(_text(name) + struct.pack("<Q", size))
        while size:
            if not (data := file.read(min(size, CHUNK))):
                raise ConnectionAbortedError(f"{name} is shorter than checksums.txt says")
            size -= len(data)
            self.wfile.write(data)
        self.wfile.write(digest)


def _head(directory: Path, sizes: dict[str, int]) -> bytes:
    wide = any(name.endswith((".mrk", ".mrk2", ".cmrk", ".cmrk2")) for name in sizes)
    ttl = directory / "ttl.txt"
    return b"".join(
        (
            struct.pack("<Q", sum(sizes.values())),
            _text(ttl.read_text() if ttl.exists() else "ttl format version: 1\n{}"),
            _text("Wide" if wide else "Compact"),
            b"00000000-0000-0000-0000-000000000000",
            struct.pack("<QQ", 0, len(sizes)),  # projections, files
        )
    )


def control(port: int, **manners: Any) -> None:
    """Changes how the exchange on this port answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/control", json.dumps(manners).encode(), timeout=10) as answer:
        answer.read()
