"""Files of networks: reading, writing and checking them."""
