"""CPU and memory of all of adcore's processes without a request; `perf/run idle` sets up the programs that this needs.

See perf/README.rst.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

# `python perf/idle` has this folder on the path, in which `import perf.idle` finds nothing.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from perf.macro import cpu, inventory, machine  # noqa: E402
from perf.macro.results import to_object  # noqa: E402
from tests import services  # noqa: E402
from tests.process import ROOT, Adcore, adctl, serving  # noqa: E402

REFRESH_S = 5.0
# Until each worker has a table, and the processes that poll and exchange have done so twice.
SETTLE_S = 3 * REFRESH_S
WORKERS = [1, 4]
CAMPAIGNS = [inventory.CAMPAIGNS, inventory.CAMPAIGNS_MANY]
# By program; with several workers the process that was started first is their parent, and the others are forks.
PARENT, FORKS, WORKER, POLLER, COUNTS = "parent", "fork server", "worker", "poller", "counts"
ROLES = {
    "adcore": WORKER,
    "adcore.sources.loader": POLLER,
    "adcore.bank": COUNTS,
    "adcore forks": FORKS,
    "adcore worker": WORKER,
    "adcore loader": POLLER,
    "adcore counts": COUNTS,
}


class Member(NamedTuple):
    """A process, seen once."""

    role: str
    cpu_s: float
    pss_kib: int
    private_kib: int
    """In pages that no other process has."""


class Role(NamedTuple):
    """Processes that do the same."""

    processes: int
    cpu_percent: float
    """Of one core."""
    pss_mib: float
    private_mib: float


class Result(NamedTuple):
    workers: int
    campaigns: int
    creatives: int
    seconds: float
    roles: dict[str, Role]

    @property
    def total(self) -> Role:
        roles = self.roles.values()
        return Role(
            sum(role.processes for role in roles),
            sum(role.cpu_percent for role in roles),
            sum(role.pss_mib for role in roles),
            sum(role.private_mib for role in roles),
        )


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    started = datetime.now(UTC)
    folder = Path(tempfile.mkdtemp(prefix="adcore-idle-"))
    results = []
    try:
        for campaigns in options.campaigns:
            for workers in options.workers:
                say(f"{workers} workers, {campaigns:,} campaigns: {options.settle + options.seconds:.0f} s")
                results.append(measure(folder, workers, campaigns, options.settle, options.seconds))
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about = machine.describe()
    commit = machine.commit()
    print(f"adcore {commit}, {started:%Y-%m-%d %H:%M} UTC, {about['cores']} cores of {about['cpu']}\n")
    print("\n\n".join(map(table, results)))
    document = {
        "date": started.isoformat(timespec="seconds"),
        "commit": commit,
        "machine": about,
        "settings": {"refresh_s": REFRESH_S, "settle_s": options.settle},
        "results": [{**one._asdict(), "total": one.total} for one in results],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"idle-{started:%Y-%m-%d}-{commit}.json"
    path.write_text(json.dumps(to_object(document), indent=1) + "\n")
    say(f"written: {path}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="perf/run idle", description="What adcore takes without a request.")
    parser.add_argument("--workers", type=_counts, default=WORKERS, metavar="N,N", help="default: 1,4")
    parser.add_argument(
        "--campaigns", type=_counts, default=CAMPAIGNS, metavar="N,N", help="default: 50,5000 (67 and 9,967 creatives)"
    )
    parser.add_argument("--seconds", type=_seconds, default=30.0, help="for which each is looked at (default: 30)")
    parser.add_argument("--settle", type=_seconds, default=SETTLE_S, help="before that (default: 15)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "perf" / "results", metavar="FOLDER", help="default: perf/results"
    )
    return parser.parse_args(argv)


def measure(folder: Path, workers: int, campaigns: int, settle_s: float, seconds: float) -> Result:
    """With a store, a memcached, a spool and a control listener, as users have it."""
    here = folder / f"{workers}-{campaigns}"
    here.mkdir()
    document = here / "inventory.json"
    document.write_text(inventory.as_json(campaigns))
    source = f"sqlite://{here}/ads.db"
    applied = adctl("apply", "--source", source, str(document))
    assert applied.returncode == 0, applied.stderr
    with ExitStack() as stack:
        memcached = stack.enter_context(services.memcached(here))
        server = stack.enter_context(
            serving(
                *(here / "state", "--source", source, "--memcached", f"unix:{memcached.path}"),
                *("--refresh", str(REFRESH_S), "--workers", str(workers)),
            )
        )
        time.sleep(settle_s)
        before, started_monotonic = members(server), time.monotonic()
        time.sleep(seconds)
        after, ended_monotonic = members(server), time.monotonic()
        server.stop()  # with its processes, so that none of them writes into the folder any more
        took_s = ended_monotonic - started_monotonic
        creatives = inventory.creatives(inventory.document(campaigns))
        return Result(workers, campaigns, creatives, took_s, by_role(before, after, took_s))


def members(server: Adcore) -> dict[int, Member]:
    """The server's processes by pid; the children that ended count for the process that started them."""
    root = server.process.pid
    pids = cpu.family(root)
    has_parent = any(cpu.program(pid) == "adcore worker" for pid in pids)
    found = {}
    for pid in pids:
        try:
            program = cpu.program(pid)
            role = PARENT if has_parent and pid == root else ROLES[program]
            memory = parse_memory(Path(f"/proc/{pid}/smaps_rollup").read_text())
            found[pid] = Member(role, cpu.seconds([pid]) + cpu.reaped_seconds(pid), *memory)
        except (OSError, KeyError):  # a child has ended meanwhile, or has not become what it will be
            continue
    return found


