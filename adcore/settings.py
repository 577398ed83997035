"""The table of settings: what can be set, what it may be, its default, unit and why it is so.

Flags, `--help`, `ADCORE_*` variables, keys of the TOML file, validation and --print-config all follow from
`SETTINGS`; a test holds that README.rst names each. How the sources combine is in config.py.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import re
import urllib.parse
import zoneinfo
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any, Literal

from adcore.listen import UnixAddress, parse_address, unix_path_problem

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
UNIX: Literal["unix"] = "unix"
Peer = Network | Literal["unix"]
"""Where a connection comes from: a network, or any unix socket."""

# What the server keeps in its state directory besides what settings name.
COUNTS_FILE = "counts.json"
LAST_GOOD_FILE = "last-good.rows"
LOOKS_FILE = "last-look"
# In --spool-dir, of clicks and of views.
FOLLOWED_FILES = ("clicks.followed", "views.followed")

MASKED = "***"  # stands for a password in what --print-config prints; never accepted as one


# --- kinds: what a value may be. `parse` takes the text of a flag or variable, or a TOML value; it raises
# ValueError, to which the origin of the value is added


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)  # a JSON string is a TOML basic string


@dataclass(frozen=True, slots=True)
class Kind:
    metavar: str
    parse: Callable[[Any, Path], Any]  # (raw, folder that a relative path starts from) -> value
    to_toml: Callable[[Any], str] = _quoted
    unit: str = ""


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"must be text in quotes, not {raw!r}")
    if any(not c.isprintable() for c in raw):
        raise ValueError(f"must have no control characters, not {raw!r}")
    return raw


def _path(raw: Any, base: Path) -> Path:
    if not _text(raw):
        raise ValueError("must be a path, not empty")
    try:
        return Path(normpath(base / Path(raw).expanduser()))
    except RuntimeError as error:
        raise ValueError(f"{raw!r}: {error}; write the path in full") from error


def _existing_file(raw: Any, base: Path) -> Path:
    path = _path(raw, base)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return path


def _socket_path(raw: Any, base: Path) -> Path:
    path = _path(raw, base)
    if (problem := unix_path_problem(path)) is not None:
        raise ValueError(problem)
    return path


def _number(raw: Any) -> float:
    try:
        if isinstance(raw, bool):
            raise ValueError
        return float(raw)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"must be a number, not {raw!r}") from None


def _integer(low: int, high: int) -> Kind:
    def parse(raw: Any, _: Path) -> int:
        digits = str(raw)
        whole = re.fullmatch(r"[0-9]{1,18}", digits)  # which no bool, float or sign is
        if not (whole and low <= int(digits) <= high):
            raise ValueError(f"must be a whole number from {low} to {high}, not {raw!r}")
        return int(digits)

    return Kind("N", parse, str)


def _seconds(low: float, high: float) -> Kind:
    def parse(raw: Any, _: Path) -> float:
        value = _number(raw)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"must be {low:g} to {high:.10g} seconds, not {raw!r}")
        return value

    return Kind("SECONDS", parse, lambda value: f"{value:.15g}", "s")


def _days(raw: Any, _: Path) -> float:
    value = _number(raw)
    if not 0 <= value <= 36_500:
        raise ValueError(f"must be 0 to 36500 days, not {raw!r}")
    return value


_BYTE_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _size(low: int, high: int) -> Kind:
    def parse(raw: Any, _: Path) -> int:
        matched = re.fullmatch(r"([0-9]{1,18}) ?(|KiB|MiB|GiB)", str(raw))
        value = int(matched[1]) * _BYTE_UNITS[matched[2]] if matched and not isinstance(raw, bool) else -1
        if not low <= value <= high:
            raise ValueError(f"must be {low} to {high} bytes (67108864 and 64MiB are the same), not {raw!r}")
        return value

    return Kind("BYTES", parse, str, "bytes")


def _mode(raw: Any, _: Path) -> int:
    # A TOML integer is refused: 660 there is decimal, and decimal 440 would pass for the mode 0670.
    if not (isinstance(raw, str) and re.fullmatch(r"(0o?)?[0-7]{1,3}", raw)):
        raise ValueError(f'must be an octal mode in quotes, like "0660", not {raw!r}')
    return int(raw.removeprefix("0o"), 8)


def _group(raw: Any, _: Path) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?|[0-9]{1,9}", _text(raw)):
        raise ValueError(f"must be the name or number of a group, not {raw!r}")
    return str(raw)


def _choice(*choices: str) -> Kind:
    def parse(raw: Any, _: Path) -> str:
        if raw not in choices:
            raise ValueError(f"must be {' or '.join(choices)}, not {raw!r}")
        return str(raw)

    return Kind("|".join(choices), parse)


def _boolean(raw: Any, _: Path) -> bool:
    if isinstance(raw, bool):
        return raw
    word = raw.lower() if isinstance(raw, str) else ""
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"must be true or false, not {raw!r}")


def _host(raw: Any, _: Path) -> str:
    host = _text(raw).removeprefix("[").removesuffix("]")
    if not host or any(c.isspace() or c in "/[]" for c in host):
        raise ValueError(f"must be a host name or address, like 127.0.0.1 or ::1, not {raw!r}")
    return host


def _address(raw: Any, base: Path) -> str:
    text = _text(raw)
    if text.startswith("unix:"):
        return str(UnixAddress(_socket_path(text.removeprefix("unix:"), base)))
    return str(parse_address(text))


def _service_address(raw: Any, base: Path) -> str:
    address = _address(raw, base)
    if address.endswith(":0"):
        raise ValueError("the port must be 1 to 65535, not 0")
    return address


def _networks(raw: Any, _: Path) -> tuple[Network, ...]:
    items = re.split(r"[,\s]+", raw.strip()) if isinstance(raw, str) else raw
    if not (isinstance(items, list) and all(isinstance(item, str) for item in items)):
        raise ValueError(f'must be a list of networks, like ["10.0.0.0/8"], not {raw!r}')
    found: list[Network] = []
    for item in filter(None, items):
        try:
            found.append(ipaddress.ip_network(item))
        except ValueError:
            try:
                meant = ipaddress.ip_network(item, strict=False)
            except ValueError:
                raise ValueError(f"must be networks like 10.0.0.0/8 or 2001:db8::/32, not {item!r}") from None
            raise ValueError(f"{item} has bits set outside its mask; {meant} is the network") from None
    return tuple(dict.fromkeys(found))


def _peers(raw: Any, base: Path) -> tuple[Peer, ...]:
    items = re.split(r"[,\s]+", raw.strip()) if isinstance(raw, str) else raw
    if not (isinstance(items, list) and all(isinstance(item, str) for item in items)):
        raise ValueError(f'must be a list of networks and "unix", like ["unix", "10.0.0.0/8"], not {raw!r}')
    found: list[Peer] = []
    for item in filter(None, items):
        found += (UNIX,) if item == UNIX else _networks(item, base)
    return tuple(dict.fromkeys(found))


def _origins(raw: Any, _: Path) -> tuple[str, ...]:
    items = re.split(r"[,\s]+", raw.strip()) if isinstance(raw, str) else raw
    if not (isinstance(items, list) and all(isinstance(item, str) for item in items)):
        raise ValueError(f'must be a list of origins, like ["https://www.example.com"], not {raw!r}')
    for item in filter(None, items):
        if not re.fullmatch(r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?", item):
            raise ValueError(f"must be origins like https://www.example.com, without a path, not {item!r}")
    return tuple(dict.fromkeys(filter(None, items)))


def _host_names(raw: Any, _: Path) -> tuple[str, ...]:
    items = _text(raw).split(",") if isinstance(raw, str) else raw
    if not (isinstance(items, list) and all(isinstance(item, str) for item in items)):
        raise ValueError(f'must be a list of host names, like ["ads1.example.net"], not {raw!r}')
    for item in filter(None, items):
        if not re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,253}", item):
            raise ValueError(f"must be host names like ads1.example.net, without a port, not {item!r}")
    return tuple(dict.fromkeys(item.lower() for item in filter(None, items)))


def _zone(raw: Any, _: Path) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(_text(raw))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(str(raw), zoneinfo.available_timezones(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"must be an IANA time zone like UTC or Asia/Tokyo, not {raw!r}{hint}") from None


def _public_url(raw: Any, _base: Path) -> str:
    url = _text(raw).rstrip("/")
    if not url:
        return ""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # parsed only when asked for
    except ValueError as error:
        raise ValueError(f"is not a URL ({error})") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"must start with http:// or https:// and a host, not {raw!r}")
    if parts.query or parts.fragment or "@" in parts.netloc or re.search(r"[\s\"'<>\\?#]", url):
        raise ValueError(f"must be scheme, host and path alone, like https://ads.example.net, not {raw!r}")
    return url


def _source(raw: Any, _: Path) -> str:
    url = _text(raw)
    if not url.startswith(("sqlite:///", "mysql://")):  # not shown: it may hold a password
        raise ValueError(
            "must be sqlite:///PATH, mysql://USER:PASSWORD@HOST:3306/DATABASE or "
            "mysql://USER@/DATABASE?unix_socket=PATH"
        )
    if f":{MASKED}@" in url:
        raise ValueError(f"holds {MASKED} where --print-config left out the password; write the real one")
    return url


def _without_password(url: str) -> str:
    # To the last "@": a password may hold "@", "/" and "?" unquoted by mistake, and must not show then either.
    return re.sub(r"^(mysql://[^/@:]*):.*@", rf"\1:{MASKED}@", url)


def _key_prefix(raw: Any, _: Path) -> str:
    # 250 is memcached's limit for a key (doc/protocol.txt); the rest of the key needs room too.
    if not re.fullmatch(r"[!-~]{0,100}", _text(raw)):
        raise ValueError(f"must be at most 100 printable ASCII characters without spaces, not {raw!r}")
    return str(raw)


def _toml_list(values: Sequence[object]) -> str:
    return json.dumps([str(value) for value in values])


PATH = Kind("PATH", _path)
EXISTING_FILE = Kind("FILE", _existing_file)
SOCKET_PATH = Kind("PATH", _socket_path)
MODE = Kind("MODE", _mode, lambda value: f'"{value:04o}"')
GROUP = Kind("GROUP", _group)
DAYS = Kind("DAYS", _days, lambda value: f"{value:.15g}", "days")
BOOLEAN = Kind("", _boolean, lambda value: "true" if value else "false")
HOST = Kind("HOST", _host)
ADDRESS = Kind("unix:PATH|HOST:PORT", _address)
SERVICE_ADDRESS = Kind("unix:PATH|HOST:PORT", _service_address)
NETWORKS = Kind("CIDR,CIDR", _networks, _toml_list)
PEERS = Kind("unix,CIDR", _peers, _toml_list)
ORIGINS = Kind("ORIGIN,ORIGIN", _origins, _toml_list)
HOST_NAMES = Kind("NAME,NAME", _host_names, _toml_list)
ZONE = Kind("NAME", _zone)
KEY_PREFIX = Kind("TEXT", _key_prefix)
PUBLIC_URL = Kind("URL", _public_url)
SOURCE = Kind("URL", _source, lambda url: _quoted(_without_password(url)))


# --- the table


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `default` is a value, or takes the state directory and gives one."""

    name: str
    kind: Kind
    default: Any
    help: str
    why: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "ADCORE_" + self.name.upper()


