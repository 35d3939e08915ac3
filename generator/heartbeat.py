"""The heartbeat of a process: it puts the clock of the leases forward, and says when it no longer could."""

import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from db.store import Store
from generator.leases import renew_leases


class Heartbeat:
    """Renews the leases of one holder while `is_needed`.

    When that fails for so long that others may take the leases over, `failure` says why, `on_failure` is called, and
    nothing is renewed any more.
    """

    def __init__(
        self,
        store: Store,
        holder: str,
        lease_s: float,
        *,
        is_needed: Callable[[], bool],
        on_failure: Callable[[], None],
    ) -> None:
        self.failure: SQLAlchemyError | None = None
        self._store, self._holder, self._lease_s = store, holder, lease_s
        self._is_needed, self._on_failure = is_needed, on_failure
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        every_s, renewed_at = self._lease_s / 10, time.monotonic()
        pause_s = every_s
        while not self._ended.wait(pause_s):
            try:
                if self._is_needed():
                    with self._store.write() as session:
                        renew_leases(session, self._holder, self._lease_s)
                pause_s, renewed_at = every_s, time.monotonic()
            except SQLAlchemyError as error:
                pause_s = every_s / 10
                if time.monotonic() - renewed_at > 0.8 * self._lease_s:
                    self.failure = error
                    self._on_failure()
                    return
