"""Why campaigns were not shown, counted from a sample of the log for `adctl collect`.

One answer in SAMPLE is looked at, chosen by the last digits of its id (the first ones are the draw): the same ones
whoever looks, and each stands for SAMPLE requests. `Sampling` decodes them in full, where the collector decodes only
what it counts; `Refusals` finds their tables and the first reason against each candidate. Robots are left out.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date

from adcore.core.adtable import PlacementIndex
from adcore.core.calendar import Calendar
from adcore.core.hindsight import fallen
from adcore.core.reason import Reason
from adcore.deliverylog.record import RECORDS, Answer, Decoder, Impression
from adcore.sources.results import RefusalKey
from adtools.aggregate import AnyCounted
from adtools.tables import Tables, past_of

SAMPLE = 64

_CHOSEN = frozenset(f"{number:02x}" for number in range(0, 256, SAMPLE))


def is_chosen(impression_id: str) -> bool:
    """Whether this answer is one of the sample."""
    return impression_id[-2:] in _CHOSEN


class Sampling(Decoder[AnyCounted]):
    """Decodes what the collector counts, and the chosen answers in full besides."""

    def __init__(self) -> None:
        super().__init__(AnyCounted)
        self._chosen: list[Answer] = []

    def take(self) -> list[Answer]:
        """Those that were decoded since the last call."""
        chosen, self._chosen = self._chosen, []
        return chosen

    def line(self, line: bytes) -> AnyCounted:
        record = super().line(line)
        if is_chosen(record.id):
            self._keep([RECORDS.line(line)])
        return record

    def payload(self, payload: bytes) -> AnyCounted:
        record = super().payload(payload)
        if is_chosen(record.id):
            self._keep([RECORDS.payload(payload)])
        return record

    def lines(self, data: bytes) -> list[AnyCounted]:
        records = super().lines(data)
        positions = _chosen_among(records)
        if positions:
            lines = [line for line in data.split(b"\n") if line]
            self._keep(RECORDS.lines(b"\n".join([lines[at] for at in positions])))
        return records

    def payloads(self, payloads: Sequence[bytes]) -> list[AnyCounted]:
        records = super().payloads(payloads)
        self._keep(RECORDS.payloads([payloads[at] for at in _chosen_among(records)]))
        return records

    def _keep(self, records: Iterable[object]) -> None:
        self._chosen += [record for record in records if isinstance(record, Answer) and not record.ivt]


def _chosen_among(records: Sequence[AnyCounted]) -> list[int]:
    return [at for at, record in enumerate(records) if record.id[-2:] in _CHOSEN]


class Refusals:
    """Counts answers of the sample, whose tables are in an archive, by the days of `calendar`.

    Campaigns are counted together, by masks of their placement's index, and told apart only when they are taken.
    """

    def __init__(self, tables: Tables, calendar: Calendar) -> None:
        self._tables = tables
        self._calendar = calendar
        self._answers: Counter[tuple[int, PlacementIndex]] = Counter()
        self._fallen: Counter[tuple[int, PlacementIndex, Reason, int]] = Counter()
        self._shown: Counter[tuple[int, PlacementIndex, str]] = Counter()
        self.without_table = 0
        """Answers that nothing can be said about."""
        self.why = ""

    def add(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            if not answer.generation:
                continue  # of before there were archives
            tables, why = self._tables.of(answer)
            if why:
                self.without_table += 1
                self.why = why
                continue
            index = tables[0].placements.get(answer.placement)
            if index is None:
                continue
            try:
                reasons = [(reason, mask) for reason, mask in fallen(index, past_of(answer)) if mask]
            except ValueError:
                continue  # a reason of a later version's, say; replay names it
            day = self._calendar.moment(answer.time).day
            self._answers[day, index] += 1
            for reason, mask in reasons:
                self._fallen[day, index, reason, mask] += 1
            if isinstance(answer, Impression):
                self._shown[day, index, answer.campaign] += 1

    def counts(self) -> dict[RefusalKey, int]:
        """Requests since the last `clear`."""
        counts: Counter[RefusalKey] = Counter()

        def count(day: int, campaign: str, index: PlacementIndex, reason: Reason, answers: int) -> None:
            counts[date.fromordinal(day).isoformat(), campaign, index.placement.id, reason.value] += answers * SAMPLE

        for (day, index), answers in self._answers.items():
            for campaign, reason in index.absent.items():
                count(day, campaign, index, reason, answers)
        for (day, index, reason, mask), answers in self._fallen.items():
            for campaign in index.ids_in(mask):
                count(day, campaign, index, reason, answers)
        for (day, index, campaign), answers in self._shown.items():
            # Whoever was shown was in the draw, and did not lose it.
            count(day, campaign, index, Reason.LOST_DRAW, -answers)
        return {key: requests for key, requests in counts.items() if requests > 0}

    def clear(self) -> None:
        for counted in (self._answers, self._fallen, self._shown):
            counted.clear()
