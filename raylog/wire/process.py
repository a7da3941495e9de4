"""Another process of this machine, and the moment at which it is gone."""

import logging
import os
import select
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Process:
    """The process `process_id` (0: one that is not known), as the kernel's descriptor of it: its number may be given to
    another one, the descriptor never means another."""

    def __init__(self, process_id: int) -> None:
        try:
            self._descriptor = os.pidfd_open(process_id) if process_id else -1
        except OSError:  # gone, or of another container, or a kernel before 5.3
            self._descriptor = -1

    @property
    def is_known(self) -> bool:
        return self._descriptor >= 0

    def when_gone(self, action: Callable[[], None]) -> None:
        """Has a thread do `action` once the process has ended, and not before; the descriptor goes with it."""

        def wait() -> None:
            ended = select.poll()
            ended.register(self._descriptor, select.POLLIN)
            ended.poll()
            self.close()
            action()

        threading.Thread(target=wait, name="raylog-process-gone", daemon=True).start()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
