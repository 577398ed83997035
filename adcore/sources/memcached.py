"""The memcached client: pymemcache with bounds of ours, and errors that name the server.

pymemcache has a timeout for each piece of an answer, and takes as many pieces as come. Here an answer has a time and a
size in all, and so has everything that is asked in one look or exchange.

Calls block; each may raise SourceError, after which the next one connects anew.
"""

import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pymemcache import Client
from pymemcache.exceptions import MemcacheError

from adcore.errors import SourceError

CONNECT_TIMEOUT_S = 0.5
# Keys in one round trip. What is sent fits in the sockets' buffers, so neither side waits for the other to read.
TRIP_MAX = 500
# An answer that has no value in it.
LINE_BYTES_MAX = 64 << 10


class Budget(NamedTuple):
    """What something may take: until when, and how many bytes of answers."""

    end_monotonic: float
    bytes: int


class Memcached:
    """The memcached at `address` ("unix:PATH" or "HOST:PORT"). `client` is used within `asking`."""

    def __init__(self, address: str, timeout_s: float, clock_monotonic: Callable[[], float] = time.monotonic) -> None:
        """`timeout_s` is for a short answer as a whole, and for each silence in a long one."""
        self.label = f"memcached {address}"
        self._timeout_s = timeout_s
        self._clock = clock_monotonic
        self._look = Budget(math.inf, 1 << 62)
        self._sockets = _BoundedSockets(clock_monotonic)
        server: Any = address
        if not address.startswith("unix:"):
            host, _, port = address.rpartition(":")
            server = (host.strip("[]"), int(port))
        self.client = Client(
            server,
            connect_timeout=CONNECT_TIMEOUT_S,
            timeout=timeout_s,
            no_delay=not address.startswith("unix:"),
            default_noreply=False,
            socket_module=self._sockets,
        )

    def begin(self, seconds: float, bytes_max: int) -> None:
        """All that is asked from now on, until this is called again, has this much."""
        self._look = Budget(self._clock() + seconds, bytes_max)

    @contextmanager
    def asking(self, bytes_max: int = LINE_BYTES_MAX, seconds: float | None = None) -> Iterator[None]:
        """Bound one answer, and name what goes wrong."""
        look = self._look
        seconds = self._timeout_s if seconds is None else seconds
        end_monotonic = min(self._clock() + seconds, look.end_monotonic)
        allowed = min(bytes_max, look.bytes)
        self._sockets.allow(Budget(end_monotonic, allowed))
        try:
            yield
        except (MemcacheError, OSError) as error:
            self.client.close()
            raise SourceError(f"{self.label}: {error or type(error).__name__}") from error
        except (ValueError, IndexError, KeyError) as error:
            # Whatever listens there does not speak memcached's protocol, or the key is somebody else's.
            self.client.close()
            raise SourceError(f"{self.label}: it does not answer like memcached ({error})") from error
        finally:
            self._look = look._replace(bytes=look.bytes - (allowed - self._sockets.bytes_left))

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those that are there, of whatever size `begin` allows."""
        values: dict[str, bytes] = {}
        for start in range(0, len(keys), TRIP_MAX):
            with self.asking(self._look.bytes, math.inf):
                values |= self.client.get_many(keys[start : start + TRIP_MAX])
        return values

    def set_many(self, values: Mapping[str, bytes], expire_s: int) -> None:
        """Store all, or raise SourceError."""
        with self.asking():
            refused = self.client.set_many(values, expire=expire_s)
        if refused:
            raise SourceError(f"{self.label}: it took no value of {len(values[refused[0]])} bytes; see its -m and -I")

    def append(self, key: str, value: bytes, expire_s: int) -> None:
        """Put this behind what is there, or store it where there is nothing."""
        with self.asking():
            if not self.client.append(key, value) and not self.client.add(key, value, expire=expire_s):
                self.client.append(key, value)

    def close(self) -> None:
        self.client.close()


class _BoundedSockets:
    """The module `socket` for pymemcache, whose sockets keep to a budget."""

    AF_UNIX, AF_UNSPEC = socket.AF_UNIX, socket.AF_UNSPEC
    SOCK_STREAM = socket.SOCK_STREAM
    IPPROTO_TCP, TCP_NODELAY = socket.IPPROTO_TCP, socket.TCP_NODELAY
    getaddrinfo = staticmethod(socket.getaddrinfo)

    def __init__(self, clock_monotonic: Callable[[], float]) -> None:
        self._clock = clock_monotonic
        self._end_monotonic = 0.0
        self._bytes_max = 0
        self.bytes_left = 0

    def allow(self, budget: Budget) -> None:
        self._end_monotonic = budget.end_monotonic
        self._bytes_max = self.bytes_left = budget.bytes

    def seconds_left(self) -> float:
        left_s = self._end_monotonic - self._clock()
        if left_s <= 0:
            raise TimeoutError("timed out")
        return left_s

    def spend(self, size: int) -> None:
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise OSError(f"its answer has more than {self._bytes_max} bytes")

    def socket(self, family: int, kind: int, proto: int = 0) -> "_BoundedSocket":
        return _BoundedSocket(family, kind, proto, self)


class _BoundedSocket(socket.socket):
    def __init__(self, family: int, kind: int, proto: int, bounds: _BoundedSockets) -> None:
        super().__init__(family, kind, proto)
        self._bounds = bounds
        self._timeout_s: float | None = None

    def settimeout(self, value: float | None) -> None:
        self._timeout_s = value

    def _limit(self) -> None:
        left_s = self._bounds.seconds_left()
        super().settimeout(left_s if self._timeout_s is None else min(left_s, self._timeout_s))

    def connect(self, address: Any) -> None:
        self._limit()
        super().connect(address)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self._limit()
        super().sendall(data, flags)

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._limit()
        data = super().recv(size, flags)
        self._bounds.spend(len(data))
        return data
