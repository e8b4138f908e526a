"""The seeded arrivals."""

from demo.programs import Chat
from demo.workload import CHAT, TREE_SEARCH, WorkloadOptions, make_workload


def test_the_same_seed_gives_the_same_arrivals_and_another_one_others() -> None:
    options = WorkloadOptions()
    assert make_workload(options, 7) == make_workload(options, 7)
    assert make_workload(options, 7) != make_workload(options, 8)


def test_the_search_comes_first_and_the_chats_one_after_another() -> None:
    arrivals = make_workload(WorkloadOptions(chats=12), 1)
    assert [arrival.class_name for arrival in arrivals] == [TREE_SEARCH] + 12 * [CHAT]
    times = [arrival.at_s for arrival in arrivals]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert len({arrival.name for arrival in arrivals}) == 13


def test_a_chat_pauses_before_every_question_but_the_first() -> None:
    for arrival in make_workload(WorkloadOptions(), 3)[1:]:
        chat = arrival.program
        assert isinstance(chat, Chat)
        assert len(chat.pauses_s) == len(chat.questions) - 1
        assert all(0.3 <= pause_s <= 1.5 for pause_s in chat.pauses_s)
