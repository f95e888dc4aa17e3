"""Table 5 of the paper: training time per image of the compared systems, one full step each."""
