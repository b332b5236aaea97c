"""S092, Bone: blocks of a weight multiplied by small matrices, against LoRA and PiSSA that train no fewer numbers."""

from __future__ import annotations

from adapting import DATA, adapted, means, row, shared
from common import Claim, Setting, result, show

CLAIM = Claim(
    id="S092",
    system="Bone",
    claim="Reshape W into r x r blocks and set delta = W_block b + b with zero-initialized shared b; step-0 equality, exact merge, and loss on a "
    "small LM at least as low as LoRA/PiSSA at equal parameters.",
    metric="held-out loss of the better of LoRA and PiSSA minus that of Bone, each at its own best rate, Bone training no more numbers",
    margin=2.0,
    setting=Setting(method="bone rank=16", baselines=("lora rank=9", "pissa rank=9"), test_samples=0),
)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    found = {plan: adapted(kept, plan, setting.seeds) for plan in (setting.method, *setting.baselines, *setting.beside)}
    best, *others = sorted(setting.baselines, key=lambda plan: sum(means(found[plan], "loss")))
    gains = [b - a for a, b in zip(means(found[setting.method], "loss"), means(found[best], "loss"))]
    while_training = [b - a for a, b in zip(means(found[setting.method], "curve"), means(found[best], "curve"))]
    rows = [row(plan, found[plan]) for plan in (setting.method, best, *others, *setting.beside)]
    conditions = {"no more numbers trained": rows[0]["trained"][0] <= rows[1]["trained"][0]}
    figures = {"loss while training of the baseline minus Bone's": while_training}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
