"""A gateway for a browser to look at, beside a test that waits for the browser."""

import asyncio
import threading

from tests.metrics.place import Place, Setting, observed


class Served:
    """An observed gateway in a loop of its own, on a thread of its own."""

    def __init__(self, setting: Setting) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._place = observed(setting)
        self.place: Place = self._call(self._place.__aenter__())

    def stop(self) -> None:
        """End it."""
        self._call(self._place.__aexit__(None, None, None))
        self._call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)
