"""The columnar lane: steady rows of an executor's batch without an object touched.

Theory of operation. Most of a batch does the same thing at every step: one token in, one token out. Such a
row *enters the lane*: it gets a slot in arrays of its executor and takes part in every plan and every result
from then on, so that two counters say how far it is:

    plans made     ──> tokens planned, rows in flight
    results taken  ──> tokens computed, tokens sampled (kept in a ring, one row of the ring a result)
    clock          ──> service, in seconds of steps; useful cost follows from the positions alone

A row is looked at as an object only when something happens to it, and when that will be is known:

    at a plan      its position enters a new block (buckets by position modulo the block size)
                   or its last token is planned (`last`)
    at a result    its quantum is used up, the ring would overwrite its tokens, or its last token came
                   (`calendar`, and one comparison of the clock)
    any time       its token is one that may stop it (`watch`: one look-up for all tokens of a step)

To *refresh* a row brings its `Call` up to date. To *leave* refreshes it, and turns its share of the plans in
flight into the objects of the plain code, which does everything else: chunked prefill, preemption, failures.
Plans, effects and counters are those of the plain planner, to the last bit: all sums are integers.

    watch    tokens that may stop a row of the lane
    calendar what is due at which plan or result
    seats    slots and what the columns say of each
    batch    the rows of a plan in order, as columns
    lane     rows that are steady: entering, refreshing, leaving, what is due
"""

from scheduler_svc.core.lane.batch import Batch, BatchOrder
from scheduler_svc.core.lane.lane import Lane
from scheduler_svc.core.lane.seats import Seat

__all__ = ["Batch", "BatchOrder", "Lane", "Seat"]
