#!/usr/bin/env python3
"""Checks a running server against OpenAI's own Python client (Debian: python3-openai).

    openai_completions_test.py [PROGRAM]

SHOAL_URL      base URL of a server that runs, e.g. http://127.0.0.1:7462; without it PROGRAM (shoal) is started with
SHOAL_MODEL    this model file; default: the small one of the shared folder
SHOAL_API_KEY  key to send, where the server wants one

Prints one line a failed check and "N passed, N failed" at the end; exits 1 when any failed, 77 when it cannot run.
"""

import os
import pathlib
import sys
import traceback

try:
    import httpx
    import openai
except ImportError as missing:
    print(f"skipped: {missing} (Debian package python3-openai)")
    sys.exit(77)

SERVER = None
URL = os.environ.get("SHOAL_URL", "").rstrip("/")
if not URL:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cluster"))
    from shoal_process import Server, shared

    SERVER = Server(os.environ.get("SHOAL_MODEL") or shared("models/llama-stories3M/stories3M-q8_0.gguf"))
    URL = SERVER.url
KEY = os.environ.get("SHOAL_API_KEY", "no-key")
# Proxies of the environment must not come between us and a server on this machine.
HTTP = httpx.Client(trust_env=False, timeout=120)
CLIENT = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, http_client=HTTP, max_retries=0)
MODEL = CLIENT.models.list().data[0].id
PROMPT = "Once upon a time"
GREEDY = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 24}
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def same(actual, expected):
    assert actual == expected, f"{actual!r} is not {expected!r}"


def refused(kind, status, **changes):
    """The call fails with this exception of the client's; returns the error object."""
    try:
        CLIENT.completions.create(**{**GREEDY, **changes})
    except kind as error:
        same(error.status_code, status)
        assert error.request_id, "no x-request-id"
        body = error.body
        same(sorted(body), ["code", "message", "param", "type"])
        return body
    raise AssertionError(f"{changes} was accepted")


@check
def models_are_listed_and_found():
    model = CLIENT.models.retrieve(MODEL)
    same(model.id, MODEL)
    same(model.object, "model")
    assert isinstance(model.created, int) and model.owned_by
    try:
        CLIENT.models.retrieve("no/such:model")
    except openai.NotFoundError as error:
        same(error.code, "model_not_found")
    else:
        raise AssertionError("an unknown model was found")