SECTIONS: dict[str, tuple[Setting, ...]] = {
    "where it listens": (
        Setting(
            "unix",
            SOCKET_PATH,
            None,
            "listen on this unix socket",
            "what nginx on the same host should use: no port to guard, no TCP to pay for",
        ),
        Setting(
            "unix_mode",
            MODE,
            0o660,
            "mode of the unix sockets, octal",
            "who connects is believed; the control listener's is open to adcore's group at most",
        ),
        Setting(
            "unix_group",
            GROUP,
            None,
            "group of --unix, by name or number, which adcore's user must be in",
            "a group for the web server and nothing else: in adcore's own it could read the settings, with the "
            "store's password. The default is the group of adcore, or of a setgid directory",
        ),
        Setting(
            "fd",
            _integer(0, 1_048_576),
            None,
            "listen on this inherited descriptor",
            "Circus or a parent holds the socket across restarts; systemd's LISTEN_FDS needs no flag",
        ),
        Setting("host", HOST, "127.0.0.1", "listen on this TCP address", ":: takes IPv6 and IPv4"),
        Setting("port", _integer(0, 65535), 8080, "listen on this TCP port", "0 takes a free one"),
        Setting(
            "backlog",
            _integer(1, 65535),
            2048,
            "connections that may wait to be accepted",
            "a burst or a restart must refuse nobody; the kernel cuts it to net.core.somaxconn",
        ),
        Setting(
            "control",
            ADDRESS,
            None,
            "listen here for status, metrics, profile and explain",
            "apart from the public listener, so that no web server exposes it by accident",
        ),
        Setting(
            "control_hosts",
            HOST_NAMES,
            (),
            "names by which the control listener may be asked",
            "besides localhost, this host's name, that of --control and addresses: otherwise a web page in an "
            "operator's browser could point a name of its own there, and read the answers",
        ),
    ),
    "what it serves": (
        Setting(
            "source",
            SOURCE,
            lambda state_dir: f"sqlite://{urllib.parse.quote(str(state_dir))}/adcore.db",
            "where the ads come from",
            "the default is an SQLite file, with a sample inventory when it is new. A flag shows in the "
            "process list: give a password in the variable or the file",
        ),
        Setting(
            "refresh",
            _seconds(0.05, 3600),
            5.0,
            "how often to ask the source for a new revision",
            "a change is served within this and one second more; asking costs the source one row",
        ),
        Setting(
            "memcached",
            SERVICE_ADDRESS,
            None,
            "memcached through which processes share ads and delivery counts",
            "one process reads the store and the rest load its snapshot; goals and daily caps hold across hosts",
        ),
        Setting(
            "memcached_prefix",
            KEY_PREFIX,
            "adcore:",
            "what every memcached key starts with",
            "two sites can share a memcached",
        ),
        Setting(
            "time_zone",
            ZONE,
            zoneinfo.ZoneInfo("UTC"),
            "time zone of hours, weekdays and daily caps",
            "the site's own day, not the server's",
        ),
    ),
    "who asks": (
        Setting(
            "trusted_peers",
            NETWORKS,
            (),
            "networks whose X-Forwarded-For, X-Real-IP and X-Country are believed",
            "anyone else could forge them; the unix socket is always trusted",
        ),
        Setting(
            "backend_peers",
            PEERS,
            (UNIX, ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128")),
            "networks, and unix for the unix socket, whose POST may describe a visitor",
            "by default those of this host; what comes through a proxy, from any peer, never may: visitors send it",
        ),
        Setting(
            "backend_token_file",
            EXISTING_FILE,
            None,
            "tokens, one a line, with which a POST from anywhere may describe a visitor",
            "for backends of other hosts, which send one as Authorization: Bearer over TLS; openssl rand -base64 32 "
            "makes one",
        ),
        Setting(
            "geoip_file",
            EXISTING_FILE,
            None,
            "MaxMind DB file to find the country in; needs adcore[geoip]",
            "for when no trusted proxy sends X-Country",
        ),
        Setting(
            "header_timeout",
            _seconds(0.05, 300),
            10.0,
            "how long a request may take to arrive",
            "a peer that sends a byte a minute must not hold a connection",
        ),
        Setting(
            "idle_timeout",
            _seconds(0.05, 3600),
            75.0,
            "how long a kept-alive connection may be idle",
            "above the 60 s for which nginx keeps its own, so that nginx never sends into one being closed",
        ),
    ),
    "links and cookies": (
        Setting(
            "public_url",
            PUBLIC_URL,
            "",
            "put before click and view paths",
            "for pages on another site; without it links are relative to the page that asked",
        ),
        Setting(
            "secret_file",
            PATH,
            lambda state_dir: state_dir / "secret",
            "keys that sign tokens and cookies; created when missing",
            "every host behind one name needs the same file",
        ),
        Setting(
            "token_lifetime",
            _seconds(1, 2_592_000),
            86_400.0,
            "how long click and view links work",
            "long enough for a tab left open, short enough that a copied link is soon worthless",
        ),
        Setting(
            "click_window",
            _seconds(0, 604_800),
            3600.0,
            "a click repeated within this counts once",
            "double clicks, reloads and link checkers are one visitor; 0 counts every click",
        ),
        Setting(
            "cookie_secure",
            BOOLEAN,
            True,
            "mark the frequency cookie Secure",
            "browsers send a cross-site cookie only with it; turn it off to try things over plain http",
        ),
        Setting(
            "cors_origins",
            ORIGINS,
            (),
            "origins whose pages may read answers from another host",
            "a tag on https://www.example.com asks https://ads.example.net: the browser wants to know",
        ),
        Setting(
            "demo",
            BOOLEAN,
            False,
            "serve a sample site with ads on /",
            "for the first look, with the sample inventory; the page shows this process's counts to everybody",
        ),
    ),
    "what it records": (
        Setting(
            "log",
            PATH,
            lambda state_dir: state_dir / "delivery.log",
            "the delivery log",
            "one record per impression, view, click and unfilled placement; USR1 reopens it",
        ),
        Setting(
            "log_format",
            _choice("msgpack", "json"),
            "msgpack",
            "how records are written",
            "msgpack is compact and survives torn writes; json is a line per record, for fluentd's tail",
        ),
        Setting(
            "log_queue_bytes",
            _size(4096, 16 << 30),
            64 << 20,
            "records that may wait for the disk",
            "minutes of a stalled disk at full load; what does not fit is counted by type and dropped, those of "
            "unfilled slots and robots first, which have half of it at most",
        ),
        Setting(
            "spool_dir",
            PATH,
            lambda state_dir: state_dir,
            "folder for the records that the log does not have yet, so that a killed process leaves them behind",
            "10 MiB a process; on tmpfs, such as /run/adcore, no disk ever holds up an answer",
        ),
        Setting(
            "archive_dir",
            PATH,
            lambda state_dir: state_dir / "tables",
            "folder for every table that was served, for adctl replay",
            "a few KiB a change; copies of several hosts' folders can be put into one",
        ),
        Setting(
            "archive_days",
            DAYS,
            60.0,
            "how long a table is kept after it was last served; 0 keeps none",
            "as long as the delivery logs are kept, and some days more",
        ),
        Setting(
            "archive_bytes",
            _size(0, 1 << 50),
            1 << 30,
            "space for these tables; the longest unused make room",
            "100,000 creatives take 3 MB once, and a few KiB a change",
        ),
    ),
    "the process": (
        Setting(
            "state_dir",
            PATH,
            None,
            "folder for what adcore keeps on disk",
            "by default $STATE_DIRECTORY (systemd), else $XDG_STATE_HOME/adcore, else ~/.local/state/adcore",
        ),
        Setting("pid_file", PATH, None, "keep the process id here, locked", "one server per file"),
        Setting(
            "workers",
            _integer(1, 256),
            1,
            "processes that serve",
            "one per core that nginx leaves free; above 1 a parent holds the socket and replaces them on HUP",
        ),
        Setting(
            "helper_bytes",
            _size(256 << 20, 1 << 40),
            1 << 30,
            "address space of each process beside the server: the one that loads tables, the one that exchanges counts",
            "100,000 creatives take 0.3 GiB; an answer without end from a store or memcached comes to an end here",
        ),
        Setting(
            "graceful_timeout",
            _seconds(0, 3600),
            10.0,
            "how long TERM waits for replies in progress",
            "well below the 90 s after which systemd kills",
        ),
    ),
}
SETTINGS: tuple[Setting, ...] = tuple(setting for section in SECTIONS.values() for setting in section)
