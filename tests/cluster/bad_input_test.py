#!/usr/bin/env python3
"""Everything wrong that can be sent or opened, against the real program: each case has its answer, and what was right before
is right after. Numbers such as H3, R5, G7, K2 are those of the catalogue of bad inputs in the reliability survey."""
import concurrent.futures
import json
import os
import pathlib
import random
import re
import signal
import socket
import struct
import tempfile

from shoal_process import Server, main, run, shared

MODEL = shared("models/llama-stories3M/stories3M-q8_0.gguf")
TINY = shared("golden/arch/llama-gqa.gguf")
VOCABULARY = shared("data/tokenizer-vectors/ggml-vocab-llama-spm.gguf")
NORMAL = dict(prompt="Once upon a time", max_tokens=24, temperature=0)
NAMED = re.compile(r"^shoal: .+", re.M)


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


# --- 3a, 3b: files

def ends_by_itself(arguments, codes, stdin="", named=None, seconds=30):
    """The exit code is one of these, a failure says what is wrong and, with `named`, where."""
    done = run(*arguments, stdin=stdin, timeout=seconds)
    shown = " ".join(map(str, arguments))
    error = done.stderr.decode(errors="replace")
    assert done.returncode in codes, f"{shown}: exit {done.returncode}, expected {codes}: {error[-800:]}"
    if done.returncode:
        assert NAMED.search(error) or done.returncode == 2, f"{shown}: exit {done.returncode} without a reason: {error!r}"
        assert named is None or named in error, f"{shown}: does not name {named}: {error!r}"
    return done


class Header:
    """Where the values of a GGUF file's head lie."""

    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def __init__(self, data):
        self.data, self.at, self.values, self.key_at, self.tensors = data, 8, {}, {}, {}
        self.lengths = []  # where string lengths and counts lie
        self.n_tensors, self.n_kv = self.u64(), self.u64()
        for _ in range(self.n_kv):
            begin = self.at
            key = self.string().decode()
            kind_at, kind = self.at, self.u32()
            self.key_at[key] = (begin, kind_at)
            self.values[key] = (self.at, kind)
            self.skip(kind)
        for _ in range(self.n_tensors):
            begin = self.at
            name = self.string().decode()
            dims_at, dims = self.at, self.u32()
            self.at += 8 * dims
            self.tensors[name] = dict(begin=begin, dims_at=dims_at, type_at=self.at, offset_at=self.at + 4)
            self.at += 12
        self.end = self.at

    def u32(self):
        self.at += 4
        return struct.unpack_from("<I", self.data, self.at - 4)[0]

    def u64(self):
        self.at += 8
        return struct.unpack_from("<Q", self.data, self.at - 8)[0]

    def string(self):
        self.lengths.append(self.at)
        size = self.u64()
        self.at += size
        return self.data[self.at - size:self.at]

    def skip(self, kind):
        if kind == 8:
            self.string()
        elif kind == 9:
            inner = self.u32()
            self.lengths.append(self.at)
            for _ in range(self.u64()):
                self.skip(inner)
        else:
            self.at += self.SIZES[kind]


U32 = lambda value: struct.pack("<I", value & 0xFFFFFFFF)
U64 = lambda value: struct.pack("<Q", value & (2**64 - 1))
F32 = lambda value: struct.pack("<f", value)


