"""The task gsm8k: questions, prompts and scoring exactly as lm-eval's, and lm-eval itself where it is installed."""
