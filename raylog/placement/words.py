"""Amounts as people read them."""

from raylog.placement.model import Resource
from raylog.placement.shapes import UNIT, Worker
from raylog.units import format_bytes


def resource_text(units: float, resource: Resource, *, unit: bool = True) -> str:
    """Units as text: "2 cpu", "0.5 gpu", "64.0 GiB"; `unit=False`: "2"."""
    if resource == "memory_bytes":
        return format_bytes(units)
    return f"{units / UNIT:.12g}{' ' + resource if unit else ''}"


def worker_text(worker: Worker) -> str:
    """What a worker takes: "2 cpu, 1 gpu of A100 or H100 with 40.0 GiB, 64.0 GiB memory"."""
    parts: list[str] = []
    if worker.cpu:
        parts.append(resource_text(worker.cpu, "cpu"))
    if worker.gpu:
        types = f" of {' or '.join(worker.gpu_types)}" if worker.gpu_types else ""
        memory = f" with {format_bytes(worker.gpu_memory_bytes)}" if worker.gpu_memory_bytes else ""
        parts.append(f"{resource_text(worker.gpu, 'gpu')}{types}{memory}")
    if worker.memory_bytes:
        parts.append(f"{format_bytes(worker.memory_bytes)} memory")
    return ", ".join(parts)
