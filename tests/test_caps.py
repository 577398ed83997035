"""Hosts hold a daily cap together. The long form is `python -m tests.chaos.caps`."""

from pathlib import Path

from tests import services
from tests.chaos.caps import site


def test_two_hosts_of_two_workers_pass_a_daily_cap_by_less_than_an_interval_delivers(
    tmp_path: Path, mariadb: services.MariaDB
) -> None:
    """Also when memcached loses everything on the way."""
    with site(tmp_path, mariadb, interval_s=1.0) as hosts:
        for accident in ("none", "restarted"):
            outcome = hosts.try_cap(f"capped-{accident}", 300, 150.0, accident)
            assert 0 <= outcome.passed <= outcome.bound, outcome
