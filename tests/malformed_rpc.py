"""Calls a gateway must refuse over gRPC, to endpoint `m` with input x [-1, 4]: name, what is sent, what is right.

Each is sent on a connection of its own. The gateway must stay alive, and no answer may show a path or a stack.
"""

import grpc

from argosy.serve.rpc.messages import ModelInferRequest
from raw_http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INFER,
    PING,
    PREFACE,
    RST_STREAM,
    WINDOW_UPDATE,
    call,
    frame,
    head,
    message,
    settings,
)


def request(*inputs, raw=(), outputs=(), name="m", **more):
    return ModelInferRequest(
        model_name=name, inputs=inputs, raw_input_contents=list(raw), outputs=outputs, **more
    ).SerializeToString()


def x(datatype="FP32", shape=(1, 4), name="x", **contents):
    return {"name": name, "datatype": datatype, "shape": shape} | ({"contents": contents} if contents else {})


GOOD = x(fp32_contents=[1, 2, 3, 4])
RAW = [b"\0" * 16]
INVALID = {"INVALID_ARGUMENT"}

# name, message to ModelInfer, statuses
MESSAGES = [
    ("no message", b"", {"NOT_FOUND"}),
    ("garbage", b"\xff" * 100, INVALID),
    ("JSON", b'{"inputs": []}', INVALID),
    ("a pickle", b"\x80\x04\x95\x0b\0\0\0", INVALID),
    ("truncated", request(GOOD)[:-3], INVALID),
    ("two million fields", b"\x2a\0" * 2_000_000, INVALID),
    ("a field that is not known", request(GOOD) + b"\x98\x06\x01", INVALID),
    ("a group", request(GOOD) + b"\x0b\x0c", INVALID),
    ("a raw tensor of 2^63 bytes", request(x()) + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", INVALID),
    ("no inputs", request(), INVALID),
    ("wrong name", request(x(name="z"), raw=RAW), INVALID),
    ("long name", request(x(name="z" * 100_000), raw=RAW), INVALID),
    ("a name of another script", request(x(name="漢" * 5000), raw=RAW), INVALID),
    ("the same input twice", request(x(), x(), raw=RAW * 2), INVALID),
    ("one input too many", request(x(), x(name="z"), raw=RAW * 2), INVALID),
    ("2,000 inputs", request(*[x(name=str(i)) for i in range(2000)], raw=RAW * 2000), INVALID),
    ("wrong datatype", request(x("INT32"), raw=RAW), INVALID),
    ("unknown datatype", request(x("FP31"), raw=RAW), INVALID),
    ("BF16", request(x("BF16"), raw=[b"\0" * 8]), INVALID),
    ("no datatype", request(x(""), raw=RAW), INVALID),
    ("typed half precision", request(x("FP16", fp32_contents=[1] * 4)), INVALID),
    ("wrong shape", request(x(shape=(4, 1)), raw=RAW), INVALID),
    ("negative shape", request(x(shape=(-1, 4)), raw=RAW), INVALID),
    ("two negative sizes", request(x(shape=(-1, -4)), raw=RAW), INVALID),
    ("rank 0", request(x(shape=()), raw=[b"\0" * 4]), INVALID),
    ("rank 1,000", request(x(shape=(1,) * 1000), raw=RAW), INVALID),
    ("empty batch", request(x(shape=(0, 4)), raw=[b""]), INVALID),
    ("2^31 elements", request(x(shape=(2**29, 4)), raw=RAW), INVALID),
    ("2^63 elements", request(x(shape=(2**61, 4)), raw=RAW), INVALID),
    ("2^126 elements", request(x(shape=(2**63 - 1, 2**63 - 1)), raw=RAW), INVALID),
    ("the same, typed", request(x(shape=(2**63 - 1, 4), fp32_contents=[1] * 4)), INVALID),
    ("raw too short", request(x(), raw=[b"\0" * 15]), INVALID),
    ("raw too long", request(x(), raw=[b"\0" * 17]), INVALID),
    ("raw missing", request(x(), x(name="z"), raw=RAW), INVALID),
    ("raw too many", request(x(), raw=RAW * 2), INVALID),
    ("raw without inputs", request(raw=RAW), INVALID),
    ("raw and typed", request(GOOD, raw=RAW), INVALID),
    ("raw and empty contents", request(x() | {"contents": {}}, raw=RAW), INVALID),
    ("too few elements", request(x(fp32_contents=[1, 2, 3])), INVALID),
    ("too many elements", request(x(fp32_contents=[1] * 5)), INVALID),
    ("no elements", request(x()), INVALID),
    ("elements of another type", request(x(int_contents=[1] * 4)), INVALID),
    ("elements of two types", request(x(fp32_contents=[1] * 4, int_contents=[1] * 4)), INVALID),
    ("texts that overlap", request(x("BYTES"), raw=[b"\x0c\0\0\0" * 4]), INVALID),
    ("unknown output", request(GOOD, outputs=[{"name": "q"}]), INVALID),
    ("shared memory", request(x() | {"parameters": {"shared_memory_region": {"string_param": "r"}}}), INVALID),
    ("output in shared memory", request(GOOD, outputs=[
        {"name": "y", "parameters": {"shared_memory_region": {"string_param": "r"}}}]), INVALID),
    ("a sequence", request(GOOD, parameters={"sequence_id": {"int64_param": 1}}), INVALID),
    ("17 MiB of typed elements", request(x(bytes_contents=[b"\0" * (17 << 20)])), {"RESOURCE_EXHAUSTED"}),
    ("unknown model", request(GOOD, name="nobody"), {"NOT_FOUND"}),
    ("endless model name", request(GOOD, name="a" * 100_000), {"NOT_FOUND"}),
    ("a path for a name", request(GOOD, name="../../etc/passwd"), {"NOT_FOUND"}),
    ("unknown version", request(GOOD, model_version="99"), {"NOT_FOUND"}),
    ("a version that is no number", request(GOOD, model_version="../1"), {"NOT_FOUND"}),
    ("too large", b"\0" * (65 << 20), {"RESOURCE_EXHAUSTED"}),
]  # fmt: skip

# name, method, message, metadata, statuses
CALLS = [
    ("unknown method", "ModelUnload", b"", (), {"UNIMPLEMENTED"}),
    ("unknown service", "/a.B/C", b"", (), {"UNIMPLEMENTED"}),
    ("a parent folder", "/../../etc/passwd", b"", (), {"UNIMPLEMENTED"}),
    ("garbage for ModelReady", "ModelReady", b"\xff\xff", (), INVALID),
    ("garbage for ModelMetadata", "ModelMetadata", b"\xff\xff", (), INVALID),
    ("garbage for ModelConfig", "ModelConfig", b"\xff\xff", (), INVALID),
    ("garbage for ModelStatistics", "ModelStatistics", b"\xff\xff", (), INVALID),
    ("garbage for RepositoryIndex", "RepositoryIndex", b"\xff\xff", (), INVALID),
    ("timeout not a number", "ModelInfer", request(GOOD), [("argosy-timeout", "soon")], INVALID),
    ("timeout negative", "ModelInfer", request(GOOD), [("argosy-timeout", "-1")], INVALID),
    ("timeout not a number at all", "ModelInfer", request(GOOD), [("argosy-timeout", "nan")], INVALID),
    ("endless timeout", "ModelInfer", request(GOOD), [("argosy-timeout", "1e9")], INVALID),
    ("endless metadata", "ModelInfer", request(GOOD), [("x", "y" * 30_000)], {"RESOURCE_EXHAUSTED"}),
    ("1,000 metadata", "ModelInfer", request(GOOD), [(f"x{i}", "y") for i in range(1000)], {"RESOURCE_EXHAUSTED"}),
]

COMPRESSED = (grpc.Compression.Gzip, grpc.Compression.Deflate)

# name, bytes after the connection is open, whether they bring their own hello. The server may hang up or answer.
FRAMES = [
    ("not HTTP/2", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, True),
    ("garbage", b"\xff" * 5000, True),
    ("garbage behind the preface", PREFACE + b"\xff" * 5000, True),
    ("a path that is not UTF-8", call(b"/inference.\xff\xfe/ModelInfer") + message(b""), False),
    ("an empty path", call("") + message(b""), False),
    ("GET", frame(HEADERS, END_HEADERS, 1, head((":method", "GET"), (":scheme", "http"), (":path", INFER),
        (":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc"))) + message(b""), False),
    ("another content type", frame(HEADERS, END_HEADERS, 1, head((":method", "POST"), (":scheme", "http"),
        (":path", INFER), (":authority", "x"), ("content-type", "application/json"))) + message(b"{}"), False),
    ("no method", frame(HEADERS, END_HEADERS, 1, head((":path", INFER))) + message(b""), False),
    ("two methods", call(INFER, (":method", "POST")) + message(b""), False),
    ("an end without a message", call(flags=END_HEADERS | END_STREAM), False),
    ("two messages", call() + message(b"", flags=0) + message(b""), False),
    ("1 GiB announced", call() + message(b"abc", flags=0, size=1 << 30), False),
    ("a length that is cut off", call() + frame(DATA, END_STREAM, 1, b"\0\0\0"), False),
    ("a compressed message", call(INFER, ("grpc-encoding", "gzip")) + message(b"\x1f\x8b" * 9, is_compressed=1), False),
    ("a compression nobody knows", call(INFER, ("grpc-encoding", "zip9")) + message(b"ab", is_compressed=1), False),
    ("metadata that is not text",
     call(INFER, ("authorization", b"\xff\xfe"), ("argosy-caller", b"\x80")) + message(b""), False),
    ("metadata that is not base64", call(INFER, ("argosy-caller-bin", "!!!!")) + message(b""), False),
    ("an odd timeout", call(INFER, ("grpc-timeout", "-1S")) + message(b""), False),
    ("an endless timeout", call(INFER, ("grpc-timeout", "99999999H")) + message(b""), False),
    ("no time at all", call(INFER, ("grpc-timeout", "0n")) + message(b""), False),
    ("data without a call", message(b"abc", stream=7), False),
    ("a call on an even stream", call(stream=2), False),
    ("a window beyond 2^31", frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2, False),
    ("settings of the wrong size", frame(4, 0, 0, b"abc"), False),
    ("an impossible frame size", settings((5, 1)), False),
    ("10,000 calls opened and reset", b"".join(
        call(stream=2 * i + 1) + frame(RST_STREAM, 0, 2 * i + 1, b"\0\0\0\x08") for i in range(10_000)), False),
    ("10,000 calls opened and left", b"".join(call(stream=2 * i + 1) for i in range(10_000)), False),
    ("10,000 pings", frame(PING, 0, 0, b"12345678") * 10_000, False),
    ("10,000 settings", settings((3, 100)) * 10_000, False),
    ("1 MiB of head", frame(HEADERS, 0, 1, head(("x", "y" * 16_000))) + frame(9, 0, 1, b"\0" * 16_000) * 64, False),
]  # fmt: skip
