#!/usr/bin/env python3
"""The speed table: Shoal beside its peers on one machine in one run.

    bench/table.py MODEL.gguf [--rows decode,prefill,...] [--pairs 5] [--csv FILE] [--shoal BIN]
    bench/table.py --make-models DIR        makes the model files of the table (the 1.1 B Llama shape, random weights)

Machines are noisy, so a figure is never one absolute time: each round runs Shoal and its peers one after the other
(A B A B ...) with the same threads on the same cores; the table shows the medians and the median of the rounds' ratios
(above 1 is in Shoal's favour), and beside them what the machine could do at most: all weights read once a step at the
bandwidth measured beside each round, all products at the measured int8 rate. Every peer's own warm-up is left on.

Rows
    decode    1 sequence                                   prefill   a prompt of 128 tokens
    batch     4, 8, 16 sequences                           split     2 workers x 1 thread against 1 process x 2 threads
    rpc       the same against llama.cpp over RPC          dllama    the same against distributed-llama
    types     other weight types: MODEL's shape as 1b-q8_0.gguf, 1b-q4_k_m.gguf ... beside it or in --models DIR
    pipeline  2 stages, 8 sequences: how busy both workers are, and against a tensor split
    tiny      models of 0.3 and 3 M parameters             start     process start to first token, files cached

Peers are found through the environment; a peer that is missing is named and left out.
    SHOAL_PEER_LLAMACPP         a command that runs a program where llama.cpp is installed (../shared/tools/peer-llamacpp)
    SHOAL_PEER_IK               folder with ik_llama.cpp's llama-bench and llama-batched-bench
    SHOAL_PEER_DLLAMA           distributed-llama's program, with SHOAL_PEER_DLLAMA_MODEL and SHOAL_PEER_DLLAMA_TOKENIZER:
                                the same shape in its Q40 format
"""
import argparse
import csv
import dataclasses
import json
import os
import pathlib
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Callable

from servers import peer_command, runnable  # which also makes an end from outside an exception here

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GROUPS = ("decode", "prefill", "batch", "split", "rpc", "dllama", "types", "pipeline", "tiny", "start")
PROMPT, GENERATE = 128, 32  # tokens of the prefill and of the decode measurement
TINY = 64                   # tokens that the models of microseconds a step generate
BATCH_PROMPT = 8            # tokens that each sequence of a batch starts with
BATCH = {4: 32, 8: 24, 16: 16}  # sequences -> tokens that each generates: about equal times
TYPES_GENERATE = 16         # there are many types
ATTEMPTS = 3                # a peer now and then ends without figures on a busy machine: it is asked again
BEYOND_CACHES = 256 << 20   # bytes; the weights of a smaller model are not read from memory at every step


class Failed(Exception):
    """A measurement that gave no figure; the text says why."""


