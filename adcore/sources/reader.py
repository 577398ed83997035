"""One look at the sources: is there something new, and if so, what of it differs from the table in use.

Notices a new revision and gets its rows from the nearest source: the first process to take the lock in memcached reads
the store and publishes a snapshot; the others take that. What is away is gone around: no memcached, read the store; no
store, take the snapshot. Then the rows are checked, and held against what is served by a digest of each campaign.

Calls block, and take seconds for a large inventory, so this runs in a process of its own (loader.py). It remembers
nothing of earlier looks but the rows that are to be kept on disk; whoever asks says what is served.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from adcore.core.adtable import AdTable, Steps, change_table, check_document
from adcore.core.inventory import Campaign, Inventory, Placement, Problem
from adcore.errors import SourceError
from adcore.sources import Note, Revision, Rows, Source
from adcore.sources.archive import TableArchive
from adcore.sources.codec import encode_rows
from adcore.sources.lastgood import LastGood
from adcore.sources.seal import Seals

if TYPE_CHECKING:
    from adcore.sources.snapshot import Snapshot

# How long those that lost the lock wait for the winner's snapshot before they read the store themselves. A load of
# 100,000 creatives takes a second or two; longer than this, and its holder was killed.
LOCK_WAIT_S = 5.0
LOCK_POLL_S = 0.05
# A table that keeps less than this part of the creatives of the one before is taken for an accident at first.
SHRINK_MIN = 0.5
DIGEST_BYTES = 16
NEW = -1

_decode_campaign = msgspec.msgpack.Decoder(Campaign).decode


class Ask(msgspec.Struct, frozen=True):
    """What is served already."""

    served: Revision | None
    """None: whatever there is is new."""
    compared: Revision | None
    """What new rows are held against when they have become few; None when nothing was served before."""
    creatives: int
    refused: bytes
    """The digest of rows that were refused at the look before; b"" for none."""
    known: bytes
    """Digests of the campaigns served, in their order (`digests`)."""
    seals: tuple[bytes, ...] = ()
    """The keys that sign snapshots (Seals). Without any, none is read or published."""


class Offer(msgspec.Struct, frozen=True):
    """Another table, told by what differs. Problems and new campaigns follow as parts, each encoded by itself."""

    revision: Revision
    origin: str
    placements: tuple[Placement, ...]
    problems: int
    """How many of the parts that follow are problems; the others are campaigns."""
    parts: int
    order: bytes
    """For each campaign its position among those served, NEW for the next part; array("i")."""
    known: bytes
    """Digests of these campaigns."""


class Answer(msgspec.Struct, frozen=True):
    notes: tuple[Note, ...]
    asked_monotonic: float
    """When the look began: what a slow source answers may be as old as that. Processes of a host share this clock."""
    fresh: bool
    """The store was asked and has nothing newer."""
    offer: Offer | None = None
    refused: bytes = b""
    """The digest of rows that are not to be trusted unless the next look finds them unchanged."""
    why: str | None = None


class Reader:
    """Looks at a source, and at the snapshot in memcached if there is one. Its calls belong in one thread."""

    def __init__(
        self,
        source: Source,
        snapshot: "Snapshot | None",
        last_good: LastGood,
        archive: TableArchive | None = None,
        *,
        clock_monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._source = source
        self._shared = snapshot
        self._snapshot: Snapshot | None = None
        """While one look goes on, if there is one and there are keys for it."""
        self._last_good = last_good
        self._archive = archive
        self._clock = clock_monotonic
        self._sleep = sleep
        self._notes: list[Note] = []
        self._fresh = False
        self._to_keep: Rows | None = None

    def look(self, ask: Ask) -> tuple[Answer, list[bytes]]:
        """The answer, and the encoded problems and campaigns of its offer."""
        self._notes = []
        self._to_keep = None
        self._fresh = False
        self._snapshot = self._shared if ask.seals else None
        if self._snapshot is not None:
            self._snapshot.begin()
            self._snapshot.seals = Seals(ask.seals)
        self._keep_served(ask.compared)
        asked_monotonic = self._clock()
        found = self._look(ask.served)
        if found is None:
            return Answer(tuple(self._notes), asked_monotonic, self._fresh), []
        rows, origin = found
        inventory, problems = check_document(rows.document)
        digest, why = _doubt(rows, inventory, ask)
        if why is not None:
            return Answer(tuple(self._notes), asked_monotonic, False, None, digest, why), []
        self._to_keep = rows
        # Before anything is decided on it: a server that is killed in between has kept what its log speaks of.
        self._keep_for_replay(rows)
        offer, parts = _compare(rows.revision, origin, inventory, problems, ask.known)
        return Answer(tuple(self._notes), asked_monotonic, False, offer), parts

    def keep(self) -> list[Note]:
        """Keep on disk the rows of the last offer, which was taken."""
        rows, self._to_keep = self._to_keep, None
        self._notes = []
        if rows is not None:
            try:
                self._last_good.save(rows)
                self._note("disk")
            except SourceError as error:
                self._note("disk", error)
        return self._notes

    is_awake = False
    """Whether there is something that `rest` could end."""

    def rest(self) -> None:
        """The connections stay."""

    def close(self) -> None:
        for source in (self._source, self._shared):
            if source is not None:
                source.close()

    def _keep_served(self, served: Revision | None) -> None:
        """What is served stays in the archive; what is not there (it was cleared, or is new) comes from the disk."""
        if self._archive is None or served is None:
            return
        try:
            is_there = self._archive.note_served(served)
            if is_there:
                self._note("archive")
            if is_there is not False:
                return
            kept = self._last_good.load()
        except SourceError as error:
            self._note("archive", error)
            return
        if kept is not None and kept[0].revision[:2] == served[:2]:
            self._keep_for_replay(kept[0])

    def _keep_for_replay(self, rows: Rows) -> None:
        if self._archive is None:
            return
        try:
            self._archive.keep(rows)
            self._note("archive")
        except SourceError as error:
            self._note("archive", error)

    def _look(self, served: Revision | None) -> tuple[Rows, str] | None:
        """New rows, if there are any, and where they are from."""
        try:
            revision = self._source.revision()
            self._note("store")
        except SourceError as error:
            self._note("store", error)
            return self._snapshot_if_newer(served)
        if served is not None and (revision.generation, revision.number) == (served.generation, served.number):
            self._fresh = True
            return None
        return self._load(revision)

    def _load(self, revision: Revision) -> tuple[Rows, str] | None:
        """The rows of the store: from the snapshot if somebody makes one, else from the store."""
        locked = False
        snapshot = self._snapshot
        if snapshot is not None:
            deadline_monotonic = self._clock() + LOCK_WAIT_S
            try:
                while True:
                    rows = self._shared_rows(snapshot, revision)
                    if rows is not None:
                        return rows, "snapshot"
                    locked = snapshot.lock()
                    if locked or self._clock() >= deadline_monotonic:
                        break
                    self._sleep(LOCK_POLL_S)
            except SourceError as error:
                self._note("snapshot", error)
        try:
            rows = self._source.load()
        except SourceError as error:
            self._note("store", error)
            rows = None
        if snapshot is not None and locked:
            try:
                if rows is not None:
                    snapshot.publish(rows)
                snapshot.unlock()
            except SourceError as error:
                self._note("snapshot", error)
        return None if rows is None else (rows, "store")

    def _shared_rows(self, snapshot: "Snapshot", revision: Revision) -> Rows | None:
        """What is in the snapshot, if it is what is in the store. Raises SourceError for memcached alone."""
        there = snapshot.revision()
        self._note_snapshot(snapshot)
        if there is not None and there.is_as_new_as(revision) and there.number != revision.number:
            # Another process was quicker, and the store has changed since it was asked. Or it never had this number.
            try:
                revision = self._source.revision()
            except SourceError as error:
                self._note("store", error)
                return None
        if there is None or there[:2] != revision[:2]:
            return None
        rows = snapshot.load()
        return rows if rows is not None and rows.revision[:2] == revision[:2] else None

    def _snapshot_if_newer(self, served: Revision | None) -> tuple[Rows, str] | None:
        if self._snapshot is None:
            return None
        try:
            there = self._snapshot.revision()
            self._note_snapshot(self._snapshot)
            # Without the store nobody can say which of two generations is the one that counts.
            if there is None or (served and (not there.is_as_new_as(served) or there.number == served.number)):
                return None
            rows = self._snapshot.load()
        except SourceError as error:
            self._note("snapshot", error)
            return None
        # Another one may have taken its place meanwhile.
        return None if rows is None or rows.revision != there else (rows, "snapshot")

    def _note_snapshot(self, snapshot: "Snapshot") -> None:
        self._note("snapshot", None if snapshot.problem is None else SourceError(snapshot.problem))

    def _note(self, source: str, error: SourceError | None = None) -> None:
        note = Note(source, None if error is None else str(error))
        if note not in self._notes:
            self._notes.append(note)


def offer_all(rows: Rows, origin: str) -> tuple[Offer, list[bytes]]:
    """All of a table as an offer, so that the decoded rows, several times as large, go before the table is built."""
    return _compare(rows.revision, origin, *check_document(rows.document), b"")


def apply_offer(offer: Offer, parts: Sequence[bytes], before: AdTable) -> Steps[AdTable]:
    """The table that an offer tells, which shares with the one served what has not changed."""
    following = iter(parts)
    problems = []
    for _ in range(offer.problems):
        problems.append(msgspec.msgpack.decode(next(following), type=Problem))
        yield
    served = tuple(before.campaigns.values())
    campaigns = []
    for number, position in enumerate(array("i", offer.order)):
        if position != NEW:
            campaigns.append(served[position])
            if number % 250:
                continue
        else:
            campaigns.append(_decode_campaign(next(following)))
        yield
    revision = offer.revision
    tables = offer.placements, campaigns, tuple(problems)
    return (yield from change_table(before, revision.number, *tables, revision.generation))


def _digest(encoded: bytes) -> bytes:
    return blake2b(encoded, digest_size=DIGEST_BYTES).digest()


def _doubt(rows: Rows, inventory: Inventory, ask: Ask) -> tuple[bytes, str | None]:
    """The rows' digest and why they are not taken yet; None when they are."""
    before, revision = ask.compared, rows.revision
    count = sum(len(campaign.creatives) for campaign in inventory.campaigns)
    if (
        before is None
        or before.generation != revision.generation
        or count >= ask.creatives * SHRINK_MIN
        or revision.confirmed >= revision.number
    ):
        return b"", None
    digest = _digest(encode_rows(rows))
    if digest == ask.refused:
        return b"", None
    return digest, (
        f"revision {revision.number} has {count} creatives and the one before {ask.creatives}; it is taken if the "
        "next look finds it unchanged, or once adctl apply confirms it"
    )


def _compare(
    revision: Revision, origin: str, inventory: Inventory, problems: tuple[Problem, ...], known: bytes
) -> tuple[Offer, list[bytes]]:
    served = {known[at : at + DIGEST_BYTES]: at // DIGEST_BYTES for at in range(0, len(known), DIGEST_BYTES)}
    parts = [msgspec.msgpack.encode(problem) for problem in problems]
    order = array("i")
    now = []
    for campaign in inventory.campaigns:
        encoded = msgspec.msgpack.encode(campaign)
        digest = _digest(encoded)
        now.append(digest)
        position = served.get(digest, NEW)
        order.append(position)
        if position == NEW:
            parts.append(encoded)
    tables = inventory.placements, len(problems), len(parts), order.tobytes(), b"".join(now)
    offer = Offer(revision, origin, *tables)
    return offer, parts
