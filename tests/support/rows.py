"""Files of rows."""

import json
from pathlib import Path


def write_rows(path: Path, *rows: object) -> Path:
    """JSON lines; a text is a line as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path
