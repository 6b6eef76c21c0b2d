"""The life of a lab under everything at once, on the virtual clock: callers, failures, members that hang, cancellation.

The oracles are the test's own: what the members noted of themselves, when callers asked and were answered, which links
are open, and the rules written down here a second time. `HYPOTHESIS` in the environment multiplies the examples.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lifecycle_parts import START_TIMEOUT, Deaf, Do, Life, Manners, Obey, Shielded, Swallow, Worker, World, old_driver

from trio_daq.config import ApplicationConfig, DualConfig, MemberConfig, RecordingConfig, SubsystemConfig
from trio_daq.errors import DaqError, StateError
from trio_daq.lifecycle import DualRuntimeManager, ManagerState, Member, ShutdownReport, Status, Supervision
from trio_daq.serialport import SerialPortConfig, SharedSerialPort
from trio_daq.sharing.wait_graph import _waiting
from trio_daq.sim import MemoryInstrument, MemoryLine, SimulatedMeter
from trio_daq.testing import TrioDriver
from trio_daq.visa import VisaSessionConfig, VisaSessionManager

MORE = int(os.environ.get("HYPOTHESIS", "1"))
"""How many times more examples than usual."""

PORT = SerialPortConfig(path="memory", timeout=1.0, quiet_time=0.1)
SESSION = VisaSessionConfig(resource="TCPIP::memory::5025::SOCKET", timeout=1.0)

GRACE = {"v2": 1.5, "v4": 2.0}
HARD = 1.0
STAGES = 4
USUAL_TIMEOUT = 9.0
SLACK = 0.25
START = START_TIMEOUT + 2.0  # it takes its leave too
TICK = 1e-6

_S = ManagerState
MOVES = {
    (_S.UNINITIALIZED, _S.STARTING),
    (_S.STARTING, _S.RUNNING),
    (_S.STARTING, _S.SHUTTING_DOWN),
    (_S.RUNNING, _S.SHUTTING_DOWN),
    (_S.SHUTTING_DOWN, _S.STOPPED),
    (_S.STOPPED, _S.STARTING),
}
LEGAL_IN = {
    "start": {_S.UNINITIALIZED, _S.STOPPED},
    "shutdown": set(_S) - {_S.UNINITIALIZED},
    "stop": {_S.RUNNING},
    "begin": {_S.RUNNING},
    "restart": {_S.RUNNING},
}
CONFIGURED = {"old": "on_failure", "plain": "always", "worker": "on_failure"}
EXPECTED = (DaqError, OSError, ValueError, trio.TooSlowError)
"""What a caller may get for an answer, besides a bug of a member."""

MEMBERS = {"v2": ("old", "plain", "extra2"), "v4": ("worker", "extra4")}
SIDE_OF = {name: side for side, names in MEMBERS.items() for name in names}


@attrs.define(eq=False)
class Caller:
    """Somebody who called the manager, and when they have to be answered at the latest."""

    what: str
    subject: str
    asked: float
    bound: float
    timeout: float = math.inf
    rules: Any = None
    message: Any = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    answered: float | None = None
    answer: Any = None


class StateWatch(trio.abc.Instrument):
    """Notes each state of a manager, whenever a task has run."""

    def __init__(self, manager: DualRuntimeManager) -> None:
        self.moves = [(0.0, manager.state)]
        self._manager = manager

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio."""
        if self._manager.state is not self.moves[-1][1]:
            self.moves.append((trio.current_time(), self._manager.state))


class LabMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.logger = logging.getLogger("trio_daq")
        self.level_before = self.logger.level
        self.logger.setLevel(logging.CRITICAL)
        self.driver = TrioDriver()
        self.driver.__enter__()
        self.driver.run(self.set_up)

    async def set_up(self) -> None:
        self.world = World(self.is_restarted_by_hand)
        self.world.on_begin, self.world.on_told = self.check_begin, self.check_order
        self.line, self.meter = MemoryLine(), MemoryInstrument(SimulatedMeter())
        members = [
            MemberConfig(
                id=name,
                driver=f"lifecycle_parts:{driver}",
                serial="stage",
                options={"world": self.world, "label": name},
                restart=CONFIGURED[name],
            )
            for name, driver in (("old", "old_driver"), ("plain", "plain_driver"), ("worker", "Worker"))
        ]
        config = DualConfig(
            application=ApplicationConfig(shutdown_timeout=USUAL_TIMEOUT),
            serial={"stage": PORT},
            visa={"meter": SESSION},
            v2=SubsystemConfig(instruments=members[:2], stop_timeout=GRACE["v2"]),
            v4=SubsystemConfig(instruments=members[2:], stop_timeout=GRACE["v4"]),
            recording=RecordingConfig(enabled=False),
        )
        self.manager = manager = DualRuntimeManager(config, on_report=self.check_report)
        manager._lines._renew = self.renew_lines  # type: ignore[method-assign]  # real ones, over links of tasks
        self.renew_lines()
        self.watch = StateWatch(manager)
        trio.lowlevel.add_instrument(self.watch)
        self.callers: list[Caller] = []
        self.requests: list[tuple[float, float]] = []
        """When a shutdown was asked for since the last start, and how long it may take."""
        self.hurried_at = math.inf
        self.reports: list[ShutdownReport] = []
        self.wrong: list[str] = []
        self.is_open = False
        self.block_error: BaseException | None = None
        self.block_bound = math.inf
        self.leave, self.body_scope = trio.Event(), trio.CancelScope()
        self.body_raises = False
        self.policies: dict[Member, str] = {}

    def renew_lines(self) -> None:
        lines = self.manager._lines
        lines.serial = {"stage": SharedSerialPort(PORT, self.line.open_stream)}
        lines.visa = {"meter": VisaSessionManager(SESSION, make_transport=self.meter.connect)}

    @initialize(started=st.sampled_from([True, True, True, False]))
    def begin(self, started: bool) -> None:
        self.driver.start(self.world.serve)
        self.driver.start(self.meter.serve)
        self.driver.start(self.talk)
        self.driver.start(self.body)
        if started:
            self.start()

    # --- what happens inside the run -----------------------------------------------------------------------------

    async def talk(self) -> None:
        """The instrument at the serial line swallows all it is told."""
        while True:
            await self.line.receive()

    async def body(self) -> None:
        self.leave, self.body_scope, self.body_raises = trio.Event(), trio.CancelScope(), False
        self.block_error, self.block_bound = None, math.inf
        try:
            with self.body_scope:
                async with self.manager:
                    self.is_open = True
                    await self.leave.wait()
                    if self.body_raises:
                        raise KeyError("the body")
        except (KeyError, TypeError, OSError) as error:
            self.block_error = error
        except Exception as error:
            self.wrong.append(f"the block raised {error!r}")
        finally:
            self.is_open = False

    async def call(self, caller: Caller, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            with caller.scope:
                caller.answer = await work()
            if caller.scope.cancelled_caught:
                caller.answer = "cancelled"
        except EXPECTED as error:
            caller.answer = error
        except Exception as error:
            caller.answer = error
            if not isinstance(error, TypeError) or "volt" not in str(error):
                self.wrong.append(f"{caller.what} {caller.subject} raised {error!r}")
        caller.answered = trio.current_time()

    async def spawn(self, name: str, rules: Supervision) -> None:
        port = self.manager.serial["stage"]
        if SIDE_OF[name] == "v4":
            await self.manager.v4.spawn(Worker, self.world, name, port, name=name, supervision=rules)
        else:
            await self.manager.v2.spawn(old_driver, self.world, name, port, name=name, supervision=rules)

    async def shut_down_and_start(self, timeout: float) -> None:
        await self.manager.shutdown(timeout)
        await self.manager.start()

    async def stop_and_begin(self, side: str, timeout: float) -> None:
        await (self.manager.stop_v2(timeout) if side == "v2" else self.manager.stop_v4(timeout))
        await (self.manager.start_v2() if side == "v2" else self.manager.start_v4())

    # --- what the test knows -------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.driver.call(trio.current_time)

    def pending(self, *what: str) -> list[Caller]:
        return [one for one in self.callers if one.answered is None and one.what in what]

    def under_way(self, *what: str) -> list[Caller]:
        """What was called for and may not have ended; a caller who was cancelled does not end it."""
        now = trio.current_time() if trio.lowlevel.in_trio_run() else self.now()
        called = [one for one in self.callers if one.what in what and now <= one.bound]
        return [one for one in called if one.answered is None or one.answer == "cancelled"]

    def is_restarted_by_hand(self, name: str) -> bool:
        return any(one.subject == name for one in self.under_way("restart"))

    def new_caller(self, what: str, subject: str, timeout: float, now: float) -> Caller:
        bound = math.inf
        match what:
            case "shutdown":
                self.note_request(now, timeout)
                if self.pending("start", "again"):  # if that fails, it asks for a shutdown too
                    self.note_request(now)
                bound = now + max(most for _, most in self.requests) + SLACK
            case "again":
                self.note_request(now, timeout)
                self.note_request(now)
                bound = now + max(most for _, most in self.requests) + 2 * START + USUAL_TIMEOUT + SLACK
            case "renew":
                bound = now + timeout + START + SLACK
            case "stop":
                bound = now + timeout + SLACK
            case "begin":
                bound = now + START + SLACK
            case "start":
                bound = now + 2 * START + USUAL_TIMEOUT + SLACK
            case "spawn":
                bound = now + START + SLACK
            case "restart":
                ahead = sum(one.subject == subject for one in self.under_way("restart"))
                start = self.world.starts.get(subject, 0.0)
                start = 0.0 if start == "fail" else START if isinstance(start, str) else min(start, START)
                bound = now + (1 + ahead) * (GRACE[SIDE_OF[subject]] + HARD + start) + SLACK
            case "ask":
                bound = now + timeout + TICK
        caller = Caller(what, subject, now, bound, timeout)
        self.callers.append(caller)
        return caller

    def stopping_since(self, side: str) -> float:
        """When the shutdown that is under way reached that side at the latest; infinity if that is not known."""
        began, state = self.watch.moves[-1]
        if state is not _S.SHUTTING_DOWN:
            return math.inf
        if side == "v4":
            return began + 1.0
        told = (life.told for life in self.world.lives if life.side == "v2" and life.told is not None)
        return math.inf if self.under_way("restart") else min((one for one in told if one > began), default=math.inf)

    def note_request(self, now: float, timeout: float = USUAL_TIMEOUT) -> None:
        self.requests.append((now, timeout))

    def launch(self, calls: list[tuple[str, str, float]], **more: Any) -> list[Caller]:
        """Let callers call, all in the same step, and let everything run until every task waits."""
        now = self.now()
        launched = []
        for what, subject, timeout in calls:
            if what == "start" and self.manager.state in (_S.UNINITIALIZED, _S.STOPPED) and not self.requests:
                self.hurried_at = math.inf
            caller = self.new_caller(what, subject, timeout, now)
            for key, value in more.items():
                setattr(caller, key, value)
            launched.append(caller)
            self.driver.call(self.driver._living_nursery().start_soon, self.call, caller, self.work(caller))
        self.driver.settle()
        return launched

    def work(self, caller: Caller) -> Callable[[], Awaitable[Any]]:
        manager, subject, timeout = self.manager, caller.subject, caller.timeout
        match caller.what:
            case "start":
                return manager.start
            case "shutdown":
                return lambda: manager.shutdown(timeout)
            case "stop":
                return lambda: (manager.stop_v2 if subject == "v2" else manager.stop_v4)(timeout)
            case "begin":
                return manager.start_v2 if subject == "v2" else manager.start_v4
            case "restart":
                return lambda: manager.restart_actor(subject)
            case "again":
                return lambda: self.shut_down_and_start(timeout)
            case "renew":
                return lambda: self.stop_and_begin(subject, timeout)
            case "spawn":
                return lambda: self.spawn(subject, caller.rules)
            case _:
                return lambda: manager.v4.actor(subject).ask(caller.message, timeout)

    # --- rules ---------------------------------------------------------------------------------------------------

    timeouts = st.sampled_from([0.5, 3.0, 5.5, 8.0, 20.0])
    sides = st.sampled_from(["v2", "v4"])
    names = st.sampled_from([name for names in MEMBERS.values() for name in names])
    calls = st.one_of(
        st.tuples(st.just("start"), st.just(""), st.just(math.inf)),
        st.tuples(st.sampled_from(["shutdown", "again"]), st.just(""), timeouts),
        st.tuples(st.sampled_from(["stop", "renew"]), sides, timeouts),
        st.tuples(st.just("begin"), sides, st.just(math.inf)),
        st.tuples(st.just("restart"), names, st.just(math.inf)),
    )

    @precondition(lambda self: not self.is_open)
    @rule()
    def enter(self) -> None:
        if self.manager._root is None:
            self.driver.start(self.body)
            self.driver.call(self.world.release.set)

    @precondition(lambda self: self.is_open and self.manager.state in LEGAL_IN["start"])
    @rule()
    def start(self) -> None:
        self.legal_or_refused("start", "", math.inf)

    @precondition(lambda self: self.manager.state is _S.RUNNING)
    @rule(what=st.sampled_from(["stop", "begin", "restart", "restart"]), side=sides, name=names, timeout=timeouts)
    def call_one(self, what: str, side: str, name: str, timeout: float) -> None:
        self.legal_or_refused(what, name if what == "restart" else side, timeout)

    @rule(what=st.sampled_from(["start", "stop", "begin", "restart"]), side=sides, name=names)
    def call_what_may_be_illegal(self, what: str, side: str, name: str) -> None:
        legal = LEGAL_IN[what]
        if self.manager.state not in legal or not self.is_open:
            self.legal_or_refused(what, name if what == "restart" else side, 3.0)

    def legal_or_refused(self, what: str, subject: str, timeout: float) -> None:
        state, living, moves = self.manager.state, self.world.living(), len(self.watch.moves)
        statuses = self.manager.v2_status(), self.manager.v4_status()
        if state in LEGAL_IN[what] and (self.is_open or what == "shutdown"):
            if what == "start":
                self.requests = []
            self.launch([(what, subject, timeout)])
            return
        [caller] = self.launch([(what, subject, timeout)])
        assert isinstance(caller.answer, StateError), (what, state, caller.answer)
        assert caller.answered == caller.asked
        assert (self.manager.state, self.world.living(), len(self.watch.moves)) == (state, living, moves)
        assert (self.manager.v2_status(), self.manager.v4_status()) == statuses

    @precondition(lambda self: self.manager.state is not _S.UNINITIALIZED)
    @rule(timeout=timeouts, hurried=st.sampled_from([False, False, True]))
    def shut_down(self, timeout: float, hurried: bool) -> None:
        self.legal_or_refused("shutdown", "", timeout)
        if hurried:
            self.hurry()

    @precondition(lambda self: self.is_open and self.manager.state is not _S.UNINITIALIZED)
    @rule(several=st.lists(calls, min_size=2, max_size=5))
    def call_many_at_once(self, several: list[tuple[str, str, float]]) -> None:
        self.launch(several)

    @precondition(lambda self: self.manager.state is _S.RUNNING)
    @rule(
        name=st.sampled_from(["extra2", "extra4"]),
        restart=st.sampled_from(["never", "on_failure", "always"]),
        on_bug=st.sampled_from(["stop", "isolate"]),
        required=st.booleans(),
    )
    def add(self, name: str, restart: Any, on_bug: Any, required: bool) -> None:
        rules = Supervision(restart=restart, on_bug=on_bug, required=required)
        self.launch([("spawn", name, math.inf)], rules=rules)

    @precondition(lambda self: self.world.lives)
    @rule(
        what=st.sampled_from(["work", "work", "hold", "fault", "bug", "hang"]),
        name=st.sampled_from(MEMBERS["v4"]),
        seconds=st.sampled_from([0.0, 0.4, 2.5, 40.0]),
        timeout=st.sampled_from([0.0, 0.3, 2.0, 10.0]),
        times=st.sampled_from([1, 1, 5]),
    )
    def ask(self, what: str, name: str, seconds: float, timeout: float, times: int) -> None:
        if what == "bug":
            self.requests.append((self.now(), USUAL_TIMEOUT))
        self.launch([("ask", name, timeout)] * times, message=Do(what, seconds))

    @precondition(lambda self: self.world.living("v2"))
    @rule(
        which=st.integers(0, 99),
        what=st.sampled_from(["fault", "fault", "fault", "bug", "hold", "hang"]),
        seconds=st.sampled_from([0.3, 4.0, 50.0, None]),
    )
    def order(self, which: int, what: str, seconds: float | None) -> None:
        living = self.world.living("v2")
        life = living[which % len(living)]
        life.orders.append((what, seconds if what == "hang" else 2.0))
        if what == "bug":
            self.requests.append((math.inf, USUAL_TIMEOUT))
        self.driver.call(life.bell.set)
        self.driver.settle()

    @precondition(lambda self: self.world.living("v2"))
    @rule(name=st.sampled_from(MEMBERS["v2"]), every=st.sampled_from([0.01, 1.0, 9.0, 13.0]))
    def let_fail_again_and_again(self, name: str, every: float) -> None:
        for _ in range(7):
            for life in self.world.living("v2"):
                if life.name == name:
                    life.orders.append(("fault", None))
                    self.driver.call(life.bell.set)
            self.driver.settle()
            self.driver.advance(every)
            self.driver.advance(0.0 if every > 5 else 5.0)

    @rule(
        name=names,
        manners=st.sampled_from(
            [Obey(), Obey(0.7), Obey(5.0), Deaf(), Swallow(0.5), Swallow(3.0), Shielded(0.6), Shielded(8.0)]
        ),
    )
    def teach(self, name: str, manners: Manners) -> None:
        self.world.manners[name] = manners
        for life in self.world.living():
            if life.name == name:
                life.manners = manners

    @rule(name=names)
    def teach_to_hang_for_ever(self, name: str) -> None:
        self.teach(name, Shielded(None))

    @precondition(lambda self: not self.under_way("restart"))
    @rule(name=st.sampled_from(MEMBERS["v4"]), start=st.sampled_from([0.0, 0.0, 2.0, 45.0, "fail", "hang"]))
    def teach_to_start(self, name: str, start: float | str) -> None:
        self.world.starts[name] = start

    @precondition(lambda self: self.manager.state is _S.RUNNING and not self.under_way("restart"))
    @rule(name=st.sampled_from(MEMBERS["v4"]))
    def restart_all_while_one_does_not_start(self, name: str) -> None:
        rules = Supervision(restart="on_failure")
        self.launch([("spawn", other, math.inf) for other in MEMBERS["v4"]], rules=rules)  # those that are not there
        self.world.starts[name] = "hang"
        self.launch([("restart", other, math.inf) for other in MEMBERS["v4"]])
        self.driver.advance(START + 5)
        self.world.starts[name] = 0.0

    @rule(name=st.sampled_from(MEMBERS["v4"]), seconds=st.sampled_from([0.0, 0.6, 1.5, 9.0]))
    def teach_to_say_farewell(self, name: str, seconds: float) -> None:
        self.world.farewells[name] = seconds

    @precondition(lambda self: any(one.answered is None for one in self.callers))
    @rule(which=st.integers(0, 99))
    def cancel_a_caller(self, which: int) -> None:
        waiting = [one for one in self.callers if one.answered is None]
        self.driver.call(waiting[which % len(waiting)].scope.cancel)
        self.driver.settle()

    @precondition(lambda self: self.manager.state is _S.RUNNING)
    @rule(side=sides, timeout=timeouts)
    def stop_and_wait_no_longer(self, side: str, timeout: float) -> None:
        [caller] = self.launch([("stop", side, timeout)])
        self.driver.call(caller.scope.cancel)
        self.driver.settle()

    @precondition(lambda self: self.is_open and self.manager.state is not _S.UNINITIALIZED)
    @rule(how=st.sampled_from(["leave", "raise", "cancel", "request", "request"]), hurried=st.booleans())
    def end_the_block(self, how: str, hurried: bool = False) -> None:
        self.note_request(self.now())
        self.block_bound = self.now() + max(most for _, most in self.requests) + SLACK
        self.body_raises = how == "raise"
        self.driver.call(
            {"cancel": self.body_scope.cancel, "request": self.manager.request_shutdown}.get(how, self.leave.set)
        )
        self.driver.settle()
        if hurried:
            self.hurry()

    def hurry(self) -> None:
        self.hurried_at = min(self.hurried_at, self.now())
        self.driver.call(self.manager.hurry)
        self.driver.settle()

    @precondition(lambda self: self.manager.state is _S.RUNNING)
    @rule()
    def hurry_for_nothing(self) -> None:
        self.driver.call(self.manager.hurry)

    @precondition(lambda self: any(life.told is not None for life in self.world.living()))
    @rule()
    def release(self) -> None:
        self.driver.call(self.world.release.set)
        self.driver.settle()
        self.world.release = trio.Event()

    @rule(seconds=st.sampled_from([0.05, 0.3, 0.9, 2.0, 2.0, 6.0, 35.0]))
    def wait(self, seconds: float) -> None:
        self.driver.advance(seconds)

    # --- what always holds ---------------------------------------------------------------------------------------

    def check_begin(self, life: Life) -> None:
        """At most one life at a time; by itself none but after an error, a pause, and so often."""
        now = trio.current_time()
        if self.manager.state is _S.STOPPED or now > self.stopping_since(life.side) + TICK:
            self.wrong.append(f"{life.name} began while its side was stopped")
        if [other for other in self.world.living() if other.name == life.name]:
            self.wrong.append(f"two lives of {life.name}")
        earlier = [other for other in self.world.lives if other.member is life.member]
        if not earlier:
            given = [one.rules.restart for one in self.pending("spawn") if one.subject == life.name]
            self.policies[life.member] = given[0] if given else CONFIGURED[life.name]
        if not earlier or life.asked:
            return
        policy = self.policies[life.member]
        last = earlier[-1]
        assert last.ended is not None
        if policy == "never" or (policy == "on_failure" and last.error is None):
            self.wrong.append(f"{life.name} began again, though it had not failed")
        if isinstance(last.error, TypeError):
            self.wrong.append(f"{life.name} began again after a bug")
        by_itself = [other.begun for other in earlier[1:] if not other.asked]
        lately = [begun for begun in by_itself if begun > last.ended - 60]
        # A pause that somebody's restart by hand cut short may count too.
        cut_short = sum(after.asked and before.told is None for before, after in itertools.pairwise(earlier))
        pauses = [min(0.2 * 2**count, 5.0) for count in range(len(lately), len(lately) + cut_short + 1)]
        if len(lately) >= 5:
            self.wrong.append(f"{life.name} began again for the {len(lately) + 1}th time: {lately}, {now}")
        if not any(0.75 * pause - TICK <= now - last.ended <= 1.25 * pause + TICK for pause in pauses):
            self.wrong.append(f"{life.name} began again {now - last.ended} s after its end, not {pauses} s")

    def check_order(self, life: Life) -> None:
        """V2 hears of a shutdown when V4 has ended, or when V4's time is over."""
        kinds = ("stop", "renew", "restart", "spawn", "begin")
        asked = {one.subject for one in self.callers if one.what in kinds and one.bound >= life.begun}
        if self.manager.state is _S.RUNNING and life.side not in asked and life.name not in asked:
            self.wrong.append(f"{life.name} was told to stop, which nobody had asked for")
        # One that was stuck when its side was stopped alone hears of that when it comes to itself, be it now.
        stopped = {one.subject for one in self.callers if one.what == "stop" and one.bound >= life.begun}
        if (
            life.side == "v4"
            or life.side in stopped
            or self.manager.state is not _S.SHUTTING_DOWN
            or self.under_way("stop", "restart", "renew")
        ):
            return
        now, (began, _) = trio.current_time(), self.watch.moves[-1]
        left = min([most for _, most in self.requests], default=USUAL_TIMEOUT)
        left -= min(1.0, left / 4)
        grace = 0.0 if self.hurried_at < math.inf else min(GRACE["v4"], max(0.0, left - STAGES * HARD))
        deadline = began + grace + min(1.0, left / STAGES / HARD) * HARD
        late = [other.name for other in self.world.living("v4")]
        if late and now < deadline - TICK:
            self.wrong.append(f"V2's {life.name} was stopped at {now}, while V4's {late} had until {deadline}")

    def check_report(self, report: ShutdownReport) -> None:
        """What runs is what the report calls stuck; what it calls stuck runs; the lines are closed."""
        now = trio.current_time()
        living = {(life.side, life.name) for life in self.world.living()}
        stuck = {(stage.name, one.name) for stage in report.stages for one in stage.stuck}
        if living - stuck:
            self.wrong.append(f"left and not reported: {living - stuck}")
        for at, stage in enumerate(report.stages):
            given_up = now - sum(later.seconds for later in report.stages[at + 1 :])
            ran = {life.name for life in self.world.lives if life.ended is None or life.ended >= given_up - TICK}
            if wrongly := {one.name for one in stage.stuck} - ran:
                self.wrong.append(f"reported as stuck though it had ended: {wrongly}")
        if self.line._stream is not None or self.meter._connections:
            self.wrong.append("a line was left open")
        if [stage.name for stage in report.stages] != [
            name for name in ("v4", "v2", "hardware", "recording") if name in {stage.name for stage in report.stages}
        ]:
            self.wrong.append(f"stages in the wrong order: {report}")
        self.reports.append(report)
        self.requests = []

    @invariant()
    def all_is_well(self) -> None:
        self.nothing_went_wrong()
        self.it_moved_along_the_table()
        self.everybody_is_answered_in_time()
        self.there_is_one_report_for_all()
        self.the_block_ends_in_time()
        self.what_was_asked_for_goes_on()

    def nothing_went_wrong(self) -> None:
        assert not self.wrong, self.wrong

    def it_moved_along_the_table(self) -> None:
        states = [state for _, state in self.watch.moves]
        assert set(itertools.pairwise(states)) <= MOVES

    def everybody_is_answered_in_time(self) -> None:
        now = self.now()
        for one in self.callers:
            assert (now if one.answered is None else one.answered) <= one.bound, one

    def there_is_one_report_for_all(self) -> None:
        given = [one for one in self.callers if one.what == "shutdown" and isinstance(one.answer, ShutdownReport)]
        for one in given:
            at = [report for report in self.reports if report is one.answer]
            assert at, one
        stopped = [time for time, state in self.watch.moves if state is _S.STOPPED]
        assert len(stopped) == len(self.reports)
        for one in given:
            # The one that was made at or after the call, or the last before if nothing ran.
            number = next(number for number, report in enumerate(self.reports) if report is one.answer)
            assert stopped[number] <= one.answered
            assert number + 1 == len(stopped) or stopped[number + 1] >= one.asked

    def what_was_asked_for_goes_on(self) -> None:
        """Nobody waits any more for a stop of one side: it is stopped all the same."""
        if self.manager.state is not _S.RUNNING:
            return
        now, sides = self.now(), {"v2": self.manager.v2_status(), "v4": self.manager.v4_status()}
        for at, one in enumerate(self.callers):
            if one.what == "stop" and one.answer == "cancelled" and now > one.bound:
                later = {other.what for other in self.callers[at + 1 :]}
                assert later & {"begin", "renew", "start", "again"} or sides[one.subject] is Status.INACTIVE, one

    def the_block_ends_in_time(self) -> None:
        if self.is_open and self.now() > self.block_bound:
            assert self.world.living(), "the block does not end"

    def teardown(self) -> None:
        try:
            self.check_the_end()
        finally:
            for life in self.world.living():
                life.manners = Obey()
            if self.driver._end is None:  # nothing may hang on when the clock stands still for good
                self.driver.call(self.world.release.set)
                self.driver.call(self.body_scope.cancel)
                self.driver.advance(300)
            self.driver.close()
            self.logger.setLevel(self.level_before)

    def check_the_end(self) -> None:
        if self.is_open:
            self.end_the_block("leave")
        for life in self.world.living():
            life.manners = Obey() if not isinstance(life.manners, Swallow) else life.manners
        for _ in range(3):
            self.release()
            self.driver.advance(70)
        self.all_is_well()
        assert [one for one in self.callers if one.answered is None] == []
        assert not self.is_open
        assert self.world.living() == []
        assert _waiting == {}
        names = self.driver.call(lambda: [task.name for task in _descendants(trio.lowlevel.current_root_task())])
        assert [name for name in names if "lifecycle.m" in name or "lifecycle.s" in name] == []


def _descendants(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield child
            yield from _descendants(child)


LabMachine.TestCase.settings = settings(max_examples=60 * MORE, stateful_step_count=40, deadline=None)
TestLabMachine = LabMachine.TestCase
