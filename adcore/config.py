"""Flags, environment, file and defaults -> one frozen Config.

A flag wins over the environment, that over the file, that over the default. `unix`, `fd` and `host`+`port`
exclude each other: the strongest source that names any of them decides; naming two in one source is an error.
What can be set is the table in settings.py.

Imports nothing that serves: checking a configuration needs no event loop and no driver.
"""

from __future__ import annotations

import argparse
import difflib
import os
import textwrap
import tomllib
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn

from adcore.errors import ConfigError
from adcore.listen import TcpAddress
from adcore.settings import (
    BOOLEAN,
    COUNTS_FILE,
    HOST_NAMES,
    LAST_GOOD_FILE,
    LOOKS_FILE,
    NETWORKS,
    ORIGINS,
    PEERS,
    SECTIONS,
    SETTINGS,
    Network,
    Peer,
    Setting,
)
from adcore.sources import check_url, sqlite_path
from adcore.version import version_text

ListenerKind = Literal["unix", "fd", "tcp", "default"]

_BY_NAME = {setting.name: setting for setting in SETTINGS}
_LISTENERS = ("unix", "fd", "host", "port")
_DEFAULT = "default"  # the origin of a value that nobody gave


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings in effect, every one resolved and checked. Made by `load_config`; paths are absolute."""

    unix: Path | None
    unix_mode: int
    unix_group: str | None
    fd: int | None
    host: str
    port: int
    backlog: int
    control: str | None  # for listen.parse_address
    control_hosts: tuple[str, ...]

    source: str
    refresh: float  # seconds, like every timeout here
    memcached: str | None  # for listen.parse_address
    memcached_prefix: str
    time_zone: zoneinfo.ZoneInfo

    trusted_peers: tuple[Network, ...]
    backend_peers: tuple[Peer, ...]
    backend_token_file: Path | None
    geoip_file: Path | None
    header_timeout: float
    idle_timeout: float

    public_url: str  # no slash at its end
    secret_file: Path
    token_lifetime: float
    click_window: float
    cookie_secure: bool
    cors_origins: tuple[str, ...]
    demo: bool

    log: Path
    log_format: Literal["msgpack", "json"]
    log_queue_bytes: int
    spool_dir: Path
    archive_dir: Path
    archive_days: float
    archive_bytes: int

    state_dir: Path
    pid_file: Path | None
    workers: int
    helper_bytes: int
    graceful_timeout: float

    # Not settings: where each value came from, and what to read again on HUP.
    origins: Mapping[str, str] = field(compare=False, repr=False)
    flags: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def listener(self) -> ListenerKind:
        """What was asked for; "default" is TCP on the default address, unless systemd passes a socket."""
        if self.unix is not None:
            return "unix"
        if self.fd is not None:
            return "fd"
        return "default" if self.origin_of_listener == _DEFAULT else "tcp"

    @property
    def origin_of_listener(self) -> str:
        """Where the choice of listener was made: a flag, a variable, "FILE: key", or "default"."""
        return next((self.origins[name] for name in _LISTENERS if self.origins[name] != _DEFAULT), _DEFAULT)

    @property
    def source_is_default(self) -> bool:
        """Nobody named a source: when its file is new, it gets the sample inventory."""
        return self.origins["source"] == _DEFAULT

    def describe_listener(self) -> str:
        if self.unix is not None:
            return f"unix:{self.unix}"
        return f"http://{TcpAddress(self.host, self.port)}" if self.fd is None else f"fd {self.fd}"


# --- reading


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as somebody wrote it. `rank` 0 is a flag, 1 the environment, 2 the file."""

    raw: Any
    origin: str
    base: Path
    rank: int