def broken_models():
    """(case, bytes): each must be refused with exit code 4."""
    data = TINY.read_bytes()
    h = Header(data)
    arch = "llama"

    def put(at, new, old=None):
        return data[:at] + new + data[at + (len(new) if old is None else old):]

    def value(key, new):
        return put(h.values[key][0], new)

    yield "G1 empty", b""
    for size in (1, 4, 8, 20, 23):
        yield f"G1 {size} bytes", data[:size]
    for name, start in (("GGML", b"lmgg"), ("GGJT", b"tjgg"), ("gzip", b"\x1f\x8b\x08\x00"), ("zip", b"PK\x03\x04"), ("html", b"<!DOCTYPE html><html>"),
                        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12\n"), ("pickle", b"\x80\x04\x95"),
                        ("safetensors", struct.pack("<Q", 2) + b"{}")):
        yield f"G2 {name}", start + data[len(start):] if name not in ("lfs", "html") else start
    for version in (0, 1, 4, 1000, 2**32 - 1):
        yield f"G3 version {version}", put(4, U32(version))
    yield "G4 byte-swapped", put(4, struct.pack(">I", 3))
    for count in (2**64 - 1, 2**63, 2**32, len(data), 10**6):
        yield f"G5 n_tensors {count}", put(8, U64(count))
        yield f"G5 n_kv {count}", put(16, U64(count))
    first = h.key_at["general.architecture"][0]
    for size in (0, 65536, 2**32, 2**63, 2**64 - 1, 2**64 - 8):
        yield f"G6/G7 key length {size}", put(first, U64(size))
    yield "G6 key with NUL", put(first + 10, b"\0")
    yield "G6 key not ASCII", put(first + 10, b"\xff")
    for at in h.lengths[1:40:3]:
        for size in (2**64 - 1, 2**63, 2**40, len(data)):
            yield f"G7/G10 length at {at} is {size}", put(at, U64(size))
    kind_at = h.key_at["general.architecture"][1]
    for kind in (13, 255, 2**32 - 1):
        yield f"G8 value type {kind}", put(kind_at, U32(kind))
    alignment = U64(17) + b"general.alignment"
    for name, text in (("0", U32(4) + U32(0)), ("3", U32(4) + U32(3)), ("2^31", U32(4) + U32(2**31)), ("signed", U32(5) + U32(32)), ("2 MiB", U32(4) + U32(2 << 20))):
        yield f"G12 alignment {name}", put(16, U64(h.n_kv + 1))[:24] + alignment + text + data[24:]
    nested = U64(6) + b"x.nest" + U32(9) + (U32(9) + U64(1)) * 1000 + U32(4) + U64(0)
    yield "G9 nested arrays", put(16, U64(h.n_kv + 1))[:24] + nested + data[24:]
    yield "G9 array of an unknown type", put(16, U64(h.n_kv + 1))[:24] + U64(3) + b"x.a" + U32(9) + U32(77) + U64(1) + data[24:]
    yield "G8 bool 2", put(16, U64(h.n_kv + 1))[:24] + U64(3) + b"x.b" + U32(7) + b"\2" + data[24:]
    again = data[first:h.values["general.architecture"][0]] + U64(5) + b"llama"
    yield "G11 duplicate key", put(16, U64(h.n_kv + 1))[:24] + again + data[24:]
    names = list(h.tensors)
    same = [name for name in names if name.startswith("blk.0.")]
    other = same[0].replace("blk.0.", "blk.1.")
    if other in h.tensors:
        yield "G11 duplicate tensor", put(h.tensors[other]["begin"] + 8 + 4, b"0")
    t = h.tensors[names[0]]
    for size in (0, 65, 2**64 - 1):
        yield f"G13 tensor name length {size}", put(t["begin"], U64(size))
    yield "G13 tensor name with NUL", put(t["begin"] + 9, b"\0")
    for dims in (0, 5, 2**32 - 1):
        yield f"G14 {dims} dims", put(t["dims_at"], U32(dims))
    for dim in (0, 1, 2**63, 2**64 - 1, 2**62, 2**40):
        yield f"G15 dim {dim}", put(t["dims_at"] + 4, U64(dim))
    for kind in (4, 5, 31, 36, 99, 2**31, 2**32 - 1):
        yield f"G16 type {kind}", put(t["type_at"], U32(kind))
    for offset in (1, 17, len(data), 2**63, 2**64 - 32):
        yield f"G18/G19 offset {offset}", put(t["offset_at"], U64(offset))
    later = h.tensors[names[-1]]
    yield "G18 overlap", put(later["offset_at"], U64(0))
    for size in (h.end - 3, h.end, h.end + 40, len(data) // 2, len(data) - 1):
        yield f"G20 cut at {size}", data[:size]
    integer = lambda key, number: value(f"{arch}.{key}", U32(number))
    for key, numbers in (("block_count", (0, 513, 2**32 - 1, 1)), ("attention.head_count", (0, 3, 2**31, 2**32 - 1)), ("attention.head_count_kv", (0, 3, 2**31)),
                         ("embedding_length", (0, 1, 2**31, 2**32 - 1)), ("feed_forward_length", (0, 1, 2**32 - 1)), ("context_length", (0, 2**31))):
        for number in numbers:
            if key == "block_count" and number == 1:
                continue  # fewer layers than the file has: their tensors are extra ones (G29)
            yield f"G21/G22/G24 {key} {number}", integer(key, number)
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
        if f"{arch}.{key}" in h.values:
            for number in (float("nan"), -1.0, float("inf")):
                yield f"G24 {key} {number}", value(f"{arch}.{key}", F32(number))
    where = h.values["general.architecture"][0]
    yield "G26 unknown architecture", put(where, U64(5) + b"lamma", 13)
    yield "G26 a long one", put(where, U64(1 << 20) + b"a" * (1 << 20), 13)
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"):
        yield f"G27 without {name}", put(h.tensors[name]["begin"] + 8, b"X")
    for key in ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"):
        if key in h.values:
            yield f"K2 {key}", value(key, U32(10**6))
    model_at = h.values.get("tokenizer.ggml.model")
    if model_at:
        yield "K6 unknown tokenizer", put(model_at[0] + 8, b"X")
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):  # K3: its last entry goes, the rest moves up
        if key in h.values:
            at, _ = h.values[key]
            count = struct.unpack_from("<Q", data, at + 4)[0]
            end = at + 12 + 4 * count
            yield f"K3 short {key}", data[:at + 4] + U64(count - 1) + data[at + 12:end - 4] + data[end:]
    at = h.values["tokenizer.ggml.tokens"][0]
    for text in (b"<0xZZ>", b"<0x-1", b"<0x1Z>"):  # K1: a token that says it is a byte
        byte = data.index(U64(6) + b"<0x41>", at)
        yield f"K1 byte token {text}", put(byte, U64(len(text)) + text, 14)
    yield "K5 a token of 1 MB", put(at + 12, U64(1 << 20) + b"a" * (1 << 20), 8 + struct.unpack_from("<Q", data, at + 12)[0])
    yield "K no tokens", put(at + 4, U64(0))
    yield "K tokens that are numbers", put(at, U32(4))


