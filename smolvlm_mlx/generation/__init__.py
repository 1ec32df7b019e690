"""Inputs -> text: one loop chooses tokens, for one answer or many; what was computed once is
kept."""
