"""What the usage ledger counts."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counts:
    """What is counted; all of it only grows."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    classifications: int = 0
    """Texts that were classified or scored."""
    cold_starts: int = 0
    """Requests for which the adapter had to be read from the store."""
    resident_byte_seconds: float = 0.0
    """How long how much of host memory the adapter took."""

    def add(self, other: "Counts") -> None:
        """Add the counts of another."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
