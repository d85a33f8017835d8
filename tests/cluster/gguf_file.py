"""GGUF files taken apart and put together again, wrongly where a test wants it so."""
import copy
import struct

U32 = lambda value: struct.pack("<I", value & 0xFFFFFFFF)
U64 = lambda value: struct.pack("<Q", value & (2**64 - 1))
F32 = lambda value: struct.pack("<f", value)
UINT8, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 0, 4, 5, 6, 7, 8, 9


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return U64(len(data)) + data


def array(kind, items):
    """The value of an array: strings, or numbers that are packed already."""
    return U32(kind) + U64(len(items)) + b"".join(map(text, items) if kind == STRING else items)


class Layout:
    """Where the values of a GGUF file's head lie, for changes in place."""

    SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def __init__(self, data):
        self.data, self.at, self.values, self.key_at, self.ends, self.tensors = data, 8, {}, {}, {}, {}
        self.lengths = []  # where string lengths and counts lie
        self.n_tensors, self.n_kv = self.u64(), self.u64()
        for _ in range(self.n_kv):
            begin = self.at
            key = self.string().decode()
            kind_at, kind = self.at, self.u32()
            self.key_at[key] = (begin, kind_at)
            self.values[key] = (self.at, kind)
            self.skip(kind)
            self.ends[key] = self.at
        for _ in range(self.n_tensors):
            begin = self.at
            name = self.string().decode()
            dims_at, dims = self.at, self.u32()
            self.at += 8 * dims
            self.tensors[name] = dict(begin=begin, dims_at=dims_at, dims=dims, type_at=self.at, offset_at=self.at + 4)
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
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            inner = self.u32()
            self.lengths.append(self.at)
            for _ in range(self.u64()):
                self.skip(inner)
        else:
            self.at += self.SIZES[kind]


class Gguf:
    """A file as keys and tensors; `bytes()` lays it out anew, so whatever was changed, the rest is right."""

    ALIGNMENT = 32

    def __init__(self, data):
        layout = Layout(data)
        self.keys = {key: (kind, data[at:layout.ends[key]]) for key, (at, kind) in layout.values.items()}
        begin = -(-layout.end // self.ALIGNMENT) * self.ALIGNMENT
        entries = []
        for name, t in layout.tensors.items():
            dims = list(struct.unpack_from(f"<{t['dims']}Q", data, t["dims_at"] + 4))
            kind, offset = struct.unpack_from("<IQ", data, t["type_at"])
            entries.append((name, dims, kind, offset))
        ends = sorted([offset for *_, offset in entries] + [len(data) - begin])
        self.tensors = {name: (dims, kind, data[begin + offset:begin + min(end for end in ends if end > offset)])
                        for name, dims, kind, offset in entries}

    def but(self, keys=None, without=(), tensors=None):
        """A copy with other keys, {name: (kind, raw)}, without some, and with other tensors."""
        made = copy.copy(self)
        made.keys = {key: value for key, value in {**self.keys, **(keys or {})}.items() if key not in without}
        made.tensors = {name: value for name, value in {**self.tensors, **(tensors or {})}.items() if name not in without}
        return made

    def strings(self, key):
        raw, out, at = self.keys[key][1], [], 12
        for _ in range(struct.unpack_from("<Q", raw, 4)[0]):
            size = struct.unpack_from("<Q", raw, at)[0]
            out.append(raw[at + 8:at + 8 + size])
            at += 8 + size
        return out

    def numbers(self, key):
        """The elements of an array of four-byte numbers, packed."""
        raw = self.keys[key][1]
        return [raw[at:at + 4] for at in range(12, len(raw), 4)]

    def bytes(self):
        head = b"GGUF" + U32(3) + U64(len(self.tensors)) + U64(len(self.keys))
        head += b"".join(text(key) + U32(kind) + raw for key, (kind, raw) in self.keys.items())
        data = b""
        for name, (dims, kind, content) in self.tensors.items():
            head += text(name) + U32(len(dims)) + b"".join(map(U64, dims)) + U32(kind) + U64(len(data))
            data += content + bytes(-len(content) % self.ALIGNMENT)
        return head + bytes(-len(head) % self.ALIGNMENT) + data if self.tensors else head

    def parts(self, count):
        """The bytes of `count` files that are one split set."""
        names = list(self.tensors)
        out = []
        for number in range(count):
            part = copy.copy(self)
            split = {"split.no": (2, struct.pack("<H", number)), "split.count": (2, struct.pack("<H", count)),
                     "split.tensors.count": (INT32, U32(len(names)))}
            part.keys = {**(self.keys if number == 0 else {}), **split}
            part.tensors = {name: self.tensors[name] for name in names[number * len(names) // count:(number + 1) * len(names) // count]}
            out.append(part)
        return out