class Processes:
    """Starts programs on the cores of the measurement, each with a deadline, and ends every one of them by its own id."""

    def __init__(self, cores, timeout):
        self.cores, self.timeout, self.live = cores, timeout, []
        self.environment = dict(os.environ, LC_ALL="C")  # the C locale: a point in decimal fractions

    def start(self, command, cwd=None, **streams):
        # A session of its own, so that a wrapper and what it started are ended together.
        process = subprocess.Popen([str(part) for part in command], cwd=cwd, env=self.environment, start_new_session=True,
                                   stdin=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, self.cores), **streams)
        self.live.append(process)
        return process

    def end(self, process):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.live.remove(process)

    def end_all(self):
        for process in list(self.live):
            self.end(process)

    def output(self, command, cwd=None, timeout=None, errors_too=False):
        process = self.start(command, cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        try:
            out, err = process.communicate(timeout=timeout or self.timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"{short(command)}: no end after {timeout or self.timeout} s") from None
        finally:
            self.end(process)
        if process.returncode != 0:
            raise Failed(f"{short(command)}: exit {process.returncode}: {last_line(err) or last_line(out)}")
        return out + err if errors_too else out

    def server(self, command, port, cwd=None):
        """Starts a server and waits until it listens; a connection to try would be taken for a client."""
        process = self.start(command, cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not listening(port):
            if process.poll() is not None or time.monotonic() > deadline:
                self.end(process)
                raise Failed(f"{short(command)}: does not listen on port {port}")
            time.sleep(0.01)
        return process

    def first_byte_ms(self, enter, command, cwd=None):
        """Milliseconds from the start of the program itself (not of what enters its environment) to its first output."""
        stamped = [*enter, "bash", "-c", 'echo "started $EPOCHREALTIME" >&2; exec "$@"', "_", *command]
        with tempfile.TemporaryFile(mode="w+", errors="replace") as errors:
            process = self.start(stamped, cwd, stdout=subprocess.PIPE, stderr=errors)
            try:
                ready, _, _ = select.select([process.stdout], [], [], self.timeout)
                first = os.read(process.stdout.fileno(), 1) if ready else b""
                now = time.time()
                process.communicate(timeout=self.timeout)
            except subprocess.TimeoutExpired:
                raise Failed(f"{short(command)}: no end after {self.timeout} s") from None
            finally:
                self.end(process)
            errors.seek(0)
            text = errors.read()
        started = re.search(r"^started ([\d.]+)$", text, re.MULTILINE)
        if not first or not started:
            raise Failed(f"{short(command)}: ended with {process.returncode} and no output")
        return (now - float(started[1])) * 1e3


def short(command):
    return " ".join(pathlib.Path(part).name if "/" in str(part) else str(part) for part in command)[:160]


def last_line(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port):
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(fields[1].endswith(f":{port:04X}") and fields[3] == "0A" for fields in map(str.split, lines))


class Shoal:
    def __init__(self, processes, program, environment):
        self.processes, self.environment = processes, environment
        self.program = program
        self.bandwidth = {}    # threads -> bytes a second, the best seen
        self.int8 = {}         # threads -> multiply-adds a second
        self.multiplies = {}   # model -> multiply-adds of a token (layers, vocabulary), or None where they are not int8

    def output(self, model, command, *arguments):
        return self.processes.output([*self.environment, self.program, command, model, *arguments], cwd=model.parent)

    def knows(self, flag):
        return flag in self.processes.output([*self.environment, self.program, "bench", "--help"])

    def bench(self, model, threads, sequences=1, prompt=PROMPT, generate=GENERATE, workers=0, extra=()):
        """Figures by name; a prompt or an answer of 1 token leaves that figure out."""
        text = self.output(model, "bench", "--threads", threads, "--sequences", sequences, "--prompt", prompt,
                           "--generate", generate, "--rounds", 1, "--workers", workers, *extra, "--json")
        read = json.loads(text)
        total = threads * max(workers, 1)
        bandwidth = read["bounds"]["read_bytes_per_s"]  # of this very minute: some machines' memory is not the same in the next
        self.bandwidth[total] = max(self.bandwidth.get(total, 0), bandwidth)
        figures = {"busy": read.get("busy", [])}
        blocks, vocabulary = self.multiplies_of(model) or (0, 0)
        int8 = self.int8.get(total, 0) if blocks else 0
        if generate > 1:
            figures["decode"] = read["decode_tokens_per_s"]
            if figures["decode"] is None:
                raise Failed("the sequences never decoded all at once")
        if prompt > BATCH_PROMPT:
            figures["prefill"] = read["prefill_tokens_per_s"]
        if read["step_bytes"] > BEYOND_CACHES:
            bounds = [read["bounds"]["decode_tokens_per_s"]]
            figures["decode bound"] = min([*bounds, int8 / (blocks + vocabulary)] if int8 else bounds)
            if int8:
                figures["prefill bound"] = int8 / (blocks + vocabulary / prompt)
        return figures

    def multiplies_of(self, model):
        if model not in self.multiplies:
            tensors = json.loads(self.output(model, "inspect", "--json"))["tensors"]
            matrices = {t["name"]: t for t in tensors if len(t["shape"]) == 2}
            size = lambda t: t["shape"][0] * t["shape"][1]
            blocks = [t for name, t in matrices.items() if name.startswith("blk.")]
            vocabulary = matrices.get("output.weight") or matrices["token_embd.weight"]
            floats = any(t["type"] in ("F32", "F16", "BF16") for t in blocks)
            self.multiplies[model] = None if floats else (sum(map(size, blocks)), size(vocabulary))
        return self.multiplies[model]

    def measure_bounds(self, counts):
        """As many copies of linear_bench at once as there are threads; each prints what its core reaches."""
        program = pathlib.Path(self.program).parent / "bench/linear_bench"
        if not program.exists():
            raise Failed(f"{program} is not built: no int8 bound, and the read bound is only what shoal bench says")
        command = [*self.environment, program, "--types", "q4_0", "--shapes", "2048x2048", "--rows", 1]
        for count in counts:
            copies = [self.processes.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                      for _ in range(count)]
            try:
                lines = [copy.communicate(timeout=self.processes.timeout)[0] for copy in copies]
            except subprocess.TimeoutExpired:
                raise Failed("linear_bench: no end") from None
            finally:
                for copy in copies:
                    self.processes.end(copy)
            rates = [re.search(r"memory read ([\d.]+) GB/s, int8 (\d+) G multiply-adds/s", line) for line in lines]
            if not all(rates):
                raise Failed("linear_bench printed no rates")
            self.bandwidth[count] = sum(float(rate[1]) for rate in rates) * 1e9
            self.int8[count] = sum(float(rate[2]) for rate in rates) * 1e9


class LlamaCpp:
    """llama.cpp, or its fork ik_llama.cpp: both have the same two programs. `extra`: arguments that a program gets besides."""

    def __init__(self, processes, name, command, extra=None):
        self.processes, self.name, self.command, self.extra = processes, name, command, extra or {}

    def run(self, model, program, *arguments, errors_too=False):
        command = [*self.command(program), "-m", model.name, *self.extra.get(program, []), *arguments]
        return self.processes.output(command, cwd=model.parent, errors_too=errors_too)

    def single(self, model, threads, prompt=PROMPT, generate=GENERATE, extra=()):
        text = self.run(model, "llama-bench", "-t", threads, "-p", prompt, "-n", generate, "-r", 1, *extra, "-o", "json")
        tests = json.loads(text)
        return {"prefill" if test["n_prompt"] else "decode": test["avg_ts"] for test in tests}

    def batch(self, model, threads, sequences, generate=GENERATE):
        context = (BATCH_PROMPT + generate) * sequences
        text = self.run(model, "llama-batched-bench", "-t", threads, "-c", context, "-b", 512,
                        "-npp", BATCH_PROMPT, "-ntg", generate, "-npl", sequences, errors_too=True)
        rows = [line.split("|") for line in text.splitlines() if re.match(rf"\|\s*{BATCH_PROMPT} \|\s*{generate} \|", line)]
        if not rows:
            raise Failed(f"{self.name}: llama-batched-bench printed no figures")
        return {"decode": float(rows[-1][8])}

    def rpc(self, model, mode):
        """Two servers with one thread each; a server takes a new client only when the last has gone, so new ones each time."""
        servers, ports = [], [free_port(), free_port()]
        try:
            for port in ports:
                serve = [*self.command("ggml-rpc-server"), "-H", "127.0.0.1", "-p", port, "-t", 1]
                servers.append(self.processes.server(serve, port, cwd=model.parent))
            addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
            return self.single(model, 1, extra=["-rpc", addresses, "-ngl", 99, "-sm", mode])
        finally:
            for server in servers:
                self.processes.end(server)

    def start_ms(self, model, threads):
        enter = self.command("")[:-1]
        return {"start": self.processes.first_byte_ms(
            enter, ["llama-completion", "-m", model.name, "-p", "Once upon a time", "-n", "1", "-t", str(threads), "-c", "512",
                    "--no-warmup", "--no-display-prompt", "-no-cnv", "--temp", "0", "--ignore-eos"], cwd=model.parent)}


class DistributedLlama:
    name = "distributed-llama"

    def __init__(self, processes, program, model, tokenizer):
        self.processes, self.program = processes, program
        self.model, self.tokenizer = pathlib.Path(model).resolve(), pathlib.Path(tokenizer).resolve()

    def split(self):
        """The root and one worker, one thread each. Q80 between the nodes is the only form it has for Q40 weights."""
        port, cwd = free_port(), self.model.parent
        worker = self.processes.server([*self.program, "worker", "--host", "127.0.0.1", "--port", port, "--nthreads", 1],
                                       port, cwd)
        try:
            text = self.processes.output(
                [*self.program, "inference", "--model", self.model, "--tokenizer", self.tokenizer,
                 "--prompt", "a" + " a" * (PROMPT - 1), "--steps", PROMPT + GENERATE, "--nthreads", 1, "--max-seq-len", 512,
                 "--buffer-float-type", "q80", "--temperature", 0, "--workers", f"127.0.0.1:{port}"], cwd)
        finally:
            self.processes.end(worker)
        read = re.search(r"Evaluation\n.*?tokens/s: ([\d.]+).*?Prediction\n.*?tokens/s: ([\d.]+)", text, re.DOTALL)
        if not read:
            raise Failed(f"{self.name} printed no figures: {last_line(text)}")
        return {"prefill": float(read[1]), "decode": float(read[2])}


@dataclasses.dataclass
class Side:
    name: str
    measure: Callable[[], dict]
    reach: dict = dataclasses.field(default_factory=dict)  # figure -> the ratio that Shoal is to reach


@dataclasses.dataclass
class Match:
    group: str
    work: dict                     # figure -> what its row is called
    ours: Callable[[], dict]
    against: list
    unit: str = "tokens/s"         # of "ms" less is better


class Table:
    COLUMNS = ("group", "work", "unit", "shoal", "bound", "peer", "peer_value", "ratio", "reach", "shoal_rounds", "peer_rounds",
               "bound_rounds")

    def __init__(self, rounds, file):
        self.rounds, self.file, self.failures = rounds, file, 0
        self.writer = csv.writer(file)
        self.writer.writerow(self.COLUMNS)

    def note(self, text):
        print(f"# {text}", flush=True)

    def head(self):
        print(f"{'work':46} {'shoal':>8} {'of bound':>9}  {'peer':26} {'peer':>8} {'ratio':>7} {'reach':>6}", flush=True)

    def write(self, *cells):
        self.writer.writerow(cells)
        self.file.flush()

    def attempt(self, what, measure):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return measure()
            except (Failed, OSError) as failure:
                self.note(f"{what}, attempt {attempt} of {ATTEMPTS}: {failure}")
        self.failures += 1
        return self.note(f"{what}: left out")

    def play(self, match):
        sides, ours, theirs = list(match.against), [], {side.name: [] for side in match.against}
        for _ in range(self.rounds):
            figures = self.attempt(match.group, match.ours)
            if figures is None:
                return
            ours.append(figures)
            for side in list(sides):
                figures = self.attempt(f"{match.group}, {side.name}", side.measure)
                if figures is None:
                    sides.remove(side)
                else:
                    theirs[side.name].append(figures)
        for figure, work in match.work.items():
            for side in sides:
                self.row(match, figure, work, ours, side, theirs[side.name])
        self.busy(match, ours)

    def row(self, match, figure, work, ours, side, theirs):
        a, b = [x[figure] for x in ours], [x[figure] for x in theirs]
        ratio = statistics.median(y / x if match.unit == "ms" else x / y for x, y in zip(a, b))
        bounds = [x.get(f"{figure} bound", 0) for x in ours]
        bound = statistics.median(bounds)
        share = f"{statistics.median(x / y for x, y in zip(a, bounds)) * 100:.0f} %" if all(bounds) else ""
        reach = side.reach.get(figure)
        mark = "" if reach is None else f"{reach:.2f}" + ("" if ratio >= reach else " !")
        print(f"{work:46} {statistics.median(a):8.1f} {share:>9}  {side.name:26} {statistics.median(b):8.1f} {ratio:6.2f}x "
              f"{mark:>6}", flush=True)
        self.write(match.group, work, match.unit, f"{statistics.median(a):.2f}", f"{bound:.2f}" if bound else "", side.name,
                   f"{statistics.median(b):.2f}", f"{ratio:.3f}", reach or "", " ".join(f"{x:.2f}" for x in a),
                   " ".join(f"{x:.2f}" for x in b), " ".join(f"{x:.2f}" for x in bounds) if bound else "")

    def busy(self, match, ours):
        ranks = [statistics.median(values) for values in zip(*(x.get("busy", []) for x in ours))]
        if match.group == "pipeline" and ranks:
            print(f"{'busy share of the workers':46} " + " ".join(f"{share * 100:.0f} %" for share in ranks), flush=True)
            for rank, share in enumerate(ranks):
                self.write(match.group, f"busy share of worker {rank}", "share", f"{share:.3f}", *[""] * 8)


def find_peers(processes, environment, table):
    """llama.cpp, ik_llama.cpp, distributed-llama; None for each that does not run here."""
    def runs(peer):
        try:
            processes.output([*peer.command("llama-bench"), "--help"], timeout=1800)  # the first call may install it
            return peer
        except (Failed, OSError) as failure:
            return table.note(f"{peer.name} is left out: {failure}")

    llamacpp = ik = dllama = None
    if command := peer_command():
        llamacpp = runs(LlamaCpp(processes, "llama.cpp", lambda program: [*command, program]))
    if folder := os.environ.get("SHOAL_PEER_IK"):
        # Weights repacked at load: its fastest form. Its second program prints to its log, and keeps that in a file.
        ik = runs(LlamaCpp(processes, "ik_llama.cpp", lambda program: [*environment, f"{folder}/{program}"],
                           {"llama-bench": ["-rtr", 1], "llama-batched-bench": ["-rtr", "--log-file", "/dev/null"]}))
    settings = [os.environ.get(f"SHOAL_PEER_DLLAMA{part}") for part in ("", "_MODEL", "_TOKENIZER")]
    if all(settings):
        dllama = DistributedLlama(processes, [*environment, settings[0]], *settings[1:])
    for name, peer, how in (("llama.cpp", llamacpp, "SHOAL_PEER_LLAMACPP"), ("ik_llama.cpp", ik, "SHOAL_PEER_IK"),
                            ("distributed-llama", dllama, "SHOAL_PEER_DLLAMA, _MODEL, _TOKENIZER")):
        if peer is None:
            table.note(f"no {name} ({how})")
    return llamacpp, ik, dllama


def plural(count, noun):
    return f"{count} {noun}{'' if count == 1 else 's'}"


def single_matches(us, model, wanted, threads, llamacpp, ik):
    prompt, generate = PROMPT if "prefill" in wanted else 0, GENERATE if "decode" in wanted else 0
    names = {"decode": "decode, 1 sequence", "prefill": f"prefill {PROMPT}"}
    for t in threads if prompt or generate else []:
        work = {figure: f"{name}, {plural(t, 'thread')}" for figure, name in names.items() if figure in wanted}
        against = []
        if llamacpp:
            against.append(Side("llama.cpp", lambda t=t: llamacpp.single(model, t, prompt, generate),
                                {"decode": 1.3 if t == 1 else 1.0, "prefill": 2.0}))
        if ik:
            against.append(Side(ik.name, lambda t=t: ik.single(model, t, prompt, generate), {"decode": 1.0, "prefill": 1.3}))
        ours = lambda t=t: us.bench(model, t, prompt=prompt or BATCH_PROMPT, generate=generate or 1)
        yield Match("+".join(work), work, ours, against)


def batch_matches(us, model, threads, llamacpp, ik):
    for (count, generate), reach in zip(BATCH.items(), (5.0, 3.0, 2.3)):
        against = []
        if llamacpp:
            against.append(Side("llama.cpp", lambda n=count, g=generate: llamacpp.batch(model, threads, n, g), {"decode": reach}))
        if ik:
            against.append(Side(ik.name, lambda n=count, g=generate: ik.batch(model, threads, n, g), {"decode": 1.8}))
        yield Match("batch", {"decode": f"decode, {count} sequences, {plural(threads, 'thread')}"},
                    lambda n=count, g=generate: us.bench(model, threads, n, BATCH_PROMPT, g), against)


def split_matches(us, model, wanted, llamacpp, dllama):
    against = []
    if "split" in wanted:
        against.append(Side("shoal, 1 process x 2 threads", lambda: us.bench(model, 2), {"decode": 0.9, "prefill": 0.95}))
    if "rpc" in wanted and llamacpp:
        for mode, reach in (("tensor", {"decode": 1.5, "prefill": 5.0}), ("layer", {"decode": 2.7, "prefill": 10.0})):
            against.append(Side(f"llama.cpp RPC, {mode} split", lambda m=mode: llamacpp.rpc(model, m), reach))
    if "dllama" in wanted and dllama:
        against.append(Side("distributed-llama, 2 nodes", dllama.split, {"decode": 2.3, "prefill": 3.5}))
    if against:
        yield Match("split", {"decode": "decode, 2 workers x 1 thread", "prefill": f"prefill {PROMPT}, 2 workers x 1 thread"},
                    lambda: us.bench(model, 1, workers=2), against)


def type_matches(us, folder, types, threads, llamacpp, ik, table):
    prefill = {"q8_0": 4.0, "q4_k_m": 1.8, "q6_k": 2.0, "f16": 2.5}
    for kind in types:
        model = folder / f"1b-{kind}.gguf"
        if not model.exists():
            table.note(f"types: no {model}; --make-models DIR makes it")
            continue
        name, steps = kind.upper(), TYPES_GENERATE
        theirs = lambda measure, reach: [Side("llama.cpp", measure, reach)] if llamacpp else []
        yield Match("types", {"decode": f"{name}: decode, 1 sequence, 1 thread"},
                    lambda m=model: us.bench(m, 1, 1, BATCH_PROMPT, steps),
                    theirs(lambda m=model: llamacpp.single(m, 1, 0, steps), {"decode": 1.0}))
        both = theirs(lambda m=model: llamacpp.single(m, threads, PROMPT, steps),
                      {"decode": 1.0, "prefill": prefill.get(kind, 1.0)})
        if ik:
            both.append(Side(ik.name, lambda m=model: ik.single(m, threads, PROMPT, steps),
                             {} if kind == "f16" else {"prefill": 1.0}))
        yield Match("types", {"decode": f"{name}: decode, 1 sequence, {plural(threads, 'thread')}",
                              "prefill": f"{name}: prefill {PROMPT}, {plural(threads, 'thread')}"},
                    lambda m=model: us.bench(m, threads, 1, PROMPT, steps), both)
        yield Match("types", {"decode": f"{name}: decode, 4 sequences, {plural(threads, 'thread')}"},
                    lambda m=model: us.bench(m, threads, 4, BATCH_PROMPT, steps),
                    theirs(lambda m=model: llamacpp.batch(m, threads, 4, steps), {"decode": 2.3}))


def pipeline_matches(us, model, table):
    if not us.knows("--stages"):
        return table.note("pipeline: this program knows no --stages")
    ours = lambda stages: us.bench(model, 1, 8, prompt=BATCH_PROMPT, workers=2, extra=stages)
    yield Match("pipeline", {"decode": "decode, 8 sequences, 2 workers, 2 stages"}, lambda: ours(["--stages", 2]),
                [Side("shoal, tensor split", lambda: ours([]))])


def tiny_matches(us, models, threads, llamacpp):
    for model in models if llamacpp else []:
        for t in threads:
            for count in (1, 16):
                measure = ((lambda m=model, t=t: llamacpp.single(m, t, 0, TINY)) if count == 1 else
                           (lambda m=model, t=t, n=count: llamacpp.batch(m, t, n, TINY)))
                yield Match("tiny", {"decode": f"{model.stem}: {plural(count, 'sequence')}, {plural(t, 'thread')}"},
                            lambda m=model, t=t, n=count: us.bench(m, t, n, prompt=BATCH_PROMPT, generate=TINY),
                            [Side("llama.cpp", measure)])


def start_matches(us, processes, models, threads, llamacpp):
    for model in models if llamacpp else []:
        command = [us.program, "run", str(model), "-p", "Once upon a time", "-n", "1", "--temp", "0", "--ignore-eos",
                   "--threads", str(threads)]
        yield Match("start", {"start": f"{model.stem}: start to first token, ms"},
                    lambda m=model, c=command: {"start": processes.first_byte_ms(us.environment, c, m.parent)},
                    [Side("llama.cpp", lambda m=model: llamacpp.start_ms(m, threads))], unit="ms")


def make_models(processes, folder, types):
    """Written under another name and renamed, so that a file that is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    generated = [kind for kind in ("q4_0", "f16", "q8_0") if kind in ("q4_0", "f16") or kind in types]
    for kind in generated + [kind for kind in types if kind not in generated]:
        model, part = folder / f"1b-{kind}.gguf", folder / f"part-1b-{kind}.gguf"
        if model.exists():
            continue
        print(f"# making {model}", flush=True)
        if kind in generated:
            processes.output([SHARED / "tools/make-synthetic", part, kind], folder, timeout=1800)
        else:
            processes.output([*(peer_command() or ["llama.cpp"]), "llama-quantize", "--allow-requantize", "1b-f16.gguf",
                              part.name, kind.upper()], folder, timeout=1800)
        part.rename(model)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, nargs="?", help="the 1.1 B shape in Q4_0")
    parser.add_argument("--shoal", type=pathlib.Path, default=ROOT / "build/release/shoal")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of Shoal and its peers; medians are shown")
    parser.add_argument("--rows", default=",".join(GROUPS))
    parser.add_argument("--threads", default="1,2", help="of the one-process rows; the largest is that of the batch rows")
    parser.add_argument("--types", default="q8_0,q4_k_m,q6_k,f16")
    parser.add_argument("--models", type=pathlib.Path, help="folder of 1b-TYPE.gguf (default: MODEL's)")
    parser.add_argument("--tiny", help="small models, separated by commas (default: the stories models at hand)",
                        default=f"{SHARED}/models/llama-stories260K/stories260K-f32.gguf,"
                                f"{SHARED}/models/llama-stories3M/stories3M-q4_0.gguf")
    parser.add_argument("--make-models", type=pathlib.Path, metavar="DIR", help="make the missing 1b-TYPE.gguf there, and end")
    parser.add_argument("--csv", type=pathlib.Path, default=ROOT / "build/table.csv")
    parser.add_argument("--timeout", type=int, default=300, help="seconds that one program may take")
    arguments = parser.parse_args()
    arguments.types = [kind for kind in arguments.types.lower().split(",") if kind]
    arguments.threads = sorted({int(count) for count in arguments.threads.split(",")})
    arguments.rows = arguments.rows.split(",")
    if unknown := set(arguments.rows) - set(GROUPS):
        parser.error(f"no rows named {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if not arguments.model and not arguments.make_models:
        parser.error("name a model file, or --make-models DIR")
    return arguments


def measure(arguments, processes, table):
    model, wanted, threads = arguments.model.resolve(), arguments.rows, arguments.threads
    program = arguments.shoal.resolve()
    # Where the libraries are missing, what was built in the build environment runs there; these folders it has to see.
    folders = [program, os.environ.get("SHOAL_PEER_DLLAMA", ""), os.environ.get("SHOAL_PEER_DLLAMA_MODEL", "")]
    folders = [str(pathlib.Path(path).resolve().parent) if path else "" for path in folders]
    os.environ["SHOAL_DEV_BIND"] = " ".join(
        [os.environ.get("SHOAL_DEV_BIND", ""), *folders, os.environ.get("SHOAL_PEER_IK", "")])
    environment = runnable(program)[:-1]
    processes.environment = dict(os.environ, LC_ALL="C")
    us = Shoal(processes, str(program), environment)
    llamacpp, ik, dllama = find_peers(processes, environment, table)
    most = max(threads)
    try:
        us.measure_bounds(sorted({*threads, 2}))
    except Failed as failure:
        table.note(str(failure))
    tiny = [path for path in map(pathlib.Path, arguments.tiny.split(",")) if path.exists()]
    table.note(f"{plural(table.rounds, 'round')}, cores {sorted(processes.cores)}, load average {os.getloadavg()[0]:.1f}")
    table.head()
    matches = [single_matches(us, model, wanted, threads, llamacpp, ik)]
    if "batch" in wanted:
        matches.append(batch_matches(us, model, most, llamacpp, ik))
    matches.append(split_matches(us, model, wanted, llamacpp, dllama))
    if "types" in wanted:
        folder = (arguments.models or model.parent).resolve()
        matches.append(type_matches(us, folder, arguments.types, most, llamacpp, ik, table))
    if "pipeline" in wanted:
        matches.append(pipeline_matches(us, model, table))
    if "tiny" in wanted:
        matches.append(tiny_matches(us, tiny, threads, llamacpp))
    if "start" in wanted:
        matches.append(start_matches(us, processes, [model, *tiny[-1:]], most, llamacpp))
    for group in matches:
        for match in group:
            table.play(match)
    for name, unit, rates in (("memory read", "GB/s", us.bandwidth), ("int8 multiply-adds", "G/s", us.int8)):
        for count, rate in sorted(rates.items()):
            table.note(f"bound: {name}, {plural(count, 'thread')}: {rate / 1e9:.1f} {unit}")
            table.write("bound", f"{name}, {plural(count, 'thread')}", unit, f"{rate / 1e9:.2f}", *[""] * 8)


def main():
    arguments = parse()
    available = sorted(os.sched_getaffinity(0))
    processes = Processes(set(available[:max(2, *arguments.threads)]), arguments.timeout)
    begin = time.monotonic()
    try:
        if arguments.make_models:
            make_models(processes, arguments.make_models.resolve(), arguments.types)
            return 0
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            table = Table(arguments.pairs, file)
            measure(arguments, processes, table)
        table.note(f"{time.monotonic() - begin:.0f} s; every round: {arguments.csv}")
        return 1 if table.failures else 0
    except (Failed, OSError) as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        processes.end_all()


if __name__ == "__main__":
    sys.exit(main())
