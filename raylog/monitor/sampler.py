"""One node's whole sample: host, GPUs and transfers put together."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from raylog.monitor.host import HostSampler, hostname
from raylog.monitor.meter import TransferMeter
from raylog.monitor.nvml import NvmlSampler
from raylog.monitor.samples import NodeSample, ScrubSample, TierSample
from raylog.spec import new_id


class NodeSampler:
    """Samples the node it runs on. `meter` is what the node actor counts its transfers with; `disk_paths` are the
    directories of its disk tiers. Thread-safe: a sample asked for while one is taken waits for it."""

    def __init__(self, node_id: str, meter: TransferMeter, disk_paths: Sequence[Path]) -> None:
        self._node_id = node_id
        self._incarnation = new_id()
        self._meter = meter
        self._host = HostSampler(disk_paths)
        self._gpus = NvmlSampler()
        self._lock = threading.Lock()

    def sample(self, tiers: Sequence[TierSample] = (), scrub: ScrubSample | None = None) -> NodeSample:
        """The node now, with the tiers as its store describes them and how far its scrub is. Takes milliseconds, at
        most about 2 s when the GPU driver hangs; raises nothing for what hardware does."""
        with self._lock:
            report = self._gpus.sample()
            host = self._host.sample()
            return NodeSample(
                node_id=self._node_id,
                hostname=hostname(),
                incarnation=self._incarnation,
                time_s=time.time(),
                monotonic_s=time.monotonic(),
                host=host,
                transfer=self._meter.counters(),
                gpus=report.gpus,
                gpu_problem=report.problem,
                tiers=tuple(tiers),
                scrub=scrub,
            )

    def close(self) -> None:
        """Gives the GPU driver back and ends the sampler's thread."""
        with self._lock:
            self._gpus.close()
