"""A KV cache, a naive one beside it, and an executor's memory behind it.

Calls look for prefixes, start, are paused with partial tails, go on, and end, for programs that fall idle,
come back and end. Each eviction must be the one that a full sort would choose. Copies are carried out as an
executor does it: outs, ins, then the forward pass; after each plan every key that is found must hold its
content.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import product

from scheduler_svc.core.ids import BlockId, ProgramId, TenantId
from scheduler_svc.core.kv import NOTHING_FOUND, Found, Key, KvCache, ProgramKey, private_key
from tests.property.naive_kv import NaiveKv

PROGRAMS: list[ProgramKey] = [(TenantId("acme"), ProgramId(name)) for name in "abcd"]
BLOCKS_MAX = 5
"""Full blocks of a prompt. It is a word of x and y, a letter a block: equal prefixes are equal contents."""


def chain(prompt: str) -> list[Key]:
    """Stands for chained hashes: the key of a block is everything up to it."""
    return [prompt[: end + 1].ljust(16).encode() for end in range(len(prompt))]


PROMPTS = ["".join(word) for blocks in range(1, BLOCKS_MAX + 1) for word in product("xy", repeat=blocks)]


@dataclass(eq=False)
class Call:
    """A call: full blocks of its prompt, then a tail that each forward pass changes."""

    prompt: str
    tail: list[Key]
    program: ProgramKey | None
    found: Found = NOTHING_FOUND
    named: int = 0
    """Leading blocks that were found or published while it ran."""
    table: list[BlockId] = field(default_factory=list)
    values: list[Hashable] = field(default_factory=list)
    """What its blocks hold once the pending copies are done; None: nothing yet."""

    @property
    def keys(self) -> list[Key]:
        return [*chain(self.prompt), *self.tail]

    @property
    def certain(self) -> int:
        """Leading blocks of the prompt that are computed."""
        full = self.values[: len(self.prompt)]
        return full.index(None) if None in full else len(full)


class KvWorld:
    """Each method is something that may happen; calls are picked by any number, modulo how many there are."""

    def __init__(self, *, device_blocks: int, host_blocks: int) -> None:
        self.cache = KvCache(device_blocks=device_blocks, host_blocks=host_blocks)
        self.naive = NaiveKv(device_blocks=device_blocks, host_blocks=host_blocks)
        self.device: dict[int, Hashable] = {}
        self.host: dict[int, Hashable] = {}
        self.private: dict[Key, Hashable] = {}
        """What the blocks of private keys hold."""
        self.waiting: list[Call] = []
        """They hold what they have found."""
        self.running: list[Call] = []
        self.paused: list[Call] = []
        self.calls = self.plans = self.outs = self.ins = 0

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────

    def look(self, prompt: str, tail: int, program: ProgramKey | None) -> None:
        """A new call finds its prefix and holds it."""
        self.calls += 1
        keys = [private_key(self.calls, index) for index in range(tail)]
        self._wait(Call(prompt, keys, program))

    def look_again(self, which: int) -> None:
        if self.paused:
            self._wait(self.paused.pop(which % len(self.paused)))

    def _wait(self, call: Call) -> None:
        call.found = self.cache.find(call.keys)
        self.cache.hold(call.found)
        self.naive.hold(call.keys, call.found)
        self.waiting.append(call)

    def give_up(self, which: int) -> None:
        if self.waiting:
            call = self.waiting.pop(which % len(self.waiting))
            self.cache.let_go(call.found)
            self.naive.let_go(call.keys, call.found)
            self.paused.append(call)

    def admit(self, which: int) -> None:
        """A waiting call starts, if there is room."""
        if not self.waiting:
            return
        call = self.waiting[which % len(self.waiting)]
        known, missing = len(call.found), len(call.keys) - len(call.found)
        if self.cache.available < call.found.to_bring + missing:
            return
        self.waiting.remove(call)
        brought = self.cache.bring_in(call.found)
        self.naive.bring_in(call.keys, call.found, brought)
        taken = self.cache.take(missing)
        self.naive.take(taken)
        call.table = [*brought, *taken]
        call.named = min(known, len(call.prompt))
        call.values = [self.private.get(key, key) for key in call.keys[:known]] + [None] * missing
        self.running.append(call)
        for cache in (self.cache, self.naive):
            cache.own(call.tail[: max(0, known - len(call.prompt))])
            cache.forget(call.tail)

    def publish(self, which: int, block: int) -> None:
        """A running call publishes its first certain blocks."""
        if not self.running:
            return
        call = self.running[which % len(self.running)]
        if call.certain:
            upto = block % call.certain + 1
            call.named = max(call.named, upto)
            self.cache.publish(call.table[:upto], call.keys[:upto])
            for at in range(upto):
                self.naive.publish(call.table[at], call.keys[at])

    def end(self, which: int, fewer: int) -> None:
        """A running call ends and names its certain blocks, or `fewer`."""
        if self.running:
            call = self.running.pop(which % len(self.running))
            keys = call.keys[: max(call.named, call.certain - fewer)]
            self.cache.give_back(call.table, keys, call.program)
            self.naive.give_back(call.table, keys, call.program)

    def pause(self, which: int, then: str) -> None:
        """A running call is preempted; what is uncertain keeps private keys.

        Args:
            then: "expel" or "drop" forces where its blocks go.
        """
        if not self.running:
            return
        call = self.running.pop(which % len(self.running))
        full = len(call.prompt)
        keys = call.keys[: call.certain]
        if None not in call.values:
            keys = call.keys
            self.private.update(zip(call.tail, call.values[full:], strict=True))
        self.cache.give_back(call.table[full:], keys[full:], call.program)
        self.cache.give_back(call.table[:full], keys[:full], call.program)
        self.naive.give_back(call.table, keys, call.program)
        if then == "expel":
            self.cache.expel(keys)
            self.naive.expel(keys)
        elif then == "drop":
            self.cache.drop(keys)
            self.naive.forget(keys)
        self.paused.append(call)

    def cancel_paused(self, which: int) -> None:
        if self.paused:
            call = self.paused.pop(which % len(self.paused))
            self.cache.forget(call.tail)
            self.naive.forget(call.tail)

    # ── programs and operators ──────────────────────────────────────────────────────────────────────

    def active(self, program: ProgramKey) -> None:
        self.cache.program_active(program)
        self.naive.active(program)

    def idle(self, program: ProgramKey) -> None:
        self.cache.program_idle(program)
        self.naive.idle(program)

    def ended(self, program: ProgramKey) -> None:
        self.cache.program_ended(program)
        self.naive.ended(program)

    def drop(self, prompt: str) -> None:
        self.cache.drop(chain(prompt))
        self.naive.forget(chain(prompt))

    def expel(self, prompt: str) -> None:
        self.cache.expel(chain(prompt))
        self.naive.expel(chain(prompt))

    def price(self, worth_it: bool) -> None:
        self.cache.move_to_host = self.naive.move_to_host = worth_it

    # ── the executor ────────────────────────────────────────────────────────────────────────────────

    def plan(self) -> None:
        """The executor copies, then runs the forward pass of all running calls."""
        outs, ins = self.cache.drain_swaps()
        assert self.cache.swaps_pending == 0
        assert len({host for _, host in outs}) == len(outs), "two copies to one block"
        assert len({device for _, device in ins}) == len(ins), "two copies to one block"
        self.outs, self.ins = self.outs + len(outs), self.ins + len(ins)
        assert (self.outs, self.ins) == (self.cache.swapped_out, self.cache.swapped_in)
        self.naive.incoming.clear()
        self.host.update([(host, self.device.get(device)) for device, host in outs])
        self.device.update([(device, self.host.get(host)) for host, device in ins])
        self._check_tables()
        self._forward()
        self._check_contents()

    def _check_tables(self) -> None:
        for call in self.running:
            for block, value in zip(call.table, call.values, strict=True):
                assert value is None or self.device[block] == value, "a call goes on with another content"

    def _forward(self) -> None:
        self.plans += 1
        for call in self.running:
            for index, block in enumerate(call.table):
                if index >= len(call.prompt):
                    call.values[index] = (call.tail[index - len(call.prompt)], self.plans)
                elif call.values[index] is None:
                    call.values[index] = call.keys[index]
                else:
                    continue
                self.device[block] = call.values[index]

    def _check_contents(self) -> None:
        for key, device, host in self.cache.contents():
            value = self.private.get(key, key)
            assert device is None or self.device[device] == value, "a key names another content"
            assert host is None or self.host[host] == value, "a host copy is of another content"

    # ── what must hold ──────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """The books are right, and both caches agree on everything that can be seen."""
        held = [[b for b in call.found.device if b is not None] for call in self.waiting]
        self.cache.check([*held, *(call.table for call in self.running)])
        for figure in ("available", "plain", "held", "host_plain", "evicted", "live_footprint"):
            assert getattr(self.cache, figure) == getattr(self.naive, figure), figure
        for program in PROGRAMS:
            assert self.cache.footprint(program) == self.naive.footprint(program)
        for block in range(1, self.cache.size + 1):
            assert self.cache.references(BlockId(block)) == self.naive.references.get(block, 0)
        places = {key: (device, host is not None) for key, device, host in self.cache.contents()}
        assert places == {key: (there.device, there.on_host) for key, there in self.naive.contents.items()}
        for prompt in PROMPTS:
            self._check_found(chain(prompt))
        for call in self.paused:
            self._check_found(call.keys)
        self._check_departures()

    def _check_departures(self) -> None:
        """If the running calls left one after the other: a block is free when the last that holds it has."""
        departures, left = self.cache.departures(), Counter[int]()
        for call in self.running:
            left.update(call.table)
            freed = sum(left[block] == self.naive.references[block] for block in call.table)
            assert departures.add(call.table, call.keys) == freed

    def _check_found(self, keys: list[Key]) -> None:
        found = self.cache.find(keys)
        assert list(found.device) == [there.device for there in self.naive.find(keys)]
        assert found.to_bring == found.device.count(None)
