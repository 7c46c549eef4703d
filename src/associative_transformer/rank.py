"""How many directions a memory fills.

Dims     M priors   D prior width
"""

import torch
from jaxtyping import Float
from torch import Tensor


def effective_rank(priors: Float[Tensor, "M D"]) -> float:
    """Count the directions that a memory fills: exp of the entropy of its squared singular values.

    M orthogonal priors of one length fill M, equal ones 1, and zeros none (after Roy and Vetterli
    2007, who take the singular values themselves).
    """
    strength = torch.linalg.svdvals(priors.double()).square()
    if not strength.any():
        return 0.0
    return float(torch.special.entr(strength / strength.sum()).sum().exp())
