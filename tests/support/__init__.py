"""What the tests are built with: the services, real processes, a broker to look into, a network that fails."""
