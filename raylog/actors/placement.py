"""The placement actor: live capacity from the monitor actor into the placement model, and plans out."""

import time

from raylog.actors import calls
from raylog.errors import RaylogError
