"""What a conversion costs: prompts, answers of the source, how far the predictions of its
result are from its own, and which bits cost least."""
