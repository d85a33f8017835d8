#!/usr/bin/env python3
"""A served cluster as clients see it: many streams at once, clients that leave, bad keys, a clean end."""
import concurrent.futures
import json
import signal
import socket
import tempfile
import time

from shoal_process import Process, Server, any_model, main, run

MODEL = any_model("models/llama-stories3M/stories3M-q8_0.gguf", "--context", 2048)
WORDS = ["Once upon a time", "The little dog", "Tom and his friend", "In the garden", "A big red ball", "Mia saw a bird",
         "The sun was hot", "One day"]


def prompt(i):
    return f"{WORDS[i % len(WORDS)]} {'very ' * (i // len(WORDS))}"


def sixty_four_streams(*flags):
    def check():
        with Server(MODEL, *flags) as server:
            ask = lambda i: server.stream(prompt=prompt(i), max_tokens=48, temperature=0 if i % 2 else 0.8, seed=i)[0]
            alone = [ask(i) for i in range(64)]
            with concurrent.futures.ThreadPoolExecutor(64) as pool:
                together = list(pool.map(ask, range(64)))
            for i in range(64):
                assert together[i] == alone[i], f"client {i}: {together[i]!r} is not {alone[i]!r}"
            assert server.stop() == 0
    check.__name__ = "_".join(["sixty_four_streams", *flags])
    return check


def batched_with_others_equals_alone():
    with Server(MODEL, "--workers", "2", "--step-rows", "32") as server:
        fields = dict(prompt="Once upon a time", max_tokens=64, temperature=0, logprobs=5)
        alone = server.complete(**fields)["choices"][0]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            others = [pool.submit(server.complete, prompt=prompt(i) * 9, max_tokens=80, temperature=1, seed=i) for i in range(7)]
            mine = pool.submit(server.complete, **fields)
            assert mine.result()["choices"][0] == alone
            [other.result() for other in others]


def wait_until(condition, what, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def metric(server, name):
    _, text = server.request("GET", "/metrics")
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.split("{")[0].split(" ")[0] == name)


def a_client_that_leaves_is_cancelled():
    with Server(MODEL) as server:
        body = json.dumps(dict(prompt="Once upon a time", max_tokens=400, stream=True, ignore_eos=True)).encode()
        free = metric(server, "shoal_kv_blocks_free")
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                client.recv(100)
        wait_until(lambda: metric(server, "shoal_requests_running") + metric(server, "shoal_requests_waiting") == 0
                   and metric(server, "shoal_kv_blocks_free") == free, "the sequences of gone clients still run")


def a_reader_that_stalls_does_not_hold_the_others():
    with Server(MODEL) as server:
        body = json.dumps(dict(prompt="Once upon a time", max_tokens=450, stream=True, ignore_eos=True, logprobs=20)).encode()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.connect(("127.0.0.1", server.port))
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            for i in range(8):
                assert server.complete(prompt=prompt(i), max_tokens=32, temperature=0)["usage"]["completion_tokens"] > 0


def sigterm_drains():
    with Server(MODEL, "--workers", "2") as server:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(server.complete, prompt="Once upon a time", max_tokens=300, ignore_eos=True)
            wait_until(lambda: metric(server, "shoal_requests_running") == 1 or answer.done(), "the request never ran")
            code = server.stop(signal.SIGTERM)
            assert answer.result()["usage"]["completion_tokens"] == 300
            assert code == 0, code


def api_keys_guard_all_but_health():
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("sk-one\nsk-two\n")
        keys.flush()
        with Server(MODEL, "--api-key-file", keys.name) as server:
            assert server.request("GET", "/health")[0] == 200
            assert server.request("GET", "/v1/models")[0] == 401
            assert server.request("GET", "/metrics")[0] == 401
            assert server.request("GET", "/v1/models", headers={"Authorization": "Bearer sk-two"})[0] == 200
            assert server.request("GET", "/v1/models", headers={"Authorization": "Bearer sk-three"})[0] == 401


def a_key_finds_in_the_prefix_cache_what_it_put_there():
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("sk-one\nsk-two\n")
        keys.flush()
        with Server(MODEL, "--api-key-file", keys.name) as server:
            def ask(key):
                status, text = server.request("POST", "/v1/completions", dict(prompt="Once upon a time " * 12, max_tokens=4, temperature=0),
                                              {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
                assert status == 200, text
                answer = json.loads(text)
                return answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["choices"][0]["text"]
            first, again, other, both = ask("sk-one"), ask("sk-one"), ask("sk-two"), ask("sk-two")
            assert first[0] == other[0] == 0 and again[0] == both[0] > 0, (first, again, other, both)
            assert len({text for _, text in (first, again, other, both)}) == 1, (first, again, other, both)


def exit_codes():
    assert run("serve").returncode == 2
    assert run("run", "/nonexistent.gguf", "-p", "x").returncode == 4
    assert run("run", __file__, "-p", "x").returncode == 4
    assert run("serve", MODEL, "--config", "/nonexistent.toml").returncode == 3
    assert run("worker", "--join", "127.0.0.1:1", "--token", "x").returncode == 5
    assert run("run", MODEL, "--temp", "9").returncode == 2
    assert run("frobnicate").returncode == 2
    assert run("run", MODEL, "-p", "x", env={"SHOAL_TEMP": "9"}).returncode == 3
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        for text, code in (("[run]\ntemp = 0\ntokens = 3\n", 0), ("[run]\ntempo = 0\n", 3), ("[run]\ntemp = \"x\"\n", 3)):
            config.seek(0)
            config.truncate()
            config.write(text)
            config.flush()
            got = run("run", MODEL, "-p", "x", "--config", config.name).returncode
            assert got == code, f"{text!r}: exit {got}"
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        given = ["run", MODEL, "-p", "x", "--ignore-eos", "--json", "--config", config.name]
        ids = lambda *flags, **variables: len(json.loads(run(*given, *flags, env=variables, check=0).stdout)["ids"])
        for key in ("tokens", "n"):
            config.seek(0)
            config.truncate()
            config.write(f"[run]\n{key} = 3\ntemp = 0\n[inspect]\nmodel = \"/nonexistent.gguf\"\n")
            config.flush()
            lengths = ids(), ids(SHOAL_TOKENS="5"), ids("-n", "7", SHOAL_TOKENS="5"), ids(SHOAL_TOKENS="")
            assert lengths == (3, 5, 7, 3), f"a flag, then a variable, then the file: {key} {lengths}"
        assert run("inspect", "--config", config.name).returncode == 4
        assert run("inspect", "--config", config.name, env={"SHOAL_MODEL": str(MODEL)}).returncode == 0
    with Process("serve", MODEL, "--wait-for", "1", "--token-file", "/nonexistent/token", "--cluster-port", "0") as head:
        assert head.child.wait(20) == 3
    assert run("--help").returncode == 0


if __name__ == "__main__":
    main([sixty_four_streams("--workers", "2"), sixty_four_streams("--workers", "3", "--stages", "2"), batched_with_others_equals_alone, a_client_that_leaves_is_cancelled,
          a_reader_that_stalls_does_not_hold_the_others, sigterm_drains, api_keys_guard_all_but_health,
          a_key_finds_in_the_prefix_cache_what_it_put_there, exit_codes])
