"""Fixtures for tests that take long, in the place of those that take each kind with each face.

Each kind of server is taken once, with one of the faces. A test file imports them.
"""

from __future__ import annotations

import pytest


@pytest.fixture
def own_kind(place: tuple[str, str]) -> str:
    return place[0]


@pytest.fixture
def face(place: tuple[str, str]) -> str:
    return place[1]
