"""Sampling of responses. A sampler knows nothing of gradients."""
