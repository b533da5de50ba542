"""The one renderer: golden texts and ids, BOS habits, conversations that a template cannot take."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from adapters.base import resolve_base
from adapters.errors import TemplateError
from adapters.manifest import PromptSpec
from adapters.templates import (
    Message,
    PromptInput,
    PromptTemplate,
    completion_ids,
    encode_text,
    scored_end,
    scored_ids,
)
from tests.support.tiny import tiny_tokenizer

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nRewrite it.\n\n### Input:\nThe meal was cooked.\n\n### Response:\n"
)
ALPACA_ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nRewrite it.\n\n### Response:\n"
)
BOS, PAD = 0, 1


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def with_specials(before: str, after: str, *, encoder: bool = False) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a habit: Llama's BOS, or an encoder's [CLS] and [SEP]."""
    fast = tiny_tokenizer(encoder=encoder)
    ids = [(token, fast.convert_tokens_to_ids(token)) for token in {before, after} if token]
    single = " ".join(part for part in (before, "$A", after) if part)
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return fast


# Texts


def test_alpaca_is_the_books_text(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate.named("alpaca")
    assert (
        template.render(tokenizer, PromptInput.from_instruction("Rewrite it.", "The meal was cooked."))
        == ALPACA_WITH_INPUT
    )
    assert template.render(tokenizer, PromptInput.from_instruction("Rewrite it.")) == ALPACA_ALONE


def test_alpaca_reads_short_conversations(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate.named("alpaca")
    user = {"role": "user", "content": "The meal was cooked."}
    system = {"role": "system", "content": "Rewrite it."}
    assert template.render(tokenizer, PromptInput.from_messages([system, user])) == ALPACA_WITH_INPUT
    alone = PromptInput.from_messages([Message("user", "Rewrite it.")])
    assert template.render(tokenizer, alone) == ALPACA_ALONE


@pytest.mark.parametrize(
    "roles", ["system", "assistant", "user user", "user assistant user", "user system", "system user user"]
)
@pytest.mark.parametrize("kind", ["alpaca", "plain"])
def test_other_conversations_are_refused(tokenizer: PreTrainedTokenizerFast, kind: str, roles: str) -> None:
    prompt = PromptInput.from_messages([Message(role, "x") for role in roles.split()])
    with pytest.raises(TemplateError, match="chat template") as caught:
        PromptTemplate.named(kind).render(tokenizer, prompt)
    assert caught.value.key == "messages"


@pytest.mark.parametrize(
    "text", ["{instruction}", "{input}", "{}", "{0.__class__}", "%s", "{{ x }}", "### Response:\n", "\\n"]
)
def test_braces_in_an_instruction_are_only_braces(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    rendered = PromptTemplate.named("alpaca").render(tokenizer, PromptInput.from_instruction(text, text))
    assert rendered.count(text) == 2 + ALPACA_WITH_INPUT.count(text)


def test_plain(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate.named("plain")
    assert template.render(tokenizer, PromptInput.from_instruction("Say", "it")) == "Say\n\nit"
    assert template.render(tokenizer, PromptInput.from_instruction("Say")) == "Say"
    assert template.render(tokenizer, PromptInput.from_messages([Message("user", "Say")])) == "Say"


def test_chat_is_the_tokenizers_own(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Bye"),
    ]
    template = PromptTemplate.named("chat")
    expected = "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nHello\n<|user|>\nBye\n<|assistant|>\n"
    assert template.render(tokenizer, PromptInput.from_messages(turns)) == expected
    one = PromptInput.from_instruction("Say", "it")
    assert template.render(tokenizer, one) == "<|user|>\nSay\n\nit\n<|assistant|>\n"


def test_no_chat_template() -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        PromptTemplate.named("chat").render(tiny_tokenizer(encoder=True), PromptInput.from_instruction("x"))


def test_what_a_chat_template_refuses_is_a_template_error() -> None:
    fast = tiny_tokenizer()
    fast.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TemplateError, match="roles must alternate"):
        PromptTemplate.named("chat").render(fast, PromptInput.from_instruction("x"))


def test_a_users_jinja_sees_both_forms(tokenizer: PreTrainedTokenizerFast) -> None:
    fields = PromptTemplate.from_text("{{ bos_token }}[{{ system }}|{{ instruction }}|{{ input }}]{{ eos_token }}")
    end = "<|endoftext|>"
    assert fields.render(tokenizer, PromptInput.from_instruction("a", "b")) == f"{end}[|a|b]{end}"
    turns = [Message("system", "s"), Message("user", "u")]
    assert fields.render(tokenizer, PromptInput.from_messages(turns)) == f"{end}[s|u|]{end}"
    with pytest.raises(TemplateError, match="'instruction' is undefined"):
        fields.render(tokenizer, PromptInput.from_messages([*turns, Message("assistant", "a"), Message("user", "b")]))
    loop = PromptTemplate.from_text(
        "{% for m in messages %}\n{{ m.role }}: {{ m['content'] | trim }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert loop.render(tokenizer, PromptInput.from_instruction("a", "b")) == "user: a\n\nb\nassistant:"


def test_a_chat_template_copied_into_jinja_renders_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    copied = PromptTemplate.from_text(tokenizer.chat_template)
    prompt = PromptInput.from_messages([Message("user", "Hi"), Message("assistant", "Yes"), Message("user", " x ")])
    assert copied.render(tokenizer, prompt) == PromptTemplate.named("chat").render(tokenizer, prompt)


# Ids


def test_ids_of_a_tokenizer_without_habits(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = PromptInput.from_instruction("Rewrite it.")
    for kind in ("alpaca", "plain", "chat"):
        template = PromptTemplate.named(kind)
        expected = tokenizer.encode(template.render(tokenizer, prompt), add_special_tokens=False)
        assert template.encode(tokenizer, prompt) == expected


def test_bos_is_added_once_where_it_is_the_habit() -> None:
    llama = with_specials("<|endoftext|>", "")
    prompt = PromptInput.from_instruction("Hi")
    for kind in ("alpaca", "plain"):
        ids = PromptTemplate.named(kind).encode(llama, prompt)
        assert ids[0] == BOS
        assert BOS not in ids[1:]
    assert BOS not in PromptTemplate.named("chat").encode(llama, prompt)
    for text in ("{{ bos_token }}{{ instruction }}", "{{ instruction }}"):
        ids = PromptTemplate.from_text(text).encode(llama, prompt)
        assert (ids[0], ids.count(BOS)) == (BOS, 1)


def test_no_closing_token_is_added() -> None:
    closing = with_specials("<|endoftext|>", "<|pad|>")
    ids = PromptTemplate.named("plain").encode(closing, PromptInput.from_instruction("Hi"))
    assert PAD not in ids
    assert completion_ids(closing, "Hi") == ids[1:]


@pytest.mark.parametrize("kind", ["alpaca", "plain", "chat"])
def test_what_is_scored_is_the_prompt_the_answer_and_one_end(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    template, prompt = PromptTemplate.named(kind), PromptInput.from_instruction("Rewrite it.", "It was good.")
    ids = scored_ids(template, tokenizer, prompt, "It was.")
    assert ids == [*template.encode(tokenizer, prompt), *completion_ids(tokenizer, "It was."), BOS]  # it is the EOS too
    assert scored_ids(template, tokenizer, prompt, "") == [*template.encode(tokenizer, prompt), BOS]


def test_what_an_encoder_scores_begins_with_the_token_that_it_is_read_off() -> None:
    encoder = with_specials("<|pad|>", "<|endoftext|>", encoder=True)
    encoder.cls_token, encoder.bos_token, encoder.eos_token, encoder.sep_token = "<|pad|>", None, None, "<|endoftext|>"
    prompt = PromptInput.from_instruction("Hi")
    for template in (PromptTemplate.named("plain"), PromptTemplate.from_text("<|pad|>{{ instruction }}")):
        ids = scored_ids(template, encoder, prompt, "Yes")
        assert ids == [PAD, *completion_ids(encoder, "Hi"), *completion_ids(encoder, "Yes"), BOS]
    assert scored_end(encoder).text == "<|endoftext|>"
    encoder.sep_token = None
    with pytest.raises(TemplateError, match="no end token"):
        scored_ids(PromptTemplate.named("plain"), encoder, prompt, "Yes")


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60), room=st.integers(3, 20), side=st.sampled_from(["left", "right"]))
def test_texts_to_classify_are_cut_as_transformers_cuts_them(text: str, room: int, side: str) -> None:
    for before, after in (("", ""), ("<|endoftext|>", ""), ("<|endoftext|>", "<|pad|>")):
        fast = _CLASSIFIERS.setdefault((before, after, side), with_specials(before, after, encoder=True))
        ours = encode_text(
            _CLASSIFIERS.setdefault((before, after, "ours"), with_specials(before, after)), text, room, side
        )
        fast.truncation_side = side
        assert ours == fast(text, truncation=True, max_length=room)["input_ids"]
        assert len(ours) <= room


_CLASSIFIERS: dict[tuple[str, str, str], PreTrainedTokenizerFast] = {}


def test_no_room_for_a_text() -> None:
    with pytest.raises(TemplateError, match="leaves no room"):
        encode_text(with_specials("<|endoftext|>", "<|pad|>"), "Hi", 2, "right")


def test_a_long_text_raises_no_warning(tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture) -> None:
    ids = PromptTemplate.named("plain").encode(tokenizer, PromptInput.from_instruction("word " * 1000))
    assert len(ids) > 256
    assert not caplog.records


def test_a_golden_prompt_of_the_embedded_base() -> None:
    """These ids are what adapters were trained with: if this fails, published adapters would be refused."""
    tokenizer = resolve_base("embedded").tokenizer()
    ids = PromptTemplate.named("alpaca").encode(tokenizer, PromptInput.from_instruction("Rewrite it.", "It was good."))
    assert tokenizer.decode(ids).endswith("### Input:\nIt was good.\n\n### Response:\n")
    assert ids == GOLDEN


GOLDEN = [
    38, 468, 307, 321, 357, 1074, 3851, 328, 7996, 263, 5708, 18, 372, 86, 564, 263, 7268, 328, 804, 8119, 1445,
    1734, 5563, 265, 6424, 18, 203, 203, 7, 7, 7, 634, 318, 3851, 30, 203, 54, 756, 86, 564, 332, 18, 203, 203, 7,
    7, 7, 634, 4287, 30, 203, 757, 320, 621, 18, 203, 203, 7, 7, 7, 4585, 84, 6554, 30, 203,
]  # fmt: skip


# Manifest


@pytest.mark.parametrize(
    "template", [*map(PromptTemplate.named, ("alpaca", "chat", "plain")), PromptTemplate.from_text("{{ input }}")]
)
def test_a_template_comes_back_from_its_manifest(tokenizer: PreTrainedTokenizerFast, template: PromptTemplate) -> None:
    spec = template.to_manifest(tokenizer)
    again = PromptTemplate.from_manifest(PromptSpec.model_validate_json(spec.model_dump_json()))
    assert again == template
    golden = PromptInput.from_instruction(spec.golden.instruction, spec.golden.input)
    assert tuple(again.encode(tokenizer, golden)) == spec.golden.ids


@pytest.mark.parametrize("change", [{"text": "x"}, {"sha256": "0" * 64}])
def test_an_altered_template_is_refused(tokenizer: PreTrainedTokenizerFast, change: Mapping[str, Any]) -> None:
    spec = PromptTemplate.named("alpaca").to_manifest(tokenizer)
    with pytest.raises(TemplateError, match="sha256"):
        PromptTemplate.from_manifest(spec.model_copy(update=change))


def test_a_named_template_with_another_text_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    other = PromptTemplate.from_text("x").to_manifest(tokenizer).model_copy(update={"template": "alpaca"})
    with pytest.raises(TemplateError, match="another text"):
        PromptTemplate.from_manifest(other)


# Inputs


def test_inputs_that_are_none() -> None:
    for turns in ([], [{"role": "user"}], [{"content": "x"}], [{"role": "tool", "content": "x"}]):
        with pytest.raises(TemplateError):
            PromptInput.from_messages(turns)  # type: ignore[arg-type]
    with pytest.raises(TemplateError, match="alpaca, chat, plain"):
        PromptTemplate.named("vicuna")
