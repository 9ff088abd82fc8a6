"""Converts checkpoints from and to gs://bucket, which a server on this machine serves from a folder.

python bucket_client.py SERVED_FOLDER LOCAL_FOLDER

The server answers what TensorStore asks of Google Cloud Storage's JSON API. TensorStore reads once where that is, hence a process.
"""

import http.server
import json
import os
import sys
import threading
import urllib.parse
from pathlib import Path


def make_server(root):
    """A server on a free port whose only bucket is a folder."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            """A list of objects, ``/storage/v1/b/BUCKET/o``, or one of them or a range of it, ``.../o/OBJECT``."""
            path, query = self._split()
            name = urllib.parse.unquote("/".join(path[6:]))
            if not name:
                low, high = query.get("startOffset", ""), query.get("endOffset", "\uffff")
                found = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
                items = [self._describe(each) for each in found if low <= each < high]
                return self._answer(200, json.dumps({"items": items}).encode())
            if not (root / name).is_file():
                return self._answer(404)
            content = (root / name).read_bytes()
            wanted = self.headers.get("Range")
            if wanted is None:
                return self._answer(200, content)
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(content) - int(last)
            part = content[start : int(last) + 1 if first and last else None]
            stop = start + len(part) - 1
            return self._answer(206, part, f"bytes {start}-{stop}/{len(content)}")

        def do_POST(self):
            """A new object, ``/upload/storage/v1/b/BUCKET/o?name=OBJECT``."""
            name = self._split()[1]["name"]
            content = self.rfile.read(int(self.headers["Content-Length"]))
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
            self._answer(200, json.dumps(self._describe(name)).encode())

        def log_message(self, *arguments):
            pass

        def _split(self):
            url = urllib.parse.urlsplit(self.path)
            return url.path.split("/"), dict(urllib.parse.parse_qsl(url.query))

        def _describe(self, name):
            size = (root / name).stat().st_size
            return {"name": name, "generation": "1", "size": str(size)}

        def _answer(self, code, content=b"", content_range=None):
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("x-goog-generation", "1")
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()
            self.wfile.write(content)

    return http.server.ThreadingHTTPServer(("localhost", 0), Handler)


def main(served, local):
    server = make_server(Path(served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = f"http://localhost:{server.server_address[1]}"
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    from jaxalign.interop.convert import convert

    for name in ("t5x", "t5x_orbax/checkpoint_7", "huggingface"):
        kind = name.partition("/")[0]
        convert(checkpoint=f"gs://bucket/{name}", output=f"{local}/from_{kind}")
    convert(checkpoint=f"{local}/from_t5x", output="gs://bucket/written/checkpoint_7", to="t5x")
    convert(checkpoint="gs://bucket/written", output=f"{local}/from_written")
    server.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
