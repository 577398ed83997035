"""The parent of several workers: holds the socket, starts them, restarts the dead, rolls over on HUP.

It binds the listening socket and never lets go of it, so that connections wait there while any worker is replaced. A
worker is a fork of the fork server (forkserver.py), with a seat (seat.py). That is a new interpreter, started with the
parent's own command line, and another one with each HUP: a fork of the parent would keep its code for ever.

    starting ──ready──► serving ──let go──► draining ──► gone
        └──────── ends by itself ────────────────────────► gone, and another one starts after a pause

HUP replaces the workers one after the other: the old one is let go only when the new one is ready, so a version that
cannot start leaves the old ones serving. To let go is to close the parent's end of a socket pair. It is no signal,
because systemd sends TERM to every process of a unit besides, and a second TERM means hurry; and the parent's death
closes it as well.

Imports nothing that serves ads.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from adcore import __version__, errorlog, forkserver
from adcore.config import Config
from adcore.control.server import ControlServer
from adcore.control.workers import WorkersControl, WorkerView
from adcore.errors import StartError
from adcore.forkserver import START_S, STATUS_S, ForkClient, Forked, ForkError, read_answer
from adcore.listen import (
    CONTROL_BACKLOG,
    Listener,
    control_names,
    open_control,
    open_listener,
    parse_address,
    serve,
    unix_path_problem,
)
from adcore.notify import Notifier
from adcore.pidfile import PidFile
from adcore.seat import HELD_BACK, READY, WORKER, Loads, control_path

log = logging.getLogger("adcore.workers")

# Pauses before a worker that ended by itself is started again. One accident costs nobody a second; a worker that
# cannot live costs a start every half minute.
RESTART_PAUSE_MIN_S = 0.1
RESTART_PAUSE_MAX_S = 30.0
# After it has served for so long the next death is an accident again: visitors wait, and restarting whatever serves for
# most of its life costs less than half a core.
STABLE_S = 1.0
# A table of 100,000 creatives takes seconds; a successor that needs longer than this has a problem.
READY_MAX_S = 120.0
# The fork server imports all before its first answer.
IMPORTS_MAX_S = 60.0
# A worker's own drain may take the graceful timeout for connections and again for the log; then it is stuck.
STUCK_S = 5.0
# What a hurry leaves them to write the log.
HURRY_S = 3.0
# A worker has handlers for these until it has finished, so they can end it only while its interpreter goes away. None:
# its fork server was killed (which is logged), or hangs.
ENDED_WELL = (0, -signal.SIGINT, -signal.SIGTERM, None)
# Linux's own bound (proc(5), pid_max).
PID_MAX = 1 << 22
# What tells a service manager's child that it is one is the parent's.
_PARENTS_OWN = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def run(config: Config) -> int:
    """Keep `config.workers` workers serving until a signal says stop; the exit status. Raises StartError."""
    errorlog.install()
    return asyncio.run(Parent(config).run())


class Backoff:
    """How long to wait before the next start: twice as long after each that served for a moment only, or never."""

    def __init__(self) -> None:
        self._pause_s = RESTART_PAUSE_MIN_S

    def after(self, served_s: float) -> float:
        if served_s >= STABLE_S:
            self._pause_s = RESTART_PAUSE_MIN_S
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, RESTART_PAUSE_MAX_S)
        return pause_s


class Worker:
    """One worker process, from its start to its end."""

    def __init__(self, number: int, slot: int, process: Forked, line: socket.socket) -> None:
        self.number = number
        self.slot = slot
        """In the page of connection counts."""
        self.process = process
        self.started_monotonic = time.monotonic()
        self.is_let_go = False
        self.ready = asyncio.Event()
        self._ready_monotonic = float("inf")
        self._line = line
        asyncio.get_running_loop().add_reader(line, self._on_line)
        self.gone = asyncio.ensure_future(ended(process))
        """Its exit status, negative for a signal's number, None for one that is not known."""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_gone(self) -> bool:
        return self.gone.done()

    @property
    def state(self) -> str:
        return "draining" if self.is_let_go else "serving" if self.ready.is_set() else "starting"

    @property
    def served_s(self) -> float:
        """How long it has been serving."""
        return max(0.0, time.monotonic() - self._ready_monotonic)

    def let_go(self) -> None:
        """Have it drain and end."""
        self.is_let_go = True
        self._hang_up()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def becomes_ready(self) -> bool:
        """Wait until it serves; False when it has ended, or READY_MAX_S are over, before that."""
        ready = asyncio.ensure_future(self.ready.wait())
        await asyncio.wait([ready, self.gone], timeout=READY_MAX_S, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        return self.ready.is_set() and not self.is_gone

    async def ends(self, within_s: float) -> None:
        """Wait until it has ended, and see to it when it takes longer than `within_s`."""
        done, _ = await asyncio.wait([self.gone], timeout=within_s)
        if not done:
            log.error("%s does not end; it is killed", self)
            self.process.kill()
            await self.gone

    def close(self) -> None:
        """It is gone."""
        self._hang_up()

    def _on_line(self) -> None:
        said = b""
        with contextlib.suppress(OSError):
            said = self._line.recv(16)
        if READY in said:
            log.info("%s is ready", self)
            self._ready_monotonic = time.monotonic()
            self.ready.set()
        elif not said:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._line.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._line)
            self._line.close()

    def __str__(self) -> str:
        return f"worker {self.number}, pid {self.pid},"


