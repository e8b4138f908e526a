"""The stream to the scheduler, over loopback gRPC against a fake."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from frontend_svc.call_table import LiveCall, StepDelta
from frontend_svc.errors import Refused, SchedulerLost
from frontend_svc.scheduler_link import SchedulerLink
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from tests.fake_scheduler import TOKEN, Connection, FakeScheduler, server


class Listener:
    """Collects what happens to calls; `gate` holds the link back."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.ended: dict[str, pb.CallFinished] = {}
        self.failed: dict[str, pb.Refusal] = {}
        self.steps = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.lost = asyncio.Event()
        self._changed = asyncio.Condition()

    async def on_step(self, step: StepDelta) -> None:
        await self.gate.wait()
        self.steps += 1
        for delta in step.calls:
            self.tokens.setdefault(delta.call.tag, []).extend(delta.token_ids)
            if delta.finished is not None:
                self.ended[delta.call.tag] = delta.finished
        async with self._changed:
            self._changed.notify_all()

    def on_failed(self, call: LiveCall, refusal: pb.Refusal) -> None:
        self.failed[call.tag] = refusal
        self.lost.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(condition)


@asynccontextmanager
async def serving(fake: FakeScheduler, port: int = 0, peer_token: str | None = None) -> AsyncIterator[int]:
    grpc_server = server(fake, port, peer_token)
    yield await grpc_server.start()
    await grpc_server.stop(0)


@asynccontextmanager
async def linked(port: int, listener: Listener, **options: object) -> AsyncIterator[SchedulerLink]:
    link = SchedulerLink(
        f"127.0.0.1:{port}",
        listener,
        frontend_id="f1",
        rng=random.Random(1),
        **{"max_live_calls": 100, **options},
    )
    await link.start()
    try:
        yield link
    finally:
        await link.close()


