"""The student's outputs on both domains of a batch from one pass, and the entropy of its predictions."""

from typing import NamedTuple

import torch
from torch import Tensor

from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Student


class BothDomains(NamedTuple):
    """Features (S, D) and (T, D), and logits (S, C) and (T, C), of source and target."""

    source_features: Tensor
    target_features: Tensor
    source_logits: Tensor
    target_logits: Tensor


def view_both_domains(student: Student, batch: DomainBatch) -> BothDomains:
    """Run encoder and head once on source and target together, so that batch statistics cover both."""
    features = student.encoder(torch.cat([batch.source_images, batch.target_images]))
    return split_domains(features, student.head(features), len(batch.source_images))


def split_domains(features: Tensor, logits: Tensor, source_size: int) -> BothDomains:
    """Split features and logits of a concatenated batch, source first, into the two domains."""
    return BothDomains(features[:source_size], features[source_size:], logits[:source_size], logits[source_size:])


def sample_entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy (B,) of each row's softmax, in nats, in float32 or better."""
    log_p = log_view(logits)
    return -(log_p.exp() * log_p).sum(dim=1)
