"""The counts that files of all hosts publish in memcached, signed, each file's by itself.

    PREFIX count2: STORE : signer                the fingerprint of the key that signed last, so that two secrets show
    PREFIX count2: STORE : members               who counts together: a record after the other, put there by `append`
    PREFIX count2: STORE : MEMBER : BUCKET       the counts of a member's campaigns, of which a bucket has a sixteenth

STORE is a hash of the store's generation, since another store's counts are other counts. Every record and every bucket
is sealed (adcore.sources.seal), under its key as its name. What can't be verified counts for nothing; what was known
stays known, so memcached may lose or withhold anything and gives less news, never other news.
"""

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Protocol
from zlib import crc32

import msgspec

from adcore.counts import NOTHING, CounterState, Figures, figures
from adcore.sources.seal import FINGERPRINT_BYTES, SEAL_BYTES, OtherSecretError, SealError, Seals

BUCKETS = 16
# Of 5,000 limited campaigns a member has some 150 KB, so this is enough for 400 such members; a memcached that takes
# longer than this for all of it is as good as away, and an exchange is due twice per refresh interval.
EXCHANGE_BYTES_MAX = 64 << 20
EXCHANGE_S = 3.0
# memcached's own limit for a relative time. What expires is published again with the next exchange, as with any loss.
EXPIRE_S = 30 * 86400
# A member that was not there for so long is not read any more. Those that are there renew their record once a day.
MEMBER_DAYS = 30
MEMBERS_MAX = 1024
# Past this the list is written anew, with each member once: a month of daily records of 100 members is half of it.
LIST_BYTES_MAX = 192 << 10

_RECORD = struct.Struct(">QI")
"""The member, and the day on which it was there, as a date's ordinal."""
RECORD_BYTES = SEAL_BYTES + _RECORD.size

_decode = msgspec.msgpack.Decoder(CounterState).decode


class Cache(Protocol):
    """memcached. Each call may raise SourceError, after which what it was to store may be there or not."""

    @property
    def label(self) -> str: ...

    def begin(self, seconds: float, bytes_max: int) -> None: ...

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]: ...

    def set_many(self, values: Mapping[str, bytes], expire_s: int) -> None: ...

    def append(self, key: str, value: bytes, expire_s: int) -> None: ...


