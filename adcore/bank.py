"""The Tally in a process of its own: where this server's counts are kept and exchanged with those of others.

Files, memcached and the database are waited for here, and some 100 ms of work for 5,000 campaigns hold up no request.
The process holds the lock of the server's counter file too, so that nobody takes the file while this one may still
write it. It has some 25 MiB, as it imports nothing that decides.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from adcore.background import BackgroundThread
from adcore.counterfile import CounterFile
from adcore.counts import CounterState
from adcore.forkserver import ForkClient
from adcore.sources import open_store
from adcore.sources.child import Asker, Child, within_its_memory
from adcore.sources.memcached import Memcached
from adcore.tally import Answer, Ask, Tally

# A memcached that needs longer than this for 500 counters is as good as away.
MEMCACHED_TIMEOUT_S = 1.0
# A third of a core that the server fills: late counts are passed caps.
NICENESS = 5

_encode = msgspec.msgpack.encode


class Places(msgspec.Struct, frozen=True):
    """What the process opens."""

    first_file: str
    file: str
    """This server's, whose lock the process is given."""
    source: str
    memcached: str | None
    memcached_prefix: str
    memory_bytes: int = 0
    """Of the process itself; a server of an earlier version gives none."""


class TallyProcess(Child):
    """The process, seen from the server; used like the Tally that it has."""

    def __init__(self, places: Places, lock_fds: tuple[int, ...], forks: ForkClient | None = None) -> None:
        super().__init__("adcore.bank", "counts", _encode(places), lock_fds, places.memory_bytes, forks)

    def exchange(self, ask: Ask, own: Sequence[CounterState]) -> tuple[Answer, list[CounterState]]:
        """As Tally.exchange. Raises ChildError when the process ended; the next one knows nothing of what was told."""
        frames = (_encode((ask, len(own))) if part is None else _encode(part) for part in (None, *own))
        with self._asking(frames):
            answer, parts = msgspec.msgpack.decode(self._read(), type=tuple[Answer, int])
            return answer, [msgspec.msgpack.decode(self._read(), type=CounterState) for _ in range(parts)]


@within_its_memory()
def main() -> None:
    """In the process."""
    server = Asker("counts")
    places = msgspec.msgpack.decode(server.next(), type=Places)
    server.give_way(NICENESS)
    cache = None if places.memcached is None else Memcached(places.memcached, MEMCACHED_TIMEOUT_S)
    tally = Tally(
        CounterFile(Path(places.first_file), Path(places.file)),
        cache,
        places.memcached_prefix,
        open_store(places.source).delivered,
        BackgroundThread("collected"),
    )
    while True:
        ask, parts = msgspec.msgpack.decode(server.next(), type=tuple[Ask, int])
        own = [msgspec.msgpack.decode(server.next(), type=CounterState) for _ in range(parts)]
        answer, others = tally.exchange(ask, own)
        server.answer(_encode((answer, len(others))), *map(_encode, others))


if __name__ == "__main__":
    main()
