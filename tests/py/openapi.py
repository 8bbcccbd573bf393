"""What an APIServer's own OpenAPI documents promise, tried by schemathesis.

    openapi.py URL CERT KEY CA SEED EXAMPLES

For each document it makes requests that the document allows and requests that it does not, and judges every answer: no server error,
no status, media type, header or body that is not described, no method taken that is not there. Prints one line per document; any other
end is a failure.
"""

import json
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

url, cert, key, ca, seed, examples = sys.argv[1:]
# All but whether what a document allows is taken: as Kubernetes' documents, ours do not say which words an option may have, what a
# selector or a token of a page looks like, nor that `apiVersion` and `kind` must be there.
CHECKS = [
    "negative_data_rejection",
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
]
# A watch has no end that a client could wait for, and is no JSON document.
ENDLESS = ("watch", "sendInitialEvents")
# An answer that takes longer hangs.
SECONDS = "20"

tls = ssl.create_default_context(cafile=ca)
tls.load_cert_chain(cert, key)


def get(path):
    with urllib.request.urlopen(url + path, context=tls, timeout=20) as answer:
        return json.load(answer)


def tried(name, document, folder):
    for operations in document["paths"].values():
        for operation in operations.values():
            if isinstance(operation, dict):
                wanted = [one for one in operation.get("parameters", []) if one["name"] not in ENDLESS]
                operation["parameters"] = wanted
    schema = Path(folder) / "openapi.json"
    schema.write_text(json.dumps(document))
    command = [Path(sys.executable).with_name("schemathesis"), "run", schema, "--url", url]
    command += ["--tls-verify", ca, "--request-cert", cert, "--request-cert-key", key, "--request-timeout", SECONDS]
    command += ["--seed", seed, "--max-examples", examples, "--phases", "coverage,fuzzing", "--generation-database", "none"]
    command += ["--checks", ",".join(CHECKS), "--suppress-health-check", "all", "--no-color"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, f"{name}: {ended.stdout}{ended.stderr}"
    made = re.search(r"(\d+) generated", ended.stdout)
    assert made and int(made[1]) > 0, f"{name}: nothing was tried: {ended.stdout}"
    print(f"{name}: {made[1]} requests", flush=True)


for path, document in get("/openapi/v3")["paths"].items():
    with tempfile.TemporaryDirectory() as folder:
        tried(path, get(document["serverRelativeURL"]), folder)
