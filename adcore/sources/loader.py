"""The Reader in a process of its own, so that what it does never holds up a request.

Reading, decoding and checking 100,000 creatives takes seconds. The process gives way to the server while that has a
table to answer requests with. Loading leaves it large, so it ends once no other change has followed for a while, and
the next look starts a small one. While changes keep coming it stays: a start takes more CPU than most of them.
"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from adcore.forkserver import ForkClient
from adcore.sources import Note, open_store
from adcore.sources.archive import TableArchive
from adcore.sources.child import Asker, Child, within_its_memory
from adcore.sources.lastgood import LastGood
from adcore.sources.reader import Answer, Ask, Reader


class Sources(msgspec.Struct, frozen=True):
    """What the process opens."""

    source: str
    memcached: str | None
    memcached_prefix: str
    owner: str
    """Of the lock in memcached."""
    last_good: str
    archive: str
    archive_days: float
    archive_bytes: int
    memory_bytes: int = 0
    """Of the process itself; a server of an earlier version gives none."""


# A tenth of a core that the server fills, all of one that is idle. SCHED_IDLE would never come to an end on a full one.
NICENESS = 10
# A process that has loaded a table ends after this time without another. A start takes 0.4 s of CPU.
REST_S = 60.0
# ... or after this many tables, for the memory that each may leave in pieces.
LOADS_MAX = 100
# Instead of an Ask: keep the rows of the last offer.
KEEP = b""

_encode = msgspec.msgpack.encode


class Loader(Child):
    """The process, seen from the server; used like the Reader that it has."""

    def __init__(
        self,
        sources: Sources,
        clock_monotonic: Callable[[], float] = time.monotonic,
        forks: ForkClient | None = None,
    ) -> None:
        super().__init__(
            "adcore.sources.loader", "loader", _encode(sources), memory_bytes=sources.memory_bytes, forks=forks
        )
        self._clock = clock_monotonic
        self._loads = 0
        """Of this process, and when the last one was."""
        self._loaded_monotonic = float("-inf")

    @property
    def is_awake(self) -> bool:
        return self.pid is not None

    def look(self, ask: Ask) -> tuple[Answer, list[bytes]]:
        """As Reader.look. Raises ChildError when the process ended."""
        with self._asking([_encode(ask)]):
            answer = msgspec.msgpack.decode(self._read(), type=Answer)
            parts = [self._read() for _ in range(answer.offer.parts)] if answer.offer is not None else []
        if answer.offer is not None:
            # A first table is the largest offer, and mostly no other one follows soon.
            self._loads = self._loads + 1 if ask.compared is not None else LOADS_MAX
            self._loaded_monotonic = self._clock()
        elif self._loads:
            self.rest()
        return answer, parts

    def keep(self) -> list[Note]:
        """As Reader.keep."""
        try:
            with self._asking([KEEP]):
                return msgspec.msgpack.decode(self._read(), type=list[Note])
        finally:
            if self._loads >= LOADS_MAX:
                self._end()

    def rest(self) -> None:
        """End the process, unless it has loaded a table lately; the next look starts another one."""
        if self._clock() - self._loaded_monotonic >= REST_S:
            self._end()

    def _end(self) -> int | None:
        self._loads = 0
        return super()._end()


@within_its_memory()
def main() -> None:
    """In the process."""
    server = Asker("loader")
    sources = msgspec.msgpack.decode(server.next(), type=Sources)
    gives_way = False
    snapshot = None
    if sources.memcached is not None:
        from adcore.sources.seal import Seals
        from adcore.sources.snapshot import Snapshot

        snapshot = Snapshot(sources.memcached, sources.memcached_prefix, sources.owner, Seals())
    archive = TableArchive(Path(sources.archive), days=sources.archive_days, bytes_max=sources.archive_bytes)
    reader = Reader(open_store(sources.source), snapshot, LastGood(Path(sources.last_good)), archive)
    while True:
        frame = server.next()
        if frame == KEEP:
            server.answer(_encode(reader.keep()))
            continue
        ask = msgspec.msgpack.decode(frame, type=Ask)
        if ask.compared is not None and not gives_way:
            # Without a table there are no requests to give way to.
            server.give_way(NICENESS)
            gives_way = True
        answer, parts = reader.look(ask)
        server.answer(_encode(answer), *parts)


if __name__ == "__main__":
    main()
