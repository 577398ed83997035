"""The queue and its spools: paid records before all others, every drop counted, and no byte astray."""

import fcntl
import random
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from adcore.control.rates import take_sample
from adcore.deliverylog.queue import UNPAID_SHARE, RecordQueue
from adcore.deliverylog.reader import Damage, read_records
from adcore.deliverylog.record import FORMS, AnyRecord, Impressed, Unfilled, type_of
from adcore.deliverylog.spool import Spools, take_over
from adcore.deliverylog.writer import LogWriter
from adtools.control import Host
from tests.records import click, unfilled, view

FORM = FORMS["msgpack"]
SIZE = len(FORM.encode(click(1)))


def impression(number: int, *, ivt: bool = False) -> Impressed:
    fields = FORM.fields
    table = fields({"generation": "g", "revision": 1})
    ad = fields({"placement": "top", "campaign": "spring", "creative": "spring-1", "host": "h"})
    of_visitor = {"device": "mobile", "os": "ios", "country": "JP", "languages": (), "keywords": (), "key_values": ()}
    visitor = fields({**of_visitor, "ivt": ivt, "hour": 9, "weekday": 0, "excluded": {}})
    return table, ad, visitor, fields({"ip": ""}), fields({"user": ""}), 0.5, float(number), b"%032x" % number


def is_paid(record: AnyRecord) -> bool:
    return not (record.ivt or isinstance(record, Unfilled))


UNPAID: tuple[AnyRecord, ...] = (unfilled(), unfilled(ivt=True), click(ivt=True), view(ivt=True))


@pytest.mark.parametrize("unpaid", UNPAID, ids=type_of)
def test_unpaid_records_have_half_of_the_queue(unpaid: AnyRecord) -> None:
    size = len(FORM.encode(unpaid))
    queue = RecordQueue(10 * size, FORM)
    assert [bool(queue.put(unpaid)) for _ in range(10)] == [True] * 5 + [False] * 5
    assert queue.unpaid.bytes == queue.bytes == 10 * size * UNPAID_SHARE
    assert (queue.dropped, queue.dropped_paid) == (Counter({type_of(unpaid): 5}), Counter())


def test_impressions_of_robots_are_not_paid() -> None:
    queue = RecordQueue(1 << 20, FORM)
    queue.impressions.append(impression(1))
    queue.robot_impressions += [impression(2, ivt=True), impression(3, ivt=True)]
    queue.commit()
    assert queue.impressions == queue.robot_impressions == []
    assert (len(queue), queue.accepted) == (3, Counter(impression=3))
    assert queue.unpaid.bytes > queue.paid.bytes > 0
    full = RecordQueue(100, FORM)
    full.impressions.append(impression(1))
    full.robot_impressions += [impression(2, ivt=True), impression(3, ivt=True)]
    full.commit()
    assert (full.dropped, full.dropped_paid) == (Counter(impression=3), Counter(impression=1))


def test_a_paid_record_takes_the_place_of_the_newest_unpaid_ones() -> None:
    queue = RecordQueue(4 * SIZE, FORM)
    for number in range(4):
        queue.put(click(number, ivt=True))
    assert len(queue) == 2
    for number in range(10, 13):
        assert queue.put(view(number))
    assert (queue.dropped, queue.dropped_paid) == (Counter(click=3), Counter())
    assert queue.dropped_late == Counter(click=1)
    assert queue.accepted == Counter(click=2, view=3)
    assert queue.put(view(13))
    assert not queue.put(view(14))
    assert (queue.dropped, queue.dropped_paid) == (Counter(click=4, view=1), Counter(view=1))
    assert not queue.put(click(15, ivt=True))
    taken = queue.take(1 << 20)
    assert [batch.kind for batch in taken] == ["view"] * 4
    assert queue.bytes_high == 2 * SIZE + 2 * len(FORM.encode(view(1)))


def test_a_record_that_gave_way_counts_once_among_those_asked_for(tmp_path: Path) -> None:
    queue = RecordQueue(4 * SIZE, FORM)
    for number in range(3):
        queue.put(click(number, ivt=True))
    for number in range(4):
        queue.put(click(number))
    assert (queue.dropped, queue.dropped_late) == (Counter(click=3), Counter(click=2))
    status = {
        "log": LogWriter(queue, tmp_path / "log").statistics(),
        "connections": {"requests": 0},
        "gc": {"count": 0, "pause_total_s": 0.0},
        "process": {"cpu_s": 0.0},
    }
    counts = take_sample(status, {}).counts
    assert (counts["click"], counts["log_dropped"], counts["log_dropped_paid"]) == (7, 3, 0)
    assert Host(status).records() == {"click": 7}


def test_records_leave_in_the_order_in_which_they_came() -> None:
    queue = RecordQueue(1 << 20, FORM)
    kinds: list[AnyRecord] = [click(1), unfilled(2), view(3, ivt=True), click(4, ivt=True), view(5)]
    for record in kinds:
        queue.put(record)
    assert [batch.kind for batch in queue.take(1 << 20)] == [type_of(record) for record in kinds]


