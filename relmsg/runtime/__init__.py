"""What any process of relmsg needs, whatever it does."""
