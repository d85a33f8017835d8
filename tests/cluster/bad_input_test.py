#!/usr/bin/env python3
"""Everything wrong that can be sent or said, against the real program: each case has its answer, and what was right before is
right after. Numbers such as H3 and R5 are those of the catalogue of bad inputs in the reliability survey, 3d and 3e; its model
files, G and K, are in bad_model_test.py.

  H1 to H6       bodies_that_are_no_json           H16 H17      floods (H16 also broken_http)
  H7, R4 to R11  wrong_types_and_ranges            H18          streams_of_many_choices
  H8 H10 H14     odd_http_that_works               H19          keys
  H9 to H16      broken_http                       H20          no such thing here: a key opens every model
  H21 H22        broken_http                       R2 R3 R12    prompts
  K5 R21         texts_for_the_tokenizer           R13 R19 R20  streams_of_many_choices
  any            random_bytes_and_mutated_requests
  clients, workers and heads that misbehave: clients_that_leave, strangers_at_the_cluster_port, heads_that_are_none
"""
import concurrent.futures
import json
import os
import random
import re
import signal
import socket
import struct
import tempfile
import time

from shoal_process import Process, Server, ends_by_itself, main, shared

MODEL = shared("models/llama-stories3M/stories3M-q8_0.gguf")
TINY = shared("golden/arch/llama-gqa.gguf")
NORMAL = dict(prompt="Once upon a time", max_tokens=24, temperature=0)


# --- a client that says what no proper client would

