"""Reliable messaging for Python services on RabbitMQ and PostgreSQL."""
