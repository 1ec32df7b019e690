"""tokenizer.json -> ids and back. Text never becomes a control token: those are put in by number,
from the template.

The family's tokenizers are byte-level BPE. The added tokens (`<image>`, `<end_of_utterance>`, ...)
are taken out of the tokenizer and kept in a table: `encode_text` cannot produce them,
`encode_prompt` finds them where the template put them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders

from ..errors import CheckpointError, PromptError, quote, reason
from ..files import read_bytes, read_json_if_there

END_OF_UTTERANCE, END_OF_TEXT = "<end_of_utterance>", "<|endoftext|>"
END_OF_DOCTAGS = "</doctag>"  # of a page, as document checkpoints write it
LONG = 10_000  # characters, which take some milliseconds


MAX_TOKENIZER_BYTES = 12 * 2**20  # the family's has 3.5 MB
MAX_TEMPLATE_BYTES = 2**20  # the family's has 430 bytes
MAX_ADDED_TOKENS, MAX_ADDED_CHARACTERS = 2000, 256  # the family has up to 145, each up to 30 long
MAX_STEPS = 16  # of normalizer and pre-tokenizer, each
# Steps that make of a text no more than a few times its length, in as much time.
_NORMALIZERS = ("Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase")
_PRE_TOKENIZERS = ("Sequence", "ByteLevel", "Digits")
_SAMPLE = "A picture, 12 x 7: \u00e9\u6f22\U0001f600\n <image>"


@contextmanager
def _panics_as_errors() -> Iterator[None]:
    """A PanicException is Rust's, and no Exception: for merges that do not fit the vocabulary, and
    the like."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise ValueError(str(error)) from error
        raise


def _problem_of(raw: object) -> str | None:
    """What is wrong with the content of a tokenizer.json, before the library builds it: what its
    steps do to added tokens is done then."""
    model = raw.get("model") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(model, dict):
        return "damaged (no model)"
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        return "damaged (no vocabulary, or no merges)"
    if model.get("type", "BPE") != "BPE" or model.get("dropout"):
        return f"model {quote(model.get('type'))} is no BPE without dropout, the family's"
    added = raw.get("added_tokens") or []
    if not isinstance(added, list):
        return "damaged (added_tokens is no list)"
    contents = [each.get("content") if isinstance(each, dict) else None for each in added]
    if len(contents) > MAX_ADDED_TOKENS:
        return f"{len(contents)} added tokens, more than {MAX_ADDED_TOKENS}"
    if any(not isinstance(each, str) or len(each) > MAX_ADDED_CHARACTERS for each in contents):
        return f"an added token is no text of up to {MAX_ADDED_CHARACTERS} characters"
    for kind, members, known in (
        ("normalizer", "normalizers", _NORMALIZERS),
        ("pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS),
    ):
        steps = [raw.get(kind)]
        for count, step in enumerate(steps, 1):
            name = step.get("type") if isinstance(step, dict) else step
            if count > MAX_STEPS:
                return f"{kind} has more than {MAX_STEPS} steps"
            if name is not None and name not in known:
                return f"{kind} {quote(name)} is not one of {', '.join(known)}"
            inner = step.get(members) if isinstance(step, dict) else None
            steps += inner if isinstance(inner, list) else []
    return None


class Tokenizer:
    """Byte-level BPE with a table of added tokens.

    Attributes:
        end_ids: all ids that end an answer.
        doctags_end: the id that ends a page of DocTags; None unless it is a document checkpoint's.
    """

    def __init__(
        self, bpe: BPETokenizer, end_tokens: Iterable[str] = (), end_ids: Iterable[int] = ()
    ):
        if not isinstance(bpe.decoder, decoders.ByteLevel):
            raise CheckpointError(
                f"tokenizer.json: decoder {type(bpe.decoder).__name__} is not ByteLevel, the "
                "family's"
            )
        self._bpe = bpe
        self.added = {token.content: id for id, token in bpe.get_added_tokens_decoder().items()}
        self._plain = BPETokenizer(bpe.model)  # shares the vocabulary, but knows no added token
        self._plain.normalizer, self._plain.pre_tokenizer = bpe.normalizer, bpe.pre_tokenizer
        self._tokens = {id: token for token, id in self.added.items()}
        longest_first = sorted(
            (token for token in self.added if len(token) > 1), key=len, reverse=True
        )
        self._splitter = re.compile(
            "(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else r"(?!)"
        )
        openers = re.escape("".join(sorted({token[0] for token in longest_first})))
        self._openers = re.compile(f"[{openers}]" if openers else r"(?!)")
        self.doctags_end = self.added.get(END_OF_DOCTAGS)
        ends = {END_OF_UTTERANCE, END_OF_TEXT, *end_tokens}
        self.end_ids = frozenset(end_ids) | {
            self.added[token] for token in ends if token in self.added
        }

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json; ends of answers come from generation_config.json and
        tokenizer_config.json as well.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{folder}: no tokenizer.json; copy it from the original checkpoint"
            )
        data = read_bytes(path, MAX_TOKENIZER_BYTES)
        try:
            problem = _problem_of(json.loads(data))
            with _panics_as_errors():
                bpe = BPETokenizer.from_buffer(data) if problem is None else None
        except (ValueError, RecursionError) as error:
            problem = f"damaged ({reason(error)})"
        if problem is not None or bpe is None:
            raise CheckpointError(f"{path}: {problem}; copy it from the original checkpoint")
        eos = read_json_if_there(folder / "generation_config.json").get("eos_token_id")
        token = special_tokens(folder).get("eos_token")
        ids = eos if isinstance(eos, list) else [eos]
        tokenizer = cls(
            bpe,
            [token] if token else [],
            [id for id in ids if type(id) is int],
        )
        try:
            tokenizer.encode_text(_SAMPLE)
        except PromptError as error:
            raise CheckpointError(f"{path}: {error}") from error
        return tokenizer

    def to_json(self) -> str:
        """The text of tokenizer.json, for libraries that read it."""
        return str(self._bpe.to_str())

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text: a literal `<image>` in it is seven characters, never the control
        token."""
        if not text:
            return []
        try:
            with _panics_as_errors():
                if len(text) > LONG:  # others may use Python meanwhile
                    return list(self._plain.encode_batch_fast([text])[0].ids)
                return list(self._plain.encode(text).ids)
        except TypeError as error:  # lone surrogates
            raise PromptError(
                "text holds half a surrogate pair, which is no character; remove it"
            ) from error
        except ValueError as error:
            raise PromptError(
                f"the tokenizer fails ({reason(error)}); copy tokenizer.json from the original "
                "checkpoint"
            ) from error

    def guard(self, text: str, mark: str) -> str:
        """Put `mark` behind each character that can begin an added token, so that `encode_prompt`
        finds none there."""
        return self._openers.sub(lambda match: match[0] + mark, text)

    def encode_prompt(self, prompt: str, mark: str) -> list[int]:
        """Ids of a rendered prompt: added tokens by number, the text between them, freed of `mark`,
        as text."""
        ids: list[int] = []
        for index, piece in enumerate(self._splitter.split(prompt)):
            ids += [self.added[piece]] if index % 2 else self.encode_text(piece.replace(mark, ""))
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of ids. Added tokens are left out, or, for document checkpoints, kept."""
        return b"".join(self.bytes_of(id, skip_special_tokens) for id in ids).decode(
            "utf-8", "replace"
        )

    def bytes_of(self, id: int, skip_special_tokens: bool = True) -> bytes:
        """The bytes one id stands for; none for an id that the tokenizer does not know."""
        if id in self._tokens:
            return b"" if skip_special_tokens else self._tokens[id].encode()
        token = self._plain.id_to_token(id)
        if token is None:
            return b""
        # As in tokenizers: else the token is its own text.
        whole = all(character in _BYTE_OF for character in token)
        return bytes(_BYTE_OF[character] for character in token) if whole else token.encode()


