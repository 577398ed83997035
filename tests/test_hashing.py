"""Inputs that collide: all tables that visitors fill are keyed by texts, whose hashes nobody can know."""

import ast
from ipaddress import ip_address
from pathlib import Path

import pytest

from adcore import cli
from adcore.core.adtable import Ad
from adcore.errors import StartError
from tests.inprocess import Process
from tests.inventories import campaign
from tests.process import ROOT, Adcore
from tests.test_imports import FILES

# hash() in tables of our own: of bytes and texts alone. A new place is looked at before it is added here.
OWN_TABLES = {
    ("adcore.http1.plain", "hash(raw)"),
    ("adcore.core.adtable", "hash(creative_id)"),
    ("adcore.core.adtable", "hash(creative.id)"),
}


def test_known_hashes_can_be_made_to_collide() -> None:
    """Why numbers and addresses are no keys: 2**61 - 1 is the modulus of CPython's integers."""
    assert {hash(number * (2**61 - 1)) for number in range(1000)} == {0}
    assert len({hash(ip_address(f"2001:db8::{number:x}")) for number in range(1000)}) == 1000
    assert hash(ip_address("::1")) == hash(ip_address("::1"))  # the same in every process


@pytest.mark.parametrize(
    ("seed", "refused"), [("0", True), ("42", True), ("random", False), ("", False), (None, False)]
)
def test_a_seed_that_makes_hashes_known_is_refused(
    monkeypatch: pytest.MonkeyPatch, seed: str | None, refused: bool
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    if seed is not None:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    if refused:
        with pytest.raises(StartError, match=f"PYTHONHASHSEED={seed} .* unset it"):
            cli.check_hashing()
    else:
        cli.check_hashing()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_server_starts_with_known_hashes(tmp_path: Path, workers: str) -> None:
    server = Adcore(tmp_path, "--workers", workers, PYTHONHASHSEED="0")
    assert server.process.wait(20) == 3
    assert "PYTHONHASHSEED=0 makes the hashes of texts known" in server.errors


def test_nothing_that_is_shipped_sets_the_seed() -> None:
    shipped = [path for name in ("systemd", "tools") for path in (ROOT / name).rglob("*") if path.is_file()]
    assert len(shipped) > 50
    for path in shipped:
        assert b"PYTHONHASHSEED" not in path.read_bytes(), path


def test_tables_of_our_own_hash_texts_alone() -> None:
    found = {
        (module, ast.unparse(node))
        for module, path in FILES.items()
        if module.startswith("adcore")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hash"
    }
    assert found == OWN_TABLES


def texts_alone(key: object) -> bool:
    """Whether its hash follows from those of texts, and from what nobody outside chooses."""
    if isinstance(key, tuple):
        return all(texts_alone(one) or one is None or type(one) is bool for one in key)
    # An object of the table or of ours is looked up by its identity.
    return isinstance(key, (str, bytes, Ad)) or type(key).__hash__ is object.__hash__


def test_no_address_or_number_of_a_visitor_is_a_key(tmp_path: Path) -> None:
    """Addresses are remembered as the text that came, and numbers not at all."""
    process = Process(tmp_path, campaign("a", frequency_cap={"impressions": 3, "seconds": 60}))
    for number in range(50):
        process.ask(
            f"/v1/decision?placement=side&keywords={number}&kv.n={number}&user={number}&n=2",
            X_Real_IP=f"2001:db8:{number}::1",
            X_Forwarded_For=f"10.0.0.{number}",
            X_Country="JP",
            Accept_Language=f"ja;q=0.{number}",
            User_Agent=f"{number}",
        )
        process.ask("/v1/decision?placement=side", X_Forwarded_For=f"10.0.0.{number}")
    found = 0
    for owner in (process.handlers, process.handlers.delivery, process.reader, process.state.memory):
        slots = [name for kind in type(owner).__mro__ for name in getattr(kind, "__slots__", ())]
        for name in {*slots, *getattr(owner, "__dict__", {})}:
            table = getattr(owner, name)
            if isinstance(table, dict) and name != "_heads":  # by the length of an answer
                found += len(table)
                assert [key for key in table if not texts_alone(key)] == [], name
    assert found > 200
