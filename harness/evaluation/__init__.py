"""Evaluation of one model on a suite of tasks, through lm-eval."""
