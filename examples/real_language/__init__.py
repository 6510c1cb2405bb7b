"""Real language models on a public-domain text: SmolLM2-135M continues it, all-MiniLM-L6-v2 finds the next verse."""
