"""What the Triton kernels of several operators share. Only modules that hold kernels need triton; they are imported
when first used."""
