"""Operations are called over HTTP, as the interactions are."""

from tests.rest.conftest import anonymous, http  # noqa: F401 fixtures
