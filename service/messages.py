"""What the HTTP process and the engine process say to each other: frozen values that pickle.

HTTP ──► engine   Generate, Classify, Score, Cancel and the administrative questions, one at a time
engine ──► HTTP   one batch of events per step: the engine's own and those of this page
"""

import time
from dataclasses import dataclass, field
from typing import Any

from service.engine.events import ClassifiedEvent, FailedEvent, FinishedEvent, TokenEvent
from service.engine.sampling import SamplingParams
from service.engine.stats import EngineStats
from service.errors import ErrorDetail
from service.lifecycle_messages import LifecycleQuestion
from service.split_messages import SplitQuestion

# ── HTTP to engine ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages as (role, content), rendered by the adapter's template."""

    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class InstructPrompt:
    """An instruction and its input (empty if there is none), rendered by the adapter's template."""

    instruction: str
    input: str


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue as it stands."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to continue as they stand."""

    ids: tuple[int, ...]


Prompt = ChatPrompt | InstructPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class Generate:
    """Write ``n`` answers to each prompt. Sequence ``prompt * n + choice`` answers choice ``choice`` of a prompt."""

    tenant: str | None
    """None sees every tenant."""
    model: str
    prompts: tuple[Prompt, ...]
    n: int
    sampling: SamplingParams
    """Its ``max_tokens`` is replaced while the request is prepared."""
    max_tokens: int | None
    """None: what is left of the context, at most ``default_max_tokens``."""
    default_max_tokens: int
    deadline: float
    """On the clock of ``time.monotonic``, which all processes of a machine share."""
    stream: bool = True
    """Whether somebody waits for every token, rather than for the whole answer."""
    share: float = 1.0
    """What its tenant is due, relative to the others."""
    priority: int = 0
    """Its place among its tenant's requests, lower first."""
    sticky: str | None = None
    """What decides which version it gets where its model's requests are split between several; None draws."""

    @property
    def weight(self) -> int:
        """How many sequences it takes."""
        return len(self.prompts) * self.n


@dataclass(frozen=True, slots=True)
class Classify:
    """Say for each text how probable each label of the adapter is."""

    tenant: str | None
    model: str
    texts: tuple[str, ...]
    deadline: float
    threshold: float | None = None
    """From which probability on a label holds; for an adapter with several labels at once."""
    share: float = 1.0
    """What its tenant is due, relative to the others."""
    priority: int = 0
    """Its place among its tenant's requests, lower first."""
    sticky: str | None = None
    """What decides which version it gets where its model's requests are split between several; None draws."""

    @property
    def weight(self) -> int:
        """How many sequences it takes."""
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer to be scored, and the prompt that it answers."""

    prompt: ChatPrompt | InstructPrompt
    answer: str
    field: str
    """Where it stands in the request, for messages."""


@dataclass(frozen=True, slots=True)
class Score:
    """Give each answer the number that the adapter has for it."""

    tenant: str | None
    model: str
    items: tuple[ScoredAnswer, ...]
    deadline: float
    share: float = 1.0
    """What its tenant is due, relative to the others."""
    priority: int = 0
    """Its place among its tenant's requests, lower first."""
    sticky: str | None = None
    """What decides which version it gets where its model's requests are split between several; None draws."""

    @property
    def weight(self) -> int:
        """How many sequences it takes."""
        return len(self.items)


@dataclass(frozen=True, slots=True)
class ListModels:
    """Ask for the models that a tenant may use."""

    tenant: str | None


@dataclass(frozen=True, slots=True)
class ShowModel:
    """Ask for one model."""

    tenant: str | None
    model: str


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Serve an adapter from a folder or from the store under a name."""

    tenant: str | None
    name: str
    path: str
    in_place: bool
    by: str
    """Names the caller's key in the audit log."""


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Stop serving a name; its versions stay in the store."""

    tenant: str | None
    name: str
    by: str


@dataclass(frozen=True, slots=True)
class DescribeBase:
    """Ask for the base, its weights hashed as they are now."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up a request, wherever it is."""


Work = Generate | Classify | Score
Question = ListModels | ShowModel | LoadAdapter | UnloadAdapter | DescribeBase | LifecycleQuestion | SplitQuestion
Message = Work | Question | Cancel

# ── engine to HTTP ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """The base that an engine process holds."""

    id: str
    kind: str
    fingerprint: str
    max_model_len: int
    adapters: int
    """How many names the store served when the process started."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One entry of the list of models; an adapter has a ``parent``, the base has none."""

    id: str
    root: str
    parent: str | None
    owner: str
    created: int
    task: str | None
    max_model_len: int


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """An engine process is ready; ``boot`` tells it from its predecessors."""

    boot: str
    base: BaseInfo


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """The engine process died. Sent by the supervisor, as the dead cannot."""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What the engine process holds and has done; sent every second and whenever it falls idle."""

    engine: EngineStats
    preparing: int
    """Requests whose adapter is being read or whose prompt is being rendered."""
    store_reads: int
    """Adapters read from the store."""
    host_cache_bytes: int
    """Size of the adapters kept in host memory."""
    back_outs: int = 0
    """Versions that were taken out of the split of an adapter's requests."""
    shadows_dropped: int = 0
    """Requests that were not run once more under another version, as there was too much else to do."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine process has taken the message out of the queue: if it dies now, the request is lost with it."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The request is in the engine: its model is fixed, its prompts are tokens."""

    request_id: str
    served: str
    """`tenant/name@digest`, or the base's id."""
    cold: bool
    """The adapter was read from the store for this request."""
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    """Whether each label has a probability of its own."""
    at: float = field(default_factory=time.monotonic, compare=False)
    """When it was."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The request failed as a whole."""

    request_id: str
    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a question."""

    request_id: str
    value: Any


EngineEvent = TokenEvent | FinishedEvent | ClassifiedEvent | FailedEvent
RequestEvent = EngineEvent | Accepted | Prepared | Refused | Answered
WorkerEvent = RequestEvent | WorkerStarted | WorkerGone | WorkerStats
