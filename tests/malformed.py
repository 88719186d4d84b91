"""Requests a gateway must refuse, to endpoint `m` with input x [-1, 4]: name, raw bytes, the statuses that are right.

Each is sent on a connection of its own. The gateway must stay alive, and no answer may show a path or a stack.
"""

import json
import struct

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


def plain(inputs):
    return post({"inputs": inputs}, path="/predict/m")


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
    ("unknown method", get("/", method="BREW"), {400, 405}),
    ("DELETE", get("/v2/models/m", method="DELETE"), {405}),
    ("OPTIONS", get("/predict/m", method="OPTIONS"), {405}),
    ("CONNECT", b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n", {400, 405}),
    ("TRACE", get("/", method="TRACE"), {405}),
    ("a proxy's target", get("http://example.org/"), {400}),
    # Heads
    ("no host", b"GET / HTTP/1.1\r\n\r\n", {400, 421}),
    ("foreign host", get("/", host=b"Host: evil.example\r\n"), {421}),
    ("two hosts", get("/", "Host: evil.example"), {400}),
    ("foreign origin", get("/", "Origin: https://evil.example"), {403}),
    ("origin null", get("/", "Origin: null"), {403}),
    ("pickle", post(b"\x80\x04.", "Content-Type: application/x-pickle"), {415}),
    ("python object", post(b"\x80\x04.", "Content-Type: application/octet-stream+pickle"), {415}),
    ("multipart", post(b"x", "Content-Type: multipart/form-data; boundary=x"), {415}),
    ("gzip", post(b"\x1f\x8b\x08\0" + b"\0" * 20, "Content-Encoding: gzip"), {415}),
    ("20,000 headers", get("/", *(f"x{i}: 1" for i in range(20_000))), {431}),
    ("1 MiB header", get("/", "x: " + "a" * (1 << 20)), {431}),
    ("1 MiB target", get("/" + "a" * (1 << 20)), {431}),
    ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, {400}),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 405, 421}),
    ("HTTP/9.9", b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", {400}),
    ("a space in a header's name", get("/", "bad name: 1"), {400}),
    ("a zero byte in a header", b"GET / HTTP/1.1\r\n" + HOST + b"x: a\0b\r\n\r\n", {400}),
    ("timeout not a number", post(b"{}", "argosy-timeout: soon"), {400}),
    ("timeout negative", infer().replace(HOST, HOST + b"argosy-timeout: -1\r\n"), {400}),
    ("timeout not a number at all", infer().replace(HOST, HOST + b"argosy-timeout: nan\r\n"), {400}),
    # Lengths
    ("two lengths", post(b"{}", "Content-Length: 5"), {400}),
    ("length and chunks", chunked(b"2\r\n{}\r\n0\r\n\r\n", headers=["Content-Length: 2"]), {400}),
    ("length negative", post(b"{}", "Content-Length: -1", length=False), {400}),
    ("length a word", post(b"{}", "Content-Length: two", length=False), {400}),
    ("length beyond 64 bits", post(b"{}", "Content-Length: " + "9" * 30, length=False), {400, 413}),
    ("1 TiB announced", post(b"{}", f"Content-Length: {1 << 40}", length=False), {413}),
    ("chunk size a word", chunked(b"zz\r\n{}\r\n0\r\n\r\n"), {400}),
    ("chunk size negative", chunked(b"-2\r\n{}\r\n0\r\n\r\n"), {400}),
    ("chunk size beyond 64 bits", chunked(b"f" * 20 + b"\r\n{}\r\n0\r\n\r\n"), {400}),
    ("a million chunks", chunked(b"1\r\n \r\n" * 1_000_000, b"0\r\n\r\n"), {400}),
    ("unknown transfer encoding", post(b"{}", "Transfer-Encoding: gzip", length=False), {400}),
]  # fmt: skip
