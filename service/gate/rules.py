"""What an alias can demand of a version. Unknown demands are refused by name."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from service.schemas import FilledText, Text, WireModel

MOST_PROMPTS, MOST_ROWS = 64, 1000
Ratio = Annotated[float, Field(gt=0, le=100)]
Part = Annotated[float, Field(ge=0, le=1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=65_536)]


class GoldenPrompt(WireModel):
    """An instruction with what is known of it: the token ids of its prompt, the answer to it, or both."""

    instruction: FilledText = Field(description="What is asked.")
    input: Text = Field("", description="Its input.")
    prompt_ids: TokenIds | None = Field(None, description="Token ids that the rendered prompt has to have.")
    answer_ids: TokenIds | None = Field(None, description="Token ids that the greedy answer has to begin with.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.prompt_ids is None and self.answer_ids is None:
            raise ValueError("a golden prompt needs prompt_ids, answer_ids, or both")
        return self


class GoldenRow(WireModel):
    """A text and its label, or an instruction and its answer."""

    text: FilledText = Field(description="Text to classify, or instruction to follow.")
    input: Text = Field("", description="Input of the instruction.")
    expected: FilledText = Field(description="The label, or the whole answer.")


class GoldenSet(WireModel):
    """Rows of which a part at least has to come out right."""

    rows: list[GoldenRow] = Field(min_length=1, max_length=MOST_ROWS, description="The rows.")
    at_least: Part = Field(description="The part of them that has to be right: accuracy, or exact match.")


class GateRules(WireModel):
    """PUT /v1/adapters/{tenant}/{name}/gates/{alias}.

    That the version loads exactly and computes no NaN is always demanded.
    """

    differs: bool = Field(True, description="Its output differs from the base's.")
    stops_within: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        None, description="Answers to the probes end by themselves within so many tokens; for what generates."
    )
    prompts: list[GoldenPrompt] = Field([], max_length=MOST_PROMPTS, description="Golden prompts; they are the probes.")
    golden_set: GoldenSet | None = Field(None, description="Rows with a part that has to be right.")
    latency_ratio: Ratio | None = Field(
        None, description="How much slower than what the alias points at now it may be; measured in turns."
    )
    timeout: Annotated[float, Field(gt=0, le=3600)] = Field(300.0, description="Seconds that all checks may take.")
