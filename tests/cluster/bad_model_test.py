#!/usr/bin/env python3
"""Every broken, odd or hostile model file of the catalogue (reliability survey, 3a and 3b), against the real program: exit code 4
and a message that says which file, what in it and, where something can be done, what; never a crash, a hang or a wrong answer.

  G1 to G19, G21 to G27, K1 K2 K3 K5 K6   models_that_are_broken (`run`, `inspect`, `serve`; the case names its entry)
  G2 G31                                  files_that_are_no_models (folders, pipes, devices; all commands)
  G20 G31                                 files_that_change (cut short or replaced while the server runs)
  G28                                     split_sets
  G29                                     what_is_odd_but_works (with K5, K8: odd tokens)
  G30                                     weights_that_are_no_numbers
  G32                                     metadata_of_gigabytes
  K4                                      merges
  K6                                      pre_tokenizers
  K7                                      normalizers
  K8                                      tokens_alike
  K9                                      no_end_token
  K10                                     texts_that_are_hard_to_cut (there is no tokenizer.json in a GGUF file; its regular expressions are)
  any                                     models_changed_at_random, models_cut_anywhere
"""
import concurrent.futures
import os
import pathlib
import random
import re
import struct
import tempfile

from gguf_file import (ARRAY, BOOL, F32, FLOAT32, INT32, STRING, U32, U64, UINT8, UINT32, Gguf, Layout, array, text)
from shoal_process import Server, ends_by_itself, main, run, run_json, shared

TINY = shared("golden/arch/llama-gqa.gguf")
EXPERTS = shared("golden/arch/mixtral.gguf")
SORT = shared("models/gpt2-nano-sort/gpt-nano-sort-f32.gguf")  # byte-level BPE of three tokens, none of which ends a text
SPM = shared("data/tokenizer-vectors/ggml-vocab-llama-spm.gguf")
BPE = shared("data/tokenizer-vectors/ggml-vocab-gpt-2.gguf")
RUN = ["-p", "a", "-n", "2", "--threads", "1", "--ignore-eos", "--temp", "0"]
TOKENS, TYPES, SCORES, MERGES = (f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "scores", "merges"))


def written(folder, content, name="model.gguf"):
    path = pathlib.Path(folder, name)
    path.write_bytes(content.bytes() if isinstance(content, Gguf) else content)
    return path


def in_parallel(check, cases):
    """check(case) for all; the failures together."""
    def reported(case):
        try:
            check(case)
        except Exception as error:
            return f"{case if isinstance(case, int) else case[0]}: {error}"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        failures = [one for one in pool.map(reported, cases) if one]
    assert not failures, f"{len(failures)} cases:\n" + "\n".join(failures)


# --- files that are refused: (case, content, what the message says)

