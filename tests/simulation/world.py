"""A world in which nothing happens by chance: time, the order of things, and every fault follow from one seed.

The event loop's clock stands still while there is anything to do, and then jumps to the next timer. What blocks in a
process runs in a thread that has the world to itself until its next operation, where it gives the world back for a
while. Each operation has a number, and whatever can happen to it can be made to happen to the n-th.
"""

import asyncio
import random
import selectors
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from enum import Enum
from functools import partial
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

START_WALL = 1_790_000_000.0
SLOW_S = 15.0


class Killed(BaseException):  # like SystemExit: no part of a process may handle it
    """The process is no more."""


class Fault(Enum):
    """What can happen to an operation."""

    ERROR = "error"
    SHORT = "short"
    """Of a write: only some of it is done."""
    SLOW = "slow"
    KILL_BEFORE = "kill before"
    KILL_WITHIN = "kill within"
    """Of a write: some of it is done. Like KILL_AFTER for all others."""
    KILL_AFTER = "kill after"

    def __str__(self) -> str:
        return self.value


KILLS = (Fault.KILL_BEFORE, Fault.KILL_WITHIN, Fault.KILL_AFTER)


class Mortal(Protocol):
    """A process, as far as the world sees it."""

    name: str
    dead: bool

    def kill(self) -> None: ...


class _Selector(selectors.SelectSelector):
    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for ever"
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self.set_exception_handler(self._on_exception)
        self.exceptions: list[dict[str, Any]] = []

    def time(self) -> float:
        return self._virtual.now

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Killed):
            self.exceptions.append(context)


class World:
    """`faults` says what happens to which operation, counted from 1."""

    def __init__(self, seed: int, faults: Mapping[int, Fault]) -> None:
        self.chance = random.Random(seed)
        self.faults = faults
        self.trace: list[str] = []
        """Every operation, with its time."""

    @property
    def loop(self) -> VirtualLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop

    def operation(self, process: Mortal, what: str) -> Fault | None:
        """Count it; what happens to it."""
        if process.dead:
            raise Killed
        fault = self.faults.get(len(self.trace) + 1)
        self.trace.append(f"{self.now:.6f} {process.name} {what}{f' {fault.value}' if fault else ''}")
        return fault

    def bind(self, loop: VirtualLoop) -> None:
        """Threads have no running loop."""
        self._loop = loop

    @property
    def now(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return START_WALL + self.now

    def later(self, seconds: float, callback: Callable[[], object]) -> None:
        self._loop.call_later(seconds, callback)

    def soon(self, callback: Callable[[], object]) -> None:
        self._loop.call_soon(callback)


class SimulatedThread(Executor):
    """Does one call after the other, each up to its next operation at a time."""

    def __init__(self, world: World, process: Mortal) -> None:
        self._world = world
        self._process = process
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._busy = self._ended = False
        self._mine, self._worlds = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        if self._process.dead:
            raise Killed
        future: Future[T] = Future()
        self._calls.append((future, partial(fn, *args, **kwargs)))
        if not self._busy:
            self._busy = True
            self._world.soon(self._go_on)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """What was submitted is done all the same; `stop` ends the thread."""

    def stop(self) -> None:
        """At the end of the world."""
        self._process.dead = True
        self._go_on()
        self._thread.join()

    @property
    def now(self) -> float:
        return self._world.now

    def pause(self, seconds: float) -> None:
        """In the thread: let the world go on for so long. In no thread, as at a start, nothing can."""
        if threading.current_thread() is not self._thread:
            return
        self._world.later(seconds, self._go_on)
        self._worlds.release()
        self._mine.acquire()
        if self._process.dead:
            raise Killed

    def operate(self, what: str, act: Callable[[], T], error: Exception, some: Callable[[], T] | None = None) -> T:
        """An operation of the process, and what happens to it; `some` does a part of it."""
        world, process = self._world, self._process
        fault = world.operation(process, what)
        self.pause(SLOW_S if fault is Fault.SLOW else world.chance.uniform(0.0, 0.003))
        if fault is Fault.KILL_BEFORE:
            process.kill()
            raise Killed
        if fault is Fault.ERROR:
            raise error
        partly = some is not None and fault in (Fault.SHORT, Fault.KILL_WITHIN)
        result = some() if partly and some is not None else act()
        if fault in KILLS:
            process.kill()
            raise Killed
        self.pause(world.chance.uniform(0.0, 0.003))
        return result

    def _go_on(self) -> None:
        """On the loop: give the world to the thread until it pauses or has nothing more to do."""
        if not self._ended:
            self._mine.release()
            self._worlds.acquire()

    def _run(self) -> None:
        while not self._ended:
            self._mine.acquire()
            try:
                while self._calls and not self._process.dead:
                    self._do(*self._calls.popleft())
                self._ended = self._process.dead
            except Killed:
                self._ended = True
            self._busy = False
            self._worlds.release()

    def _do(self, future: "Future[Any]", call: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except Exception as error:  # it belongs to whoever waits for the future
            future.set_exception(error)
        else:
            future.set_result(result)
