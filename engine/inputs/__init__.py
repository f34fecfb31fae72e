"""Networks and data as people have them."""
