"""Installing over ssh, with a stand-in for ssh that runs on this machine what would run on the board."""

from __future__ import annotations

import os
import tarfile
import time
from pathlib import Path

import pytest

from device_runtime.bundle import BadBundle, Host, Manifest, file_digest
from tools.flashing import ssh

SSH = '#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n'
INSTALL = '#!/bin/sh\ncd "$(dirname "$0")" && pwd && stat -c "%a %u" . && ls\n'
MANIFEST = Manifest("here", "x", "3.11", "debian 12", "0.1.0", 1, False, 0)
BOARD = ssh.Board(
    Host("x", "3.11", 1, "debian 12"), skew=0.0, root=True, sudo=False, torch="", jtop="", systemd=False, running=""
)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The board's folder for everybody's temporary files."""
    program(tmp_path / "bin" / "ssh", SSH)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(ssh, "SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(ssh, "CHECK", "true")
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def install(folder: Path, script: str = INSTALL) -> list[str]:
    """What a bundle's install.sh says while `relief flash ssh` installs it."""
    bundle, said = folder / "bundle.tar", list[str]()
    os.utime(program(folder / "install.sh", script), (0, 0))  # the same digest every time
    with tarfile.open(bundle, "w") as archive:
        archive.add(folder / "install.sh", "install.sh")
    assert ssh.install(ssh.Link("board"), BOARD, bundle, MANIFEST, file_digest(bundle), said.append, lambda *_: None)
    return said


def test_each_install_has_a_closed_folder_of_its_own_that_is_gone_afterwards(scratch: Path, tmp_path: Path) -> None:
    said = [install(tmp_path) for _ in range(2)]
    first, second = (Path(lines[0]) for lines in said)
    assert first != second, "whoever knows the bundle must not know the folder"
    assert first.parent == second.parent == scratch
    assert said[0][1:] == [f"700 {os.getuid()}", "install.sh"]
    assert list(scratch.iterdir()) == []


def test_a_folder_that_somebody_else_made_before_is_neither_used_nor_touched(scratch: Path, tmp_path: Path) -> None:
    install(tmp_path)
    waiting = scratch / f"relief-{file_digest(tmp_path / 'bundle.tar')[:16]}"
    waiting.mkdir()
    waiting.chmod(0o777)
    foreign = program(waiting / "install.sh", "#!/bin/sh\necho not ours\n")
    assert "not ours" not in install(tmp_path)
    assert foreign.exists()


@pytest.mark.parametrize(
    ("mktemp", "words"),
    [
        ("echo 'mktemp: No space left on device' >&2; exit 1", "no folder can be made in .*: mktemp: No space left"),
        ("echo /etc", "names '/etc', which is no folder of ours"),
        ("echo '/var/tmp/relief-abcd;reboot'", "which is no folder of ours"),
        ("true", "names '', which is no folder of ours"),
    ],
)
def test_without_a_folder_of_its_own_nothing_is_sent(scratch: Path, tmp_path: Path, mktemp: str, words: str) -> None:
    program(tmp_path / "bin" / "mktemp", f"#!/bin/sh\n{mktemp}\n")
    with pytest.raises(BadBundle, match=words):
        install(tmp_path, f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    assert not (tmp_path / "ran").exists()


def test_what_a_login_shell_says_before_is_no_part_of_the_folders_name(scratch: Path, tmp_path: Path) -> None:
    program(tmp_path / "bin" / "ssh", SSH.replace("exec", "echo Welcome to board; exec"))
    assert Path(install(tmp_path)[1]).parent == scratch


def test_an_interrupted_installs_folder_goes_with_the_next_one_and_nobody_elses(scratch: Path, tmp_path: Path) -> None:
    folders = {
        name: scratch / name for name in ("relief-left0000", "relief-now00000", "relief-open0000", "relief-others-own")
    }
    for name, folder in folders.items():
        folder.mkdir(mode=0o700)
        folder.chmod(0o777 if "open" in name else 0o700)
        (folder / "bundle.tar").touch()
        long_ago = time.time() - 60 * (ssh.LEFT + 5)
        if "now" not in name:
            os.utime(folder, (long_ago, long_ago))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (scratch / "relief-link0000").symlink_to(elsewhere)
    install(tmp_path)
    assert {path.name for path in scratch.iterdir()} == {*folders, "relief-link0000"} - {"relief-left0000"}
    assert elsewhere.exists()


def test_the_folder_goes_also_where_the_installer_failed(scratch: Path, tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="board: no room"):
        install(tmp_path, "#!/bin/sh\necho no room >&2; exit 2\n")
    assert list(scratch.iterdir()) == []
