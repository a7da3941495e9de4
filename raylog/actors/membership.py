"""A process's membership of the cluster: certificate from the key actor by join token, renewed before it expires."""

import logging
import threading
import time
from collections.abc import Callable

from raylog.actors import calls
from raylog.errors import RaylogError

log = logging.getLogger("raylog.membership")
RENEWAL_PERIOD_S = 60.0
