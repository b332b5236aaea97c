"""The mean on the sphere: tangents to all models cancel out, and two models meet in the middle of their arc."""

import torch


def test_tangents_cancel_out(tensors, merged, same):
    base, others = tensors(4, size=1.0)
    weights = [0.4, 0.3, 0.2, 0.1]
    found = merged("karcher", base, others, weights)
    for name, value in found.items():
        mean = value.reshape(-1) / value.norm()
        units = [other[name].reshape(-1) / other[name].norm() for other in others]
        angles = [torch.arccos((unit @ mean).clamp(-1, 1)) for unit in units]
        pull = sum(w * a / a.sin() * (u - a.cos() * mean) for w, a, u in zip(weights, angles, units))
        assert float(pull.norm()) < 1e-9
        assert abs(float(value.norm()) - sum(w * float(other[name].norm()) for w, other in zip(weights, others))) < 1e-9
    longer = {name: value * others[0][name].norm() / value.norm() for name, value in others[1].items()}
    same(merged("karcher", base, [others[0], longer]), merged("slerp", others[0], [longer]), 1e-10)
