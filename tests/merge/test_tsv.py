"""Two tasks that share a direction of their inputs: made orthogonal, neither drowns in the other's outputs."""

import torch


def test_tasks_do_not_meet(merged, tensors, same):
    draw = torch.Generator().manual_seed(0)
    base = {"w": torch.zeros(32, 32, dtype=torch.float64)}
    common = torch.randn(32, generator=draw, dtype=torch.float64)
    models = []
    for _ in range(2):
        out, into = (torch.randn(32, generator=draw, dtype=torch.float64) for _ in range(2))
        models.append({"w": torch.outer(out + common, into + common) / 32})
    found = merged("tsv", base, models)["w"]
    values = torch.linalg.svdvals(found)
    wanted = sorted((float(torch.linalg.svdvals(model["w"])[0]) for model in models), reverse=True)
    assert torch.allclose(values[:2], torch.tensor(wanted, dtype=torch.float64)) and float(values[2]) < 1e-10
    plain = torch.linalg.svdvals(merged("task_arithmetic", base, models)["w"])
    assert float(plain[0]) > 1.2 * wanted[0], "where they are only added, what they share counts twice"
    base, others = tensors(1)
    same(merged("tsv", base, others), others[0], 1e-10)
