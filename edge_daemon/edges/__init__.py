"""Where the daemon meets the world: sockets, journal, and the way of an outcome out."""