def broken_in_place():
    """Changes of bytes that leave everything else where it is."""
    data = TINY.read_bytes()
    h = Layout(data)

    def put(at, new, old=None):
        return data[:at] + new + data[at + (len(new) if old is None else old):]

    def with_key(raw):
        return data[:16] + U64(h.n_kv + 1) + raw + data[24:]

    for size in (0, 1, 4, 8, 20, 23):
        yield f"G1 {size} bytes", data[:size], "shorter than a GGUF header"
    for start, words in ((b"lmgg", "GGML file"), (b"tjgg", "GGJT file"), (b"\x1f\x8b\x08\x00", "gunzip"), (b"PK\x03\x04", "zip archive"),
                         (b"\x80\x04\x95", "pickle"), (struct.pack("<Q", 2) + b"{}", "safetensors"), (b"XXXX", 'begins with "XXXX"')):
        yield f"G2 {words}", start + data[len(start):], words
    yield "G2 html", b"<!DOCTYPE html><html>", "HTML page"
    yield "G2 lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12\n", "git lfs pull"
    for version in (0, 1, 4, 1000, 2**32 - 1):
        yield f"G3 version {version}", put(4, U32(version)), f"version {version} is not supported"
    yield "G4 big-endian", put(4, struct.pack(">I", 3)), "big-endian GGUF file .version 3"
    yield "G4 byte-swapped", put(0, b"FUGG"), "byte-swapped"
    for count in (2**64 - 1, 2**63, 2**32, len(data), 10**6):
        yield f"G5 n_tensors {count}", put(8, U64(count)), f"{count} tensors cannot be"
        yield f"G5 n_kv {count}", put(16, U64(count)), f"{count} keys cannot be"
    first, kind_at = h.key_at["general.architecture"]
    for size in (0, 65536, 2**32, 2**63, 2**64 - 1, 2**64 - 8):
        yield f"G6 key length {size}", put(first, U64(size)), f"a key of {size} bytes"
    for byte in (b"\0", b"\xff", b" ", b"\n"):
        yield f"G6 key with {byte}", put(first + 10, byte), "characters other than printable ASCII"
    for at in h.lengths[1:40:3]:
        for size in (2**64 - 1, 2**63, 2**40, len(data)):
            yield f"G7 G10 length at {at} is {size}", put(at, U64(size)), f"{size}.*(left|follow|allowed)"
    for kind in (13, 255, 2**32 - 1):
        yield f"G8 value type {kind}", put(kind_at, U32(kind)), f"general.architecture: unknown value type {kind}"
    yield "G8 bool 2", with_key(text("x.b") + U32(BOOL) + b"\2"), "x.b: a truth value of 2"
    yield "G8 bools 2", with_key(text("x.b") + U32(ARRAY) + U32(BOOL) + U64(2) + b"\1\2"), "x.b: a truth value of 2"
    yield "G9 nested arrays", with_key(text("x.n") + U32(ARRAY) + (U32(ARRAY) + U64(1)) * 1000 + U32(4) + U64(0)), "x.n: arrays nested deeper than 4"
    yield "G9 array of an unknown type", with_key(text("x.a") + U32(ARRAY) + U32(77) + U64(1)), "x.a: unknown array element type 77"
    for count in (2**64 - 1, 2**62, 2**61 + 1, len(data)):
        yield f"G10 array of {count}", with_key(text("x.a") + U32(ARRAY) + U32(12) + U64(count)), f"x.a: an array of {count} elements"
    yield "G11 duplicate key", with_key(text("general.architecture") + U32(STRING) + text("llama")), "the key general.architecture is there twice"
    for name, raw in (("0", U32(4) + U32(0)), ("3", U32(4) + U32(3)), ("2147483648", U32(4) + U32(2**31)), ("is int32", U32(5) + U32(32)), ("2097152", U32(4) + U32(2 << 20))):
        yield f"G12 alignment {name}", with_key(text("general.alignment") + raw), f"general.alignment: {name}"
    yield "G11 duplicate tensor", put(h.tensors["blk.1.attn_norm.weight"]["begin"] + 12, b"0"), "tensor blk.0.attn_norm.weight is there twice"
    name, t = next(iter(h.tensors.items()))
    for size in (0, 65, 2**64 - 1):
        yield f"G13 tensor name length {size}", put(t["begin"], U64(size)), f"name of {size} bytes"
    yield "G13 tensor name with NUL", put(t["begin"] + 9, b"\0"), "control characters"
    for dims in (0, 5, 2**32 - 1):
        yield f"G14 {dims} dims", put(t["dims_at"], U32(dims)), f"{name}: {dims} dimensions"
    for dim, words in ((0, "dimension 0 is 0"), (2**63, "dimension 0 is -"), (2**64 - 1, "dimension 0 is -1"), (2**62, "overflows"), (2**40, "do not fit")):
        yield f"G15 dim {dim}", put(t["dims_at"] + 4, U64(dim)), f"{name}: .*{words}"
    yield "G15 G27 dim 1", put(t["dims_at"] + 4, U64(1)), rf"{name}' has the shape \[1, 512\], but \[64, 512\] is needed"
    for kind, words in ((4, "Q4_2 .4. was removed"), (5, "Q4_3"), (31, "Q4_0_4_4"), (33, "Q4_0_8_8"), (36, "IQ4_NL_4_4"), (38, "IQ4_NL_8_8"), (99, "unknown weight type 99"), (2**31, "unknown"), (2**32 - 1, "unknown")):
        yield f"G16 type {kind}", put(t["type_at"], U32(kind)), f"{name}: .*{words}"
    for kind in (12, 14, 10):  # super-blocks of 256 values over rows of 64
        yield f"G17 type {kind}", put(t["type_at"], U32(kind)), f"{name}: .*64.*256"
    for offset, words in ((1, "not a multiple"), (17, "not a multiple"), (len(data), "do not fit"), (2**63, "do not fit"), (2**64 - 32, "do not fit")):
        yield f"G18 G19 offset {offset}", put(t["offset_at"], U64(offset)), f"{name}: its .*{words}"
    yield "G18 overlap", put(h.tensors["output.weight"]["offset_at"], U64(0)), "output.weight: its data overlaps that of token_embd.weight"
    for size in (h.end - 3, h.end, h.end + 40, len(data) // 2, len(data) - 1):
        yield f"G20 cut at {size}", data[:size], "left|cut short|ends before"


def broken_by_content():
    """Files that are laid out properly, with wrong things in them."""
    tiny, experts = Gguf(TINY.read_bytes()), Gguf(EXPERTS.read_bytes())
    number = lambda key, value, kind=UINT32: tiny.but({f"llama.{key}": (kind, U32(value))})
    for layers in (0, 513, 2**32 - 1):
        yield f"G21 {layers} layers", number("block_count", layers), f"llama.block_count' is {layers}, but 1 to 512"
    yield "G21 -1 layers", number("block_count", -1, INT32), "llama.block_count.*-1"
    yield "G21 one layer more", number("block_count", 4), "tensor 'blk.3.attn_norm.weight' is missing"
    for key, values in (("attention.head_count", (0, 3, 2**31, 2**32 - 1)), ("attention.head_count_kv", (0, 3, 8, 2**31)), ("embedding_length", (0, 1, 2**31, 2**32 - 1)),
                        ("feed_forward_length", (0, 1, 2**32 - 1))):
        for value in values:
            yield f"G22 {key} {value}", number(key, value), key if value != 1 else f"{key}|ffn_gate|head_count"
    yield "G22 heads of two layers of three", tiny.but({"llama.attention.head_count_kv": (ARRAY, array(UINT32, [U32(2)] * 2))}), "head_count_kv.* 2 .*3"
    yield "G22 no heads", tiny.but(without=["llama.attention.head_count"]), "head_count"
    yield "G22 heads as text", tiny.but({"llama.attention.head_count": (STRING, text("four"))}), "head_count: is string, must be an integer"
    names, scores, kinds = tiny.strings(TOKENS), tiny.numbers(SCORES), tiny.numbers(TYPES)
    short = {TOKENS: (ARRAY, array(STRING, names[:-1])), SCORES: (ARRAY, array(FLOAT32, scores[:-1])), TYPES: (ARRAY, array(INT32, kinds[:-1]))}
    yield "G23 a token less", tiny.but(short), "tokens' has 511 tokens, but 'token_embd.weight' has 512 rows"
    dims, kind, data = tiny.tensors["output.weight"]
    yield "G23 an output row less", tiny.but(tensors={"output.weight": ([64, 511], kind, data[:-256])}), "'output.weight' has 511 rows, but there are 512 tokens"
    for value in (0, 2**31):
        yield f"G24 context {value}", number("context_length", value), f"llama.context_length: {value} is not in the range"
    for key in ("attention.layer_norm_rms_epsilon", "rope.freq_base"):
        for value in (float("nan"), float("inf"), -1.0, 0.0):
            if value == 0 and key != "rope.freq_base":
                continue  # an epsilon of 0 divides by nothing as long as no vector is all zero
            yield f"G24 {key} {value}", tiny.but({f"llama.{key}": (FLOAT32, F32(value))}), key
    for key, value in (("expert_count", 0), ("expert_count", 2), ("expert_count", 513), ("expert_count", 2**31), ("expert_used_count", 0), ("expert_used_count", 5), ("expert_used_count", 2**31)):
        yield f"G25 {key} {value}", experts.but({f"llama.{key}": (UINT32, U32(value))}), "expert|exps|ffn"
    yield "G25 no expert count", experts.but(without=["llama.expert_count"]), "expert|exps|ffn"
    for arch in ("lamma", "", "LLAMA", "llama\0", "clip", "a" * (1 << 20)):
        yield f"G26 {arch[:8]!r}", tiny.but({"general.architecture": (STRING, text(arch))}), "the architecture '" + re.escape(arch[:40].replace("\0", "\\x00"))
    yield "G26 none", tiny.but(without=["general.architecture"]), "'general.architecture' is missing"
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.2.ffn_down.weight", "output_norm.weight"):
        yield f"G27 without {name}", tiny.but(without=[name]), f"'{name}' is missing"
    dims, kind, data = tiny.tensors["blk.0.attn_q.weight"]
    yield "G27 a vector for a matrix", tiny.but(tensors={"blk.0.attn_q.weight": ([4096], kind, data)}), "attn_q.weight' has the shape"
    yield "G27 integers for weights", tiny.but(tensors={"blk.0.attn_q.weight": (dims, 26, data)}), "attn_q.weight"
    with_tokens = lambda change: tiny.but({TOKENS: (ARRAY, array(STRING, change))})
    for name in ("<0x-1", "<0xZZ>", "<0x1>", "<0x1Z>", "<0x123>", ""):
        yield f"K1 byte token {name}", with_tokens([name.encode() if token == b"<0x41>" else token for token in names]), "token 68 .* is marked as a byte"
    for key in ("bos", "eos", "padding", "unknown", "eot"):
        for value, kind in ((512, UINT32), (10**6, UINT32), (-1, INT32)):
            yield f"K2 {key} {value}", tiny.but({f"tokenizer.ggml.{key}_token_id": (kind, U32(value))}), f"{key}_token_id: {value} is not in the range from 0 to 511"
    yield "K3 short scores", tiny.but({SCORES: (ARRAY, array(FLOAT32, scores[:-1]))}), "scores: has 511 entries for 512 tokens"
    yield "K3 short kinds", tiny.but({TYPES: (ARRAY, array(INT32, kinds[:-1]))}), "token_type: has 511 entries for 512 tokens"
    yield "K3 a kind of 9", tiny.but({TYPES: (ARRAY, array(INT32, kinds[:-1] + [U32(9)]))}), "token_type"
    yield "K3 a score that is none", tiny.but({SCORES: (ARRAY, array(FLOAT32, scores[:-1] + [F32(float("nan"))]))}), "score of token 511 is not a number"
    yield "K5 a token of 1 MB", with_tokens(names[:-1] + [b"a" * (1 << 20)]), "token 511 has 1048576 bytes; at most 65536"
    yield "K5 no tokens", with_tokens([]), "tokens"
    yield "K5 tokens that are numbers", tiny.but({TOKENS: (ARRAY, array(FLOAT32, scores))}), "tokens: is array of float32, must be an array of strings"
    yield "K6 unknown tokenizer", tiny.but({"tokenizer.ggml.model": (STRING, text("Xlama"))}), "the tokenizer 'Xlama' .* is not supported; llama, gpt2 and bert are"
    yield "K6 no tokenizer", tiny.but(without=["tokenizer.ggml.model"]), "the file has no tokenizer .tokenizer.ggml.model is missing"


def refused(arguments, path, words):
    done = ends_by_itself(arguments, [4], named=path.name)
    said = done.stderr.decode(errors="replace")
    assert re.search(words, said), f"says {said[-500:]!r}, not {words!r}"
    assert len(said) < 3000, f"says {len(said)} characters"
    assert done.stdout == b"", done.stdout[:100]


def models_that_are_broken():
    with tempfile.TemporaryDirectory() as folder:
        def check(case):
            number, (name, content, words) = case
            path = written(folder, content, f"broken-{number}.gguf")
            refused(["run", path, *RUN], path, words)
            ends_by_itself(["inspect", path, *(["--json"] if number % 2 else [])], [0, 4], named=path.name)
            if number % 7 == 0:
                refused(["serve", path, "--port", "0", "--workers", str(number % 3)], path, words)
            path.unlink()
        cases = [*broken_in_place(), *broken_by_content()]
        in_parallel(lambda case: check((cases.index(case), case)), cases)


def files_that_are_no_models():
    with tempfile.TemporaryDirectory() as folder:
        fifo = os.path.join(folder, "fifo.gguf")
        os.mkfifo(fifo)
        zero = os.path.join(folder, "zero.gguf")
        os.symlink("/dev/zero", zero)
        loop = os.path.join(folder, "loop.gguf")
        os.symlink(loop, loop)
        for path in (folder, fifo, zero, loop, "/dev/null", "/proc/self/mem", os.path.join(folder, "none.gguf"), "/etc/passwd", folder + "/" + "x" * 300):
            for command in (["run", path, "-p", "a"], ["inspect", path], ["tokenize", path], ["serve", path, "--port", "0"]):
                ends_by_itself(command, [4], named=os.path.basename(path)[:40], seconds=20)


def files_that_change():
    with tempfile.TemporaryDirectory() as folder:
        for workers in ("0", "2"):
            path = written(folder, TINY.read_bytes(), f"changes-{workers}.gguf")
            with Server(path, "--workers", workers) as server:
                fields = dict(prompt="Once upon a time", max_tokens=8, temperature=0)
                before = server.complete(**fields)["choices"]
                for change in (lambda: os.truncate(path, 100), lambda: os.truncate(path, 0), path.unlink, lambda: path.symlink_to("/dev/zero")):
                    change()
                    assert server.complete(**fields)["choices"] == before
                assert server.stop() == 0
            ends_by_itself(["run", path, *RUN], [4], named=path.name)  # now a device


def split_sets():
    tiny = Gguf(TINY.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        def names(stem, count):
            return [pathlib.Path(folder, f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]

        def lay(stem, parts):
            paths = names(stem, len(parts))
            for path, part in zip(paths, parts):
                path.write_bytes(part.bytes())
            return paths

        def says(path, words):
            for command in (["run", path, *RUN], ["inspect", path], ["tokenize", path]):
                done = ends_by_itself(command, [4])
                assert re.search(words, done.stderr.decode()), f"{path.name}: {done.stderr.decode()!r}, not {words!r}"

        parts = tiny.parts(3)
        whole = lay("whole", parts)
        right = run_json("run", TINY, *RUN)
        for path in whole:  # any of them opens the set
            assert run_json("run", path, *RUN)["logits_sha256"] == right["logits_sha256"]
        for gone in range(3):
            paths = lay(f"gone{gone}", parts)
            paths[gone].unlink()
            says(paths[(gone + 1) % 3], f"{re.escape(paths[gone].name)} is missing")
        paths = lay("renamed", parts)
        lone = pathlib.Path(folder, "lone.gguf")
        paths[1].rename(lone)
        says(lone, "lone.gguf.*one part of 3.*names")
        paths = lay("swapped", [parts[0], parts[2], parts[1]])
        says(paths[0], "swapped-00002.*split.no: 2, but this is part 1")
        paths = lay("twice", [parts[0], parts[1], parts[1]])
        says(paths[0], "twice-00003.*split.no: 1, but this is part 2")
        paths = lay("fewer", [part.but({"split.count": (2, struct.pack("<H", 2))}) for part in parts])
        says(paths[0], "fewer-00001.*split.count: 2, but its name says 3 files")
        paths = lay("more", [part.but({"split.count": (2, struct.pack("<H", 4))}) for part in parts])
        says(paths[0], "more-00004-of-00004.gguf is missing")
        paths = lay("huge", [part.but({"split.count": (UINT32, U32(2**31 - 1))}) for part in parts])
        says(paths[0], "2147483647 files; at most 1024")
        zero = names("zero", 3)[0].with_name("zero-00000-of-00003.gguf")  # counted from 0
        for number, part in enumerate(parts):
            zero.with_name(f"zero-{number:05}-of-00003.gguf").write_bytes(part.bytes())
        says(zero, "zero-0000[03]-of-00003.gguf (is missing|.*counted from 1)")
        other = Gguf(shared("golden/arch/llama-odd-heads.gguf").read_bytes()).parts(3)
        paths = lay("other", [parts[0], other[1], parts[2]])
        refused(["run", paths[0], *RUN], paths[0], "tensor '.*' has the shape")  # parts repeat nothing of the model: what does not fit is all there is to see
        named = lambda name: parts[1].but({"general.name": (STRING, text(name))})
        paths = lay("name", [parts[0], named("another"), parts[2]])
        says(paths[0], "name-00002.*general.name: differs .* not of one set")
        extra = parts[1].but(tensors={"token_embd.weight": parts[0].tensors["token_embd.weight"]})
        paths = lay("double", [parts[0].but({"split.tensors.count": (INT32, U32(len(tiny.tensors) + 1))}), extra.but({"split.tensors.count": (INT32, U32(len(tiny.tensors) + 1))}),
                               parts[2].but({"split.tensors.count": (INT32, U32(len(tiny.tensors) + 1))})])
        says(paths[0], "token_embd.weight is in two files")
        paths = lay("less", [parts[0], parts[1].but(without=[next(iter(parts[1].tensors))]), parts[2]])
        says(paths[0], "split.tensors.count: [0-9]+, but the 3 files of the set hold [0-9]+ tensors")
        paths = lay("cut", parts)
        paths[2].write_bytes(paths[2].read_bytes()[:-100])
        says(paths[0], "cut-00003.*do not fit in the file")
        paths = lay("empty", parts)
        paths[1].write_bytes(b"")
        says(paths[2], "empty-00002.*shorter than a GGUF header")
        paths = lay("device", parts)
        paths[1].unlink()
        paths[1].symlink_to("/dev/zero")
        says(paths[0], "device-00002.*a device")


# --- files that are accepted

def what_is_odd_but_works():
    tiny = Gguf(TINY.read_bytes())
    right = run_json("run", TINY, *RUN)
    odd = {"odd.key": (STRING, b"\5\0\0\0\0\0\0\0\xff\0\n\x1b\x07"), "odd.nested": (ARRAY, U32(ARRAY) + U64(2) + (U32(UINT8) + U64(3) + b"abc") * 2),
           "odd.empty": (ARRAY, array(STRING, [])), "A-b.C_1": (BOOL, b"\1"), "k" * 65535: (UINT8, b"\7")}
    names = tiny.strings(TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        for name, content, warns in (
                ("keys", tiny.but(odd), None), ("tensor", tiny.but(tensors={"blk.0.rope_freqs.extra": ([4], 0, bytes(16))}), "blk.0.rope_freqs.extra"),
                ("fewer layers", tiny.but({"llama.block_count": (UINT32, U32(2))}), "left out"), ("tail", tiny.bytes() + bytes(100), "after the last tensor"),
                ("K5 tokens that are not UTF-8", tiny.but({TOKENS: (ARRAY, array(STRING, names[:-2] + [b"\xff\xfe", b"\0\xc3"]))}), None),
                ("K5 an empty token", tiny.but({TOKENS: (ARRAY, array(STRING, names[:-1] + [b""]))}), None)):
            path = written(folder, content)
            done = ends_by_itself(["run", path, *RUN, "--json"], [0])
            if name in ("keys", "tensor", "tail"):
                assert right["logits_sha256"].encode() in done.stdout, name
            if warns:
                assert warns in done.stderr.decode(), f"{name}: {done.stderr!r}"
            for as_json in ([], ["--json"]):
                shown = ends_by_itself(["inspect", path, *as_json], [0]).stdout
                assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", shown), f"{name}: control characters reach the terminal"


def weights_that_are_no_numbers():
    tiny = Gguf(TINY.read_bytes())
    prompt = dict(prompt="Once upon a time", max_tokens=4, temperature=0, ignore_eos=True)

    def filled(name, raw):
        dims, kind, data = tiny.tensors[name]
        return tiny.but(tensors={name: (dims, kind, raw * (len(data) // len(raw)))})

    with tempfile.TemporaryDirectory() as folder:
        for name in ("output_norm.weight", "blk.1.attn_q.weight", "token_embd.weight"):
            for value in (float("nan"), float("inf")):
                path = written(folder, filled(name, F32(value)))
                done = ends_by_itself(["run", path, *RUN], [1])
                assert b"not a number; its weights may be damaged" in done.stderr, done.stderr
                assert done.stdout.strip() == b"", done.stdout
        path = written(folder, filled("blk.1.ffn_down.weight", F32(float("nan"))))
        for workers in ("0", "2"):
            with Server(path, "--workers", workers) as server:
                for _ in range(3):  # only that request ends; the server goes on
                    status, body = server.request("POST", "/v1/completions", prompt)
                    assert status == 500 and '"model_produced_nan"' in body, (status, body)
                assert server.request("GET", "/health")[0] == 200
                assert server.stop() == 0
        for value in (0.0, 1e-40, 3e38):  # nothing, denormals; so large that sums may overflow
            path = written(folder, filled("blk.1.ffn_down.weight", F32(value)))
            ends_by_itself(["run", path, *RUN], [0] if value < 1 else [0, 1])
        scale = Gguf(shared("models/llama-stories3M/stories3M-q8_0.gguf").read_bytes())
        name = next(name for name, (_, kind, _) in scale.tensors.items() if kind == 8)
        dims, kind, data = scale.tensors[name]
        path = written(folder, scale.but(tensors={name: (dims, kind, (struct.pack("<H", 0x7E00) + bytes([1] * 32)) * (len(data) // 34))}))
        ends_by_itself(["run", path, "-p", "a", "-n", "2", "--threads", "1"], [1])  # a scale that is no number


def metadata_of_gigabytes():
    data = TINY.read_bytes()
    n_kv = struct.unpack_from("<Q", data, 16)[0]
    with tempfile.TemporaryDirectory() as folder:
        for size in (10 << 30, 257 << 20):
            path = pathlib.Path(folder, "sparse.gguf")
            with open(path, "wb") as file:  # a hole of zeros: takes no room on the disk
                file.write(data[:16] + U64(n_kv + 1) + text("x.huge") + U32(ARRAY) + U32(UINT8) + U64(size))
                file.seek(size, os.SEEK_CUR)
                file.write(data[24:])
            for command in (["run", path, *RUN], ["inspect", path]):
                refused(command, path, "metadata is larger than the limit of 256 MiB")


# --- tokenizers

def ids(path, given, *flags, words=None):
    done = ends_by_itself(["tokenize", path, *flags], [0], stdin=given, seconds=60)
    assert words is None or re.search(words, done.stderr.decode()), f"{done.stderr!r}, not {words!r}"
    return [int(id) for id in done.stdout.split()]


def merges():
    bpe = Gguf(BPE.read_bytes())
    lines = bpe.strings(MERGES)
    sample = "Hello world, the quick brown fox  jumps\n over 123 dogs' d\u00e4cher"
    right = ids(BPE, sample)
    with tempfile.TemporaryDirectory() as folder:
        with_lines = lambda change: written(folder, bpe.but({MERGES: (ARRAY, array(STRING, change))}))
        for bad in (b"nospace", b"", b" ", b"a", b"a ", b" a", b"ab"):
            path = with_lines(lines[:7] + [bad] + lines[7:])
            refused(["tokenize", path], path, "merges: merge 7 '.*' is not two pieces with a space between")
        path = written(folder, bpe.but(without=[MERGES]))
        refused(["tokenize", path], path, "merges: is missing")
        path = written(folder, bpe.but({MERGES: (ARRAY, array(INT32, [U32(1)] * 3))}))
        refused(["tokenize", path], path, "merges: is array of int32, must be an array of strings")
        # Rules that are repeated, or whose pieces are no tokens, are left out: the same ids, and it is said.
        assert ids(with_lines(lines + lines[:5] + [b"zzqq qqzz", "\u4f60 \u597d".encode(), b"\xff \xfe"]), sample, words="8 of [0-9]+ rules") == right
        # One that makes what it is made of, in a circle, ends all the same.
        with_circle = with_lines([b"t h", b"th e", b"h e", b"t he"] + lines)
        assert b"".join(run("tokenize", with_circle, "--decode", stdin=" ".join(map(str, ids(with_circle, sample)))).stdout.split()) == "".join(sample.split()).encode()


def pre_tokenizers():
    bpe = Gguf(BPE.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gpt-22", "", "GPT-2", "llama-bpe\0", "x" * 100_000):
            path = written(folder, bpe.but({"tokenizer.ggml.pre": (STRING, text(name))}))
            refused(["tokenize", path], path, "pre-tokenizer '.*' .tokenizer.ggml.pre. is not known; guessing")
        path = written(folder, bpe.but(without=["tokenizer.ggml.pre"]))  # no name is no reason to guess either
        refused(["tokenize", path], path, "tokenizer.ggml.pre is missing.*--pre-tokenizer NAME")
        path = written(folder, bpe.but({"tokenizer.ggml.pre": (UINT32, U32(1))}))
        refused(["tokenize", path], path, "tokenizer.ggml.pre: is uint32, must be a string")


def normalizers():
    """The blob is of the unigram tokenizers, which are refused by name; beside another tokenizer it says nothing, cut or not."""
    tiny = Gguf(TINY.read_bytes())
    right = ids(TINY, "Once upon a time")
    with tempfile.TemporaryDirectory() as folder:
        for blob in (b"", b"\xff", U32(2**31) + b"abc", b"\x08\0\0\0" + b"\xff" * 8):
            keys = {"tokenizer.ggml.precompiled_charsmap": (ARRAY, U32(UINT8) + U64(len(blob)) + blob)}
            assert ids(written(folder, tiny.but(keys)), "Once upon a time") == right
            path = written(folder, tiny.but({**keys, "tokenizer.ggml.model": (STRING, text("t5"))}))
            refused(["tokenize", path], path, "the tokenizer 't5'")


def tokens_alike():
    tiny = Gguf(TINY.read_bytes())
    names, kinds = tiny.strings(TOKENS), tiny.numbers(TYPES)
    with tempfile.TemporaryDirectory() as folder:
        # Two ids of one text: the lower one is encoded, both decode; the same each time.
        word = next(id for id in range(300, 500) if kinds[id] == U32(1) and names[id].isalpha())
        double = written(folder, tiny.but({TOKENS: (ARRAY, array(STRING, names[:-1] + [names[word]]))}), "double.gguf")
        for _ in range(3):
            given = ids(double, names[word])
            assert len(names) - 1 not in given and given == ids(TINY, names[word]), given
        shown = run("tokenize", double, "--decode", stdin=f"{word} {len(names) - 1}", check=0).stdout
        assert shown == names[word] * 2, shown
        # A control token whose text is a common word: only where special text is asked for, and never from text alone.
        special = written(folder, tiny.but({TYPES: (ARRAY, array(INT32, kinds[:word] + [U32(3)] + kinds[word + 1:]))}), "special.gguf")
        assert word in ids(special, names[word]), "the text of a control token names it where control tokens are parsed"
        assert word not in ids(special, names[word], "--no-special")
        assert run("tokenize", special, "--decode", stdin=" ".join(map(str, ids(special, names[word], "--no-special"))), check=0).stdout == names[word]


def no_end_token():
    done = ends_by_itself(["run", SORT, "-p", "ABC", "-n", "4", "--threads", "1", "--json"], [0])
    assert b"no end-of-sequence token: generation ends at its token limit only" in done.stderr, done.stderr
    assert b'"finish_reason":"length"' in done.stdout, done.stdout
    with Server(SORT) as server:
        answer = server.complete(prompt="ABC", max_tokens=4, temperature=0)
        assert answer["usage"]["completion_tokens"] == 4 and answer["choices"][0]["finish_reason"] == "length", answer


def texts_that_are_hard_to_cut():
    """Each is quadratic or worse for a tokenizer that backtracks; the deadline is generous, what is far from it is not linear."""
    n = 500_000
    texts = [b"a" * n, b" " * (8 * n), b"\n" * n, b" \n" * (n // 2), b"'" * n, b"1" * n, b"a " * (n // 2), "\u0301".encode() * (n // 2), "\u3000".encode() * (n // 3),
             b"!" * n, b" " * n + b"a", b"\xff" * (n // 4), "a\u200d".encode() * (n // 4)]
    bpe = Gguf(BPE.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        def check(case):
            _, path, given = case
            assert ids(path, given)
        paths = [("llama", SPM)] + [(pre, written(folder, bpe.but({"tokenizer.ggml.pre": (STRING, text(pre))}), f"{pre}.gguf"))
                                    for pre in ("gpt-2", "llama-bpe", "deepseek-llm", "gpt-4o", "jais-2")]
        in_parallel(check, [(f"{name}, text {number}", path, given) for name, path in paths for number, given in enumerate(texts)])
        # A vocabulary of very many marks that must each be looked for.
        spm = Gguf(SPM.read_bytes())
        extra = [f"<|mark {i}|>".encode() for i in range(200_000)]
        path = written(folder, spm.but({TOKENS: (ARRAY, array(STRING, spm.strings(TOKENS) + extra)), TYPES: (ARRAY, array(INT32, spm.numbers(TYPES) + [U32(4)] * len(extra))),
                                        SCORES: (ARRAY, array(FLOAT32, spm.numbers(SCORES) + [F32(0)] * len(extra)))}))
        assert len(ids(path, b"<|mark 7|><|mark " * 5000)) > 5000


# --- any change

def models_cut_anywhere():
    """The start of the file, in steps that meet every field of its head, and steps through all of a small one."""
    data = SORT.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        def check(size):
            path = written(folder, data[:size], f"cut-{size}.gguf")
            for command in (["inspect", path], ["run", path, *RUN]):
                ends_by_itself(command, [4], named=path.name, seconds=20)
            path.unlink()
        in_parallel(check, [*range(0, 1200, 37), *range(1200, len(data), 30_011)])


def mutated(source, seed):
    draw = random.Random(seed)
    data = bytearray(source)
    end = Layout(source).end
    for _ in range(draw.choice([1, 1, 2, 5])):
        kind = draw.randrange(5)
        at = draw.randrange(min(end, len(data))) if draw.random() < 0.9 else draw.randrange(len(data))
        at = min(at, len(data) - 8)
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at] = draw.randrange(256)
        elif kind == 2:
            lengths = Layout(source).lengths
            struct.pack_into("<Q", data, draw.choice([length for length in lengths[:200] if length + 8 <= len(data)] or [8]), draw.choice([0, 1, 2**16, 2**31, 2**32, 2**63, 2**64 - 1, draw.randrange(1 << 20)]))
        elif kind == 3 and len(data) > 100:
            del data[draw.randrange(100, len(data)):]
        else:
            data[at:at + 4] = struct.pack("<I", draw.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, draw.randrange(1000)]))[:len(data) - at]
    return bytes(data)


def models_changed_at_random():
    sources = [TINY.read_bytes(), SPM.read_bytes()]
    with tempfile.TemporaryDirectory() as folder:
        def check(seed):
            vocabulary = seed % 5 == 4
            path = written(folder, mutated(sources[vocabulary], seed), f"random-{seed}.gguf")
            command = ["run", path, "-p", "Once", "-n", "2", "--threads", "1"]
            if vocabulary or seed % 5 == 3:
                command = ["inspect", path] if seed % 2 else ["tokenize", path]
            ends_by_itself(command, [0, 1, 4], stdin="Once upon a time, <0x41> \u00e9", seconds=30)
            path.unlink()
        in_parallel(check, range(300))


if __name__ == "__main__":
    main([models_that_are_broken, files_that_are_no_models, files_that_change, split_sets, what_is_odd_but_works, weights_that_are_no_numbers, metadata_of_gigabytes,
          merges, pre_tokenizers, normalizers, tokens_alike, no_end_token, texts_that_are_hard_to_cut, models_cut_anywhere, models_changed_at_random])
