"""Every verb: help with an example, exit codes with a page, tables as JSON, completion."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from broker_config.launcher import BrokerFailed
from protocol.errors import ConfigError, Malformed, Unavailable
from sensors.recording import DataError
from tools import cli
from tools.doctor import HIDDEN, clean
from tools.exit_codes import CODES, code_of, mendable
from tools.report import Run, find, summary

ROOT = Path(__file__).parent.parent


def commands(command: click.Command, path: str = "relief") -> Iterator[tuple[str, click.Command]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")
    else:
        yield path, command


def relief(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.cli", *arguments],
        capture_output=True, text=True, timeout=60, cwd=ROOT, env={**os.environ, **env},
    )  # fmt: skip


ALL = list(commands(typer.main.get_command(cli.build(cli.VERBS))))


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_help_tells_what_a_verb_does(path: str, command: click.Command) -> None:
    assert command.help, f"{path} has no help"


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_help_shows_an_example_that_begins_with_the_verb_itself_and_can_be_said(
    path: str, command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join((command.help or "").split())
    assert text.count("Example:") == 1, f"{path} has no example"
    example = text.partition("Example:")[2]
    words = shlex.split(example)
    verb = path.split()
    assert words[: len(verb)] == verb
    monkeypatch.chdir(tmp_path)
    for _ in words:  # the files that it names are not here until they are made
        try:
            command.make_context(path, words[len(verb) :])
            return
        except Exception as error:
            missing = re.search(r"(file|dir|path) '(.+?)' does not exist", str(error), re.IGNORECASE)
            assert missing, f"{example}: {error}"
            made = Path(missing[2])
            made.parent.mkdir(parents=True, exist_ok=True)
            made.touch() if missing[1].lower() == "file" else made.mkdir()


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_every_option_and_argument_says_what_it_is(path: str, command: click.Command) -> None:
    silent = [p.name for p in command.params if not getattr(p, "help", None)]
    assert silent == []


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_help_shows_every_word_that_is_written_those_in_brackets_too(path: str, command: click.Command) -> None:
    """Square brackets are rich's markup: those that are meant to be seen are written with a backslash before them."""
    told = CliRunner().invoke(cli.build(cli.VERBS), [*path.split()[1:], "--help"], env={"COLUMNS": "1000"})
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", told.output).split())
    for text in (command.help or "", *(getattr(p, "help", None) or "" for p in command.params)):
        assert " ".join(text.replace("\\[", "[").split()) in shown
    assert "[]" not in shown and "\\[" not in shown and "[[DIR" not in shown


def test_whatever_prints_a_table_prints_it_as_json_too() -> None:
    """Tables are made with rich's Table or a panel, or line by line from findings: such modules name a json verb."""
    makers = {
        file.stem
        for file in sorted((ROOT / "tools").rglob("*.py"))
        if re.search(r"\bTable\(|fleet_panel\(|for finding in|for result in examine", file.read_text())
        and "import typer" in file.read_text()
    }
    with_json = {path for path, command in ALL if any("--json" in p.opts for p in command.params)}
    assert makers == {"accept", "broker", "cli", "data", "device", "fleet", "fleet_model", "run"}  # run: a show
    assert with_json >= {
        "relief device accept", "relief broker check", "relief simulate", "relief data info", "relief device check",
        "relief fleet status", "relief fleet versions", "relief report", "relief doctor",
    }  # fmt: skip