class Published:
    """What this process publishes, and what it knows of the others. `use` first; calls may raise SourceError."""

    def __init__(self, cache: Cache, prefix: str) -> None:
        self._cache = cache
        self._prefix = prefix
        self._seals = Seals()
        self._generation: str | None = None
        self._scope = ""
        self._day = 0
        self._announced: set[int] = set()
        """Members that this process publishes for."""
        self._there: dict[str, bytes] = {}
        """The buckets that were there when they were read last."""
        self.known: dict[int, CounterState] = {}
        """The most that each member was seen to have, with the day's counts of the current day as long as it lasts."""
        self.problem: str | None = None
        """What of that which was read last is nobody's word."""

    def use(self, seals: Seals, generation: str, day: int) -> None:
        """Begin an exchange: on this local day, for this store."""
        if generation != self._generation:
            self._generation = generation
            # A generation may be any text, a key may not.
            store = blake2b(generation.encode(), digest_size=8).hexdigest()
            self._scope = f"{self._prefix}count2:{store}:"
            self.known, self._there = {}, {}
        if day != self._day or seals.fingerprints != self._seals.fingerprints:
            # Buckets that were verified with a former key must be verified again.
            self._day, self._there = day, {}
        self._seals = seals

    def begin(self) -> None:
        self.problem = None
        self._cache.begin(EXCHANGE_S, EXCHANGE_BYTES_MAX)
        key = f"{self._scope}signer"
        signer = self._cache.get_many([key]).get(key)
        if signer is not None and not self._seals.knows(signer):
            self._ignore(OtherSecretError(signer[:FINGERPRINT_BYTES]))
        if signer != self._seals.fingerprint:
            self._cache.set_many({key: self._seals.fingerprint}, EXPIRE_S)

    def publish(self, member: int, counts: CounterState) -> None:
        """Put all that a member has where the others find it, from the next time on that `read` puts it among them."""
        buckets = self._in_buckets(member, counts)
        if buckets:
            self.announce(member)
            sealed = {key: self._seals.seal(key, msgspec.msgpack.encode(part)) for key, part in buckets.items()}
            self._cache.set_many(sealed, EXPIRE_S)

    def announce(self, member: int) -> None:
        """Have the next `read` see to it that the member is in the list."""
        self._announced.add(member)

    def read(self) -> None:
        """Take in what the members have now, and be among them."""
        members = self._members()
        keys = {self._bucket_key(member, bucket): member for member in members for bucket in range(BUCKETS)}
        before, self._there = self._there, {}
        for key, sealed in self._cache.get_many(list(keys)).items():
            if before.get(key) != sealed:
                try:
                    counts = self._open(key, sealed)
                except (SealError, msgspec.DecodeError) as error:
                    self._ignore(error)
                    continue
                self._take(self.known.setdefault(keys[key], {}), counts)
            self._there[key] = sealed

    def lacks(self, member: int, counts: CounterState) -> bool:
        """Whether a member had less than this when it was read last."""
        for key, part in self._in_buckets(member, counts).items():
            sealed = self._there.get(key)
            if sealed is None or self._open(key, sealed) != part:
                return True
        return False

    def sum_without(self, members: Collection[int]) -> dict[str, Figures]:
        """What all but these have, by campaign, with the current day's."""
        sums: dict[str, list[int]] = {}
        for member, known in self.known.items():
            if member not in members:
                for campaign, counts in known.items():
                    total = sums.setdefault(campaign, [0, 0, 0, 0])
                    for number, figure in enumerate(figures(counts, self._day)):
                        total[number] += figure
        return {campaign: (total[0], total[1], total[2], total[3]) for campaign, total in sums.items()}

    def _take(self, known: CounterState, counts: CounterState) -> None:
        for campaign, new in counts.items():
            old = known.get(campaign, NOTHING)
            if old[2] == self._day and new[2] != old[2]:
                today = old[2:]  # it has gone on to another day, and we have not
            elif old[2] == new[2]:
                today = (new[2], max(old[3], new[3]), max(old[4], new[4]))
            else:
                today = new[2:]
            known[campaign] = (max(old[0], new[0]), max(old[1], new[1]), *today)

    def _members(self) -> list[int]:
        """Those of the list, after this process's own were put into it where they were not."""
        key = f"{self._scope}members"
        listed = self._cache.get_many([key]).get(key, b"")
        days: dict[int, int] = {}
        for member, day in self._records(key, listed):
            if abs(self._day - day) <= MEMBER_DAYS:
                days[member] = max(day, days.get(member, 0))
        missing = [member for member in self._announced if days.get(member, 0) != self._day]
        days.update((member, self._day) for member in missing)
        if len(listed) > LIST_BYTES_MAX or len(listed) % RECORD_BYTES:
            everybody = b"".join(self._record(key, member, day) for member, day in days.items())
            self._cache.set_many({key: everybody}, EXPIRE_S)
        elif missing:
            added = b"".join(self._record(key, member, self._day) for member in missing)
            self._cache.append(key, added, EXPIRE_S)
        return sorted(days, key=lambda member: days[member], reverse=True)[:MEMBERS_MAX]

    def _records(self, key: str, listed: bytes) -> Iterator[tuple[int, int]]:
        """The members and their days; what is not signed by one of us is passed over."""
        for start in range(0, min(len(listed), 2 * LIST_BYTES_MAX) - RECORD_BYTES + 1, RECORD_BYTES):
            with suppress(SealError):
                yield _RECORD.unpack(self._seals.unseal(key, listed[start : start + RECORD_BYTES]))

    def _ignore(self, error: Exception) -> None:
        self.problem = f"{self._cache.label}: counts there are ignored: {error}"

    def _record(self, key: str, member: int, day: int) -> bytes:
        return self._seals.seal(key, _RECORD.pack(member, day))

    def _in_buckets(self, member: int, counts: CounterState) -> dict[str, CounterState]:
        buckets: dict[str, CounterState] = {}
        for campaign, figures_of_it in counts.items():
            key = self._bucket_key(member, crc32(campaign.encode()) % BUCKETS)
            buckets.setdefault(key, {})[campaign] = figures_of_it
        return buckets

    def _open(self, key: str, sealed: bytes) -> CounterState:
        return _decode(self._seals.unseal(key, sealed))

    def _bucket_key(self, member: int, bucket: int) -> str:
        return f"{self._scope}{member_name(member)}:{bucket}"


def member_name(member: int) -> str:
    return f"{member:015x}"
