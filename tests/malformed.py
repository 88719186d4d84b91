"""Requests a gateway must refuse: name, raw bytes, the status that is right (as a set of one).

`CORPUS` goes to endpoint `m` with the input x, FP32 [-1, 4]; `CORPUS_OF_KINDS` to `small` (n, INT8 [-1, 2]), `words`
(text) and `photo` (image). Each is sent on a connection of its own. The gateway must stay alive and answer others at
once, and no answer may show a path or a stack.
"""

import base64
import gzip
import json
import struct
import zlib

HOST = b"Host: 127.0.0.1\r\n"


def post(body, *headers, path="/v2/models/m/infer", length=True):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\n".encode() + HOST + b"".join(h.encode() + b"\r\n" for h in headers)
    if length:
        head += b"Content-Length: %d\r\n" % len(data)
    return head + b"\r\n" + data


def infer(**changes):
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} | changes
    return post({"inputs": [{k: v for k, v in entry.items() if v is not None}]})


def binary(head_changes=(), raw=b"\0" * 16, length=None, size=16):
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": size}}
    entry |= dict(head_changes)
    head = json.dumps({"inputs": [entry]}).encode()
    return post(head + raw, f"Inference-Header-Content-Length: {len(head) if length is None else length}")


def overlapping():
    """Two tensors that claim 16 bytes each of the 24 there are."""
    entry = {"datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    head = json.dumps({"inputs": [entry | {"name": "x"}, entry | {"name": "z"}]}).encode()
    return post(head + b"\0" * 24, f"Inference-Header-Content-Length: {len(head)}")


def plain(inputs, name="m"):
    return post({"inputs": inputs}, path=f"/predict/{name}")


def texts(*items, name="words", size=None):
    """A binary tensor of texts."""
    raw = b"".join(struct.pack("<I", len(item) if size is None else size) + item for item in items)
    entry = {"name": "text", "datatype": "BYTES", "shape": [len(items)], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [entry]}).encode()
    return post(head + raw, f"Inference-Header-Content-Length: {len(head)}", path=f"/v2/models/{name}/infer")


def png(width, height, data=b""):
    """A PNG file that says it has this size."""

    def chunk(kind, inside):
        return struct.pack(">I", len(inside)) + kind + inside + struct.pack(">I", zlib.crc32(kind + inside))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def photo(data, kind="image/png", name="photo"):
    return post(data, f"Content-Type: {kind}", path=f"/predict/{name}")


def get(path, *headers, method="GET", host=HOST):
    return f"{method} {path} HTTP/1.1\r\n".encode() + host + b"".join(h.encode() + b"\r\n" for h in headers) + b"\r\n"


def chunked(*chunks, headers=()):
    head = b"POST /v2/models/m/infer HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n"
    head += b"".join(h.encode() + b"\r\n" for h in headers)
    return head + b"\r\n" + b"".join(chunks)


