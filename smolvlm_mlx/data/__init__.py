"""Rows of questions with answers, for training and evaluation."""
