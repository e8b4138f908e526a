"""What becomes of the KV of a preempted call: it stays, it goes to the host, or it is given up.

The three differ in what is paid when the call comes back: nothing; a copy to the host and one back; the
forward passes that made the KV. A copy is preferred when it is cheaper than the passes, both at the
executor's current prices; equal ones are a matter of taste, and giving up leaves the host to others.
"""

from enum import Enum

from scheduler_svc.core.prices import Prices


class KvChoice(Enum):
    """What happens to the blocks of a preempted call."""

    PAUSE = "pause"
    """They stay on the device; the call goes on where it stopped."""
    SWAP = "swap"
    """They move to the host and come back before the call goes on."""
    DROP = "drop"
    """They are free; the call is computed again from its tokens, less what the prefix cache still has."""


def choose_kv(
    *, tokens: int, blocks: int, prices: Prices, memory_needed: bool, host_blocks_free: int
) -> KvChoice:
    """Chooses by estimated cost. Source: Autellix section on memory (swapping); the prices are ours.

    Args:
        tokens: Leading tokens whose KV would have to be computed again if it were dropped. >= 0.
        blocks: Blocks that a swap would copy; those that are on the host already do not count. >= 0.
        prices: Of the executor that holds the KV.
        memory_needed: Whether others need the blocks; if not, pausing costs nothing.
        host_blocks_free: Host blocks that can be had without pushing out anything worth more. >= 0.
    """
    if not memory_needed:
        return KvChoice.PAUSE
    fits = blocks <= host_blocks_free
    if fits and 2 * prices.swap_ps(blocks) < prices.recompute_ps(tokens):
        return KvChoice.SWAP
    return KvChoice.DROP
