"""The memcached client: pymemcache with our timeouts, errors that name the server, and counters many to a trip.

Calls block; each may raise SourceError, after which the next one connects anew.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pymemcache import Client
from pymemcache.exceptions import MemcacheError

from adcore.errors import SourceError

CONNECT_TIMEOUT_S = 0.5
# Counters in one round trip: 10,000 of them are 20 trips. What is sent and what is answered both fit in the sockets'
# buffers, so neither side waits for the other to read.
TRIP_MAX = 500


class Add(NamedTuple):
    """Make a counter, if it is not there."""

    key: str
    value: int
    expire_s: int


class Increase(NamedTuple):
    """Raise a counter, if it is there."""

    key: str
    by: int


class Memcached:
    """The memcached at `address` ("unix:PATH" or "HOST:PORT"). `client` is used within `naming_errors`."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self.label = f"memcached {address}"
        server: Any = address
        if not address.startswith("unix:"):
            host, _, port = address.rpartition(":")
            server = (host.strip("[]"), int(port))
        self.client = _Client(
            server,
            connect_timeout=CONNECT_TIMEOUT_S,
            timeout=timeout_s,
            no_delay=not address.startswith("unix:"),
            default_noreply=False,
        )

    @contextmanager
    def naming_errors(self) -> Iterator[None]:
        try:
            yield
        except (MemcacheError, OSError) as error:
            self.client.close()
            raise SourceError(f"{self.label}: {error or type(error).__name__}") from error
        except (ValueError, IndexError, KeyError) as error:
            # Whatever listens there does not speak memcached's protocol, or the key is somebody else's.
            self.client.close()
            raise SourceError(f"{self.label}: it does not answer like memcached ({error})") from error

    def counters(self, keys: Sequence[str]) -> dict[str, int]:
        """The values of those that are there."""
        values: dict[str, int] = {}
        with self.naming_errors():
            for start in range(0, len(keys), TRIP_MAX):
                for key, value in self.client.get_many(keys[start : start + TRIP_MAX]).items():
                    values[key] = int(value)
        return values

    def count(self, commands: Sequence[Add | Increase]) -> list[int | None]:
        """Do the commands in their order: for each the counter's new value, or None where it could not be done.

        After an error any of them may have been done, or not.
        """
        values: list[int | None] = []
        with self.naming_errors():
            for start in range(0, len(commands), TRIP_MAX):
                trip = commands[start : start + TRIP_MAX]
                answers = self.client.send_together([_encode(command) for command in trip])
                values.extend(map(_value, trip, answers))
        return values

    def close(self) -> None:
        self.client.close()


class _Client(Client):  # type: ignore[misc]  # pymemcache has no types
    def send_together(self, commands: list[bytes]) -> list[bytes]:
        """The line that answers each command. pymemcache has this for its own set_many only."""
        answers: list[bytes] = self._misc_cmd(commands, b"counters", False)
        return answers


def _encode(command: Add | Increase) -> bytes:
    if isinstance(command, Increase):
        return b"incr %s %d\r\n" % (command.key.encode(), command.by)
    value = b"%d" % command.value
    return b"add %s 0 %d %d\r\n%s\r\n" % (command.key.encode(), command.expire_s, len(value), value)


def _value(command: Add | Increase, answer: bytes) -> int | None:
    if isinstance(command, Add):
        if answer not in (b"STORED", b"NOT_STORED"):
            raise ValueError(answer)
        return command.value if answer == b"STORED" else None
    return None if answer == b"NOT_FOUND" else int(answer)
