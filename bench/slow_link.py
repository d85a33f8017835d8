#!/usr/bin/env python3
"""Prompts over a slow network: two workers in two network namespaces, joined by a veth pair with a limited rate.

    bench/run slow-link MODEL.gguf [--rates 1gbit,unlimited] [--pairs 5] [--prompt-tokens 512] [--threads 1] [--csv FILE]

Needs root, `ip` and `tc`; without them it says so and is skipped. One server for each of `--overlap off`, `on` and `auto` is started at each rate: its
head and one worker in one namespace, the other worker in the other, so that all sums cross the link. The servers get the same prompts
of random token ids in turn (A B C A B C ...); a prompt's figure is its tokens over the time to the first token.

Printed beside the medians: what the link and the processors could do at most. `link`: the rate over the bytes that a token moves, counted at the
interface; `compute`: the speed without overlap on the unlimited link. Without overlap their times add up, with it the larger one is left at best.
The machine should do nothing else: two workers with a thread each need two cores.

Links are plain text, so the program takes loopback addresses only. The far namespace therefore has no loopback of its own: there 127.0.0.1
is routed over the veth to the near one.
"""
import argparse
import contextlib
import csv
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

from servers import ROOT, Server, runnable

MODES = ("off", "on", "auto")
NEAR_LINK, FAR_LINK = "shoal-near", "shoal-far"
LIMIT = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def bits_per_second(rate):
    number = rate.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(number) * LIMIT[rate[len(number):]]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Namespaces:
    """Two network namespaces with a veth pair between them; `limit` shapes both directions."""

    def __init__(self):
        self.near, self.far = f"shoal-near-{os.getpid()}", f"shoal-far-{os.getpid()}"

    def __enter__(self):
        try:
            for name in (self.near, self.far):
                run("ip", "netns", "add", name)
            run("ip", "link", "add", NEAR_LINK, "netns", self.near, "type", "veth", "peer", "name", FAR_LINK, "netns", self.far)
            for name, link, address in ((self.near, NEAR_LINK, "10.77.0.1/30"), (self.far, FAR_LINK, "10.77.0.2/30")):
                inside = ("ip", "netns", "exec", name)
                run(*inside, "ip", "link", "set", "lo", "up")
                run(*inside, "ip", "link", "set", link, "up")
                run(*inside, "ip", "address", "add", address, "dev", link)
                # 127.0.0.1 may come and go over the link, and may be bound where it is not an own address.
                run(*inside, "sh", "-c", f"cd /proc/sys/net/ipv4 && echo 1 > conf/all/route_localnet && echo 1 > conf/{link}/route_localnet && "
                                         f"echo 1 > conf/{link}/accept_local && echo 1 > ip_nonlocal_bind")
            inside = ("ip", "netns", "exec", self.far, "ip", "route")
            run(*inside, "delete", "local", "127.0.0.0/8", "table", "local")
            run(*inside, "delete", "local", "127.0.0.1", "table", "local")
            run(*inside, "add", "127.0.0.1/32", "via", "10.77.0.1", "dev", FAR_LINK, "src", "10.77.0.2")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in (self.near, self.far):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def limit(namespaces, rate):
    for name, link in zip(namespaces, (NEAR_LINK, FAR_LINK)):
        subprocess.run(["ip", "netns", "exec", name, "tc", "qdisc", "delete", "dev", link, "root"], capture_output=True)
        if rate != "unlimited":
            run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", link, "root", "tbf", "rate", rate, "burst", "128kb", "limit", "4mb")