def load_config(flags: Mapping[str, Any] = MappingProxyType({}), environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration from flags (by setting name, as text), environment, and the file that either names.

    Raises ConfigError, which names the flag, the variable, or the file and key at fault.
    """
    given = _read_file(flags, environ)
    given.update(_read_environment(environ))
    here = _here()
    for name, raw in flags.items():
        if name != "config":
            given[name] = _Given(raw, _BY_NAME[name].flag, here, 0)
    _choose_listener(given)
    values: dict[str, Any] = {name: _parse(_BY_NAME[name], value) for name, value in given.items()}
    if "state_dir" not in values:
        values["state_dir"] = _default_state_dir(environ)
    for setting in SETTINGS:
        if setting.name not in values:
            default = setting.default
            values[setting.name] = default(values["state_dir"]) if callable(default) else default
    origins = {s.name: given[s.name].origin if s.name in given else _DEFAULT for s in SETTINGS}
    config = Config(**values, origins=MappingProxyType(origins), flags=MappingProxyType(dict(flags)))
    _check_together(config)
    return config


def reload_config(config: Config, environ: Mapping[str, str] = os.environ) -> Config:
    """Read everything again, with the flags this process was started with. Raises ConfigError."""
    return load_config(config.flags, environ)


def _read_file(flags: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, _Given]:
    name, origin = flags.get("config"), "--config"
    if name is None:
        name, origin = environ.get("ADCORE_CONFIG") or None, "ADCORE_CONFIG"
    if name is None:
        return {}
    try:
        path = _here() / Path(name).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{origin}: {name}: {error}; write the path in full") from error
    path = Path(os.path.normpath(path))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{origin}: cannot read {path}: {os.strerror(error.errno or 0)}") from error
    except (ValueError, RecursionError) as error:  # of UTF-8, of TOML, and of a number with 4,300 digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for key in table:
        if key not in _BY_NAME:
            raise ConfigError(f"{path}: {key}: no such setting{_did_you_mean(key, _BY_NAME)}")
    return {key: _Given(raw, f"{path}: {key}", path.parent, 2) for key, raw in table.items()}


def _read_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    """Every ADCORE_* variable. An empty one counts as not given; an unknown one is an error."""
    names = {setting.variable: setting.name for setting in SETTINGS}
    given = {}
    for variable, text in sorted(environ.items()):
        if variable.startswith("ADCORE_") and variable != "ADCORE_CONFIG" and text:
            if variable not in names:
                raise ConfigError(f"{variable}: no such setting{_did_you_mean(variable, names)}")
            given[names[variable]] = _Given(text, variable, _here(), 1)
    return given


def _here() -> Path:
    """Where relative paths of flags and variables start."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(f"the working directory is gone ({error.strerror}); change to one that exists") from error


def _did_you_mean(word: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else "; --help lists them all"


def _choose_listener(given: dict[str, _Given]) -> None:
    """Leave only what the strongest source says of unix, fd and host+port."""
    named = {name: given[name] for name in _LISTENERS if name in given}
    if not named:
        return
    strongest = min(value.rank for value in named.values())
    chosen = {name: value for name, value in named.items() if value.rank == strongest}
    by_kind = {"tcp" if name in ("host", "port") else name: value.origin for name, value in chosen.items()}
    if len(by_kind) > 1:
        raise ConfigError(f"{' and '.join(by_kind.values())} exclude each other: keep one place to listen on")
    for name in named:  # a weaker --host may still complete a stronger --port
        if name not in chosen and not ("tcp" in by_kind and name in ("host", "port")):
            del given[name]


def _parse(setting: Setting, given: _Given) -> Any:
    try:
        return setting.kind.parse(given.raw, given.base)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{given.origin}: {error}") from None


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    if systemd := environ.get("STATE_DIRECTORY"):
        return Path(os.path.abspath(systemd.split(":")[0]))
    # The XDG specification: a relative path there is invalid and to be ignored.
    if (xdg := environ.get("XDG_STATE_HOME")) and Path(xdg).is_absolute():
        return Path(xdg) / "adcore"
    try:
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError:
        raise ConfigError("--state-dir: this user has no home directory; say where to keep state") from None
    return home / ".local/state/adcore"


def _check_together(config: Config) -> None:
    """What no single value shows: two settings that name the same file or address, or one of our own files."""
    try:
        check_url(config.source)
    except ConfigError as error:
        raise ConfigError(f"{_origin(config, 'source')}: {str(error).removeprefix('--source: ')}") from None
    owners = {
        str(config.state_dir / name): f"the server's own {name}" for name in (COUNTS_FILE, LAST_GOOD_FILE, LOOKS_FILE)
    }
    if config.source.startswith("sqlite:"):
        owners[str(sqlite_path(config.source))] = _origin(config, "source")
    named: list[tuple[str, str]] = [
        (name, str(path))
        for name in ("unix", "log", "secret_file", "backend_token_file", "pid_file", "geoip_file")
        if (path := getattr(config, name)) is not None
    ]
    if config.listener in ("tcp", "default") and config.port:
        named.append(("port", str(TcpAddress(config.host, config.port))))
    if config.control is not None and not config.control.endswith(":0"):
        named.append(("control", config.control.removeprefix("unix:")))
    for name, value in named:
        other = owners.setdefault(value, _origin(config, name))
        if other != _origin(config, name):
            raise ConfigError(f"{other} and {_origin(config, name)} both name {value}")


def _origin(config: Config, name: str) -> str:
    origin = config.origins[name]
    return f"the default of {_BY_NAME[name].flag}" if origin == _DEFAULT else origin


# --- showing


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help shows every flag)")


def argument_parser() -> argparse.ArgumentParser:
    """One flag per setting. The namespace holds the text of those that were given, by the setting's name."""
    parser = _Parser(
        prog="adcore",
        description="Deliver ads. With no arguments: on 127.0.0.1:8080, from an SQLite file of its own.",
        epilog=(
            "Each setting is also a variable (--log-format: ADCORE_LOG_FORMAT) and a key of the TOML file "
            "that --config names (log_format). A flag wins over the variable, that over the file. Signals: "
            "TERM drains and exits, a second TERM or INT exits at once, HUP reloads configuration and ads, "
            "USR1 reopens the log. Exit status: 0 clean, 1 failed while running, 2 usage, 3 could not start."
        ),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="read settings from this TOML file")
    for title, settings in SECTIONS.items():
        group = parser.add_argument_group(title)
        for setting in settings:
            text = f"{setting.help} ({_default_text(setting)})".replace("%", "%%")
            if setting.kind is BOOLEAN:
                group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, help=text)
            elif setting.kind in (NETWORKS, ORIGINS, PEERS, HOST_NAMES):
                group.add_argument(setting.flag, metavar=setting.kind.metavar, action=_Join, help=text)
            else:
                group.add_argument(setting.flag, metavar=setting.kind.metavar, help=text)
    return parser


