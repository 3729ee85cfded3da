"""Makes adapters: from profiles to queries, responses, a dataset and a LoRA."""
