"""The standard case: so many requests at once, distinct adapters or one or none, on every system in turns."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from bench.context import Bench
from bench.http_load import Connection, Request, send_all
from bench.measuring import System, take_turns
from bench.processes import ServerError, idle_share
from bench.remote import Remote, RemoteError
from bench.sections.section import Section
from bench.systems.llamacpp import LlamaServer, convert
from bench.systems.tenora_server import TenoraServer
from bench.workloads import choose, prompts

WARM_TOKENS = 2
PATIENCE_S = {True: 12.0, False: 120.0}
"""Seconds after which a slow system gets no further round, in a quick run and in a whole one."""
ALONE = {True: 1, False: 4}
"""Requests of a round where they run one after the other: their rate is that of all of them."""
IN_RATIOS = frozenset({
    "tenora_http_distinct", "tenora_http_identical", "tenora_http_base", "tenora_engine_distinct", "llamacpp_distinct",
    "llamacpp_base", "peft_mixed",
})  # fmt: skip
"""Systems that a ratio is made of; in a quick run the others get one round."""
COMPARED = 5
"""Adapters for which llama.cpp's answers are held against Tenora's."""
LLAMA_CONTEXT = 256
CASES = ("distinct", "identical", "base")
Which = list[int | None]
Wave = Callable[[list[list[int]], Which, int], int]


class Standard:
    """Builds the systems, and stands aside where one cannot be built."""

    def __init__(self, bench: Bench, stack: contextlib.ExitStack) -> None:
        self._bench, self._stack = bench, stack
        self._options = bench.options
        self._folders = bench.adapters(bench.options.at_once)
        self.systems: list[System] = []
        self.servers: dict[str, Any] = {}
        common = {"base": str(bench.base.path), "adapters": self._folders}
        # All of them are being made while the servers start.
        self._engine = self._remote("tenora_engine:TenoraEngine", **common, **bench.engine_config)
        self._peft = self._remote("peft_model:PeftSystem", **common, dtype=self._options.dtype)
        self._plain = self._remote(
            "transformers_model:TransformersSystem", base=common["base"], dtype=self._options.dtype
        )

    def add_tenora_server(self) -> None:
        """`tenora serve`, distinct, identical and base."""
        server = self._bench.server
        self.servers["Tenora"] = server
        names = [folder.name for folder in self._folders]

        def wave(batch: list[list[int]], which: Which, new: int) -> int:
            asked = [None if index is None else names[index] for index in which]
            return over_http(server, [server.request(ids, name, new) for ids, name in zip(batch, asked, strict=True)])

        self._add_cases("tenora_http", "Tenora over HTTP", wave)

    def add_tenora_engine(self) -> None:
        """The engine in a process of its own, called without HTTP."""
        self._engine.wait()
        self._add_cases("tenora_engine", "Tenora's engine", lambda *work: int(self._engine.call("throughput", *work)))

    def add_llamacpp(self) -> None:
        """llama.cpp's server with a `lora` per request."""
        binary = self._options.llama_server
        if binary is None:
            raise RivalAbsentError("no llama-server was named; see --llama-server")
        try:
            model, adapters = convert(
                self._bench.base, self._folders, self._options.cache / "gguf", self._options.dtype
            )
        except ValueError as error:
            raise RivalAbsentError(str(error)) from error
        self._bench.say("starting llama-server")
        server = LlamaServer(
            binary=binary,
            model=model,
            adapters=adapters,
            at_once=self._options.at_once,
            context=max(LLAMA_CONTEXT, self._options.prompt_tokens + self._options.new_tokens),
            threads=self._options.threads,
        )
        self.servers["llama.cpp"] = self._stack.enter_context(server)
        self._bench.report.figures("standard", compare_answers(self._bench, self))

        def wave(batch: list[list[int]], which: Which, new: int) -> int:
            return over_http(server, [server.request(ids, index, new) for ids, index in zip(batch, which, strict=True)])

        self._add_cases("llamacpp", "llama.cpp's server", wave)

    def add_peft(self) -> None:
        """PEFT, in one mixed batch and one request after the other."""
        peft = self._peft
        peft.wait()
        self._add("peft_mixed", "PEFT, one mixed batch (`adapter_names`)", "distinct", self._asking(peft, "mixed"))
        self._add(
            "peft_alone",
            "PEFT, one adapter at a time",
            "distinct",
            self._asking(peft, "one_at_a_time"),
            most=ALONE[self._options.quick],
        )

    def add_transformers(self) -> None:
        """transformers without adapters."""
        plain = self._plain
        plain.wait()
        for method, name in (
            ("generate", "transformers `generate`, base only"),
            ("continuous", "transformers' continuous batching, base only"),
        ):
            self._add(f"transformers_{method}", name, "base", self._asking_base(plain, method))

    def _remote(self, target: str, **options: Any) -> Remote:
        return self._stack.enter_context(Remote(f"bench.systems.{target}", threads=self._options.threads, **options))

    @staticmethod
    def _asking(remote: Remote, method: str) -> Wave:
        return lambda batch, which, new: int(remote.call(method, batch, which, new))

    @staticmethod
    def _asking_base(remote: Remote, method: str) -> Wave:
        return lambda batch, _which, new: int(remote.call(method, batch, new))

    def _add_cases(self, key: str, name: str, wave: Wave) -> None:
        words = {
            "distinct": f"{self._options.at_once} distinct adapters",
            "identical": "one adapter for all",
            "base": "base only",
        }
        for case in CASES:
            self._add(f"{key}_{case}", f"{name}, {words[case]}", case, wave)

    def _add(self, key: str, name: str, case: str, wave: Wave, most: int | None = None) -> None:
        options = self._options
        count = min(options.at_once, most or options.at_once)
        which = adapters_of(case, options.at_once)[:count]

        def run(seed: int, requests: int = count, new: int = options.new_tokens) -> int:
            batch = prompts(requests, options.prompt_tokens, self._bench.base.config().vocab_size, seed)
            return wave(batch, which[:requests], new)

        # Crossed with the system, or two that share a cache of prompts would help one another.
        salt = 1000 * (len(self.systems) + 1)
        once = options.quick and key not in IN_RATIOS
        in_process = key.startswith(("peft", "transformers"))

        def warm() -> int:
            # A server has to have seen every adapter; what runs in a process has read them before.
            return run(salt - 1, 2 if in_process else count, min(WARM_TOKENS, options.new_tokens))

        warmed = once and key != "transformers_generate"
        self.systems.append(
            System(key, name, lambda number: run(salt + number), None if warmed else warm, 1 if once else None)
        )


