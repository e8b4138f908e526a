"""Copies between the tiers that the next plan will order.

The executor first copies all outs, then all ins, then runs the forward pass. Hence the rules that the cache
keeps: a host block that an in reads is not the target of an out after it was found; the target of an in is no
source of an out. Each block is the target of one copy at most: what would be overwritten is not copied.
"""

from scheduler_svc.core.ids import BlockId

Copy = tuple[BlockId, BlockId]
"""(from, to)."""


class Swaps:
    """The copies noted since the last plan."""

    def __init__(self) -> None:
        self.outs: dict[BlockId, BlockId] = {}
        """host block -> the device block copied to it, in order."""
        self.ins: dict[BlockId, BlockId] = {}
        """device block -> the host block copied to it, in order."""

    def __len__(self) -> int:
        return len(self.outs) + len(self.ins)

    def drain(self) -> tuple[tuple[Copy, ...], tuple[Copy, ...]]:
        """The outs as (device, host), the ins as (host, device); none are left."""
        outs = tuple((device, host) for host, device in self.outs.items())
        ins = tuple((host, device) for device, host in self.ins.items())
        self.outs.clear()
        self.ins.clear()
        return outs, ins
