"""HTTP/3 clients in Python that share no line with ours, nor with each other's QUIC: aioquic and qh3.

    http3_stacks.py STACK URL CERT KEY CA

Prints one word per step that held; any other end is a failure. After "ready" it waits for the server to be stopped.
Everything but the idle watch runs on one connection: what one stream suffers must not touch the others.
"""

import asyncio
import json
import socket
import sys
from importlib import import_module
from urllib.parse import urlsplit

stack, url, cert, key, ca = sys.argv[1:]
connect = import_module(f"{stack}.asyncio.client").connect
Protocol = import_module(f"{stack}.asyncio.protocol").QuicConnectionProtocol
Configuration = import_module(f"{stack}.quic.configuration").QuicConfiguration
quic = import_module(f"{stack}.quic.events")
h3 = import_module(f"{stack}.h3.events")
H3Connection = import_module(f"{stack}.h3.connection").H3Connection

ROUTERS = "/apis/edge.example.com/v1/routers"
NO_ERROR, REQUEST_REJECTED, REQUEST_CANCELLED = 0x100, 0x10B, 0x10C
GOAWAY = 0x7
# What a step may take on a busy machine.
SOON = 20
parts = urlsplit(url)


def numbers(data):
    """Reads one QUIC integer: it and what is behind it; None if it is not all there."""
    length = 1 << (data[0] >> 6) if data else 1
    if len(data) < length:
        return None
    return int.from_bytes(data[:length], "big") & ((1 << (8 * length - 2)) - 1), data[length:]


def goaways(control):
    """The ids of the GOAWAY frames on a control stream."""
    found, rest = [], bytes(control)
    kind = numbers(rest)
    if not kind or kind[0] != 0:
        return found
    rest = kind[1]
    while head := numbers(rest):
        size = numbers(head[1])
        if not size or len(size[1]) < size[0]:
            break
        if head[0] == GOAWAY:
            found.append(numbers(size[1][: size[0]])[0])
        rest = size[1][size[0] :]
    return found


class Answer:
    """What came on one request stream."""

    def __init__(self):
        self.status, self.headers, self.body = None, {}, bytearray()
        self.ended, self.reset, self.stopped = False, None, None

    def events(self):
        return [json.loads(line) for line in self.body.split(b"\n")[:-1]]


