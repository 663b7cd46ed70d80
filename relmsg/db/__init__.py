"""PostgreSQL, as every part of relmsg meets it."""
