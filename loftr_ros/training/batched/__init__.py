"""Pairs made in batches by torch, on any device: numbers are drawn on the host, pixels are computed on the device."""
