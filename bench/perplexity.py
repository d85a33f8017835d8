#!/usr/bin/env python3
"""Perplexity of models through Shoal's own API, beside llama.cpp's llama-perplexity on the same file and text.

    bench/perplexity.py MODEL.gguf... [--text FILE] [--bytes 60000] [--context 256] [--limit 0.5] [--json FILE]

As llama-perplexity defines it: the text's tokens are cut into chunks of `context` (what is left over is dropped); where the model adds a
start token, it takes the place of each chunk's first token; in each chunk the first context / 2 positions only give context, and what
the positions from there to the last but one predict is scored: tokens context / 2 + 1 to context - 1. Perplexity is exp of the mean
negative log-likelihood of all scored tokens. Shoal's side asks a server for `echo` with `logprobs` and `max_tokens` 0.

The exit code is 1 when a model differs from llama.cpp by more than --limit percent. The peer comes from SHOAL_PEER_LLAMACPP (default:
../shared/tools/peer-llamacpp); without it only Shoal's figures are printed.
"""
import argparse
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

from servers import ROOT, Server, peer_command, runnable

PROMPTS_A_REQUEST = 16


def ids_of(shoal, model, text, *options):
    done = subprocess.run([*shoal, "tokenize", str(model), *options], input=text, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"{model.name}: {done.stderr.decode(errors='replace')[-500:]}")
    return [int(token) for token in done.stdout.split()]


def chunks_of(shoal, model, text, context):
    """The chunks as llama-perplexity makes them."""
    start = ids_of(shoal, model, b"")[:1]
    tokens = start + ids_of(shoal, model, text, "--no-special")
    chunks = [tokens[at:at + context] for at in range(0, len(tokens) - context + 1, context)]
    return [start + chunk[len(start):] for chunk in chunks], len(tokens)


def context_of(shoal, model):
    done = subprocess.run([*shoal, "inspect", str(model), "--json"], capture_output=True, check=True)
    sizes = [value for key, value in json.loads(done.stdout)["metadata"].items() if key.endswith(".context_length")]
    return sizes[0] if sizes else sys.maxsize


def log_likelihoods(url, prompts):
    """Of each prompt, its tokens' log-probabilities; nothing for the first."""
    body = json.dumps({"prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 0}).encode()
    request = urllib.request.Request(url + "/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        choices = json.load(answer)["choices"]
    return [choice["logprobs"]["token_logprobs"] for choice in sorted(choices, key=lambda choice: choice["index"])]


def shoal_perplexity(shoal, model, text, context, threads):
    chunks, tokens = chunks_of(shoal, model, text, context)
    if not chunks:
        raise RuntimeError(f"{model.name}: the text has {tokens} tokens, less than one context of {context}")
    scored = []
    with Server([*shoal, "serve", model, "--port", 0, "--threads", threads]) as server:
        for at in range(0, len(chunks), PROMPTS_A_REQUEST):
            for row, chunk in zip(log_likelihoods(server.url, chunks[at:at + PROMPTS_A_REQUEST]), chunks[at:at + PROMPTS_A_REQUEST], strict=True):
                if len(row) != len(chunk):
                    raise RuntimeError(f"{model.name}: {len(row)} log-probabilities for {len(chunk)} tokens")
                scored += row[context // 2 + 1:]
    return math.exp(-math.fsum(scored) / len(scored)), len(chunks), len(scored)


def peer_perplexity(peer, model, text_file, context, threads):
    command = [*peer, "llama-perplexity", "-m", model.name, "-f", str(text_file), "-c", str(context), "-t", str(threads)]
    for _ in range(3):  # its log sometimes ends before its last lines
        done = subprocess.run(command, cwd=model.parent, capture_output=True, text=True, timeout=3600)
        chunks = re.search(r"over (\d+) chunks", done.stderr + done.stdout)
        value = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", done.stderr + done.stdout)
        if done.returncode == 0 and value and chunks:
            return float(value.group(1)), float(value.group(2)), int(chunks.group(1))
    raise RuntimeError(f"llama-perplexity on {model.name}: exit {done.returncode}\n{(done.stderr + done.stdout)[-1000:]}")


def compare(model, text, text_file, arguments, shoal, peer):
    context = min(arguments.context, context_of(shoal, model))
    ours, chunks, scored = shoal_perplexity(shoal, model, text, context, arguments.threads)
    row = {"model": model.name, "context": context, "chunks": chunks, "scored": scored, "shoal": ours}
    line = f"{model.name:28} {context:7} {chunks:6} {scored:7} {ours:12.4f}"
    if peer:
        theirs, error, their_chunks = peer_perplexity(peer, model, text_file, context, arguments.threads)
        row |= {"llama_cpp": theirs, "llama_cpp_error": error, "difference_percent": 100 * (ours / theirs - 1)}
        line += f" {theirs:12.4f} {row['difference_percent']:+8.3f} %"
        if their_chunks != chunks:
            raise RuntimeError(f"{model.name}: {chunks} chunks, llama.cpp has {their_chunks}: the tokens differ")
        if abs(row["difference_percent"]) > arguments.limit:
            line += "  beyond the limit"
    if context < arguments.context:
        line += f"  (its context is {context})"
    print(line, flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=pathlib.Path, nargs="+")
    parser.add_argument("--shoal", default=ROOT / "build/release/shoal")
    parser.add_argument("--text", type=pathlib.Path, default=ROOT.parent / "shared/data/text/wikitext-2-test.txt")
    parser.add_argument("--bytes", type=int, default=60000, help="of the text, from its start")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=0.5, help="percent of difference that is still right")
    parser.add_argument("--json", type=pathlib.Path, help="write the table here too")
    arguments = parser.parse_args()
    shoal, peer, rows = runnable(arguments.shoal), peer_command(), []
    with arguments.text.open("rb") as file:
        text = file.read(arguments.bytes)
    text = text.decode(errors="ignore").encode()  # no half character at the cut
    text = text.removesuffix(b"\n")  # as llama.cpp reads a file
    print(f"{arguments.text.name}, {len(text)} bytes\n{'model':28} {'context':>7} {'chunks':>6} {'scored':>7} {'shoal':>12} {'llama.cpp':>12} {'differs':>10}", flush=True)
    failed = False
    with tempfile.NamedTemporaryFile(dir="/tmp", suffix=".txt") as text_file:  # /tmp: what the peer's sandbox sees
        text_file.write(text)
        text_file.flush()
        for model in arguments.models:
            try:
                rows.append(compare(model.resolve(), text, text_file.name, arguments, shoal, peer))
                failed = failed or abs(rows[-1].get("difference_percent", 0)) > arguments.limit
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                failed = True
                print(f"{model.name:28} {error}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
