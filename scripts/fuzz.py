"""Fuzzing of the server's handshakes: the conversation alone at full speed, and a running server through sockets.

Cases are numbers (fuzz_cases); what must be so of each stands in fuzz_conversation and fuzz_server. A case that goes
wrong is printed with its number and bytes, and the exit status is 1.
"""

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from scripts import fuzz_conversation, fuzz_server
from scripts.fuzz_cases import Wrong

CONVERSATIONS, SERVED = 10_000_000, 100_000
CHUNK = {"conversation": 50_000, "server": 5_000}
Measured = Callable[[range], tuple["Counter[str]", float]]
LEVELS: dict[str, Measured] = {"conversation": fuzz_conversation.measured, "server": fuzz_server.measured}


def fuzz(level: str, numbers: range, processes: int, seconds: float) -> bool:
    """Plays the cases, in several processes, until they or the seconds are up; says what came of it."""
    chunk = CHUNK[level]
    chunks = [numbers[start : start + chunk] for start in range(0, len(numbers), chunk)]
    kinds, done, busy, start = Counter[str](), 0, 0.0, time.perf_counter()
    with ProcessPoolExecutor(processes) as pool:
        running: dict[Future[tuple[Counter[str], float]], range] = {}
        try:
            while chunks or running:
                while chunks and len(running) < processes and time.perf_counter() - start < seconds:
                    part = chunks.pop(0)
                    running[pool.submit(LEVELS[level], part)] = part
                if not running:
                    break
                future = next(as_completed(running))
                part = running.pop(future)
                found, took = future.result()
                kinds += found
                done += len(part)
                busy += took
        except Wrong as wrong:
            pool.shutdown(wait=False, cancel_futures=True)
            print(f"wrong: {wrong}\nrepeat it: scripts/fuzz --level {level} --only NUMBER", flush=True)
            return False
    took = time.perf_counter() - start
    rate = done / took if took else 0.0
    print(f"{level}: {done:,} of {len(numbers):,} cases from {numbers.start} in {took:.0f} s by {processes} processes,")
    print(f"  {rate:,.0f} cases/s, {busy / max(done, 1) * 1e6:.0f} µs each", end="")
    print(f"; 10 million take {10_000_000 / max(rate, 1) / 60:.1f} min" if level == "conversation" else "")
    print("  " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()), flush=True)
    return True


def main() -> int:
    """Runs what the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Random and changed handshakes for the server.")
    parser.add_argument("--level", choices=list(LEVELS), help="only the conversation alone, or only a running server")
    parser.add_argument("--cases", type=int, help=f"so many of each (default: {CONVERSATIONS:,} and {SERVED:,})")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing more after so long, each")
    parser.add_argument("--seed", type=int, help="number of the first case (default: random, and printed)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this one case")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    start = random.SystemRandom().randrange(2**40) if options.seed is None else options.seed
    for level, count in (("conversation", CONVERSATIONS), ("server", SERVED)):
        if options.level not in (None, level):
            continue
        numbers = range(start, start + (count if options.cases is None else options.cases))
        if options.only is not None:
            numbers = range(options.only, options.only + 1)
        if not fuzz(level, numbers, options.processes, options.seconds):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
