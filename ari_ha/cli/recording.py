"""``ari-ha recording``: a call's recording out of the parts its recorders wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ari_ha.cli.output import JsonFlag, fail, print_json, say

if TYPE_CHECKING:
    from ari_ha.wire.recording import Part

_app = typer.Typer(no_args_is_help=True, help="Recordings of calls.")
GAPS_STATUS = 3


def register(app: typer.Typer) -> None:
    """Adds ``recording`` to the command line."""
    app.add_typer(_app, name="recording")


@_app.callback()
def _verbs() -> None:
    """Recordings of calls."""


@_app.command("join")
def join_verb(
    call: Annotated[str, typer.Argument(help="The call's id.")],
    spools: Annotated[
        list[Path], typer.Option("--from", help="A directory of parts: a node's spool, or a copy of it.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="The WAV file; CALL.wav by default.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Joins a call's parts into one stereo WAV: the caller left, everybody else right. Exit status 3: packets
    are missing in every part, and the file is silent there."""
    import wave

    from ari_ha.wire.recording import RATE_HZ, join

    parts = find(call, spools)
    if not parts:
        fail(f"no part of {call} in {', '.join(str(path) for path in spools)}", as_json)
    target = out or Path(f"{call}.wav")
    try:
        joined = join(parts)
        with wave.open(str(target), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(RATE_HZ)
            file.writeframes(joined.interleaved())
    except (OSError, ValueError) as error:
        fail(f"{target}: {error}", as_json)
    if as_json:
        print_json({
            "call": call,
            "file": str(target),
            "start_utc": joined.start_utc,
            "seconds": round(joined.seconds, 3),
            "parts": len(parts),
            "packets": joined.legs,
            "clocks_ms": {node: round(by_s * 1000, 1) for node, by_s in joined.clocks.items()},
            "gaps": [{"leg": gap.leg, "at_s": round(gap.at_s, 3), "ms": gap.ms} for gap in joined.gaps],
        })  # fmt: skip
    else:
        say(f"{target}: {joined.seconds:.3f} s out of {len(parts)} parts", "warn" if joined.gaps else "ok")
        for gap in joined.gaps:
            say(f"  {gap.leg}: {gap.ms:g} ms are missing at {gap.at_s:.3f} s", "warn")
    raise typer.Exit(GAPS_STATUS if joined.gaps else 0)


def find(call: str, spools: list[Path]) -> list[Part]:
    """The call's parts below these directories; one that cannot be read is named and left out."""
    from glob import escape

    from ari_ha.wire.recording import SUFFIX, Part, PartName
    from ari_ha.wire.rtpdump import NotRtpdump, read

    parts: list[Part] = []
    if "/" in call:
        return parts
    for path in sorted({path for spool in spools for path in spool.glob(f"**/{escape(call)}.*{SUFFIX}")}):
        name = PartName.parse(path.name)
        if name is None or name.call != call:
            continue
        try:
            parts.append(Part(name, *read(path.read_bytes())))
        except (OSError, NotRtpdump) as error:
            typer.echo(f"ari-ha: {path}: left out: {error}", err=True)
    return parts
