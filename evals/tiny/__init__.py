"""The embedded models: tiny Mixture-of-Experts language models in Hugging Face layout, and their own inference."""
