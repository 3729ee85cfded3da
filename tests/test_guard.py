import pytest

from rpla.core.character import Character, Persona
from rpla.core.guard import Guard
from rpla.core.ids import new_id

ADA = Character(id=new_id(), slug="ada", name="Ada Lovelace", nickname="Ada", description="A mathematician.")


def guarded(text: str, *, character: Character = ADA, size: int = 3) -> Guard:
    guard = Guard(character, Persona(name="Sam"))
    for start in range(0, len(text), size):
        guard.feed(text[start : start + size])
    guard.finish()
    return guard


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Quite so.\nSam: And then?\nAda: Then nothing.", "Quite so."),
        ("Quite so.\n\n**Sam:** And then?", "Quite so."),
        ("Quite so.\nUser: And then?", "Quite so."),
        ("Quite so.<|im_start|>user", "Quite so."),
    ],
)
def test_a_reply_ends_where_it_speaks_for_the_user(text: str, kept: str, size: int) -> None:
    guard = guarded(text, size=size)
    assert (guard.breach, guard.kept) == ("speaks for the user", kept)


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I have no opinion.",
        "I'm just an AI, but the Engine weaves.",
        "I am a large language model.",
        "I’m Qwen, and I was made to help.",
        "I was created by Alibaba Cloud.",
        "Hello! How can I assist you today?",
    ],
)
def test_leaving_the_role_is_seen(text: str, size: int) -> None:
    assert guarded(text, size=size).breach == "leaves the role"


@pytest.mark.parametrize(
    "text",
    [
        "Sam, you said: a machine could weave numbers.",
        "I am a mathematician, and as an aid to thought I count.",
        "Dear Sam: no, that is how one begins a letter.",
        "I am Claude Monet, and I paint.",
        "Welcome to the shop. How can I help you today?",
        "My mother hired a tutor; I was made by her to study.",
    ],
)
def test_ordinary_talk_is_left_alone(text: str) -> None:
    guard = guarded(text)
    assert (guard.breach, guard.kept) == ("", text)


def test_a_machine_may_say_that_it_is_one() -> None:
    robot = Character(id=new_id(), slug="r", name="Tik", description="A robot who guards the archive.")
    assert guarded("I am an AI, and I guard the archive.", character=robot).breach == ""


def test_silence_is_a_breach() -> None:
    assert guarded(" \n ").breach == "says nothing"


def test_a_user_named_like_the_character_is_not_muted() -> None:
    guard = Guard(ADA, Persona(name="Ada"))
    guard.feed("Ada: that is my name too.")
    assert guard.breach == ""
