"""What is done with one delivery, or one batch of them, before and while its handler runs."""
