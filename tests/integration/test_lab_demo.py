"""What `make demo` shows once the lab is up."""

from __future__ import annotations

import pytest

from ari_ha.cli.chaos_stage import Stage
from ari_ha.cli.demo import tell

pytestmark = pytest.mark.lab


def test_the_demonstration_tells_of_a_takeover_all_survive(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tell(stage)
    told = capsys.readouterr().out
    assert "of the killed Asterisk survived" in told
    assert " taken over by " in told and " served by " in told, "what happened behind the edge"
    assert "INVITE" in told, "the ladder of a call"
