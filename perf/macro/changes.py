"""Changes of the inventory while requests are answered: the weights of three campaigns, every 4 s.

They are made in the store that adcore serves from, by the process that runs the measurement. That shares a core with
the load, so they are made in every contender's turn, also where the contender does not read the store.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perf.macro import inventory

EVERY_S = 4.0
# A load is under way by then.
FIRST_S = 0.5
PATIENCE_S = 30.0
# What is written reaches the disk some time: a power cut may take it, and the commit holds up no load.
PREPARE = "PRAGMA synchronous = OFF"
CHANGE = "UPDATE campaigns SET weight = 1 + (weight + :number) % 13 WHERE id IN (:candidate, :other, :another)"


@contextmanager
def changing(store: Path, campaigns: int) -> Iterator[None]:
    """A change every EVERY_S for as long as it is entered; of each three campaigns one is a candidate."""
    done = threading.Event()
    thread = threading.Thread(target=_change, args=(store, campaigns, done))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _change(store: Path, campaigns: int, done: threading.Event) -> None:
    connection = sqlite3.connect(store, timeout=PATIENCE_S)
    try:
        connection.execute(PREPARE)
        number = 0
        while not done.wait(EVERY_S if number else FIRST_S):
            number += 1
            which = (number % inventory.CAMPAIGNS, number * 389 % campaigns, number * 769 % campaigns)
            names = dict(zip(("candidate", "other", "another"), map(inventory.campaign_id, which), strict=True))
            with connection:
                connection.execute(CHANGE, {"number": number, **names})
    finally:
        connection.close()
