"""LangGraph graphs: the chat turn."""
