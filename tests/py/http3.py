"""An HTTP/3 client that shares no line with ours: lists, watches and cancels, with libcurl (ngtcp2) through curl_cffi.

    http3.py URL CERT KEY

Prints one word per step that held; any other end is a failure. HTTP/3 only: there is no way back to TCP.
"""

import json
import sys
import time

from curl_cffi import Curl, CurlECode, CurlError, CurlHttpVersion, CurlInfo, CurlOpt

url, cert, key = sys.argv[1:]
# What a write function answers to end the transfer (CURL_WRITEFUNC_ERROR).
CANCEL = 0xFFFFFFFF
ROUTERS = f"{url}/apis/edge.example.com/v1/routers"


def request(path, handler, method="GET", body=None, content_type="application/json", seconds=20):
    """One request on a connection of its own; `handler` gets each piece of the body and may end it."""
    curl = Curl()
    curl.setopt(CurlOpt.URL, path.encode())
    curl.setopt(CurlOpt.HTTP_VERSION, CurlHttpVersion.V3ONLY)
    curl.setopt(CurlOpt.SSLCERT, cert.encode())
    curl.setopt(CurlOpt.SSLKEY, key.encode())
    # BoringSSL knows no name constraints on IP addresses, which our intermediates carry (OpenSSL, Go and rustls do), so
    # it cannot check this chain. What is tried here is HTTP/3; the client certificate is shown all the same.
    curl.setopt(CurlOpt.SSL_VERIFYPEER, 0)
    curl.setopt(CurlOpt.SSL_VERIFYHOST, 0)
    curl.setopt(CurlOpt.TIMEOUT_MS, seconds * 1000)
    curl.setopt(CurlOpt.WRITEFUNCTION, handler)
    if body is not None:
        curl.setopt(CurlOpt.CUSTOMREQUEST, method.encode())
        curl.setopt(CurlOpt.POSTFIELDS, body.encode())
        curl.setopt(CurlOpt.HTTPHEADER, [f"Content-Type: {content_type}".encode()])
    try:
        curl.perform()
        code = None
    except CurlError as error:
        code = error.code
    status, version = curl.getinfo(CurlInfo.RESPONSE_CODE), curl.getinfo(CurlInfo.HTTP_VERSION)
    curl.close()
    return code, status, version


def whole(path, **more):
    parts = []
    code, status, version = request(path, lambda part: parts.append(part) or len(part), **more)
    assert code is None, f"{path}: curl error {code}"
    assert version == CurlHttpVersion.V3, f"HTTP version {version}"
    return status, json.loads(b"".join(parts))


status, routers = whole(ROUTERS)
assert status == 200 and routers["kind"] == "RouterList", (status, routers)
print("listed", flush=True)

body = json.dumps({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "by-h3"}, "spec": {}})
status, router = whole(ROUTERS, method="POST", body=body)
assert status == 201, (status, router)
status, again = whole(ROUTERS, method="POST", body=body)
assert status == 409 and again["kind"] == "Status", (status, again)
print("created", flush=True)

# From before the create: it is the first event. After the second the watch is cancelled from inside the transfer.
seen, lines = [], bytearray()


def event(part):
    lines.extend(part)
    while b"\n" in lines:
        line, _, rest = bytes(lines).partition(b"\n")
        lines[:] = rest
        seen.append(json.loads(line))
        if len(seen) == 1:
            patch = json.dumps({"metadata": {"labels": {"seen": "once"}}})
            whole(f"{ROUTERS}/by-h3", method="PATCH", body=patch, content_type="application/merge-patch+json")
    named = [one for one in seen if one["object"]["metadata"]["name"] == "by-h3"]
    return CANCEL if len(named) >= 2 else len(part)


started = time.monotonic()
code, status, _ = request(f"{ROUTERS}?watch=1&resourceVersion={routers['metadata']['resourceVersion']}", event)
assert (code, status) == (CurlECode.WRITE_ERROR, 200), (code, status, seen)
named = [one for one in seen if one["object"]["metadata"]["name"] == "by-h3"]
assert [one["type"] for one in named[:2]] == ["ADDED", "MODIFIED"], seen
numbers = [int(one["object"]["metadata"]["resourceVersion"]) for one in seen]
assert numbers == sorted(numbers), numbers
assert time.monotonic() - started < 10, "events come as they happen"
print("watched", flush=True)

# Many watches, each given up in the middle: none may be left hanging in the server, and new requests are answered.
for _ in range(50):
    code, _, _ = request(f"{ROUTERS}?watch=1", lambda part: CANCEL, seconds=10)
    assert code == CurlECode.WRITE_ERROR, code
status, _ = whole(ROUTERS)
assert status == 200
print("cancelled", flush=True)

large = json.dumps({"x": "y" * (8 << 20)})
status, answer = whole(ROUTERS, method="POST", body=large)
assert status == 413, (status, answer)
print("refused", flush=True)
