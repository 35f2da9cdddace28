"""Supervised contrast between two views of the same windows, for devices and simulator alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def supervised_contrast(first: Tensor, second: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Loss per batch: views (..., B, d), classes y (..., B) -> (...).

    Each of the 2B normalised rows is told apart from all others; those of its class, its own other view among them, are
    its positives: mean over rows of - mean over positives p of log softmax(<f_i, f_p> / T) (Khosla et al. 2020,
    arXiv 2004.11362, the form with the sum outside the logarithm).
    """
    rows = F.normalize(torch.cat([first, second], -2), dim=-1)  # (..., 2B, d)
    classes = torch.cat([y, y], -1)
    itself = torch.eye(rows.shape[-2], dtype=torch.bool, device=rows.device)
    likeness = (rows @ rows.transpose(-1, -2) / temperature).masked_fill(itself, -torch.inf)
    log_p = torch.log_softmax(likeness, -1)
    positive = (classes.unsqueeze(-1) == classes.unsqueeze(-2)) & ~itself
    mean: Tensor = log_p.masked_fill(~positive, 0.0).sum(-1) / positive.sum(-1)
    return -mean.mean(-1)
