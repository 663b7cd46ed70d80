"""Who has sent a message, and who may read it: signatures, trusted senders, encrypted bodies."""
