"""The values and services every other floor stands on: characters, prompts, models, the chat log, settings."""