class RivalAbsentError(RuntimeError):
    """A rival cannot take part; the message says why."""


RATIOS = (
    ("distinct_vs_llamacpp", "tenora_http_distinct", "llamacpp_distinct"),
    ("distinct_vs_peft_mixed", "tenora_http_distinct", "peft_mixed"),
    ("base_vs_llamacpp", "tenora_http_base", "llamacpp_base"),
    ("distinct_vs_identical", "tenora_http_distinct", "tenora_http_identical"),
    ("distinct_vs_base", "tenora_http_distinct", "tenora_http_base"),
    ("http_vs_engine", "tenora_http_distinct", "tenora_engine_distinct"),
)
"""Ratio, rate over rate."""


def run(bench: Bench) -> None:
    """Measure every system that is there."""
    with contextlib.ExitStack() as stack:
        standard = Standard(bench, stack)
        standard.add_tenora_server()
        standard.add_tenora_engine()
        adders = {
            "llamacpp": standard.add_llamacpp,
            "peft": standard.add_peft,
            "transformers": standard.add_transformers,
        }
        for rival, add in adders.items():
            try:
                add()
            except (RivalAbsentError, RemoteError, ServerError) as error:
                _without(bench, rival, error)

        def failed(system: System, error: Exception) -> None:
            if system.key.startswith("tenora"):
                raise error
            _without(bench, system.key, error)

        rates = take_turns(
            spread_out(standard.systems),
            bench.options.rounds,
            bench.say,
            patience=PATIENCE_S[bench.options.quick],
            failed=failed,
        )
        idle = {name: round(idle_share(server, 1.0), 4) for name, server in standard.servers.items()}
    for system in standard.systems:
        if system.key in rates:
            bench.report.rate(system.key, system.name, rates[system.key])
    bench.report.figures("standard", {"share_of_a_core_while_idle": idle})
    for ratio, over, under in RATIOS:
        bench.report.ratio_of(ratio, over, under)


