#!/usr/bin/env python3
"""Workers that join by token: what they compute together, who is let in, and what becomes of those who are alone."""
import http.client
import os
import re
import signal
import socket
import tempfile
import time

from shoal_process import Process, main, run, run_json, shared

MODEL = shared("models/llama-stories3M/stories3M-q8_0.gguf")
REQUEST = dict(prompt="Once upon a time", max_tokens=32, temperature=0)


class Head(Process):
    """A server that waits for workers; `cluster` is the port it prints, `port` is known once it is ready."""

    def __init__(self, token_file, count, *arguments):
        super().__init__("serve", MODEL, "--port", "0", "--wait-for", count, "--token-file", token_file, "--cluster-port", "0",
                         *arguments)
        self.cluster = int(self.wait_for(r"--join 127\.0\.0\.1:(\d+)").group(1))

    def complete(self):
        import json
        port = int(self.wait_for(r"ready +http://[\w.]*:(\d+)").group(1))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(REQUEST))
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return json.loads(body)["choices"][0]["text"]


class Worker(Process):
    def __init__(self, head, name, *arguments, token=None, token_file=None, env=None):
        proof = ["--token", token] if token else ["--token-file", token_file]
        super().__init__("worker", "--join", f"127.0.0.1:{head.cluster}", "--name", name, *proof, *arguments, env=env)

    def ends(self, seconds=30):
        _, rest = self.child.communicate(timeout=seconds)
        self.text += rest.decode(errors="replace")
        return self.child.returncode


