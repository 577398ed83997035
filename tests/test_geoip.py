"""The country database, on files written here in the format of https://maxmind.github.io/MaxMind-DB/."""

import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from adcore.errors import ConfigError
from adcore.geoip import CACHE_ADDRESSES, CountryDatabase

Value = dict[str, "Value"] | list["Value"] | str | int | bytes  # bytes: already encoded
Node = list["Node | int | None"]

NETWORKS: dict[str, Value] = {
    "192.0.2.0/24": {"country": {"iso_code": "JP", "names": {"en": "Japan"}}},
    "198.51.100.0/25": {"country": {"iso_code": "de"}, "continent": {"code": "EU"}},
    "198.51.100.128/25": {"continent": {"code": "EU"}},
    "203.0.113.0/24": {"country": "FR", "asn": "AS64496"},
    "2001:db8::/32": {"country": {"iso_code": "GB"}},
    "2001:db9::/32": {"country": {"iso_code": 7}},
    "2001:dba::/32": {"country": {"iso_code": "no country"}},
    "2001:dbb::/32": ["JP"],
}


def encode(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        data = value.encode()
        return _control(2, len(data)) + data
    if isinstance(value, int):
        return _number(6, value)
    if isinstance(value, list):
        return _control(11, len(value)) + b"".join(map(encode, value))
    return _control(7, len(value)) + b"".join(encode(k) + encode(v) for k, v in value.items())


def _number(kind: int, value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return _control(kind, len(data)) + data


def _control(kind: int, size: int) -> bytes:
    assert size < 29
    return bytes([kind << 5 | size]) if kind < 8 else bytes([size, kind - 7])


def database(networks: dict[str, Value], kind: str = "GeoLite2-Country") -> bytes:
    """A search tree of 24-bit records, 16 zero bytes, the data, and what it is; IPv4 stands at ::/96."""
    data = b""
    root: Node = [None, None]
    nodes = [root]
    for text, value in networks.items():
        network = ip_network(text)
        offset = 96 if network.version == 4 else 0
        address = int(network.network_address) << (128 - offset - network.max_prefixlen)
        bits = f"{address:0{128 - offset}b}".rjust(128, "0")[: offset + network.prefixlen]
        node = root
        for bit in map(int, bits[:-1]):
            if node[bit] is None:
                nodes.append([None, None])
                node[bit] = nodes[-1]
            below = node[bit]
            assert isinstance(below, list)
            node = below
        node[int(bits[-1])] = len(data)
        data += encode(value)
    numbers = {id(node): number for number, node in enumerate(nodes)}
    records = [
        len(nodes) if one is None else numbers[id(one)] if isinstance(one, list) else len(nodes) + 16 + one
        for node in nodes
        for one in node
    ]
    metadata: Value = {
        "binary_format_major_version": _number(5, 2),
        "binary_format_minor_version": _number(5, 0),
        "build_epoch": _number(9, 1_800_000_000),
        "database_type": kind,
        "description": {"en": "made by a test"},
        "ip_version": _number(5, 6),
        "languages": ["en"],
        "node_count": len(nodes),
        "record_size": _number(5, 24),
    }
    tree = b"".join(record.to_bytes(3, "big") for record in records)
    return tree + bytes(16) + data + b"\xab\xcd\xefMaxMind.com" + encode(metadata)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "country.mmdb"
    path.write_bytes(database(NETWORKS))
    return path


@pytest.mark.parametrize(
    ("ip", "country"),
    [
        ("192.0.2.1", "JP"),
        ("198.51.100.1", "DE"),
        ("198.51.100.200", ""),
        ("203.0.113.9", "FR"),
        ("2001:db8::1", "GB"),
        ("2001:db9::1", ""),
        ("2001:dba::1", ""),
        ("2001:dbb::1", ""),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("", ""),
        ("no address", ""),
        ("192.0.2.1/32", ""),
        ("192.0.2.1\n", ""),
    ],
)
def test_an_address_has_its_country_or_none(path: Path, ip: str, country: str) -> None:
    assert CountryDatabase(path).country(ip) == country


def test_addresses_seen_again_come_from_a_bounded_cache(path: Path) -> None:
    countries = CountryDatabase(path)
    for _ in range(3):
        assert countries.country("192.0.2.1") == "JP"
    assert (countries.country.cache_info().hits, countries.country.cache_info().maxsize) == (
        2,
        CACHE_ADDRESSES,
    )


def test_a_file_that_is_replaced_or_cut_disturbs_nothing(path: Path) -> None:
    countries = CountryDatabase(path)
    path.write_bytes(b"")
    assert countries.country("192.0.2.1") == "JP"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"", "cannot use"),
        (b"not a database" * 100, "cannot use"),
        (database(NETWORKS, "GeoLite2-ASN"), "GeoLite2-ASN, which has no countries"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "x.mmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        CountryDatabase(path)
    assert str(path) in str(caught.value)


def test_damage_is_refused_or_an_unknown_country_but_never_an_error(tmp_path: Path) -> None:
    whole = database(NETWORKS)
    path = tmp_path / "damaged.mmdb"
    usable = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            countries = CountryDatabase(path)
        except ConfigError:
            continue
        usable += 1
        for ip in ("192.0.2.1", "198.51.100.1", "203.0.113.9", "2001:db8::1"):
            assert len(countries.country(ip)) in (0, 2)
    assert usable > 50


def test_a_missing_package_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "maxminddb", None)
    with pytest.raises(ConfigError, match=r"pip install 'adcore\[geoip\]'"):
        CountryDatabase(path)
