#!/usr/bin/env python3
"""The speed table: Shoal beside its peers on one machine in one run.

    bench/table.py MODEL.gguf [--shoal BIN] [--pairs 5] [--rows decode,prefill,batch,workers] [--csv FILE]

Machines are noisy, so a figure is never one absolute time: each pair runs Shoal and the peer one after the other (A B A B ...), and the
table shows both medians and the median of the pairs' ratios. The machine's read bandwidth stands beside decode as its bound.

Peers are found through the environment and left out where they are missing:
    SHOAL_PEER_LLAMACPP   a command that runs a llama.cpp program by name (default: ../shared/tools/peer-llamacpp)
    SHOAL_PEER_IK         folder with ik_llama.cpp's llama-bench and llama-batched-bench
"""
import argparse
import csv
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def output(command, cwd=None):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


class Shoal:
    name = "shoal"

    def __init__(self, program, model):
        self.program, self.model = program, model
        self.bandwidth = {}

    def bench(self, threads, sequences=1, prompt=128, generate=32, workers=0):
        text = output([self.program, "bench", self.model, "--threads", threads, "--sequences", sequences, "--prompt", prompt,
                       "--generate", generate, "--rounds", 1, "--workers", workers, "--json"])
        figures = json.loads(text)
        self.bandwidth[threads] = max(self.bandwidth.get(threads, 0), figures["bounds"]["read_bytes_per_s"])
        self.weights = figures["weight_bytes"]
        return figures

    def decode(self, threads):
        return self.bench(threads, prompt=16)["decode_tokens_per_s"]

    def prefill(self, threads):
        return self.bench(threads, generate=1)["prefill_tokens_per_s"]

    def batch(self, threads, sequences):
        return self.bench(threads, sequences, prompt=16)["decode_tokens_per_s"]


class LlamaCpp:
    """llama.cpp, or ik_llama.cpp with run-time repacking: both have the same two programs."""

    def __init__(self, name, command, model, extra=()):
        self.name, self.command, self.model, self.extra = name, command, model, list(extra)

    def run(self, program, *arguments):
        return output([*self.command(program), "-m", self.model.name, *self.extra, *arguments], cwd=self.model.parent)

    def bench(self, threads, prompt, generate):
        return json.loads(self.run("llama-bench", "-t", threads, "-p", prompt, "-n", generate, "-r", 1, "-o", "json"))[-1]["avg_ts"]

    def decode(self, threads):
        return self.bench(threads, 0, 32)

    def prefill(self, threads):
        return self.bench(threads, 128, 0)

    def batch(self, threads, sequences):
        text = self.run("llama-batched-bench", "-t", threads, "-c", 64 * sequences, "-b", 512, "-npp", 16, "-ntg", 32, "-npl", sequences)
        row = [line for line in text.splitlines() if re.match(r"\|\s*16 \|\s*32 \|", line)][-1]
        return float(row.split("|")[8])


def peers(model):
    found = []
    llamacpp = os.environ.get("SHOAL_PEER_LLAMACPP", str(ROOT.parent / "shared/tools/peer-llamacpp"))
    if shutil.which(llamacpp):
        found.append(LlamaCpp("llama.cpp", lambda program: [llamacpp, program], model))
    if folder := os.environ.get("SHOAL_PEER_IK"):
        found.append(LlamaCpp("ik_llama.cpp", lambda program: [f"{folder}/{program}"], model, ["-rtr", "1"]))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--shoal", default=str(ROOT / "build/release/shoal"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", default="decode,prefill,batch,workers")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--csv", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.model = arguments.model.resolve()
    us, wanted = Shoal(arguments.shoal, arguments.model), arguments.rows.split(",")
    threads = [int(t) for t in arguments.threads.split(",")]
    rows = []  # (name, our figure, [(peer, its figure)])
    others = peers(arguments.model)
    if "decode" in wanted:
        rows += [(f"decode, 1 sequence, {t} thread(s)", lambda t=t: us.decode(t), [(p.name, lambda p=p, t=t: p.decode(t)) for p in others]) for t in threads]
    if "prefill" in wanted:
        rows += [(f"prefill 128, {t} thread(s)", lambda t=t: us.prefill(t), [(p.name, lambda p=p, t=t: p.prefill(t)) for p in others]) for t in threads]
    if "batch" in wanted:
        rows += [(f"decode, {n} sequences, {max(threads)} thread(s)", lambda n=n: us.batch(max(threads), n),
                  [(p.name, lambda p=p, n=n: p.batch(max(threads), n)) for p in others]) for n in (4, 8, 16)]
    if "workers" in wanted:
        rows.append(("decode, 2 workers x 1 thread", lambda: us.bench(1, prompt=16, workers=2)["decode_tokens_per_s"],
                     [("1 process x 2 threads", lambda: us.decode(2))]))
        rows.append(("prefill 128, 2 workers x 1 thread", lambda: us.bench(1, generate=1, workers=2)["prefill_tokens_per_s"],
                     [("1 process x 2 threads", lambda: us.prefill(2))]))
    table = []
    print(f"{'work':38} {'peer':24} {'shoal':>9} {'peer':>9} {'ratio':>7}   (tokens/s, medians of {arguments.pairs} pairs)", flush=True)
    for name, ours, against in rows:
        for peer, theirs in against:
            pairs = [(ours(), theirs()) for _ in range(arguments.pairs)]
            a, b = statistics.median(x for x, _ in pairs), statistics.median(y for _, y in pairs)
            ratio = statistics.median(x / y for x, y in pairs)
            table.append([name, peer, f"{a:.1f}", f"{b:.1f}", f"{ratio:.2f}"])
            print(f"{name:38} {peer:24} {a:9.1f} {b:9.1f} {ratio:6.2f}x", flush=True)
    for t, bandwidth in sorted(us.bandwidth.items()):
        print(f"bound: {t} thread(s) read {bandwidth / 1e9:.1f} GB/s = {bandwidth / us.weights:.1f} decode steps/s of {us.weights / 1e9:.2f} GB")
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            csv.writer(file).writerows([["work", "peer", "shoal", "peer_value", "ratio"], *table])


if __name__ == "__main__":
    sys.exit(main())
