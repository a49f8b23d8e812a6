"""What can be asked of pruning."""

from typing import Literal

from pydantic import Field, model_validator

from ...operation import Settings as Base

ROLES = ("linear", "conv", "expert")
COUNTED = 200_000  # records whose tokens are counted: most tokens are rare, and 20,000 reviews do not show which


class Settings(Base):
    share: float = Field(
        0.5, gt=0, lt=1, description="share of each matrix's numbers that becomes zero, or of the units"
    )
    units: Literal["numbers", "channels", "heads", "experts", "blocks", "tokens"] = Field(
        "numbers",
        description="what goes: single numbers become zero; whole units are taken out, and the net is smaller",
    )
    method: Literal["magnitude", "wanda", "sparsegpt"] = Field(
        "magnitude", description="by size, by size times input, or so that what is left makes up for it"
    )
    scope: Literal["matrix", "row"] = Field(
        "matrix", description="rank the numbers within a matrix, or within each of its rows"
    )
    pattern: Literal["any", "2:4"] = Field("any", description="2:4: two of every four columns in a row, in every row")
    calibration: int = Field(
        128,
        ge=1,
        description="records that wanda, sparsegpt and the choice of blocks look at; whose tokens are counted, "
        f"{COUNTED} where nothing is said",
    )

    @model_validator(mode="after")
    def have_an_effect(self) -> "Settings":
        if self.pattern == "2:4" and (self.changed("share") or self.changed("scope")):
            raise ValueError("pattern 2:4 sets half of each four to zero: share and scope have no effect")
        if self.units != "numbers" and (self.changed("pattern") or self.changed("scope")):
            raise ValueError("pattern and scope have no effect on whole units")
        if self.units == "blocks" and self.changed("method"):
            raise ValueError("method has no effect on blocks: those go that change least what flows through them")
        if self.units == "tokens" and self.method == "sparsegpt":
            raise ValueError("method sparsegpt has no effect on tokens: no layer multiplies them side by side")
        if self.units == "experts" and self.method == "sparsegpt":
            raise ValueError("method sparsegpt has no effect on experts: no layer reads them side by side")
        if self.method == "magnitude" and self.units != "blocks" and self.changed("calibration"):
            raise ValueError("calibration has no effect on method magnitude")
        return self

    @property
    def looks(self) -> int:
        """How many records are looked at; 0: none."""
        if self.method == "magnitude" and self.units != "blocks":
            return 0
        counting = self.units == "tokens" and "calibration" not in self.model_fields_set
        return COUNTED if counting else self.calibration
