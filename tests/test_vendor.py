"""Libraries of others in the page: the table beside them names each file, with its version, licence
and checksum."""

import hashlib
import re

from smolvlm_mlx.server import assets

VENDOR = assets.FOLDER / "vendor"
ROW = re.compile(r"^\| `(.+?)` \| [^|]+ \d+\.\d+\.\d+[^|]+ \| [^|]+ \| `(\w{64})` \|$", re.M)


def test_each_file_is_as_its_line_says() -> None:
    rows = ROW.findall((VENDOR / "README.md").read_text("utf-8"))
    files = {path.name: path for path in VENDOR.iterdir() if path.is_file()}
    del files["README.md"]
    assert dict(rows) == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }


def test_each_library_has_its_licence() -> None:
    text = (VENDOR / "README.md").read_text("utf-8")
    names = {path.stem for path in (VENDOR / "licenses").iterdir()}
    assert names == {
        *("markdown-it", "entities", "linkify-it", "mdurl", "punycode.js", "uc.micro"),
        *("remend", "temml", "highlight.js"),
    }
    assert not {name for name in names if name.replace(".js", "") not in text}
    for path in (VENDOR / "licenses").iterdir():
        assert re.search("[Cc]opyright", path.read_text("utf-8"))
