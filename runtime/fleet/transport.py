"""aiomqtt, with the acknowledgement in our hands.

aiomqtt acknowledges a QoS 1 message when it arrives, so a robot killed a moment later has lost the
command it had in hand: the broker will not send it again. ``AckingClient`` switches paho's manual
acknowledgement on underneath and acknowledges when told to, which is after the journal was written.
An unacknowledged message comes again on the next connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Iterator
from typing import Self

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from runtime.fleet.config import FleetConfig
from runtime.remote.errors import RemoteConfigError

RECEIVE_MAXIMUM = 16
# mosquitto 2.0.11 forgets the receive maximum after a reconnect and sends its whole queue. aiomqtt's
# own bound would silently drop what is over it, and what was dropped is never acknowledged, so it
# never comes again on this connection: the queue is left unbounded and the connection ended instead.
MAX_BACKLOG = 4096
MAX_PACKET_BYTES = 256 * 1024


class AckingClient(aiomqtt.Client):
    """One connection; make a new one for each attempt, so that an acknowledgement cannot reach
    a later connection on which its message id means another message."""

    def manual_acknowledgement(self) -> None:
        """Call once, before connecting."""
        self._client.manual_ack_set(True)

    def acknowledge(self, message: aiomqtt.Message) -> None:
        """Tell the broker that ``message`` is ours now. Does nothing once disconnected."""
        self._client.ack(message.mid, message.qos)

    async def __aenter__(self) -> Self:
        try:
            return await super().__aenter__()
        except BaseException:
            # aiomqtt leaves the socket of a failed attempt open: a late CONNACK would then take our
            # session over and swallow commands.
            self._abandon()
            raise

    def _abandon(self) -> None:
        loop = asyncio.get_running_loop()
        if self._misc_task is not None:
            self._misc_task.cancel()
        sock = self._client.socket()
        if sock is not None and sock.fileno() >= 0:
            loop.remove_reader(sock.fileno())
            loop.remove_writer(sock.fileno())
            with contextlib.suppress(OSError):
                sock.close()


def connect_properties(config: FleetConfig) -> Properties:
    """Persistent session, bounded flow."""
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = config.session_expiry_s
    properties.ReceiveMaximum = RECEIVE_MAXIMUM
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    return properties


def will(topic: str, payload: bytes, delay_s: int) -> aiomqtt.Will:
    """A retained last will, published ``delay_s`` after an unexpected disconnect."""
    properties = Properties(PacketTypes.WILLMESSAGE)
    properties.WillDelayInterval = delay_s
    return aiomqtt.Will(topic, payload, qos=1, retain=True, properties=properties)


def publish_properties(
    *, correlation: bytes | None = None, response: str | None = None, expiry_s: int | None = None
) -> Properties:
    """Properties of one PUBLISH."""
    properties = Properties(PacketTypes.PUBLISH)
    if correlation is not None:
        properties.CorrelationData = correlation
    if response is not None:
        properties.ResponseTopic = response
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    return properties


def tls_context(config: FleetConfig) -> ssl.SSLContext | None:
    """Mutual TLS from the configured files, None for loopback plaintext. Raises RemoteConfigError."""
    if config.tls is None:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(config.tls.ca))
        context.load_cert_chain(str(config.tls.certificate), str(config.tls.key))
    except (OSError, ssl.SSLError) as error:
        raise RemoteConfigError(
            f"cannot use the [fleet.tls] files ({error})", "check the three paths"
        ) from error
    return context


def password(config: FleetConfig) -> str | None:
    """The broker password from its file, or None. Raises RemoteConfigError."""
    if config.password_file is None:
        return None
    try:
        return config.password_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RemoteConfigError(f"cannot read {config.password_file} ({error})", "check the path") from error


def backoff(min_s: float, max_s: float, rng: random.Random) -> Iterator[float]:
    """Waits between attempts, seconds: full jitter under a doubling ceiling, so that a fleet does not
    come back in step after its broker restarts."""
    ceiling = min_s
    while True:
        yield rng.uniform(0.0, ceiling)
        ceiling = min(max_s, ceiling * 2)