def test_completion_knows_the_verbs() -> None:
    script = Path(sys.executable).with_name("relief")
    words = {"_TYPER_COMPLETE_ARGS": "relief dash", "COMP_WORDS": "relief dash", "COMP_CWORD": "1"}
    told = subprocess.run(
        [str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **words, "_RELIEF_COMPLETE": "complete_bash"},
    )
    assert told.stdout.split() == ["dashboard"]


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bash_completions/relief.sh"), ("zsh", ".zfunc/_relief")])
def test_completion_is_installed_for_a_shell(shell: str, file: str, tmp_path: Path) -> None:
    told = subprocess.run(
        [str(Path(sys.executable).with_name("relief")), "--install-completion", shell],
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert "_RELIEF_COMPLETE" in (tmp_path / file).read_text()


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (ConfigError("fleet.toml", ["x"]), 10),
        (DataError("subject1.dat", "torn"), 20),
        (Unavailable("h:1", "refused"), 30),
        (BrokerFailed("no mosquitto"), 30),
        (Malformed("Status", "x"), 31),
        (OSError(errno.ENOSPC, "full"), 40),
        (ImportError("pip install x"), 50),
        (ValueError("bad"), 2),
    ],
)
def test_an_error_that_can_be_mended_has_a_code_of_its_own(error: Exception, number: int) -> None:
    assert mendable(error)
    assert code_of(error).number == number


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), ImportError("no module"), OSError(errno.EPIPE, "x")])
def test_our_own_faults_keep_their_traceback(error: Exception) -> None:
    assert not mendable(error)


def test_every_code_has_its_section_in_the_help_page() -> None:
    page = (ROOT / "docs" / "exit-codes.md").read_text()
    for code in CODES:
        assert f"{{#{code.anchor}}}" in page
        assert re.search(rf"^\| {code.number} \|", page, re.MULTILINE)
    assert len({code.number for code in CODES}) == len(CODES)


def test_a_bad_configuration_ends_with_its_code_and_page_and_no_colour(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text("[broker]\nprot = 1\n")
    told = relief("coordinator", "run", "--config", str(tmp_path / "fleet.toml"))
    assert told.returncode == 10
    assert "broker.prot" in told.stderr and "exit-codes.md#10-configuration" in told.stderr
    assert "\x1b[" not in told.stderr
    assert "Traceback" not in told.stderr


def test_the_page_without_its_extra_ends_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "nicegui" else find(name, *more)
    )
    monkeypatch.setattr(sys, "argv", ["relief", "dashboard", "--port", "0"])
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 50
    told = capsys.readouterr().err
    assert 'pip install "relief-edge[dashboard]"' in told and "exit-codes.md#50-missing-extra" in told


def test_a_coordinator_whose_journal_is_in_use_says_so_in_one_line(tmp_path: Path) -> None:
    from coordinator.journal import Journal

    (tmp_path / "fleet.toml").write_text('[coordinator]\nfolder = "run"\n')
    journal = Journal.open(tmp_path / "run" / "journal")
    told = relief("coordinator", "run", "--config", str(tmp_path / "fleet.toml"))
    journal.close()
    assert told.returncode == 41
    assert "another process has it open" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("wish", ["", "1"])
def test_colour_is_for_terminals_that_want_it(tmp_path: Path, wish: str) -> None:
    """On a pseudo-terminal: an error, and a page of help, with and without NO_COLOR."""
    for arguments, number in ((["coordinator", "run", "--config", str(tmp_path / "bad.toml")], 10), (["--help"], 0)):
        (tmp_path / "bad.toml").write_text("[broker]\nprot = 1\n")
        control, terminal = os.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", *arguments], stdout=terminal, stderr=terminal, stdin=terminal, cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": wish},
        )  # fmt: skip
        os.close(terminal)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: its end is closed
            while piece := os.read(control, 1 << 16):
                seen += piece
        os.close(control)
        assert process.wait(60) == number
        coloured = re.search(rb"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38)", seen)
        assert bool(coloured) == (wish == ""), seen[-500:]


def test_progress_is_silent_without_a_terminal_and_json_is_all_there_is(tmp_path: Path) -> None:
    made = relief("data", "generate", "mhealth", "--folder", str(tmp_path / "m" / "mhealth"), "--subjects", "1")
    assert (made.returncode, made.stderr) == (0, "")
    told = relief("data", "info", "synthetic", "--json")
    assert told.stderr == ""
    assert json.loads(told.stdout)["name"] == "synthetic"


