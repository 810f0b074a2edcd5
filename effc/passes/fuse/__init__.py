"""Fusion: contractions take their elementwise consumers as epilogues, everything else elementwise becomes ``fused``
regions."""
