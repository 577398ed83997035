"""A thread of one's own for calls that block, which never holds up the end of the process.

`concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter exits; a call that hangs on a dead disk
or a stopped database would then hang the exit too. This is the same with one daemon thread.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class BackgroundThread(Executor):
    """Runs what is submitted, one call after the other."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put(partial(_call, future, fn, *args, **kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after what was submitted; nothing waits for it, whatever the arguments say."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _call(future: Future[T], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:  # it belongs to whoever waits for the future
        future.set_exception(error)
        # Its traceback leads here. If there were a way on to the future, whatever the call had at hand (records, when a
        # disk fails) would stay until the garbage collector comes.
        del future
    else:
        future.set_result(result)
