"""Pre-train a small Llama-shaped base on a folder of text.

    python -m models.pretrain CORPUS --output build/base                                     from nothing
    python -m models.pretrain CORPUS --output build/base --first models/tenora-base          from weights there are
    python -m models.pretrain CORPUS --output build/base --instructions dolly.jsonl …        with instruction rows

CORPUS holds *.txt or *.txt.xz; a line `<|endoftext|>` parts documents, and a file without one is cut at blank lines
into passages of some thousand characters. Each file is a source. Sources that `SHARES` names are mixed by it,
others by their size. One document in 100 of each source, some 100 kB, is kept out of training.

The last part of the run, while the learning rate falls, mixes in instruction-shaped text, half in the Alpaca and half
in the chat template: rows of --instructions (JSON lines with instruction, input, output) and exercises made from the
corpus's own short sentences.

Matrices are trained with Muon, embeddings and norms with AdamW, in bfloat16 with float32 weights. A checkpoint is
written every --save-every steps; the same command goes on from it. In --output: the model folder `base`, `loss.png`,
`log.jsonl`, and `held-out/*.txt`, one file a source, for `models.measure`.
"""

import argparse
import json
import lzma
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress, TimeRemainingColumn
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.templates import Message, PromptInput, PromptTemplate

END = "<|endoftext|>"
SPECIAL = [END, "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (Path(__file__).parent / "tenora-base" / "chat_template.jinja").read_text()
CONTEXT = 256  # tokens in a training row
HELD_OUT_EVERY, HELD_OUT_BYTES = 100, 100_000
ANNEAL = 0.5  # the part of the run in which the learning rate falls and instructions are mixed in

# The share of the tokens that each source gets, before and during the annealing. Long old prose has half of the
# corpus and a quarter of the tokens: what the base is shown with is short, plain and of today.
SHARES = {
    "wiki_en_intros_simple": (0.26, 0.17),
    "books_children_pd": (0.22, 0.10),
    "books_adventure_pd": (0.08, 0.03),
    "dialogue_topicalchat": (0.10, 0.06),
    "dialogue_sgd": (0.07, 0.03),
    "dialogue_taskmaster": (0.02, 0.01),
    "tatoeba_sentences": (0.08, 0.10),
    "onestop_news": (0.05, 0.05),
    "storybooks_ccby": (0.05, 0.05),
    "tinystories_bits": (0.01, 0.02),
    "trivia_qa": (0.06, 0.03),
    "instructions": (0.0, 0.15),
    "exercises": (0.0, 0.20),
}


MADE = ("instructions", "exercises")  # sources that are no files of the corpus


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────


def read_documents(corpus: Path) -> dict[str, list[str]]:
    """Source name -> its documents."""
    files = sorted(file for file in corpus.iterdir() if file.name.endswith((".txt", ".txt.xz")))
    if not files:
        raise SystemExit(f"{corpus} holds no *.txt or *.txt.xz")
    documents = {}
    for file in files:
        data = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
        text = data.decode("utf-8")
        parts = [part.strip() for part in (text.split(END) if END in text else passages(text))]
        name = file.name.removesuffix(".xz").removesuffix(".txt")
        if name in documents or name in MADE:
            raise SystemExit(f"{file}: there is a source {name} already; rename the file")
        documents[name] = [part for part in parts if part]
    return documents


def passages(text: str, size: int = 4000) -> Iterator[str]:
    """A text cut at blank lines into parts of at least ``size`` characters."""
    gathered = ""
    for paragraph in re.split(r"\n\s*\n", text):
        gathered += paragraph + "\n\n"
        if len(gathered) >= size:
            yield gathered
            gathered = ""
    yield gathered


def split(documents: dict[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(training, held-out); held-out is about `HELD_OUT_BYTES` a source at most."""
    training, held_out = {}, {}
    for name, texts in documents.items():
        kept: list[str] = []
        size = 0
        for text in texts[::HELD_OUT_EVERY]:
            length = len(text.encode())
            if size < HELD_OUT_BYTES and length < HELD_OUT_BYTES and len(texts) > 1:
                kept.append(text)
                size += length
        unseen = set(kept)
        training[name], held_out[name] = [text for text in texts if text not in unseen], kept
    return training, held_out


def short_sentences(documents: dict[str, list[str]]) -> list[str]:
    """Plain sentences of 4 to 14 words, for the exercises."""
    found = set()
    for texts in documents.values():
        for text in texts:
            for sentence in re.findall(r"(?:(?<=\n)|(?<=[.!?] )|^)[A-Z][a-z' ,]+[.!?](?=\s|$)", text):
                if 4 <= len(sentence.split()) <= 14:
                    found.add(sentence)
    return sorted(found)


Row = tuple[str, str, str]  # instruction, input, output


def exercises(sentences: list[str], count: int, generator: random.Random) -> Iterator[Row]:
    """Rows that ask to copy a sentence with a small change: what an adapter's tasks are made of."""
    made: list[Callable[[str, random.Random], Row | None]] = [
        _repeat, _replace_word, _remove_word, _fill_gap, _order_words, _finish, _first_or_last, _join, _name_words,
    ]  # fmt: skip
    while count and sentences:
        sentence = generator.choice(sentences)
        row = generator.choice(made)(sentence, generator)
        if row is not None:
            count -= 1
            yield row


def _phrased(generator: random.Random, texts: list[str], sentence: str, output: str) -> Row:
    """The sentence as the row's input, or after a colon in its instruction."""
    text = generator.choice(texts)
    return (text + ".", sentence, output) if generator.random() < 0.6 else (f"{text}: {sentence}", "", output)


def _repeat(sentence: str, generator: random.Random) -> Row:
    return _phrased(
        generator, ["Repeat the sentence", "Copy the following sentence", "Say this again"], sentence, sentence
    )


def _pick(sentence: str, generator: random.Random) -> str:
    words: list[str] = [word for word in re.findall(r"\b[a-z']+\b", sentence) if sentence.count(word) == 1]
    return generator.choice(words) if words else ""


_NEW_WORDS = (
    "apple",
    "teacher",
    "garden",
    "river",
    "doctor",
    "table",
    "winter",
    "music",
    "friend",
    "letter",
    "kitchen",
)


def _replace_word(sentence: str, generator: random.Random) -> Row | None:
    if not (old := _pick(sentence, generator)):
        return None
    new = generator.choice(_NEW_WORDS)
    texts = [f'Replace the word "{old}" with "{new}"', f'Change "{old}" to "{new}" in the sentence']
    return _phrased(generator, texts, sentence, sentence.replace(old, new))


def _remove_word(sentence: str, generator: random.Random) -> Row | None:
    if not (word := _pick(sentence, generator)) or f" {word} " not in sentence:
        return None
    texts = [f'Remove the word "{word}"', f'Write the sentence without "{word}"']
    return _phrased(generator, texts, sentence, sentence.replace(f" {word} ", " "))


def _fill_gap(sentence: str, generator: random.Random) -> Row | None:
    if not (word := _pick(sentence, generator)):
        return None
    texts = ["Fill in the missing word", "Complete the sentence with a fitting word"]
    return _phrased(generator, texts, sentence.replace(word, "___"), sentence)


def _order_words(sentence: str, generator: random.Random) -> Row:
    words = sentence[:-1].split()
    generator.shuffle(words)
    texts = ["Put the words in the right order", "Make a sentence from these words"]
    return _phrased(generator, texts, " ".join(words), sentence)


def _finish(sentence: str, generator: random.Random) -> Row:
    words = sentence.split()
    start = " ".join(words[: len(words) // 2])
    return _phrased(generator, ["Finish the sentence", "Continue this text to a whole sentence"], start, sentence)


def _first_or_last(sentence: str, generator: random.Random) -> Row:
    words = sentence[:-1].replace(",", "").split()
    place, word = generator.choice([("first", words[0]), ("last", words[-1])])
    return _phrased(
        generator, [f"Give the {place} word of the sentence", f"Write only the {place} word"], sentence, word
    )


def _join(sentence: str, generator: random.Random) -> Row:
    first, word = sentence[:-1], generator.choice(["and", "but", "so"])
    output = f"{first}, {word} {sentence[0].lower()}{sentence[1:]}"
    texts = [f'Say it twice, joined with "{word}"', f'Write the sentence twice with "{word}" between']
    return _phrased(generator, texts, sentence, output)


def _name_words(sentence: str, generator: random.Random) -> Row:
    words = sentence[:-1].replace(",", "").split()
    texts = ["List the words of the sentence", "Write every word on a line of its own"]
    return _phrased(generator, texts, sentence, "\n".join(words))


def rendered(row: Row, tokenizer: Any, generator: random.Random) -> str:
    """An instruction row as text, in the Alpaca or in the chat template."""
    instruction, given, output = row
    if generator.random() < 0.5:
        return (
            PromptTemplate.named("alpaca").render(tokenizer, PromptInput.from_instruction(instruction, given)) + output
        )
    turns = [Message("user", f"{instruction}\n\n{given}" if given else instruction)]
    return PromptTemplate.named("chat").render(tokenizer, PromptInput.from_messages(turns)) + output


def read_rows(files: list[Path]) -> list[Row]:
    """Instruction rows of JSON-lines files."""
    rows = []
    for file in files:
        with file.open(encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines]
    return [(row["instruction"], row.get("input", ""), row["output"]) for row in rows]


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────


def train_tokenizer(documents: dict[str, list[str]], size: int) -> Any:
    """A byte-level BPE of ``size`` tokens; the special tokens come first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator((text for texts in documents.values() for text in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=SPECIAL[1], extra_special_tokens=SPECIAL[2:],
        model_max_length=1024, padding_side="right", chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def to_rows(texts: list[str], tokenizer: Any, generator: random.Random) -> NDArray[np.uint16]:
    """Documents in random order, END between them, cut into rows [rows, CONTEXT + 1] in random order."""
    texts = generator.sample(texts, len(texts))
    ids: list[int] = []
    for start in range(0, len(texts), 1000):
        for part in tokenizer(texts[start : start + 1000], add_special_tokens=False)["input_ids"]:
            ids += [*part, tokenizer.eos_token_id]
    width = CONTEXT + 1
    rows = np.array(ids[: len(ids) // width * width], dtype=np.uint16).reshape(-1, width)
    return rows[np.random.default_rng(generator.getrandbits(32)).permutation(len(rows))]


def mixed(rows: dict[str, NDArray[np.uint16]], number: int, seed: int) -> NDArray[np.uint16]:
    """The ``number`` rows of the run in order: each source by its share, over again only once all of it was used."""
    generator, rows = np.random.default_rng(seed), dict(rows)
    phases = (number - int(number * ANNEAL), int(number * ANNEAL))
    for name in [name for name, part in rows.items() if not len(part)]:
        print(f"{name} is left out: it has fewer than {CONTEXT + 1} tokens")
        del rows[name]
    tokens = sum(len(part) for part in rows.values())
    known = {name: SHARES.get(name) for name in rows}
    shares = {name: share or (len(rows[name]) / tokens,) * 2 for name, share in known.items()}
    used = dict.fromkeys(rows, 0)
    stream = []
    for phase, length in enumerate(phases):
        total = sum(share[phase] for share in shares.values())
        counts = {name: round(length * share[phase] / total) for name, share in shares.items()}
        counts[max(counts, key=counts.__getitem__)] += length - sum(counts.values())
        taken = []
        for name, part in rows.items():
            taken.append(part[(used[name] + np.arange(counts[name])) % len(part)])
            used[name] += counts[name]
        mixture = np.concatenate(taken)
        stream.append(mixture[generator.permutation(len(mixture))])
    for name, part in rows.items():
        print(f"{name:24s} {part.size / 1e6:6.2f} M tokens, used {used[name] / len(part):.2f} times")
    return np.concatenate(stream)


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Plan:
    """A run's numbers. ``batch`` is in rows of `CONTEXT` tokens."""

    steps: int
    batch: int
    matrix_rate: float
    other_rate: float
    warmup: int = 100

    def rate(self, step: int) -> float:
        """The factor of both learning rates: up, constant, then linearly to 0."""
        falling = (self.steps - step) / (self.steps * ANNEAL)
        return min(1.0, (step + 1) / self.warmup, falling)


class Head(torch.autograd.Function):
    """Mean cross-entropy of the output layer, a chunk of positions at a time.

    A chunk's logits become their gradient in their own memory and are used at once: the logits of a whole batch,
    [8192, 8192], would go through memory half a dozen times.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (torch's protocol)
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, turn: Callable[..., Tensor], chunk: int = 512
    ) -> Tensor:
        """The mean loss of hidden [n, hidden] for targets [n]; ``turn`` is `losses_and_gradient`."""
        output = weight.to(hidden.dtype)
        of_hidden, of_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        total = weight.new_zeros(())
        for part in (slice(start, start + chunk) for start in range(0, len(hidden), chunk)):
            logits = hidden[part] @ output.T
            total += turn(logits, targets[part], 1 / len(hidden))
            if ctx.needs_input_grad[0]:
                torch.mm(logits, output, out=of_hidden[part])
                of_weight += logits.T @ hidden[part]
        ctx.save_for_backward(of_hidden, of_weight)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients that the forward pass left."""
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden * gradient.to(of_hidden.dtype), of_weight * gradient, None, None, None


def losses_and_gradient(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """The sum of the losses of logits [n, vocabulary], times scale; the logits become its gradient."""
    wide = logits.float()
    own, highest = wide.gather(1, targets[:, None]), wide.amax(-1, keepdim=True)
    shares = (wide - highest).exp()
    sums = shares.sum(-1, keepdim=True)
    is_target = torch.arange(wide.shape[1], device=wide.device)[None] == targets[:, None]
    logits.copy_(shares * (scale / sums) - is_target * scale)
    return (highest + sums.log() - own).sum() * scale


class Trainer:
    """The model, its two optimizers and where it is in the run."""

    def __init__(self, model: Any, plan: Plan, device: str, *, compiled: bool = True) -> None:
        self.model, self.plan, self.device = model.to(device), plan, device
        matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
        others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=plan.matrix_rate, weight_decay=0.0),
            torch.optim.AdamW(others, lr=plan.other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.base_rates = [plan.matrix_rate, plan.other_rate]
        self.step = 0
        # One graph for one fixed shape, the hidden states of [batch, CONTEXT] tokens, and one for a chunk of the head.
        self._hidden = torch.compile(self._states, dynamic=False) if compiled else self._states
        self._turn = torch.compile(losses_and_gradient, dynamic=False) if compiled else losses_and_gradient

    def _states(self, ids: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden.to(torch.bfloat16)

    def loss(self, rows: Tensor) -> Tensor:
        """The mean loss of rows [batch, CONTEXT + 1]."""
        hidden, targets = self._hidden(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()
        loss: Tensor = Head.apply(hidden, self.model.lm_head.weight, targets, self._turn)  # type: ignore[no-untyped-call]
        return loss

    def train(self, rows: Tensor) -> float:
        """One step; returns the loss."""
        for optimizer, rate in zip(self.optimizers, self.base_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.plan.rate(self.step)
        loss = self.loss(rows.to(self.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self, rows: Tensor) -> float:
        """The mean loss of rows [n, CONTEXT + 1], whole batches only."""
        batches = rows.split(self.plan.batch)
        return sum(float(self.loss(part.to(self.device))) for part in batches) / len(batches)

    def save(self, file: Path) -> None:
        """Write everything that going on needs, all or nothing."""
        state = {
            "step": self.step, "plan": self.plan.__dict__, "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }  # fmt: skip
        torch.save(state, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)

    def load(self, file: Path) -> None:
        """Go on from what `save` wrote; the plan has to be the same."""
        state = torch.load(file, weights_only=True)
        if state["plan"] != self.plan.__dict__:
            raise SystemExit(f"{file} belongs to another plan ({state['plan']}): choose another --output")
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]


def run(trainer: Trainer, rows: NDArray[np.uint16], held_out: Tensor, folder: Path, save_every: int) -> None:
    """Train to the end of the plan, from the checkpoint if there is one."""
    plan, checkpoint, log = trainer.plan, folder / "checkpoint.pt", folder / "log.jsonl"
    if checkpoint.exists():
        trainer.load(checkpoint)
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= trainer.step]
        log.write_text("".join(f"{line}\n" for line in lines))
        print(f"going on from step {trainer.step}")
    start, began = trainer.step, time.monotonic()
    recent: list[float] = []
    with log.open("a") as out, Progress(*Progress.get_default_columns()[:-1], TimeRemainingColumn()) as progress:
        task = progress.add_task("pre-training", total=plan.steps, completed=start)
        while trainer.step < plan.steps:
            place = trainer.step * plan.batch
            recent.append(trainer.train(torch.from_numpy(rows[place : place + plan.batch].astype(np.int64))))
            progress.advance(task)
            if trainer.step % 50 == 0 or trainer.step == plan.steps:
                entry: dict[str, float] = {"step": trainer.step, "loss": sum(recent) / len(recent)}
                if trainer.step % 250 == 0 or trainer.step == plan.steps:
                    entry["held_out"] = trainer.evaluate(held_out)
                entry["tokens_per_second"] = (trainer.step - start) * plan.batch * CONTEXT / (time.monotonic() - began)
                recent = []
                print(json.dumps(entry), file=out, flush=True)
                progress.console.print(" ".join(f"{name} {value:.4g}" for name, value in entry.items()))
            if trainer.step % save_every == 0:
                trainer.save(checkpoint)


def plot(folder: Path) -> None:
    """Training and held-out loss by tokens seen, as loss.png."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    plan = json.loads((folder / "plan.json").read_text())
    tokens = plan["batch"] * CONTEXT / 1e6
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([e["step"] * tokens for e in entries], [e["loss"] for e in entries], label="training (its mixture)")
    measured = [e for e in entries if "held_out" in e]
    axes.plot([e["step"] * tokens for e in measured], [e["held_out"] for e in measured], "o-", label="held out")
    axes.axvline(plan["steps"] * (1 - ANNEAL) * tokens, color="gray", linestyle=":", label="annealing begins")
    axes.set(xlabel="million tokens", ylabel="nats per token")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.png", dpi=120)


# ── in order ──────────────────────────────────────────────────────────────────────────────────────────────────


def new_model(args: argparse.Namespace, tokenizer: Any) -> Any:
    """A Llama with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=args.hidden, intermediate_size=args.hidden * 11 // 4,
        num_hidden_layers=args.layers, num_attention_heads=args.hidden // 64, num_key_value_heads=args.hidden // 64,
        max_position_embeddings=1024, tie_word_embeddings=True, rms_norm_eps=1e-6,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def prepare(args: argparse.Namespace) -> tuple[Any, NDArray[np.uint16], Tensor]:
    """(tokenizer, rows of the run in order, held-out rows); made once, then read from --output."""
    tokens, source = args.output / "tokens.npz", args.output / "source.json"
    names = ("corpus", "first", "instructions", "exercises", "vocabulary", "steps", "batch", "seed")
    made_from = json.dumps({name: str(getattr(args, name)) for name in names})
    if tokens.exists():
        if source.read_text() != made_from:
            raise SystemExit(f"{args.output} belongs to another run ({source.read_text()}): choose another --output")
        kept = np.load(tokens)
        return (
            AutoTokenizer.from_pretrained(args.output / "tokenizer"),
            kept["rows"],
            torch.from_numpy(kept["held_out"]),
        )
    generator = random.Random(args.seed)
    documents, held_out = split(read_documents(args.corpus))
    (args.output / "held-out").mkdir(parents=True, exist_ok=True)
    for name, texts in held_out.items():
        (args.output / "held-out" / f"{name}.txt").write_text(f"\n{END}\n".join(texts))
    tokenizer = AutoTokenizer.from_pretrained(args.first) if args.first else train_tokenizer(documents, args.vocabulary)
    if len(tokenizer) > np.iinfo(np.uint16).max:
        raise SystemExit(f"a vocabulary of {len(tokenizer)} tokens is too large: token ids are kept in 16 bits")
    tokenizer.save_pretrained(args.output / "tokenizer")
    sentences = short_sentences(documents)
    made = {
        "instructions": read_rows(args.instructions),
        "exercises": list(exercises(sentences, args.exercises, generator)),
    }
    texts = documents | {
        name: [rendered(row, tokenizer, generator) for row in part] for name, part in made.items() if part
    }
    rows = mixed(
        {name: to_rows(part, tokenizer, generator) for name, part in texts.items()}, args.steps * args.batch, args.seed
    )
    unseen = np.concatenate([to_rows(part, tokenizer, generator)[:24] for part in held_out.values()])
    unseen = unseen[: len(unseen) // args.batch * args.batch].astype(np.int64)
    if not len(unseen):
        raise SystemExit(f"{args.corpus} is too small: less than {args.batch} rows of {CONTEXT} tokens can be held out")
    source.write_text(made_from)
    np.savez(args.output / "unfinished.npz", rows=rows, held_out=unseen)
    (args.output / "unfinished.npz").replace(tokens)
    return tokenizer, rows, torch.from_numpy(unseen)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="folder of *.txt or *.txt.xz")
    parser.add_argument("--output", type=Path, required=True, help="folder of this run; a second call goes on in it")
    parser.add_argument("--first", type=Path, help="model folder whose weights and tokenizer to go on from")
    parser.add_argument("--instructions", type=Path, nargs="*", default=[], help="JSON-lines files for the annealing")
    parser.add_argument("--exercises", type=int, default=40_000, help="exercise rows made for the annealing")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32, help=f"rows of {CONTEXT} tokens a step")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=256, help="width, a multiple of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--matrix-rate", type=float, default=0.02, help="Muon's learning rate")
    parser.add_argument("--other-rate", type=float, default=3e-3, help="AdamW's, for embeddings and norms")
    parser.add_argument("--save-every", type=int, default=250, help="steps from checkpoint to checkpoint")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler; 1.6 times faster"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Prepare, train, plot, and write the model folder."""
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    tokenizer, rows, held_out = prepare(args)
    model = LlamaForCausalLM.from_pretrained(args.first) if args.first else new_model(args, tokenizer)
    if args.compile and args.device == "cpu":
        model.set_attn_implementation("eager")  # compiled for one shape it is faster than torch's own attention
    plan = Plan(args.steps, args.batch, args.matrix_rate, args.other_rate)
    (args.output / "plan.json").write_text(json.dumps(plan.__dict__))
    trainer = Trainer(model.float(), plan, args.device, compiled=args.compile)
    run(trainer, rows, held_out, args.output, args.save_every)
    plot(args.output)
    model.to(torch.bfloat16).save_pretrained(args.output / "base")
    for trace in ("is_local", "local_files_only"):  # where it was read from is no part of a tokenizer
        tokenizer.init_kwargs.pop(trace, None)
    tokenizer.save_pretrained(args.output / "base")
    print(f"the base is in {args.output / 'base'}, its losses in {args.output / 'loss.png'}")


if __name__ == "__main__":
    torch.set_float32_matmul_precision("medium")
    torch.set_flush_denormal(True)  # gradients of real text hold many, and each is slow
    main()
