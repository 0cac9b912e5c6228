"""What the first byte of a conversation says about the protocol of its sender."""

from pysocksify.errors import RemoteProtocolError

# The version bytes of SOCKS4 and SOCKS5 messages, the record types "alert" and "handshake" of TLS (RFC 8446 section
# 5.1), and the letters that other servers' first lines begin with: HTTP/1.1, SSH-2.0, and the 220 of SMTP and FTP.
_SENDERS = {
    0x00: "a SOCKS4 server",
    0x04: "SOCKS4",
    0x05: "SOCKS5",
    0x15: "TLS",
    0x16: "TLS",
    ord("2"): "a mail or FTP server",
    ord("H"): "an HTTP server",
    ord("S"): "an SSH server",
}


def wrong_version(message: str, got: int, wanted: int) -> RemoteProtocolError:
    """The error for a message that begins with a version byte other than `wanted`."""
    sender = _SENDERS.get(got)
    looks = f"; it looks like {sender}" if sender else ""
    return RemoteProtocolError(f"{message} has version byte 0x{got:02X} instead of 0x{wanted:02X}{looks}")


def unknown_protocol(got: int) -> RemoteProtocolError:
    """The error for a client that begins with a byte of no protocol that we serve."""
    sender = _SENDERS.get(got)
    looks = f" and looks like {sender}" if sender else ""
    return RemoteProtocolError(f"first byte 0x{got:02X} is neither SOCKS4, SOCKS5 nor HTTP{looks}")
