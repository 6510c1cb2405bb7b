"""The student on both domains of a batch in one pass, and the entropy of its views."""

from typing import NamedTuple

import torch
from torch import Tensor

from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Student


class BothDomains(NamedTuple):
    """Features (S, D) and (T, D), logits (S, C) and (T, C)."""

    source_features: Tensor
    target_features: Tensor
    source_logits: Tensor
    target_logits: Tensor


def view_both_domains(student: Student, batch: DomainBatch) -> BothDomains:
    """Run encoder and head once on source and target together, so that batch statistics are those of both."""
    features = student.encoder(torch.cat([batch.source_images, batch.target_images]))
    return split_domains(features, student.head(features), len(batch.source_images))


def split_domains(features: Tensor, logits: Tensor, source_size: int) -> BothDomains:
    """Cut features and logits of a concatenated batch, source first, into its domains."""
    return BothDomains(features[:source_size], features[source_size:], logits[:source_size], logits[source_size:])


def sample_entropy(logits: Tensor) -> Tensor:
    """Shannon entropy (B,) in nats of every row's softmax, in float32 or better."""
    log_p = log_view(logits)
    return -(log_p.exp() * log_p).sum(dim=1)
