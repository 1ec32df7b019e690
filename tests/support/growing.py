"""An answer that grows on a terminal, a step for each line on stdin, which has the width that the
window is to have by then: `python -m tests.support.growing FILE`. The file has a letter for each
step that is done."""

import os
import sys
import termios
import time
import tty
from pathlib import Path

from smolvlm_mlx.cli.chat.markdown import Growing
from smolvlm_mlx.cli.show import Console
from smolvlm_mlx.events import Text

ANSWER = """\
# A heading

A paragraph of several words that is longer than any of the narrow windows, with `code` in it.
- one
- two, which is so long that it takes more than one line in a window
  1. below
* * *
| shape | color |
|---|---:|
| circle | red |

```python
print("a line that is as long as others are, and longer than a narrow window")
```
> said

[link](http://a.example) and [1]

[1]: is not lost
The end."""
STEPS = 12


def main() -> None:
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    growing = Growing(Console())
    print("> question", flush=True)
    for step in range(STEPS):
        growing.take(Text(ANSWER[step * len(ANSWER) // STEPS : (step + 1) * len(ANSWER) // STEPS]))
        growing.paint()
        with Path(sys.argv[1]).open("a") as file:
            file.write("x")
        width = int(sys.stdin.readline())
        while os.get_terminal_size().columns != width:
            time.sleep(0.01)
    growing.finish()
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


if __name__ == "__main__":
    main()
