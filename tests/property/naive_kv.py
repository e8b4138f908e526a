"""The KV cache as one would write it on paper: every eviction sorts everything, nothing is put off.

Predicts which contents leave which tier, in which order; which plain block is taken is the cache's choice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from scheduler_svc.core.kv import Found, Key, ProgramKey

ENDED, IDLE, LIVE = 0, 1, 2


@dataclass(eq=False)
class Life:
    """A program from its first retention to its end."""

    standing: int = LIVE


@dataclass(eq=False)
class NaiveContent:
    """Where a content lies, when it was used last, who wants it."""

    touched: int
    device: int | None = None
    on_host: bool = False
    waiting: int = 0
    retainers: set[Life] = field(default_factory=set)

    @property
    def rank(self) -> tuple[int, int]:
        return max((life.standing for life in self.retainers), default=ENDED), self.touched


class NaiveKv:
    """Mirrors the methods of `KvCache`; takes the block ids from it."""

    def __init__(self, *, device_blocks: int, host_blocks: int) -> None:
        self.size, self.host_size = device_blocks - 1, host_blocks
        self.contents: dict[Key, NaiveContent] = {}
        self.references: dict[int, int] = {}
        self.lives: dict[ProgramKey, Life] = {}
        self.incoming: dict[int, NaiveContent] = {}
        """Device block -> the content whose host copy is read into it."""
        self.move_to_host = True
        self.uses = 0
        self.evicted = 0

    # ── figures ─────────────────────────────────────────────────────────────────────────────────────

    def unheld(self) -> list[NaiveContent]:
        return [c for c in self.contents.values() if c.device is not None and c.device not in self.references]

    @property
    def available(self) -> int:
        return self.size - len(self.references)

    @property
    def plain(self) -> int:
        return self.available - len(self.unheld())

    @property
    def host_plain(self) -> int:
        read_only = sum(not content.on_host for content in self.incoming.values())
        return self.host_size - read_only - sum(content.on_host for content in self.contents.values())

    @property
    def held(self) -> int:
        return len(self.references)

    def footprint(self, program: ProgramKey) -> int:
        life = self.lives.get(program)
        return sum(life in content.retainers for content in self.contents.values())

    @property
    def live_footprint(self) -> int:
        return sum(self.footprint(key) for key, life in self.lives.items() if life.standing == LIVE)

    def find(self, keys: Sequence[Key]) -> list[NaiveContent]:
        found = []
        for key in keys:
            if key not in self.contents:
                break
            found.append(self.contents[key])
        return found

    # ── holding ─────────────────────────────────────────────────────────────────────────────────────

    def hold(self, keys: Sequence[Key], found: Found) -> None:
        for key, block in zip(keys, found.device, strict=False):
            if block is None:
                self.contents[key].waiting += 1
            else:
                self.references[block] = self.references.get(block, 0) + 1

    def let_go(self, keys: Sequence[Key], found: Found) -> None:
        for key, block in reversed([*zip(keys, found.device, strict=False)]):
            if block is None:
                self.contents[key].waiting -= 1
            else:
                self._touch(self.contents[key])
                self._release(block)

    def bring_in(self, keys: Sequence[Key], found: Found, table: Sequence[int]) -> None:
        waiting = [
            (self.contents[key], block)
            for key, block, was in zip(keys, table, found.device, strict=False)
            if was is None
        ]
        missing = [(content, block) for content, block in waiting if content.device is None]
        for content, block in waiting:
            if content.device is not None:
                self.references[block] = self.references.get(block, 0) + 1
        self.take([block for _, block in missing])
        for content, block in missing:
            self.incoming[block] = content
            content.device = block
        for content, _ in waiting:
            content.waiting -= 1

    def take(self, blocks: Sequence[int]) -> None:
        """Blocks that the cache handed out: after all plain ones, those of the worst contents, in order."""
        plain, occupied = self.plain, {content.device for content in self.unheld()}
        assert not occupied & set(blocks[:plain]), "evicted although a block was plain"
        for block in blocks[plain:]:
            victim = min(self.unheld(), key=lambda content: content.rank)
            assert victim.device == block, "another content was to go"
            self._evict(victim)
        for block in blocks:
            assert block not in self.references
            self.references[block] = 1

    def _evict(self, content: NaiveContent) -> None:
        if self.move_to_host and content.rank[0] != ENDED:
            self._copy_to_host(content)
        self._leave_device(content)

    def _copy_to_host(self, content: NaiveContent) -> None:
        if content.on_host or content.device in self.incoming:
            return
        if not self.host_plain:
            there = [other for other in self.contents.values() if self._may_leave_host(other)]
            worst = min(there, key=lambda other: other.rank, default=None)
            if worst is None or worst.rank > content.rank:
                return
            worst.on_host = False
            self._evicted_if_gone(worst)
        content.on_host = True

    def _may_leave_host(self, content: NaiveContent) -> bool:
        return content.on_host and not content.waiting and content not in self.incoming.values()

    def _leave_device(self, content: NaiveContent) -> None:
        assert content.device is not None
        self.incoming.pop(content.device, None)
        content.device = None
        self._evicted_if_gone(content)

    def _evicted_if_gone(self, content: NaiveContent) -> None:
        if content.device is None and not content.on_host:
            self.evicted += 1
            self._erase([content])

    # ── giving back ─────────────────────────────────────────────────────────────────────────────────

    def publish(self, block: int, key: Key) -> None:
        if all(content.device != block for content in self.contents.values()):
            if key not in self.contents:
                self.contents[key] = NaiveContent(touched=0)
                self._touch(self.contents[key])
            if self.contents[key].device is None:
                self.contents[key].device = block

    def give_back(self, blocks: Sequence[int], keys: Sequence[Key], program: ProgramKey | None) -> None:
        for block, key in zip(blocks, keys, strict=False):
            self.publish(block, key)
        if program is not None and keys:
            self.lives.setdefault(program, Life()).standing = LIVE
        life = None if program is None else self.lives.get(program)
        of_block = {content.device: content for content in self.contents.values()}
        for index in reversed(range(len(blocks))):
            content = self.contents[keys[index]] if index < len(keys) else of_block.get(blocks[index])
            if content is not None:
                self._touch(content)
            if content is not None and index < len(keys) and life is not None:
                content.retainers.add(life)
            self._release(blocks[index])

    def _release(self, block: int) -> None:
        self.references[block] -= 1
        if not self.references[block]:
            del self.references[block]

    def _touch(self, content: NaiveContent) -> None:
        self.uses += 1
        content.touched = self.uses

    # ── forced ──────────────────────────────────────────────────────────────────────────────────────

    def own(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self.contents[key].on_host = False
            del self.contents[key]

    def forget(self, keys: Iterable[Key]) -> None:
        for content in self._untouched(keys):
            if content.device is not None:
                self.incoming.pop(content.device, None)
            self._erase([content])

    def expel(self, keys: Iterable[Key]) -> None:
        for key in keys:
            content = self.contents.get(key)
            if content in self.unheld():
                assert content is not None
                self._copy_to_host(content)
                if content.on_host:
                    self._leave_device(content)

    def _untouched(self, keys: Iterable[Key]) -> list[NaiveContent]:
        known = [self.contents[key] for key in dict.fromkeys(keys) if key in self.contents]
        return [c for c in known if not c.waiting and c.device not in self.references]

    def _erase(self, contents: Iterable[NaiveContent]) -> None:
        for content in contents:
            self.contents = {key: other for key, other in self.contents.items() if other is not content}

    # ── programs ────────────────────────────────────────────────────────────────────────────────────

    def active(self, program: ProgramKey) -> None:
        if program in self.lives:
            self.lives[program].standing = LIVE

    def idle(self, program: ProgramKey) -> None:
        if program in self.lives:
            self.lives[program].standing = IDLE

    def ended(self, program: ProgramKey) -> None:
        if program in self.lives:
            self.lives.pop(program).standing = ENDED
