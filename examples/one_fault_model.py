"""Which layer suffers most from upsets in the weight registers, read from a campaign's store."""

import rasp
from rasp.campaign import result

rasp.train("lenet5", "digits", epochs=10, out="runs/dense")
run = rasp.inject(
    "runs/dense",
    format="int8",
    fault_models={"WEIGHT": 1.0, "WEIGHT16": 1.0},
    layer_weights="uniform",
    trials=6_000,
    out="runs/weight-faults",
)
campaign = result.read(run.out / "campaign.sqlite")
for (layer, model), rate in campaign.rates("sdc1", "layer", "model").items():
    print(f"{layer:8} {model:10} {rate}")