def talk(server, data, finish=False, seconds=20):
    """Sends the bytes; the first answer's status, headers and body; None when the connection ended without one."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as client:
        try:
            client.sendall(data)
            if finish:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has heard enough; its answer may still be there
        received = b""
        while True:
            try:
                chunk = client.recv(65536)
            except ConnectionResetError:
                chunk = b""
            received += chunk
            head, found, body = received.partition(b"\r\n\r\n")
            if found:
                lines = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                if len(body) >= int(headers.get("content-length", 1 << 40)) or not chunk:
                    return int(lines[0].split()[1]), headers, body
            if not chunk:
                return None


def head(method="POST", path="/v1/completions", *fields, host="localhost"):
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode("latin-1")


def post(body, *fields):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head("POST", "/v1/completions", "Content-Type: application/json", f"Content-Length: {len(data)}", *fields) + data


def refused(server, data, status, code=None, param=None, finish=False):
    """The answer is this status with the four keys of an error."""
    answer = talk(server, data, finish)
    shown = data[:120]
    assert answer, f"{shown!r}: no answer"
    got, headers, body = answer
    assert got == status, f"{shown!r}: {got}, expected {status}: {body[:300]!r}"
    error = json.loads(body)["error"]
    assert sorted(error) == ["code", "message", "param", "type"], f"{shown!r}: {error}"
    assert error["message"] and error["type"], f"{shown!r}: {error}"
    assert code is None or error["code"] == code, f"{shown!r}: code {error['code']}, expected {code}"
    assert param is None or error["param"] == param, f"{shown!r}: param {error['param']}, expected {param}"
    assert "x-request-id" in headers, headers
    return headers


SERVERS = {}


def server_of(*arguments):
    """Started once: the cases must leave it as it was."""
    if arguments not in SERVERS:
        server = Server(MODEL, *arguments)
        server.right = server.complete(**NORMAL)["choices"] if "--api-key-file" not in arguments else None
        SERVERS[arguments] = server
    return SERVERS[arguments]


def cluster():
    return server_of("--workers", "2")


def still_right(server):
    assert server.child.poll() is None, f"the server ended with {server.child.returncode}:\n{server.text}"
    assert server.request("GET", "/health")[0] == 200
    assert server.complete(**NORMAL)["choices"] == server.right, "the same request now gives another text"


# --- 3d: HTTP and JSON

def bodies_that_are_no_json():  # H1..H6
    server = cluster()
    for body in (b"", b"null", b"[]", b"hello", b"42", b'"x"', b'{"prompt":"a"', b'{"prompt":"a",}', b'{"prompt":"a"}{}', b'{"prompt":"a"} x',
                 b'\xef\xbb\xbf{"prompt":"a"}', b"[" * 100_000, b'{"prompt":' + b"[" * 65 + b"]" * 65 + b"}", b'{"a":' * 100_000,
                 b'{"prompt":"\xff\xfe"}', b'{"prompt":"\\ud800"}', b'{"prompt":"\\udc00\\ud800"}', b'{"prompt":"a\x00b"}', b'{"prompt":"\xed\xa0\x80"}',
                 b'{"prompt":"a","prompt":"b"}', b'{"prompt":"a","x":{"y":1,"y":2}}', b'{"prompt":"a","n":NaN}', b'{"prompt":"a","n":Infinity}',
                 b'{"prompt":"a","n":01}', b'{"prompt":"a","n":+1}', b'{"prompt":"a","n":.5}', b"{'prompt':'a'}", b'{"prompt":"a"/**/}',
                 b"\x00" * 1000, b"{" + b" " * 100_000):
        refused(server, post(body), 400, "invalid_json")
    assert talk(server, post(b'{"prompt":"a\\u0000b","max_tokens":2}'))[0] == 200  # H4: NUL is text
    for number in ("1e400", "-1e400", "9999999999999999999999", "1e99"):
        for field in ("temperature", "max_tokens", "n", "seed", "top_p", "top_k", "logprobs", "presence_penalty"):
            if (field, number) in (("max_tokens", "1e99"),):
                continue
            answer = talk(server, post(f'{{"prompt":"a","{field}":{number}}}'.encode()))
            assert answer[0] == 400, (field, number, answer)
    still_right(server)


def wrong_types_and_ranges():  # H7, R4..R11
    server = cluster()
    bad = {
        "temperature": ["0.7", -1, 2.1, True, [], {}], "top_p": [0, 1.1, -0.5, "1"], "min_p": [1.5, -0.1, "x"], "top_k": [-5, 1.5, "4"],
        "presence_penalty": [3, -3, "0"], "frequency_penalty": [3, -3, []], "repeat_penalty": [0, -1, 11], "repeat_last_n": [-2, "x"],
        "stream": ["yes", 1, {}], "echo": ["no", 0], "ignore_eos": ["x", 1], "max_tokens": [0, -1, -2**31, 1.5, "9", -1e9], "n": [0, 17, 129, 10**9, -1, "2", 1.5],
        "best_of": [0, 2, 10**9], "logprobs": [-1, 21, True, "5", 10**9], "seed": [1.5, "7", True, 1.0], "user": [1, []], "suffix": ["x", 5],
        "stop": [["a"] * 17, "", ["a", ""], ["x" * 2000], "x" * 1_000_000, [1], {}, 5], "stop_token_ids": [[-1], [10**9], ["a"], 5, list(range(17))],
        "logit_bias": [{"999999999": 1}, {"-1": 1}, {"1": 1000}, {"1": -1000}, {"x": 1}, {"1": "a"}, [], {str(i): 0 for i in range(2000)}],
        "n_discard": [-1, -2**40, "x"], "n_keep": [-1], "id_slot": [-1], "model": [5, "m" * 10_000],
    }
    for field, values in bad.items():
        for value in values:
            refused(server, post({"prompt": "a", field: value}), 400, param=field)
    refused(server, post({"prompt": "a", "stream_options": {"include_usage": True}}), 400, param="stream_options")
    refused(server, post({"prompt": "a", "stream": True, "stream_options": {"include_usage": 1}}), 400, param="stream_options.include_usage")
    refused(server, post({"prompt": "a", "model": "/etc/passwd"}), 404, "model_not_found", "model")
    refused(server, post({"prompt": "a", "model": "a\0b"}), 404, "model_not_found", "model")
    still_right(server)


def prompts():  # R2, R3, R12, R21
    server = cluster()
    vocabulary = json.loads(server.request("GET", "/v1/models")[1])["data"][0]["meta"]["n_vocab"]
    context = json.loads(server.request("GET", "/v1/models")[1])["data"][0]["max_model_len"]
    for prompt in (None, 5, {}, [], True, [None], [[]], ["a", 5], [5, "a"], [[1], "a"], [1.5], [-1], [vocabulary], [2**63], [-2**63], [[1, vocabulary]], [[[1]]],
                   ["a"] * 65, [["a"]], [1, [2]]):
        refused(server, post({"prompt": prompt}), 400, param="prompt")
    refused(server, post({}), 400, "invalid_value", "prompt")
    refused(server, post({"prompt": [1] * 1_000_000}), 400, "context_length_exceeded", "prompt")
    assert talk(server, post({"prompt": [1] * 3_000_000}))[0] in (400, 413)
    refused(server, post({"prompt": [5] * context, "max_tokens": 1}), 400, "context_length_exceeded", "prompt")
    refused(server, post({"prompt": "a", "max_tokens": context}), 400, "context_length_exceeded", "prompt")
    refused(server, post({"prompt": "a" * 1_000_000, "max_tokens": 1}), 400, "context_length_exceeded", "prompt")
    refused(server, post({"prompt": ["a"] * 64, "n": 16}), 400, param="n")
    hostile = ["", " ", "\n\n\n", "\u200b" * 50, "\u202e" * 50, "e" + "\u0301" * 40, "<|im_start|>system", "<s></s><unk>", "\ufeff", "\ufffd\uffff", "a\u0000b",
               "\U0001f469\u200d\U0001f469\u200d\U0001f467", "%s%n%x", "<0x00>", "'; --", "A" * 200]
    for prompt in hostile:
        answer = server.complete(prompt=prompt, max_tokens=3, temperature=0)
        assert answer["usage"]["completion_tokens"] >= 1, answer
        assert server.complete(prompt=prompt, max_tokens=0, echo=True)["choices"][0]["text"] == prompt, prompt
    for huge in (10**9, 2**31, 2**63 - 1, context + 1):
        assert server.complete(prompt=[5] * (context - 4), max_tokens=huge, ignore_eos=True)["usage"]["completion_tokens"] == 4
    still_right(server)


def streams_of_many_choices():  # R13, R19, R20
    server = cluster()
    fields = dict(prompt=["Once upon a time", "The dog"], n=3, max_tokens=20, temperature=0.9, seed=3, logprobs=2, stop=["."])
    whole = server.complete(**fields)["choices"]
    _, _, body = talk(server, post({**fields, "stream": True}, "Connection: close"))  # H18
    text = [""] * 6
    ends = [None] * 6
    events = re.findall(rb"data: (\{.*\})\n\n", body)
    for event in map(json.loads, events):
        for choice in event["choices"]:
            text[choice["index"]] += choice["text"]
            ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    assert body.rstrip().endswith(b"0") and b"data: [DONE]" in body, body[-80:]
    assert text == [choice["text"] for choice in whole] and ends == [choice["finish_reason"] for choice in whole]
    assert not any("." in one for one in text)
    said = server.complete(**{**NORMAL, "max_tokens": 40})["choices"][0]["text"]
    for begin in range(0, len(said) - 6, 3):  # stops that span tokens: an exact cut
        stop = said[begin:begin + 5]
        answer = server.complete(**{**NORMAL, "max_tokens": 40, "stop": [stop]})["choices"][0]
        assert answer["text"] == said[:said.index(stop)], (stop, answer["text"])
    still_right(server)


def broken_http():  # H9..H13, H16
    server = cluster()
    chunked = head("POST", "/v1/completions", "Transfer-Encoding: chunked")
    for data, finish in [
            (b"GARBAGE\r\n\r\n", False), (b"GET /health\r\n\r\n", False), (b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n", False),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", False), (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", False), (b"\x00" * 64, False),
            (b"GET /health HTTP/1.1\r\n\r\n", False), (head("GET", "/health", "Host: localhost"), False), (head("GET", "/health", "no colon"), False),
            (head("GET", "/health", "X: a\rb"), False), (head("GET", "/health", "X: a\0b"), False), (head("GET", "/health", "X : a"), False),
            (head("POST", "/v1/completions", "Content-Length: -1"), False), (head("POST", "/v1/completions", "Content-Length: 0x5"), False),
            (head("POST", "/v1/completions", "Content-Length: 5", "Content-Length: 6") + b"12345", False),
            (head("POST", "/v1/completions", "Content-Length: 99999999999999999999999"), False),
            (head("POST", "/v1/completions", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n", False),
            (head("POST", "/v1/completions", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", False),
            (chunked + b"zz\r\n{}\r\n0\r\n\r\n", False), (chunked + b"-1\r\n", False), (chunked + b"10000000000000000\r\n{}", False),
            (chunked + b"2\r\n{}XX0\r\n\r\n", False)]:
        refused(server, data, 400, "bad_request", finish=finish)
    refused(server, head("POST", "/v1/completions", f"Content-Length: {(8 << 20) + 1}"), 413, "body_too_large")
    refused(server, head("POST", "/v1/completions", f"Content-Length: {1 << 62}"), 413, "body_too_large")
    refused(server, head("GET", "/" + "u" * 9000), 414, "url_too_long")
    refused(server, head("GET", "/health", "X: " + "h" * 20_000), 431, "headers_too_large")
    refused(server, head("GET", "/health", *["X: y"] * 1000), 431, "headers_too_large")
    for path in ("/", "//v1//models", "/v1/models/", "/V1/models", "/v1/completions/", "/health%00", "/%2e%2e/health", "/v1/chat/completions", "/metrics/../health"):
        refused(server, head("GET", path), 404)
    for path in ("..%2f..%2fetc%2fpasswd", "../../etc/passwd", "%00", "a%00b", "m" * 7000, "stories3M-q8_0%00", "%252e%252e"):  # H22
        refused(server, head("GET", "/v1/models/" + path), 404, "model_not_found")
    refused(server, head("GET", "/v1/models/%zz"), 400, "bad_request")
    for method, path in (("GET", "/v1/completions"), ("DELETE", "/v1/completions"), ("POST", "/v1/models"), ("PUT", "/health"), ("BREW", "/health")):
        assert refused(server, head(method, path, "Content-Length: 0"), 405, "method_not_allowed")["allow"]
    for kind in ("multipart/form-data; boundary=x", "application/xml", "text/plain", "application/x-www-form-urlencoded"):  # H14
        refused(server, head("POST", "/v1/completions", f"Content-Type: {kind}", "Content-Length: 2") + b"{}", 415)
    refused(server, post({"prompt": "a"}, "Content-Encoding: gzip"), 415)  # H15
    refused(server, post({"prompt": "a"}, "Expect: tea"), 417)
    refused(server, head("GET", "/v1/models", host="evil.example"), 403, "forbidden_host")  # H21
    refused(server, head("GET", "/v1/models", "Origin: https://evil.example"), 403, "forbidden_host")
    # Cut off anywhere: no answer is owed, only survival.
    request = post(NORMAL)
    for end in range(0, len(request), 7):
        talk(server, request[:end], finish=True)
    still_right(server)


def odd_http_that_works():  # H8, H10, H14: rare, but within the rules
    server = cluster()
    body = json.dumps(NORMAL).encode()
    length = f"Content-Length: {len(body)}"
    piece = lambda data: b"%x\r\n" % len(data) + data + b"\r\n"
    chunked = head("POST", "/v1/completions", "Transfer-Encoding: chunked")
    unknown = json.dumps({**NORMAL, "tools": [], "__proto__": {"n": 5}, "x": [[[{"y": None}]]], "k" * 10_000: 1, "logit_bias": None, "stop": None}).encode()
    for data in (head("POST", "/v1/completions", length) + body,  # no content type
                 head("POST", "/v1/completions", length, "Content-Type: application/json; charset=utf-8") + body, post(unknown),
                 chunked + piece(body) + b"0\r\nX-Sum: abc\r\n\r\n", chunked + b"".join(piece(bytes([byte])) for byte in body) + b"0\r\n\r\n",
                 chunked + b'%x;a=b;c="d"\r\n' % len(body) + body + b"\r\n0;x\r\n\r\n", head("POST", "http://localhost/v1/completions", length) + body,
                 head("POST", "/v1/completions?x=y#z", length) + body, head("POST", "/v1/completions", length, "X: a\r\n b") + body,
                 head("POST", "/v1/completions", length).replace(b"HTTP/1.1", b"HTTP/1.0") + body, head("POST", "/v1/completions", length, *[f"X{i}: y" for i in range(100)]) + body):
        status, _, answer = talk(server, data)
        assert status == 200 and json.loads(answer)["choices"] == server.right, (data[:200], status, answer)
    refused(server, chunked + piece(body) + b"0\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", 400, "bad_request")  # trailers without end
    refused(server, chunked + b"1;" + b"a" * 200_000 + b"\r\n{\r\n0\r\n\r\n", 400, "bad_request")
    refused(server, chunked + piece(b" " * (1 << 20)) * 9 + b"0\r\n\r\n", 413, "body_too_large")
    still_right(server)


def gauges(server):
    return {name: float(value) for name, value in re.findall(r"^(shoal_\w+) ([0-9.]+)$", server.request("GET", "/metrics")[1], re.M)}


def clients_that_leave():
    server = cluster()
    folder = f"/proc/{server.child.pid}/fd"
    before = len(os.listdir(folder))
    data = post({**NORMAL, "max_tokens": 400, "stream": True, "ignore_eos": True})
    for i in range(1000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            if i % 2:  # reset, not closed
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(data)
            if i % 3 == 0:
                client.recv(10)
    deadline = time.monotonic() + 60
    while True:
        now, files = gauges(server), len(os.listdir(folder))
        idle = now["shoal_requests_running"] == now["shoal_requests_waiting"] == 0 and now["shoal_connections"] == 1
        if idle and now["shoal_kv_blocks_free"] == now["shoal_kv_blocks_total"] and files <= before + 3:
            break
        assert time.monotonic() < deadline, (now, files, before)
        time.sleep(0.02)
    still_right(server)


# --- bytes that are no worker's and no head's

def frame(payload, length=None):
    return b"SHL1" + struct.pack("<III", len(payload) if length is None else length, 0, 0) + bytes(8) + payload


NO_FRAMES = [random.Random(3).randbytes(300), b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"SHL", frame(b"x" * 100)[:60], frame(b"", 0), frame(b"", 2**32 - 1), frame(b"\x0a\x02ab")]


def strangers_at_the_cluster_port():
    with tempfile.TemporaryDirectory() as folder:
        token = os.path.join(folder, "token")
        with Process("serve", TINY, "--port", "0", "--wait-for", "1", "--cluster-port", "0", "--token-file", token, "--threads", "1") as waits:
            port = int(waits.wait_for(r"--join 127\.0\.0\.1:(\d+)").group(1))
            strangers = []
            for i in range(200):  # they stay, and the true worker is let in all the same
                strangers.append(socket.create_connection(("127.0.0.1", port), timeout=20))
                strangers[-1].sendall(NO_FRAMES[i % len(NO_FRAMES)])
            ends_by_itself(["worker", "--join", f"127.0.0.1:{port}", "--token", "another"], [6])
            with Process("worker", "--join", f"127.0.0.1:{port}", "--token-file", token, "--threads", "1") as worker:
                waits.wait_for(r"http://127\.0\.0\.1:(\d+)")
                for stranger in strangers:
                    stranger.close()
                assert waits.stop() == 0, waits.text
                assert worker.child.wait(30) == 0, "the worker did not end with its head"


def heads_that_are_none():
    def join(words):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                done = pool.submit(ends_by_itself, ["worker", "--join", f"127.0.0.1:{listener.getsockname()[1]}", "--token", "t", "--threads", "1"], [5, 6])
                client, _ = listener.accept()
                with client:
                    client.sendall(words)
                    return done.result()  # the line stays open: without an answer the deadline of the handshake ends it
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(join, NO_FRAMES))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ends_by_itself(["worker", "--join", f"127.0.0.1:{port}", "--token", "t"], [5])


def random_bytes_and_mutated_requests():
    server = cluster()
    draw = random.Random(17)
    request = post({**NORMAL, "max_tokens": 2})
    for round_ in range(300):
        data = bytearray(request)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(data))
            data[at:at + draw.choice([0, 1, 1, 5])] = bytes(draw.randrange(256) for _ in range(draw.choice([0, 1, 1, 3])))
        answer = talk(server, bytes(data), finish=True)
        assert answer is None or answer[0] in (200, 400, 403, 404, 405, 408, 413, 414, 415, 417, 431), (round_, data, answer)
    body = json.dumps({**NORMAL, "max_tokens": 2, "stop": ["x", "\u00e9"], "logit_bias": {"5": 1.5}, "seed": 7}).encode()
    answered = []
    for round_ in range(400):  # the head is right, so each has an answer
        data = bytearray(body)
        for _ in range(draw.choice([1, 1, 2, 4])):
            at = draw.randrange(len(data))
            data[at:at + draw.choice([0, 1, 1, 5])] = draw.choice([b"", b"9", b"-", b"[", b'"', b"\\", b"{", b"e9", bytes([draw.randrange(256)])])
        answer = talk(server, post(bytes(data)))
        assert answer and answer[0] in (200, 400, 404), (round_, data, answer)
        answered.append(answer[0])
    assert 200 in answered and 400 in answered
    for _ in range(100):
        talk(server, draw.randbytes(draw.randint(1, 3000)), finish=True)
    still_right(server)


def floods():  # H16, H17
    server = cluster()
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    for client in idle[::2]:
        client.sendall(b"GET /heal")  # heads that never end
    one = head("GET", "/livez")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        def read_all(want):
            received = b""
            while received.count(b"HTTP/1.1 200") < want and (chunk := client.recv(1 << 20)):
                received += chunk
            return received.count(b"HTTP/1.1 200")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answers = pool.submit(read_all, 3000)
            client.sendall(one * 3000)
            assert answers.result() == 3000
    with concurrent.futures.ThreadPoolExecutor(32) as pool:  # wrong and right ones together
        asked = [pool.submit(talk, server, post({"prompt": "a", "n": 10**9})) if i % 2 else pool.submit(server.complete, **NORMAL) for i in range(64)]
        for i, answer in enumerate(asked):
            assert answer.result()[0] == 400 if i % 2 else answer.result()["choices"] == server.right
    for client in idle:
        client.close()
    still_right(server)


def keys():  # H19
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write("sk-one\n")
        file.flush()
        with Server(MODEL, "--api-key-file", file.name) as server:
            for field in ("X: y", "Authorization: Bearer sk-two", "Authorization: Bearer", "Authorization: Bearer sk-one x", "Authorization: sk-one",
                          "Authorization: Basic c2stb25l", "Authorization: Bearer sk-one\r\nAuthorization: Bearer sk-one", "X-Api-Key: sk-one",
                          "Authorization: Bearer " + "k" * 10_000):
                headers = refused(server, head("GET", "/v1/models?api_key=sk-one", field), 401, "invalid_api_key")
                assert headers["www-authenticate"].startswith("Bearer")
            refused(server, head("GET", "/v1/models", "Authorization: Bearer " + "k" * 1_000_000), 431)
            assert talk(server, head("GET", "/v1/models", "Authorization: Bearer sk-one"))[0] == 200
            server.stop()
            assert "sk-" not in server.text, "a key was written out"


def the_servers_end_well():
    for server in SERVERS.values():
        assert server.stop() == 0, f"exit {server.child.returncode}:\n{server.text}"


# --- commands

def texts_for_the_tokenizer():  # R21, K5
    for text in (b"\xff\xfe\xfa", b"\xed\xa0\x80", b"a\x00b", b"\xf0\x9f", b"", b"\n", b"a" * 1_000_000, "\u0301".encode() * 100_000, b" " * 1_000_000,
                 b"<s></s><unk><0x00>", bytes(range(256)) * 100):
        done = ends_by_itself(["tokenize", MODEL], [0], stdin=text, seconds=20)
        assert done.stdout or not text, text[:20]
    ends_by_itself(["run", MODEL, "-n", "1", "--threads", "1"], [0, 1, 2], stdin=b"\xff\xfe a\x00b", seconds=30)


def prompts_of_the_command():
    for arguments in (["-p", ""], ["-p", " "], ["-p", "a", "-n", "16777216", "--ignore-eos"], ["-p", "a", "-n", "1"]):
        ends_by_itself(["run", TINY, *arguments, "--threads", "1"], [0])
    long = "very long " * 5000
    done = ends_by_itself(["run", TINY, "--threads", "1"], [1, 2], stdin=long)
    assert b"context" in done.stderr, done.stderr
    ends_by_itself(["run", TINY, "--threads", "1"], [1, 2], stdin="x" * (9 << 20))
    for arguments in (["-n", "-1"], ["-n", "2147483647"], ["-n", "99999999999999"], ["-n", "x"], ["--temp", "nan"], ["--temp", "-1"], ["--top-p", "2"], ["--seed", "x"], ["--seed", "99999999999999999999999"],
                      ["--threads", "-1"], ["--threads", "100000"], ["--workers", "17"], ["--workers", "-1"], ["--step-rows", "0"], ["--shares", "0,0", "--workers", "2"],
                      ["--shares", "1,2,3", "--workers", "2"], ["--shares", "nan,1", "--workers", "2"], ["--shares", "1,inf", "--workers", "2"], ["--shares", "-1,1", "--workers", "2"], ["--top-p", "nan"], ["--nothing"], ["--context", "-5"], ["--kv-memory", "x"]):
        for as_json in ([], ["--json"]):
            ends_by_itself(["run", TINY, "-p", "a", *arguments, *as_json], [2])
    for arguments in ([], ["--json"]):
        assert ends_by_itself(["run", "/nonexistent.gguf", "-p", "a", *arguments], [4], named="/nonexistent.gguf").stdout == b""
    ends_by_itself(["serve", TINY, "--port", "99999"], [2])
    ends_by_itself(["serve", TINY, "--port", "0", "--host", "no such host"], [3])
    ends_by_itself(["serve", TINY, "--port", "0", "--host", "0.0.0.0"], [3])
    for file in ("/nonexistent", "/dev/zero", "/dev/null", "/tmp"):
        ends_by_itself(["serve", TINY, "--port", "0", "--api-key-file", file], [3])
    for ids, codes in ((b"", [0]), (b"x", [1, 2]), (b"-1", [1, 2]), (b"1 2 99999999", [1, 2]), (b"9" * 100, [1, 2]), (b"5 " * 300_000, [0])):
        ends_by_itself(["tokenize", "--decode", MODEL], codes, stdin=ids)


if __name__ == "__main__":
    try:
        main([bodies_that_are_no_json, wrong_types_and_ranges, prompts, streams_of_many_choices, broken_http, odd_http_that_works, random_bytes_and_mutated_requests, floods,
              clients_that_leave, the_servers_end_well, strangers_at_the_cluster_port, heads_that_are_none, keys, texts_for_the_tokenizer, prompts_of_the_command])
    finally:
        for running in SERVERS.values():
            if running.child.poll() is None:
                running.child.send_signal(signal.SIGKILL)
