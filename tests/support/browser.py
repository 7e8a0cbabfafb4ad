"""The media of a browser: ICE, DTLS-SRTP and one stream of numbered voice (RFC 8835, RFC 5764).

It does what Chromium does with a new description: new ICE credentials are another ICE session beside the one
that works, which carries the packets until the other is there; another certificate of the far side is
another DTLS association; with neither, everything stays. A datagram that is none of what it knows is dropped.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from aioice import Candidate, Connection
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL
from pylibsrtp import Error as SrtpError
from pylibsrtp import Policy, Session

from ari_ha.farend.rtp import PACKET_MS, VOICE, classify, set_voice, voice_buffer
from ari_ha.sip.sdp import Media, SessionDescription

Identity = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
PROTO = "UDP/TLS/RTP/SAVPF"
PROFILES = {b"SRTP_AES128_CM_SHA1_80": Policy.SRTP_PROFILE_AES128_CM_SHA1_80}
KEY_BYTES, SALT_BYTES = 16, 14
EVENT_PT = 126
CONNECT_LIMIT_S = 8.0
DTLS_LOOK_S = 0.05


def _certificate() -> Identity:
    """A self-signed one: its fingerprint is what counts (RFC 8122)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "browser")])
    now = datetime.datetime.now(datetime.UTC)
    one_day = datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - one_day)
        .not_valid_after(now + one_day)
        .sign(key, hashes.SHA256())
    )
    return made, key


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _one(audio: Media, session: SessionDescription, name: str) -> str:
    """A media attribute, or the session's."""
    found = audio.attributes(name)
    prefix = f"a={name}:"
    return next(
        iter([*found, *(line[len(prefix) :] for line in session.lines if line.startswith(prefix))]), ""
    )


class Dtls:
    """One DTLS association and the SRTP keys it agreed on."""

    def __init__(self, identity: Identity, client: bool, expected: str) -> None:
        context = SSL.Context(SSL.DTLS_METHOD)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        context.use_certificate(identity[0])
        context.use_privatekey(identity[1])
        context.set_tlsext_use_srtp(b":".join(PROFILES))
        self.ssl = SSL.Connection(context)
        self.client = client
        self.expected = expected.upper()
        """The far certificate's SHA-256, as SDP writes it."""
        self.up = asyncio.Event()
        self.failed = ""
        self.inbound: Session | None = None
        self.outbound: Session | None = None
        if client:
            self.ssl.set_connect_state()
        else:
            self.ssl.set_accept_state()

    def step(self, data: bytes = b"") -> list[bytes]:
        """Takes a datagram, or the time that passed; returns what is to be sent."""
        if data:
            self.ssl.bio_write(data)
        try:
            if not data and not self.up.is_set() and self.ssl.DTLSv1_get_timeout() == 0:
                self.ssl.DTLSv1_handle_timeout()
            if self.up.is_set():
                self.ssl.recv(4096)
            elif not self.failed:
                self.ssl.do_handshake()
                self._established()
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            self.failed = str(error) or type(error).__name__
        out = []
        while True:
            try:
                out.append(self.ssl.bio_read(4096))
            except SSL.Error:
                return out

    def _established(self) -> None:
        certificate = self.ssl.get_peer_certificate(as_cryptography=True)
        seen = _fingerprint(certificate) if certificate else "none"
        if seen != self.expected:
            self.failed = f"certificate {seen}, not {self.expected}"
            return
        profile = PROFILES[self.ssl.get_selected_srtp_profile()]
        material = self.ssl.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (KEY_BYTES + SALT_BYTES))
        keys = [material[:KEY_BYTES], material[KEY_BYTES : 2 * KEY_BYTES]]
        salts = [material[2 * KEY_BYTES : -SALT_BYTES], material[-SALT_BYTES:]]
        client, server = (key + salt for key, salt in zip(keys, salts, strict=True))
        ours, theirs = (client, server) if self.client else (server, client)
        self.outbound = Session(Policy(ours, Policy.SSRC_ANY_OUTBOUND, profile))
        self.inbound = Session(Policy(theirs, Policy.SSRC_ANY_INBOUND, profile))
        self.up.set()


