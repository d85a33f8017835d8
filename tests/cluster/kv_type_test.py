#!/usr/bin/env python3
"""--kv-type: q8_0 takes half the memory, f32 twice as much, with nearly the same probabilities; where it may be said, and what is refused;
--kv-memory that holds nothing."""
import json
import pathlib
import re
import tempfile

from shoal_process import Server, any_model, main, run, run_json

MODEL = "models/llama-stories3M/stories3M-f32.gguf"
HELLO = ["-p", "Hello", "-n", "1", "--temp", "0"]


def twice_the_positions_fit():
    model = any_model(MODEL)
    bytes_of = {}
    for kind in ("f16", "q8_0", "f32"):
        said = run_json("run", model, *HELLO, "--kv-type", kind)
        assert said["kv_type"] == kind, said
        bytes_of[kind] = said["ranks"][0]["kv_bytes"]
    # 32 values are 34 bytes instead of 64; heads that are no multiple of 32 have a little more.
    assert 34 / 64 <= bytes_of["q8_0"] / bytes_of["f16"] < 0.6, bytes_of
    assert bytes_of["f32"] == 2 * bytes_of["f16"], bytes_of
    assert run_json("run", model, *HELLO)["kv_type"] == "f16"


def workers_hold_what_the_head_asks_for():
    model = any_model(MODEL)
    alone, split = (run_json("run", model, *HELLO, "--kv-type", "q8_0", "--workers", workers)["ranks"] for workers in (0, 2))
    assert alone[0]["kv_bytes"] == sum(rank["kv_bytes"] for rank in split), (alone, split)


def it_is_a_variable_and_a_key_too():
    model = any_model(MODEL)
    assert json.loads(run("run", model, *HELLO, "--json", env={"SHOAL_KV_TYPE": "q8_0"}, check=0).stdout)["kv_type"] == "q8_0"
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "shoal.toml"
        config.write_text('[run]\nkv-type = "q8_0"\n')
        assert run_json("run", model, *HELLO, "--config", config)["kv_type"] == "q8_0"
    bench = run_json("bench", model, "--kv-type", "q8_0", "--prompt", "4", "--generate", "2", "--rounds", "1")
    assert bench["kv_type"] == "q8_0", bench


def what_is_no_type_is_refused():
    model = any_model(MODEL)
    for value in ("q4", "F16", "1", ""):
        done = run("run", model, *HELLO, "--kv-type", value, check=2)
        assert b"--kv-type" in done.stderr and value.encode() in done.stderr and b"q8_0" in done.stderr, done.stderr
    assert b"SHOAL_KV_TYPE" in run("run", model, *HELLO, env={"SHOAL_KV_TYPE": "q4"}, check=3).stderr


def probabilities_stay_close():
    """The mean negative log-likelihood of texts that the model draws itself (about 800 tokens). A token's moves by 0.03 (one standard
    deviation), at random: the mean by 0.001. The bound is ten times that."""
    model = any_model(MODEL)
    start = "Once upon a time"
    texts, mean = [], {}
    for kind in ("f16", "q8_0", "f32"):
        with Server(model, "--kv-type", kind) as server:
            if not texts:
                draws = (server.complete(prompt=start, max_tokens=200, temperature=1, top_p=1, seed=seed) for seed in range(4))
                texts = [start + drawn["choices"][0]["text"] for drawn in draws]
            choices = server.complete(prompt=texts, max_tokens=0, echo=True, logprobs=0)["choices"]
            logprobs = [value for choice in choices for value in choice["logprobs"]["token_logprobs"][1:]]
            assert len(logprobs) > 400, len(logprobs)
            mean[kind] = -sum(logprobs) / len(logprobs)
    print(f"mean negative log-likelihood: {mean}")
    assert 0 < abs(mean["q8_0"] - mean["f16"]) < 0.01, mean
    assert 0 < abs(mean["f32"] - mean["f16"]) < 0.001, mean


def a_pool_without_a_block_is_refused():
    model = any_model(MODEL)
    for extra in ([], ["--kv-type", "q8_0"], ["--workers", "2"]):
        done = run("serve", model, "--port", "0", "--kv-memory", "1", *extra, check=2)
        assert b"--kv-memory" in done.stderr, done.stderr
        least = int(re.search(rb"at least (\d+) bytes", done.stderr).group(1))
        run("run", model, *HELLO, "--kv-memory", least - 1, *extra, check=2)
        ranks = run_json("run", model, *HELLO, "--kv-memory", least, *extra)["ranks"]
        assert max(rank["kv_bytes"] for rank in ranks) == least, (ranks, least)


if __name__ == "__main__":
    main([twice_the_positions_fit, workers_hold_what_the_head_asks_for, it_is_a_variable_and_a_key_too, what_is_no_type_is_refused,
          probabilities_stay_close, a_pool_without_a_block_is_refused])
