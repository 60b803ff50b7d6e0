"""Reads what a request of ClickHouse's HTTP protocol asks for: its statement, parameters, settings and the rest."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import lz4.frame
from backports import zstd
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from demo.clickhouse_engine import Query, ServerError

CODECS: dict[str, Callable[[], Any]] = {
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": zstd.ZstdDecompressor,
    "gzip": partial(zlib.decompressobj, 31),
    "deflate": zlib.decompressobj,
}

NOT_SETTINGS = """
    query query_id database user password session_id session_timeout session_check default_format
    wait_end_of_query buffer_size quota_key role compress decompress client_protocol_version stacktrace
""".split()  # noqa: SIM905


def pairs(query_string: str) -> dict[str, str]:
    return dict(parse_qsl(query_string, keep_blank_values=True, errors="surrogateescape"))


async def read_query(request: Request, url: dict[str, str], query_id: str) -> Query:
    if url.get("compress", "0") != "0" or url.get("decompress", "0") != "0":
        raise ServerError(48, "ClickHouse's own compression (compress, decompress) is not implemented")
    encoding = request.headers.get("content-encoding", "identity")
    body = b""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_part_size=1 << 26) as form:
            if any(isinstance(value, UploadFile) for value in form.values()):
                raise ServerError(48, "External tables are not implemented")
            url |= {name: str(value) for name, value in form.items()}
    else:
        chunks = [chunk async for chunk in request.stream()]
        body = await run_in_threadpool(_decompressed, chunks, encoding)
    statement = b"\n".join(filter(None, (url.get("query", "").encode(errors="surrogateescape"), body)))
    return Query(
        statement,
        query_id,
        params={k[6:]: v for k, v in url.items() if k[:6] == "param_"},
        settings={k: v for k, v in url.items() if k not in NOT_SETTINGS and k[:6] != "param_"},
        database=url.get("database") or request.headers.get("x-clickhouse-database", ""),
        format=url.get("default_format") or request.headers.get("x-clickhouse-format") or "TabSeparated",
        session_id=url.get("session_id", ""),
        session_timeout=float(url.get("session_timeout", 60)),
        session_check=url.get("session_check") == "1",
    )


def _decompressed(chunks: list[bytes], encoding: str) -> bytes:
    """The body as it was before compression; clients send one compressed frame after the other."""
    if encoding == "identity":
        return b"".join(chunks)
    if encoding not in CODECS:
        raise ServerError(48, f"Unknown compression method: {encoding}")
    codec = CODECS[encoding]()
    whole = bytearray()
    try:
        for chunk in chunks:
            while chunk:
                if codec.eof:
                    codec = CODECS[encoding]()
                whole += codec.decompress(chunk)
                chunk = codec.unused_data if codec.eof else b""
    except (RuntimeError, zlib.error, zstd.ZstdError) as error:
        raise ServerError(117, f"Cannot decompress the body: {error}") from error
    if chunks != [b""] and not codec.eof:
        raise ServerError(117, "Cannot decompress the body: it ends too early")
    return bytes(whole)
