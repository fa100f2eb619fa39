"""Operations are called over HTTP, as the interactions are."""

import pytest

from tests.rest.conftest import anonymous, http, rest_app  # noqa: F401 fixtures


@pytest.fixture
def store_of_app(http, rest_app):  # noqa: F811
    """The store that the application works with."""
    return rest_app.state.store
