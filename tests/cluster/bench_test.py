#!/usr/bin/env python3
"""`shoal bench`: what a script reads, for one number of sequences and for several. No figure is judged: machines differ."""
from shoal_process import any_model, main, run, run_json

MODEL = "models/llama-stories260K/stories260K-f32.gguf"
SHORT = ["--threads", "1", "--prompt", "4", "--generate", "200", "--rounds", "2"]


def every_number_of_sequences_has_its_figures():
    model = any_model(MODEL)
    bench = run_json("bench", model, *SHORT, "--sequences", "3,1,2")
    assert [batch["sequences"] for batch in bench["batches"]] == [3, 1, 2], bench
    for batch in bench["batches"]:
        assert batch["bounds"]["decode_tokens_per_s"] > 0 and 0 < batch["step_ms_p50"] <= batch["step_ms_p99"], batch
        # On a busy machine the first of several may have ended before the last began.
        if batch["sequences"] == 1 or batch["decode_tokens_per_s"] is not None:
            assert batch["decode_tokens_per_s"] > 0 and len(batch["busy"]) == 1 and 0 < batch["busy"][0] <= 1, batch
    assert bench["prefill_tokens_per_s"] > 0 and 0 < bench["time_to_first_token_ms"] <= bench["time_to_first_token_ms_max"], bench


def the_first_number_is_the_one_of_the_whole():
    model = any_model(MODEL)
    for extra, workers in (([], 1), (["--workers", "2", "--stages", "2"], 2)):
        bench = run_json("bench", model, *SHORT, *extra, "--sequences", "2")
        batch = bench["batches"][0]
        assert {key: bench[key] for key in batch} == batch and len(bench["batches"]) == 1, bench
        assert len(bench["busy"]) in (0, workers), bench
    text = run("bench", model, *SHORT, "--sequences", "1,2", check=0).stdout.decode()
    assert "prefill" in text and "decode" in text and text.count("GB/s") + text.count("not measured") == 2, text


def what_was_not_measured_is_said():
    model = any_model(MODEL)
    once = ["--threads", "1", "--prompt", "4", "--generate", "1", "--rounds", "1"]
    assert [batch["decode_tokens_per_s"] for batch in run_json("bench", model, *once)["batches"]] == [None, None, None]
    assert run("bench", model, *once, check=0).stdout.decode().count("not measured") == 3


def wrong_numbers_are_refused():
    model = any_model(MODEL)
    for value in ("0", "1,0", "1,x", "", "100000"):
        done = run("bench", model, *SHORT, "--sequences", value, check=2)
        assert b"--sequences" in done.stderr, (value, done.stderr)
    # Longer ones than the model has positions for: said before anything is measured.
    assert b"context" in run("bench", model, "--generate", "100000", check=2).stderr


if __name__ == "__main__":
    main([every_number_of_sequences_has_its_figures, the_first_number_is_the_one_of_the_whole,
          what_was_not_measured_is_said, wrong_numbers_are_refused])
