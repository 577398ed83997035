"""Rows as bytes: msgpack, which can hold nothing that runs."""

import msgspec

from adcore.sources import Rows


def encode_rows(rows: Rows) -> bytes:
    return msgspec.msgpack.encode(rows)


def decode_rows(payload: bytes) -> Rows | None:
    """None for what is not the bytes of `encode_rows`."""
    try:
        return msgspec.msgpack.decode(payload, type=Rows)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return None
