"""Creates Routers one after the other until the server is gone; prints `name revision` for each that was acknowledged.

    write_loop.py CYCLE CERT KEY CA
"""

import http.client
import json
import ssl
import sys

cycle, cert, key, ca = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(cert, key)
connection = http.client.HTTPSConnection("127.0.0.1", 7443, context=context, timeout=10)
number = 0
while True:
    name = f"w{cycle}-{number}"
    router = {"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": name}, "spec": {}}
    try:
        connection.request(
            "POST", "/apis/edge.example.com/v1/routers", json.dumps(router), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        # Killed under way: what was not answered may or may not be there.
        break
    if response.status != 201:
        sys.exit(f"{response.status}: {body!r}")
    # Printed only now: this line is the acknowledgement.
    print(name, json.loads(body)["metadata"]["resourceVersion"], flush=True)
    number += 1
