"""A store and a memcached that do nothing by themselves, with faults that real ones cannot be made to have on cue."""

from collections.abc import Callable

from adcore.errors import SourceError
from adcore.sources import Revision, Rows
from adcore.sources.seal import Seals
from tests.inventories import campaign, document


def rows(revision: int, size: int = 10, confirmed: int = 0, generation: str = "first") -> Rows:
    return Rows(Revision(generation, revision, confirmed), document(*(campaign(f"c{n}") for n in range(size))))


class FakeStore:
    """A store with the rows that it is given."""

    label = "store"

    def __init__(self) -> None:
        self.rows = rows(1)
        self.away = False
        self.failing = ""
        self.on_revision: Callable[[], None] = lambda: None
        self.calls: list[str] = []
        self.closed = False

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if self.away or call == self.failing:
            raise SourceError("store: away")

    def revision(self) -> Revision:
        self._answer("revision")
        self.on_revision()
        return self.rows.revision

    def load(self) -> Rows:
        self._answer("load")
        return self.rows

    def close(self) -> None:
        self.closed = True


class FakeSnapshot:
    """A memcached shared by the processes of a test."""

    label = "memcached"

    def __init__(self) -> None:
        self.rows: Rows | None = None
        self.holder: str | None = None
        self.locked_at = 0.0
        self.away = False
        self.published = 0

    def of(self, owner: str) -> "FakeClient":
        return FakeClient(self, owner)


class FakeClient:
    label = "memcached"
    seals: Seals

    def __init__(self, shared: FakeSnapshot, owner: str) -> None:
        self.shared = shared
        self.owner = owner
        self.problem: str | None = None

    def begin(self) -> None:
        pass

    def _check(self, call: str) -> None:
        if self.shared.away:
            raise SourceError("memcached: away")

    def revision(self) -> Revision | None:
        self._check("revision")
        held = self.shared.rows
        return None if held is None else held.revision

    def load(self) -> Rows | None:
        self._check("load")
        return self.shared.rows

    def publish(self, published: Rows) -> None:
        self._check("publish")
        self.shared.rows = published
        self.shared.published += 1

    def lock(self) -> bool:
        self._check("lock")
        if self.shared.holder not in (None, self.owner):
            return False
        self.shared.holder = self.owner
        return True

    def unlock(self) -> None:
        self._check("unlock")
        if self.shared.holder == self.owner:
            self.shared.holder = None

    def close(self) -> None:
        pass
