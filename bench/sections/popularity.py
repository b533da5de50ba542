"""Punica's four popularities: the same number of requests, spread differently over adapters."""

from bench.context import Bench
from bench.http_load import send_all
from bench.measuring import System, take_turns
from bench.sections.section import Section
from bench.workloads import POPULARITIES, Popularity, choose, prompts

REQUESTS = 64


def run(bench: Bench) -> None:
    """A closed loop over HTTP for each popularity, in turns."""
    options, server = bench.options, bench.server
    _, names = bench.store(bench.adapters(REQUESTS))
    vocabulary = bench.base.config().vocab_size

    def serve(popularity: Popularity, seed: int, count: int, new_tokens: int) -> int:
        batch = prompts(count, options.prompt_tokens, vocabulary, 50_000 + seed)
        which = choose(popularity, REQUESTS, seed)[:count]
        requests = [server.request(ids, names[index], new_tokens) for ids, index in zip(batch, which, strict=True)]
        return sum(server.tokens(reply.value) for reply in send_all(server.port, requests, options.at_once))

    def system(number: int, popularity: Popularity) -> System:
        salt = 1000 * number
        return System(
            f"popularity_{popularity}",
            f"Tenora over HTTP, {REQUESTS} requests, {options.at_once} at a time, {popularity}",
            lambda seed: serve(popularity, salt + seed, REQUESTS, options.new_tokens),
            lambda: serve(popularity, salt + 999, options.at_once, 4),
        )

    systems = [system(number, popularity) for number, popularity in enumerate(POPULARITIES)]
    rates = take_turns(systems, options.rounds, bench.say)
    for made in systems:
        bench.report.rate(made.key, made.name, rates[made.key])
    adapters = {name: len(set(choose(name, REQUESTS, 0))) for name in POPULARITIES}
    bench.report.figures("popularity", {"requests": REQUESTS, "adapters": adapters})


SECTION = Section("popularity", "Punica's popularities: identical, distinct, uniform, skewed", run)
