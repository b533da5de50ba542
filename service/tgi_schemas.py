"""What clients of Text Generation Inference and of LoRAX, which extends it, send.

Their interface is an old one with many parameters. What is not served passes while it holds the value that asks for
nothing, as their clients send every parameter always, and is refused by name otherwise.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, Tag

from service.schemas import (
    GREEDY_BELOW,
    LIST,
    MAX_ALTERNATIVES,
    MAX_STOPS,
    TEXT,
    FilledText,
    Name,
    Stops,
    Text,
    Texts,
    WireModel,
    text_or_list,
    told_apart,
)

INPUT, INPUTS = TEXT, LIST
"""The two forms of a body to classify, under tags that messages leave out of a field's path."""
BASE_MODEL = "__base_model__"
"""What LoRAX calls no adapter."""

# Of each field the values that ask for nothing; None always does. Adapters come from this server's own store.
_OTHER_SOURCES: Mapping[str, tuple[Any, ...]] = {"adapter_source": ("local",)}
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **_OTHER_SOURCES,
    "api_token": (),
    "apply_chat_template": (False,),
    "best_of": (1,),
    "decoder_input_details": (False,),
    "grammar": (),
    "merged_adapters": (),
    "response_format": (),
    "truncate": (),
    "typical_p": (1, 1.0),
    "watermark": (False,),
}


class AdapterChoice(WireModel):
    """The parameters that name an adapter."""

    unsupported = _OTHER_SOURCES

    adapter_id: Name | None = Field(None, description="Adapter (tenant/name, with @digest or :alias); none: the base.")

    def model(self, base: str) -> str:
        """The name to resolve, given the base's."""
        return base if self.adapter_id in (None, BASE_MODEL) else str(self.adapter_id)


class TgiParameters(AdapterChoice):
    """How to write."""

    unsupported = _UNSUPPORTED

    max_new_tokens: int | None = Field(
        None, ge=1, le=1 << 31, description="Longest answer in tokens; the server's own default if not given."
    )
    do_sample: bool | None = Field(None, description="Sample although no other parameter asks for it.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 takes the likeliest token.")
    top_k: int | None = Field(None, ge=0, le=1 << 31, description="Keep this many likeliest tokens.")
    top_p: float | None = Field(None, ge=1e-6, le=1, description="Keep the likeliest tokens up to this probability.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, description="Over 1 makes repetitions less likely.")
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="Lowers tokens by how often they stand in the answer, as OpenAI defines it."
    )
    seed: int | None = Field(None, ge=0, lt=1 << 63, description="Same seed, same answer.")
    stop: Stops | None = Field(None, description=f"Texts that end the answer, at most {MAX_STOPS}; no part of it.")
    ignore_eos_token: bool | None = Field(None, description="Write on past the end-of-text token.")
    return_full_text: bool | None = Field(None, description="Begin the answer with the prompt.")
    details: bool | None = Field(None, description="Tell what the answer is made of.")
    top_n_tokens: int | None = Field(
        None, ge=0, le=MAX_ALTERNATIVES, description="TGI: report so many likeliest tokens per token."
    )
    return_k_alternatives: int | None = Field(
        None, ge=0, le=MAX_ALTERNATIVES, description="LoRAX: report so many likeliest tokens per token."
    )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn; as with TGI, greedy unless something asks for it."""
        if self.temperature is not None and self.temperature < GREEDY_BELOW:
            return False
        return bool(self.do_sample or self.top_k) or self.temperature not in (None, 1) or self.top_p not in (None, 1)


class TgiRequest(WireModel):
    """POST /generate, /generate_stream and /."""

    inputs: FilledText = Field(description="Text to continue as it stands.")
    parameters: TgiParameters | None = Field(None, description="How.")
    stream: bool | None = Field(None, description="Only for POST /: send the answer as it is written.")

    @property
    def how(self) -> TgiParameters:
        """The parameters, those left out at their defaults."""
        return self.parameters or TgiParameters.model_validate({})


class TgiClassifyRequest(WireModel):
    """POST /classify in LoRAX's form: `inputs` where vLLM has `input`."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {"stream": (False,)}

    inputs: Annotated[
        Annotated[Text, Tag(TEXT)] | Annotated[Texts, Tag(LIST)],
        told_apart(text_or_list, "a text or a list of texts"),
    ] = Field(description="Text or texts to classify.")
    parameters: AdapterChoice | None = Field(None, description="Which adapter.")

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts as a tuple."""
        return (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)


def classify_form(body: Any) -> str:
    """Which of the two interfaces of /classify a body speaks."""
    return INPUTS if isinstance(body, dict) and "inputs" in body and "input" not in body else INPUT
