"""Sources of the allocators, and of how harm is told, by name; those that are not here come from no paper."""

from modicum.core.method import Paper

CACHE = Paper("Unified Functional Hashing in Automatic Machine Learning", "2302.05433", 2023, "Gillard, Ryan and others")
PAPERS = {
    "bisection": Paper(
        "Augmenting Hessians with Inter-Layer Dependencies for Mixed-Precision Post-Training Quantization", "2306.04879", 2023,
        "Schaefer, Clemens JS and others",
    ),
    "evopress": Paper(
        "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search", "2410.14649", 2024, "Sieberling, Oliver and others"
    ),
    "hawq": Paper(
        "HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision", "1905.03696", 2019, "Dong, Zhen and others"
    ),
    "hawq_v2": Paper("HAWQ-V2: Hessian Aware trace-Weighted Quantization of Neural Networks", "1911.03852", 2019, "Dong, Zhen and others"),
    "nsga2": Paper(
        "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", "", 2002,
        "Deb, Kalyanmoy and Pratap, Amrit and Agarwal, Sameer and Meyarivan, T.",
    ),
    "proxies": Paper(
        "EMQ: Evolving Training-free Proxies for Automated Mixed Precision Quantization", "2307.10554", 2023, "Dong, Peijie and others"
    ),
}  # fmt: skip
HARMS = {
    "covariance": Paper(
        "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", "1503.05671", 2015, "Martens, James and Grosse, Roger"
    ),
    "hessian": PAPERS["hawq_v2"],
}
