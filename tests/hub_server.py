#!/usr/bin/env python3
"""A small server that answers as the model hub does, for tests/fetch.sh. Python's standard library only.

usage: hub_server.py DIR

Writes the models it publishes to DIR/published/MODEL/FILE, a line for every request to DIR/requests (server, path,
Range, Authorization, "-" where there is none), and when it listens, its port to DIR/port. Large files are redirected to
another port, "cdn". What is peculiar about a model is in `MODELS`.
"""
import hashlib
import http.server
import json
import os
import random
import sys
import threading
import urllib.parse

TOKEN = "hf_testTOKEN"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}}, indent=1).encode()


def noise(name, size):
    return random.Random(name).randbytes(size)


BASE = {
    "config.json": b'{"model_type": "bert"}\n',
    "vocab.txt": "[PAD]\n[UNK]\né\n".encode(),
    "tokenizer_config.json": b"{}",
    "README.md": b"",
}
WEIGHTS = {"model.safetensors": noise("weights", 300_001)}
JUNK = {  # never asked for
    "training_args.bin": b"x",
    "pytorch_model.bin": noise("pickle", 99),
    "onnx/model.onnx": b"x",
    "1_Pooling/config.json": b"not the model's",
    "model-00001-of-00002.safetensors.exe": b"x",
    "run.sh": b"echo no",
    'quo"te.json': b"x",
}

# name: (files, options). Options: token: needs one; cut: so many connections break half way; stuck: all break at once;
# no_range: sends whole files only; wrong, longer, shorter: the file with other bytes than listed; status: every
# answer's; pages: of the list; list: what stands in its place; half_list; evil: more paths in it; revision: the only
# one there is; loop: redirects to itself; location: redirects there.
MODELS = {
    "org/plain": ({**BASE, **WEIGHTS, **JUNK}, {}),
    "org/sharded": ({**BASE, "model.safetensors.index.json": INDEX, SHARDS[0]: b"one", SHARDS[1]: noise("two", 5000)},
                    {"pages": 3}),
    "org/lost-shard": ({**BASE, "model.safetensors.index.json": INDEX, SHARDS[0]: b"one"}, {}),
    "org/pickle": ({**BASE, "pytorch_model.bin": noise("pickle", 2000)}, {}),
    "org/adapter": ({"adapter_config.json": b'{"base_model_name_or_path": "org/plain"}',
                     "adapter_model.safetensors": b"lora"}, {}),
    "org/gated": ({**BASE, **WEIGHTS}, {"token": True}),
    "org/cut": ({**BASE, **WEIGHTS}, {"cut": 2}),
    "org/stuck": ({**BASE, **WEIGHTS}, {"stuck": True}),
    "org/no-range": ({**BASE, **WEIGHTS}, {"no_range": True}),
    "org/wrong": ({**BASE, **WEIGHTS}, {"wrong": "model.safetensors"}),
    "org/wrong-small": ({**BASE, **WEIGHTS}, {"wrong": "config.json"}),
    "org/shorter": ({**BASE, **WEIGHTS}, {"shorter": "model.safetensors"}),
    "org/longer": ({**BASE, **WEIGHTS}, {"longer": "model.safetensors"}),
    "org/evil": ({**BASE, **WEIGHTS}, {"evil": ["../evil", "../../evil", "/tmp/evil", "..", "", "a/../config.json",
                                               "vocab.json/../../evil", "x\\..\\y", "config.json\nevil 1 git 2"]}),
    "org/revision": ({**BASE, **WEIGHTS}, {"revision": "refs/pr/1"}),
    "org/no-weights": ({**BASE, "tf_model.h5": b"x"}, {}),
    "org/no-config": ({**WEIGHTS}, {}),
    "org/busy": ({}, {"status": 503}),
    "org/loop": ({}, {"loop": True}),
    "org/html": ({}, {"list": b"<html>[]</html>"}),
    "org/half-list": ({**BASE, **WEIGHTS}, {"half_list": True}),
    "org/other-scheme": ({}, {"location": "file:///etc/passwd"}),
}
cuts = {name: options.get("cut", 0) for name, (_, options) in MODELS.items()}


def entry(path, content):
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if len(content) > 1000 or path.endswith((".safetensors", ".bin")):
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return {"type": "file", "oid": "f" * 40, "size": len(content), "lfs": lfs, "path": path}
    return {"type": "file", "oid": blob, "size": len(content), "path": path}


