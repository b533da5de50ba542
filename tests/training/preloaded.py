"""What every process that trains imports; loaded once, in the process that all others are forked from."""

import accelerate  # noqa: F401
import peft  # noqa: F401
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401

import training.cli
import training.pipeline
import training.tasks.classify
import training.tasks.instruct
import training.tasks.reward
import training.tasks.text  # noqa: F401
