"""What can go wrong with the gateway itself."""

from edge_daemon.errors import EdgeError


class GatewayError(EdgeError):
    """The gateway cannot serve: an address that cannot be had, a certificate that cannot be read, a missing extra."""


class OutboxError(EdgeError):
    """What waits for the daemon cannot be kept in the gateway's file, or be read from it."""
