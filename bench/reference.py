#!/usr/bin/env python3
"""What is left of the differences to llama.cpp when no key, value or attention weight is rounded to f16, on either side.

    bench/run reference [--tests build/release/tests/golden_test] [--write FILE]

llama-server (from SHOAL_PEER_LLAMACPP, default ../shared/tools/peer-llamacpp) runs every F32 model of ../shared/golden with `-ctk f32 -ctv f32
-fa off -t 1` on the golden files' prompts, greedily; it answers with the ten best log-probabilities of each step. The tests GoldenF32Cache
of golden_test then feed those tokens to Shoal's executor with an f32 cache and compare. `--write tests/golden/f32_cache.json` keeps what
was recorded where the tests read it when nothing else is said. Printed first: how far the reference moves itself when its cache is f32
(log-probabilities in f32 to those of the golden files, while both have chosen the same tokens).
"""
import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import urllib.request

from servers import ROOT, Server, peer_command, runnable

SHARED = ROOT.parent / "shared"
TRAINED = {"stories260K-f32": "llama-stories260K", "stories3M-f32": "llama-stories3M", "babyllama-tok105-f32": "llama-babyllama-tok105"}


def models():
    """(name, model, golden file) of each F32 model."""
    for name, folder in TRAINED.items():
        yield name, SHARED / "models" / folder / f"{name}.gguf", SHARED / "golden" / f"{name}.golden.json"
    for golden in sorted((SHARED / "golden/arch").glob("*.golden.json")):
        name = golden.name.removesuffix(".golden.json")
        yield name, golden.with_name(f"{name}.gguf"), golden


def free_port():
    with socket.socket() as probe:  # the server cannot choose one itself
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(peer, model, cases):
    """The cases as this server answers them, in the form of the golden files."""
    command = [*peer, "llama-server", "-m", model.name, "--host", "127.0.0.1", "--port", free_port(), "-t", 1, "-fa", "off",
               "-ctk", "f32", "-ctv", "f32"]
    with Server(command, cwd=model.parent) as server:
        for case in cases:
            body = {"prompt": case["prompt_ids"], "n_predict": len(case["tokens"]), "temperature": 0, "n_probs": 10, "ignore_eos": True,
                    "cache_prompt": False, "return_tokens": True}
            request = urllib.request.Request(server.url + "/completion", json.dumps(body).encode(), {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=300) as answer:
                said = json.load(answer)
            steps = [{"id": step["id"], "top": [[one["id"], round(one["logprob"], 6)] for one in step["top_logprobs"]]}
                     for step in said["completion_probabilities"]]
            yield {"prompt_ids": case["prompt_ids"], "tokens": said["tokens"], "steps": steps}


def moved(recorded, golden):
    """Largest and mean difference of the ten best in the cases with the same tokens, and how many have others."""
    differences, others = [], 0
    for one, other in zip(recorded, golden, strict=True):
        if one["tokens"] != other["tokens"]:
            others += 1
            continue
        for step, before in zip(one["steps"], other["steps"], strict=True):
            now = dict(step["top"])
            differences += [abs(now[token] - logprob) for token, logprob in before["top"] if token in now]
    return max(differences), sum(differences) / len(differences), others


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", default=ROOT / "build/release/tests/golden_test", help="the program with the tests")
    parser.add_argument("--write", type=pathlib.Path, help="keep the recording here")
    arguments = parser.parse_args()
    peer = peer_command()
    if not peer:
        sys.exit("bench: llama.cpp is not there (SHOAL_PEER_LLAMACPP)")
    tests = runnable(arguments.tests)
    recorded = {}
    for name, model, golden in models():
        cases = json.loads(golden.read_text())["cases"]
        recorded[name] = {"cases": list(answers(peer, model, cases))}
        largest, mean, others = moved(recorded[name]["cases"], cases)
        print(f"{name:24} the reference with f32 to itself with f16: {largest:.1e}, {mean:.1e}"
              + (f"; other tokens in {others} of {len(cases)} cases" if others else ""), flush=True)
    whole = {"reference": "llama.cpp 0.7.0 (build 11669), CPU, -ctk f32 -ctv f32 -fa off -t 1, temperature 0, end-of-sequence ignored",
             "models": recorded}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = arguments.write or pathlib.Path(folder) / "f32_cache.json"
        # A line a case: one that changes is one line of a comparison.
        path.write_text(json.dumps(whole, separators=(",", ":")).replace('{"prompt_ids"', '\n{"prompt_ids"') + "\n")
        return subprocess.run([*tests, "--gtest_filter=*GoldenF32Cache*", "--gtest_brief=1"],
                              env=os.environ | {"SHOAL_GOLDEN_F32_CACHE": str(path.resolve())}).returncode


if __name__ == "__main__":
    sys.exit(main())