def listing(name):
    files, options = MODELS[name]
    entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "vocab.json"}]
    entries += [entry(path, b"root:x") for path in options.get("evil", [])]
    return entries + [entry(path, content) for path, content in files.items()]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        which = "hub" if self.server.server_port == hub.server_port else "cdn"
        with lock, open(os.path.join(directory, "requests"), "a") as log:
            fields = [which, self.path, self.headers.get("Range", "-"), self.headers.get("Authorization", "-")]
            log.write(" ".join(fields) + "\n")
        parts = urllib.parse.urlparse(self.path).path.strip("/").split("/")
        if which == "cdn":
            self.cdn(parts)
        elif parts[:2] == ["api", "models"]:
            self.list(parts[2:])
        elif "resolve" in parts:
            self.resolve(parts)
        elif parts[0] == "cache":
            self.send_file("/".join(parts[1:3]), parts[3])
        else:
            self.answer(404)

    def refused(self, name):
        """Whether the request was answered without looking at the model's files."""
        if name not in MODELS:
            self.answer(404, b"Repository not found", **{"X-Error-Code": "RepoNotFound"})
            return True
        options = MODELS[name][1]
        authorization = self.headers.get("Authorization")
        if "status" in options:
            self.answer(options["status"], b"busy")
        elif "loop" in options:
            self.answer(302, Location=self.path)
        elif "location" in options:
            self.answer(302, Location=options["location"])
        elif options.get("token") and authorization is None:
            self.answer(401, b"Access is restricted", **{"X-Error-Code": "GatedRepo"})
        elif options.get("token") and authorization != "Bearer " + TOKEN:
            self.answer(403, b"Not yours", **{"X-Error-Code": "GatedRepo"})
        else:
            return False
        return True

    def list(self, parts):
        name, revision = "/".join(parts[: parts.index("tree")]), urllib.parse.unquote(parts[-1])
        if name == "bare":  # as the hub does with names that have no ORG
            self.answer(307, b"moved " * 50, Location="/api/models/org/plain/tree/main?recursive=1")
            return
        if self.refused(name):
            return
        options = MODELS[name][1]
        if revision != options.get("revision", "main"):
            self.answer(404, b"Invalid rev id", **{"X-Error-Code": "RevisionNotFound"})
            return
        entries, pages = listing(name), options.get("pages", 1)
        page = int(urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query).get("cursor", ["0"])[0])
        length = -(-len(entries) // pages)
        text = json.dumps(entries[page * length:(page + 1) * length], indent=1 if pages > 1 else None).encode()
        if "half_list" in options:
            text = text[: len(text) // 2]
        headers = {}
        if page + 1 < pages:
            url = f"http://127.0.0.1:{hub.server_port}/api/models/{name}/tree/main?recursive=1&cursor={page + 1}"
            headers["Link"] = f'<{url}>; rel="next"'
        self.answer(200, options.get("list", text), **headers)

    def resolve(self, parts):
        at = parts.index("resolve")
        name, file = "/".join(parts[:at]), parts[-1]
        if name == "bare":
            name = "org/plain"
        if self.refused(name):
            return
        content = MODELS[name][0].get(file)
        if content is None:
            self.answer(404, b"Entry not found")
        elif "lfs" in entry(file, content):
            url = f"http://127.0.0.1:{cdn.server_port}/{name}/{file}?signature=[a]{{b,c}}&x=1"
            self.answer(302, b"Found. Redirecting to " + url.encode(), Location=url)
        elif name == "org/plain":
            self.answer(307, b"moved " * 50, Location=f"/cache/{name}/{file}?etag=1")
        else:
            self.send_file(name, file)

    def cdn(self, parts):
        if self.headers.get("Authorization"):
            self.answer(400, b"Only one auth mechanism allowed")
        else:
            self.send_file("/".join(parts[:2]), parts[2])

    def send_file(self, name, file):
        files, options = MODELS[name]
        content, begin, status = files[file], 0, 200
        if options.get("wrong") == file:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if options.get("longer") == file:
            content += b"more"
        if options.get("shorter") == file:
            content = content[:1000]
        wanted = self.headers.get("Range")
        if wanted and "no_range" not in options:
            begin, status = int(wanted[len("bytes="):].split("-")[0]), 206
            if begin >= len(content):
                self.answer(416)
                return
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if "no_range" not in options:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if "lfs" in entry(file, files[file]) and ("stuck" in options or cuts[name] > 0):
            cuts[name] -= 1
            content = content[: begin if "stuck" in options else (begin + len(content)) // 2]
            self.close_connection = True
        self.wfile.write(content[begin:])


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # a client that hangs up: curl does after a redirection


directory = sys.argv[1]
for model, (published, _) in MODELS.items():
    for path, content in published.items():
        target = os.path.join(directory, "published", model, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as out:
            out.write(content)
lock = threading.Lock()
hub = Server(("127.0.0.1", 0), Handler)
cdn = Server(("127.0.0.1", 0), Handler)
with open(os.path.join(directory, "port.new"), "w") as out:
    out.write(f"{hub.server_port}\n")
os.rename(os.path.join(directory, "port.new"), os.path.join(directory, "port"))
threading.Thread(target=cdn.serve_forever, daemon=True).start()
hub.serve_forever()
