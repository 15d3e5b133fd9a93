"""Every setting of every command: frozen dataclasses, the unit under each field; flags are made from them.

A field `lr_warmup_iters` is the flag `--lr-warmup-iters` (or `--lr_warmup_iters`). Sections only group; flags are flat.
Nothing here imports torch: `tuneval --help` must answer at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PromptType = str
"""A named template, or `auto`: the tokenizer's own chat template."""


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Turn instruction records into token files that `tune` reads."""

    input: Path
    """Records: .json, .jsonl, .csv or .parquet, also .xz or .gz of these; a folder of such files."""
    tokenizer_name_or_path: str
    """Folder with the tokenizer (any folder that `--load` takes)."""
    output_prefix: str | Path
    """Files written: PREFIX_packed_{input_ids,attention_mask,labels}_document.{bin,idx}, PREFIX_manifest.json."""
    handler_name: str = "auto"
    """How a row becomes a conversation; `auto` looks at the columns."""
    prompt_type: PromptType = "auto"
    """Template of the text; `auto` is the tokenizer's own chat template."""
    map_keys: str | None = None
    """JSON, attribute -> column: '{"prompt": "zh_instruction", "query": "zh_input", "response": "zh_output"}'."""
    seq_length: int | None = None
    """Longest sample, tokens; longer ones are left out (`--neat-pack`: cut) and counted. Default: no limit."""
    pack: bool = False
    """Write bins of exactly `--seq-length` tokens. Not needed here: `tune` packs by itself."""
    neat_pack: bool = False
    """With `--pack`: number the samples of a bin in attention_mask, so that none sees another."""
    append_eod: bool = False
    """Append one more end-of-sequence token, trained."""
    tokenizer_type: Literal["PretrainedFromHF"] = "PretrainedFromHF"
    """Kind of tokenizer."""
    tokenizer_not_use_fast: bool = False
    """Use the slow (Python) tokenizer."""
    workers: int | None = None
    """Processes. The output does not depend on their number. Default: one a core, at most 8; 1 for little input."""
    log_interval: int = 1000
    """Records between two progress lines where there is no terminal."""
    strict: bool = False
    """Make any bad row an error instead of a count in the manifest."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show what a preprocessed data set holds: a decoded sample, lengths, counts."""

    data_path: Path
    """Prefix given to preprocess as `--output-prefix`."""
    index: int = 0
    """Sample to show, from 0."""
    tokenizer_name_or_path: str | None = None
    """Default: the tokenizer named in the manifest."""


