"""Each script is played again and must read as it stands; `pytest tests/scenarios --rewrite` writes it."""

from pathlib import Path

import pytest

from tests.scenarios.script import blocks_of, replay
from tests.scenarios.stage import Stage

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(script: Path, request: pytest.FixtureRequest) -> None:
    text = script.read_text()
    played = replay(text, Stage().play)
    if request.config.getoption("--rewrite", default=False):
        script.write_text(played)
    else:
        assert played == text, f"{script.name} reads otherwise; pytest tests/scenarios --rewrite shows how"


def test_a_script_that_says_something_else_fails() -> None:
    text = next(script for script in SCRIPTS if script.stem == "arrival").read_text()
    changed = text.replace("samples", "sleeps", 1)
    assert changed != text
    assert replay(changed, Stage().play) == text


def test_a_block_without_a_divider_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        list(blocks_of("# nothing\nplan\n"))
