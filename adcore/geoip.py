"""The country of an address, from a MaxMind DB file (the extra adcore[geoip])."""

from functools import lru_cache
from pathlib import Path

from adcore.errors import ConfigError


class CountryDatabase:
    """Looks countries up in a file of GeoIP2/GeoLite2 Country form, held in memory."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a missing package and for a file that is not there or of another kind."""
        try:
            import maxminddb
        except ImportError:
            raise ConfigError("--geoip-file needs a package: pip install 'adcore[geoip]'") from None
        try:
            self._reader = maxminddb.open_database(path, maxminddb.MODE_MEMORY)
        except (OSError, maxminddb.InvalidDatabaseError) as error:
            raise ConfigError(f"--geoip-file: cannot use {path}: {error}") from None
        self.country = lru_cache(maxsize=65536)(self._country)

    def _country(self, ip: str) -> str:
        """The ISO 3166 alpha-2 code; "" when the address is unknown or none."""
        try:
            found = self._reader.get(ip)
        except ValueError:
            return ""
        country = found.get("country") if isinstance(found, dict) else None
        code = country.get("iso_code") if isinstance(country, dict) else None
        return code if isinstance(code, str) else ""