def _byte_of() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character (GPT-2's `bytes_to_unicode`); this
    is the way back."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }


_BYTE_OF = _byte_of()


# ---- what a checkpoint's files say for chat templates, as transformers 5.23 reads them


def special_tokens(folder: Path) -> dict[str, str]:
    """The named tokens that a chat template may use, such as bos_token and image_token.

    special_tokens_map.json counts where tokenizer_config.json is of an older kind, without
    `added_tokens_decoder`.
    """
    config = read_json_if_there(folder / "tokenizer_config.json")
    raw: dict[str, object] = dict(config)
    if "added_tokens_decoder" not in config:
        raw |= read_json_if_there(folder / "special_tokens_map.json")
    extra = raw.get("extra_special_tokens")
    more: dict[str, object] = extra if isinstance(extra, dict) else {}
    contents = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in {**raw, **more}.items()
        if name.endswith("_token") or name in more
    }
    return {name: token for name, token in contents.items() if isinstance(token, str)}


def chat_template(folder: Path) -> str | None:
    """The checkpoint's template: of processor_config.json, else of chat_template.json, of
    chat_template.jinja or one named default in additional_chat_templates/, of
    tokenizer_config.json. Of several by name it is the one named default.

    Raises:
        CheckpointError: a file is damaged, or has several and none of that name.
    """
    for name in ("processor_config.json", "chat_template.json"):
        if (template := _template_of(folder / name)) is not None:
            return template
    for name in ("chat_template.jinja", "additional_chat_templates/default.jinja"):
        path = folder / name
        if path.is_file():
            try:
                return read_bytes(path, MAX_TEMPLATE_BYTES).decode()
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{path}: cannot be read ({reason(error)})") from error
    template = _template_of(folder / "tokenizer_config.json")
    others = folder / "additional_chat_templates"
    if template is None and (names := sorted(path.stem for path in others.glob("*.jinja"))):
        _default_of(dict.fromkeys(names), others)
    return template


def _template_of(path: Path) -> str | None:
    """The template in a JSON file: a text, or several by name, as an object or as a list of
    `{"name": ..., "template": ...}`."""
    template = read_json_if_there(path).get("chat_template")
    if isinstance(template, list):
        template = {
            each.get("name"): each.get("template") for each in template if isinstance(each, dict)
        }
    if isinstance(template, dict):
        template = _default_of(template, path)
    if isinstance(template, str) and len(template) > MAX_TEMPLATE_BYTES:
        raise CheckpointError(
            f"{path}: chat_template is larger than {MAX_TEMPLATE_BYTES >> 20} MiB; this is none"
        )
    if template is None or isinstance(template, str):
        return template
    raise CheckpointError(f"{path}: chat_template is a {type(template).__name__}, not text")


def _default_of(named: Mapping[object, object], path: Path) -> object:
    if (template := named.get("default")) is not None:
        return template
    names = ", ".join(quote(name) for name in named)
    raise CheckpointError(
        f"{path}: chat_template has {names or 'nothing'}, and none named 'default'; write the one "
        "to use into chat_template.json"
    )
