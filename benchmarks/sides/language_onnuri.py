"""Our side of a race over language models: the operation `train` as the command line runs it, on texts it tokenizes itself."""

from language import Clock, options

from onnuri import open_data, open_model
from onnuri.operation import Quiet
from onnuri.operations.train import OPERATION


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
    settings = OPERATION.settings.model_validate(
        {"steps": chosen.steps, "batch_size": chosen.batch, "precision": "bf16", "compile": chosen.compile}
    )
    data = open_data(str(chosen.kept / "documents.jsonl"), answer="text")
    result = OPERATION.apply(settings, log, data=data, model=open_model(chosen.kept / f"llama-{chosen.size}"))
    log.clock.tell(chosen.batch, result.pace)


if __name__ == "__main__":
    main()
