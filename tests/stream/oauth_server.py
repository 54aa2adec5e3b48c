"""A real OAuth 2 server over HTTPS, which gives whatever it is told to."""

import http.server
import json
import ssl
import threading
from pathlib import Path
from urllib.parse import parse_qs

import trustme

from service.settings import ClientCredentials

SECRET = "s3cret/+&="
TOKEN = "a.b-c_d"


class OAuthServer:
    """Gives `answer` to whoever asks, and remembers what was asked."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self.give(TOKEN)
        self.location: str | None = None
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.asked.append((self.headers["Authorization"], parse_qs(body)))
                self.send_response(outer.answer[0])
                if outer.location:
                    self.send_header("Location", outer.location)
                self.end_headers()
                self.wfile.write(outer.answer[1])

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def give(self, token: str) -> None:
        self.answer = 200, json.dumps({"access_token": token, "expires_in": 300}).encode()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def settings(self, **changed: object) -> ClientCredentials:
        fields = {
            "token_url": f"https://127.0.0.1:{self.server.server_address[1]}/token",
            "client_id": "me:too",
            "client_secret": SECRET,
            "ca_file": self.ca_file,
        }
        return ClientCredentials.model_validate(fields | changed)
