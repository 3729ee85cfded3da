"""Two sittings with one character: does the second remember the first? Prints the transcript as Markdown.

python examples/two_sittings.py --model llamacpp:/path/to/model.gguf > transcript.md
"""

import argparse
import sys
import tempfile

from rpla import Agent, Settings

FIRST = """
Good evening. The door was open and it is pouring, may I sit by your fire?
My name is Tamsin. I restore church organs, of all things.
I came down from Whitby this morning. I have lived there since I was nine.
Is it always so loud here, the sea?
My brother Joss was a fisherman. He drowned in February, off Filey.
Thank you. I don't talk about it much.
Tell me about your work with the engine instead.
Could such a machine play an organ, do you think?
I have a dog, Bellows, a lurcher. He is asleep in the van.
He hates thunder and loves cheese.
I can't eat cheese myself, I'm allergic to milk.
What did you eat as a child?
My next job is the organ at Ely, I begin on the third of May.
It has not been played for eleven years.
Do you play any instrument yourself?
I'm frightened of heights, which is a nuisance, since organs are tall.
I take a brandy before the ladder. Nobody knows.
What frightens you?
I must go and see to the dog.
Good night. I hope we meet again.
""".strip().splitlines()
SECOND = """
Hello again! Do you remember me?
What is my trade?
Where did I say I live?
It has stopped raining, at least.
Do you remember my dog?
What does he love, and what does he hate?
Which organ was I to work on next?
Well, that has changed: Ely is put off. I begin at Ripon on the tenth of June instead.
What have you been reading lately?
I baked you a cake, without butter. Do you know why without?
What happened to my brother?
Yes. I went to Filey last week, and threw a wreath from the pier.
Do you believe in ghosts?
I climbed the tower at Beverley on Monday, without any brandy.
Why is that something to be proud of?
When do I begin, and at which church?
What would you ask of me, if you could?
What kind of person am I, would you say?
I shall bring Bellows next time.
Good night, then.
""".strip().splitlines()


def main() -> None:
    """Talk twice, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--character", default="ada-lovelace")
    asked = parser.parse_args()
    settings = Settings.model_validate({"persona": {"name": "Tamsin"}, "sampling": {"seed": 7, "max_tokens": 120}})
    with tempfile.TemporaryDirectory() as home:
        for number, lines in enumerate((FIRST, SECOND), 1):
            with Agent(asked.character, model=asked.model, home=home, settings=settings) as agent:
                print(f"\n## Sitting {number}\n", flush=True)
                agent.new_chat(greeting=None)
                for line in lines:
                    talk(agent, line, explain=number == 2)
                agent.finish()
                for recalled in agent.memories():
                    print(f"- remembered ({recalled.memory.provenance}): {recalled.memory.text}")


def talk(agent: Agent, line: str, *, explain: bool) -> None:
    """One exchange, with what the reply stood on."""
    reply = agent.say(line)
    print(f"**Tamsin:** {line}\n\n**{agent.character.spoken_name}:** {reply.text}\n", flush=True)
    print(line, file=sys.stderr)
    if explain:
        for section in agent.chat.why():
            texts = agent.texts_of(section)
            for item in section.items:
                print(f"> {section.name}: {item.reason}: {texts.get(item.id, '')[:160]}\n")


if __name__ == "__main__":
    main()
