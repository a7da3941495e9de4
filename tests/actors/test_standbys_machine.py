"""Runs of an actor on three machines, in any order that hypothesis finds: they die, are taken for dead, come back, take
each other's place half-way. Whoever runs has all that anybody ever acknowledged."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raylog.actors.standbys import Standbys
from raylog.errors import Unavailable
from raylog.testing.register import MemoryRegister

MACHINES = ("head", "first", "second")
machines = st.sampled_from(MACHINES)


class Ended(Exception):
    """The actor's process has."""


@dataclass
class Machine:
    """What is on its disk: the actor's own state, and the standby's copy, which takes nothing from runs below `fence`.
    `made`: a state made of the copy, to begin with; nothing is taken in while there is one."""

    state: set[int] = field(default_factory=set)
    copy: set[int] = field(default_factory=set)
    fence: int = 0
    made: set[int] | None = None


@dataclass
class Run:
    """A process with the actor."""

    machine: str
    standbys: Standbys


class Failover(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.register = MemoryRegister()
        for name in MACHINES:
            self.register.enlist(name)
        self.machines = {name: Machine() for name in MACHINES}
        self.runs: list[Run] = []  # processes that live, those among them that Ray takes for dead too
        self.named: Run | None = None
        self.acknowledged: set[int] = set()
        self.items = 0
        self.now_s = 0.0
        self.begin("head")
        for standby in self.runs[0].standbys.waiting():
            self.runs[0].standbys.admit(standby, lambda _: None)

    def begin(self, name: str) -> None:
        """A process begins; it may find that it must not."""

        def end() -> None:
            raise Ended

        standbys = Standbys(
            "it", self.register, machine=name, state_id=name, when_superseded=end, clock=lambda: self.now_s
        )
        run = Run(name, standbys)
        self.runs.append(run)
        self.named = run
        machine = self.machines[name]
        assert self.acknowledged <= machine.state, f"{name} runs without {self.acknowledged - machine.state}"

    def runs_on(self, name: str) -> bool:
        return any(run.machine == name for run in self.runs)

    def bring(self, run: Run, items: set[int], standby: str) -> None:
        machine = self.machines[standby]
        if machine.made is not None or run.standbys.term < machine.fence:
            raise Unavailable("it does not take it")
        machine.copy |= items

    def end(self, run: Run) -> None:
        self.runs.remove(run)

    @precondition(lambda self: self.named is None)
    @rule(name=machines)
    def starts_where_its_state_is(self, name: str) -> None:
        """By hand, or by Ray after a crash: on the machine whose state is the newest that is known."""
        if not self.runs_on(name) and self.register.holder("it") in ("", name):
            self.begin(name)

    @precondition(lambda self: self.named is None)
    @rule(name=machines)
    def prepares_to_take_over(self, name: str) -> None:
        machine = self.machines[name]
        is_in_sync = name in self.register.in_sync("it", self.register.term("it"))
        if not self.runs_on(name) and is_in_sync:
            machine.made = set(machine.copy)

    @precondition(lambda self: self.named is None)
    @rule(name=machines)
    def takes_over(self, name: str) -> None:
        machine = self.machines[name]
        if machine.made is None or self.runs_on(name):
            return
        before, machine.state = machine.state, machine.made
        try:
            self.begin(name)
            machine.fence = self.register.term("it")
        except Unavailable:
            machine.state = before
        machine.made = None

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def acknowledges(self, data: st.DataObject) -> None:
        """A run makes something; those taken for dead do as well."""
        run = data.draw(st.sampled_from(self.runs))
        lost = data.draw(st.sampled_from([(), ("first",), ("second",), MACHINES]))
        state = self.machines[run.machine].state
        self.items += 1
        state.add(self.items)

        def bring(standby: str) -> None:
            if standby in lost:
                raise Unavailable("too slow")
            self.bring(run, state, standby)

        try:
            run.standbys.acknowledge(bring)
            self.acknowledged.add(self.items)
        except Unavailable:
            pass
        except Ended:
            self.end(run)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def admits(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.runs))
        state = self.machines[run.machine].state
        self.now_s += 100
        try:
            for standby in run.standbys.waiting():
                run.standbys.admit(standby, lambda one: self.bring(run, state, one))
        except Unavailable:
            pass
        except Ended:
            self.end(run)

    @precondition(lambda self: self.named is not None)
    @rule(is_alive=st.booleans())
    def ray_takes_it_for_dead(self, is_alive: bool) -> None:
        run, self.named = self.named, None
        if run in self.runs and not is_alive:
            self.end(run)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def a_process_dies(self, data: st.DataObject) -> None:
        """Ray starts it again, if it is the one that it knows of."""
        run = data.draw(st.sampled_from(self.runs))
        self.end(run)
        if run is self.named:
            self.begin(run.machine)

    @invariant()
    def the_named_run_has_everything(self) -> None:
        if self.named in self.runs and self.named is not None:
            assert self.acknowledged <= self.machines[self.named.machine].state


TestFailover = Failover.TestCase
TestFailover.settings = settings(max_examples=1500, stateful_step_count=25, deadline=None)
