"""Training: `config` (what a run depends on), `trainer` (one step), `run` (the loop), `checkpoints`, `ablation`."""
