"""Adder networks: layers that only add, in place of convolutions."""
