from rpla.core.demonstrations import Exchange, nearest_exchanges, read_exchanges

DIALOGUE = """<START>
{{user}}: Do you like the sea?
{{char}}: I married it.
And it is a poor correspondent.
<START>
{{user}}: One thing.
{{user}}: And another.
{{char}}: One at a time.
{{char}}: Well?
<start>
<USER>: Old style.
<BOT>: Old answer.
"""


def test_exchanges_are_read_in_order_with_their_further_lines() -> None:
    assert read_exchanges(DIALOGUE) == (
        Exchange("Do you like the sea?", "I married it.\nAnd it is a poor correspondent."),
        Exchange("One thing.\nAnd another.", "One at a time."),
        Exchange("…", "Well?"),
        Exchange("Old style.", "Old answer."),
    )


def test_text_without_labels_is_no_demonstration() -> None:
    assert read_exchanges("She speaks softly.\n\n<START>\n") == ()


def test_the_nearest_exchange_comes_last_and_others_are_left_out() -> None:
    subjects = ["storms", "bread", "clockwork", "taxes", "herring", "lamps", "cats"]
    exchanges = [Exchange(f"Tell me about {subject}.", f"I know all about {subject}.") for subject in subjects]
    shown = nearest_exchanges(exchanges, "What do you think of clockwork?", k=3)
    assert len(shown) == 3
    assert shown[-1].user == "Tell me about clockwork."


def test_a_message_of_stop_words_still_finds_exchanges() -> None:
    exchanges = [Exchange(f"question {n}", f"answer {n}") for n in range(8)]
    assert nearest_exchanges(exchanges, "and the of", k=2) == (exchanges[1], exchanges[0])
