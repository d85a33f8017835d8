#!/usr/bin/env python3
"""What a server's streams feel, measured within Shoal: gaps between tokens while a long prompt arrives, and what guessing ahead brings.

    bench/run serving MODEL.gguf [--pairs 5] [--threads 2] [--streams 4] [--prompt 2000]

Gaps: so many streams run; after a while a prompt of --prompt tokens is sent. The 99th percentile of the gaps between tokens before and while it
is computed, and their ratio (A: without, B: with, in turn). Guessing: tokens per second of one stream with --speculate and --no-speculate in turn, over
a text that repeats itself and over one that the model makes up, with the share of the guesses that came true.
"""
import argparse
import http.client
import json
import os
import pathlib
import random
import re
import statistics
import threading
import time

import servers

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Streams(servers.Server):
    """`shoal serve`, and the requests that are measured."""

    def __init__(self, options, *flags):
        super().__init__([*servers.runnable(options.shoal), "serve", options.model, "--port", "0", "--threads", options.threads, *flags])
        self.port = int(self.url.rsplit(":", 1)[1])

    def connect(self, fields):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(dict(fields, ignore_eos=True)), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise SystemExit(f"the server refused: {answer.read().decode()[:300]}")
        return connection, answer

    def arrivals(self, times, fields, until=None):
        """Appends the time of each event of a stream to `times`, until its end or until the event is set."""
        connection, answer = self.connect(dict(fields, stream=True))
        for line in answer:
            if line.startswith(b"data: {"):
                times.append(time.monotonic())
            if until is not None and until.is_set():
                break
        connection.close()

    def complete(self, fields):
        connection, answer = self.connect(fields)
        text = answer.read()
        connection.close()
        return json.loads(text)

    def metric(self, name):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return float(re.search(rf"^{name} (\S+)$", text, re.M).group(1))


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def gaps_between(streams, begin, end):
    return [b - a for times in streams for a, b in zip(times, times[1:]) if a >= begin and b <= end]


def measure_gaps(options, server, rng):
    vocabulary = 256  # ids that any model has
    tokens = lambda count: [rng.randrange(3, vocabulary) for _ in range(count)]
    streams, stop = [[] for _ in range(options.streams)], threading.Event()
    threads = [threading.Thread(target=server.arrivals, args=(times, dict(prompt=tokens(32), max_tokens=4000, temperature=0), stop))
               for times in streams]
    for thread in threads:
        thread.start()
    while min(map(len, streams)) < 10:
        time.sleep(0.01)
    begin = time.monotonic()
    while time.monotonic() - begin < options.seconds:
        time.sleep(0.05)
    sent = time.monotonic()
    server.complete(dict(prompt=tokens(options.prompt), max_tokens=1, temperature=0))
    done = time.monotonic()
    stop.set()
    for thread in threads:
        thread.join()
    without, during = gaps_between(streams, begin, sent), gaps_between(streams, sent, done)
    return percentile(without, 0.99), percentile(during, 0.99), done - sent


def measure_guesses(options, kind, flag):
    if kind == "repeats":
        fields = dict(prompt="one two three four one two three four one two three four one two", max_tokens=200)
    else:
        fields = dict(prompt="Once upon a time there was", max_tokens=200)
    with Streams(options, flag, "--no-prefix-cache") as server:
        server.complete(dict(fields, max_tokens=8, temperature=0))
        begin = time.monotonic()
        server.complete(dict(fields, temperature=0))
        rate = fields["max_tokens"] / (time.monotonic() - begin)
        return rate, server.metric("shoal_tokens_proposed_total"), server.metric("shoal_tokens_accepted_total")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--shoal", default=os.environ.get("SHOAL", str(ROOT / "build/release/shoal")))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", choices=["gaps", "guesses"])
    options = parser.parse_args()
    rng = random.Random(1)
    if options.only != "guesses":
        with Streams(options, "--no-speculate", "--no-prefix-cache") as server:
            measure_gaps(argparse.Namespace(**{**vars(options), "seconds": 0.5}), server, rng)  # its step times are learned
            rows = [measure_gaps(options, server, rng) for _ in range(options.pairs)]
        without, during, took = (statistics.median(column) for column in zip(*rows))
        ratio = statistics.median(b / a for a, b, _ in rows)
        print(f"gaps      {options.streams} streams: p99 {without * 1e3:.1f} ms without, {during * 1e3:.1f} ms while a prompt of "
              f"{options.prompt} tokens is computed ({took:.1f} s): {ratio:.2f} x")
    if options.only != "gaps":
        for kind in ("repeats", "tells"):
            plain, guessed, shares = [], [], []
            for _ in range(options.pairs):
                plain.append(measure_guesses(options, kind, "--no-speculate")[0])
                rate, proposed, accepted = measure_guesses(options, kind, "--speculate")
                guessed.append(rate)
                shares.append(accepted / proposed if proposed else 0.0)
            ratio = statistics.median(b / a for a, b in zip(plain, guessed))
            print(f"guessing  {kind:8}: {statistics.median(plain):8.1f} tok/s without, {statistics.median(guessed):8.1f} with: "
                  f"{ratio:.2f} x, {100 * statistics.median(shares):.0f} % of the guesses came true")


if __name__ == "__main__":
    main()
