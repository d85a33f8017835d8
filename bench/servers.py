"""Servers under measurement: started on a port that the system chooses, waited for until they answer, ended with all they started.

Programs of this checkout run as they are, or, where the machine lacks their libraries, in the build environment (`./dev exec`).
"""
import collections
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Whoever ends the measurement ends its servers too: `with` sees an exception.
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: sys.exit(128 + number))


def runnable(program):
    """The command that runs a program of this checkout here."""
    program = str(pathlib.Path(program).resolve())
    if not os.access(program, os.X_OK):
        sys.exit(f"bench: {program} is not there: build it first (./dev build release)")
    if subprocess.run([program, "--help"], capture_output=True).returncode == 0:
        return [program]
    wrapped = [str(ROOT / "dev"), "exec", program]
    done = subprocess.run([*wrapped, "--help"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"bench: {program} runs neither here nor in the build environment:\n{done.stderr[-1000:]}")
    return wrapped


def peer_command():
    """The command that runs a llama.cpp program by name, or nothing."""
    command = os.environ.get("SHOAL_PEER_LLAMACPP", str(ROOT.parent / "shared/tools/peer-llamacpp"))
    return [command] if shutil.which(command) else None


class Server:
    """A child process and all that it starts; `url` is where it answers."""

    def __init__(self, command, cwd=None, seconds=300):
        self.lines = collections.deque(maxlen=200)  # of its output, the last ones
        self.url = None
        self.address = threading.Event()
        self.child = subprocess.Popen([str(part) for part in command], cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, start_new_session=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        try:
            self.wait(time.monotonic() + seconds)
        except BaseException:
            self.stop()
            raise

    def read(self):
        for line in self.child.stdout:
            text = line.decode(errors="replace")
            self.lines.append(text)
            if not self.url and (found := re.search(r"http://(127\.0\.0\.1:[1-9]\d*)", text)):
                self.url = "http://" + found.group(1)
                self.address.set()
        self.address.set()

    def wait(self, deadline):
        self.address.wait(max(0, deadline - time.monotonic()))
        while time.monotonic() < deadline and self.url and self.child.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)  # it is still loading
        raise RuntimeError("the server did not come up:\n" + "".join(self.lines))

    def stop(self):
        """Asks it to end, then ends it."""
        for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.child.pid, number)  # its own group: start_new_session
            except ProcessLookupError:
                pass
            try:
                self.child.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            if number == signal.SIGTERM:
                continue  # what it started may live on
        self.reader.join(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
