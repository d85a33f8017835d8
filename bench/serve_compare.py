#!/usr/bin/env python3
"""Serving beside llama.cpp's server: both under the same load, in turn, on one machine in one run.

    bench/serve_compare.py MODEL.gguf [--clients 8,32] [--pairs 5] [--threads 2] [--rounds 2] [--csv FILE]

Each pair starts `shoal serve`, drives it with shoal-load, ends it, and does the same with `llama-server` (A B A B ...). The load is
a closed loop of streaming clients, each asking `--rounds` times: prompts of 32 to 512 random token ids, 128 new tokens, greedy, end
of text ignored; pair i uses seed i, so that both servers get the same requests. For both: the same compute threads, no prompt
cache (Shoal --no-prefix-cache; llama-server --no-cache-prompt --cache-ram 0) and no speculation, which random text would flatter.
llama-server has a slot for each client, and context for the longest request in each.

"better" is the median over pairs of how many times better Shoal is: its tokens/s over the peer's, the peer's times over its own.
The peer comes from SHOAL_PEER_LLAMACPP (default: ../shared/tools/peer-llamacpp); without it only Shoal is measured.
"""
import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import sys

from servers import ROOT, Server, peer_command, runnable

FIGURES = [("generated tokens/s", ("tokens_per_s",), True), ("first token, ms, p50", ("ttft_ms", "p50"), False),
           ("first token, ms, p99", ("ttft_ms", "p99"), False), ("between tokens, ms, p50", ("itl_ms", "p50"), False),
           ("between tokens, ms, p99", ("itl_ms", "p99"), False), ("a request's mean of these, p50", ("mean_itl_ms", "p50"), False),
           ("whole answer, ms, p50", ("e2e_ms", "p50"), False), ("goodput, requests/s", ("goodput_per_s",), True)]


def figure(report, path):
    for key in path:
        report = report[key]
    return report


class Comparison:
    def __init__(self, arguments):
        self.arguments = arguments
        self.model = arguments.model.resolve()
        self.shoal = runnable(arguments.shoal)
        self.load = runnable(arguments.load)
        self.peer = peer_command()
        self.rows = []
        metadata = json.loads(subprocess.run([*self.shoal, "inspect", str(self.model), "--json"], capture_output=True, check=True).stdout)
        sizes = [value for key, value in metadata["metadata"].items() if key.endswith(".vocab_size")]
        self.ids = f"300-{sizes[0] - 1}" if sizes and sizes[0] > 300 else "3-99"

    def start_shoal(self, clients):
        return Server([*self.shoal, "serve", self.model, "--port", 0, "--threads", self.arguments.threads, "--sequences", max(64, clients),
                       "--no-speculate", "--no-prefix-cache"])

    def start_peer(self, clients):
        longest = int(self.arguments.prompt_tokens.split("-")[-1]) + self.arguments.max_tokens + 64
        return Server([*self.peer, "llama-server", "-m", self.model.name, "--host", "127.0.0.1", "--port", 0, "-t", self.arguments.threads,
                       "-np", clients, "-c", clients * longest, "--no-webui", "--no-cache-prompt", "--cache-ram", 0],
                      cwd=self.model.parent)

    def measure(self, name, start, clients, pair):
        arguments = self.arguments
        with start(clients) as server:
            done = subprocess.run(
                [*self.load, server.url, "--clients", str(clients), "--requests", str(clients * arguments.rounds), "--warmup", "1",
                 "--prompt-tokens", arguments.prompt_tokens, "--token-ids", "--id-range", self.ids, "--max-tokens", str(arguments.max_tokens),
                 "--ignore-eos", "--seed", str(pair), "--timeout", "1200", "--idle-timeout", "600", "--run-timeout", "2400",
                 "--slo-ttft", str(arguments.slo_ttft), "--slo-itl", str(arguments.slo_itl), "--json"], capture_output=True, text=True, timeout=3600)
        if not done.stdout:
            raise RuntimeError(f"shoal-load: exit {done.returncode}\n{done.stderr[-2000:]}")
        report = json.loads(done.stdout)
        if report["failed"]:
            raise RuntimeError(f"{name}: {report['failed']} requests failed: {report['failure_examples']}")
        expected = arguments.max_tokens * report["requests"]
        if report["tokens"] != expected:
            raise RuntimeError(f"{name}: {report['tokens']} tokens came, not {expected}")
        self.rows.append([pair, name, clients, *(f"{figure(report, path):.3f}" for _, path, _ in FIGURES),
                          report["prompt_tokens"], report["tokens"], f"{report['tokens_per_event']:.3f}", f"{report['seconds']:.2f}",
                          f"{report['cpu_seconds']:.3f}"])
        print(f"  pair {pair}, {name}: {report['tokens_per_s']:.1f} tokens/s", file=sys.stderr, flush=True)
        return report

    def compare(self, clients):
        ours, theirs = [], []
        for pair in range(1, self.arguments.pairs + 1):
            ours.append(self.measure("shoal", self.start_shoal, clients, pair))
            if self.peer:
                theirs.append(self.measure("llama-server", self.start_peer, clients, pair))
        print(f"{clients} clients{'':22} {'shoal':>10} {'llama-server':>13} {'better':>8}", flush=True)
        for name, path, more_is_better in FIGURES:
            mine, other = [figure(report, path) for report in ours], [figure(report, path) for report in theirs]
            digits = 2 if path == ("goodput_per_s",) else 1
            line = f"  {name:30} {statistics.median(mine):10.{digits}f}"
            if other:
                ratios = [(a / b if more_is_better else b / a) for a, b in zip(mine, other) if a > 0 and b > 0]
                line += f" {statistics.median(other):13.{digits}f}" + (f" {statistics.median(ratios):7.2f}x" if ratios else "")
            print(line, flush=True)
        share = max(report["cpu_seconds"] / report["seconds"] for report in ours + theirs)
        print(f"  the load itself used at most {100 * share:.1f} % of one core; events carried {ours[0]['tokens_per_event']:.2f}"
              + (f" and {theirs[0]['tokens_per_event']:.2f}" if theirs else "") + " tokens each", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--shoal", default=ROOT / "build/release/shoal")
    parser.add_argument("--load", help="the load generator (default: shoal-load beside Shoal)")
    parser.add_argument("--clients", default="8,32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="requests of each client")
    parser.add_argument("--prompt-tokens", default="32-512")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--slo-ttft", type=float, default=10000, help="goodput: first token within MS")
    parser.add_argument("--slo-itl", type=float, default=200, help="goodput: mean between tokens within MS")
    parser.add_argument("--csv", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.load = arguments.load or pathlib.Path(arguments.shoal).resolve().parent / "shoal-load"
    comparison = Comparison(arguments)
    print(f"{arguments.model.name}: prompts of {arguments.prompt_tokens} tokens, {arguments.max_tokens} new ones, {arguments.threads} threads, "
          f"medians of {arguments.pairs} pairs; no prompt cache and no speculation on either side", flush=True)
    try:
        for clients in arguments.clients.split(","):
            comparison.compare(int(clients))
    finally:
        if arguments.csv:
            with arguments.csv.open("w", newline="") as file:
                csv.writer(file).writerows([["pair", "server", "clients", *("_".join(path) for _, path, _ in FIGURES), "prompt_tokens",
                                             "tokens", "tokens_per_event", "seconds", "load_cpu_seconds"], *comparison.rows])


if __name__ == "__main__":
    sys.exit(main())