@dataclass
class Heard:
    """What came out of SRTP."""

    at: list[float] = field(default_factory=list)
    """Monotonic times of packets."""
    voice: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(stream, number) -> how often."""
    unreadable: int = 0


class Browser:
    """One peer connection with one audio stream."""

    def __init__(
        self, stream: int = 1, hertz: int = 400, pt: int = 8, networks: Sequence[str] = (), first: int = 0
    ) -> None:
        """`networks`: our addresses that are told; all when empty. `first`: the packet before the first."""
        self.identity = _certificate()
        self._networks = networks
        self.heard = Heard()
        self.handshakes = 0
        self.ice_connects = 0
        self.number = first
        self.sending = True
        self._version = 0
        self._pt = pt
        self._packet = voice_buffer(stream, 1000 + stream, hertz)
        self._ice: Connection | None = None
        """The one packets go through."""
        self._next: Connection | None = None
        """The one being made."""
        self._dtls: Dtls | None = None
        self._remote_ufrag = self._remote_print = ""
        self._tasks: list[asyncio.Task[None]] = []

    # descriptions

    async def offer(self) -> str:
        """Our offer for a new connection."""
        if self._ice is None and self._next is None:
            await self._gather(controlling=True)
        return self._describe("actpass")

    def offer_again(self, direction: str) -> str:
        """An offer that changes the direction only."""
        return self._describe("actpass", direction)

    async def offer_moved(self) -> str:
        """An offer from other addresses: another ICE session, with the keys of before."""
        await self._gather(controlling=True)
        return self._describe("actpass")

    async def answer(self, offer: str) -> str:
        """Takes an offer, the first or a later one."""
        session = SessionDescription.parse(offer)
        audio = session.audio()
        assert audio and audio.proto == PROTO, offer
        role = "active" if _one(audio, session, "setup") in ("actpass", "passive") else "passive"
        if self._dtls and _one(audio, session, "fingerprint") == self._remote_print:
            role = "active" if self._dtls.client else "passive"
        if _one(audio, session, "ice-ufrag") != self._remote_ufrag and self._next is None:
            await self._gather(controlling=False)
        own = self._describe(role)
        self._take(session, audio, role == "active")
        return own

    def answered(self, answer: str) -> None:
        """The far side's answer to our offer."""
        session = SessionDescription.parse(answer)
        audio = session.audio()
        assert audio and audio.proto == PROTO, answer
        self._take(session, audio, _one(audio, session, "setup") == "passive")

    async def _gather(self, controlling: bool) -> None:
        self._next = Connection(ice_controlling=controlling, components=1, use_ipv6=False)
        await self._next.gather_candidates()

    def _describe(self, setup: str, direction: str = "sendrecv") -> str:
        ice = self._next or self._ice
        assert ice
        self._version += 1
        candidates = [item for item in ice.local_candidates if item.type == "host"]
        candidates = [item for item in candidates if not self._networks or item.host in self._networks]
        default = candidates[0]
        lines = [
            "v=0", f"o=- 77 {self._version} IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0",
            f"m=audio {default.port} {PROTO} 111 0 8 {EVENT_PT}", f"c=IN IP4 {default.host}",
            *(f"a=candidate:{item.to_sdp()}" for item in candidates),
            f"a=ice-ufrag:{ice.local_username}", f"a=ice-pwd:{ice.local_password}",
            f"a=fingerprint:sha-256 {_fingerprint(self.identity[0])}", f"a=setup:{setup}",
            "a=mid:0", "a=rtcp-mux", "a=rtpmap:111 opus/48000/2", "a=rtpmap:0 PCMU/8000",
            "a=rtpmap:8 PCMA/8000", f"a=rtpmap:{EVENT_PT} telephone-event/8000", f"a={direction}", "",
        ]  # fmt: skip
        return "\r\n".join(lines)

    def _take(self, session: SessionDescription, audio: Media, client: bool) -> None:
        ufrag, printed = _one(audio, session, "ice-ufrag"), _one(audio, session, "fingerprint")
        if ufrag != self._remote_ufrag:
            assert self._next, "new ICE credentials in the answer to an offer without"
            self._remote_ufrag = ufrag
            self._next.remote_username = ufrag
            self._next.remote_password = _one(audio, session, "ice-pwd")
            candidates = [Candidate.from_sdp(item) for item in audio.attributes("candidate")]
            self._spawn(self._connect(self._next, [item for item in candidates if item.component == 1]))
        if printed != self._remote_print:
            self._remote_print = printed
            self._dtls = Dtls(self.identity, client, printed.partition(" ")[2])
            self._spawn(self._shake(self._dtls))

    # packets

    def _spawn(self, work) -> None:
        self._tasks.append(asyncio.ensure_future(work))

    async def _connect(self, ice: Connection, candidates: list[Candidate]) -> None:
        for candidate in candidates:
            await ice.add_remote_candidate(candidate)
        await ice.add_remote_candidate(None)
        await ice.connect()
        self.ice_connects += 1
        old, self._ice = self._ice, ice
        if self._next is ice:
            self._next = None
        self._spawn(self._read(ice))
        if old:
            await old.close()

    async def _read(self, ice: Connection) -> None:
        try:
            while True:
                self._received(await ice.recv())
        except ConnectionError:
            return

    def _received(self, data: bytes) -> None:
        dtls = self._dtls
        if dtls is None or not data:
            return
        if 20 <= data[0] < 64:
            self._write(dtls.step(data))
        elif 128 <= data[0] < 192 and dtls.inbound and not 192 <= data[1] < 224:
            try:
                packet = dtls.inbound.unprotect(data)
            except SrtpError:
                self.heard.unreadable += 1
                return
            self.heard.at.append(time.monotonic())
            kind, source, number, _ = classify(packet, len(packet), EVENT_PT)
            if kind == VOICE:
                self.heard.voice[source, number] += 1

    def _write(self, packets: list[bytes]) -> None:
        if self._ice:
            for packet in packets:
                self._spawn(self._send(self._ice, packet))

    @staticmethod
    async def _send(ice: Connection, packet: bytes) -> None:
        try:
            await ice.send(packet)
        except ConnectionError:
            pass

    async def _shake(self, dtls: Dtls) -> None:
        while self._dtls is dtls and not dtls.up.is_set() and not dtls.failed:
            if self._ice and (self._next is None or not dtls.client):
                self._write(dtls.step())
            await asyncio.sleep(DTLS_LOOK_S)
        if dtls.up.is_set():
            self.handshakes += 1

    async def connected(self, limit_s: float = CONNECT_LIMIT_S) -> None:
        """Until packets can be sent and read. Raises TimeoutError."""
        async with asyncio.timeout(limit_s):
            while not (self._ice and self._dtls and self._dtls.up.is_set()):
                await asyncio.sleep(0.01)

    @property
    def dtls(self) -> Dtls | None:
        """The association of today."""
        return self._dtls

    async def talk(self) -> None:
        """Numbered voice every 20 ms, for ever."""
        due = time.monotonic()
        while True:
            due += PACKET_MS / 1000
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.number += 1
            if self.sending and self._ice and self._dtls and self._dtls.outbound:
                number = self.number
                set_voice(self._packet, self._pt, number & 0xFFFF, number * 160, number, number == 1)
                self._write([self._dtls.outbound.protect(bytes(self._packet))])

    async def close(self) -> None:
        """Ends it without a word, as a closed tab does."""
        for task in self._tasks:
            task.cancel()
        for ice in (self._ice, self._next):
            if ice:
                await ice.close()
