"""Completion as it is at a real shell's prompt, of the shells that there are."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from koa_shared.simulator.stack import BIN

# What a shell does of a line that ends with a tab; the script of koa has been sourced.
BASH = "COMP_WORDS=(koa cam); COMP_CWORD=1; _koa_completion koa; echo ${COMPREPLY[@]}"
FISH = "complete -C 'koa cam'"
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'autoload -U compinit; compinit -u -D; source {script}; echo SOU""RCED'
zpty -r shell said '*SOURCED*'
zpty -w -n shell $'koa cam\\t'
zpty -r shell said '*campaign*'
echo $said
"""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_a_command(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell) and "CI" not in os.environ:
        pytest.skip(f"no {shell} here")
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = tmp_path / f"koa.{shell}"

    def run(*words: str, **more: str) -> str:
        done = subprocess.run(words, env=env | more, capture_output=True, check=True, timeout=60)
        return done.stdout.decode()

    script.write_text(run(str(BIN / "koa"), _KOA_COMPLETE=f"source_{shell}"))
    line = {"bash": BASH, "fish": FISH, "zsh": ZSH.format(script=script)}[shell]
    told = run(shell, "-c", f"source {script}\n{line}" if shell != "zsh" else line)
    assert "campaign" in told
