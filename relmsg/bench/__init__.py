"""What `relmsg bench` runs: the product's own paths on the user's own services, in a place of its own."""
