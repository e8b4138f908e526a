"""The agent programs, run with the real SDK against an API that is answered here."""

import json
from collections.abc import Callable

import httpx2 as httpx  # what the SDK is built on
import openai
import pytest

from demo.programs import Agent, Chat, Node, TreeSearch, parse_rating

Request = dict[str, object]


class FakeApi:
    """Answers chat completions and keeps what was asked."""

    def __init__(self, answer: Callable[[str], str] = lambda question: "fine") -> None:
        self.bodies: list[dict[str, object]] = []
        self.headers: list[httpx.Headers] = []
        self._answer = answer

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        self.headers.append(request.headers)
        text = self._answer(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "length", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": body["max_tokens"], "total_tokens": 0}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        answer |= {"choices": [choice], "usage": usage}
        return httpx.Response(200, json=answer, headers={"X-Autellix-Program-Id": "the-id"})

    def questions(self) -> list[str]:
        """The last message of each call."""
        return [body["messages"][-1]["content"] for body in self.bodies]  # type: ignore[index]


def agent(api: Callable[[httpx.Request], httpx.Response]) -> Agent:
    client = openai.AsyncOpenAI(
        base_url="http://test/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(transport=httpx.MockTransport(api)),
    )
    return Agent(name="run/one", class_name="kind", client=client, model="m", seed=100)


async def test_every_call_names_the_program_and_does_a_fixed_amount_of_work() -> None:
    api = FakeApi()
    program = agent(api)
    await Chat(questions=("a?", "b?"), pauses_s=(0.0,), answer_tokens=7)(program)
    assert {headers["x-session-id"] for headers in api.headers} == {"run/one"}
    assert {headers["x-autellix-program-class"] for headers in api.headers} == {"kind"}
    assert [(body["max_tokens"], body["ignore_eos"]) for body in api.bodies] == [(7, True), (7, True)]
    assert [body["seed"] for body in api.bodies] == [101, 102]
    assert (program.program_id, program.calls, program.tokens) == ("the-id", 2, 14)


async def test_a_chat_carries_its_history() -> None:
    api = FakeApi(lambda question: f"answer to {question}")
    await Chat(questions=("a?", "b?"), pauses_s=(0.0,))(agent(api))
    last = [message["content"] for message in api.bodies[-1]["messages"]]  # type: ignore[attr-defined]
    assert last[1:] == ["a?", "answer to a?", "b?"]


async def test_a_persons_pauses_are_counted_apart() -> None:
    program = agent(FakeApi())
    await Chat(questions=("a?", "b?", "c?"), pauses_s=(0.01, 0.02))(program)
    assert program.paused_s == pytest.approx(0.03)


async def test_a_search_makes_the_calls_and_tokens_it_announces() -> None:
    api, search = FakeApi(), TreeSearch(task="t", depth=2, width=3, keep=2)
    program = agent(api)
    await search(program)
    assert (program.calls, program.tokens) == (search.calls, search.tokens)
    assert search.calls == 2 * 2 * (2 * 3) + 1


async def test_the_branches_of_a_round_run_at_once_in_threads_of_their_own() -> None:
    api = FakeApi()
    await TreeSearch(task="t", depth=1, width=3, keep=2)(agent(api))
    threads = [headers.get("x-autellix-thread-id") for headers in api.headers]
    assert set(threads[:-1]) == {f"root.{number}" for number in range(1, 7)}
    assert threads[-1] is None


async def test_a_search_goes_on_below_the_best_rated_thoughts() -> None:
    def answer(question: str) -> str:
        if "Rate" in question:
            return "9" if "idea number 2" in question else "1"
        return question.rsplit("Propose the next step, ", 1)[-1]

    api = FakeApi(answer)
    await TreeSearch(task="t", depth=2, width=2, keep=1)(agent(api))
    second_round = [
        question for question in api.questions() if "Step 1" in question and "Propose" in question
    ]
    assert second_round
    assert all("Step 1: idea number 2" in question for question in second_round)


async def test_a_failed_call_is_raised() -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, json={"error": {"message": "prompt too long"}})

    with pytest.raises(openai.BadRequestError, match="prompt too long"):
        await agent(refuse).ask([{"role": "user", "content": "x"}], max_tokens=1)


@pytest.mark.parametrize(
    ("text", "rating"), [("7", 7), ("I say 8/10", 8), ("none", 5), ("", 5), ("0", 1), ("9999999", 10)]
)
def test_ratings_are_read_from_whatever_the_model_says(text: str, rating: int) -> None:
    assert parse_rating(text) == rating


def test_a_node_is_the_line_of_its_thoughts() -> None:
    child = Node("root.1", ("go by train",))
    prompt = TreeSearch(task="travel")._prompt(child, "Next?")
    assert prompt[-1]["content"] == "Task: travel\nStep 1: go by train\nNext?"