CORPUS = [
    # Bodies
    ("empty body", post(b""), {400}),
    ("not JSON", post(b"{"), {400}),
    ("a list", post([]), {400}),
    ("not UTF-8", post(b'{"inputs": [{"name": "\xff"}]}'), {400}),
    ("deep nesting", post(b"[" * 100_000), {400}),
    ("deep data", post(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + b"[" * 9000), {400}),
    ("no inputs", post({}), {400}),
    ("unknown field", post({"inputs": [], "evil": 1}), {400}),
    ("inputs null", post({"inputs": None}), {400}),
    ("no inputs listed", post({"inputs": []}), {400}),
    ("wrong name", infer(name="z"), {400}),
    ("long name", infer(name="z" * 10_000), {400}),
    ("the same input twice",
     post({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1] * 4}] * 2}), {400}),
    ("wrong datatype", infer(datatype="INT32"), {400}),
    ("unknown datatype", infer(datatype="FP31"), {400}),
    ("wrong shape", infer(shape=[4, 1]), {400}),
    ("negative shape", infer(shape=[-1, 4]), {400}),
    ("float shape", infer(shape=[1.0, 4]), {400}),
    ("rank 0", infer(shape=[], data=[1]), {400}),
    ("2^31 elements", infer(shape=[2**29, 4]), {400}),
    ("2^62 elements", infer(shape=[2**62, 4]), {400}),
    ("a shape beyond 64 bits", infer(shape=[2**80, 4]), {400}),
    ("empty batch", infer(shape=[0, 4], data=[]), {400}),
    ("too few values", infer(data=[1, 2, 3]), {400}),
    ("too many values", infer(data=[1] * 5), {400}),
    ("ragged", infer(shape=[2, 4], data=[[1, 2, 3, 4], [1, 2, 3]]), {400}),
    ("text for a number", infer(data=[1, 2, 3, "4"]), {400}),
    ("true for a number", infer(data=[1, 2, 3, True]), {400}),
    ("null for a number", infer(data=[1, 2, 3, None]), {400}),
    ("NaN", post(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,NaN]}]}'), {400}),
    ("Infinity", post(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,Infinity]}]}'), {400}),
    ("1e400", post(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,1e400]}]}'), {400}),
    ("1e39 as FP32", infer(data=[1, 2, 3, 1e39]), {400}),
    ("no data", infer(data=None), {400}),
    ("data an object", infer(data={"a": 1}), {400}),
    ("data a text", infer(data="abcd"), {400}),
    ("unknown output", post({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1] * 4}],
                             "outputs": [{"name": "q"}]}), {400}),
    ("a byte order mark", post(b'\xef\xbb\xbf{"inputs": []}'), {400}),
    ("UTF-16", post('{"inputs": []}'.encode("utf-16")), {400}),
    ("single quotes", post(b"{'inputs': []}"), {400}),
    ("a trailing comma", post(b'{"inputs": [],}'), {400}),
    ("a comment", post(b'{"inputs": [] /* none */}'), {400}),
    ("two documents", post(b'{"inputs": []}{"inputs": []}'), {400}),
    ("a leading zero", post(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,04]}]}'), {400}),
    ("a hex number", post(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,0x4]}]}'), {400}),
    ("400 digits", infer(data=[1, 2, 3, 10**400]), {400}),
    ("id a number", post({"id": 7, "inputs": []}), {400}),
    ("parameters a list", post({"parameters": [], "inputs": []}), {400}),
    ("a parameter an object", post({"parameters": {"a": {}}, "inputs": []}), {400}),
    ("a shape of 17 dimensions", infer(shape=[1] * 17, data=[1]), {400}),
    ("a shape that is a text", infer(shape="[1, 4]"), {400}),
    ("1,025 inputs", post({"inputs": [{"name": f"x{i}", "datatype": "FP32", "shape": [0], "data": []}
                                      for i in range(1025)]}), {400}),
    ("shared memory", infer(data=None, parameters={"shared_memory_region": "r"}), {400}),
    ("a sequence", post({"parameters": {"sequence_id": 1}, "inputs": []}), {400}),
    ("a negative timeout", post({"parameters": {"timeout": -5}, "inputs": []}), {400}),
    # Binary tensors
    ("binary too short", binary(raw=b"\0" * 15), {400}),
    ("binary too long", binary(raw=b"\0" * 17), {400}),
    ("binary size negative", binary(size=-16), {400}),
    ("binary size a text", binary(size="16"), {400}),
    ("binary size huge", binary(size=2**60), {400}),
    ("binary size of another shape", binary({"shape": [2, 4]}.items()), {400}),
    ("data and binary", binary({"data": [1, 2, 3, 4]}.items()), {400}),
    ("header length beyond the body", binary(length=10_000), {400}),
    ("header length negative", binary(length=-1), {400}),
    ("header length a word", binary(length="ten"), {400}),
    ("header length too short", binary(length=10), {400}),
    ("header length into the tensors", binary(length=140), {400}),
    ("header length signed", binary(length="+90"), {400}),
    ("header length hexadecimal", binary(length="0x5a"), {400}),
    ("header length of 30 digits", binary(length="9" * 30), {400}),
    ("header length for JSON", post({"inputs": []}, "Inference-Header-Content-Length: 5"), {400}),
    ("tensors that overlap", overlapping(), {400}),
    ("binary size true", binary(size=True), {400}),
    ("binary size a fraction", binary(size=16.0), {400}),
    ("binary with 2^31 elements", binary({"shape": [2**29, 4]}.items()), {400}),
    ("binary with no elements", binary({"shape": [0, 4]}.items(), b"", size=0), {400}),
    ("texts that overlap", binary({"datatype": "BYTES"}.items(), struct.pack("<IIII", 12, 12, 12, 12)), {400}),
    # Plain predictions
    ("plain: nothing", plain({}), {400}),
    ("plain: wrong name", plain({"nope": 1}), {400}),
    ("plain: text", plain({"x": ["1", "2", "3", "4"]}), {400}),
    ("plain: ragged", plain({"x": [[1, 2, 3, 4], [1]]}), {400}),
    ("plain: wrong width", plain({"x": [1, 2, 3]}), {400}),
    ("plain: no rows", plain([]), {400}),
    ("plain: not an object", plain(7), {400}),
    # Paths, methods, names
    ("unknown path", get("/admin"), {404}),
    ("parent folder", get("/../../etc/passwd"), {404}),
    ("encoded parent folder", get("/v2/models/%2e%2e%2fetc/infer", method="POST"), {404}),
    ("unknown model", post(b"{}", path="/v2/models/nobody/infer"), {404}),
    ("unknown endpoint", post(b"{}", path="/predict/nobody"), {404}),
    ("endless model name", post(b"{}", path="/predict/" + "a" * 5000), {404}),
    ("unknown version", post(b"{}", path="/v2/models/m/versions/99/infer"), {404}),
    ("GET to infer", get("/v2/models/m/infer"), {405}),
    ("POST to metadata", post(b"{}", path="/v2/models/m"), {405}),
    ("unknown method", get("/", method="BREW"), {400}),
    ("DELETE", get("/v2/models/m", method="DELETE"), {405}),
    ("OPTIONS", get("/predict/m", method="OPTIONS"), {405}),
    ("CONNECT", b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n", {405}),
    ("TRACE", get("/", method="TRACE"), {405}),
    ("a proxy's target", get("http://example.org/"), {400}),
    ("a name with a zero byte", post(b"{}", path="/predict/%00"), {404}),
    ("a name that is not UTF-8", post(b"{}", path="/predict/%ff%fe"), {404}),
    ("a name with a broken escape", post(b"{}", path="/predict/%zz"), {404}),
    ("a version that is a path", post(b"{}", path="/v2/models/m/versions/..%2f1/infer"), {404}),
    ("a model to load", post(b"{}", path="/v2/repository/models/m/load"), {404}),
    ("a method in small letters", get("/", method="get"), {400}),
    ("an endless method", get("/", method="G" * 10_000), {400}),
    # Heads
    ("no host", b"GET / HTTP/1.1\r\n\r\n", {400}),
    ("foreign host", get("/", host=b"Host: evil.example\r\n"), {421}),
    ("two hosts", get("/", "Host: evil.example"), {400}),
    ("a host that begins like ours", get("/", host=b"Host: 127.0.0.1.evil.example\r\n"), {421}),
    ("a foreign host with our port", get("/", host=b"Host: evil.example:8700\r\n"), {421}),
    ("a host with two ports", get("/", host=b"Host: localhost:1:2\r\n"), {421}),
    ("a host with a user", get("/", host=b"Host: me@127.0.0.1\r\n"), {421}),
    ("an empty host", get("/", host=b"Host:\r\n"), {421}),
    ("an origin that begins like ours", get("/", "Origin: http://localhost.evil.example"), {403}),
    ("a file's origin", get("/", "Origin: file://"), {403}),
    ("foreign origin", get("/", "Origin: https://evil.example"), {403}),
    ("origin null", get("/", "Origin: null"), {403}),
    ("pickle", post(b"\x80\x04.", "Content-Type: application/x-pickle"), {415}),
    ("python object", post(b"\x80\x04.", "Content-Type: application/octet-stream+pickle"), {415}),
    ("multipart", post(b"x", "Content-Type: multipart/form-data; boundary=x"), {415}),
    ("python's serialization", post(b"\x80\x04.", "Content-Type: application/x-python-serialize"), {415}),
    ("numpy's file", post(b"\x93NUMPY", "Content-Type: application/x-npy"), {415}),
    ("a bomb in gzip", post(gzip.compress(b"\0" * (16 << 20)), "Content-Encoding: gzip"), {415}),
    ("deflate", post(zlib.compress(b"\0" * 1000), "Content-Encoding: deflate"), {415}),
    ("brotli", post(b"\x0b", "Content-Encoding: br"), {415}),
    ("two encodings", post(b"{}", "Content-Encoding: identity, gzip"), {415}),
    ("an image for numbers", photo(png(1, 1), name="m"), {415}),
    ("gzip", post(b"\x1f\x8b\x08\0" + b"\0" * 20, "Content-Encoding: gzip"), {415}),
    ("20,000 headers", get("/", *(f"x{i}: 1" for i in range(20_000))), {431}),
    ("1 MiB header", get("/", "x: " + "a" * (1 << 20)), {431}),
    ("1 MiB target", get("/" + "a" * (1 << 20)), {431}),
    ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, {400}),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    ("HTTP/9.9", b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", {400}),
    ("a space in a header's name", get("/", "bad name: 1"), {400}),
    ("a zero byte in a header", b"GET / HTTP/1.1\r\n" + HOST + b"x: a\0b\r\n\r\n", {400}),
    ("a space before the colon", get("/", "x : 1"), {400}),
    ("a folded header", get("/", "x: 1\r\n 2"), {400}),
    ("a header without a colon", get("/", "nothing"), {400}),
    ("a header without a name", get("/", ": 1"), {400}),
    ("a bare carriage return", get("/", "x: a\rb: c"), {400}),
    ("a space in the target", get("/a b"), {400}),
    ("a zero byte in the target", b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
    ("timeout endless", infer().replace(HOST, HOST + b"argosy-timeout: inf\r\n"), {400}),
    ("timeout of a year", infer().replace(HOST, HOST + b"argosy-timeout: 31536000\r\n"), {400}),
    ("timeout not a number", post(b"{}", "argosy-timeout: soon"), {400}),
    ("timeout negative", infer().replace(HOST, HOST + b"argosy-timeout: -1\r\n"), {400}),
    ("timeout not a number at all", infer().replace(HOST, HOST + b"argosy-timeout: nan\r\n"), {400}),
    # Lengths
    ("two lengths", post(b"{}", "Content-Length: 5"), {400}),
    ("length and chunks", chunked(b"2\r\n{}\r\n0\r\n\r\n", headers=["Content-Length: 2"]), {400}),
    ("length negative", post(b"{}", "Content-Length: -1", length=False), {400}),
    ("length a word", post(b"{}", "Content-Length: two", length=False), {400}),
    ("length beyond 64 bits", post(b"{}", "Content-Length: " + "9" * 30, length=False), {400}),
    ("1 TiB announced", post(b"{}", f"Content-Length: {1 << 40}", length=False), {413}),
    ("chunk size a word", chunked(b"zz\r\n{}\r\n0\r\n\r\n"), {400}),
    ("chunk size negative", chunked(b"-2\r\n{}\r\n0\r\n\r\n"), {400}),
    ("chunk size beyond 64 bits", chunked(b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n"), {400}),
    ("a million chunks", chunked(b"1\r\n \r\n" * 1_000_000, b"0\r\n\r\n"), {400}),
    ("two equal lengths", post(b"{}", "Content-Length: 2"), {400}),
    ("a list of lengths", post(b"{}", "Content-Length: 2, 2", length=False), {400}),
    ("length signed", post(b"{}", "Content-Length: +2", length=False), {400}),
    ("length hexadecimal", post(b"{}", "Content-Length: 0x2", length=False), {400}),
    ("length empty", post(b"{}", "Content-Length:", length=False), {400}),
    ("chunks twice", chunked(b"2\r\n{}\r\n0\r\n\r\n", headers=["Transfer-Encoding: chunked"]), {400}),
    ("chunks that are not last", post(b"{}", "Transfer-Encoding: chunked, gzip", length=False), {400}),
    ("chunks by another name", post(b"{}", "Transfer-Encoding: xchunked", length=False), {400}),
    ("a chunk longer than it says", chunked(b"2\r\n{}}}\r\n0\r\n\r\n"), {400}),
    ("a chunk's endless extension", chunked(b"2;" + b"a" * (1 << 20) + b"\r\n{}\r\n0\r\n\r\n"), {400}),
    ("20,000 trailers", chunked(b"2\r\n{}\r\n0\r\n", b"x: 1\r\n" * 20_000, b"\r\n"), {431}),
    ("unknown transfer encoding", post(b"{}", "Transfer-Encoding: gzip", length=False), {400}),
]  # fmt: skip

CORPUS_OF_KINDS = [
    ("128 as INT8", plain({"n": [1, 128]}, "small"), {400}),
    ("-129 as INT8", plain({"n": [1, -129]}, "small"), {400}),
    ("2^63 as INT8", plain({"n": [1, 2**63]}, "small"), {400}),
    ("10^30 as INT8", plain({"n": [1, 10**30]}, "small"), {400}),
    ("a fraction as INT8", plain({"n": [1, 1.5]}, "small"), {400}),
    ("1e2 as INT8", post(b'{"inputs": {"n": [1, 1e2]}}', path="/predict/small"), {400}),
    ("1.0 as INT8", post(b'{"inputs": {"n": [1, 1.0]}}', path="/predict/small"), {400}),
    ("true as INT8", plain({"n": [1, True]}, "small"), {400}),
    ("a text as INT8", plain({"n": [1, "2"]}, "small"), {400}),
    ("null as INT8", plain({"n": [1, None]}, "small"), {400}),
    ("rows that are not alike", plain([{"n": [1, 2]}, {"m": [1, 2]}], "small"), {400}),
    ("a row too many levels down", plain([[{"n": [1, 2]}]], "small"), {400}),
    ("a text of a megabyte", plain({"text": "a" * (1 << 20)}, "words"), {413}),
    ("a text too long among others", plain({"text": ["a", "b" * 70_000]}, "words"), {413}),
    ("a text too long, as binary data", texts(b"a" * 70_000), {413}),
    ("a number for a text", plain({"text": 7}, "words"), {400}),
    ("null for a text", plain({"text": None}, "words"), {400}),
    ("half a surrogate", post(b'{"inputs": {"text": "\\ud800"}}', path="/predict/words"), {400}),
    ("a text that is not UTF-8", texts(b"\xff\xfe"), {400}),
    ("a text longer than it says", texts(b"abc", size=1), {400}),
    ("a text of 4 GiB, it says", texts(b"abc", size=2**32 - 1), {400}),
    ("an image for a text", photo(png(1, 1), name="words"), {415}),
    ("a picture of 10,000,000,000 pixels", photo(png(100_000, 100_000)), {413}),
    ("the same in base64", plain({"image": base64.b64encode(png(100_000, 100_000)).decode()}, "photo"), {413}),
    ("a picture without pixels", photo(png(0, 5)), {400}),
    ("no picture", photo(b"\x80\x04\x95 not a picture"), {400}),
    ("an empty picture", photo(b""), {400}),
    ("a picture cut off in its header", photo(png(5, 5)[:20]), {400}),
    ("a picture of an unknown kind", photo(b"GIF89a", "image/gif"), {415}),
    ("a vector graphic", photo(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), {415}),
    ("not base64", plain({"image": "not base64!"}, "photo"), {400}),
    ("base64 cut off", plain({"image": "iVBORw0KGg"}, "photo"), {400}),
    ("numbers for a picture", plain({"image": [[[0, 0, 0]]]}, "photo"), {400}),
    ("a file's name for a picture", plain({"image": "../../etc/passwd"}, "photo"), {400}),
    ("an address for a picture", plain({"image": "http://127.0.0.1/x.png"}, "photo"), {400}),
]  # fmt: skip
