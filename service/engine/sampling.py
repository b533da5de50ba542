"""How a sequence wants its tokens chosen."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one sequence; the defaults sample from the model's own distribution."""

    max_tokens: int = 16
    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose probability reaches top_p."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Divides (positive) or multiplies (negative) the logits of tokens seen in prompt or answer."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of tokens already in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of a token as often as it stands in the answer."""
    seed: int | None = None
    """Same seed, same tokens, whatever else is in the batch (float32); None draws a fresh one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    logprobs: int | None = None
    """Report log-probabilities with this many alternatives; None reports nothing."""
    ignore_eos: bool = False
    """Generate past the end-of-text token, for measurements."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether logits depend on the tokens seen so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
