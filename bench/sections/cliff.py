"""What happens as the adapters in use outgrow first the slots, then the host cache."""

from bench.context import Bench
from bench.http_load import send_all
from bench.measuring import percentile
from bench.sections.section import Section
from bench.workloads import cyclic, prompts

SLOTS, HELD, AT_ONCE = 8, 16, 4
WORKING_SETS = (7, 8, 9, 12, 15, 16, 17, 20, 24, 32)
ROUNDS_OF_SET, NEW_TOKENS = 3, 16
_OVERHEAD = 1.02


def run(bench: Bench) -> None:
    """Ask for adapters in turn, which misses a cache every time as soon as it is one too small."""
    folders = bench.adapters(max(WORKING_SETS))
    store, names = bench.store(folders)
    size = (folders[0] / "adapter_model.safetensors").stat().st_size
    held = int(HELD * size * _OVERHEAD)
    vocabulary = bench.base.config().vocab_size
    points = []
    with bench.start_server(store, adapter_slots=SLOTS, max_running=SLOTS, host_cache_bytes=held) as server:
        for count in WORKING_SETS:
            which = cyclic(count, count * (1 + ROUNDS_OF_SET))
            batch = prompts(len(which), bench.options.prompt_tokens, vocabulary, 60_000 + count)
            requests = [server.request(ids, names[index], NEW_TOKENS) for ids, index in zip(batch, which, strict=True)]
            send_all(server.port, requests[:count], AT_ONCE)
            replies = send_all(server.port, requests[count:], AT_ONCE)
            seconds = max(reply.done for reply in replies) - min(reply.sent for reply in replies)
            times = [(reply.done - reply.sent) * 1e3 for reply in replies]
            rate = sum(server.tokens(reply.value) for reply in replies) / seconds
            points.append(
                {
                    "working_set": count,
                    "tokens_per_s": round(rate, 1),
                    "p50_ms": round(percentile(times, 0.5), 1),
                    "p99_ms": round(percentile(times, 0.99), 1),
                }
            )
            bench.say(f"{count} adapters: {rate:.0f} tok/s, p99 of a request {points[-1]['p99_ms']} ms")
    bench.report.figures(
        "cliff",
        {"slots": SLOTS, "host_cache_adapters": HELD, "at_once": AT_ONCE, "new_tokens": NEW_TOKENS, "points": points},
    )


SECTION = Section("cliff", "working sets from below the adapter slots to twice the host cache", run)