@check
def whole_answer():
    answer = CLIENT.completions.create(**GREEDY)
    same(answer.object, "text_completion")
    same(answer.model, MODEL)
    assert answer.id.startswith("cmpl-") and answer.created > 1_700_000_000
    same(len(answer.choices), 1)
    choice = answer.choices[0]
    same(choice.index, 0)
    same(choice.logprobs, None)
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    same(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
    assert 1 <= usage.completion_tokens <= 24
    assert usage.prompt_tokens_details.cached_tokens >= 0


@check
def greedy_is_repeatable_and_streams_the_same_text():
    text = CLIENT.completions.create(**GREEDY).choices[0].text
    same(CLIENT.completions.create(**GREEDY).choices[0].text, text)
    chunks = list(CLIENT.completions.create(**GREEDY, stream=True))
    same("".join(chunk.choices[0].text for chunk in chunks), text)
    same(len({chunk.id for chunk in chunks}), 1)
    assert all(chunk.object == "text_completion" for chunk in chunks)
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


@check
def seeded_sampling_is_repeatable():
    options = {**GREEDY, "temperature": 1.0, "top_p": 0.95}
    first = CLIENT.completions.create(**options, seed=17).choices[0].text
    same(CLIENT.completions.create(**options, seed=17).choices[0].text, first)
    streamed = CLIENT.completions.create(**options, seed=17, stream=True)
    same("".join(chunk.choices[0].text for chunk in streamed), first)
    others = {CLIENT.completions.create(**options, seed=seed).choices[0].text for seed in range(5)}
    assert len(others) > 1, "five seeds gave one text"


@check
def usage_comes_last_in_a_stream_when_asked():
    whole = CLIENT.completions.create(**GREEDY).usage
    chunks = list(CLIENT.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    same(chunks[-1].choices, [])
    same(chunks[-1].usage.prompt_tokens, whole.prompt_tokens)
    same(chunks[-1].usage.completion_tokens, whole.completion_tokens)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    plain = list(CLIENT.completions.create(**GREEDY, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)


@check
def several_choices_keep_their_index():
    options = {**GREEDY, "temperature": 1.0, "seed": 3, "n": 3}
    answer = CLIENT.completions.create(**options)
    same([choice.index for choice in answer.choices], [0, 1, 2])
    texts = {}
    for chunk in CLIENT.completions.create(**options, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    same(texts, {choice.index: choice.text for choice in answer.choices})
    same(CLIENT.completions.create(**{**options, "n": 1}).choices[0].text, texts[0])


@check
def several_prompts_give_what_each_gives_alone():
    prompts = [PROMPT, "The little dog", "One day, a girl"]
    alone = [CLIENT.completions.create(**{**GREEDY, "prompt": prompt}).choices[0].text for prompt in prompts]
    together = CLIENT.completions.create(**{**GREEDY, "prompt": prompts})
    same([choice.text for choice in together.choices], alone)


@check
def stops_cut_before_the_string():
    text = CLIENT.completions.create(**GREEDY).choices[0].text
    assert len(text) > 8, text
    stop = text[4:7]
    expected = text[: text.index(stop)]
    for stops in (stop, ["\0never\0", stop]):
        choice = CLIENT.completions.create(**GREEDY, stop=stops).choices[0]
        same(choice.text, expected)
        same(choice.finish_reason, "stop")
        chunks = list(CLIENT.completions.create(**GREEDY, stop=stops, stream=True))
        same("".join(chunk.choices[0].text for chunk in chunks), expected)
        same(chunks[-1].choices[0].finish_reason, "stop")


@check
def max_tokens_is_kept():
    answer = CLIENT.completions.create(**{**GREEDY, "max_tokens": 1})
    same(answer.usage.completion_tokens, 1)
    same(answer.choices[0].finish_reason, "length")
    options = {**GREEDY, "extra_body": {"ignore_eos": True}}
    same(CLIENT.completions.create(**options).usage.completion_tokens, 24)


@check
def logprobs_fit_the_text():
    choice = CLIENT.completions.create(**GREEDY, logprobs=3).choices[0]
    logprobs = choice.logprobs
    count = len(logprobs.tokens)
    same((len(logprobs.token_logprobs), len(logprobs.top_logprobs), len(logprobs.text_offset)), (count, count, count))
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert logprob <= 0 and 1 <= len(top) <= 4
        same(top[token], logprob)
        same(logprob, max(top.values()))  # greedy takes the likeliest
    same(logprobs.text_offset[0], 0)
    same(sorted(logprobs.text_offset), logprobs.text_offset)
    same(CLIENT.completions.create(**GREEDY, logprobs=0).choices[0].text, choice.text)
    streamed = []
    for chunk in CLIENT.completions.create(**GREEDY, logprobs=3, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.token_logprobs
    same(streamed, logprobs.token_logprobs)


@check
def echo_scores_the_prompt():
    answer = CLIENT.completions.create(**{**GREEDY, "max_tokens": 0}, echo=True, logprobs=1)
    choice = answer.choices[0]
    same(choice.text, PROMPT)
    same(choice.logprobs.token_logprobs[0], None)
    same(len(choice.logprobs.tokens), answer.usage.prompt_tokens)
    assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs[1:])
    longer = CLIENT.completions.create(**GREEDY, echo=True)
    same(longer.choices[0].text, PROMPT + CLIENT.completions.create(**GREEDY).choices[0].text)


@check
def logit_bias_forces():
    plain = CLIENT.completions.create(**{**GREEDY, "max_tokens": 4}, logprobs=0).choices[0].logprobs.tokens
    forced = CLIENT.completions.create(**{**GREEDY, "max_tokens": 4}, logit_bias={"5": 100}, logprobs=0)
    same(len(set(forced.choices[0].logprobs.tokens)), 1)
    assert forced.choices[0].logprobs.tokens != plain


@check
def token_prompts_work():
    answer = CLIENT.completions.create(**{**GREEDY, "prompt": [1, 5, 7]})
    same(answer.usage.prompt_tokens, 3)
    answer = CLIENT.completions.create(**{**GREEDY, "prompt": [[1, 5, 7], [1, 5]]})
    same(answer.usage.prompt_tokens, 5)
    same(len(answer.choices), 2)


@check
def bad_values_name_their_field():
    for name, value in [("temperature", 2.1), ("temperature", "hot"), ("top_p", 1.5), ("n", 0), ("n", 10**9),
                        ("max_tokens", -1), ("max_tokens", 0), ("stop", ""), ("stop", ["x"] * 17), ("logprobs", 21),
                        ("presence_penalty", 3), ("logit_bias", {"99999999": 1}), ("prompt", []), ("prompt", [-1]),
                        ("seed", 1.5), ("suffix", "tail"), ("best_of", 5)]:
        error = refused(openai.BadRequestError, 400, **{name: value})
        same((error["type"], error["param"]), ("invalid_request_error", name))


@check
def too_long_a_prompt_says_so():
    error = refused(openai.BadRequestError, 400, prompt=[5] * 900_000)
    same(error["code"], "context_length_exceeded")


@check
def unknown_models_do_not_exist():
    same(refused(openai.NotFoundError, 404, model="gpt-4")["code"], "model_not_found")


@check
def other_statuses_have_their_exceptions():
    for path, body, kind in [("/nowhere", {}, openai.NotFoundError), ("/models", {}, openai.APIStatusError)]:
        try:
            CLIENT.post(path, body=body, cast_to=object)
        except kind as error:
            assert error.status_code in (404, 405) and error.body["message"]
        else:
            raise AssertionError(f"{path} was answered")
    response = HTTP.post(URL + "/v1/completions", content=b"{", headers={"authorization": f"Bearer {KEY}"})
    same(response.status_code, 400)
    same(response.json()["error"]["code"], "invalid_json")


@check
def a_clients_timeout_leaves_the_server_well():
    # ignore_eos: the answer is long enough for the time-out to come first, or complete; both are right.
    hasty = CLIENT.with_options(timeout=0.05)
    for _ in range(3):
        try:
            hasty.completions.create(**{**GREEDY, "max_tokens": 2000}, extra_body={"ignore_eos": True})
        except (openai.APITimeoutError, openai.BadRequestError):
            pass
    same(CLIENT.completions.create(**{**GREEDY, "max_tokens": 1}).usage.completion_tokens, 1)


@check
def a_stream_may_be_left_early():
    stream = CLIENT.completions.create(**{**GREEDY, "max_tokens": 100}, stream=True)
    next(iter(stream))
    stream.close()
    same(CLIENT.completions.create(**{**GREEDY, "max_tokens": 1}).usage.completion_tokens, 1)


@check
def refusals_are_not_retried():
    calls = []
    counting = httpx.Client(trust_env=False, event_hooks={"request": [lambda request: calls.append(request)]})
    client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, http_client=counting, max_retries=2)
    try:
        client.completions.create(**{**GREEDY, "temperature": 9})
    except openai.BadRequestError:
        same(len(calls), 1)
    else:
        raise AssertionError("temperature 9 was accepted")


@check
def request_ids_are_echoed():
    raw = CLIENT.completions.with_raw_response.create(**GREEDY, extra_headers={"x-request-id": "my-trace.1"})
    same(raw.headers["x-request-id"], "my-trace.1")
    assert CLIENT.completions.with_raw_response.create(**GREEDY).headers["x-request-id"]


def main():
    failed = 0
    for function in CHECKS:
        try:
            function()
        except Exception:  # whatever went wrong, the other checks still say something
            failed += 1
            print(f"FAILED {function.__name__}")
            traceback.print_exc(limit=4, file=sys.stdout)
    print(f"{len(CHECKS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        STATUS = main()
    finally:
        if SERVER is not None:
            SERVER.stop()
    sys.exit(STATUS)