class Client(Protocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.answers, self.unidirectional = {}, {}
        self.closed, self.news = None, asyncio.Event()

    def quic_event_received(self, event):
        if isinstance(event, quic.StreamDataReceived) and event.stream_id % 4 == 3:
            self.unidirectional.setdefault(event.stream_id, bytearray()).extend(event.data)
        if isinstance(event, quic.ConnectionTerminated):
            self.closed = event
        if isinstance(event, quic.StreamReset) and event.stream_id in self.answers:
            self.answers[event.stream_id].reset = event.error_code
        if isinstance(event, quic.StopSendingReceived) and event.stream_id in self.answers:
            self.answers[event.stream_id].stopped = event.error_code
        for one in self.http.handle_event(event):
            answer = self.answers.get(getattr(one, "stream_id", None))
            if answer is None:
                continue
            if isinstance(one, h3.HeadersReceived):
                answer.headers = {name.decode(): value.decode() for name, value in one.headers}
                answer.status = int(answer.headers[":status"])
            elif isinstance(one, h3.DataReceived):
                answer.body.extend(one.data)
            answer.ended = answer.ended or getattr(one, "stream_ended", False)
        self.news.set()

    async def until(self, holds, what):
        """Waits for a state of the connection; its end is the last one."""

        async def waits():
            while not holds():
                assert self.closed is None, f"{what}: the connection ended: {self.closed}"
                self.news.clear()
                await self.news.wait()

        try:
            await asyncio.wait_for(waits(), SOON)
        except asyncio.TimeoutError:
            raise AssertionError(f"not within {SOON} s: {what}") from None

    def begin(self, path, method="GET", body=None, content_type="application/json", more=(), whole=True):
        stream = self._quic.get_next_available_stream_id()
        answer = self.answers[stream] = Answer()
        headers = [(b":method", method.encode()), (b":scheme", b"https"), (b":authority", parts.netloc.encode())]
        headers += [(b":path", path.encode()), *more]
        if body is not None:
            headers.append((b"content-type", content_type.encode()))
        self.http.send_headers(stream, headers, end_stream=body is None)
        if body is not None:
            self.http.send_data(stream, body.encode(), end_stream=whole)
        self.transmit()
        return stream, answer

    def cancel(self, stream):
        self._quic.stop_stream(stream, REQUEST_CANCELLED)
        self.transmit()

    async def whole(self, path, **request):
        _, answer = self.begin(path, **request)
        await self.until(lambda: answer.ended or answer.reset is not None, f"an answer to {path}")
        assert answer.reset is None, f"{path}: reset with {answer.reset:#x} behind status {answer.status}"
        return answer.status, json.loads(bytes(answer.body))


def configuration(idle):
    made = Configuration(is_client=True, alpn_protocols=["h3"], idle_timeout=idle, server_name=parts.hostname)
    # The server's own chain is checked; its intermediates are constrained in IP addresses.
    made.load_verify_locations(cafile=ca)
    made.load_cert_chain(cert, key)
    return made


def router(name, **annotations):
    metadata = {"name": name, "annotations": annotations}
    return json.dumps({"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": metadata, "spec": {}})


def say(word):
    print(word, flush=True)


async def lists_and_creates(client):
    status, routers = await client.whole(ROUTERS)
    assert (status, routers["kind"]) == (200, "RouterList"), (status, routers)
    say("listed")
    status, made = await client.whole(ROUTERS, method="POST", body=router(f"by-{stack}"))
    assert status == 201, (status, made)
    status, again = await client.whole(ROUTERS, method="POST", body=router(f"by-{stack}"))
    assert status == 409 and again["reason"] == "AlreadyExists", (status, again)
    status, got = await client.whole(f"{ROUTERS}/by-{stack}")
    assert status == 200 and got == made, (status, got)
    status, lacks = await client.whole(f"{ROUTERS}/none")
    assert status == 404 and lacks["kind"] == "Status", (status, lacks)
    say("created")
    return routers["metadata"]["resourceVersion"]


async def watches(client, since):
    _, kept = client.begin(f"{ROUTERS}?watch=1&resourceVersion={since}")
    stream, watch = client.begin(f"{ROUTERS}?watch=1&resourceVersion={since}")
    await client.until(lambda: len(watch.events()) >= 1, "the first event")
    for count in ("one", "two"):
        body = json.dumps({"metadata": {"labels": {"count": count}}})
        status, _ = await client.whole(
            f"{ROUTERS}/by-{stack}", method="PATCH", body=body, content_type="application/merge-patch+json"
        )
        assert status == 200, status
        if count == "one":
            await client.until(lambda: len(watch.events()) >= 2, "the second event")
            assert [event["type"] for event in watch.events()] == ["ADDED", "MODIFIED"], watch.events()
            client.cancel(stream)
            await client.until(lambda: watch.reset is not None or watch.ended, "a cancelled watch ends")
    await client.until(lambda: len(kept.events()) >= 3, "the other watch goes on")
    assert len(watch.events()) == 2, "nothing comes behind the cancellation"
    say("watched")
    return kept


async def cancels(client):
    """Watches given up at any time, some before they are answered; none may hang in the server."""
    for at_once in (False, True):
        for _ in range(50):
            stream, watch = client.begin(f"{ROUTERS}?watch=1")
            if not at_once:
                await client.until(lambda: watch.status == 200, "a watch is answered")
            client.cancel(stream)
    status, _ = await client.whole(ROUTERS)
    assert status == 200, status
    say("cancelled")


async def sends_much(client):
    status, made = await client.whole(ROUTERS, method="POST", body=router(f"large-{stack}", text="x" * 200_000))
    assert status == 201, (status, made)
    status, got = await client.whole(f"{ROUTERS}/large-{stack}")
    assert status == 200 and got == made
    status, refused = await client.whole(ROUTERS, method="POST", body=json.dumps({"x": "y" * (8 << 20)}))
    assert status == 413 and refused["kind"] == "Status", (status, refused)
    say("refused")


async def sends_headers(client):
    """Header fields beyond all bounds end their own stream and nothing else."""
    # More bytes than the server takes at all; no more than that, but too many fields, each of which counts 32 bytes more.
    long, many = [(b"x-long", b"z" * 4000)] * 80, [(b"x", b"y")] * 4000
    for more in (long, many):
        _, answer = client.begin(ROUTERS, more=more)
        await client.until(lambda: answer.ended or answer.reset is not None, "an answer to a long header")
        assert (answer.status, answer.reset) == (431, None), (answer.status, answer.reset)
        status, _ = await client.whole(ROUTERS)
        assert status == 200, status
    say("bounded")


async def idles(client, watch):
    """No byte of ours: the server keeps the connection, and bookmarks show that the watch is alive."""
    bookmarks = lambda: [event for event in watch.events() if event["type"] == "BOOKMARK"]
    for number in (1, 2):
        await client.until(lambda: len(bookmarks()) >= number, f"bookmark {number} of an idle watch")
    say("idled")


async def is_told_to_go(client, kept):
    stream, half = client.begin(ROUTERS, method="POST", body=router(f"late-{stack}")[:-1], whole=False)
    status, _ = await client.whole(ROUTERS)
    assert status == 200, status
    say("ready")

    def told():
        return [one for stream in client.unidirectional.values() for one in goaways(stream)]

    await client.until(told, "a GOAWAY")
    last = max(client.answers)
    assert told()[-1] > last, f"GOAWAY {told()} does not cover stream {last}, whose request was answered"
    await client.until(lambda: kept.ended, "a watch ends in order")
    assert kept.reset is None, hex(kept.reset)
    refused_at, refused = client.begin(ROUTERS)
    await client.until(lambda: refused.reset is not None, "a request behind the GOAWAY is refused")
    assert refused_at >= told()[-1] and refused.reset == REQUEST_REJECTED, (refused_at, told(), refused.reset)
    client.http.send_data(stream, b"}", end_stream=True)
    client.transmit()
    await client.until(lambda: half.ended or half.reset is not None, "what runs is finished")
    assert half.status == 201, (half.status, half.reset, bytes(half.body))
    while client.closed is None:
        client.news.clear()
        await asyncio.wait_for(client.news.wait(), SOON)
    assert client.closed.error_code == NO_ERROR, client.closed
    say("gone")


async def main():
    address = socket.gethostbyname(parts.hostname)
    to = lambda idle: connect(address, parts.port, configuration=configuration(idle), create_protocol=Client)
    async with to(60) as client, to(15) as idle:
        _, watch = idle.begin(f"{ROUTERS}?watch=1&allowWatchBookmarks=true")
        since = await lists_and_creates(client)
        kept = await watches(client, since)
        await cancels(client)
        await sends_much(client)
        await sends_headers(client)
        await idles(idle, watch)
        await is_told_to_go(client, kept)


asyncio.run(main())