def test_what_the_writer_has_is_not_taken_back_and_cannot_fill_the_reserved_half() -> None:
    queue = RecordQueue(10 * SIZE, FORM)
    for number in range(10):
        queue.put(click(number, ivt=True))
    taken = queue.take(queue.bytes_max + 1)
    assert sum(len(batch.lengths) for batch in taken) == 5
    assert [bool(queue.put(view(number))) for number in range(7)] == [True] * 5 + [False] * 2
    queue.release(5 * SIZE)
    assert [bool(queue.put(view(number))) for number in range(7)] == [True] * 5 + [False] * 2


def test_what_is_kept_of_both_lanes_decides_what_is_said_at_the_end(tmp_path: Path) -> None:
    spools = Spools(tmp_path, 4096, 4096)
    queue = RecordQueue(1 << 20, FORM, spools.paid, spools.unpaid)
    queue.put(click(1))
    assert queue.is_kept
    for number in range(4096 // SIZE + 1):
        queue.put(view(number, ivt=True))
    assert not queue.is_kept
    alone = RecordQueue(1 << 20, FORM, spools.paid)
    alone.put(unfilled(1))
    assert not alone.is_kept
    spools.close()


def records_in(data: bytes) -> list[AnyRecord]:
    found = []
    for one in read_records(BytesIO(data)):
        assert not isinstance(one, Damage)
        found.append(one)
    return found


class Run:
    """A queue with its spools and log, to which anything is done; and what must be true of it at any moment."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.log_path = folder / "log"
        self.number = 0
        self.made_room = 0
        self.start()

    def start(self) -> None:
        self.spools = Spools(self.folder, 3000, 1500)
        self.queue = RecordQueue(4000, FORM, self.spools.paid, self.spools.unpaid)
        self.offered: Counter[str] = Counter()
        self.lengths: list[int] = []
        self.left = b""
        """What was taken and not written yet, and the lengths of its records."""

    def offer(self) -> None:
        self.number += 1
        queue, ivt = self.queue, self.chance.random() < 0.5
        lost = queue.dropped_paid.total()
        gives_way = sum(len(batch.data) for batch in queue.unpaid.waiting)
        room = queue.bytes_max - queue.bytes + gives_way
        if self.chance.random() < 0.4:
            self.offered["impression"] += 1
            (queue.robot_impressions if ivt else queue.impressions).append(impression(self.number, ivt=ivt))
            queue.commit()
        else:
            make: Callable[..., AnyRecord] = self.chance.choice((click, view, unfilled))
            record = make(self.number, ivt=ivt)
            self.offered[type_of(record)] += 1
            queue.put(record)
        self.made_room = queue.dropped_late.total()
        # Only when not even all unpaid ones that wait would have been enough.
        assert queue.dropped_paid.total() == lost or room < 500

    def write(self, *, released: bool = True) -> None:
        """Begin with another batch, or write some more records of the last one; `released=False` is a kill right after
        the system call."""
        with self.log_path.open("ab") as log:
            if not self.left:
                self.spools.note_log(log.fileno())
                taken = self.queue.take(self.chance.choice((1, 2000)))
                self.lengths = [length for batch in taken for length in batch.lengths]
                self.left = b"".join(batch.data for batch in taken)
            count = self.chance.randrange(1, 6)
            size = sum(self.lengths[:count])
            del self.lengths[:count]
            log.write(self.left[:size])
            self.left = self.left[size:]
        if released:
            self.queue.release(size)

    def kill_and_take_over(self) -> None:
        """The files have what no log has, unless more waited than they hold."""
        queue, spools = self.queue, self.spools
        if self.chance.random() < 0.5:
            self.write(released=False)
        waiting = records_in(self.left + b"".join(batch.data for batch in queue.take(1 << 20)))
        for spool in (spools.paid, spools.unpaid):
            fcntl.flock(spool._fd, fcntl.LOCK_UN)
        successor = RecordQueue(1 << 20, FORM)
        take_over(self.folder, self.log_path, successor)
        found = records_in(b"".join(batch.data for batch in successor.take(1 << 20)))
        for paid, spool in ((True, spools.paid), (False, spools.unpaid)):
            there, wanted = (
                Counter(record.id for record in records if is_paid(record) is paid) for records in (found, waiting)
            )
            assert there == wanted if spool.complete else there <= wanted
        self.start()

    def check(self) -> None:
        queue = self.queue
        assert queue.bytes <= queue.bytes_max
        assert queue.unpaid.bytes <= queue.unpaid.bytes_max
        waiting = [batch for lane in (queue.paid, queue.unpaid) for batch in lane.waiting]
        assert len(queue) == sum(len(batch.lengths) for batch in waiting)
        assert queue.bytes == sum(len(batch.data) for batch in waiting) + len(self.left)
        assert queue.accepted + queue.dropped - queue.dropped_late == self.offered
        assert queue.dropped_paid <= queue.dropped


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_done_to_it_every_record_is_written_kept_or_counted(tmp_path: Path, seed: int) -> None:
    run = Run(tmp_path, seed)
    made_room = 0
    for _ in range(600):
        run.chance.choices((run.offer, run.write, run.kill_and_take_over), (12, 3, 0.2))[0]()
        run.check()
        made_room += run.made_room
    assert made_room > 0
    records = records_in(run.log_path.read_bytes())
    assert len({record.id for record in records}) == len(records) > 100
