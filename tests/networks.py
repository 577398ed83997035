"""Hosts of their own: network namespaces that reach each other over a bridge, and nothing else.

Needs root (CAP_NET_ADMIN) and iproute2; says so when it has not.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.services import program


class Host:
    """A network namespace. `run_in` is put before a command to run it there."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.run_in = (program("ip", "iproute2"), "netns", "exec", name)

    def plug(self, connected: bool) -> None:
        """Pull the network cable, or put it in again."""
        _ip("-n", self.name, "link", "set", "eth0", "up" if connected else "down")


@contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """A host for each name, in one network. Fails with the reason where namespaces cannot be made."""
    prefix = f"adcore{os.getpid()}"
    switch = f"{prefix}-switch"
    made = []
    try:
        _ip("netns", "add", switch)
        made.append(switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        found = []
        for number, name in enumerate(names, 1):
            host = Host(f"{prefix}-{name}", f"10.77.0.{number}")
            _ip("netns", "add", host.name)
            made.append(host.name)
            _ip(*f"-n {host.name} link add eth0 type veth peer name port{number} netns {switch}".split())
            _ip(*f"-n {switch} link set port{number} master bridge up".split())
            _ip(*f"-n {host.name} address add {host.address}/24 dev eth0".split())
            for link in ("lo", "eth0"):
                _ip("-n", host.name, "link", "set", link, "up")
            found.append(host)
        yield found
    finally:
        for name in made:
            _ip("netns", "delete", name)


def _ip(*args: str) -> None:
    done = subprocess.run([program("ip", "iproute2"), *args], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, (
        f"network namespaces cannot be made here: ip {' '.join(args)}: {done.stderr.strip()}; this test needs root "
        "with CAP_NET_ADMIN and CAP_SYS_ADMIN, and a kernel with veth and bridge"
    )
