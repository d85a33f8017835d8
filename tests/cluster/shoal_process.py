"""Starts the real program for tests: commands that end, servers that are waited for by what they print, and a small client.

No sleeps: everything waits for a condition with a deadline. Ports are chosen by the system.
"""
import atexit
import http.client
import json
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(os.environ.get("SHOAL_SHARED", ROOT.parent / "shared"))
SKIP = 77


def program():
    return sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "build/release/shoal")


def shared(relative):
    """A reference file, or the test ends as skipped."""
    path = SHARED / relative
    if not path.exists():
        print(f"skipped: {path} is not there")
        sys.exit(SKIP)
    return path


def any_model(relative, *options):
    """The reference model where it is at hand, else one of random weights that the project's own tool makes."""
    path = SHARED / relative
    if path.exists():
        return path
    folder = tempfile.mkdtemp(prefix="shoal-test-")
    atexit.register(shutil.rmtree, folder, True)
    made = pathlib.Path(folder) / "random.gguf"
    subprocess.run([str(pathlib.Path(program()).parent / "shoal-make-model"), str(made), *map(str, options)], check=True, capture_output=True)
    return made


def run(*arguments, stdin="", timeout=120, env=None, check=None):
    done = subprocess.run([program(), *map(str, arguments)], input=stdin if isinstance(stdin, bytes) else stdin.encode(),
                          capture_output=True, timeout=timeout, env={**os.environ, **(env or {})})
    if check is not None and done.returncode != check:
        raise AssertionError(f"{arguments}: exit {done.returncode}, expected {check}\n{done.stderr.decode(errors='replace')}")
    return done


def run_json(*arguments, **keywords):
    return json.loads(run(*arguments, "--json", check=0, **keywords).stdout)


def ends_by_itself(arguments, codes, stdin="", named=None, seconds=30):
    """The exit code is one of these, a failure says what is wrong and, with `named`, where."""
    done = run(*arguments, stdin=stdin, timeout=seconds)
    shown = " ".join(map(str, arguments))
    error = done.stderr.decode(errors="replace")
    assert done.returncode in codes, f"{shown}: exit {done.returncode}, expected {codes}: {error[-800:]}"
    if done.returncode:
        assert re.search(r"^shoal: .+", error, re.M) or done.returncode == 2, f"{shown}: exit {done.returncode} without a reason: {error!r}"
        assert named is None or named in error, f"{shown}: does not name {named}: {error!r}"
    return done


class Process:
    """A long-running command; its stderr is read until a pattern shows."""

    def __init__(self, *arguments, env=None):
        self.child = subprocess.Popen([program(), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE, env={**os.environ, **(env or {})})
        self.text = ""

    def wait_for(self, pattern, seconds=60):
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.child.stderr], [], [], max(0, left))
            chunk = os.read(self.child.stderr.fileno(), 65536) if ready else b""
            self.text += chunk.decode(errors="replace")
            if not chunk:
                raise AssertionError(f"never saw {pattern!r} in:\n{self.text}")
        return found

    def stop(self, sig=signal.SIGTERM, seconds=30):
        if self.child.poll() is None:
            self.child.send_signal(sig)
        try:
            _, rest = self.child.communicate(timeout=seconds)
            self.text += rest.decode(errors="replace")
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise
        return self.child.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.stop()


class Server(Process):
    def __init__(self, model, *arguments, env=None):
        super().__init__("serve", model, "--port", "0", *arguments, env=env)
        try:
            self.port = int(self.wait_for(r"http://[\w.\[\]:]*:(\d+)").group(1))
        except BaseException:
            self.child.kill()
            raise
        self.url = f"http://127.0.0.1:{self.port}"

    def request(self, method, path, body=None, headers=None, timeout=60):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def complete(self, **fields):
        status, text = self.request("POST", "/v1/completions", fields)
        assert status == 200, text
        return json.loads(text)

    def stream(self, timeout=120, **fields):
        """The text of a streamed completion and how many events brought it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", "/v1/completions", json.dumps({**fields, "stream": True}))
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            text, events, done = "", 0, False
            for line in answer:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    done = True
                    break
                event = json.loads(line[6:])
                assert "error" not in event, event
                events += 1
                text += "".join(choice["text"] for choice in event["choices"])
            assert done, "the stream ended without [DONE]"
            return text, events
        finally:
            connection.close()


def main(cases):
    """Runs the functions; prints a line each and the counts; the exit code says whether all passed."""
    passed = failed = 0
    for case in cases:
        begin = time.monotonic()
        try:
            case()
            passed += 1
            print(f"ok: {case.__name__} ({time.monotonic() - begin:.1f} s)", flush=True)
        except Exception as error:  # a test's failure is a value here: the others still run
            failed += 1
            print(f"FAILED: {case.__name__}: {error}", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
