from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpla.core.macros import Macros

MACROS = Macros(char="Ada", user="Sam", seed="chat", started=datetime(1851, 6, 2, 21, 5))


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("{{char}} greets {{user}}.", "Ada greets Sam."),
        ("{{ CHAR }} and <BOT>, <user> and {{User}}", "Ada and Ada, Sam and Sam"),
        ("It is {{time}} on {{weekday}}, {{date}}.", "It is 21:05 on Monday, 2 June 1851."),
        ("before{{// a note to myself}}after{{comment: another}}", "beforeafter"),
        ("{{random: only }}", "only"),
        ("{{roll:1d1}}{{roll:d1}}", "11"),
    ],
)
def test_known_macros_are_replaced(text: str, expanded: str) -> None:
    assert MACROS.expand(text) == expanded


@pytest.mark.parametrize(
    "text",
    [
        "{{''.__class__}}",
        "{{ config.items() }}",
        "{% for x in y %}{{x}}{% endfor %}",
        "{x.__globals__}",
        "${PATH}",
        "{{unknown}}",
        "{{}}",
        "{{char",
        "{{roll:999d99999}}",
        "{{roll:d0}}",
    ],
)
def test_anything_else_stays_text(text: str) -> None:
    assert MACROS.expand(text) == text


def test_what_a_macro_yields_is_not_expanded_again() -> None:
    assert Macros(char="{{user}}", user="{{char}}").expand("{{char}} {{user}}") == "{{user}} {{char}}"


def test_chance_is_the_same_for_one_chat_and_differs_between_chats() -> None:
    text = "{{random:" + ",".join(map(str, range(100))) + "}}"
    assert MACROS.expand(text) == MACROS.expand(text)
    assert len({Macros(char="a", user="b", seed=str(n)).expand(text) for n in range(20)}) > 10


@given(st.text(alphabet="{}charuse:rndom, |%/", max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    MACROS.expand(text)


def test_an_expansion_out_of_all_proportion_is_refused() -> None:
    bomb = "{{user}}" * 2000
    assert Macros(char="a", user="x" * 10_000).expand(bomb) == bomb