class Tokens:
    """A folder with a name for a token file that the head makes."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        return os.path.join(self.folder.name, "token")

    def __exit__(self, *_):
        self.folder.cleanup()


def kernels():
    """What this machine can compute with, the best first: as the refusal of another name lists them."""
    done = run("run", MODEL, "-p", "x", env={"SHOAL_KERNEL": "abacus"}, check=3)
    assert b"abacus" in done.stderr, done.stderr
    return done.stderr.decode().rsplit("this machine can use ", 1)[1].split()


def workers_compute_with_the_kernels_that_they_share():
    names = kernels()
    ask = ["run", MODEL, "-p", "Once upon a time", "-n", "12", "--temp", "0"]
    assert run_json(*ask)["kernel"] == names[0], names
    for name in names:
        alone, split = (run_json(*ask, *extra, env={"SHOAL_KERNEL": name.lower()}) for extra in ([], ["--workers", "2"]))
        assert alone["kernel"] == split["kernel"] == name, (alone["kernel"], split["kernel"], name)
        assert alone["logits_sha256"] == split["logits_sha256"], name
    if len(names) == 1:
        return
    worst = {"SHOAL_KERNEL": names[-1]}
    with Tokens() as token, Head(token, 2) as head, Worker(head, "a", token_file=token), Worker(head, "b", token_file=token, env=worst):
        assert head.stop(0) == 5 and f"b: {names[-1]}" in head.text and "SHOAL_KERNEL" in head.text, head.text
    with Tokens() as token, Head(token, 2) as head:
        with Worker(head, "a", token_file=token, env=worst), Worker(head, "b", token_file=token, env=worst):
            assert head.complete()


def ranks(head):
    head.wait_for(r"ready ")
    return re.findall(r"rank (\d+)  (\S+): layers 0\.\.\d+, slices (\d+)\.\.(\d+)", head.text)


def alone():
    done = run_json("run", MODEL, "-p", REQUEST["prompt"], "-n", REQUEST["max_tokens"], "--temp", "0", "--threads", "1")
    return done["text"].removeprefix(REQUEST["prompt"])


def two_workers_compute_what_one_process_does():
    with Tokens() as token, Head(token, 2, "--shares", "3,1") as head:
        assert os.stat(token).st_mode & 0o777 == 0o600
        with Worker(head, "b", "--threads", "1", token_file=token) as b:
            head.wait_for(r"worker b joined \(1 of 2\)")
            with Worker(head, "a", "--threads", "2", token_file=token) as a:
                # Ranks by name, not by who was first.
                assert ranks(head) == [("0", "a", "0", "12"), ("1", "b", "12", "16")], head.text
                assert head.complete() == alone()
                assert head.stop() == 0
                assert a.ends() == 0 and b.ends() == 0


def is_open(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def strangers_disturb_nobody():
    with Tokens() as token, Head(token, 2) as head:
        with Worker(head, "thief", token="not-the-token") as thief:
            assert thief.ends() == 6, thief.text
        silent = [socket.create_connection(("127.0.0.1", head.cluster)) for _ in range(40)]
        for words in (os.urandom(4096), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"SHL1" + b"\xff" * 60):
            with socket.create_connection(("127.0.0.1", head.cluster)) as stranger:
                stranger.sendall(words)
                stranger.settimeout(30)
                try:
                    assert stranger.recv(100) == b"", "a stranger got an answer"
                except ConnectionResetError:
                    pass
        with Worker(head, "one", token_file=token) as one:
            head.wait_for(r"worker one joined \(1 of 2\)")
            # Nobody has waited for the silent ones' deadline: those that were not sent away to make room are still there.
            assert sum(map(is_open, silent)) >= 20, "the silent ones were waited for"
            with Worker(head, "two", token_file=token) as two:
                assert [rank[1] for rank in ranks(head)] == ["one", "two"]
                assert head.complete() == alone()
                [stranger.close() for stranger in silent]
                assert head.stop() == 0
                assert one.ends() == 0 and two.ends() == 0


def strangers_do_not_fill_the_log():
    with Tokens() as token, Head(token, 1) as head:
        begin = time.monotonic()
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", head.cluster)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 30)
                stranger.settimeout(30)
                try:
                    stranger.recv(100)
                except ConnectionResetError:
                    pass
        with Worker(head, "one", token_file=token):
            ranks(head)
            # One a second, whatever this machine took for it.
            lines = head.text.count("was refused")
            assert 1 <= lines <= time.monotonic() - begin + 1, head.text


def equal_names_are_told_apart():
    with Tokens() as token, Head(token, 3) as head:
        workers = []
        for i in range(3):
            workers.append(Worker(head, "twin", token_file=token))
            head.wait_for(rf"joined \({i + 1} of 3\)")
        assert [rank[1] for rank in ranks(head)] == ["twin", "twin-2", "twin-3"], head.text
        assert head.stop() == 0
        assert [worker.ends() for worker in workers] == [0, 0, 0]


def a_worker_that_leaves_early_is_not_counted():
    with Tokens() as token, Head(token, 2) as head:
        with Worker(head, "early", token_file=token) as early:
            head.wait_for(r"worker early joined \(1 of 2\)")
            early.child.send_signal(signal.SIGKILL)
            head.wait_for(r"worker early left")
        with Worker(head, "one", token_file=token), Worker(head, "two", token_file=token):
            assert [rank[1] for rank in ranks(head)] == ["one", "two"]
            assert head.complete() == alone()
            assert head.stop() == 0


def a_worker_whose_head_vanishes_ends():
    with Tokens() as token, Head(token, 2) as head:
        with Worker(head, "waits", token_file=token) as waits:
            head.wait_for(r"worker waits joined")
            head.child.kill()
            assert waits.ends() == 5, waits.text
    with Tokens() as token, Head(token, 2) as head:
        with Worker(head, "one", token_file=token) as one, Worker(head, "two", token_file=token) as two:
            ranks(head)
            head.child.kill()
            assert one.ends() == 5 and two.ends() == 5


def a_worker_too_small_is_named():
    with Tokens() as token, Head(token, 2) as head:
        with Worker(head, "big", token_file=token), Worker(head, "tiny", "--memory", "64K", token_file=token):
            _, rest = head.child.communicate(timeout=60)
            assert head.child.returncode == 1, head.child.returncode
            assert b"tiny has too little memory" in rest, rest


def waiting_can_be_ended():
    for sig in (signal.SIGTERM, signal.SIGINT):
        with Tokens() as token, Head(token, 2) as head:
            assert head.stop(sig, seconds=10) != 0


if __name__ == "__main__":
    main([two_workers_compute_what_one_process_does, strangers_disturb_nobody, strangers_do_not_fill_the_log, equal_names_are_told_apart,
          a_worker_that_leaves_early_is_not_counted, a_worker_whose_head_vanishes_ends, a_worker_too_small_is_named,
          waiting_can_be_ended, workers_compute_with_the_kernels_that_they_share])
