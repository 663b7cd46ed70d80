"""Bytes and rules of AMQP 0-9-1, without sockets."""