class _Join(argparse.Action):
    """A list flag may be repeated; the texts are joined with commas."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, f"{before},{values}" if before else values)


def _default_text(setting: Setting) -> str:
    if setting.name == "state_dir":
        return setting.why
    if setting.default in (None, ()):
        return "default: none"
    if callable(setting.default):
        example = str(setting.default(Path("/STATE")))
        return f"default: {example.replace('/STATE', 'STATE_DIR')}"
    unit = f" {setting.kind.unit}" if setting.kind.unit else ""
    return f"default: {setting.kind.to_toml(setting.default).strip(chr(34)) or 'empty'}{unit}"


def format_toml(config: Config) -> str:
    """The configuration in effect, as a file for --config: each setting, what it is, where it came from.

    A password in the source is masked, and `load_config` refuses the mask. The secret file is not read.
    """
    lines = [f"# {version_text()}: the configuration in effect; in brackets, where a value came from.\n"]
    for setting in SETTINGS:
        value, origin = getattr(config, setting.name), config.origins[setting.name]
        unit = f", in {setting.kind.unit}" if setting.kind.unit else ""
        about = f"{setting.help}{unit} [{origin}]\n{setting.why}"
        lines += (f"# {line}" for part in about.split("\n") for line in textwrap.wrap(part, 100))
        # Naming these would choose: TCP over systemd's socket, a file that gets no sample inventory.
        left_open = value is None or (origin == _DEFAULT and setting.name in ("host", "port", "source"))
        text = "" if value is None else setting.kind.to_toml(value)
        lines.append(f"{'#' if left_open else ''}{setting.name} = {text}\n")
    return "\n".join(lines)
