"""Flag over environment over file over default; every error names its origin and the fix."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import zoneinfo
from pathlib import Path
from typing import Any

import pytest

from adcore.config import Config, argument_parser, format_toml, load_config, reload_config
from adcore.errors import ConfigError
from adcore.settings import SETTINGS

ROOT = Path(__file__).parent.parent


def load(flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> Config:
    return load_config(flags or {}, {"HOME": "/home/ads"} | (environ or {}))


def load_file(path: Path, text: str, flags: dict[str, Any] | None = None) -> Config:
    path.write_text(text)
    return load({"config": str(path)} | (flags or {}))


def test_every_setting_is_a_field_and_a_flag() -> None:
    assert {s.name for s in SETTINGS} == {f.name for f in dataclasses.fields(Config)} - {"origins", "flags"}
    text = argument_parser().format_help()
    assert [s.flag for s in SETTINGS if s.flag not in text] == []


def test_every_setting_says_what_it_is_and_why() -> None:
    assert [s.name for s in SETTINGS if not (s.help and s.why)] == []


@pytest.mark.parametrize("flag", [setting.flag for setting in SETTINGS] + ["--config"])
def test_every_setting_is_documented_in_the_readme(flag: str) -> None:
    text = (ROOT / "README.rst").read_text()
    assert re.search(rf"{flag}(?![\w-])", text), f"{flag} is not in README.rst"


def test_every_default_is_within_its_own_bounds() -> None:
    config = load()
    for setting in SETTINGS:
        value = getattr(config, setting.name)
        if value is not None:
            raw = list(map(str, value)) if isinstance(value, tuple) else value
            text = raw if isinstance(raw, (list, bool)) else setting.kind.to_toml(value).strip('"')
            assert setting.kind.parse(text, Path("/")) == value


def test_defaults_are_those_of_the_design() -> None:
    config = load()
    assert (config.host, config.port, config.listener) == ("127.0.0.1", 8080, "default")
    assert config.source == "sqlite:///home/ads/.local/state/adcore/adcore.db"
    assert config.source_is_default
    assert config.log == Path("/home/ads/.local/state/adcore/delivery.log")
    assert (config.refresh, config.backlog, config.graceful_timeout) == (5.0, 2048, 10.0)
    assert config.unix_mode == 0o660
    assert config.log_format == "msgpack"
    assert config.public_url == ""


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = tmp_path / "ad.toml"
    path.write_text("backlog = 1\nrefresh = 1\nport = 1")
    config = load_config(
        {"config": str(path), "backlog": "3"}, {"HOME": "/", "ADCORE_BACKLOG": "2", "ADCORE_REFRESH": "2"}
    )
    assert (config.backlog, config.refresh, config.port, config.idle_timeout) == (3, 2.0, 1, 75.0)
    assert config.origins["backlog"] == "--backlog"
    assert config.origins["refresh"] == "ADCORE_REFRESH"
    assert config.origins["port"] == f"{path}: port"
    assert config.origins["idle_timeout"] == "default"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"STATE_DIRECTORY": "/var/lib/adcore:/var/lib/other", "XDG_STATE_HOME": "/x"}, "/var/lib/adcore"),
        ({"XDG_STATE_HOME": "/x"}, "/x/adcore"),
        ({"XDG_STATE_HOME": "relative"}, "/home/ads/.local/state/adcore"),
        ({"STATE_DIRECTORY": "/s", "ADCORE_STATE_DIR": "/given"}, "/given"),
    ],
)
def test_state_directory_comes_from_systemd_then_xdg_then_home(environ: dict[str, str], expected: str) -> None:
    config = load(environ=environ)
    assert config.state_dir == Path(expected)
    assert config.secret_file == Path(expected, "secret")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("unix", "/run/ad.sock", Path("/run/ad.sock")),
        ("unix_mode", "0600", 0o600),
        ("unix_mode", "0o666", 0o666),
        ("unix_mode", "660", 0o660),
        ("fd", "0", 0),
        ("host", "[::1]", "::1"),
        ("port", "0", 0),
        ("control", "unix:/run/c.sock", "unix:/run/c.sock"),
        ("control", "[::1]:9090", "[::1]:9090"),
        ("memcached", "cache:11211", "cache:11211"),
        ("refresh", "0.5", 0.5),
        ("log_queue_bytes", "64MiB", 64 << 20),
        ("log_queue_bytes", "1 GiB", 1 << 30),
        ("log_queue_bytes", "5000", 5000),
        ("log_format", "json", "json"),
        ("cookie_secure", "no", False),
        ("cookie_secure", "TRUE", True),
        ("public_url", "https://ads.example.net/a/", "https://ads.example.net/a"),
        ("time_zone", "Asia/Tokyo", zoneinfo.ZoneInfo("Asia/Tokyo")),
        (
            "trusted_peers",
            "10.0.0.0/8, 2001:db8::/32",
            (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")),
        ),
        ("source", "mysql://u@/ads?unix_socket=/run/m.sock", "mysql://u@/ads?unix_socket=/run/m.sock"),
    ],
)
def test_text_is_parsed_alike_from_a_flag_and_a_variable(name: str, text: str, value: object) -> None:
    assert getattr(load({name: text}), name) == value
    assert getattr(load(environ={f"ADCORE_{name.upper()}": text}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("port", "65536", "must be a whole number from 0 to 65535"),
        ("port", "-1", "must be a whole number"),
        ("port", "8O80", "must be a whole number"),
        ("port", "٣", "must be a whole number"),
        ("port", "9" * 5000, "must be a whole number from 0 to 65535"),
        ("control", "localhost:" + "9" * 5000, "the port must be 0 to 65535"),
        ("idle_timeout", "9" * 5000, "must be"),
        ("backlog", "0", "from 1 to 65535"),
        ("fd", "x", "must be a whole number"),
        ("host", "", "must be a host name or address"),
        ("host", "http://x", "must be a host name or address"),
        ("unix", "/" + "x" * 107, "108 bytes"),
        ("unix_mode", "0800", "must be an octal mode"),
        ("unix_mode", "7777", "must be an octal mode"),
        ("control", "9090", "must be unix:PATH or HOST:PORT"),
        ("control", ":9090", "must be unix:PATH or HOST:PORT"),
        ("control", "::1:9090", "brackets"),
        ("control", "unix:/" + "x" * 107, "108 bytes"),
        ("memcached", "cache:0", "1 to 65535"),
        ("memcached", "cache:http", "the port must be"),
        ("memcached_prefix", "a b", "without spaces"),
        ("refresh", "0", "0.05 to 3600 seconds"),
        ("refresh", "nan", "0.05 to 3600 seconds"),
        ("refresh", "inf", "0.05 to 3600 seconds"),
        ("refresh", "fast", "must be a number"),
        ("log_queue_bytes", "64MB", "64MiB"),
        ("log_queue_bytes", "1", "4096 to"),
        ("log_format", "xml", "must be msgpack or json"),
        ("log", "", "must be a path"),
        ("log", "a\nb", "control characters"),
        ("cookie_secure", "maybe", "must be true or false"),
        ("public_url", "ads.example.net", "http:// or https://"),
        ("public_url", "javascript://ads.example.net", "http:// or https://"),
        ("public_url", "https://u:p@ads.example.net", "scheme, host and path alone"),
        ("public_url", 'https://ads.example.net/"onload=', "scheme, host and path alone"),
        ("public_url", "https://ads.example.net:port", "is not a URL"),
        ("time_zone", "Asia/Tokio", "did you mean Asia/Tokyo?"),
        ("time_zone", "../../etc/passwd", "must be an IANA time zone"),
        ("trusted_peers", "10.0.0.1/8", "10.0.0.0/8 is the network"),
        ("trusted_peers", "everyone", "must be networks like"),
        ("geoip_file", "/no/such/file", "there is no file /no/such/file"),
        ("source", "postgres://x", "must be sqlite:///PATH"),
        ("source", "mysql://u:***@host/ads", "left out the password"),
        ("source", "mysql://u@host", "names no database"),
        ("source", "mysql://u@[x/db", "is no URL"),
        ("source", "mysql://u:12?34@host/db", "as %40"),
        ("refresh", "9" * 400, "0.05 to 3600 seconds"),
    ],
)
def test_a_wrong_value_is_refused_naming_its_origin_and_what_would_do(name: str, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load({name: text})
    assert str(refused.value).startswith(f"--{name.replace('_', '-')}: ")
    assert says in str(refused.value)
    if text:
        with pytest.raises(ConfigError, match=f"^ADCORE_{name.upper()}: "):
            load(environ={f"ADCORE_{name.upper()}": text})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("backlgo = 1", "ad.toml: backlgo: no such setting; did you mean backlog?"),
        ("config = 'x'", "ad.toml: config: no such setting"),
        ("port = '80x'", "ad.toml: port: must be a whole number"),
        ("port = true", "ad.toml: port: must be a whole number"),
        ("port = 80.0", "ad.toml: port: must be a whole number"),
        ("refresh = true", "ad.toml: refresh: must be a number"),
        ("unix_mode = 440", "ad.toml: unix_mode: must be an octal mode in quotes"),
        ("log = 5", "ad.toml: log: must be text in quotes"),
        ("trusted_peers = [10]", "ad.toml: trusted_peers: must be a list of networks"),
        ("log_queue_bytes = true", "ad.toml: log_queue_bytes: must be"),
        ("[server]\nport = 1", "ad.toml: server: no such setting"),
        ("port = ", "ad.toml: not valid TOML"),
        pytest.param("x = " + "[" * 5000, "ad.toml: not valid TOML", id="deep"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_file(tmp_path / "ad.toml", text)
    assert f"{tmp_path}/{says}" in str(refused.value)


def test_an_unreadable_file_is_refused_naming_who_asked_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--config: cannot read .*/none\.toml: No such file"):
        load({"config": str(tmp_path / "none.toml")})
    with pytest.raises(ConfigError, match=r"^ADCORE_CONFIG: cannot read .*: Is a directory"):
        load(environ={"ADCORE_CONFIG": str(tmp_path)})


def test_an_unknown_variable_is_refused_and_an_empty_one_is_not_given() -> None:
    with pytest.raises(ConfigError, match="ADCORE_BACKLGO: no such setting; did you mean ADCORE_BACKLOG"):
        load(environ={"ADCORE_BACKLGO": "1"})
    assert load(environ={"ADCORE_BACKLOG": ""}).backlog == 2048


def test_relative_paths_start_from_the_file_that_names_them(tmp_path: Path) -> None:
    config = load_file(tmp_path / "ad.toml", 'log = "logs/../ad.log"\ncontrol = "unix:c.sock"', {"pid_file": "a.pid"})
    assert config.log == tmp_path / "ad.log"
    assert config.control == f"unix:{tmp_path}/c.sock"
    assert config.pid_file == Path.cwd() / "a.pid"


@pytest.mark.parametrize(
    ("flags", "origins"),
    [
        ({"unix": "/a", "fd": "0"}, "--unix and --fd"),
        ({"unix": "/a", "port": "1"}, "--unix and --port"),
        ({"fd": "3", "host": "::", "port": "1"}, "--fd and --port"),
    ],
)
def test_two_places_to_listen_on_are_refused(flags: dict[str, str], origins: str) -> None:
    with pytest.raises(ConfigError, match=f"{origins} exclude each other"):
        load(flags)


def test_the_strongest_source_decides_where_to_listen(tmp_path: Path) -> None:
    path = tmp_path / "ad.toml"
    assert load_file(path, 'unix = "/a"').listener == "unix"
    config = load_file(path, 'unix = "/a"', {"port": "1"})
    assert (config.unix, config.listener, config.port) == (None, "tcp", 1)
    config = load_file(path, 'host = "::"\nport = 2', {"port": "1"})
    assert (config.host, config.port) == ("::", 1)
    config = load_file(path, 'host = "::"\nport = 2', {"fd": "7"})
    assert (config.listener, config.fd, config.origin_of_listener) == ("fd", 7, "--fd")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"log": "/a", "pid_file": "/a"}, "--log and --pid-file both name /a"),
        ({"unix": "/a", "control": "unix:/a"}, "--unix and --control both name /a"),
        ({"control": "127.0.0.1:8080"}, "the default of --port and --control both name 127.0.0.1:8080"),
    ],
)
def test_two_settings_never_share_a_file_or_address(flags: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(flags)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {
            "unix": "/run/ad.sock",
            "unix_mode": "0600",
            "control": "unix:/run/c.sock",
            "pid_file": "/run/a.pid",
        },
        {"port": "9000", "source": "mysql://u@db/ads", "memcached": "[::1]:11211", "cookie_secure": "no"},
        {"fd": "3", "state_dir": '/tmp/ö "x"', "trusted_peers": "10.0.0.0/8", "time_zone": "Asia/Tokyo"},
        {
            "log_queue_bytes": "1GiB",
            "refresh": "0.1",
            "public_url": "https://a.example",
            "log_format": "json",
        },
    ],
)
def test_what_is_printed_reads_back_as_the_same_configuration(tmp_path: Path, flags: dict[str, str]) -> None:
    config = load(flags)
    again = load_file(tmp_path / "ad.toml", format_toml(config))
    assert again == config
    assert (again.listener, again.source_is_default) == (config.listener, config.source_is_default)


@pytest.mark.parametrize("url", ["mysql://u:s3cret@db/ads", "mysql://u:s3c%40ret@db:3306/ads"])
def test_a_password_is_never_printed_and_its_mask_never_used(tmp_path: Path, url: str) -> None:
    printed = format_toml(load({"source": url}))
    assert "s3c" not in printed
    assert "mysql://u:***@db" in printed
    with pytest.raises(ConfigError, match="left out the password"):
        load_file(tmp_path / "ad.toml", printed)


def test_a_password_does_not_show_in_an_error_about_its_url() -> None:
    for url in (
        "mysql://u:s3c@ret@host",
        "mysql://u:12?s3c@host/db",
        "mysql://u:s3c/x@host/db",
        "mysql://u:12#s3c@h/d",
    ):
        with pytest.raises(ConfigError) as refused:
            load({"source": url})
        assert "s3c" not in str(refused.value)


def test_the_servers_own_files_are_not_for_others(tmp_path: Path) -> None:
    for name in ("counts.json", "last-good.rows", "adcore.db"):
        with pytest.raises(ConfigError, match=f"both name {tmp_path}/{name}"):
            load({"state_dir": str(tmp_path), "log": str(tmp_path / name)})


def test_a_home_or_working_directory_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="--config: ~nobody-of-this-name/x: "):
        load({"config": "~nobody-of-this-name/x"})
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="the working directory is gone"):
        load({"log": "x"})


def test_reload_reads_the_file_again_under_the_same_flags(tmp_path: Path) -> None:
    path = tmp_path / "ad.toml"
    config = load_file(path, "refresh = 1\nbacklog = 1", {"backlog": "7"})
    path.write_text("refresh = 2\nbacklog = 2")
    again = reload_config(config, {"HOME": "/"})
    assert (again.refresh, again.backlog) == (2.0, 7)


def test_a_repeated_list_flag_adds_up() -> None:
    flags = vars(argument_parser().parse_args(["--trusted-peers", "10.0.0.0/8", "--trusted-peers", "::1/128"]))
    assert [str(n) for n in load(flags).trusted_peers] == ["10.0.0.0/8", "::1/128"]
