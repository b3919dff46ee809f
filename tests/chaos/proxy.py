"""A TCP proxy on a free port of the loopback address that can be told to misbehave while connections are open."""
import select
import socket
import threading
import time


class Proxy:
    """Passes bytes to and from `target`. Faults apply to every connection, open and new, until mended.

    cut()          resets every open connection; new ones pass
    refuse         new connections are closed at once
    silent         bytes are swallowed in both directions, no FIN either: a half-open connection
    delay          seconds each piece waits
    rate           bytes a second and direction
    cut_after(b)   resets the connection on which the client has just sent `b`, once, after passing it on: the answer is lost
    half_close()   ends the server's direction of every open connection, keeps the client's
    """

    def __init__(self, target):
        self.target = target
        self.refuse = self.silent = False
        self.delay = 0.0
        self.rate = None
        self.marker = None
        self.marked = threading.Event()
        self.pairs = set()
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.refuse:
                reset(client)
                continue
            try:
                server = socket.create_connection(self.target, 5)
            except OSError:
                reset(client)
                continue
            for end in (client, server):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, server)
            with self.lock:
                self.pairs.add(pair)
            threading.Thread(target=self._pump, args=(client, server, pair, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, pair, False), daemon=True).start()

    def _pump(self, source, sink, pair, from_client):
        try:
            while True:
                readable, _, _ = select.select([source], [], [], 0.5)
                if not readable:
                    continue
                data = source.recv(65536)
                if self.silent:
                    if not data:
                        while self.silent:
                            time.sleep(0.05)
                        break
                    continue
                if not data:
                    break
                if self.delay:
                    time.sleep(self.delay)
                if self.rate:
                    time.sleep(len(data) / self.rate)
                hit = from_client and self.marker is not None and self.marker in data
                if hit:
                    self.marker = None
                sink.sendall(data)
                if hit:
                    # The server does what it was asked; its answer never comes back.
                    time.sleep(0.3)
                    self.marked.set()
                    break
        except (OSError, ValueError):
            pass
        self._end(pair)

    def _end(self, pair):
        with self.lock:
            if pair not in self.pairs:
                return
            self.pairs.discard(pair)
        for end in pair:
            reset(end)

    def cut(self):
        with self.lock:
            pairs = list(self.pairs)
        for pair in pairs:
            self._end(pair)
        return len(pairs)

    def half_close(self):
        with self.lock:
            pairs = list(self.pairs)
        for client, _ in pairs:
            try:
                client.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def cut_after(self, data):
        self.marked.clear()
        self.marker = data

    def mend(self):
        self.refuse = self.silent = False
        self.delay, self.rate, self.marker = 0.0, None, None

    def close(self):
        self.listener.close()
        self.mend()
        self.cut()


def reset(end):
    """Closes with RST, as a dying host or a firewall does."""
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    finally:
        end.close()
