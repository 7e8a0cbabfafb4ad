"""Fixtures of more than one module of unit tests."""

from __future__ import annotations

import pytest

from tests.support.edge_world import EdgeWorld


@pytest.fixture
def world() -> EdgeWorld:
    """An edge with its surroundings; modules that need more users, or others, have their own."""
    return EdgeWorld().with_users("1001")
