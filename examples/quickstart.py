"""Train, prune, quantise, inject and report from Python, in half a minute."""

import rasp

rasp.train("lenet5", "digits", epochs=10, out="runs/dense")
rasp.prune("runs/dense", criterion="reliability", macs=0.5, epochs=4, out="runs/half")
rasp.quantize("runs/half", out="runs/half-int8")
dense = rasp.inject("runs/dense", format="int8", trials=8_000, out="runs/dense-faults")
half = rasp.inject("runs/half-int8", trials=8_000, out="runs/half-faults")
print(dense.arm.sdc1, half.arm.sdc1, sep="\n")
print(rasp.write_report([dense.out, half.out], out="runs/report.html").verdict)
