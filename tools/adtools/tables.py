"""The tables that the records of a log were decided on, from the archives that the servers keep."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from adcore.core.adtable import AdTable, build_table
from adcore.core.calendar import Moment
from adcore.core.facts import Facts
from adcore.core.hindsight import Past
from adcore.deliverylog.record import Answer
from adcore.errors import SourceError
from adcore.sources.archive import TableArchive

# Workers swap tables within a second or two of each other, so records of two alternate. 100,000 creatives take 200 MB.
TABLES_MAX = 2


class Tables:
    """Tables by the record that names them; the last few are kept."""

    def __init__(self, folder: Path) -> None:
        self.archive = TableArchive(folder)
        self._kept: OrderedDict[tuple[str, int], tuple[Sequence[AdTable], str]] = OrderedDict()

    def of(self, record: Answer) -> tuple[Sequence[AdTable], str]:
        """What it can have been decided on, and why that is nothing.

        Mostly one table; several when a store was set back, or for an old record that names no store.
        """
        key = (record.generation, record.revision)
        found = self._kept.get(key)
        if found is None:
            found = self._load(key)
            self._kept[key] = found
            if len(self._kept) > TABLES_MAX:
                self._kept.popitem(last=False)
        return found

    def _load(self, key: tuple[str, int]) -> tuple[Sequence[AdTable], str]:
        generation, number = key
        try:
            documents = self.archive.load(key)
        except SourceError as error:
            return (), str(error)
        if not documents:
            return (), f"{self.archive.label} has no revision {number} of the store {generation or 'that is not named'}"
        return [build_table(document, revision=number, generation=generation) for document in documents], ""


def past_of(record: Answer) -> Past:
    """What a record says of the request."""
    facts = Facts(
        record.device,
        record.os,
        record.country,
        record.languages,
        record.keywords,
        record.key_values,
        record.ivt,
    )
    # The local day matters only to the counts, whose verdict is in the record.
    return Past(record.placement, facts, Moment(record.time, record.hour, record.weekday, 0), record.excluded)
