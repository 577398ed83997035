"""How much `results` a store takes: rows a second into it, bytes a row, and how long a report over all of them takes.

    python -m perf.collect.rows --rows 1000000 sqlite:///$HOME/rows.db
    python -m perf.collect.rows --rows 1000000 'mysql://root@/rows?unix_socket=/run/mysqld/mysqld.sock'

The store must be an empty one. Each transaction has the rows of one hour, as those of `adctl collect` have.
"""

import argparse
import json
import random
import time
from contextlib import closing
from zoneinfo import ZoneInfo

from adcore.core.calendar import Calendar
from adcore.sources import open_store, results, sqlite_path

HOUR = 1_800_000_000 // 3600 * 3600
PER_HOUR = 20_000
COUNTRIES = ("JP", "US", "DE", "FR", "GB", "KR", "TW", "BR", "IN", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    draw = random.Random(1)
    calendar = Calendar(ZoneInfo("UTC"))
    with closing(open_store(args.url)) as store:
        store.migrate()
        started = time.perf_counter()
        for hour in range(HOUR, HOUR + args.rows // PER_HOUR * 3600, 3600):
            tally = results.Tally()
            while len(tally.results) < PER_HOUR:
                campaign = draw.randrange(2000)
                creative = f"campaign-{campaign}-{draw.randrange(5)}"
                names = f"placement-{draw.randrange(50)}", f"campaign-{campaign}", creative
                visitor = draw.choice(("mobile", "desktop")), draw.choice(COUNTRIES)
                tally.results[(hour, *names, *visitor)] = [1, 0, 0, 0]
            store.run(
                lambda db, tally=tally: results.add_tally(  # type: ignore[misc]
                    db, tally, (), calendar=calendar, window_s=3600, now=time.time()
                )
            )
        taken_s = time.perf_counter() - started
        started = time.perf_counter()
        store.run(lambda db: db.query("SELECT campaign, SUM(impressions) AS n FROM results GROUP BY campaign"))
        asked_s = time.perf_counter() - started
        if args.url.startswith("sqlite"):
            size = sqlite_path(args.url).stat().st_size
        else:
            store.run(lambda db: db.query("ANALYZE TABLE results"))
            sizes = store.run(
                lambda db: db.query(
                    "SELECT data_length + index_length AS size FROM information_schema.tables "
                    "WHERE table_schema = DATABASE() AND table_name = 'results'"
                )
            )
            size = int(sizes[0]["size"])
    figures = {
        "rows": args.rows,
        "rows_per_s": round(args.rows / taken_s),
        "bytes_per_row": round(size / args.rows),
        "report_s": round(asked_s, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