async def until(link: SchedulerLink, condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await link.wait_models_changed(1)


async def call_of(link: SchedulerLink, max_tokens: int = 3) -> pb.Submit:
    program, created = await link.programs.open_program(tenant="ann", program_id=f"p{random.random()}")
    assert created
    return pb.Submit(call_id="c", tenant="ann", program_id=program.program_id, max_tokens=max_tokens)


async def test_a_call_brings_its_tokens_and_its_end_and_is_acknowledged() -> None:
    fake, listener = FakeScheduler(), Listener()
    async with serving(fake) as port, linked(port, listener) as link:
        await link.wait_up(5)
        call = link.submit(await call_of(link), tag="mine")
        await listener.until(lambda: "mine" in listener.ended)
        assert listener.tokens["mine"] == [TOKEN] * 3 == call.token_ids
        await fake.until(lambda: fake.acknowledged == [call.submit.handle])
        assert link.live_calls == 0
        assert fake.connections[0].hello == pb.Hello(protocol_version=1, frontend_id="f1")


async def test_a_refused_call_fails_with_the_schedulers_words() -> None:
    fake, listener = FakeScheduler(), Listener()
    async with serving(fake) as port, linked(port, listener) as link:
        await link.wait_up(5)
        link.submit(pb.Submit(tenant="ann", program_id="nobody's"), tag="mine")
        ended = link.submit(await call_of(link), tag="good")
        await listener.until(lambda: "good" in listener.ended)
        assert listener.failed["mine"].reason == "PROGRAM_UNKNOWN"
        assert ended.submit.handle != 0


async def endless(connection: Connection, call: pb.Submit) -> None:
    while True:
        connection.outputs([call.handle], [TOKEN])
        await asyncio.sleep(0.001)


async def test_nothing_is_delivered_after_a_cancel_and_its_reason_is_told() -> None:
    fake, listener = FakeScheduler(script=endless), Listener()
    async with serving(fake) as port, linked(port, listener) as link:
        await link.wait_up(5)
        call = link.submit(await call_of(link), tag="mine")
        await listener.until(lambda: listener.tokens.get("mine"))
        link.cancel([call], pb.CANCEL_REASON_CLIENT)
        link.cancel([call], pb.CANCEL_REASON_CLIENT)
        seen = len(listener.tokens["mine"])
        await fake.until(lambda: fake.acknowledged)
        assert fake.cancels == [([call.submit.handle], pb.CANCEL_REASON_CLIENT)]
        assert len(listener.tokens["mine"]) == seen
        assert "mine" not in listener.ended
        assert link.live_calls == 0


async def test_a_lost_scheduler_fails_live_calls_and_comes_back() -> None:
    listener = Listener()
    async with serving(FakeScheduler(script=endless)) as port, linked(port, listener) as link:
        await link.wait_up(5)
        call = await call_of(link)
        link.submit(call, tag="mine")
        await listener.until(lambda: listener.tokens.get("mine"))
    assert listener.failed["mine"].reason == "SCHEDULER_UNAVAILABLE"

    listener = Listener()
    first = server(FakeScheduler(script=endless))
    port = await first.start()
    async with linked(port, listener) as link:
        await link.wait_up(5)
        link.submit(await call_of(link), tag="mine")
        await listener.until(lambda: listener.tokens.get("mine"))
        await first.stop(0)
        await until(link, lambda: not link.up)
        assert listener.failed["mine"].retry_after_s > 0
        with pytest.raises(SchedulerLost):
            link.submit(pb.Submit(), tag="too early")
        async with serving(FakeScheduler(), port):
            await until(link, lambda: link.up)
            link.submit(await call_of(link), tag="again")
            await listener.until(lambda: "again" in listener.ended)


async def test_no_call_slips_in_between_the_loss_and_its_announcement() -> None:
    listener = Listener()
    fake = FakeScheduler(script=endless)
    async with serving(fake) as port, linked(port, listener) as link:
        await link.wait_up(5)
        link.submit(await call_of(link), tag="mine")
        await listener.until(lambda: listener.tokens.get("mine"))
        async with link._changed:  # as waiters hold it when they wake up: the link cannot announce its state
            fake.connections[0].outputs([99], [TOKEN])
            async with asyncio.timeout(10):
                await listener.lost.wait()
            with pytest.raises(SchedulerLost):
                link.submit(pb.Submit(), tag="would hang")
        assert link.live_calls == 0


async def test_a_scheduler_that_contradicts_itself_is_left_and_found_again() -> None:
    async def stranger(connection: Connection, call: pb.Submit) -> None:
        connection.outputs([call.handle + 1], [TOKEN])

    fake, listener = FakeScheduler(script=stranger), Listener()
    async with serving(fake) as port, linked(port, listener) as link:
        await link.wait_up(5)
        link.submit(await call_of(link), tag="mine")
        await fake.until(lambda: len(fake.connections) == 2)
        assert listener.failed["mine"].reason == "SCHEDULER_UNAVAILABLE"


async def test_no_scheduler_is_reported_within_the_time_limit() -> None:
    async with linked(1, Listener()) as link:
        with pytest.raises(SchedulerLost, match=r"no scheduler at 127\.0\.0\.1:1 within"):
            await link.wait_up(0.3)
        assert not link.up


async def test_a_wrong_peer_token_is_a_refusal_not_a_time_out() -> None:
    guarded = serving(FakeScheduler(), peer_token="right")
    async with guarded as port, linked(port, Listener(), peer_token="wrong") as link:
        with pytest.raises(Refused) as caught:
            await link.wait_up(10)
        assert caught.value.refusal.reason == "UNAUTHENTICATED"


async def test_models_are_followed() -> None:
    fake = FakeScheduler()
    async with serving(fake) as port, linked(port, Listener()) as link:
        await link.wait_up(5)
        assert set(link.models) == {"tiny"}
        fake.connections[0].send(models_changed=pb.ModelsChanged(models=[pb.ModelInfo(model="other")]))
        await until(link, lambda: set(link.models) == {"other"})


async def test_too_many_live_calls_are_refused_here() -> None:
    fake = FakeScheduler(script=endless)
    async with serving(fake) as port, linked(port, Listener(), max_live_calls=2) as link:
        await link.wait_up(5)
        call = await call_of(link)
        for tag in ("a", "b"):
            link.submit(pb.Submit(tenant="ann", program_id=call.program_id), tag=tag)
        with pytest.raises(Refused) as caught:
            link.submit(pb.Submit(tenant="ann", program_id=call.program_id), tag="c")
        assert caught.value.refusal.reason == "QUEUE_FULL"


async def test_a_listener_that_does_not_read_holds_the_scheduler_back() -> None:
    """With the listener stuck the link keeps one message; the rest waits at the sender."""
    sent = 0
    payload = [pb.TokenPayload(index=0, payload=bytes(50_000))]

    async def flood(connection: Connection, call: pb.Submit) -> None:
        nonlocal sent
        for _ in range(400):
            connection.outputs([call.handle], [TOKEN], payloads=payload)
            await connection.taken()
            sent += 1
        connection.finish(call.handle)

    fake, listener = FakeScheduler(script=flood), Listener()
    listener.gate.clear()
    async with serving(fake) as port, linked(port, listener) as link:
        await link.wait_up(5)
        call = link.submit(await call_of(link), tag="mine")
        while True:  # until the flood makes no progress any more
            before = sent
            await asyncio.sleep(0.3)
            if sent == before > 0:
                break
        assert sent < 400
        assert len(call.token_ids) == 1
        listener.gate.set()
        await listener.until(lambda: "mine" in listener.ended)
        assert len(call.token_ids) == 400


async def test_program_operations_are_typed() -> None:
    fake = FakeScheduler()
    async with serving(fake) as port, linked(port, Listener()) as link:
        await link.wait_up(5)
        first, created = await link.programs.open_program(tenant="ann", program_id="p1", session_key="s")
        again, created_again = await link.programs.open_program(
            tenant="ann", program_id="p2", session_key="s"
        )
        assert (created, created_again) == (True, False)
        assert first.program_id == again.program_id == "p1"
        assert [p.program_id for p in await link.programs.list_programs(tenant="ann")] == ["p1"]
        assert (
            await link.programs.end_program(tenant="ann", program_id="p1")
        ).state == pb.PROGRAM_STATE_ENDED
        with pytest.raises(Refused) as caught:
            await link.programs.get_program(tenant="bob", program_id="p1")
        assert (caught.value.refusal.reason, caught.value.refusal.field) == ("PROGRAM_UNKNOWN", "program_id")


async def test_program_operations_without_a_scheduler_say_so() -> None:
    async with linked(1, Listener()) as link:
        with pytest.raises(SchedulerLost):
            await link.programs.open_program(tenant="ann", program_id="p")
