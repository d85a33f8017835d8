#!/usr/bin/env python3
"""The house rules as a test: includes point down, libraries stay behind their folder, headers say what they are for.

Prints one line per breach and exits 1, or a line of counts and exits 0.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SRC = ROOT / "src"

# The folder table of ARCHITECTURE: folder -> what it may include besides itself.
MAY_INCLUDE = {
    "base": set(),
    "core": {"base"},
    "model": {"base", "core"},
    "plan": {"base", "core"},
    "sched": {"base", "core"},
    "net": {"base", "core"},
    "comm": {"base", "core", "net"},
    "compute": {"base", "core", "model", "comm"},
    "engine": {"base", "core", "model", "sched", "net", "comm", "compute"},
    "cluster": {"base", "core", "plan", "net"},
    "train": {"base", "core", "model", "comm", "compute"},
    "serve": {"base", "core", "model", "engine"},
    "sim": {"base", "core", "model", "plan", "sched", "net", "comm", "compute", "engine", "cluster", "serve"},
    "app": {"base", "core", "model", "plan", "sched", "net", "comm", "compute", "engine", "cluster", "serve", "train", "sim"},
}
# serve/ sees the engine through one door.
ONLY_HEADER = {("serve", "engine"): {"engine/engine.h"}}
# A library stays behind one folder (tests may look behind the wall).
LIBRARIES = {
    r"ggml[-./]|ggml\.h": {"compute"},
    r"boost/": {"serve", "net"},
    r"openssl/": {"serve", "net", "app"},
    r"google/protobuf|\.pb\.h": {"net", "engine", "cluster"},
    r"pcre2\.h|utf8proc\.h": {"model"},
    r"hwy/": {"compute"},
    r"CLI/": {"app"},
    r"spdlog/": {"base"},
    r"prometheus/": {"serve"},
    r"mpi\.h": {"comm"},
}
PURE = {"plan", "sched"}
IMPURE = re.compile(r"#include <(thread|mutex|chrono|random|fstream|iostream|atomic|condition_variable|sys/[^>]*|unistd\.h)>|base/log\.h|std::rand|Now\(\)")
BAD_NAME = re.compile(r"\b(?:class|struct)\s+\w*(Manager|Helper|Util)s?\b")
INCLUDE = re.compile(r'^\s*#include\s+[<"]([^">]+)[">]')


def tracked(pattern):
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", pattern], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / line for line in out.stdout.splitlines() if (ROOT / line).exists()]


def main():
    breaches, files = [], 0
    for path in tracked("src/*.h") + tracked("src/*.cc"):
        files += 1
        relative = path.relative_to(SRC)
        folder = relative.parts[0]
        test = path.stem.endswith("_test") or path.stem.endswith("_fuzz")
        text = path.read_text()
        if folder not in MAY_INCLUDE:
            breaches.append(f"{relative}: folder {folder}/ is not in the table")
            continue
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{relative}:{number}"
            found = INCLUDE.match(line)
            if found:
                target = found.group(1)
                other = target.split("/")[0]
                if other in MAY_INCLUDE and other != folder and not test:
                    if other not in MAY_INCLUDE[folder]:
                        breaches.append(f"{where}: {folder}/ may not include {target}")
                    elif (folder, other) in ONLY_HEADER and target not in ONLY_HEADER[folder, other]:
                        breaches.append(f"{where}: {folder}/ sees {', '.join(ONLY_HEADER[folder, other])} only, not {target}")
                for library, folders in LIBRARIES.items():
                    if re.match(library, target) and folder not in folders and not test:
                        breaches.append(f"{where}: {target} stays behind {'/, '.join(sorted(folders))}/")
            if folder in PURE and not test and IMPURE.search(line):
                breaches.append(f"{where}: {folder}/ is pure: no thread, clock, socket or log")
            if BAD_NAME.search(line):
                breaches.append(f"{where}: name the thing, not 'Manager', 'Helper' or 'Util'")
            if len(line) > 140:
                breaches.append(f"{where}: {len(line)} columns")
            if re.search(r"\b(FIXME|XXX)\b", line):
                breaches.append(f"{where}: unfinished business")
        if path.suffix == ".h" and not path.stem.endswith("_inl"):
            if not re.match(r"(//[^\n]*\n)*// What: ", text):
                breaches.append(f"{relative}: a header opens by saying What it is")
            if "#pragma once" not in text and "HWY_TARGET_TOGGLE" not in text and "HWY_ONCE" not in text:
                breaches.append(f"{relative}: no #pragma once")
    for breach in breaches:
        print(breach)
    if breaches:
        print(f"house rules: {len(breaches)} breaches in {files} files")
        return 1
    print(f"house rules: {files} files hold them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
