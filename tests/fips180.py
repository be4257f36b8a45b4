"""SHA-256 written out from FIPS 180-4, for its chaining values: slow, and of nobody else's making."""

from __future__ import annotations

import struct
from math import isqrt

# Section 5.3.3: the initial value.
INITIAL = bytes.fromhex("6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19")


def primes(count: int) -> list[int]:
    return [n for n in range(2, 400) if all(n % d for d in range(2, isqrt(n) + 1))][:count]


def cube_root(value: int) -> int:
    """The largest whole number whose cube is at most `value`."""
    low, high = 0, value
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= value else (low, middle - 1)
    return low


WORD = 0xFFFFFFFF
K = [cube_root(prime << 96) & WORD for prime in primes(64)]


def right(x: int, n: int) -> int:
    return (x >> n | x << 32 - n) & WORD


def compress(state: bytes, block: bytes) -> bytes:
    """Section 6.2.2: the next chaining value."""
    w = list(struct.unpack(">16I", block))
    for t in range(16, 64):
        s0 = right(w[t - 15], 7) ^ right(w[t - 15], 18) ^ w[t - 15] >> 3
        s1 = right(w[t - 2], 17) ^ right(w[t - 2], 19) ^ w[t - 2] >> 10
        w.append((s1 + w[t - 7] + s0 + w[t - 16]) & WORD)
    before = struct.unpack(">8I", state)
    a, b, c, d, e, f, g, h = before
    for t in range(64):
        one = h + (right(e, 6) ^ right(e, 11) ^ right(e, 25)) + (e & f ^ ~e & g) + K[t] + w[t]
        two = (right(a, 2) ^ right(a, 13) ^ right(a, 22)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (one + two) & WORD, a, b, c, (d + one) & WORD, e, f, g
    return struct.pack(
        ">8I", *((x + y) & WORD for x, y in zip(before, (a, b, c, d, e, f, g, h), strict=True))
    )


def fips(state: bytes, done: int, data: bytes) -> str:
    """The hash of `data` behind `done` bytes whose chaining value is `state` (sections 5.1.1, 6.2)."""
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + struct.pack(">Q", (done + len(data)) * 8)
    for at in range(0, len(padded), 64):
        state = compress(state, padded[at : at + 64])
    return state.hex()


def chaining_value(data: bytes) -> bytes:
    """The intermediate hash value after whole blocks."""
    state = INITIAL
    for at in range(0, len(data), 64):
        state = compress(state, data[at : at + 64])
    return state
