"""Which programs arrive when: made from a seed, so that every policy meets the same ones."""

import random
from dataclasses import dataclass, field

from demo.programs import Chat, Program, TreeSearch

CHAT, TREE_SEARCH = "chat", "tree-search"

TASK = "Plan a three-day trip to Lisbon for a family with two children and little money."

CONVERSATIONS = (
    (
        "What is a good breakfast before a long hike?",
        "And what should I carry to drink?",
        "Thank you! Any snack?",
    ),
    ("Why is the sky blue?", "Why is it red in the evening?", "Explain that to a child."),
    ("Name three birds that live near rivers.", "Which of them is the largest?"),
    ("How do I remove a coffee stain?", "It is on wool. Does that change anything?", "And on wood?"),
    ("What does HTTP mean?", "What is the difference to HTTPS?"),
    ("Suggest a name for a small bakery.", "Something shorter, please.", "Write a slogan for it."),
    ("How long do I boil an egg?", "And at 2,000 metres above the sea?"),
    ("What is a prime number?", "Is 91 one?", "What is the next one after it?"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A program and when it comes."""

    name: str
    class_name: str
    at_s: float
    """Seconds after the start of the run."""
    program: Program


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """Size of the demo's load; the defaults take about half a minute a run with SmolLM2 on two cores."""

    chats: int = len(CONVERSATIONS)
    gap_s_mean: float = 2.0
    """Mean time between two chats; exponentially distributed (Poisson arrivals)."""
    pause_s_max: float = 1.5
    """Longest time that a person reads before the next question."""
    tree: TreeSearch = field(default_factory=lambda: TreeSearch(task=TASK))


def make_workload(options: WorkloadOptions, seed: int) -> list[Arrival]:
    """The arrivals in order: the tree search first, then the chats one by one. Same seed, same arrivals."""
    rng = random.Random(seed)
    arrivals = [Arrival(name="tree-search", class_name=TREE_SEARCH, at_s=0.0, program=options.tree)]
    at_s = 0.0
    for number in range(options.chats):
        at_s += rng.expovariate(1 / options.gap_s_mean)
        chat = _chat(CONVERSATIONS[number % len(CONVERSATIONS)], options, rng)
        arrivals.append(Arrival(name=f"chat-{number + 1}", class_name=CHAT, at_s=at_s, program=chat))
    return arrivals


def _chat(questions: tuple[str, ...], options: WorkloadOptions, rng: random.Random) -> Chat:
    pauses_s = tuple(rng.uniform(0.3, options.pause_s_max) for _ in questions[1:])
    return Chat(questions=questions, pauses_s=pauses_s)
