"""Our side of the race over a ViT: the operation `train`, which decodes and prepares each picture when its turn comes."""

from language_onnuri import Timed
from vision import BATCH, options

from onnuri import open_data, open_model
from onnuri.operations.train import OPERATION


def main() -> None:
    chosen, log = options(), Timed()
    settings = OPERATION.settings.model_validate(
        {"steps": chosen.steps, "batch_size": BATCH, "precision": "bf16", "micro_batch": 0}
    )
    data = open_data(str(chosen.data / "cifar10"))
    result = OPERATION.apply(settings, log, data=data, model=open_model(chosen.kept / "vit"))
    log.clock.tell(BATCH, result.pace)


if __name__ == "__main__":
    main()