def models_that_are_broken():  # G1..G27, K2, K3, K6
    with tempfile.TemporaryDirectory() as folder:
        def check(case):
            number, (name, content) = case
            path = pathlib.Path(folder, f"broken-{number}.gguf")
            path.write_bytes(content)
            ends_by_itself(["run", path, "-p", "a", "-n", "2", "--threads", "1"], [4], named=path.name)
            ends_by_itself(["inspect", path], [0, 4], named=path.name)
            path.unlink()

        def reported(case):
            try:
                check(case)
            except Exception as error:
                return f"{case[1][0]}: {error}"
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            failures = [one for one in pool.map(reported, enumerate(broken_models())) if one]
        assert not failures, f"{len(failures)} cases:\n" + "\n".join(failures)


def files_that_are_no_models():  # G2, G31
    with tempfile.TemporaryDirectory() as folder:
        fifo = os.path.join(folder, "fifo.gguf")
        os.mkfifo(fifo)
        zero = os.path.join(folder, "zero.gguf")
        os.symlink("/dev/zero", zero)
        loop = os.path.join(folder, "loop.gguf")
        os.symlink(loop, loop)
        for path in (folder, fifo, zero, loop, "/dev/null", "/proc/self/mem", os.path.join(folder, "none.gguf"), "/etc/passwd", folder + "/" + "x" * 300):
            for command in (["run", path, "-p", "a"], ["inspect", path], ["tokenize", path]):
                done = run(*command, timeout=20)
                assert done.returncode == 4, f"{command}: exit {done.returncode}: {done.stderr[-400:]!r}"


def mutated(source, seed):
    draw = random.Random(seed)
    data = bytearray(source)
    end = Header(source).end
    for _ in range(draw.choice([1, 1, 2, 5])):
        kind = draw.randrange(5)
        at = draw.randrange(min(end, len(data))) if draw.random() < 0.9 else draw.randrange(len(data))
        at = min(at, len(data) - 8)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at] = draw.randrange(256)
        elif kind == 2:
            lengths = Header(source).lengths
            struct.pack_into("<Q", data, draw.choice([length for length in lengths[:200] if length + 8 <= len(data)] or [8]), draw.choice([0, 1, 2**16, 2**31, 2**32, 2**63, 2**64 - 1, draw.randrange(1 << 20)]))
        elif kind == 3 and len(data) > 100:
            del data[draw.randrange(100, len(data)):]
        else:
            data[at:at + 4] = struct.pack("<I", draw.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, draw.randrange(1000)]))[:len(data) - at]
    return bytes(data)


def models_changed_at_random():
    sources = [TINY.read_bytes(), VOCABULARY.read_bytes()]
    with tempfile.TemporaryDirectory() as folder:
        def check(seed):
            path = pathlib.Path(folder, f"random-{seed}.gguf")
            vocabulary = seed % 5 == 4
            path.write_bytes(mutated(sources[vocabulary], seed))
            command = ["run", path, "-p", "Once", "-n", "2", "--threads", "1"]
            if vocabulary or seed % 5 == 3:
                command = ["inspect", path] if seed % 2 else ["tokenize", path]
            try:
                ends_by_itself(command, [0, 1, 4], stdin="Once upon a time, <0x41> \u00e9", seconds=30)
            except Exception as error:
                return f"seed {seed}: {error}"
            finally:
                path.unlink()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            failures = [one for one in pool.map(check, range(300)) if one]
        assert not failures, f"{len(failures)} cases:\n" + "\n".join(failures)


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
        main([bodies_that_are_no_json, wrong_types_and_ranges, prompts, streams_of_many_choices, broken_http, random_bytes_and_mutated_requests, floods,
              the_servers_end_well, keys, models_that_are_broken, files_that_are_no_models, models_changed_at_random, texts_for_the_tokenizer,
              prompts_of_the_command])
    finally:
        for running in SERVERS.values():
            if running.child.poll() is None:
                running.child.send_signal(signal.SIGKILL)
