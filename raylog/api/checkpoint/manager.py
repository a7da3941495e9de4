"""`CheckpointManager`: the state of a run, step by step, saved while the run goes on."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as futures_wait
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self

from raylog.api.checkpoint.load import load
from raylog.api.checkpoint.save import Saver
from raylog.api.checkpoint.snapshot import Snapshot, lies_ready
from raylog.api.checkpoint.tree import Taken, prefix_of, take_apart
from raylog.api.client import Client, connect
from raylog.api.get import Reading
from raylog.api.put_options import PutOptions
from raylog.api.ranks import agree, find_rank
from raylog.api.sources.tensors import source_tensor
from raylog.api.together import Together
from raylog.catalog.parts import positions_of
from raylog.errors import DeadlineExceeded, NotFound, RaylogError, UsageError
from raylog.spec import Reference, Use, Version, parse_name

log = logging.getLogger("raylog.checkpoint")
STEP_LABEL, WORLD_SIZE_LABEL = "step", "world_size"
SAVE_TIMEOUT_S = 1800.0
TOGETHER_TIMEOUT_S = 900.0  # from one rank's last shard to that of the slowest


class CheckpointManager:
    """Checkpoints of one run, the versions of the artifact `name`. `client`: a connection that is there already; else
    this manager makes its own.

    A state is a tensor, array, number, text, bytes or None, or lists, tuples and mappings of them; no pickle. It is cut
    into chunks, and chunks that the checkpoint before has too are not stored again. A step exists once all of it is
    stored and promised (`replicas`, `erasure`, `backup` and `durability` as in `Client.put`; "memory" is the fastest,
    and nodes write what they promised there to their disks afterwards), and not before: what was killed in between
    leaves nothing. The newest `keep` are kept (None: all).

    Of several ranks (`rank` of `world_size`: as given, else as torch.distributed or Ray Train say), all make a manager
    and call `save` for the same steps, each with its own state: the step is there once all of them are stored, as one
    version. Where they have neither of both, `run` is a text that all have and that is another for each start.

    `save` of steps that are no multiples of `every` does nothing. Use it as a context manager, or `close` it: that
    waits for the save in flight. For one thread.

    Raises `UsageError`, and as `connect`.
    """

    def __init__(
        self,
        name: str,
        *,
        keep: int | None = None,
        every: int = 1,
        client: Client | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        run: str | None = None,
        replicas: int = 1,
        erasure: str | None = None,
        backup: str | None = None,
        durability: str = "disk",
        codec: str = "none",
        allow_nan: bool = False,
    ) -> None:
        if every < 1 or (keep is not None and keep < 1):
            raise UsageError(f"expected every and keep from 1, got every={every} and keep={keep}")
        self.name, self._every, self._keep = parse_name(name), every, keep
        self.rank, self.world_size = find_rank(rank, world_size)
        self._saves = 0
        self._steps: dict[int, int | None] = {}  # by version number: its step; None for what is no checkpoint
        self._is_interrupted = self._is_closed = False
        options = PutOptions.parse(
            replicas=replicas,
            durability=durability,
            codec=codec,
            labels={"use": Use.CHECKPOINT},
            backup=backup,
            erasure=erasure,
        )
        with ExitStack() as kept:
            self._client = client or kept.enter_context(connect())
            self._session = self._client._session
            self._saver = Saver(self._session, self.name, options, rank=self.rank, allow_nan=allow_nan)
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            kept.callback(lambda: self._saver.close(is_interrupted=self._is_interrupted))
            kept.callback(self._executor.shutdown)
            newest = max((number for number, step in self._look().items() if step is not None), default=0)
            self._agreed = agree(run, (self.rank, self.world_size), newest)
            self._kept = kept.pop_all()
        self._snapshot = Snapshot()
        self._in_flight: tuple[int, Future[Version]] | None = None
        self._is_keeping = keep is None or self.rank > 0

    def save(self, step: int, state: Any, *, blocking: bool = False) -> bool:
        """Saves `state` as `step`; False where `every` leaves it out. Returns as soon as the state is copied, and the
        rest is done by a thread; with `blocking`, when it is stored. A save that is in flight is waited for first.

        Raises `UsageError` naming the key of what cannot be saved, and what kept the save before, or this one if it is
        `blocking`, from being stored: a NaN (unless `allow_nan`), and as `Client.put`. The steps before stay.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise UsageError(f"expected a step from 0, got {step!r}")
        if self._is_closed:
            raise UsageError(f"{self.name}: this manager is closed, step {step} is not stored: make another")
        if step % self._every:
            return False
        self._saves += 1  # also of those that fail: all ranks count alike
        try:
            self.wait()
            taken = self._copied(state, blocking)
            storing = self._executor.submit(self._store, taken, self._together(step), step)
        except BaseException as error:
            self._give_up(step, error)
            raise
        self._in_flight = step, storing
        if blocking:
            try:
                self.wait()
            except BaseException:
                futures_wait([storing])  # it may read the state itself, which is the caller's again
                raise
        return True

    def _copied(self, state: Any, blocking: bool) -> Taken:
        """The state taken apart, its tensors in memory that nobody changes meanwhile."""
        taken = take_apart(state, prefix_of(self.rank))
        for name, value in taken.arrays.items():
            source_tensor(name, value)  # refuses what has no stored form
        if not blocking or not all(lies_ready(value) for value in taken.arrays.values()):
            taken.arrays = self._snapshot.take(taken.arrays)
        return taken

    def _together(self, step: int) -> Together | None:
        """With the other ranks; the same for all of them at the same save."""
        if self.world_size == 1:
            return None
        artifact = f"{self.name} {self.world_size}"
        version = f"{artifact} {self._saves} {step}"
        return Together(
            rank=self.rank,
            others=range(1, self.world_size),
            version_id=self._agreed.id_of(version),
            artifact_id=self._agreed.id_of(artifact),
            timeout_s=TOGETHER_TIMEOUT_S,
        )

    def _give_up(self, step: int, error: BaseException) -> None:
        together = self._together(step)
        if together is not None:
            with suppress(RaylogError):  # they find out by their deadline
                together.give_up(self._session, f"{type(error).__name__}: {error}")

    def _store(self, taken: Taken, together: Together | None, step: int) -> Version:
        labels = {STEP_LABEL: str(step), WORLD_SIZE_LABEL: str(self.world_size)}
        version = self._saver.save(taken, labels, together)
        if not self._is_keeping:
            try:
                self._client.keep(self.name, self._keep)
                self._is_keeping = True
            except RaylogError as error:
                log.warning("older steps of %s are kept until the next is stored: %s", self.name, error)
        return version

    def wait(self, timeout_s: float = SAVE_TIMEOUT_S) -> None:
        """Until the save in flight is stored. Raises what kept it from that, once, and `DeadlineExceeded`."""
        if self._in_flight is None:
            return
        step, future = self._in_flight
        if not futures_wait([future], timeout_s).done:
            raise DeadlineExceeded(
                f"{self.name}: step {step} was not stored within {timeout_s:.0f} s; it goes on: wait again"
            )
        self._in_flight = None
        error = future.exception()
        if error is not None:
            error.add_note(f"{self.name}: step {step} was not stored, the steps before it stay")
            raise error

    def load(self, step: int | None = None, *, key: str = "", into: Any = None, rank: int | None = None) -> Any:
        """The state of a step, by default of the one that was stored last; None when there is none yet. A save in
        flight is waited for. `rank`: whose state, by default this rank's.

        `key`: a JSON pointer such as "/model", for that part alone. Tensors of `into`, a state of the same build, are
        filled where they lie, and are those of what is returned. Raises `NotFound` for a step that is not there,
        `UsageError` for a key or target that does not fit, a tensor of `into` included that the state lacks,
        `DamagedData`.
        """
        self.wait()
        while True:
            number = self._find(step)
            if number is None:
                return None
            try:
                reading = Reading(self._session, Reference(self.name, number))
                return self._read(reading, key, into, rank)
            except NotFound:
                if step is not None or self._find(None) == number:
                    raise  # else another manager keeps fewer: there is a later one

    @contextmanager
    def train_checkpoint(self, step: int | None = None) -> Iterator[Any]:
        """A `ray.train.Checkpoint` that says which step of this manager it is, for `ray.train.report(metrics,
        checkpoint=...)` within the context; the state stays in raylog. Raises `NotFound`."""
        from raylog.api.checkpoint.train import pointing_to

        self.wait()
        number = self._find(step)
        if number is None:
            raise NotFound(f"{self.name} has no step yet: save one first")
        with pointing_to(Reference(self.name, number)) as checkpoint:
            yield checkpoint

    def load_train_checkpoint(
        self, checkpoint: Any, *, key: str = "", into: Any = None, rank: int | None = None
    ) -> Any:
        """The state that a `ray.train.Checkpoint` of `train_checkpoint` names, such as `ray.train.get_checkpoint()`
        gives after a restart; the other arguments and errors are those of `load`."""
        from raylog.api.checkpoint.train import pointed_to

        return self._read(Reading(self._session, pointed_to(checkpoint)), key, into, rank)

    def _read(self, reading: Reading, key: str, into: Any, rank: int | None) -> Any:
        whose = self._whose(rank, reading)
        return load(reading, prefix_of(whose), key, into, positions_of(reading.manifest, whose))

    def _whose(self, rank: int | None, reading: Reading) -> int:
        """The rank whose state is read."""
        saved = int(reading.manifest.labels.get(WORLD_SIZE_LABEL, "1"))
        if rank is None and saved not in (1, self.world_size):
            raise UsageError(
                f"{reading.manifest.name} was saved by {saved} ranks, here are {self.world_size}: say by rank= whose "
                "state to load"
            )
        found = min(self.rank, saved - 1) if rank is None else rank
        if not 0 <= found < saved:
            raise UsageError(f"expected a rank from 0 to {saved - 1}, got {rank}")
        return found

    def steps(self) -> list[int]:
        """Those that are stored, in order. A save in flight is waited for."""
        self.wait()
        return sorted({step for step in self._look().values() if step is not None})

    def _find(self, step: int | None) -> int | None:
        """The version that holds a step; of several the last, and the last of all for None."""
        found = [(number, one) for number, one in self._look().items() if one is not None and step in (None, one)]
        if step is None and not self._saves and self.world_size > 1:  # all ranks begin at one step, whoever else saves
            found = [(number, one) for number, one in found if number <= self._agreed.number]
        if not found and step is not None:
            raise NotFound(f"{self.name} has no step {step}; it has {self.steps() or 'none'}")
        return max(found)[0] if found else None

    def _look(self) -> dict[int, int | None]:
        """Steps by version number."""
        try:
            versions = self._client.versions(self.name)
        except NotFound:
            return {}
        self._steps = {
            one.number: self._steps[one.number] if one.number in self._steps else self._step_of(one) for one in versions
        }
        return self._steps

    def _step_of(self, version: Version) -> int | None:
        try:
            labels = self._session.manifest(Reference(version.name, version.number)).labels
        except NotFound:
            return None  # deleted a moment ago
        step = labels.get(STEP_LABEL, "")
        return int(step) if step.isascii() and step.isdigit() else None

    def close(self) -> None:
        """Waits for the save in flight, and raises what kept it from being stored; then for what nodes still write."""
        self._is_closed = True
        try:
            self.wait()
        finally:
            self._kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: Any) -> None:
        if kind is None:
            self.close()
            return
        self._is_interrupted = True
        try:
            self.close()
        except RaylogError as failed:
            log.warning("%s, while the run ended by %s", failed, kind.__name__)
