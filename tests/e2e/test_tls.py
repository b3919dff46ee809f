"""TLS to the broker and to destinations: verified against the authority that is named, refused in words otherwise."""
import os
import re
import select
import socket
import ssl
import subprocess
import threading
import unittest
import warnings

from harness import Ledger, TaktTest, eventually

CONFIG = """
metrics: {listen: "127.0.0.1:0"}
broker: {ca_file: "{ca}"}
jobs:
  trusted:
    handler: {http: {url: "{https}/trusted", method: POST, ca_file: "{ca}"}}
  untrusted:
    handler: {http: {url: "{https}/untrusted", method: POST}}
    max_attempts: 1
"""
REFUSED = """  {name}:
    handler: {http: {url: "{https}/{name}", method: POST, ca_file: "{ca}"}}
    max_attempts: 1
"""


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def openssl(*arguments):
    run("openssl", *arguments)


class TlsProxy:
    """Ends TLS in front of a plain port."""

    def __init__(self, context, host, port):
        self.context, self.target = context, (host, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client):
        try:
            client = self.context.wrap_socket(client, server_side=True)
            server = socket.create_connection(self.target)
        except OSError:
            client.close()
            return
        with client, server:
            while True:
                ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                for source, sink in ((client, server), (server, client)):
                    if source in ready:
                        try:
                            data = source.recv(65536)
                            if not data:
                                return
                            sink.sendall(data)
                        except OSError:
                            return

    def close(self):
        self.listener.close()


class Tls(TaktTest):
    def setUp(self):
        super().setUp()
        self.ca = os.path.join(self.folder, "ca.pem")
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=Test authority", "-keyout", self.path("ca.key"), "-out", self.ca)
        found = re.match(r"amqp://([^@]*)@([^:/]*):(\d+)/(.*)", self.amqp_url)
        self.credentials, host, port, self.amqp_vhost = found[1], found[2], int(found[3]), found[4]
        self.good = self.certificate("good", "DNS:localhost,IP:127.0.0.1")
        self.wrong = self.certificate("wrong", "DNS:elsewhere.example")
        self.proxies = [TlsProxy(self.good, host, port), TlsProxy(self.wrong, host, port)]
        self.ledger.close()
        self.ledger = Ledger()
        destination = self.ledger.server.server_address
        refused = {"misnamed": self.wrong, "expired": self.certificate("expired", "IP:127.0.0.1", "faketime", "-f", "-5d"),
                   "selfsigned": self.self_signed(), "outdated": self.outdated()}
        self.proxies.append(TlsProxy(self.good, *destination))
        self.jobs = CONFIG.replace("{https}", f"https://127.0.0.1:{self.proxies[-1].port}")
        for name, context in refused.items():
            self.proxies.append(TlsProxy(context, *destination))
            self.jobs += REFUSED.replace("{https}", f"https://127.0.0.1:{self.proxies[-1].port}").replace("{name}", name)
        self.jobs = self.jobs.replace("{ca}", self.ca)
        self.refused = ["untrusted", *refused]

    def tearDown(self):
        for proxy in self.proxies:
            proxy.close()
        super().tearDown()

    def path(self, name):
        return os.path.join(self.folder, name)

    def self_signed(self):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=self", "-addext", "subjectAltName=IP:127.0.0.1",
                "-keyout", self.path("self.key"), "-out", self.path("self.pem"))
        return self.server_context("self")

    def outdated(self):
        """Speaks TLS 1.1 and nothing later."""
        context = self.certificate("outdated", "IP:127.0.0.1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        return context

    def certificate(self, name, alternative, *signed_by):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", self.path(name + ".key"), "-out", self.path(name + ".csr"))
        with open(self.path(name + ".ext"), "w", encoding="utf-8") as file:
            file.write(f"subjectAltName={alternative}\n")
        run(*signed_by, "openssl", "x509", "-req", "-in", self.path(name + ".csr"), "-CA", self.ca, "-CAkey", self.path("ca.key"), "-CAcreateserial", "-days", "2",
            "-extfile", self.path(name + ".ext"), "-out", self.path(name + ".pem"))
        return self.server_context(name)

    def server_context(self, name):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(name + ".pem"), self.path(name + ".key"))
        return context

    def amqps(self, proxy):
        return f"amqps://{self.credentials}@localhost:{proxy.port}/{self.amqp_vhost}"

    def test_H4_work_goes_through_verified_tls_and_stops_at_what_is_not(self):
        self.environment["TAKT_AMQP_URL"] = self.amqps(self.proxies[0])
        self.install(self.jobs)
        self.start("up")
        items = {job: self.enqueue(job) for job in ("trusted", *self.refused)}
        eventually(lambda: self.state(items["trusted"]) == "done", what="the delivery over TLS")
        for job in self.refused:
            eventually(lambda job=job: self.state(items[job]) == "dead", what=f"the refusal of {job}")
            reason, error = self.rows("SELECT reason, error FROM takt.failed_attempts WHERE item_id = %s", items[job])[0]
            self.assertEqual(reason, "tls")
            self.assertRegex(error, {"outdated": "(?i)protocol version|unsupported protocol", "expired": "(?i)expired"}.get(job, "(?i)certificate|subject name|issuer"))
        self.assertEqual([d["path"] for d in self.ledger.deliveries], ["/trusted"], "nothing was sent to whom it was not meant for")

    def test_a_broker_that_is_not_the_one_named_is_refused(self):
        self.install(self.jobs)
        self.environment["TAKT_AMQP_URL"] = self.amqps(self.proxies[1])
        shown = self.takt("worker", expect=1)
        self.assertRegex(shown, "(?i)hostname|certificate|TLS|SSL")
        self.assertNotIn(self.credentials.split(":")[1], shown)

        with open(self.config, encoding="utf-8") as file:
            system_only = re.sub(r"broker: .*\n", "", file.read())
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(system_only)
        self.environment["TAKT_AMQP_URL"] = self.amqps(self.proxies[0])
        self.assertRegex(self.takt("worker", expect=1), "(?i)certificate|TLS|SSL")


if __name__ == "__main__":
    unittest.main()
