"""From a delivery to its handler: what runs when, what waits, and whether anything moves."""