def parse_memory(text: str) -> tuple[int, int]:
    """The proportional and the private KiB of /proc/PID/smaps_rollup (proc(5))."""
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    return kib["Pss"], kib["Private_Clean"] + kib["Private_Dirty"]


def by_role(before: dict[int, Member], after: dict[int, Member], seconds: float) -> dict[str, Role]:
    """A process that was started meanwhile has used all that it has."""
    used_s: defaultdict[str, float] = defaultdict(float)
    grouped: defaultdict[str, list[Member]] = defaultdict(list)
    for pid, member in after.items():
        grouped[member.role].append(member)
        used_s[member.role] += member.cpu_s - (before[pid].cpu_s if pid in before else 0.0)
    for pid in before.keys() - after.keys():
        # The process that reaped it counts this too now, as that of a child.
        used_s[FORKS if FORKS in grouped else WORKER] -= before[pid].cpu_s
    return {
        role: Role(
            len(grouped[role]),
            used_s[role] / seconds * 100,
            sum(one.pss_kib for one in grouped[role]) / 1024,
            sum(one.private_kib for one in grouped[role]) / 1024,
        )
        for role in (PARENT, FORKS, WORKER, POLLER, COUNTS)
        if role in grouped
    }


def table(result: Result) -> str:
    with_s = "s" if result.workers > 1 else ""
    lines = [
        f"{result.workers} worker{with_s}, {result.campaigns:,} campaigns, {result.creatives:,} creatives, "
        f"{result.seconds:.0f} s without a request",
        f"{'':10}  processes  CPU, % of a core  PSS, MiB  private, MiB",
    ]
    for name, role in (*result.roles.items(), ("all", result.total)):
        lines.append(
            f"{name:10}  {role.processes:9}  {role.cpu_percent:16.3f}  {role.pss_mib:8.1f}  {role.private_mib:12.1f}"
        )
    return "\n".join(lines)


def _counts(text: str) -> list[int]:
    counts = [int(word) for word in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("must be at least 1 each")
    return counts


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 3600")
    return seconds


def say(text: str) -> None:
    print(f"perf/run idle: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
