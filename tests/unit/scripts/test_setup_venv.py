"""Setting up: reading the lock, knowing when nothing is to do, saying what helps when it cannot work."""

import pytest

from scripts import setup_venv

LOCK = """# comment
torch==2.13.0+cpu
numpy==2.3.5

tool==1; python_version < "3.12"  # reason
torch-helper==1
"""
OTHERS = ["numpy==2.3.5", 'tool==1; python_version < "3.12"', "torch-helper==1"]


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "some.lock"
    path.write_text(LOCK)
    return path


@pytest.fixture
def actions(monkeypatch):
    """What an installation would do, instead of doing it."""
    done = []
    monkeypatch.setattr(setup_venv, "_make_venv", lambda root: root.mkdir(exist_ok=True) or root / "python")
    monkeypatch.setattr(setup_venv, "_install_torch", lambda python, torch: done.append(torch))
    monkeypatch.setattr(setup_venv, "_pip_counted", lambda python, wanted: done.extend(wanted))
    monkeypatch.setattr(setup_venv, "_check", lambda python: done.append("checked"))
    return done


def test_torch_is_told_from_the_rest():
    assert setup_venv.split_lock(LOCK) == ("torch==2.13.0+cpu", OTHERS)


@pytest.mark.parametrize("text", ["numpy==1\n", "torch==1\ntorch==2\n"])
def test_a_lock_without_exactly_one_torch_is_refused(text):
    with pytest.raises(setup_venv.SetupError, match="torch"):
        setup_venv.split_lock(text)


def test_a_second_setup_does_nothing(tmp_path, lock, actions):
    setup_venv.install(tmp_path / "venv", lock, None)
    assert actions == ["torch==2.13.0+cpu", *OTHERS, "checked"]
    actions.clear()
    setup_venv.install(tmp_path / "venv", lock, None)
    assert actions == []


@pytest.mark.parametrize("change", ["lock", "torch"])
def test_a_change_sets_up_again(tmp_path, lock, actions, change):
    setup_venv.install(tmp_path / "venv", lock, None)
    actions.clear()
    if change == "lock":
        lock.write_text(LOCK + "new==1\n")
    setup_venv.install(tmp_path / "venv", lock, "torch-mine.whl" if change == "torch" else None)
    assert "checked" in actions


def test_a_chosen_torch_is_remembered(tmp_path, lock, actions):
    setup_venv.install(tmp_path / "venv", lock, "torch-mine.whl")
    actions.clear()
    setup_venv.install(tmp_path / "venv", lock, None)
    assert actions == []


def test_a_failed_setup_is_not_taken_for_done(tmp_path, lock, actions, monkeypatch):
    def fail(_python):
        raise setup_venv.SetupError("torchvision must not be installed")

    working_check = setup_venv._check
    monkeypatch.setattr(setup_venv, "_check", fail)
    with pytest.raises(setup_venv.SetupError):
        setup_venv.install(tmp_path / "venv", lock, None)
    monkeypatch.setattr(setup_venv, "_check", working_check)
    actions.clear()
    setup_venv.install(tmp_path / "venv", lock, None)
    assert "checked" in actions


def test_unwanted_packages_and_cuda_builds_are_refused(monkeypatch):
    answers = iter(["torchvision"])
    monkeypatch.setattr(setup_venv, "_ask", lambda python, code: next(answers))
    with pytest.raises(setup_venv.SetupError, match="torchvision must not be installed"):
        setup_venv._check("python")
    answers = iter(["", "13.0"])
    with pytest.raises(setup_venv.SetupError, match=r"build for CUDA 13\.0"):
        setup_venv._check("python")
    answers = iter(["", "None", "missing"])
    with pytest.raises(setup_venv.SetupError, match="libnuma1"):
        setup_venv._check("python")
    answers = iter(["", "None", ""])
    setup_venv._check("python")


def test_a_missing_lock_is_one_line(tmp_path, capsys):
    assert setup_venv.main(["--venv", str(tmp_path / "v"), "--lock", str(tmp_path / "none.lock")]) == 1
    assert "none.lock" in capsys.readouterr().err
