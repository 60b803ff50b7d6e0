"""Reads what a request of ClickHouse's HTTP protocol asks for: its statement, parameters, settings and the rest."""

from urllib.parse import parse_qsl

import lz4.frame
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from demo.clickhouse_engine import Query, ServerError

NOT_SETTINGS = """
    query query_id database user password session_id session_timeout session_check default_format
    wait_end_of_query buffer_size quota_key role compress decompress client_protocol_version stacktrace
""".split()  # noqa: SIM905


def pairs(query_string: str) -> dict[str, str]:
    return dict(parse_qsl(query_string, keep_blank_values=True, errors="surrogateescape"))


async def read_query(request: Request, url: dict[str, str], query_id: str) -> Query:
    if url.get("compress", "0") != "0" or url.get("decompress", "0") != "0":
        raise ServerError(48, "ClickHouse's own compression (compress, decompress) is not implemented")
    body = b""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_part_size=1 << 26) as form:
            if any(isinstance(value, UploadFile) for value in form.values()):
                raise ServerError(48, "External tables are not implemented")
            url |= {name: str(value) for name, value in form.items()}
    else:
        encoding = request.headers.get("content-encoding", "identity")
        body = await run_in_threadpool(_decompressed, await request.body(), encoding)
    statement = b"\n".join(filter(None, (url.get("query", "").encode(errors="surrogateescape"), body)))
    return Query(
        statement,
        query_id,
        params={k[6:]: v for k, v in url.items() if k[:6] == "param_"},
        settings={k: v for k, v in url.items() if k not in NOT_SETTINGS and k[:6] != "param_"},
        database=url.get("database") or request.headers.get("x-clickhouse-database", ""),
        format=url.get("default_format") or request.headers.get("x-clickhouse-format") or "TabSeparated",
        session_id=url.get("session_id", ""),
    )


def _decompressed(body: bytes, encoding: str) -> bytes:
    """The body as it was before compression; clients send one compressed frame after the other."""
    if encoding == "identity":
        return body
    if encoding != "lz4":
        raise ServerError(48, f"Unknown compression method: {encoding}")
    whole, at = bytearray(), 0
    try:
        while at < len(body):
            frame, length = lz4.frame.decompress(memoryview(body)[at:], return_bytes_read=True)
            whole += frame
            at += length
    except RuntimeError as error:
        raise ServerError(117, f"Cannot decompress the body: {error}") from error
    return bytes(whole)