def test_progress_says_how_far_it_is_and_how_long_it_takes_on_a_terminal() -> None:
    script = (
        "import time; from tools.shown import progress\n"
        "with progress('working', 4, 'parts') as step:\n"
        "    for n in range(4): time.sleep(0.3); step(n + 1)\n"
    )
    control, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=terminal, stdout=subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):
        while piece := os.read(control, 1 << 16):
            seen += piece
    os.close(control)
    assert process.communicate(timeout=60)[0] == b""
    assert re.search(rb"working.*2 of 4 parts.*0:00:0\d", re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen))


# -- report --------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as a coordinator writes it."""
    from coordinator.history import History, record

    history = History(tmp_path / "run" / "metrics.jsonl")
    for n in range(1, 6):
        history.round(record(n, n - 1.0, float(n), 2, [], {}, 1_000_000, 500_000))
        history.score(n, float(n), {"in_subject": 0.1 * n, "held_out": 0.05 * n, "rare_only": 0.01 * n})
    history.close()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "rou')  # a coordinator that was killed while it wrote
    return tmp_path / "run"


def test_a_report_is_one_page_that_loads_nothing_from_elsewhere(run: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    told = relief("report", str(run))
    assert told.returncode == 0, told.stderr
    page = (run / "report.html").read_text()
    assert page.count('src="data:image/svg+xml;base64,') == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<td>5</td>" in page and "0.2</td>" in page


def test_a_reports_table_is_the_record_summed_up(run: Path) -> None:
    (row,) = json.loads(relief("report", str(run), "--json").stdout)
    assert (row["rounds"], row["seconds"], row["MB up"], row["F1 held-out"]) == (5, 5.0, 5.0, 0.2)
    (same,) = map(summary, find(run))
    assert same == row


def test_a_run_without_evaluation_has_no_scores_rather_than_zeros() -> None:
    rounds = [{"began": 0.0, "ended": 1.0, "joules": 0.0, "power": [], "bytes_up": 0, "bytes_down": 0}]
    assert summary(Run("r", rounds, []))["F1 held-out"] is None


def test_a_folder_without_a_run_is_refused_with_what_to_give(tmp_path: Path) -> None:
    told = relief("report", str(tmp_path))
    assert told.returncode == 2
    assert "metrics.jsonl" in told.stderr


# -- doctor --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'password = "hunter2"', "mqtt_password: hunter2", '"api_key": "hunter2"', "token=hunter2",
        "amqp://user:hunter2@host/x", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
        'broker = { username = "u", password = "hunter2", port = 1 }', '{"event": "x", "token": "hunter2", "n": 1}',
        "12:00:01 I relief connecting with password=hunter2", "12:00:01 Authorization: Bearer hunter2",
        "GET http://host/x?access_token=hunter2&a=1", "export RELIEF_DASHBOARD_PASSWORD=hunter2",
        "password = '''hunter2'''",
    ],
)  # fmt: skip
def test_secrets_are_left_out(text: str) -> None:
    assert "hunter2" not in clean(f"a = 1\n{text}\nb = 2\n")
    assert HIDDEN in clean(text)
    assert clean("port = 1883\n") == "port = 1883\n"


def test_the_doctors_file_holds_versions_configuration_and_logs(run: Path, tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    config.write_text('fleet = "f"\n[broker]\nusername = "u"\npassword = "hunter2"\n')
    (run / "coordinator.log").write_text("x" * 500_000 + "the end\n")
    (run / "journal").mkdir()
    (run / "journal" / "1.log").write_bytes(b"\x00tensors")
    out = tmp_path / "doctor.zip"
    told = relief("doctor", "--config", str(config), "--run", str(run), "--out", str(out), RELIEF_PASSWORD="hunter2")
    assert told.returncode == 0, told.stderr
    with zipfile.ZipFile(out) as bundle:
        assert set(bundle.namelist()) == {
            "versions.json", "configuration.toml", "run/coordinator.log", "run/metrics.jsonl",
        }  # fmt: skip
        whole = "".join(bundle.read(name).decode() for name in bundle.namelist())
        assert bundle.read("run/coordinator.log").endswith(b"the end\n")
        assert len(bundle.read("run/coordinator.log")) < 250_000
    assert "hunter2" not in whole
    assert "relief-edge" in whole
