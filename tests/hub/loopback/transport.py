"""HTTP of the loopback Hub: requests in, answers and faults out."""

import os
import socket
import struct
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.hub.loopback import calls, reading, repos, writing

# Their functions enter themselves; this only says that they are wanted.
ANSWERS = (reading, repos, writing)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub, bound):
        super().__init__(bound.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.hub = hub
        self.connections = set()
        self.server_activate()

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """Say nothing: clients that hang up are part of the tests."""

    def close_connections(self):
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class _HangUp(Exception):
    """The connection ends here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are two packets; waiting for the first costs 40 ms.
    disable_nagle_algorithm = True

    def answer(self):
        hub = self.server.hub
        hub.log.append((self.command, self.path))
        fault = hub.fault(self.command, self.path)
        try:
            body = self._body(fault and fault.cut_upload)
            if fault and fault.answer:
                self._send(fault.answer)
            else:
                self._send(self._call(hub, body), fault)
        except (_HangUp, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _call(self, hub, body):
        split = urlsplit(self.path)
        call = calls.Call(
            hub,
            self.command,
            split.path,
            parse_qs(split.query),
            self.headers,
            body,
        )
        try:
            with hub.lock:
                return calls.answer(call)
        except calls.Refusal as refusal:
            return refusal.answer
        except Exception:
            hub.errors.append(traceback.format_exc())
            return calls.error(500, None, "A mistake of the loopback Hub")

    def _body(self, limit):
        body = bytearray()
        for piece in self._pieces(int(self.headers.get("Content-Length", 0))):
            body += piece
            if limit is not None and len(body) >= limit:
                self._hang_up()
        return bytes(body)

    def _pieces(self, left):
        while left:
            piece = self.rfile.read(min(left, 2**16))
            if not piece:
                raise _HangUp
            left -= len(piece)
            yield piece

    def _send(self, answer, fault=None):
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, str(value))
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.cut is not None:
            self.wfile.write(answer.body[: fault.cut])
            self._hang_up(fault.reset)
        self.wfile.write(answer.body)

    def _hang_up(self, reset=False):
        if reset:
            self.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            # Without the farewell that the server would send first.
            os.close(self.connection.detach())
        raise _HangUp

    def log_message(self, *_):
        """Say nothing: the log is `hub.log`."""