class ForkServerProcess:
    """A fork server, and the way to it."""

    def __init__(self, client: ForkClient, process: Process) -> None:
        self.client = client
        self.has_answered = False
        """Whether it has imported what it forks."""
        self._process = process

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        self.client.close()


class Parent:
    """Keeps the workers. `current` has the one of each number that shall serve, also while it starts or is dead."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.numbers = range(1, config.workers + 1)
        self.started_monotonic = time.monotonic()
        self.restarts = 0
        self.rollovers = 0
        self.failed_rollovers = 0
        self.current: dict[int, Worker] = {}
        self.workers: list[Worker] = []
        """All that live."""
        self._backoffs = {number: Backoff() for number in self.numbers}
        self._places = {number: asyncio.Lock() for number in self.numbers}
        """Held while it is decided who is the current one."""
        self._loads = Loads.create(2 * config.workers)
        self._forks: ForkServerProcess | None = None
        """The fork server that starts the next worker."""
        self._forking = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_started = False
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._rollover_wanted = asyncio.Event()
        self._notifier = Notifier()

    async def run(self) -> int:
        self._listen_to_signals()
        with contextlib.ExitStack() as on_exit:
            on_exit.callback(self._notifier.close)
            reporting = asyncio.ensure_future(self._notifier.report(self._summary))
            on_exit.callback(reporting.cancel)
            if self.config.pid_file is not None:
                on_exit.enter_context(PidFile(self.config.pid_file))
            self._listener = open_listener(self.config)
            on_exit.callback(self._listener.close)
            control = open_control_listener(self.config)
            if control is not None:
                on_exit.callback(control.close)
                server = ControlServer(WorkersControl(self._views, self._status), hosts=control_names(self.config))
                accepting = await serve(asyncio.get_running_loop(), control, server, CONTROL_BACKLOG)
                on_exit.callback(accepting.close)
                on_exit.callback(server.abort)
            try:
                await self._first_start()
                await self._until_stopping(self._roll_over_when_wanted())
            finally:
                clean = await self._stop()
        return 0 if clean else 1

    # Starting

    async def _first_start(self) -> None:
        """One, and when that is ready the others: what keeps one from starting keeps all. Raises StartError."""
        first, *others = self.numbers
        for group in ([first], others):
            await self._until_stopping(self._start_all(group))
        if not self._stopping.is_set():
            self._has_started = True
            # What is here now stays. Python puts a full collection off until a quarter more has survived than the last
            # one left, and the second one here leaves nothing: what control connections leave does not pile up.
            gc.collect()
            gc.freeze()
            gc.collect()
            log.info("serving on %s with %d workers, pid %d", self._listener.describe, len(self.numbers), os.getpid())
            self._notifier.ready(self._summary())

    async def _start_all(self, numbers: list[int]) -> None:
        """Start these, and wait until all are ready. Raises StartError."""
        for number in numbers:
            self.current[number] = await self._start(number)
        for worker in [self.current[number] for number in numbers]:
            ready = asyncio.ensure_future(worker.ready.wait())
            # However long: it answers 503 until a source gives it a table.
            await asyncio.wait([ready, worker.gone], return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if not worker.ready.is_set() and not self._stopping.is_set():
                raise StartError(f"worker {worker.number} could not start: it {describe_end(worker.gone.result())}")

    async def _start(self, number: int) -> Worker:
        """Start a process for this number. Raises ForkError."""
        taken = {worker.slot for worker in self.workers}
        slot = next(slot for slot in (number - 1, number - 1 + len(self.numbers)) if slot not in taken)
        seat: dict[str, object] = {
            "number": number,
            "slot": slot,
            "slots": 2 * len(self.numbers),
            "alone": not any(worker.state == "serving" for worker in self.workers),
        }
        mine, its = socket.socketpair()
        mine.setblocking(False)
        try:
            process = await self._fork(seat, (self._listener.sock.fileno(), its.fileno(), self._loads.fd))
        except BaseException:
            mine.close()
            raise
        finally:
            its.close()
        worker = Worker(number, slot, process, mine)
        self.workers.append(worker)
        self._spawn(self._see_off(worker))
        if self._stopping.is_set():
            worker.let_go()
        return worker

    async def _fork(self, seat: dict[str, object], fds: tuple[int, ...]) -> Forked:
        """Have the fork server start a worker; without one, or when it is dead, a new fork server. Raises ForkError."""
        async with self._forking:
            for _ in range(2):
                forks = self._forks = self._forks or await self._start_fork_server()
                with contextlib.suppress(ForkError):
                    line = forks.client.ask({"run": WORKER, "seat": seat}, (*fds, forks.client.sock.fileno()))
                    break
                forks.close()
                self._forks = None
            else:
                raise ForkError("the fork server has ended as soon as it was started")
        timeout_s = START_S if forks.has_answered else IMPORTS_MAX_S
        try:
            await asyncio.wait_for(readable(line.fileno()), timeout_s)
            process = read_answer(line)
        except BaseException as error:
            line.close()
            if isinstance(error, TimeoutError):
                forks.kill()  # so that the next start has another one
                raise ForkError(f"the fork server has not answered within {timeout_s:.0f} s") from None
            raise
        forks.has_answered = True
        return process

    async def _start_fork_server(self) -> ForkServerProcess:
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: value for name, value in os.environ.items() if name not in _PARENTS_OWN}
        with its, signals_held_back():
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *sys.orig_argv[1:],
                env={**environment, forkserver.VARIABLE: str(its.fileno())},
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(its.fileno(),),
            )
        self._spawn(self._see_off_fork_server(process))
        return ForkServerProcess(ForkClient(mine), process)

    async def _see_off_fork_server(self, process: Process) -> None:
        """Reap it. It ends after the last worker that uses it; anything else is logged."""
        status = await process.wait()
        if status:
            log.error("the fork server, pid %d, %s", process.pid, describe_end(status))

    async def _see_off(self, worker: Worker) -> None:
        """Wait for its end, tidy up after it, and start another one if it should have lived."""
        status = await worker.gone
        worker.close()
        self.workers.remove(worker)
        self._loads.leave(worker.slot)
        control_path(self.config.state_dir, worker.pid).unlink(missing_ok=True)
        if worker.is_let_go:
            (log.info if status in ENDED_WELL else log.error)("%s %s", worker, describe_end(status))
            return
        # One that somebody told to end can live.
        can_live = worker.ready.is_set() and status is not None and status in ENDED_WELL
        served_s = math.inf if can_live else worker.served_s
        log.error("%s %s after %.1f s", worker, describe_end(status), time.monotonic() - worker.started_monotonic)
        if not worker.ready.is_set() and not self._has_started:
            return  # _first_start says what that means
        pause_s = self._backoffs[worker.number].after(served_s)
        if self.current.get(worker.number) is worker:
            log.info("worker %d is started again in %.1f s", worker.number, pause_s)
            await self._until_stopping(asyncio.sleep(pause_s))
        while not await self._succeed(worker):
            pause_s = self._backoffs[worker.number].after(0.0)
            log.info("worker %d: it is tried again in %.1f s", worker.number, pause_s)
            await self._until_stopping(asyncio.sleep(pause_s))

    async def _succeed(self, worker: Worker) -> bool:
        """Start another one in the place of one that is gone, if it is its place still; False if that can't be."""
        async with self._places[worker.number]:
            if self.current.get(worker.number) is worker and not self._stopping.is_set():
                try:
                    await self._until_stopping(self._start_again(worker.number))
                except ForkError as error:
                    log.error("worker %d: %s", worker.number, error)
                    return False
        return True

    async def _start_again(self, number: int) -> None:
        self.current[number] = await self._start(number)
        self.restarts += 1

    # Rolling over

    async def _roll_over_when_wanted(self) -> None:
        while True:
            await self._rollover_wanted.wait()
            self._rollover_wanted.clear()
            log.info("HUP: replacing %d workers, one at a time", len(self.numbers))
            self._notifier.reloading()
            former, self._forks = self._forks, None
            try:
                if await self._replace_all():
                    self.rollovers += 1
                    log.info("HUP: all workers are replaced")
                else:
                    self.failed_rollovers += 1
                    former, self._forks = self._forks, former
            finally:
                if former is not None:
                    former.close()
            self._notifier.ready(self._summary())

    async def _replace_all(self) -> bool:
        for number in self.numbers:
            if not await self._replace(number):
                log.error("HUP: the new worker %d does not start; the old one goes on, and those after it", number)
                return False
        return True

    async def _replace(self, number: int) -> bool:
        async with self._places[number]:
            old = self.current[number]
            try:
                new = await self._start(number)
            except ForkError as error:
                log.error("%s", error)
                return False
            if not await new.becomes_ready():
                if not new.is_gone:
                    log.error("%s is not ready after %d s", new, READY_MAX_S)
                    new.let_go()
                    await new.ends(HURRY_S)
                return False
            self.current[number] = new
        old.let_go()
        await old.ends(self._drain_max_s)
        return True

    # Stopping

    async def _stop(self) -> bool:
        """End all workers, in order unless there is a hurry; whether all ended well."""
        self._notifier.stopping("the workers finish what is under way")
        self._stopping.set()
        ending = list(self.workers)
        for worker in ending:
            worker.let_go()
        hurrying = asyncio.ensure_future(self._hurrying.wait())
        all_gone = asyncio.gather(*(worker.gone for worker in ending))
        waits: list[asyncio.Future[Any]] = [all_gone, hurrying]
        await asyncio.wait(waits, timeout=self._drain_max_s, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        for worker in ending:
            worker.signal(signal.SIGINT)
        await asyncio.gather(*(worker.ends(HURRY_S) for worker in ending))
        if self._forks is not None:
            self._forks.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=HURRY_S)
        if self._forks is not None:
            self._forks.kill()
        return all(worker.gone.result() in ENDED_WELL for worker in ending)

    @property
    def _drain_max_s(self) -> float:
        return 2 * self.config.graceful_timeout + STUCK_S

    # Signals

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_term)
        loop.add_signal_handler(signal.SIGINT, self._on_int)
        loop.add_signal_handler(signal.SIGHUP, self._rollover_wanted.set)
        loop.add_signal_handler(signal.SIGUSR1, self._on_usr1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    def _on_term(self) -> None:
        if self._stopping.is_set():
            self._hurrying.set()
        else:
            log.info("TERM: the workers finish what is under way")
            self._stopping.set()

    def _on_int(self) -> None:
        self._stopping.set()
        self._hurrying.set()

    def _on_usr1(self) -> None:
        for worker in self.workers:
            worker.signal(signal.SIGUSR1)

    # What operators see

    def _views(self) -> list[WorkerView]:
        workers = sorted(self.workers, key=lambda worker: (worker.number, worker.started_monotonic))
        return [WorkerView(w.number, w.pid, w.state, str(control_path(self.config.state_dir, w.pid))) for w in workers]

    def _summary(self) -> str:
        """A line for `systemctl status`."""
        serving = sum(worker.state == "serving" for worker in self.workers)
        return f"{serving} of {len(self.numbers)} workers serve; {self.restarts} restarts, {self.rollovers} rollovers"

    def _status(self) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": round(time.monotonic() - self.started_monotonic, 3),
            "listener": self._listener.describe,
            "workers_wanted": len(self.numbers),
            "restarts": self.restarts,
            "rollovers": self.rollovers,
            "rollovers_failed": self.failed_rollovers,
        }

    # Details

    async def _until_stopping(self, what: Coroutine[Any, Any, object]) -> None:
        """Run it to its end, or until the stop; raises what it raises."""
        running, stopping = asyncio.ensure_future(what), asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if running.done():
            running.result()
            return
        running.cancel()
        await asyncio.wait([running])

    def _spawn(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def ended(process: Forked) -> int | None:
    """Forked.wait without blocking the loop."""
    await readable(process.pidfd)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(readable(process.line.fileno()), STATUS_S)
    return process.wait(status_s=0.0)


async def readable(fd: int) -> None:
    """Wait until it is."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """What is started within has these signals wait until it lets them through (Server._listen_to_signals)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_control_listener(config: Config) -> Listener | None:
    """The address that one process would listen on itself. Raises StartError."""
    if config.control is None:
        return None
    if (problem := unix_path_problem(control_path(config.state_dir, PID_MAX))) is not None:
        raise StartError(f"cannot ask the workers for their status: {problem}; choose a shorter --state-dir")
    for path in config.state_dir.glob("worker-*.sock"):  # of workers that were killed together with their parent
        if not Path(f"/proc/{path.stem.removeprefix('worker-')}").exists():
            path.unlink(missing_ok=True)
    return open_control(parse_address(config.control), config.unix_mode)


def describe_end(status: int | None) -> str:
    if status is None:
        return "has ended (the fork server, which knows how, does not say)"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
    return "has ended" if status == 0 else f"exited with status {status}"
