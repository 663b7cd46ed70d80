"""The receiving half: inbox, handlers, consumer, local retry, error exchange."""