@contextlib.contextmanager
def far_worker(command, namespace):
    """Tries until the head is there."""
    again = ["sh", "-c", 'until "$@" 2>/dev/null; do sleep 0.3; done', "sh"]
    child = subprocess.Popen(["ip", "netns", "exec", namespace, *again, *map(str, command)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


class Comparison:
    def __init__(self, arguments):
        self.arguments = arguments
        self.namespaces = arguments.inside.split(",")
        self.shoal = runnable(arguments.shoal)
        self.load = runnable(arguments.load or pathlib.Path(arguments.shoal).resolve().parent / "shoal-load")
        self.servers = {}
        self.rows = []
        self.seed = 0
        metadata = json.loads(subprocess.run([*self.shoal, "inspect", str(arguments.model), "--json"], capture_output=True, check=True).stdout)
        sizes = [value for key, value in metadata["metadata"].items() if key.endswith(".vocab_size")]
        self.ids = f"300-{sizes[0] - 1}" if sizes and sizes[0] > 300 else "3-99"

    def start(self, stack, folder):
        for number, mode in enumerate(MODES):
            token, port = folder / mode, 7500 + number
            token.write_text(os.urandom(16).hex() + "\n")
            stack.enter_context(far_worker([*self.shoal, "worker", "--join", f"127.0.0.1:{port}", "--token-file", token, "--threads",
                                            self.arguments.threads, "--name", "far-worker"], self.namespaces[1]))
            self.servers[mode] = stack.enter_context(Server(
                [*self.shoal, "serve", self.arguments.model, "--port", 0, "--workers", 1, "--wait-for", 1, "--cluster-port", port, "--token-file",
                 token, "--threads", self.arguments.threads, "--overlap", mode, "--no-prefix-cache", "--no-speculate", "--step-rows",
                 self.arguments.step_rows]))

    def prompt(self, mode, seed):
        """Tokens per second of one prompt, and the bytes that each moved towards the far worker."""
        def sent():
            return int(pathlib.Path(f"/sys/class/net/{NEAR_LINK}/statistics/tx_bytes").read_text())
        before = sent()
        done = subprocess.run([*self.load, self.servers[mode].url, "--clients", "1", "--requests", "1", "--prompt-tokens",
                               str(self.arguments.prompt_tokens), "--token-ids", "--id-range", self.ids, "--max-tokens", "1", "--ignore-eos",
                               "--seed", str(seed), "--json"], capture_output=True, text=True, timeout=1200)
        report = json.loads(done.stdout)
        if report["failed"]:
            raise RuntimeError(f"--overlap {mode}: {report['failure_examples']}\n" + "".join(self.servers[mode].lines))
        return self.arguments.prompt_tokens / report["ttft_ms"]["p50"] * 1e3, (sent() - before) / self.arguments.prompt_tokens

    def measure(self, rate):
        limit(self.namespaces, rate)
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            self.start(stack, pathlib.Path(folder))
            return self.pairs(rate)

    def pairs(self, rate):
        figures, moved = {mode: [] for mode in MODES}, []
        for pair in range(self.arguments.pairs + self.arguments.warmup):
            self.seed += 1
            for mode in MODES:
                speed, moves = self.prompt(mode, self.seed)
                if pair < self.arguments.warmup:
                    continue  # memory is touched, and auto makes up its mind
                figures[mode].append(speed)
                moved.append(moves)
                self.rows.append([rate, pair, mode, f"{speed:.2f}", f"{moves:.0f}"])
                print(f"  {rate}, --overlap {mode}: {speed:.1f} tokens/s", file=sys.stderr, flush=True)
        return figures, statistics.median(moved)

    def compare(self):
        rates = self.arguments.rates.split(",")
        results = {rate: self.measure(rate) for rate in rates}
        for rate, (figures, moved) in results.items():
            print(f"{rate}: {moved / 1e3:.0f} kB a token each way", flush=True)
            medians = {mode: statistics.median(figures[mode]) for mode in MODES}
            for mode in MODES:
                ratio = statistics.median(a / b for a, b in zip(figures[mode], figures["off"]))
                print(f"  --overlap {mode:5} {medians[mode]:8.1f} tokens/s {ratio:6.2f}x", flush=True)
            if rate == "unlimited" or "unlimited" not in results:
                continue
            link = moved * 8 / bits_per_second(rate)
            compute = 1 / statistics.median(results["unlimited"][0]["off"])
            print(f"  bounds: link {1 / link:.0f}, compute {1 / compute:.0f}; one after the other {1 / (link + compute):.0f}, overlapped "
                  f"{1 / max(link, compute):.0f} tokens/s", flush=True)


def inside(arguments):
    comparison = Comparison(arguments)
    print(f"{arguments.model.name}: prompts of {arguments.prompt_tokens} tokens in steps of {arguments.step_rows}, 2 workers with {arguments.threads} "
          f"thread(s) each, medians of {arguments.pairs} pairs", flush=True)
    try:
        comparison.compare()
    finally:
        if arguments.csv:
            with arguments.csv.open("w", newline="") as file:
                csv.writer(file).writerows([["rate", "pair", "overlap", "tokens_per_s", "bytes_per_token"], *comparison.rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--shoal", default=ROOT / "build/release/shoal")
    parser.add_argument("--load", help="the load generator (default: shoal-load beside Shoal)")
    parser.add_argument("--rates", default="1gbit,unlimited", help="of the link; `unlimited` gives the bound of the processors")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3, help="rounds before the first that counts, at each rate")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--step-rows", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # the namespaces, near and far: this process runs in the near one
    arguments = parser.parse_args()
    if arguments.inside:
        return inside(arguments)
    missing = [name for name in ("ip", "tc") if not shutil.which(name)]
    if os.geteuid() != 0 or missing:
        print("slow_link: skipped: " + (f"{' and '.join(missing)} missing" if missing else "network namespaces need root"))
        return 0
    with Namespaces() as namespaces:
        return subprocess.run(["ip", "netns", "exec", namespaces.near, sys.executable, __file__, *sys.argv[1:], "--inside",
                               f"{namespaces.near},{namespaces.far}"]).returncode


if __name__ == "__main__":
    sys.exit(main())
