"""Commands of the host: started without a shell, waited for, and ended when they take too long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ari_ha.core.machine import Done, Outcome, Refused, Unreachable

OUTPUT_MAX_CHARS = 500


async def run_command(
    command: Sequence[str], limit_s: float, *, env: Mapping[str, str] = {}, output: Path | None = None
) -> Outcome:
    """Runs a command in a session of its own; what it starts may outlive us. Done, or Refused with its last
    words and its status. Raises TimeoutError after ``limit_s`` seconds: it was killed.

    By a thread that waits, not by the loop: uvloop beside gRPC's threads was seen never to tell of the end of
    a child that had ended and was reaped."""
    if shutil.which(command[0]) is None:
        return Unreachable(f"no program {command[0]}")
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(output.open("wb")) if output else subprocess.DEVNULL
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
            env={**os.environ, **env}, start_new_session=True,
        )  # fmt: skip
        ended = asyncio.get_running_loop().run_in_executor(None, process.communicate)
        try:
            async with asyncio.timeout(limit_s):
                _, said = await asyncio.shield(ended)
        except (TimeoutError, asyncio.CancelledError):
            process.kill()
            raise
    if process.returncode == 0:
        return Done()
    text = said.decode(errors="replace")[-OUTPUT_MAX_CHARS:].strip()
    return Refused(f"{command[0]}: {text}", process.returncode)
