"""Kernels: operators of torch's with an implementation of their own."""
