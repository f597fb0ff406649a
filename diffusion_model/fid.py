"""How far apart are two sets of features? The Frechet distance between Gaussians with their moments.

|m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))   (Heusel et al. 2017, equation 6)

(C1 C2)^(1/2) has the eigenvalues of (C1^(1/2) C2 C1^(1/2))^(1/2), and that matrix is symmetric: two symmetric eigenvalue
problems in float64 replace the general matrix root, with nothing to add to the diagonal where a covariance is singular.
Only with Inception features of natural images is this number called FID.
"""

import torch


def frechet_distance(
    mean1: torch.Tensor,
    covariance1: torch.Tensor,
    mean2: torch.Tensor,
    covariance2: torch.Tensor,
    root1: torch.Tensor | None = None,
) -> float:
    """Squared Frechet distance between N(mean1, covariance1) and N(mean2, covariance2), means [D], covariances [D, D].

    `root1`, the symmetric root of covariance1, spares one decomposition where the same reference is used again.
    """
    mean1, covariance1, mean2, covariance2 = (
        torch.as_tensor(value, dtype=torch.float64) for value in (mean1, covariance1, mean2, covariance2)
    )
    sizes = {"means": [*mean1.shape, *mean2.shape], "covariances": [*covariance1.shape, *covariance2.shape]}
    if len({*sizes["means"], *sizes["covariances"]}) != 1 or mean1.ndim != 1 or covariance1.ndim != 2:
        raise ValueError(f"a Frechet distance between features of different sizes: {sizes}")
    root1 = symmetric_root(covariance1) if root1 is None else root1
    product = root1 @ covariance2 @ root1
    spectrum = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0)
    trace = torch.trace(covariance1) + torch.trace(covariance2) - 2 * spectrum.sqrt().sum()
    return float((mean1 - mean2).square().sum() + trace)


def symmetric_root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric positive root of a covariance [D, D], in float64; eigenvalues below 0 are rounding."""
    values, vectors = torch.linalg.eigh(torch.as_tensor(covariance, dtype=torch.float64))
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
