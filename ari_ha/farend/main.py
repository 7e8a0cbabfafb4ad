"""Entry point of the far-end process (``ari-ha run farend``)."""

from __future__ import annotations

import asyncio
import signal

import uvloop
from aiohttp import web

from ari_ha.farend.api import Api
from ari_ha.farend.farends import FarEnds
from ari_ha.farend.settings import FarEndSettings, load


async def serve(settings: FarEndSettings, stop: asyncio.Event) -> None:
    """Runs the far ends until ``stop`` is set."""
    ends = FarEnds(settings)
    runner = web.AppRunner(Api(ends).application, access_log=None)
    try:
        await ends.open()
        await runner.setup()
        await web.TCPSite(runner, settings.http_host, settings.http_port).start()
        print(
            f"farend: carrier {settings.carrier_host}:{settings.carrier_port}, "
            f"{len(settings.phones)} phones, http {settings.http_host}:{settings.http_port}",
            flush=True,
        )
        await stop.wait()
        await ends.hang_up()
    finally:
        await runner.cleanup()
        ends.close()


async def _until_signal(settings: FarEndSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(settings, stop)


def main(settings_path: str | None = None) -> None:
    """Runs until SIGTERM."""
    uvloop.run(_until_signal(load(settings_path)))
