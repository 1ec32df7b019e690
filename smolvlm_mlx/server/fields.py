"""Fields that a request does not have here: those of OpenAI's API and of the servers of vLLM,
llama.cpp, LM Studio, Ollama, mlx-lm and mlx-vlm. One that would change the answer is refused by
name, as is a misspelled one; the rest, such as `user`, is ignored.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from ..errors import PromptError

LONGEST = 100  # characters of a name that is compared with those of fields

# What others call it: what it is called here.
_RENAMED = {
    "max_tokens": "max_new_tokens max_output_tokens max_length num_predict n_predict",
    "temperature": "temp do_sample",
    "repetition_penalty": "repeat_penalty rep_pen",
    "repetition_context": "repetition_context_size repeat_last_n rep_pen_range",
    "stop": "stop_sequences stop_sequence stop_strings stop_words stop_str",
    "end_loops": "repetition_detection",
    "seed": "random_seed sampling_seed",
    "n": "num_return_sequences n_choices",
    "response_format": "guided_json structured_outputs json_schema response_schema format",
    "longest_edge, split and max_tiles": "resize_shape min_pixels max_pixels mm_processor_kwargs",
    "messages": "prompt input system instructions system_prompt image images videos files",
    "detail, in the part of a picture": "detail image_detail",
    "it in the part of a video": "fps max_frames num_frames nframes start end",
    "its fields, at the top level": "extra_body options parameters sampling_params "
    "generation_config",
}
_NOT_DONE = set(
    # answers that are chosen, or told of, in another way
    "best_of logit_bias logprobs top_logprobs prompt_logprobs n_probs echo suffix return_token_ids "
    "return_tokens_as_token_ids include_stop_str_in_output use_beam_search num_beams beam_width "
    "length_penalty early_stopping "
    # samplers
    "typical_p typical typ_p tfs tfs_z top_a top_n_sigma mirostat mirostat_mode dry_multiplier "
    "xtc_probability dynatemp_range smoothing_factor penalty_alpha no_repeat_ngram_size samplers "
    "encoder_repetition_penalty presence_context_size frequency_context_size guidance_scale "
    "cfg_scale negative_prompt logits_processors "
    # ends
    "min_tokens min_new_tokens min_length max_time t_max_predict_ms ignore_eos stop_token_ids "
    "stop_regex bad_words allowed_token_ids "
    # forms
    "guided_regex guided_choice guided_grammar regex ebnf grammar structural_tag verbosity "
    # prompts
    "chat_template chat_template_kwargs template "
    "role_mapping safe_prompt add_special_tokens transforms documents truncate_prompt_tokens "
    "num_ctx n_ctx n_keep num_keep "
    # what else an answer may be made with
    "prediction audio modalities web_search_options adapters adapter lora lora_path "
    "draft_model".split()
)
# Where an empty value or 0 is not the only one that asks for nothing.
_NOTHING_ASKED: dict[str, object] = {
    **dict.fromkeys(
        "best_of num_beams num_return_sequences length_penalty typical_p typical typ_p tfs tfs_z "
        "repeat_penalty rep_pen encoder_repetition_penalty guidance_scale cfg_scale".split(),
        1,
    ),
    "modalities": ["text"],
    "verbosity": "medium",
}
_HARMLESS = {"models", "conversation_id", "max_retries"}  # though they are nearly fields
_THINKING = {"enable_thinking", "thinking", "thinking_budget", "reasoning_effort"}  # there is none

REQUEST = {
    **{other: f"say {here}" for here, others in _RENAMED.items() for other in others.split()},
    **dict.fromkeys(_NOT_DONE, "is not supported; leave it out"),
    "kv_bits": "is not supported: the cache is shared by all requests; leave it out",
}
MESSAGE = dict.fromkeys(
    "image images video videos files attachments experimental_attachments".split(),
    "say it in content, as parts",
)
PART = {
    **dict.fromkeys(
        "min_pixels max_pixels resized_height resized_width".split(), REQUEST["max_pixels"]
    ),
    **dict.fromkeys(("nframes", "num_frames"), "say max_frames"),
    "video_start": "say start",
    "video_end": "say end",
}


def problem_of(
    fields: Mapping[str, object], known: tuple[str, ...], refused: Mapping[str, str], most: int
) -> tuple[str, str] | None:
    """Return the first field that is unknown and would change the answer, and what is to be said
    of it: one that is refused and asks for something, one that is nearly known, or the first beyond
    `most`."""
    for name in list(fields)[:most]:
        if name in refused and name not in known:
            if not _asks_nothing(name, fields[name]):
                return name, refused[name]
        elif name not in {*known, *_HARMLESS} and (near := _nearest(name[:LONGEST], known)):
            return name, f"is no field; did you mean {near}?"
    if len(fields) <= most:
        return None
    return list(fields)[most], f"{len(fields)} fields in one object; the limit is {most}"


@lru_cache(1024)
def _nearest(name: str, known: tuple[str, ...]) -> str | None:
    plain = name.lower().replace("-", "_")
    return next(iter(get_close_matches(plain, known, 1, 0.8)), None)


def _asks_nothing(name: str, value: object) -> bool:
    if name == "chat_template_kwargs" and isinstance(value, Mapping):
        return value.keys() <= _THINKING
    if name in _NOTHING_ASKED and value == _NOTHING_ASKED[name]:
        return True
    if name in _NOT_DONE and value in (False, 0):
        return True
    return value is None or value in ("", [], {})


class RequestError(PromptError):
    """A request cannot be answered. `param` is the path of the field that is wrong."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param


class Fields(BaseModel):
    """An object of a request. What is unknown in it is ignored, if it changes nothing. The context
    of its validation is the `Budget`."""

    model_config = ConfigDict(strict=True)
    refused: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def has_no_unknown(cls, value: object, info: ValidationInfo) -> object:
        budget: Any = info.context
        if isinstance(value, dict):
            known = tuple(field.alias or name for name, field in cls.model_fields.items())
            if problem := problem_of(value, known, cls.refused, budget.fields):
                raise wrong(*problem)
        return value


def wrong(name: str, words: str) -> PydanticCustomError:
    """What is wrong with a field, for a validator of the object that has it."""
    return PydanticCustomError("field", "{words}", {"name": name, "words": words})
