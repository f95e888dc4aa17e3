"""Evaluation: what is measured (`metrics`, `learned_metrics`), on which images and holes (`pairs`), against which fills
(`fills`, `paper_figures`), and how it is reported (`report`); `attention_maps` shows where the holes look."""