@dataclass(frozen=True, kw_only=True)
class MegatronLoraConfig:
    """What the command line says of a LoRA checkpoint in Megatron's form; held against its files."""

    lora_r: int | None = None
    """Megatron's LoRA: its rank, checked."""
    lora_alpha: float | None = None
    """Megatron's LoRA: its alpha, where the checkpoint does not hold it; checked where it does."""
    lora_target_modules: tuple[str, ...] = ()
    """Megatron's LoRA: linear_qkv linear_proj linear_fc1 linear_fc2, or some of them; checked."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Convert a checkpoint: Hugging Face <-> Megatron, or Megatron -> Megatron at another layout."""

    load: Path
    """Hugging Face folder, Megatron folder of any layout, run folder or adapter."""
    save: Path
    """Folder to write."""
    to: Literal["mcore", "hf", "peft"]
    """Format to write; `peft`: the adapter alone, without the model under it."""
    target_tensor_parallel_size: int = 1
    """Tensor-parallel ranks of the written Megatron checkpoint."""
    target_pipeline_parallel_size: int = 1
    """Pipeline stages of the written Megatron checkpoint."""
    num_layer_list: str | None = None
    """Layers of each stage, such as 13,11. Default: even."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """mcore: layers of one virtual stage; each stage then holds several. Default: none."""
    make_vocab_size_divisible_by: int = 1
    """mcore: pad the vocabulary to a multiple of this times the tensor-parallel size, repeating its last row."""
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    """mcore: whose layers the tensors are named for; Megatron's own default is transformer_engine, MindSpeed-LLM's local."""
    lora_load: Path | None = None
    """Adapter (PEFT folder, run folder, Megatron's LoRA) to merge into the weights on the way."""
    keep_lora: bool = False
    """mcore: write the adapter beside the weights, in Megatron's LoRA form, instead of merging it."""
    lora_ckpt_filter: bool = False
    """mcore: like `--keep-lora`, the adapter alone."""
    lora: MegatronLoraConfig = field(default_factory=MegatronLoraConfig)
    hf_cfg_dir: Path | None = None
    """Folder with config.json and tokenizer of the original model, for a Megatron `--load` that carries none."""
    params_dtype: Literal["bf16", "fp16", "fp32"] | None = None
    """Cast to this type. Default: as stored."""
    max_shard_size_gib: float = 4.0
    """Size of one written safetensors file, GiB."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Prove two checkpoints equal: every tensor bit for bit, then the logits of a fixed text."""

    a: Path
    """First checkpoint, any format."""
    b: Path
    """Second checkpoint, any format."""
    no_logits: bool = False
    """Compare the tensors alone. Default: also the logits (loads both models, one after the other)."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to start from."""

    load: Path
    """Hugging Face folder, Megatron folder of any layout, run folder or adapter."""
    tokenizer_name_or_path: str | None = None
    """Default: the tokenizer beside the weights."""
    prompt_type: PromptType | None = None
    """Template; must be the one the data was made with. Default: that one."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    data_path: Path
    """Prefix given to preprocess as `--output-prefix`."""
    split: str = "98,2,0"
    """Weights of train, validation, test."""
    seq_length: int | None = None
    """Longest sample, tokens; longer ones are cut as MindSpeed cuts them. Default: the model's limit."""
    no_shuffle: bool = False
    """Take the samples in file order."""
    padded_samples: bool = False
    """Fill each epoch up to whole global batches with its first samples, then shuffle (as MindSpeed's 4k scripts)."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    global_batch_size: int = 16
    """Samples of one optimizer step."""
    micro_batch_size: int | None = None
    """At most this many samples in one forward pass. Default: as many as fit `--micro-batch-tokens`. With
    `--loss-reduction micro-batch`: the samples of one mean, however many share a forward pass."""
    micro_batch_tokens: int = 2048
    """Tokens of one forward pass at most (a longer sample goes alone). Changes speed and memory, never the result."""
    loss_reduction: Literal["token", "sample", "micro-batch"] = "token"
    """What weighs the same in a step: every trained `token`, every `sample` (MindSpeed at micro-batch size 1), or every
    `micro-batch`: each `--micro-batch-size` samples in a row (MindSpeed at any size)."""
    train_iters: int | None = None
    """Optimizer steps. Default: `--train-epochs`."""
    train_epochs: float | None = None
    """Passes over the training samples, where `--train-iters` is not given. Default: 1."""

    def steps(self, train_samples: int) -> int:
        """Optimizer steps: those given, else the whole ones that the epochs over so many samples have; at least one."""
        if self.train_iters is not None:
            return self.train_iters
        epochs = 1.0 if self.train_epochs is None else self.train_epochs
        return max(1, math.floor(epochs * train_samples / self.global_batch_size + 1e-9))


@dataclass(frozen=True, kw_only=True)
class OptimStateConfig:
    optimizer: Literal["adam", "adam8bit"] = "adam"
    """AdamW with fp32 masters and moments, or, for half the memory of full tuning in bf16, with moments of 8 bits."""
    main_grads_dtype: Literal["fp32", "bf16"] | None = None
    """Gradients summed over the micro-batches of a step, under `--bf16`. Default: fp32, with adam8bit bf16."""

    @property
    def sums_in_bf16(self) -> bool:
        """Of the gradients of bf16 weights."""
        return (self.main_grads_dtype or ("bf16" if self.optimizer == "adam8bit" else "fp32")) == "bf16"


@dataclass(frozen=True, kw_only=True)
class OptimConfig(OptimStateConfig):
    lr: float | None = None
    """Peak learning rate. Default: 1e-5, with LoRA 1e-4."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = "cosine"
    """Shape of the decay, as in Megatron."""
    lr_decay_iters: int | None = None
    """Steps until `--min-lr`. Default: all."""
    lr_warmup_fraction: float | None = None
    """Share of the decay steps in which the rate rises. Excludes `--lr-warmup-iters`."""
    lr_warmup_iters: int = 0
    """Steps in which the rate rises."""
    lr_warmup_init: float = 0.0
    """Learning rate the warmup starts from."""
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine"] = "exponential"
    """Shape of the final part of WSD."""
    lr_wsd_decay_iters: int | None = None
    """Steps of the final part of WSD."""
    weight_decay: float = 0.01
    """Decoupled weight decay; biases and one-dimensional weights have none."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    bf16: bool = False
    """bfloat16 compute, fp32 master weights and moments. The default where none of the three is given."""
    fp16: bool = False
    """float16 compute with dynamic loss scaling, fp32 master weights and moments."""
    fp32: bool = False
    """float32 throughout."""
    loss_scale: float | None = None
    """fp16: fixed loss scale. Default: dynamic."""
    initial_loss_scale: float = 65536.0
    """fp16: first dynamic loss scale."""
    min_loss_scale: float = 1.0
    """fp16: smallest dynamic loss scale."""
    loss_scale_window: int = 1000
    """fp16: good steps before the scale doubles."""
    hysteresis: int = 2
    """fp16: overflows before the scale halves."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Recompute activations in the backward pass (`full`: whole layers; `selective`: attention) to save memory."""
    torch_compile: Literal["auto", "on", "off"] = "auto"
    """Compile the layers with torch.compile: fewer, larger kernels after a first step that takes a minute. Kernels stay on
    disk for the next run. `auto`: on a CPU with a C++ compiler, where the run is long enough to win that minute back."""

    @property
    def dtype(self) -> str:
        """`fp32`, `fp16` or `bf16`."""
        return "fp32" if self.fp32 else "fp16" if self.fp16 else "bf16"


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How one model is spread over processes: tensor x pipeline x data, in Megatron's order of ranks."""

    tensor_model_parallel_size: int = 1
    """Processes that share every layer; at most as many as attention heads."""
    pipeline_model_parallel_size: int = 1
    """Stages, each with some of the layers. What is left of the processes is data-parallel."""
    num_layer_list: str | None = None
    """Layers of each stage, such as 13,11. Default: even."""
    num_layers_per_virtual_pipeline_stage: int | None = None
    """Interleaved schedule: layers of one chunk; a stage then holds several chunks. Default: one chunk a stage."""
    pipeline_schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Order of forward and backward passes: `1f1b` keeps few activations, `gpipe` those of the whole step."""
    sequence_parallel: bool = False
    """Split what lies between tensor-parallel layers over their processes by tokens: less memory, same traffic."""
    use_distributed_optimizer: bool = False
    """Split the optimizer's state over data-parallel processes: `--data-parallel-sharding optimizer`."""
    data_parallel_sharding: Literal["none", "optimizer", "full"] | None = None
    """What data-parallel processes split: nothing, the optimizer's state, or weights and gradients too. Default: none."""

    @property
    def sharding(self) -> Literal["none", "optimizer", "full"]:
        """What data-parallel processes split."""
        return self.data_parallel_sharding or ("optimizer" if self.use_distributed_optimizer else "none")


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How a model that only answers is spread over processes."""

    tensor_model_parallel_size: int = 1
    """Processes that share every layer; all groups of so many have the whole model, and share the questions."""


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How many processes run, and where; torchrun is started where this command is not under it already."""

    nproc_per_node: int | None = None
    """Processes on this machine. Default: 1, or what the torchrun around this command started."""
    nnodes: int = 1
    """Machines; the same command runs on each, with its own `--node-rank`."""
    node_rank: int = 0
    """Number of this machine, from 0."""
    master_addr: str = "localhost"
    """Address of machine 0."""
    master_port: int | None = None
    """Port on machine 0. Default: a free one, on several machines 29500."""
    distributed_timeout_minutes: float | None = None
    """Longest wait of one process for another, minutes. Default: 2 until all have met, 10 after that."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    lora_r: int | None = None
    """Rank. LoRA is on where this or `--lora-target-modules` is given (rank 16 then)."""
    lora_alpha: float | None = None
    """Scaling is alpha / r. Default: 2 r."""
    lora_dropout: float = 0.0
    """Dropout before A."""
    lora_target_modules: tuple[str, ...] = ()
    """Hugging Face names (q_proj ...) or linear_qkv linear_proj linear_fc1 linear_fc2. Default: all of the blocks."""
    lora_load: Path | None = None
    """Adapter to go on training: PEFT, run folder or Megatron's. It says rank, alpha and targets."""
    lora_shared_a: bool = False
    """One A for q, k, v and one for gate, up, as MindSpeed-LLM trains its fused layers. Default: one for each module."""
    lora_ckpt_filter: bool = False
    """`--ckpt-format torch`: write A and B alone, without the weights under them."""

    @property
    def enabled(self) -> bool:
        return self.lora_r is not None or bool(self.lora_target_modules) or self.lora_load is not None

    @property
    def rank(self) -> int:
        return 16 if self.lora_r is None else self.lora_r

    @property
    def alpha(self) -> float:
        return 2.0 * self.rank if self.lora_alpha is None else self.lora_alpha


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    save: Path
    """Run folder. A checkpoint in it is continued; `--finetune` starts afresh."""
    save_interval: int = 200
    """Steps between two checkpoints; one more at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    no_save_optim: bool = False
    """Save the model alone, at every interval: much smaller, but the run can't be continued."""
    finetune: bool = False
    """Start at step 0 from `--load` even where `--save` holds a checkpoint (it is moved aside)."""
    ckpt_format: Literal["hf", "torch"] = "hf"
    """`torch`: also write RUN/mcore, the Megatron layout."""
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    """RUN/mcore: whose layers its tensors are named for in Megatron."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    log_interval: int = 1
    """Steps between two lines."""
    log_format: Literal["extended", "megatron"] = "extended"
    """`megatron`: its lines to the letter, the resolved settings listed first; `extended`: true tokens/s added."""
    log_throughput: bool = False
    """Add Megatron's throughput field to the line."""
    eval_interval: int = 100
    """Steps between two validations."""
    eval_iters: int = 8
    """Global batches of one validation; 0: none."""
    tensorboard_dir: Path | None = None
    """Folder for TensorBoard events, under Megatron's tags (needs tensorboard). Default: none."""
    tensorboard_log_interval: int = 1
    """TensorBoard: steps between two events."""
    tensorboard_queue_size: int = 1000
    """TensorBoard: events kept in memory before they are written."""
    log_timers_to_tensorboard: bool = False
    """TensorBoard: seconds of a step, and with `--log-throughput` the TFLOP/s."""
    log_batch_size_to_tensorboard: bool = False
    """TensorBoard: samples of a step."""
    log_validation_ppl_to_tensorboard: bool = False
    """TensorBoard: perplexity of each validation."""
    log_memory_to_tensorboard: bool = False
    """TensorBoard: highest memory so far, bytes."""
    log_world_size_to_tensorboard: bool = False
    """TensorBoard: processes."""
    no_log_learning_rate_to_tensorboard: bool = False
    """TensorBoard: leave the learning rate out."""
    no_log_loss_scale_to_tensorboard: bool = False
    """TensorBoard: leave the loss scale out."""
    seed: int = 1234
    """Seed of shuffling, adapter initialisation and dropout."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Supervised fine-tuning, full or LoRA."""

    model: ModelConfig
    data: DataConfig
    save: SaveConfig
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Memory, traffic and bubble of a training layout, without the machines: the real model on fake tensors."""

    load: Path
    """Folder with the model's config.json (no weights are needed), or any folder that `tune --load` takes."""
    world_size: int | None = None
    """Processes of the job, one a device. Default: tensor x pipeline."""
    nproc_per_node: int = 8
    """Devices of a machine: the largest tensor-parallel size that is suggested."""
    seq_length: int | None = None
    """Tokens of a sample. Default: the longest of `--data-path`, else 4096."""
    data_path: Path | None = None
    """Data set, for the steps and tokens of the run and the longest sample."""
    device_memory: str | None = None
    """Memory of a device, such as 64GiB: say whether the layout fits, and suggest the cheapest that does."""
    device_tflops: float = 150.0
    """Assumed sustained speed of a device, TFLOP/s; orders layouts, and gives the step time as if nothing overlapped."""
    link_gbytes: float = 25.0
    """Assumed speed between two devices, GB/s."""
    output: Path | None = None
    """JSON file for the same figures."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    optim: OptimStateConfig = field(default_factory=OptimStateConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    max_new_tokens: int = 512
    """Longest answer, tokens."""
    temperature: float = 0.7
    """Divides the logits."""
    top_k: int = 50
    """Keep the k likeliest tokens; 0: all."""
    top_p: float = 0.95
    """Keep the likeliest tokens up to this mass."""
    repetition_penalty: float = 1.0
    """Above 1: discourage tokens seen before."""
    greedy: bool = False
    """Always take the likeliest token; temperature, top-k, top-p and seed have no effect then."""
    num_beams: int = 1
    """Beams of beam search, kept side by side; the answer appears at its end. 1: none."""
    seed: int = 1234
    """Seed of the sampling."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Chat with a model in the terminal."""

    load: Path
    """Hugging Face folder, Megatron folder of any layout, run folder or adapter."""
    lora_load: Path | None = None
    """Adapter to put on top."""
    tokenizer_name_or_path: str | None = None
    """Default: the tokenizer beside the weights."""
    prompt_type: PromptType | None = None
    """Template. Default: the one the model was tuned with, else the tokenizer's own."""
    system: str | None = None
    """System message. Default: the template's."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type of the weights."""
    quantize: Literal["int8"] | None = None
    """8-bit weights, on a CPU: half as much memory to read for each token; a little quality is lost."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Answer one prompt, or every line of a file."""

    load: Path
    """Hugging Face folder, Megatron folder of any layout, run folder or adapter."""
    lora_load: Path | None = None
    """Adapter to put on top."""
    tokenizer_name_or_path: str | None = None
    """Default: the tokenizer beside the weights."""
    prompt: str | None = None
    """One prompt; the answer goes to standard output."""
    input: Path | None = None
    """JSON lines with `prompt` or `messages` each."""
    output: Path | None = None
    """JSON lines: the input's fields and `response`. Default: standard output; with `--before` RUN/samples.jsonl."""
    before: Path | None = None
    """`--output` of the model before tuning, same prompts: write `prompt`, `before`, `after`, for the report."""
    batch_size: int = 8
    """Prompts answered together."""
    raw: bool = False
    """Continue the text as it is, without a template."""
    prompt_type: PromptType | None = None
    """Template. Default: the one the model was tuned with, else the tokenizer's own."""
    system: str | None = None
    """System message. Default: the template's."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type of the weights."""
    quantize: Literal["int8"] | None = None
    """8-bit weights, on a CPU: half as much memory to read for each token; a little quality is lost."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a model on an exam, or compare two results."""

    load: Path | None = None
    """Hugging Face folder, Megatron folder of any layout, run folder or adapter."""
    lora_load: Path | None = None
    """Adapter to put on top."""
    tokenizer_name_or_path: str | None = None
    """Default: the tokenizer beside the weights."""
    task: str = "ceval"
    """Exam: ceval, cmmlu, mmlu, gsm8k, boolq, hellaswag, agieval, or lm_eval:NAME for one of lm-evaluation-harness."""
    task_data_path: Path | None = None
    """Folder or zip of the exam, in its published layout. For lm_eval:NAME: optional folder of task files of your own."""
    split: Literal["val", "test", "dev", "train"] | None = None
    """Questions to score. Default: the exam's usual ones, for ceval val. Its `test` also writes the submission file."""
    style: str | None = None
    """Prompt style, several by commas, or `all` that read scores. Default: the exam's usual one, for ceval official."""
    shots: int | None = None
    """Worked examples before each question. Default: the style's, for official 5."""
    subjects: str | None = None
    """Comma-separated subjects. Default: all."""
    limit: int | None = None
    """At most this many questions a subject. Default: all."""
    prompt_type: PromptType | None = None
    """Styles that converse: template. Default: the one the model was tuned with, else the tokenizer's own."""
    no_chat_template: bool = False
    """Styles that converse where they can: plain text, as for a base model."""
    max_new_tokens: int | None = None
    """Styles that generate: tokens of a reply at most. Default: the style's."""
    allow_unparsed: bool = False
    """Styles that generate: accept a result with more than 1% of replies that hold no readable answer."""
    noise_questions: int = 16
    """Questions scored a second time in fp32, to measure what the number type changes; 0: none."""
    train_data: Path | None = None
    """What the model was tuned on (records, or the prefix of token files): questions that occur in it are counted."""
    output: Path | None = None
    """Folder for results.json and predictions.jsonl. Default for a run folder: RUN/evaluation/TASK-STYLE."""
    compare: tuple[Path, ...] = ()
    """With `--load`: one earlier result to test against. Without: two results to compare."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type of the weights."""
    batch_tokens: int = 4096
    """Tokens of one forward pass at most."""
    shard: ShardConfig = field(default_factory=ShardConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(EvaluateConfig):
    """MindSpeed-LLM's evaluation.py: `evaluate`, and its lines."""

    lora: MegatronLoraConfig = field(default_factory=MegatronLoraConfig)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """MindSpeed-LLM's inference.py: its fixed prompt in four ways of decoding, and its chat."""

    load: Path
    """Hugging Face folder, Megatron folder of any layout, run folder or adapter."""
    lora_load: Path | None = None
    """Adapter to put on top: PEFT, run folder or Megatron's."""
    tokenizer_name_or_path: str | None = None
    """Default: the tokenizer beside the weights."""
    task: tuple[Literal["greedy", "do_sample", "beam_search", "beam_search_with_sampling", "chat"], ...] = (
        "greedy",
        "do_sample",
        "beam_search",
        "beam_search_with_sampling",
        "chat",
    )
    """What to do, in this order."""
    prompt_type: PromptType | None = None
    """Named template. Default: the text goes in as it is."""
    hf_chat_template: bool = False
    """The tokenizer's own chat template."""
    history_turns: int = 3
    """Earlier questions and answers that chat keeps."""
    dtype: Literal["bf16", "fp16", "fp32"] = "fp32"
    """Type of the weights."""
    max_new_tokens: int = 128
    """Longest answer, tokens."""
    temperature: float = 0.7
    """Divides the logits."""
    top_k: int = 50
    """Keep the k likeliest tokens; 0: all."""
    top_p: float = 0.95
    """Keep the likeliest tokens up to this mass."""
    seed: int = 1234
    """Seed of the sampling."""
    lora: MegatronLoraConfig = field(default_factory=MegatronLoraConfig)
    shard: ShardConfig = field(default_factory=ShardConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """One self-contained page from run folders; or what is wrong with a run folder that was handed in."""

    runs: tuple[Path, ...] = ()
    """Run folders, in the order to show; or the folder of one `tuneval ablate`."""
    from_log: tuple[Path, ...] = ()
    """Logs of Megatron or MindSpeed-LLM: a training log is a run; an exam's log belongs to the one before it."""
    check: tuple[Path, ...] = ()
    """Instead of a page: whether these run folders are complete and agree with themselves."""
    output: Path = Path("report.html")
    """File to write; the Markdown goes beside it."""
    lang: Literal["zh", "en"] = "zh"
    """Language of the page."""
    title: str | None = None
    """Heading of the page."""
    baseline: Path | None = None
    """Evaluation result (folder with results.json) of the model before tuning. Default: the one the runs name."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Take a tuned model out of its run folder."""

    load: Path
    """Run folder, or any folder that `--load` takes."""
    save: Path
    """Folder to write."""
    to: Literal["hf", "peft", "mcore"] = "hf"
    """`hf`: merged Hugging Face folder; `peft`: adapter; `mcore`: Megatron shards."""
    hf_cfg_dir: Path | None = None
    """Folder with config.json and tokenizer of the original model, for a Megatron `--load` that carries none."""
    keep_lora: bool = False
    """mcore: write the adapter beside the weights, in Megatron's LoRA form, instead of merging it."""
    lora_ckpt_filter: bool = False
    """mcore: like `--keep-lora`, the adapter alone."""
    lora: MegatronLoraConfig = field(default_factory=MegatronLoraConfig)
    target_tensor_parallel_size: int = 1
    """mcore: tensor-parallel ranks."""
    target_pipeline_parallel_size: int = 1
    """mcore: pipeline stages."""
    num_layer_list: str | None = None
    """mcore: layers of each stage."""
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    """mcore: whose layers the tensors are named for in Megatron."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Fetch a model or tokenizer into a folder. The only command that uses the network."""

    id: str
    """Repository id, such as Qwen/Qwen2.5-7B-Instruct."""
    to: Path | None = None
    """Folder. Default: the id's last part."""
    source: Literal["hf", "modelscope"] = "hf"
    """Hub. A mirror of the first is chosen by the environment variable HF_ENDPOINT."""
    revision: str | None = None
    """Branch, tag or commit."""
    tokenizer_only: bool = False
    """Leave the weights out."""


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """The whole way on a tiny model and data, offline, in minutes."""

    out: Path = Path("quickstart")
    """Folder for everything made on the way."""
    model: Path | None = None
    """A Hugging Face folder to use instead of the embedded tiny model."""
    data: Path | None = None
    """Records to use instead of the embedded ones."""
    exam: Path | None = None
    """Exam folder or zip in C-Eval's layout to use instead of the embedded one."""
    lang: Literal["zh", "en"] = "zh"
    """Language of the report."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Run every point of a sweep, and compare them in one report."""

    sweep: Path
    """YAML file: base flags, axes, seeds (docs/ablations.md)."""
    output: Path | None = None
    """Folder of the sweep; the same command continues it. Default: `output` in the file, else runs/FILE's name."""
    jobs: int = 1
    """Points tuned at the same time, each in processes of its own."""
    dry_run: bool = False
    """List the points with their steps, tokens and time instead of running them."""
    measure_steps: int = 2
    """Dry run: steps of each kind of point that are run to measure the time of one; 0: none."""
    keep: Literal["all", "model", "records"] = "model"
    """Of a finished point: `all`, all but its checkpoints, or its `records` alone (neither model nor adapter)."""
    skip_failed: bool = False
    """Leave points that failed before as they are, instead of trying them again."""
    lang: Literal["zh", "en"] = "zh"
    """Language of the report."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check this machine: versions, device, a matrix product, what is missing."""
