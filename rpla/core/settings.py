"""The settings tree: defaults, then config.toml under RPLA_HOME, then ``RPLA_`` variables, then flags."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.nearest import nearest_hint

_ENV_PREFIX = "RPLA_"
_NOT_SETTINGS = {"RPLA_HOME"}


class _Area(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PersonaSettings(_Area):
    """Who the user is, to the characters."""

    name: str = Field("User", min_length=1, description="the name characters call you by")
    description: str = Field("", description="what characters know of you")


class SamplingSettings(_Area):
    """How replies are drawn from the model."""

    temperature: float = Field(0.7, ge=0, le=5, description="0 always takes the likeliest token")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus: the smallest set of tokens with this much probability")
    min_p: float = Field(0.05, ge=0, le=1, description="drop tokens below this share of the likeliest one")
    repetition_penalty: float = Field(1.1, ge=0.5, le=2, description="above 1 discourages repeated tokens")
    max_tokens: int = Field(256, ge=1, description="longest reply, in tokens")
    seed: int | None = Field(None, ge=0, description="fix it to get the same reply again")


class ChatSettings(_Area):
    """How a turn runs."""

    alignment: str = Field("full", description="how the model is made to be the character: a preset's name")
    strict: bool = Field(False, description="show a reply only once it is checked")
    repairs: int = Field(1, ge=0, le=3, description="how often a reply that leaves the role is asked for again")
    prefill: bool = Field(True, description="read the finished turn into the model's cache while the user types")


class MemorySettings(_Area):
    """What characters remember of conversations."""

    remember: bool = Field(True, description="remember what is said; switched on later, it makes up for it")
    embedder: str = Field("minilm", min_length=1, description="minilm, words (none), hashing, or a model folder")
    recalled: int = Field(8, ge=0, le=64, description="most memories in one prompt")
    tokens: int = Field(400, ge=0, description="most tokens of memories in one prompt")
    relevance: float = Field(1.0, ge=0, description="weight of how well a memory fits what is said")
    recency: float = Field(0.1, ge=0, description="weight of how lately it was said")
    importance: float = Field(0.1, ge=0, description="weight of how much it matters")
    half_life_days: float = Field(30.0, gt=0, description="days after which recency has halved")
    floor: float = Field(0.12, ge=0, le=1, description="least relevance; below it nothing comes to mind")
    across_chats: bool = Field(True, description="recall what was said in other chats with the same character")
    importance_by: str = Field("rules", pattern="^(rules|model)$", description="who says how much something matters")
    reflect_after: float = Field(5.0, gt=0, description="gathered importance at which a character reflects")
    summarize: bool = Field(True, description="sum up what leaves the window, after the reply")


class KnowledgeSettings(_Area):
    """What characters look up in documents."""

    passages: int = Field(4, ge=0, le=64, description="most passages in one prompt")
    tokens: int = Field(800, ge=0, description="most tokens of passages in one prompt")
    chunk_tokens: int = Field(180, ge=32, le=512, description="longest passage, in the embedder's tokens")
    floor: float = Field(0.25, ge=0, le=1, description="least relevance; below it nothing is retrieved")


class LlamaCppSettings(_Area):
    """Models in GGUF, run in this process."""

    context: int = Field(8192, ge=256, description="context window of each chat, in tokens")
    slots: int = Field(4, ge=1, le=64, description="chats served at once; memory grows with slots times context")
    threads: int = Field(0, ge=0, description="CPU threads; 0 takes one per physical core")
    gpu_layers: int = Field(-1, ge=-1, description="layers put on a GPU where there is one; -1 takes all that fit")


class HfSettings(_Area):
    """Models as Hugging Face folders, run by transformers."""

    dtype: str = Field("auto", pattern="^(auto|float32|bfloat16|float16)$", description="number format of the weights")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, …")
    batch: int = Field(32, ge=1, description="requests served as one batch")


class OpenAISettings(_Area):
    """An endpoint that speaks OpenAI's protocol."""

    base_url: str = Field("", description="such as http://localhost:8000/v1")
    api_key_env: str = Field("OPENAI_API_KEY", description="the environment variable that holds the key")
    context: int = Field(8192, ge=256, description="context window to assume, in tokens")
    timeout_s: float = Field(60.0, gt=0, description="longest silence before a request is given up, in seconds")
    retries: int = Field(2, ge=0, le=10, description="how often a failed request is made again")


class Settings(_Area):
    """Everything that can be set."""

    model: str = Field("auto", min_length=1, description="auto, llamacpp:NAME, hf:FOLDER, openai:NAME, scripted:")
    user: str = Field("default", min_length=1, description="whose chats these are, where several people share one home")
    persona: PersonaSettings = PersonaSettings()
    sampling: SamplingSettings = SamplingSettings()
    chat: ChatSettings = ChatSettings()
    memory: MemorySettings = MemorySettings()
    knowledge: KnowledgeSettings = KnowledgeSettings()
    llamacpp: LlamaCppSettings = LlamaCppSettings()
    hf: HfSettings = HfSettings()
    openai: OpenAISettings = OpenAISettings()


