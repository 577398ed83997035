"""What one input costs: every place where bytes come in, and a server that remembers nothing.

The promise (SECURITY.rst): no input takes more than 1 µs a byte, besides a constant for each request, for each read
that it comes in and for each slot that it asks for, and none takes the event loop for more than 20 ms in one turn.

Costs are counted in instructions, of which 7,500 stand for a microsecond
(`python -m tests.fuzz cost` measures the one that it runs on, and prints it).
"""

from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

from adcore.control.explain import explain_request
from adcore.core import agents, facts
from adcore.core.adtable import NOBODY_STANDS, build_table
from adcore.core.frequency import FrequencyMemory
from adcore.core.reason import Reason
from adcore.followed import Followed
from adcore.http1 import plain
from adcore.http1.request import Request
from tests.http1.fakes import Connection
from tests.inprocess import NOW, Process
from tests.inventories import campaign

INSTRUCTIONS_PER_US = 7500
BYTE_US = 1.0
TURN_US = 20_000.0
# A request that says as little as it can, its first record, and a look at all that is remembered of requests.
REQUEST_US = 250.0
# A part of a request, with a copy of what came before it: on average 9.9 µs for each byte of a header of 40 KiB, if
# each byte that is copied is an instruction, as callgrind counts (3.4 µs on the clock).
READ_US = 10.0
# A decision for one slot, with its record.
SLOT_US = 60.0
# To match and draw one campaign of a placement that was not asked about before in this way. A search of a million
# cases came to 97 % of 0.1 µs, which leaves nothing for a longer one or another Python; and where counts limit every
# campaign, which no visitor chooses, it is nearly twice that.
CAMPAIGN_US = 0.2
PROXIES = tuple(map(ip_network, ("192.0.2.0/24", "10.0.0.0/8", "1.1.1.0/24", "::/0")))


class Spent(NamedTuple):
    """What an input took, in the unit of the clock that it was measured with, and what it may take for each part."""

    turns: tuple[int, ...]
    """Of the event loop, each."""
    size: int
    requests: int
    slots: int
    reads: int = 1

    def allowed_us(self, campaigns: int) -> float:
        slot_us = SLOT_US + CAMPAIGN_US * campaigns
        requests_us = REQUEST_US * (1 + self.requests) + READ_US * (self.reads - 1)
        return BYTE_US * self.size + requests_us + slot_us * self.slots

    def ratio(self, campaigns: int, units_per_us: float) -> float:
        """Of what is allowed; above 1 the promise is broken."""
        of_all = sum(self.turns) / units_per_us / self.allowed_us(campaigns)
        return max(of_all, max(self.turns) / units_per_us / TURN_US)


class ColdServer:
    """A connection in front of the real handlers, which have seen no request before.

    `take` gives what was spent since its last call, in any unit, of which there are `units_per_us`.
    """

    def __init__(self, folder: Path, table: dict[str, Any], take: Callable[[], int], units_per_us: float) -> None:
        # Its table of lines that came once takes longer to make than a request to answer.
        plain.NEWCOMERS = 256
        self.process = Process(folder, campaign("a"))
        self.process.handlers.cors_origins = frozenset({"https://www.example.com"})
        self.process.handlers.delivery._trusted_peers = PROXIES
        built = build_table(table, revision=9)
        assert not built.rejected, built.rejected[:3]
        self.process.state.use(built, self.process.calendar.moment(NOW))
        self.table = built
        self.campaigns = max(len(index.ids) for index in built.placements.values())
        self.held = {
            name: (Reason.AHEAD_OF_SCHEDULE, Reason.BEHIND_SCHEDULE, Reason.GOAL_REACHED)[number % 3]
            for number, name in enumerate(name for name, campaign in built.campaigns.items() if campaign.goal)
        }
        self._take = take
        self._units_per_us = units_per_us
        self._turn_units = 0
        self._slots = 0
        fill = self.process.handlers.delivery.fill

        def counting_fill(table: Any, request: Request, query: Any, slots: Any) -> Any:
            self._slots += len(slots)
            return fill(table, request, query, slots)

        self.process.handlers.delivery.fill = counting_fill  # type: ignore[method-assign]

    def spend(self, data: bytes, last_reads: int = 0) -> Spent:
        """Receive `data` in one read, as uvloop gives up to 256 KiB, and answer all of it.

        The `last_reads` bytes at its end come in a read each.
        """
        self.forget()
        if data.startswith((b"GET /v1/click", b"GET /v1/view")):
            self._forget_links()
        self._slots = 0
        connection = Connection(
            self.process.handlers,
            before_answers=self.process.queue.commit,
            clock=lambda: NOW,
            stopwatch=self._stopwatch,
        )
        turns: list[int] = []
        end = max(len(data) - last_reads, 1)
        reads = [data[:end], *(data[at : at + 1] for at in range(end, len(data)))]
        for read in reads:
            self._begin_turn()
            connection.protocol.data_received(read)
            connection.loop.turn()
            turns.append(self._end_turn())
            if connection.transport.ended:
                break
        while connection.loop.soon:
            self._begin_turn()
            connection.loop.turn()
            turns.append(self._end_turn())
        spent = Spent(tuple(turns), len(data), len(connection.requests), self._slots, len(reads))
        assert connection.server.statistics.handler_errors == 0, "the handler failed"
        connection.protocol.connection_lost(None)
        return spent

    def explain(self, arguments: list[tuple[str, str]]) -> object:
        return explain_request(self.table, arguments, self.process.calendar, NOW)

    def forget(self) -> None:
        """Empty every memory that would make a second request cheaper than the first."""
        agents._parse_user_agent.cache_clear()
        facts._parse_accept_language.cache_clear()
        handlers, state, queue = self.process.handlers, self.process.state, self.process.queue
        delivery = handlers.delivery
        handlers._heads.clear()
        handlers._asked.clear()
        for memory in (delivery._profiles, delivery._profiles_by_values, delivery._networks, delivery._shown):
            memory.clear()
        delivery._forget_cases()
        delivery._nearest_stranger.cache_clear()
        for index in self.table.placements.values():
            index._drawings.clear()
            index._window.matches.clear()
            index._held, index._standing = {}, NOBODY_STANDS
        state.memory = FrequencyMemory()
        state.counters.held = dict(self.held)
        queue.take(1 << 30)
        queue.release(queue.bytes)

    def _forget_links(self) -> None:
        state = self.process.state
        state.clicks.close()
        state.views.close()
        state.clicks, state.views = (Followed.in_memory(3600.0) for _ in range(2))

    def _begin_turn(self) -> None:
        self._turn_units = 0
        self._take()

    def _end_turn(self) -> int:
        return self._turn_units + self._take()

    def _stopwatch(self) -> float:
        """Seconds of this turn, as they are counted."""
        self._turn_units += self._take()
        return self._turn_units / self._units_per_us / 1e6
