"""ClickHouse's checksum of a file in a part: CityHash128 of version 1.0.2, seeded, by blocks of 2,048 bytes.

It is plain and slow, for the few small files of a part that have no checksum in checksums.txt. The files that have one
are the examples of its test (tests/demo/test_cluster_engine.py).
"""

import struct

K0, K1, K2, K3 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F, 0xC949D7C7509E6557
MULTIPLIER = 0x9DDFEA08EB382D69
ALL = (1 << 64) - 1
BLOCK = 2048
Pair = tuple[int, int]


def file_hash(data: bytes) -> bytes:
    """The 16 bytes that checksums.txt and the parts exchange use."""
    state = (0, 0)
    for at in range(0, len(data), BLOCK):
        state = _hash(data[at : at + BLOCK], state)
    return struct.pack("<QQ", *state)


def _u64(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<Q", data, at)[0])


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _rotated(value: int, by: int) -> int:
    value &= ALL
    return (value >> by | value << (64 - by)) & ALL


def _mixed(value: int) -> int:
    value &= ALL
    return value ^ value >> 47


def _pair(low: int, high: int) -> int:
    a = _mixed(((low ^ high) & ALL) * MULTIPLIER)
    return _mixed(((high & ALL) ^ a) * MULTIPLIER) * MULTIPLIER & ALL


def _short(data: bytes) -> int:
    """The hash of up to 16 bytes."""
    size = len(data)
    if size > 8:
        a, b = _u64(data, 0), _u64(data, size - 8)
        return _pair(a, _rotated(b + size, size)) ^ b
    if size >= 4:
        return _pair(size + (_u32(data, 0) << 3), _u32(data, size - 4))
    if size:
        y, z = data[0] + (data[size >> 1] << 8), size + (data[-1] << 2)
        return _mixed(y * K2 ^ z * K3) * K2 & ALL
    return K2


def _murmur(data: bytes, seed: Pair) -> Pair:
    """The hash of fewer than 128 bytes."""
    (a, b), size = seed, len(data)
    if size <= 16:
        a = _mixed(a * K1) * K1
        c = b * K1 + _short(data)
        d = _mixed(a + (_u64(data, 0) if size >= 8 else c))
    else:
        c = _pair(_u64(data, size - 8) + K1, a)
        d = _pair(b + size, c + _u64(data, size - 16))
        a += d
        for at in range(0, size - 16, 16):
            a = (a & ALL ^ _mixed(_u64(data, at) * K1) * K1) * K1 & ALL
            b ^= a
            c = (c & ALL ^ _mixed(_u64(data, at + 8) * K1) * K1) * K1 & ALL
            d ^= c
    a, b = _pair(a, c), _pair(d, b)
    return a ^ b, _pair(b, a)


def _weak(data: bytes, at: int, a: int, b: int) -> Pair:
    """The hash of 32 bytes."""
    w, x, y, z = struct.unpack_from("<QQQQ", data, at)
    a += w
    b = _rotated(b + a + z, 21)
    first, a = a, a + x + y
    return (a + z) & ALL, (b + _rotated(a, 44) + first) & ALL


def _hash(data: bytes, seed: Pair) -> Pair:
    if (size := len(data)) < 128:
        return _murmur(data, seed)
    (x, y), z, at = seed, size * K1 & ALL, 0
    v0 = (_rotated(y ^ K1, 49) * K1 + _u64(data, 0)) & ALL
    v = v0, (_rotated(v0, 42) * K1 + _u64(data, 8)) & ALL
    w = (_rotated(y + z, 35) * K1 + x) & ALL, _rotated(x + _u64(data, 88), 53) * K1 & ALL
    while size >= 128:
        for _ in range(2):
            x = _rotated(x + y + v[0] + _u64(data, at + 16), 37) * K1 & ALL ^ w[1]
            y = _rotated(y + v[1] + _u64(data, at + 48), 42) * K1 & ALL ^ v[0]
            z = _rotated(z ^ w[0], 33)
            v = _weak(data, at, v[1] * K1, x + w[0])
            w = _weak(data, at + 32, z + w[1], y)
            x, z, at = z, x, at + 64
        size -= 128
    y += _rotated(w[0], 37) * K0 + z
    x += _rotated(v[0] + z, 49) * K0
    w0, done = w[0], 0
    while done < size:
        done += 32
        y = _rotated(y - x, 42) * K0 + v[1]
        w0 += _u64(data, at + size - done + 16)
        x = _rotated(x, 49) * K0 + w0
        w0 += v[0]
        v = _weak(data, at + size - done, *v)
    x, y = _pair(x, v[0]), _pair(y, w0)
    return (_pair(x + v[1], w[1]) + y) & ALL, _pair(x + w[1], y + v[1])
