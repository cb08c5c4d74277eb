"""Fine-tuning: the last layers of a backbone trained on together with the head."""
