"""A terminal with a program in it: a window of tmux."""

import re
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

SECONDS = 60  # a net: nothing takes as long
PROMPT = re.compile(r"^(?:\d+ attached )?>(?: |$)", re.M)


class Terminal:
    """A tmux window with a shell command in it. `left` and its exit code end the screen when the
    command has ended."""

    def __init__(self, command: str, environment: Mapping[str, str], folder: Path | None = None):
        self._tmux = ["tmux", "-L", f"smolvlm-mlx-{secrets.token_hex(4)}"]
        variables = [
            f"{name}={value}" for name, value in {**environment, "TERM": "xterm-256color"}.items()
        ]
        line = f"trap : INT; {command}; echo left $?; sleep 600"
        shell = ["env", "-i", *variables, "sh", "-c", line]
        where = ["-c", str(folder)] if folder else []
        self._call("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "50", *where, *shell)

    def _call(self, *arguments: str) -> str:
        result = subprocess.run(
            [*self._tmux, *arguments], check=False, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def type(self, *keys: str) -> None:
        """Keys by their names, others as they are."""
        self._call("send-keys", *keys)

    def paste(self, text: str) -> None:
        self._call("set-buffer", "--", text)
        self._call("paste-buffer", "-p")

    def resize(self, columns: int, rows: int = 50) -> None:
        self._call("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self, joined: bool = False) -> str:
        """All lines; those that the window broke as one, where they are `joined`."""
        return self._call("capture-pane", "-p", "-S", "-2000", *["-J"] * joined)

    def wait_until(self, is_there: Callable[[str], bool], what: str) -> str:
        """Wait for a screen; returns it."""
        deadline = time.monotonic() + SECONDS
        while not is_there(screen := self.screen(joined=True)):
            assert time.monotonic() < deadline, f"no {what} on the screen:\n{screen}"
            time.sleep(0.05)
        return screen

    def wait(self, text: str, count: int = 1) -> str:
        """Wait for a text, in whatever lines it is."""
        return self.wait_until(lambda s: " ".join(s.split()).count(text) >= count, repr(text))

    def wait_for_change(self) -> None:
        before = self.screen(joined=True)
        self.wait_until(lambda screen: screen != before, "change")

    def wait_for_prompt(self, beside: int = 0) -> int:
        """Wait for an empty line to type in, beside so many prompts; returns how many there are."""

        def is_there(screen: str) -> bool:
            found = [*PROMPT.finditer(screen)]
            return len(found) > beside and not screen[found[-1].end() :].strip()

        return len(PROMPT.findall(self.wait_until(is_there, "prompt")))

    def wait_for_line(self, line: str) -> None:
        """Wait for a line that ends so, where the last prompt is."""

        def is_there(screen: str) -> bool:
            start = [0, *(match.start() for match in PROMPT.finditer(screen))][-1]
            return screen[start:].split("\n")[0].rstrip().endswith(line)

        self.wait_until(is_there, repr(line))

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, check=False)
