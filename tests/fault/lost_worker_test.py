#!/usr/bin/env python3
"""Workers that are killed: between steps, in the middle of streams, and what the head does then."""
import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cluster"))
from shoal_process import Server, main, shared  # noqa: E402

MODEL = shared("models/llama-stories3M/stories3M-q8_0.gguf")


def workers_of(server):
    """The pids of the local workers, by name."""
    found = {}
    for task in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            stat = (task / "stat").read_text(errors="replace")
            words = (task / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if int(stat.rsplit(")", 1)[1].split()[1]) == server.child.pid and "--name" in words:
            found[words[words.index("--name") + 1]] = int(task.name)
    return found


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def health_becomes_503(server, seconds):
    begin = time.monotonic()
    while server.request("GET", "/health")[0] != 503:
        assert time.monotonic() - begin < seconds, f"/health is not 503 after {seconds} s"
        time.sleep(0.01)


def ends_by_itself(server):
    code = server.stop()
    assert code >= 0, f"the head was ended by signal {-code}\n{server.text}"
    assert code == 1, f"a lost group is a failure at run time, not exit code {code}"


def an_idle_group_notices():
    with Server(MODEL, "--workers", "3") as server:
        assert server.request("GET", "/health")[0] == 200
        kill(workers_of(server)["local-2"])
        health_becomes_503(server, 30)  # every 200 ms the links are looked at; the rest is a busy machine's
        status, text = server.request("POST", "/v1/completions", dict(prompt="x"))
        assert status == 503, (status, text)
        ends_by_itself(server)
        assert "worker local-2" in server.text, server.text


def raw_stream(server, fields):
    """All bytes of a streamed answer until its connection ends, and whether the chunked body ended as it should."""
    body = json.dumps({**fields, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        text = b""
        try:
            while chunk := client.recv(65536):
                text += chunk
                if text.endswith(b"0\r\n\r\n"):
                    return text, True
                yield_first(server, text)
        except ConnectionResetError:
            pass
        return text, False


def yield_first(server, text):
    if b"data: " in text:
        server.streaming += 1


def killed_in_midstream(victim, *flags):
    def check():
        with Server(MODEL, "--workers", "2", *flags) as server:
            server.streaming = 0
            pid = workers_of(server)[victim]
            fields = dict(prompt="Once upon a time", max_tokens=480, ignore_eos=True, temperature=0)
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                streams = [pool.submit(raw_stream, server, {**fields, "logprobs": 5}) for _ in range(4)]
                deadline = time.monotonic() + 30
                while server.streaming < 1:
                    assert time.monotonic() < deadline, "nothing is streamed"
                    time.sleep(0.001)
                os.kill(pid, signal.SIGSTOP)  # the streams stand still, however quick the machine is
                others = [pool.submit(server.request, "POST", "/v1/completions", {**fields, "max_tokens": 490})
                          for _ in range(4)]
                kill(pid)
                broken = 0
                for stream in streams:
                    text, whole = stream.result(timeout=60)
                    if b"data: [DONE]" in text:
                        continue  # it was over before the kill
                    broken += 1
                    assert b'"error"' in text, text[-500:]
                    assert not whole, "a broken stream ended like a whole one"
                assert broken > 0, "all streams were over before the kill"
                for other in others:
                    status, text = other.result(timeout=60)
                    assert status in (500, 503), (status, text)
                    assert json.loads(text)["error"]["message"], text
            health_becomes_503(server, 30)
            assert server.child.poll() is None, "the head died with its worker"
            ends_by_itself(server)
    check.__name__ = "_".join(["killed_in_midstream", victim, *flags])
    return check


def killed_in_a_prompt(victim, *flags):
    """While the sums of some rows wait for the worker and others are computed."""
    def check():
        with Server(MODEL, "--workers", "2", "--overlap", "on", *flags) as server:
            server.complete(prompt="Once upon a time", max_tokens=2)
            pid = workers_of(server)[victim]
            os.kill(pid, signal.SIGSTOP)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                waits = pool.submit(server.request, "POST", "/v1/completions", dict(prompt="Once upon a time " * 60, max_tokens=2))
                deadline = time.monotonic() + 30
                while "shoal_requests_running 1" not in server.request("GET", "/metrics")[1]:
                    assert time.monotonic() < deadline, "the request does not run"
                    time.sleep(0.001)
                kill(pid)
                status, text = waits.result(timeout=60)  # half of a step's deadline
            assert status in (500, 503), (status, text)
            health_becomes_503(server, 30)
            ends_by_itself(server)
            assert f"worker {victim}" in server.text, server.text
    check.__name__ = "_".join(["killed_in_a_prompt", victim, *flags])
    return check


def an_idle_cluster_costs_nothing():
    with Server(MODEL, "--workers", "2") as server:
        server.complete(prompt="Once upon a time", max_tokens=4)
        pids = [server.child.pid, *workers_of(server).values()]

        def ticks():
            return sum(sum(map(int, pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
                       for pid in pids)
        begin = ticks()
        time.sleep(3)  # what is measured is time itself
        used = (ticks() - begin) / 100 / 3
        assert used < 0.01 * len(pids), f"{used:.3f} cores while idle"


if __name__ == "__main__":
    main([an_idle_group_notices, killed_in_midstream("local-0"), killed_in_midstream("local-1"),
          killed_in_midstream("local-0", "--stages", "2"), killed_in_midstream("local-1", "--stages", "2"),
          killed_in_a_prompt("local-0"), killed_in_a_prompt("local-1"),
          an_idle_cluster_costs_nothing])
