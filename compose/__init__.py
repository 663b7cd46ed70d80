"""PostgreSQL and RabbitMQ for one's own machine: compose.yaml with Docker, local.py without."""
