"""Cases for the fuzzers: good ones, edited at random. Everything follows from the seed."""

import random
from collections.abc import Iterator, Sequence

# Where cases are cut off: past this nothing new happens, only more of it.
CASE_BYTES_MAX = 6 * 1024
INTERESTING = (
    *(b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b"\x7f", b"\x80", b"\xff", b"\xc1\xad", b"\xed\xa0\x80"),
    *(b"-1", b"0", b"1e999", b"18446744073709551616", b"9" * 400, b"NaN", b"null", b"[" * 300, b'{"a":' * 300),
)


class Mutator:
    """Edits `seeds` with the help of `words`, pieces that mean something where the cases go."""

    def __init__(self, seeds: Sequence[bytes], words: Sequence[bytes], seed: int) -> None:
        self._random = random.Random(seed)
        self._seeds = list(seeds)
        self._words = [*INTERESTING, *words]

    def cases(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield self.mutate(self._random.choice(self._seeds))

    def mutate(self, data: bytes, bytes_max: int = CASE_BYTES_MAX) -> bytes:
        """One to eight edits; mostly few, so that what is left is nearly good."""
        chance = self._random
        for _ in range(min(8, 1 + int(chance.expovariate(0.7)))):
            at = chance.randrange(len(data) + 1)
            span = min(int(chance.expovariate(0.1)), len(data) - at)
            match chance.randrange(8):
                case 0:  # one bit
                    if at < len(data):
                        data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
                case 1:
                    data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
                case 2:
                    data = data[:at] + data[at + span :]
                case 3:
                    data = data[:at] + data[at : at + span] * chance.choice((2, 2, 3, 50)) + data[at + span :]
                case 4 | 5:
                    data = data[:at] + chance.choice(self._words) + data[at + chance.choice((0, span)) :]
                case 6:  # from here on another one
                    other = chance.choice(self._seeds)
                    data = data[:at] + other[chance.randrange(len(other) + 1) :]
                case 7:
                    data = data[:at]
        return data[:bytes_max]
