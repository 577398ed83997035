"""What many tests share: stores that take a while to start are started once."""

from collections.abc import Iterator

import pytest

from tests import services


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.MariaDB]:
    with services.mariadb(tmp_path_factory.mktemp("mariadb")) as service:
        yield service


@pytest.fixture(scope="session")
def memcached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    with services.memcached(tmp_path_factory.mktemp("memcached")) as service:
        yield service
