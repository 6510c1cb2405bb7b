"""The readers, one file each."""

from tests.fuzz.target import Target
from tests.fuzz.targets import (
    adapter_folder,
    chain,
    codec,
    dcp,
    delta,
    official,
    peft_adapter,
    pickles,
    shard_index,
    trainer_record,
    weights,
)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        delta.COO,
        delta.PACKED,
        codec.STREAM,
        adapter_folder.CONFIG,
        adapter_folder.TRAINABLE,
        weights.SAFETENSORS,
        shard_index.INDEX,
        pickles.ZIPPED,
        pickles.LEGACY,
        dcp.METADATA,
        dcp.DATA,
        trainer_record.IN_A_CHECKPOINT,
        trainer_record.OF_TRANSFORMERS,
        official.RELEASED,
        chain.POINTER,
        chain.DELTA,
        chain.ANCHOR,
        peft_adapter.CONFIG,
        peft_adapter.WEIGHTS,
    )
}
