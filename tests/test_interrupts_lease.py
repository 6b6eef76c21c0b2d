"""Ctrl-C at every executed line of the lease and what it is made of."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import trio
from interrupt_everywhere import Virtual, interrupt_everywhere, surviving

from trio_daq.errors import DaqError
from trio_daq.sharing import Bell, Claim, Lease, LineKind, ServiceNursery, SharedDevice, acquire_all

MODULES = [
    f"sharing/{name}.py"
    for name in (
        "lease",
        "wait_graph",
        "several",
        "alarms",
        "bell",
        "deadlines",
        "owner",
        "service_nursery",
        "shared_device",
    )
]


class Line:
    """Something that `acquire_all` takes."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.order = (lease.kind, lease.resource)

    def acquire(self, owner, timeout):
        return self.lease.hold(owner, timeout)


class LeaseWorld(Virtual):
    """Tasks that take, wait for, time out on, lose and give back two leases, and wait for a bell."""

    resting_alarms = 3

    def __init__(self) -> None:
        super().__init__()
        self.leases = [Lease("one"), Lease("two", kind=LineKind.VISA, max_hold=5.0)]
        self.inside: list[list[Claim]] = [[], []]
        self.bell = Bell()
        self.device = SharedDevice("camera", object())

    def works(self):
        return [
            partial(self.use, 0, 0.0, 0.3),
            partial(self.use, 0, 0.1, 0.3),
            partial(self.use, 0, 0.1, 0.3, timeout=0.05),
            partial(self.use, 0, 0.2, 0.1, cancel=0.1),
            partial(self.use, 1, 0.0, 9.0),
            partial(self.use, 1, 0.1, 0.5, timeout=20),
            partial(self.use, 1, 0.2, 0.5, timeout=20, cancel=7),
            self.use_both,
            self.take_back,
            partial(self.use_device, 0.0),
            partial(self.use_device, 0.1),
            self.wait_for_bell,
            self.ring,
        ]

    async def use(self, which, at, hold, timeout=2.0, cancel=float("inf")):
        await trio.sleep(at)
        with trio.move_on_after(cancel):
            try:
                async with self.leases[which].hold(timeout=timeout) as claim:
                    self.enter(which, claim)
                    try:
                        await trio.sleep(hold)
                    finally:
                        self.leave(which, claim)
            except DaqError:
                pass

    async def use_both(self):
        await trio.sleep(0.5)
        try:
            async with ServiceNursery() as nursery:
                nursery.start_soon(trio.sleep, 0.1)
                async with acquire_all(*map(Line, self.leases), timeout=30) as claims:
                    self.enter(0, claims[0])
                    self.enter(1, claims[1])
                    await trio.sleep(0.2)
                    self.leave(0, claims[0])
                    self.leave(1, claims[1])
        except DaqError:
            pass

    async def use_device(self, at):
        await trio.sleep(at)
        with contextlib.suppress(DaqError):
            async with self.device.acquire():
                await trio.sleep(0.5)

    async def take_back(self):
        self.device.revoke("the test says so")
        await trio.sleep(0.15)
        self.leases[0].revoke("the test says so")
        await trio.sleep(2)
        claim = self.leases[0].seize("fireman", "it burns")
        try:
            await trio.sleep(0.1)
        finally:
            claim.release()

    async def wait_for_bell(self):
        with trio.move_on_after(0.2):
            await self.bell.wait()
        await self.bell.wait()

    async def ring(self):
        while True:
            await trio.sleep(1)
            self.bell.ring()
            if trio.current_time() > 10:
                break

    def enter(self, which, claim):
        self.inside[which].append(claim)
        if sum(one.alive for one in self.inside[which]) > 1:
            self.wrong.append(f"two are inside of {which}")

    def leave(self, which, claim):
        self.inside[which].remove(claim)

    def judge(self):
        for lease in (*self.leases, self.device._lease):
            waiting = [claim.owner for claim in lease._waiting]
            if lease.holder is not None or waiting or lease._limiter.borrowed_tokens:
                self.wrong.append(f"{lease.resource} is not free: {lease.holder}, {waiting}")


class Dying(LeaseWorld):
    """Nobody catches it."""

    async def main(self):
        async with trio.open_nursery() as nursery:
            for number, work in enumerate(self.works()):
                nursery.start_soon(work, name=f"task {number}")
            await self.use(0, 0.05, 0.1)  # the main task, which gets those that must wait
            await self.use(1, 0.0, 0.1, timeout=20)


class Surviving(LeaseWorld):
    """It ends one task, and the others go on."""

    async def main(self):
        await surviving(self, *self.works())
        for lease in self.leases:
            async with lease.hold("afterwards", timeout=0):
                pass
        for lease in self.leases:
            lease.turn_away(lambda owner: DaqError())


@pytest.mark.parametrize("world", [Dying, Surviving])
def test_lease(world):
    """No lease is lost and nothing is left, whether the interrupt ends the program or one task."""
    interrupt_everywhere(world, MODULES, budget=100)
