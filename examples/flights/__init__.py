"""Two services, two databases, 27,004 real flights: see README.md."""