@dataclass(frozen=True, slots=True)
class Setting:
    """One resolved setting, for `rpla config`."""

    key: str
    """Dotted, such as ``sampling.top_p``."""
    value: Any
    origin: str
    """``default``, ``config.toml line 3``, ``RPLA_MODEL`` or ``flag``."""
    description: str


def setting_keys() -> dict[str, str]:
    """Every dotted key with its description."""
    keys: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Area):
            for leaf, info in field.annotation.model_fields.items():
                keys[f"{name}.{leaf}"] = info.description or ""
        else:
            keys[name] = field.description or ""
    return keys


def load_settings(home: Home, flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings in force. `flags` maps dotted keys to values; None means not given.

    Raises RplaError naming key, file and line (or variable) where a value is of the wrong type or a key is unknown.
    """
    return resolve_settings(home, flags)[0]


def resolve_settings(home: Home, flags: Mapping[str, Any] | None = None) -> tuple[Settings, list[Setting]]:
    """`load_settings`, and where each value comes from."""
    known = setting_keys()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value, line in _from_file(home.config):
        _require_known(key, f"{home.config}, line {line}", known)
        values[key], origins[key] = value, f"{home.config.name} line {line}"
    for key, value, name in _from_environment():
        _require_known(key, name, known)
        values[key], origins[key] = value, name
    for key, value in (flags or {}).items():
        if value is not None:
            _require_known(key, "flag", known)
            values[key], origins[key] = value, "flag"
    try:
        settings = Settings.model_validate(_nested(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        origin = origins.get(key, "default")
        where = (
            f"{home.config}, {origin.removeprefix(home.config.name + ' ')}"
            if origin.startswith(home.config.name)
            else origin
        )
        raise RplaError(
            f"Setting {key} ({where}) is not valid: {first['msg']}; it is {values.get(key)!r}.",
            f"{key}: {known.get(key, '')}. `rpla config` shows every setting.",
        ) from error
    resolved = [
        Setting(key=key, value=_leaf(settings, key), origin=origins.get(key, "default"), description=description)
        for key, description in known.items()
    ]
    return settings, resolved


def parse_setting(key: str, text: str) -> Any:
    """The value that a text stands for, of the type the setting has. Raises RplaError where it stands for none."""
    _require_known(key, "flag", setting_keys())
    try:
        return _leaf(Settings.model_validate(_nested({key: text})), key)
    except ValidationError as error:
        raise RplaError(
            f"{text!r} is not a value for {key}: {error.errors()[0]['msg']}.", setting_keys()[key]
        ) from error


def write_setting(home: Home, key: str, value: Any) -> None:
    """Write one setting into config.toml; comments and order of the file stay."""
    import tomlkit

    _require_known(key, "flag", setting_keys())
    load_settings(home, {key: value})
    document = tomlkit.parse(home.config.read_text("utf-8")) if home.config.exists() else tomlkit.document()
    table: Any = document
    *areas, leaf = key.split(".")
    for area in areas:
        if area not in table:
            table[area] = tomlkit.table()
        table = table[area]
    table[leaf] = value
    home.root.mkdir(parents=True, exist_ok=True)
    partial = home.config.with_suffix(".toml.new")
    partial.write_text(tomlkit.dumps(document), "utf-8")
    partial.replace(home.config)


def _from_file(path: Path) -> list[tuple[str, Any, int]]:
    if not path.exists():
        return []
    try:
        text = path.read_text("utf-8")
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RplaError(f"{path} is not valid TOML: {error}", "Mend the file, or move it away.") from error
    found: list[tuple[str, Any, int]] = []
    areas = {key.split(".")[0] for key in setting_keys() if "." in key}
    for key, value in data.items():
        if isinstance(value, dict) and key in areas:
            found += [(f"{key}.{leaf}", item, _line_of(text, key, leaf)) for leaf, item in value.items()]
        else:
            found.append((key, value, _line_of(text, "", key)))
    return found


def _line_of(text: str, area: str, key: str) -> int:
    """The line a key stands on: tomllib does not keep positions."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            current = header[1].strip("\"'")
            if not area and current == key:
                return number
        elif match := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            name = match[1].replace('"', "").replace("'", "")
            if (current, name) == (area, key) or (not current and name in (area, f"{area}.{key}")):
                return number
    return 1


def _from_environment() -> list[tuple[str, str, str]]:
    return [
        (name.removeprefix(_ENV_PREFIX).lower().replace("__", "."), value, name)
        for name, value in sorted(os.environ.items())
        if name.startswith(_ENV_PREFIX) and name not in _NOT_SETTINGS
    ]


def _require_known(key: str, where: str, known: Mapping[str, str]) -> None:
    if key not in known:
        raise RplaError(f"Unknown setting {key} ({where}).", nearest_hint(key, known))


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        area, _, leaf = key.rpartition(".")
        (tree.setdefault(area, {}) if area else tree)[leaf] = value
    return tree


def _leaf(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value
