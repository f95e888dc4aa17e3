"""The operator in Triton. `conditions` needs no triton; the other modules do, and are imported when first used."""
