"""What the commands of :mod:`msa_model.cli` declare and do."""
