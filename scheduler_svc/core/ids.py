"""Identifiers of the core. Each is a plain str or int at run time; the types only stop mix-ups.

`CallHandle` and `StreamHandle` are both small ints that name a call: the first on one executor's stream, the
second on one frontend's. Sending one where the other is meant would deliver tokens to a stranger.
"""

from typing import NewType

TenantId = NewType("TenantId", str)
"""Owner of programs. Never compare with a `ProgramId`: programs are looked up under (tenant, program)."""
ProgramId = NewType("ProgramId", str)
"""One agent run (UUIDv7, made by a frontend). Not the client's session key, which is guessable."""
CallId = NewType("CallId", str)
"""One LLM call, unique in the scheduler. Not the client's request id, which n > 1 samples share."""
ThreadId = NewType("ThreadId", str)
"""A logical line of calls inside one program; unique only there."""
MAIN_THREAD = ThreadId("")
"""The thread of calls that name none."""
ExecutorId = NewType("ExecutorId", str)
"""One model replica. Not its host name: several replicas may share a host."""
FrontendId = NewType("FrontendId", str)
"""One frontend process."""
CallHandle = NewType("CallHandle", int)
"""Name of a call on one executor's stream, > 0, never used twice within an epoch."""
StreamHandle = NewType("StreamHandle", int)
"""Name of a call on its frontend's stream, >= 0."""
BlockId = NewType("BlockId", int)
"""A KV page of one tier of one executor. 0 is the null block and is never allocated."""
