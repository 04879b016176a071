"""Documents whose examples run: the blocks of a Markdown file, carried out in their order in one folder."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
Blocks = list[tuple[str, str]]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks_of(text: str) -> Blocks:
    """Kind and content of each block of commands, of a program or of settings."""
    return re.findall(r"```(sh|python|toml)\n(.*?)```", text, flags=re.DOTALL)


def run(folder: Path, command: str) -> str:
    """What a shell command says on standard output."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def carry_out(blocks: Blocks, folder: Path, shrink: Callable[[str], str]) -> list[str]:
    """Write files that are named in their first line, and run the rest; every program must say something.

    Args:
        blocks: Of one document.
        folder: Where.
        shrink: From a command to a smaller one.

    Returns:
        What the programs said.
    """
    said = []
    for kind, text in blocks:
        if named := re.match(r"# (\S+\.(?:toml|py))\n", text):
            (folder / named.group(1)).write_text(text)
        elif kind == "python":
            (folder / "program.py").write_text(text)
            said.append(run(folder, f"{sys.executable} program.py"))
            assert said[-1].strip(), text
        else:
            assert kind == "sh", f"settings without a name:\n{text}"
            for command in text.replace("\\\n", "").splitlines():
                run(folder, shrink(command))
    return said
