"""What can be said of how answers are written."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from ...decoding.grammar import Form
from ...operation import Settings as Base

FORMS: tuple[Form, ...] = ("json_schema", "grammar", "regex")

DRAWING = ("top_k", "top_p", "seed")


def read(value: object) -> object:
    """A text as it is; with @ before it the text of that file, so that the evidence holds what was asked, and not where it lay;
    @@ is one @."""
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    if value.startswith("@@"):
        return value[1:]
    try:
        text = Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file {value[1:]} cannot be read as text: {type(error).__name__}") from error
    if not text.strip():
        raise ValueError(f"the file {value[1:]} is empty")
    return text


Text = Annotated[str, BeforeValidator(read)]


class Settings(Base):
    prompt: Text = Field("", description="one question, in place of --data; a text or @FILE")
    max_new_tokens: int = Field(0, ge=0, description="tokens of an answer at most; 0: what the model states")
    temperature: float = Field(0.0, ge=0, le=100, description="of what is drawn; 0: always the likeliest token")
    top_k: int = Field(0, ge=0, description="draw from so many of the likeliest tokens; 0: from all")
    top_p: float = Field(
        1.0, gt=0, le=1, description="draw from the fewest tokens that hold this share of the probability"
    )
    json_schema: Text = Field("", description="answers are JSON of this JSON Schema; a text or @FILE")
    grammar: Text = Field("", description="answers keep to this grammar, in Lark or GBNF; a text or @FILE")
    regex: str = Field("", description="answers match this regular expression")
    logprobs: int = Field(
        0, ge=0, description="of so many of the likeliest tokens at each place the log-probability is told"
    )
    confidence_temperature: float = Field(
        1.0, ge=0.01, le=100, description="of the confidence that is stated; --calibration data fit it"
    )
    abstain_below: float = Field(0.0, ge=0, le=1, description="answers given with less confidence are withheld")
    ahead: int = Field(4, ge=1, description="tokens that the draft model guesses before they are checked")
    batch_size: int = Field(16, ge=1, description="answers written at once; changes none of them")
    compile: bool = Field(False, description="compile a step first, about a minute, and keep that where it is faster")
    seed: int = Field(0, ge=0, description="seed of what is drawn")

    @model_validator(mode="after")
    def consistent(self) -> "Settings":
        if 0 < self.temperature < 0.01:
            raise ValueError("'temperature' is 0, or 0.01 and more")
        forms = [name for name in FORMS if getattr(self, name)]
        if len(forms) > 1:
            raise ValueError(f"an answer keeps to one form, found {' and '.join(forms)}")
        if not self.temperature and (idle := [name for name in DRAWING if self.changed(name)]):
            raise ValueError(f"{' and '.join(idle)} have no effect at temperature 0, where nothing is drawn")
        return self

    @property
    def form(self) -> tuple[Form, str] | None:
        """The form that answers keep to, and its text."""
        return next(((form, text) for form in FORMS if (text := getattr(self, form))), None)
