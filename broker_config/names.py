"""Lists of devices: a file with a name a line, or a number; what cannot be a topic level is refused by its line.

And operators: a person, or one tool of a person.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from protocol.topics import check_name

RESERVED = ("broker", "coordinator", "operator", "bridge", "purge")  # these names and what begins with them and a dash
TOOLS = ("status", "steer", "dashboard", "label", "update")  # what an operator uses, each on an identity of its own
ALIKE = 0.8  # by difflib, from which on a word is taken for a mistyped tool: two letters that changed places are 0.8
COMMON_NAME = 64  # bytes of a certificate's common name, which is the user's name at the broker


class BadNames(ValueError):
    """A list of devices that cannot be taken; one line of text for every wrong line."""

    def __init__(self, where: str, problems: list[str]) -> None:
        super().__init__("\n".join(f"{where}: {problem}" for problem in problems))
        self.problems = problems


def devices(source: str) -> list[str]:
    """`source` is a number (d1, d2, ... with leading zeros) or a file of names. BadNames by line number."""
    if source.isdecimal() and not Path(source).exists():
        count = int(source)
        if not 1 <= count <= 100_000:
            raise BadNames("--devices", [f"{count} devices: between 1 and 100,000 can be made"])
        return [f"d{n:0{len(source)}d}" for n in range(1, count + 1)]
    return read(Path(source))


def read(path: Path) -> list[str]:
    """Names of a file, one a line; empty lines at its end and lines that begin with `# ` are no names."""
    try:
        lines = path.read_bytes().rstrip(b"\r\n").split(b"\n")
    except OSError as error:
        raise BadNames(str(path), [f"cannot be read: {error.strerror}; give a file of names or a number"]) from None
    names: dict[str, int] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if line.startswith(b"# "):
            continue
        try:
            name = line.decode().rstrip("\r")
            check_device(name)
        except UnicodeDecodeError as error:
            problems.append(f"line {number}: not UTF-8 at byte {error.start + 1}")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
        else:
            if name in names:
                problems.append(f"line {number}: {name!r} again, it is on line {names[name]} already")
            names.setdefault(name, number)
    if problems:
        raise BadNames(str(path), problems)
    return list(names)


def check_device(name: str) -> str:
    """`name` itself if a device may be called so; ValueError otherwise."""
    if not name:
        raise ValueError("no name: write one, or remove the line")
    check_name(name, "device")
    if name in RESERVED or name.startswith(tuple(f"{word}-" for word in RESERVED)):
        raise ValueError(f"device {name!r}: names that begin with {name.split('-')[0]!r} are kept for others")
    return name


def operator(who: str) -> tuple[str, tuple[str, ...]]:
    """Person and tools of `who`: NAME for all tools, NAME-TOOL for one. ValueError.

    A name may hold dashes itself: only the name of a tool at its end is one. What is nearly one is refused, because
    a person with all tools would be made of a slip of the finger.
    """
    person, _, tool = who.rpartition("-")
    if person and tool in TOOLS:
        return check_name(person, "operator"), (tool,)
    check_name(who, "operator")
    if person and (meant := get_close_matches(tool.lower(), TOOLS, 1, ALIKE)):
        raise ValueError(
            f"operator {who!r}: no tool is called {tool!r}; write {person}-{meant[0]}, or, if a person is called "
            f"{who}, every tool by itself: {', '.join(f'{who}-{each}' for each in TOOLS)}"
        )
    return who, TOOLS


def check_fleet(name: str) -> str:
    """`name` itself if a fleet may be called so: its coordinators' names must fit a certificate."""
    check_name(name, "fleet")
    longest = COMMON_NAME - len(".coordinator-control")
    if len(name.encode()) > longest:
        raise ValueError(f"fleet {name!r}: at most {longest} bytes, so that its coordinator's name fits a certificate")
    return name
