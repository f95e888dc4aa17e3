"""Triton versions of the operators. The modules need triton and are imported when first used."""
