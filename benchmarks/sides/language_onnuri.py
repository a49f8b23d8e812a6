"""Our side of a race over language models: the operation as the command line runs it, on texts it tokenizes itself."""

from language import Clock, bits_per_byte, options

from onnuri import open_data, open_model
from onnuri.operation import Quiet
from onnuri.registry import operation


class Timed(Quiet):
    """A log that looks at the clock when a step ends."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.clock.tick()

    def save_state(self, tensors: dict, facts: dict) -> None:
        """Nothing is killed here; the peers keep nothing either."""


def main() -> None:
    chosen, log = options(), Timed()
    asked = operation("adapt" if chosen.lora else "train")
    settings = asked.settings.model_validate(
        {
            "steps": chosen.steps,
            "batch_size": chosen.batch,
            "precision": chosen.precision,
            "compile": chosen.compile,
            "learning_rate": 1e-3,
        }
    )
    data = open_data(str(chosen.kept / f"documents-{chosen.size}.jsonl"), answer="text")
    result = asked.apply(settings, log, data=data, model=open_model(chosen.kept / f"llama-{chosen.size}"))
    judged = {"bits_per_byte": bits_per_byte(result.model.net.eval(), chosen)} if chosen.judged else {}
    log.clock.tell(chosen.batch, {**result.pace, **judged})


if __name__ == "__main__":
    main()
