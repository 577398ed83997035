"""The country of an address, from a MaxMind DB file (the extra adcore[geoip])."""

import re
import struct
from functools import lru_cache
from pathlib import Path

from adcore.errors import ConfigError

# An entry is some 200 bytes, and visitors come back within their visit.
CACHE_ADDRESSES = 65_536

# The kinds that say a country, as MaxMind, DB-IP and IPinfo name them; others (ASN, ISP …) do not.
_WITH_COUNTRY = re.compile(r"country|city|enterprise|location", re.IGNORECASE)
_COUNTRY = re.compile(r"[A-Za-z]{2}")
# What the reader, which trusts its file, comes to when that is damaged.
_DAMAGE = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error)


class CountryDatabase:
    """Looks countries up in a file that is held in memory, so that replacing the file disturbs nobody."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a missing package and for a file that is not there or of another kind."""
        try:
            import maxminddb
        except ImportError:
            raise ConfigError("--geoip-file needs a package: pip install 'adcore[geoip]'") from None
        self._unusable = (*_DAMAGE, maxminddb.InvalidDatabaseError)
        try:
            self._reader = maxminddb.open_database(path, maxminddb.MODE_MEMORY)
        except (OSError, *self._unusable) as error:
            raise ConfigError(f"--geoip-file: cannot use {path}: {error}") from None
        kind = str(self._reader.metadata().database_type)
        if _WITH_COUNTRY.search(kind) is None:
            raise ConfigError(f"--geoip-file: {path} is a database of kind {kind}, which has no countries")
        self.country = lru_cache(maxsize=CACHE_ADDRESSES)(self._country)

    def _country(self, ip: str) -> str:
        """The ISO 3166 alpha-2 code in capitals; "" when the address is unknown or is none."""
        try:
            found = self._reader.get(ip)
        except self._unusable:
            return ""
        country = found.get("country") if isinstance(found, dict) else None
        # IPinfo has the code there, MaxMind and DB-IP an object with it.
        code = country.get("iso_code") if isinstance(country, dict) else country
        return code.upper() if isinstance(code, str) and _COUNTRY.fullmatch(code) else ""
