"""Fine-tuning: conversations -> batches -> trained parameters."""