def _without(bench: Bench, name: str, error: Exception) -> None:
    """Go on without a rival or one of its systems, and say why in its place and in those of its ratios."""
    bench.say(f"without {name}: {error}")
    for key in (name, *(ratio for ratio, _, under in RATIOS if under.startswith(name))):
        bench.report.reason(key, str(error))


def adapters_of(case: str, count: int) -> Which:
    """Which adapter each of so many requests asks for."""
    if case == "base":
        return [None] * count
    return list(choose("distinct" if case == "distinct" else "identical", count, seed=0))


def over_http(server: TenoraServer | LlamaServer, requests: Sequence[Request]) -> int:
    """Send all requests at once; returns the tokens that came back."""
    replies = send_all(server.port, requests, len(requests))
    return sum(server.tokens(reply.value) for reply in replies)


def spread_out(systems: Sequence[System]) -> list[System]:
    """The turns of a round: systems of one kind not one after the other, so that none always follows itself."""
    kinds: dict[str, list[System]] = {}
    for system in systems:
        kinds.setdefault(system.key.partition("_")[0], []).append(system)
    columns = list(kinds.values())
    return [column[row] for row in range(max(map(len, columns))) for column in columns if row < len(column)]


def compare_answers(bench: Bench, standard: Standard) -> dict[str, float]:
    """Hold llama.cpp's first tokens against Tenora's: a rival that applied no adapters would look fast.

    Raises:
        ServerError: Its answers are not those of the same model under the same adapters.
    """
    tenora, llama = standard.servers["Tenora"], standard.servers["llama.cpp"]
    folders = bench.adapters(bench.options.at_once)
    prompt = prompts(1, bench.options.prompt_tokens, bench.base.config().vocab_size, seed=7)[0]
    asked: Which = [*range(min(COMPARED, len(folders))), None]
    same, differences, seen = 0, [], set()
    with Connection(tenora.port) as ours, Connection(llama.port) as theirs:
        for index in asked:
            name = None if index is None else folders[index].name
            a = tenora.read_logprobs(ours.post(tenora.first_logprobs(prompt, name)).value)
            b = llama.read_logprobs(theirs.post(llama.first_logprobs(prompt, index)).value)
            same += max(a, key=a.__getitem__) == max(b, key=b.__getitem__)
            differences += [abs(a[token] - b[token]) for token in a.keys() & b.keys()]
            seen.add(tuple(sorted(b.items())))
    if len(seen) < len(asked) or 2 * same < len(asked):
        raise ServerError(
            f"llama.cpp told {len(seen)} of {len(asked)} cases apart and chose Tenora's first token for {same}: "
            "it does not serve the same model"
        )
    bench.say(f"llama.cpp chooses Tenora's first token in {same} of {len(asked)} cases")
    return {
        "llamacpp_same_first_token": round(same / len(asked), 3),
        "llamacpp_largest_logprob_difference": round(max(differences), 4),
    }


SECTION = Section(
    "standard",
    "requests at once with distinct adapters, one, or none: Tenora against every rival",
    run,
    tuple(ratio for ratio, _, _ in RATIOS),
    quick=True,
)
