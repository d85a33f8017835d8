#!/usr/bin/env python3
"""The same request gives the same bits whatever the split: ids and the hash of all logits, over worker processes, shares,
threads and prompt chunks; greedy and seeded sampling; for every type of the KV cache."""
import re

from shoal_process import SHARED, Server, any_model, main, run_json

MODELS = ["models/llama-stories3M/stories3M-f32.gguf", "models/llama-stories3M/stories3M-q8_0.gguf",
          "golden/arch/llama-odd-heads.gguf", "golden/arch/qwen3moe.gguf", "golden/arch/gemma3.gguf", "golden/arch/gpt2.gguf"]
PROMPT = ("Once upon a time there was a little girl called Lily. She had a red ball and a small dog, and every day they went to "
          "the park to play with their friends until the sun went down behind the old trees.")
GREEDY = ["--temp", "0"]
SEEDED = ["--temp", "0.9", "--top-k", "50", "--top-p", "0.95", "--seed", "7"]
SPLITS = [["--workers", "1"], ["--workers", "2"], ["--workers", "3"], ["--workers", "4"], ["--workers", "2", "--shares", "3,1"],
          ["--workers", "3", "--shares", "5,1,2"], ["--workers", "2", "--stages", "2"],
          ["--workers", "3", "--stages", "2", "--shares", "1,2,1"], ["--workers", "4", "--stages", "2", "--step-rows", "7"]]
VARIANTS = [["--threads", "2"], ["--step-rows", "1"], ["--step-rows", "7"], ["--step-rows", "64"],
            ["--workers", "2", "--step-rows", "7", "--threads", "2"]]
GUESSES = [["--speculate"], ["--speculate", "--workers", "2"], ["--speculate", "--workers", "2", "--stages", "2"], ["--speculate", "--step-rows", "3"]]
PLAIN = ["--no-speculate", "--no-prefix-cache"]
Q8_0 = ["--kv-type", "q8_0"]
F32 = ["--kv-type", "f32"]


def case_of(path, *cache):
    def check():
        for sampling in (GREEDY, SEEDED):
            arguments = ["run", path, "-p", PROMPT, "-n", "24", "--ignore-eos", *cache, *sampling]
            alone = run_json(*arguments, *PLAIN, "--threads", "1")
            assert len(alone["ids"]) == 24, alone
            # Every split is tried greedily; sampling draws from the same logits, so three of them are enough there.
            for extra in SPLITS + VARIANTS if sampling is GREEDY else [SPLITS[1], SPLITS[4], SPLITS[6], VARIANTS[2]]:
                other = run_json(*arguments, *(extra if "--threads" in extra else [*extra, "--threads", "1"]))
                assert other["ids"] == alone["ids"], f"{extra} {sampling}: ids differ"
                assert other["logits_sha256"] == alone["logits_sha256"], f"{extra} {sampling}: logits differ"
            # What was said before is guessed again: a prompt that repeats itself, and enough tokens to loop.
            arguments = ["run", path, "-p", "the dog and the cat and the dog and the cat and the dog", "-n", "80", "--ignore-eos",
                         "--threads", "1", *cache, *sampling]
            alone = run_json(*arguments, *PLAIN)
            for extra in GUESSES:
                other = run_json(*arguments, *extra)
                assert other["ids"] == alone["ids"], f"{extra} {sampling}: ids differ"
                assert other["logits_sha256"] == alone["logits_sha256"], f"{extra} {sampling}: logits differ"
    check.__name__ = " ".join([path.name, *cache])
    return check


IN_PARTS = [["--workers", "2"], ["--workers", "3", "--step-rows", "100", "--threads", "2"], ["--workers", "4", "--stages", "2"]]


def steps_in_parts_of(path):
    """A prompt long enough for steps that are computed in parts."""
    def check():
        arguments = ["run", path, "-p", " ".join(3 * [PROMPT]), "-n", "8", "--ignore-eos", *GREEDY]
        alone = run_json(*arguments, *PLAIN, "--threads", "1")
        assert len(alone["prompt_ids"]) > 100, len(alone["prompt_ids"])
        for extra in IN_PARTS:
            for overlap in ("on", "auto"):
                other = run_json(*arguments, "--overlap", overlap, *(extra if "--threads" in extra else [*extra, "--threads", "1"]))
                assert other["ids"] == alone["ids"], f"{extra} {overlap}: ids differ"
                assert other["logits_sha256"] == alone["logits_sha256"], f"{extra} {overlap}: logits differ"
    check.__name__ = f"{path.name} in parts"
    return check


def steps_overlap_where_that_is_asked_for():
    path = any_model("no such reference")
    for overlap in ("on", "off"):
        with Server(path, "--workers", "2", "--overlap", overlap) as server:
            server.complete(prompt=" ".join(3 * [PROMPT]), max_tokens=2)
            count = re.search(r"^shoal_steps_overlapped_total (\d+)$", server.request("GET", "/metrics")[1], re.M)
            assert (int(count[1]) > 0) == (overlap == "on"), f"{overlap}: {count[0]}"


def a_known_beginning_changes_nothing(*cache):
    """Served twice, and after one with the same beginning: the second time from the prefix cache."""
    path = SHARED / MODELS[1] if (SHARED / MODELS[1]).exists() else any_model("no such reference")
    for fields in (dict(temperature=0), dict(temperature=0.9, seed=7)):
        fields = dict(fields, max_tokens=40, logprobs=5)
        with Server(path, *PLAIN, *cache) as server:
            fresh = [server.complete(prompt=text, **fields) for text in (PROMPT, PROMPT + " One day")]
        with Server(path, "--workers", "2", "--speculate", "--prefix-cache", *cache) as server:
            for text, expected, known in ((PROMPT, fresh[0], 0), (PROMPT, fresh[0], 16), (PROMPT + " One day", fresh[1], 16)):
                got = server.complete(prompt=text, **fields)
                assert got["choices"] == expected["choices"], f"{text!r} {fields}"
                cached = got["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert cached >= known and (known or cached == 0), cached


def a_known_beginning_changes_nothing_in_q8_0():
    a_known_beginning_changes_nothing(*Q8_0)


def a_known_beginning_changes_nothing_in_f32():
    a_known_beginning_changes_nothing(*F32)


if __name__ == "__main__":
    made = any_model("no such reference", "--heads", 6, "--kv-heads", 3, "--dim", 96, "--ffn", 172)
    main([a_known_beginning_changes_nothing, a_known_beginning_changes_nothing_in_q8_0,
          a_known_beginning_changes_nothing_in_f32, steps_overlap_where_that_is_asked_for]
         + [case_of(SHARED / model) for model in MODELS if (SHARED / model).exists()] + [case_of(made)]
         + [steps_in_parts_of(SHARED / model) for model in MODELS[1:2] if (SHARED / model).exists()] + [steps_in_parts_of(made)]
         + [case_of(SHARED / model, *Q8_0) for model in MODELS[1:3] if (SHARED / model).exists()] + [case_of(made, *Q8_0)]
         + [case_of(SHARED / model, *F32) for model in MODELS[2:3] if (SHARED / model).exists()] + [case_of(made, *F32)])
